"""What an artist meets first: methods by name, a straight chain that survives bypass, picks, model files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakehost import FakeHost, Interrupted, installed
from safetensors.torch import save_file

from comfy_moss.model.backbone import NANO, PAPER
from comfy_moss.model.found import FoundPlan
from comfy_moss.model.library import find_model
from comfy_moss.model.tensors import CheckpointError
from comfy_moss.model.text import TextEncoder
from comfy_moss.pipeline import budget
from comfy_moss.pipeline.plan import generate, parse_method, parse_plan


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        yield host.start()


@pytest.fixture(scope="module")
def nano(host: FakeHost) -> tuple[Any, Any]:
    """model and prompt."""
    model, clip, _ = host.run("MoSs_LoadInfinity").result
    return model, clip.encode("a red heart")


def draft(host: FakeHost, nano: tuple[Any, Any], **widgets: Any) -> Any:
    return host.run("MoSs_InfinityDraft", model=nano[0], positive=nano[1], **{"area": "0.06M"} | widgets)


def encoded(host: FakeHost, words: str) -> Any:
    return host.run("MoSs_LoadInfinity").result[1].encode(words)


def chain(host: FakeHost, drafted: Any, within: Any = None, **dispatch: Any) -> tuple[Any, Any]:
    """latent and draft of MoSs Composite, every node at its defaults."""
    frequency = host.run("MoSs_FrequencyMap", draft=drafted).result[0]
    dispatched = host.run("MoSs_TokenDispatch", frequency=frequency, **dispatch).result[0]
    residual = host.run("MoSs_Refine", within, dispatch=dispatched).result[0]
    return host.run("MoSs_Composite", within, residual=residual).result


# --- the method by name -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["recommended", "sparse3", "moss2", "moss3", "moss4", "moss5"])
def test_a_method_by_name_is_that_of_the_command_line(
    host: FakeHost, nano: tuple[Any, Any], method: str
) -> None:
    drafted = draft(host, nano, method=method).result[0]
    latent, _ = chain(host, drafted)
    plan = parse_method("sparse3" if method == "recommended" else method, published=NANO.on(drafted.schedule))
    expected = generate(nano[0].backbone, drafted.draft.recipe, plan)
    assert torch.equal(latent["samples"], expected.total) and latent["moss_cost"].label == plan.label


def test_nano_begins_with_the_plan_that_its_table_shows_best_and_others_with_the_papers() -> None:
    assert NANO.method == "sparse3" and PAPER.method == "moss4"


def test_without_a_method_the_number_of_scales_decides_as_it_did(host: FakeHost, nano: tuple) -> None:
    drafted = draft(host, nano, refine_scales=4).result[0]
    latent, _ = chain(host, drafted)
    method = parse_method("moss4", published=NANO.on(drafted.schedule))
    expected = generate(nano[0].backbone, drafted.draft.recipe, method)
    assert torch.equal(latent["samples"], expected.total)


def test_the_papers_presets_take_all_scales_that_are_left_whatever_the_method(
    host: FakeHost, nano: tuple
) -> None:
    drafted = draft(host, nano, method="sparse3").result[0]
    latent, _ = chain(host, drafted, preset="paper")
    method = parse_method("moss3-paper", published=NANO)
    expected = generate(nano[0].backbone, drafted.draft.recipe, method)
    assert torch.equal(latent["samples"], expected.total)


def test_own_numbers_keep_the_scales_and_the_guidance_of_the_method(host: FakeHost, nano: tuple) -> None:
    drafted = draft(host, nano, method="sparse3").result[0]
    latent, _ = chain(host, drafted, preset="custom bounds", values="20")
    assert latent["moss_cost"].label == "draft-3; -1@20 unguided"


def test_a_method_of_two_passes_is_run_in_two_and_missed_in_one(host: FakeHost, nano: tuple) -> None:
    drafted = draft(host, nano, method="sparse4").result[0]
    once = host.run("MoSs_Composite", residual=refined(host, drafted))
    (note,) = once.ui["moss_notes"]
    assert note["key"] == "unfinished" and "2 refine passes and this graph runs 1" in note["text"]
    twice = host.run("MoSs_Composite", residual=refined(host, once.result[1]))
    assert twice.result[0]["moss_cost"].label == NANO.plans["sparse4"] and twice.ui is None


# --- by budget ----------------------------------------------------------------------------------------------


def graph_of(passes: int) -> tuple[dict[str, Any], str]:
    """A graph as it was queued, with so many refine passes behind its draft, and the draft's name in it."""
    graph = {"0": {"class_type": "MoSs_InfinityDraft", "inputs": {}}}
    for n in range(passes):
        before = f"c{n - 1}" if n else "0"
        graph[f"r{n}"] = {"class_type": "MoSs_Refine", "inputs": {"dispatch": [before, 0]}}
        graph[f"c{n}"] = {"class_type": "MoSs_Composite", "inputs": {"residual": [f"r{n}", 0]}}
    return graph, "0"


@pytest.mark.parametrize(
    ("passes", "budget", "plan"),
    [(1, 0.25, NANO.plans["sparse3"]), (2, 0.17, NANO.plans["sparse4"]), (1, 0.17, None), (0, 0.17, None)],
)
def test_a_budget_takes_the_best_plan_that_the_graph_can_run(
    host: FakeHost, nano: tuple, passes: int, budget: float, plan: str | None
) -> None:
    drawn = host.run(
        "MoSs_InfinityDraft", within=graph_of(passes), model=nano[0], positive=nano[1], area="0.25M",
        method="by budget", budget=budget,
    )
    chosen = drawn.result[0].plan
    assert len(chosen.passes) == max(1, passes) and (plan is None or str(chosen) == plan)
    (note,) = drawn.ui["moss_notes"]
    assert note["key"] == "chosen" and note["values"]["plan"] == str(chosen)
    assert float(note["values"]["work"]) <= 100 * budget + 0.5


def test_a_plan_with_a_strength_of_its_own_drafts_with_it_and_says_what_that_leaves_unused(
    host: FakeHost, nano: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = "draft-3 cfg 1; -3@50; -1@45"
    scales = len(nano[0].files.schedule(1.0, "0.06M"))
    known = FoundPlan("plan20", plan, "nano", scales, 0.2, 0.8, 0.7, 0.9)
    monkeypatch.setattr(budget, "found_plans", lambda: [known])
    asked = {"method": "by budget", "budget": 0.9, "cfg": 3.0, "negative": encoded(host, "a dog")}
    drawn = draft(host, nano, within=graph_of(2), **asked)
    drafted, plain = drawn.result[0], draft(host, nano, refine_scales=3, cfg=1.0).result[0]
    assert drawn.ui["moss_used"][0]["cfg"] == 1.0 and str(drafted.plan) == plan
    assert torch.equal(drafted.draft.total, plain.draft.total)
    assert [note["key"] for note in drawn.ui["moss_notes"]] == ["size", "chosen", "negative"]
    once = host.run("MoSs_Composite", residual=refined(host, drafted)).result[1]
    twice = host.run("MoSs_Composite", residual=refined(host, once)).result[0]
    expected = generate(nano[0].backbone, replace(drafted.draft.recipe, negative=None), parse_plan(plan))
    assert torch.equal(twice["samples"], expected.total)


@pytest.mark.parametrize(("cfg", "words", "told"), [(1.0, "a dog", 1), (2.0, "a dog", 0), (1.0, "", 0)])
def test_a_negative_prompt_that_changes_nothing_is_told(
    host: FakeHost, nano: tuple, cfg: float, words: str, told: int
) -> None:
    drawn = draft(host, nano, cfg=cfg, negative=encoded(host, words))
    assert [note["key"] for note in drawn.ui["moss_notes"]] == ["size"] + ["negative"] * told


def test_a_budget_that_nothing_fits_is_one_sentence(host: FakeHost, nano: tuple) -> None:
    with pytest.raises(ValueError, match="no plan is known that takes 0.01 of dense's work or less"):
        draft(host, nano, area="0.25M", method="by budget", budget=0.01)


def test_seconds_are_measured_once_and_a_cancel_stops_the_measuring(
    host: FakeHost, nano: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as cancelled, pytest.raises(Interrupted):
        cancelled.setattr(host, "interrupted", True)
        draft(host, nano, area="0.06M", method="by seconds", seconds=60.0)
    assert not list(tmp_path.rglob("*.json"))
    first = draft(host, nano, area="0.06M", method="by seconds", seconds=60.0)
    assert first.ui["moss_notes"][-1]["key"] == "chosen.elsewhere"  # found on ten scales
    (times,) = tmp_path.rglob("seconds.json")
    before = times.read_bytes()
    again = draft(host, nano, area="0.06M", method="by seconds", seconds=60.0)
    assert again.result[0].plan == first.result[0].plan and times.read_bytes() == before


def refined(host: FakeHost, drafted: Any) -> Any:
    frequency = host.run("MoSs_FrequencyMap", draft=drafted).result[0]
    dispatched = host.run("MoSs_TokenDispatch", frequency=frequency).result[0]
    return host.run("MoSs_Refine", dispatch=dispatched).result[0]


def test_a_method_that_the_size_cannot_carry_says_so(host: FakeHost, nano: tuple) -> None:
    with pytest.raises(ValueError, match="refine_scales 7 leaves nothing to draft: this picture has 7"):
        draft(host, nano, refine_scales=7)


# --- bypass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bypassed", ["MoSs_FrequencyMap", "MoSs_TokenDispatch", "MoSs_Refine"])
def test_what_the_host_wires_through_a_bypassed_node_gives_a_picture(
    host: FakeHost, nano: tuple, bypassed: str
) -> None:
    """The host hands the first fitting input on: without the map it is measured, without the others the draft
    stays.
    """
    drafted = draft(host, nano, method="sparse3").result[0]
    stage = drafted
    for node, socket in (
        ("MoSs_FrequencyMap", "draft"), ("MoSs_TokenDispatch", "frequency"), ("MoSs_Refine", "dispatch"),
    ):
        stage = stage if node == bypassed else host.run(node, **{socket: stage}).result[0]
    latent, again = host.run("MoSs_Composite", residual=stage).result
    plain = bypassed != "MoSs_FrequencyMap"
    method = parse_method("draft-3" if plain else "sparse3", published=NANO.on(drafted.schedule))
    expected = generate(nano[0].backbone, drafted.draft.recipe, method)
    assert torch.equal(latent["samples"], expected.total) and latent["moss_cost"].label == method.label
    assert (again is drafted) == plain


# --- sizes and notes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aspect", "area", "warned"),
    [("1:1", "0.25M", 0), ("1:1", "1M", 0), ("3:1", "0.25M", 1), ("1:1", "0.06M", 1)],
)
def test_a_size_that_the_model_never_learned_is_warned_about_on_the_node(
    host: FakeHost, nano: tuple, aspect: str, area: str, warned: int
) -> None:
    notes = draft(host, nano, aspect=aspect, area=area).ui["moss_notes"]
    assert [note["key"] for note in notes] == ["size"] * warned


def test_the_node_says_what_it_used(host: FakeHost, nano: tuple) -> None:
    (used,) = draft(host, nano, area="model's own", method="recommended").ui["moss_used"]
    assert used == {
        "width": 256, "height": 256, "cfg": 1.5, "tau": 0.5, "drafted": 7, "scales": 10,
        "plan": NANO.plans["sparse3"],
    }


def test_prompt_weights_are_told_on_the_draft_too(host: FakeHost, nano: tuple) -> None:
    clip = host.run("MoSs_LoadInfinity").result[1]
    output = host.run("MoSs_InfinityDraft", model=nano[0], positive=clip.encode("a (red:1.2) heart"))
    assert [note["key"] for note in output.ui["moss_notes"]] == ["weights"]


# --- picks --------------------------------------------------------------------------------------------------


def test_picked_drafts_are_refined_to_the_pictures_of_their_own_seeds(
    host: FakeHost, nano: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = nano
    drafted = draft(host, nano, batch_size=4, seed=7, method="sparse3").result[0]
    output = host.run("MoSs_PickDrafts", draft=drafted, picks="4, 2")
    picked = output.result[0]
    assert output.ui["moss_drafts"][0]["picked"] == [1, 3] and len(output.ui["moss_drafts"][0]["maps"]) == 4
    assert picked.draft.recipe.seeds == (8, 10)
    assert not picked.model.store.missing(picked.draft)  # nothing is drafted anew
    latent, _ = chain(host, picked)
    for n, seed in enumerate((8, 10)):
        alone, _ = chain(host, draft(host, nano, seed=seed, method="sparse3").result[0])
        assert torch.equal(latent["samples"][n], alone["samples"][0])


def test_a_pick_whose_cache_is_gone_is_rebuilt(host: FakeHost, nano: tuple) -> None:
    drafted = draft(host, nano, batch_size=3, seed=7, method="sparse3").result[0]
    picked = host.run("MoSs_PickDrafts", draft=drafted, picks="3").result[0]
    before, _ = chain(host, picked)
    host.free()
    assert picked.model.store.nbytes == 0
    after, _ = chain(host, picked)
    assert torch.equal(before["samples"], after["samples"])


@pytest.mark.parametrize("picks", ["", "0", "5", "1-9", "two", "3-2", "-1"])
def test_picks_that_are_none_are_refused(host: FakeHost, nano: tuple, picks: str) -> None:
    drafted = draft(host, nano, batch_size=2).result[0]
    with pytest.raises(ValueError, match="picks .*write numbers from 1 to 2"):
        host.run("MoSs_PickDrafts", draft=drafted, picks=picks)


# --- compare ------------------------------------------------------------------------------------------------


def test_compare_says_who_is_closest_in_the_same_time(host: FakeHost) -> None:
    from comfy_moss.nodes.compare import Compared, table, verdict

    def one(name: str, seconds: float, ssim: float, texture: float) -> Compared:
        return Compared(name, seconds, 100, 30.0, ssim, texture, torch.zeros(2))

    ours, blurred = one("sparse3", 1, 0.9, 0.8), one("draft-2", 1.2, 0.95, 0.3)
    slow = one("moss2", 2, 0.99, 1)
    said = verdict([ours, blurred, slow])
    assert "draft-2 is most like the reference, but sparse3 has most of its texture" in said
    assert said.endswith("Slower, so not counted: moss2.")
    assert "sparse3 is most like the reference, and sparse3 has most" in verdict([ours, slow])
    assert "Slower" not in verdict([ours, replace(ours, image=torch.zeros(2))])  # equal in all figures
    lines = table(one("dense", 4, 1, 1), [ours]).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["dense", "sparse3"]


# --- text encoders in one file ------------------------------------------------------------------------------


def single_file(folder: Path, dtype: torch.dtype, scale: float | None = None) -> Path:
    """nano's text encoder as one file without its tokenizer."""
    from safetensors.torch import load_file

    state = load_file(find_model("nano", []).text / "model.safetensors")
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        scaled = scale is not None and tensor.dim() == 2 and "bias" not in name and "shared" not in name
        out[name] = (tensor.float() / scale if scaled else tensor).to(dtype)
        if scaled:
            out[name.removesuffix("weight") + "scale_weight"] = torch.tensor(scale)
    save_file(out, folder / "flan-t5-xl_encoder.safetensors")
    return folder / "flan-t5-xl_encoder.safetensors"


@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"),
    [(torch.float32, None, 0), (torch.float16, None, 1e-2), (torch.float8_e4m3fn, 0.01, 0.3)],
    ids=["fp32", "fp16", "fp8 with scales"],
)
def test_a_text_encoder_in_one_file_reads_as_its_folder_does(
    tmp_path: Path, dtype: torch.dtype, scale: float | None, tolerance: float
) -> None:
    folder = find_model("nano", []).text
    expected = TextEncoder.load(folder).encode(["a red heart"])[0]
    found = TextEncoder.load(single_file(tmp_path, dtype, scale), tokenizer=folder).encode(["a red heart"])[0]
    error = (found - expected).abs().max()
    assert found.shape == expected.shape and error <= tolerance * expected.abs().max()


def test_a_file_without_a_tokenizer_says_what_to_put_beside_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer: put tokenizer.json or spiece.model of flan"):
        TextEncoder.load(single_file(tmp_path, torch.float16))


def test_an_error_of_a_file_reaches_the_page_without_a_module_path(host: FakeHost) -> None:
    with pytest.raises(ValueError) as caught:
        host.run("MoSs_LoadInfinity", model="gone.safetensors")
    assert type(caught.value) is ValueError and "models" in str(caught.value)
