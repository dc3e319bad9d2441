"""The nodes on their own, in a stand-in for ComfyUI: what they say, what they draw, and what they refuse."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY_FILE, write_model
from fakehost import FakeHost, Interrupted, Socket, installed
from safetensors.torch import save_file

from comfy_moss.images import to_image
from comfy_moss.model.backbone import PAPER
from comfy_moss.model.checkpoint import load_infinity
from comfy_moss.model.library import find_model
from comfy_moss.model.sampling import Guidance, Sampling
from comfy_moss.model.schedule import make_schedule, parse_aspect
from comfy_moss.model.text import TextEncoder
from comfy_moss.model.tiny_decoder import TinyDecoder, tiny_decoder_name
from comfy_moss.ops import TORCH
from comfy_moss.pipeline.dispatch import write_painting
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import Picture, generate, parse_method, parse_plan

PROMPT = "a red heart on a gradient white background"
WALKERS = ("is_dir", "is_file", "iterdir", "glob", "rglob", "exists", "stat")  # ways to look at the disk


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        yield host.start()


@pytest.fixture(autouse=True)
def forget(host: FakeHost) -> None:
    host.loads.clear()
    host.progress.clear()


@pytest.fixture(scope="module")
def nano(host: FakeHost) -> tuple[Any, Any, Any]:
    """model, clip and vae of the embedded model."""
    return host.run("MoSs_LoadInfinity").result


@pytest.fixture(scope="module")
def tiny(host: FakeHost) -> tuple[Any, Any, Any]:
    """The same of a tiny model in the models folder: another width of text, and it draws in no time."""
    write_model(host.models / "infinity" / "tiny")
    return host.run("MoSs_LoadInfinity", model=TINY_FILE).result


@pytest.fixture
def draft(host: FakeHost, tiny: tuple) -> Any:
    """A function that drafts with the tiny model."""
    return lambda prompt="a red cat", **widgets: draw(host, tiny, prompt, **widgets)


def draw(host: FakeHost, parts: tuple, prompt: str = PROMPT, **widgets: Any) -> Any:
    """A draft at the smallest area."""
    model, clip, _ = parts
    positive = widgets.pop("positive", None) or clip.encode(prompt)
    return host.run(
        "MoSs_InfinityDraft", model=model, positive=positive,
        **{"area": "0.06M", "refine_scales": 4, **widgets},
    ).result[0]


def dispatch(host: FakeHost, draft: Any, **widgets: Any) -> Any:
    frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
    return host.run("MoSs_TokenDispatch", frequency=frequency, **widgets).result[0]


def moss(host: FakeHost, draft: Any, strength: float = 1.0, **widgets: Any) -> dict[str, Any]:
    """The latent of the paper's method."""
    residual = host.run("MoSs_Refine", draft=draft, dispatch=dispatch(host, draft), **widgets).result[0]
    return host.run("MoSs_Composite", draft=draft, residual=residual, strength=strength).result[0]


# --- what they say ------------------------------------------------------------------------------------------


def test_ids_are_unique_and_our_own(host: FakeHost) -> None:
    assert len(host.nodes) == len(sys.modules["comfy_moss.nodes"].NODES) == 19
    assert all(name.startswith("MoSs_") for name in host.nodes)


def test_every_node_says_what_it_is(host: FakeHost) -> None:
    schemas = [node.define_schema() for node in host.nodes.values()]
    assert {schema.category for schema in schemas} == {"MoSs"}
    assert len({schema.display_name for schema in schemas}) == len(schemas)
    assert [
        s.node_id for s in schemas if len(s.description) < 20 or not s.search_aliases or not s.outputs
    ] == []


def test_every_input_and_output_says_what_it_is(host: FakeHost) -> None:
    for name, node in host.nodes.items():
        sockets = node.define_schema().inputs + node.define_schema().outputs
        # hosts before 0.4 load no node otherwise
        assert len({socket.id for socket in sockets}) == len(sockets), name
        assert [socket.id for socket in sockets if len(socket.settings.get("tooltip", "")) < 15] == [], name


def _valid(socket: Socket, value: Any) -> bool:
    settings = socket.settings
    if socket.kind == "Combo":
        return value in settings["options"]
    if socket.kind in ("Int", "Float"):
        steps = (value - settings["min"]) / settings.get("step", 1)
        return settings["min"] <= value <= settings["max"] and abs(steps - round(steps)) < 1e-6
    return isinstance(value, {"Boolean": bool, "String": str}[socket.kind])


def test_every_widget_starts_at_a_value_that_it_allows(host: FakeHost) -> None:
    widgets = [s for node in host.nodes.values() for s in node.define_schema().inputs if s.widget]
    assert len(widgets) > 15
    assert [socket.id for socket in widgets if not _valid(socket, socket.default)] == []


def test_the_outputs_are_as_many_as_the_schema_says(host: FakeHost, nano: tuple) -> None:
    one = draw(host, nano)
    latent = moss(host, one)
    measured = host.run("MoSs_FrequencyMap", draft=one).result
    outputs = {"MoSs_LoadInfinity": nano, "MoSs_FrequencyMap": measured}
    outputs["MoSs_ContributionMap"] = host.run("MoSs_ContributionMap", draft=one, latent=latent).result
    outputs["MoSs_TokenDispatch"] = host.run("MoSs_TokenDispatch", frequency=measured[0]).result
    outputs["MoSs_Report"] = host.run("MoSs_Report", latent=latent).result
    assert {name: len(values) for name, values in outputs.items()} == {
        name: len(host.nodes[name].define_schema().outputs) for name in outputs
    }


# --- what they draw -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A function that draws with nano, without any node."""
    files = find_model("nano", [])
    backbone, encoder = load_infinity(files.transformer, files.vae, files.text), TextEncoder.load(files.text)

    def run(
        method: str, batch: int, aspect: str, cfg: float, negative: str, area: str, bounds: tuple | None
    ) -> Picture:
        denied = tuple(encoder.encode([negative])) * batch if negative else None
        recipe = Recipe(
            tuple(encoder.encode([PROMPT])) * batch, denied, tuple(range(5, 5 + batch)),
            make_schedule(parse_aspect(aspect), area), Guidance(cfg or files.cfg), Sampling(files.tau),
        )
        published = files.published.on(recipe.schedule)
        return generate(backbone, recipe, parse_method(method, bounds, published=published))

    return run


def _by_nodes(
    host: FakeHost, parts: tuple, method: str, widgets: dict[str, Any], bounds: tuple | None
) -> dict[str, Any]:
    k = len(bounds) if bounds else int(method[4:]) if method.startswith("moss") else 4
    drafted = draw(host, parts, refine_scales=0 if method == "dense0" else k, seed=5, **widgets)
    if method == "draft":
        return {"samples": drafted.draft.total, "moss_cost": drafted.cost}
    if method in ("dense", "dense0", "fastvar"):
        node = "MoSs_FastVARRefine" if method == "fastvar" else "MoSs_DenseRefine"
        return host.run(node, draft=drafted).result[0]
    settings = {"preset": "custom bounds", "values": ", ".join(map(str, bounds))} if bounds else {}
    residual = host.run("MoSs_Refine", draft=drafted, dispatch=dispatch(host, drafted, **settings)).result[0]
    return host.run("MoSs_Composite", draft=drafted, residual=residual).result[0]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("moss2", {}), ("moss3", {}), ("moss4", {}), ("moss5", {}), ("dense", {}), ("fastvar", {}),
        ("draft", {}),
        ("dense0", {}),
        ("moss4", {"batch_size": 2, "aspect": "16:9"}), ("dense", {"batch_size": 2, "aspect": "9:16"}),
        ("moss4", {"cfg": 1.0}), ("fastvar", {"cfg": 1.0}), ("moss4", {"negative": "a red square"}),
        ("moss4", {"bounds": (60.0, 20.0)}), ("moss4", {"bounds": (70.0,)}), ("moss4", {"area": "0.25M"}),
    ],
)
def test_the_graph_draws_the_pipelines_picture_bit_for_bit(
    host: FakeHost, nano: tuple, pipeline: Any, method: str, changes: dict
) -> None:
    bounds = changes.get("bounds")
    widgets = {name: value for name, value in changes.items() if name != "bounds"}
    if negative := widgets.get("negative"):
        widgets["negative"] = nano[1].encode(negative)
    latent = _by_nodes(host, nano, method, widgets, bounds)
    expected = pipeline(
        "moss" if bounds else method.removesuffix("0"), changes.get("batch_size", 1),
        changes.get("aspect", "1:1"), changes.get("cfg", 0), negative, changes.get("area", "0.06M"), bounds,
    )
    assert torch.equal(latent["samples"], expected.total)
    assert torch.equal(nano[2].decode(latent["samples"]), to_image(expected.image).clamp(0, 1))
    cost = latent["moss_cost"]
    assert (cost.tokens_per_scale, cost.kv_bytes) == (expected.cost.tokens_per_scale, expected.cost.kv_bytes)


def test_switches_of_the_refine_node_and_the_strength_change_the_picture(host: FakeHost, draft: Any) -> None:
    one = draft()
    whole = moss(host, one)["samples"]
    for change in ({"cross_scale_attention": False}, {"guidance": False}, {"strength": 0.5}):
        assert not torch.equal(moss(host, one, **change)["samples"], whole), change
    assert torch.equal(moss(host, one, strength=0)["samples"], one.draft.total)
    assert torch.equal(moss(host, one, backend="torch")["samples"], whole)


def test_one_draft_serves_many_refine_nodes_in_any_order(host: FakeHost, draft: Any) -> None:
    one = draft()
    first = moss(host, one)["samples"], host.run("MoSs_DenseRefine", draft=one).result[0]["samples"]
    assert torch.equal(moss(host, one)["samples"], first[0])
    one.model.store.clear()
    assert torch.equal(host.run("MoSs_DenseRefine", draft=one).result[0]["samples"], first[1])
    assert torch.equal(moss(host, one)["samples"], first[0])


def test_seeds_of_a_batch_count_up_and_start_again_at_the_end(host: FakeHost, draft: Any) -> None:
    last = 2**64 - 1
    both = draft(seed=last, batch_size=2).draft
    assert both.recipe.seeds == (last, 0)
    assert torch.equal(both.total[1:], draft(seed=0).draft.total)


def test_prompts_of_a_batch_may_differ(host: FakeHost, tiny: tuple, draft: Any) -> None:
    cat, dog = (tiny[1].encode(prompt) for prompt in ("a red cat", "a blue dog"))
    both = draft(positive=[[torch.cat([cat[0][0], dog[0][0]]), {}]], batch_size=2).draft
    assert torch.equal(both.total[1:], draft(positive=dog, seed=1).draft.total)


def test_an_empty_negative_prompt_is_none(host: FakeHost, tiny: tuple, draft: Any) -> None:
    plain = draft().draft.total
    assert torch.equal(draft(negative=tiny[1].encode("")).draft.total, plain)
    assert not torch.equal(draft(negative=tiny[1].encode("a blue dog")).draft.total, plain)


def test_settings_of_zero_are_the_models_own(host: FakeHost, tiny: tuple, draft: Any) -> None:
    recipe = draft().draft.recipe
    assert (recipe.guidance.cfg, recipe.sampling.tau) == (tiny[0].files.cfg, tiny[0].files.tau) == (3.0, 0.5)
    own = draft(tau=0.9, cfg=2.0).draft.recipe
    assert (own.guidance, own.sampling) == (Guidance(2.0), Sampling(0.9))


def test_a_painted_mask_moves_tokens_and_keeps_their_number(host: FakeHost, draft: Any) -> None:
    one = draft()
    mask = torch.zeros(1, 32, 32)
    mask[:, :8, :8] = 1
    plain, painted = dispatch(host, one).dispatch, dispatch(host, one, mask=mask).dispatch
    assert plain.counts == painted.counts
    assert any(not torch.equal(a, b) for a, b in zip(plain.cells, painted.cells, strict=True))
    corner = {row * 16 + column for row in range(4) for column in range(4)}  # finest scale: 16 x 16
    assert corner <= set(painted.cells[-1][0].tolist()) and not corner <= set(plain.cells[-1][0].tolist())
    by_hand = dispatch(host, one, painting=write_painting(mask[0] > 0)).dispatch
    assert all(torch.equal(a, b) for a, b in zip(painted.cells, by_hand.cells, strict=True))


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("custom bounds", "80, 70, 30, 10"), ("custom shares", "10%; 40; 20; 10"), ("paper", "nothing"),
        ("automatic", ""),
    ],
)
def test_bounds_can_be_said_in_four_ways(host: FakeHost, draft: Any, preset: str, values: str) -> None:
    assert dispatch(host, draft(), preset=preset, values=values).step.bounds == (80.0, 70.0, 30.0, 10.0)


def test_bounds_found_for_a_model_are_taken_unless_told_otherwise(host: FakeHost, draft: Any) -> None:
    one, own = draft(), (90.0, 20.0, 5.0, 1.0)
    scales = len(one.schedule)
    searched = {scales: {4: own}, scales + 1: {4: (100.0,) * 4}}
    backbone = replace(one.model.backbone, published=replace(PAPER, searched=searched))
    measured = host.run("MoSs_FrequencyMap", draft=replace(one, model=replace(one.model, backbone=backbone)))
    presets = ({}, {"preset": "paper"})
    found, printed = (
        host.run("MoSs_TokenDispatch", frequency=measured.result[0], **preset) for preset in presets
    )
    assert (found.result[0].step.bounds, printed.result[0].step.bounds) == (own, (80.0, 70.0, 30.0, 10.0))
    shown = [output.ui["moss_inspector"][0] for output in (measured, found, printed)]
    for known in (data["known"] for data in shown):  # by number of scales
        assert (known["automatic"][4], known["paper"][4]) == (own, (80.0, 70.0, 30.0, 10.0))
        assert list(known["paper"]) == [1, 2, 3, 4]
        assert (known["paper"][2], known["paper"][1]) == ((50, 25), (100,))
    assert shown[0]["pass"]["bounds"] == list(own)


# --- what they show -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preview", "method"), [(True, "auto"), (True, "taesd"), (True, "none"), (False, "auto")]
)
def test_progress_counts_the_scales_and_shows_pictures_where_they_are_wanted(
    host: FakeHost, draft: Any, preview: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.args, "preview_method", method)
    one = draft(preview=preview, refine_scales=4)
    assert [(done, total) for done, total, _ in host.progress] == [(n, 3) for n in (1, 2, 3)]
    host.progress.clear()
    host.run("MoSs_DenseRefine", draft=one, preview=preview)
    assert [(done, total) for done, total, _ in host.progress] == [(n, 4) for n in (1, 2, 3, 4)]
    shown = preview and method != "none"
    assert [picture is not None for _, _, picture in host.progress] == [shown] * 4
    if shown:
        kind, picture, size = host.progress[-1][2]
        side = one.draft.total.shape[-1]  # the host enlarges to the picture's own size
        assert (kind, picture.size, size) == ("JPEG", (side, side), side * one.model.backbone.stride)


def test_taesd_previews_come_from_the_codecs_tiny_decoder_where_there_is_one(
    host: FakeHost, draft: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(host.args, "preview_method", "taesd")
    model = draft(preview=False).model
    model.__dict__.pop("tiny", None)
    one = draft(preview=True, refine_scales=4)
    side, stride = one.draft.total.shape[-1], one.model.backbone.stride
    assert host.progress[-1][2][1].size == (side, side) and "previews are coarse" in caplog.text
    name = tiny_decoder_name(one.model.files.vae)
    path = host.models / "vae_approx" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    tiny = TinyDecoder.of_stride(model.backbone.channels, stride, (4,) * stride.bit_length())
    save_file(tiny.state_dict(), path)
    model.__dict__.pop("tiny", None)  # as after a load
    host.run("MoSs_DenseRefine", draft=one, preview=True)
    model.__dict__.pop("tiny", None)
    assert host.progress[-1][2][1].size == (side * stride, side * stride)


def test_the_draft_keeps_its_picture_for_runs_in_which_it_is_not_drawn_again(
    host: FakeHost, tiny: tuple
) -> None:
    """The page shows what a cached node said; without that an empty box is left of its previews."""
    inputs = {"model": tiny[0], "positive": tiny[1].encode("a red cat"), "area": "0.06M"}
    output = host.run("MoSs_InfinityDraft", **inputs, batch_size=2)
    assert output.ui["images"] == output.result[0].pictures and len(output.result[0].pictures) == 2
    assert "images" not in host.run("MoSs_InfinityDraft", **inputs, preview=False).ui


def test_nothing_is_decoded_while_drawing_and_the_colours_are_found_once_a_codec(
    host: FakeHost, nano: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = host.run("MoSs_LoadInfinity").result[0]
    codec, calls = model.vae_patcher.model, []
    for name in ("encode", "decode"):
        real = getattr(codec, name)
        monkeypatch.setattr(codec, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    for seed in (1, 2):
        one = draw(host, (model, *nano[1:]), seed=seed)
        moss(host, one)
        for node in ("MoSs_DenseRefine", "MoSs_FastVARRefine"):
            host.run(node, draft=one)
    assert calls == ["encode"]


def test_previews_have_the_colours_of_the_picture(host: FakeHost, nano: tuple) -> None:
    one = draw(host, nano, "a red heart on a gradient white background", area="0.25M", refine_scales=0)
    picture = nano[2].decode(one.draft.total)[0]
    small = torch.nn.functional.adaptive_avg_pool2d(picture.movedim(-1, 0), one.sketch.shape[1:3]).movedim(
        0, -1
    )
    likeness = torch.corrcoef(torch.stack([small.flatten(), one.sketch[0].flatten()]))[0, 1]
    assert likeness > 0.75, likeness


def test_pictures_and_maps_are_as_the_host_passes_them(host: FakeHost, draft: Any) -> None:
    one = draft(aspect="2:1", batch_size=2)
    _, heatmap, mask = host.run("MoSs_FrequencyMap", draft=one).result
    measured = host.run("MoSs_FrequencyMap", draft=one).result[0]
    _, overlay = host.run("MoSs_TokenDispatch", frequency=measured, image=torch.rand(1, 20, 40, 4)).result
    drafter, refiner, r = host.run("MoSs_ContributionMap", draft=one, latent=moss(host, one)).result
    height, width = (side * one.model.backbone.stride for side in one.draft.total.shape[2:])
    assert width > height
    for picture in (heatmap, overlay, drafter, refiner):
        assert picture.shape == (2, height, width, 3) and picture.dtype == torch.float32
        assert picture.min() >= 0 and picture.max() <= 1
    assert mask.shape == (2, height, width) and mask.min() >= 0 and mask.max() <= 1
    assert isinstance(r, float) and -1 <= r <= 1


def test_the_inspector_gets_the_same_bounds_that_the_dispatch_used(host: FakeHost, draft: Any) -> None:
    measured = host.run("MoSs_FrequencyMap", draft=draft(batch_size=2))
    output = host.run(
        "MoSs_TokenDispatch", frequency=measured.result[0], preset="custom bounds", values="60, 40, 20, 5"
    )
    (seen,), (first,) = output.ui["moss_inspector"], measured.ui["moss_inspector"]
    ran = {"scales": [-4, -3, -2, -1], "bounds": [60.0, 40.0, 20.0, 5.0]}
    assert (seen["kind"], seen["pass"], len(seen["pictures"])) == ("dispatch", ran, 2)
    assert (first["kind"], first["pass"]["bounds"]) == ("frequency", [80.0, 70.0, 30.0, 10.0])


def test_the_inspector_is_told_what_the_ranks_were_made_with(host: FakeHost, draft: Any) -> None:
    measured, painted = host.run("MoSs_FrequencyMap", draft=draft()), write_painting(torch.eye(4) > 0)
    for settings, expected in (
        ({}, ("", False)),
        ({"painting": painted}, (painted, False)),
        ({"mask": torch.ones(1, 4, 4)}, ("", True)),
    ):
        output = host.run("MoSs_TokenDispatch", frequency=measured.result[0], **settings)
        (seen,) = output.ui["moss_inspector"]
        assert (seen["painting"], seen["masked"]) == expected


def test_a_finished_draft_has_a_map_but_nothing_to_inspect(host: FakeHost, draft: Any) -> None:
    output = host.run("MoSs_FrequencyMap", draft=draft(refine_scales=0))
    assert output.ui is None and output.result[2].max() > 0.99


def test_the_report_compares_two_pictures(host: FakeHost, tiny: tuple, draft: Any) -> None:
    one = draft()
    latent, dense = moss(host, one), host.run("MoSs_DenseRefine", draft=one).result[0]
    images = {
        name: tiny[2].decode(x["samples"]) for name, x in (("image", latent), ("reference_image", dense))
    }
    output = host.run("MoSs_Report", latent=latent, reference=dense, **images)
    lines = dict(line.split(maxsplit=1) for line in output.result[0].splitlines())
    assert lines["method"] == "moss4" and {"PSNR", "SSIM", "speed", "refine", "composite"} <= lines.keys()
    assert output.ui["text"] == (output.result[0],)
    lines = [line.split(maxsplit=1)[0] for line in output.result[0].splitlines()]
    assert [name.split()[0] for _, name, _ in output.ui["moss_report"]] == lines


# --- memory -------------------------------------------------------------------------------------------------


def test_room_is_made_for_weights_caches_and_the_largest_pass_before_drawing(
    host: FakeHost, tiny: tuple, draft: Any
) -> None:
    one = draft(batch_size=2)
    kept = one.cost.kv_bytes
    dense = host.run("MoSs_DenseRefine", draft=one).result[0]["moss_cost"].kv_bytes
    refined = moss(host, one)["moss_cost"].refine_tokens
    whole = draft(batch_size=2, refine_scales=0).cost.kv_bytes
    asked = [options["memory_required"] for models, options in host.loads if tiny[0].patcher in models]
    takes, schedule, drafted = tiny[0].backbone.pass_bytes, one.schedule, one.draft.cached_tokens
    before_last = schedule.tokens(0, len(schedule) - 1)
    assert asked == [
        kept + takes(4, 16, drafted, stored=True), dense + takes(4, 256, before_last, stored=False),
        takes(4, refined, drafted, stored=False), whole + takes(4, 256, before_last, stored=False),
    ]
    assert not any(options.get("force_full_load") for _, options in host.loads)
    assert {id(model) for models, _ in host.loads for model in models} == {
        id(handle) for handle in (tiny[0].patcher, tiny[0].vae_patcher, tiny[1].patcher)
    }
    one.model.store.clear()
    host.loads.clear()
    moss(host, one)
    again = kept + takes(4, refined, drafted, stored=False)
    assert host.loads[0][1]["memory_required"] == again  # what had to go counts again


@pytest.fixture
def passes(host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Query lengths of the tiny model's forward passes, as they come."""
    lengths: list[int] = []
    transformer = tiny[0].backbone.transformer
    real = transformer.forward
    monkeypatch.setattr(
        transformer, "forward", lambda x, *a, **k: (lengths.append(x.shape[1]), real(x, *a, **k))[1]
    )
    return lengths


@pytest.mark.parametrize("between", ["nothing", "VAE Decode", "partial unload", "another model's load"])
@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("cfg", [3.0, 1.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_another_dispatch_is_one_pass_of_exactly_its_tokens(
    host: FakeHost, tiny: tuple, draft: Any, passes: list[int], batch: int, cfg: float, guidance: bool,
    between: str,
) -> None:
    one = draft(batch_size=batch, cfg=cfg)
    latent = moss(host, one, guidance=guidance)
    if between == "VAE Decode":
        tiny[2].decode(latent["samples"])
    elif between == "partial unload":
        host.partially_unload(tiny[0].patcher)
    elif between == "another model's load":
        tiny[1].encode("a blue dog")
    passes.clear()
    other = dispatch(host, one, preset="custom bounds", values="60, 40, 20, 5")
    refined = host.run("MoSs_Refine", draft=one, dispatch=other, guidance=guidance).result[0]
    assert passes == [sum(other.dispatch.counts)]
    assert "rebuild" not in refined.cost.seconds


@pytest.mark.parametrize("node", ["MoSs_Refine", "MoSs_DenseRefine"])
def test_a_rebuild_is_shown_counted_and_can_be_cancelled(
    host: FakeHost, draft: Any, passes: list[int], node: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = draft(refine_scales=4)
    inputs = {"draft": one} | ({"dispatch": dispatch(host, one)} if node == "MoSs_Refine" else {})
    host.free()
    assert one.model.store.nbytes == 0
    host.progress.clear(), passes.clear()
    result = host.run(node, **inputs).result[0]
    cost = result.cost if node == "MoSs_Refine" else result["moss_cost"]
    steps = 3 + (1 if node == "MoSs_Refine" else 4)
    assert cost.seconds["rebuild"] > 0 and len(passes) == steps
    assert [(done, total) for done, total, _ in host.progress] == [(n, steps) for n in range(1, steps + 1)]
    host.free()
    host.progress.clear()
    monkeypatch.setattr(type(host), "interrupted", property(lambda host: len(host.progress) == 2))
    with pytest.raises(Interrupted):
        host.run(node, **inputs)
    assert [done for done, *_ in host.progress] == [1, 2] and one.model.store.nbytes == 0


def test_the_text_of_a_picture_is_prepared_once(
    host: FakeHost, tiny: tuple, draft: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, transformer = [], tiny[0].backbone.transformer
    real = transformer.condition
    monkeypatch.setattr(transformer, "condition", lambda *a: (calls.append(1), real(*a))[1])
    one = draft()
    for strength in (1.0, 0.5):
        moss(host, one, strength=strength)
    host.run("MoSs_DenseRefine", draft=one)
    assert len(calls) == 1


def test_vae_decode_computes_with_the_kernels_of_its_loader(host: FakeHost, draft: Any, tiny: tuple) -> None:
    latent, codec, calls = moss(host, draft())["samples"], tiny[2], []
    counted = replace(TORCH, group_norm_silu=lambda *a: calls.append(a) or TORCH.group_norm_silu(*a))
    again = type(codec)(codec.first_stage_model, counted)
    assert torch.equal(again.decode(latent), codec.decode(latent)) and calls


def test_menus_and_fingerprints_look_at_no_unrelated_file(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("infinity", "vae", "text_encoders"):
        folder = host.models / name / "unrelated"
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(20):
            (folder / f"{n}.bin").touch()
    paths = sys.modules["folder_paths"]
    kinds = ("infinity", "vae", "text_encoders", "hart", "loras")
    listings = {name: paths.get_filename_list(name) for name in kinds}
    looked: list[str] = []
    with monkeypatch.context() as patched:
        # made before, as the host keeps them
        patched.setattr(paths, "get_filename_list", listings.__getitem__)
        for module, name in (
            (os.path, "getmtime"), (paths, "get_full_path"), *((Path, name) for name in WALKERS),
        ):
            real = getattr(module, name)
            patched.setattr(
                module, name, lambda *a, real=real, **k: (looked.append(str(a[-1])), real(*a, **k))[1]
            )
        for node in host.nodes.values():
            node.define_schema()
        node = host.nodes["MoSs_LoadInfinity"]
        prints = {
            node.fingerprint_inputs(name, *["automatic"] * 2, "auto")
            for name in ("nano (embedded)", TINY_FILE)
        }
        host.nodes["MoSs_LoadHART"].fingerprint_inputs("none found", "automatic", precision="auto")
    assert len(prints) == 2
    # one question a folder
    assert {path for path in looked if "tiny" not in path} <= {"unrelated/config.json"}


def test_the_composite_has_the_codec_brought_to_its_device(host: FakeHost, tiny: tuple, draft: Any) -> None:
    one = draft()
    residual = host.run("MoSs_Refine", draft=one, dispatch=dispatch(host, one)).result[0]
    host.free()
    host.loads.clear()
    host.run("MoSs_Composite", draft=one, residual=residual)
    assert [models for models, _ in host.loads] == [[tiny[0].vae_patcher]]


def test_a_copy_of_the_clip_works_as_the_clip(host: FakeHost, tiny: tuple) -> None:
    """The host's own CLIP nodes hand on copies."""
    (copied, _), (features, _) = tiny[1].clone().encode("a red cat")[0], tiny[1].encode("a red cat")[0]
    assert torch.equal(copied, features)
    assert [options for _, options in host.loads] == [{"memory_required": 0}] * 2


def test_unloading_empties_the_store_and_changes_no_picture(host: FakeHost, draft: Any) -> None:
    one = draft()
    before = moss(host, one)["samples"]
    assert one.model.store.nbytes == one.cost.kv_bytes > 0
    host.free()
    assert one.model.store.nbytes == 0
    assert torch.equal(moss(host, one)["samples"], before)


def test_the_cache_goes_with_the_draft(host: FakeHost, draft: Any) -> None:
    one = draft()
    store = one.model.store
    assert store.nbytes > 0
    del one
    assert store.nbytes == 0


def test_a_cancelled_draft_leaves_nothing_behind(host: FakeHost, tiny: tuple, draft: Any) -> None:
    earlier = draft()
    host.progress.clear()
    host.interrupted = True
    try:
        with pytest.raises(Interrupted):
            draft()
    finally:
        host.interrupted = False
    assert host.progress == [] and tiny[0].store.nbytes == 0
    assert torch.equal(draft().draft.total, earlier.draft.total)


def test_a_model_that_nobody_uses_goes_at_once(host: FakeHost, tiny: tuple) -> None:
    gc.disable()
    try:
        model = host.run("MoSs_LoadInfinity", model=TINY_FILE).result[0]
        weights, model = weakref.ref(model.backbone.transformer), None
        host.loads.clear()
        assert weights() is None
    finally:
        gc.enable()


# --- several passes -----------------------------------------------------------------------------------------

TWO_PASSES = {  # the graph as the host queues it, with what tells the passes apart
    "draft": {"class_type": "MoSs_InfinityDraft", "inputs": {}},
    "first": {"class_type": "MoSs_Refine", "inputs": {"draft": ["draft", 0], "dispatch": ["dispatch", 0]}},
    "laid": {"class_type": "MoSs_Composite", "inputs": {"residual": ["first", 0]}},
    "again": {"class_type": "MoSs_FrequencyMap", "inputs": {"draft": ["laid", 1]}},
    "shares": {"class_type": "MoSs_TokenDispatch", "inputs": {"frequency": ["again", 0]}},
    "second": {"class_type": "MoSs_Refine", "inputs": {"dispatch": ["shares", 0]}},
}


def refine_again(
    host: FakeHost, drafted: Any, name: str, scales: str, bounds: str, graph: dict | None = TWO_PASSES,
    **widgets: Any,
) -> tuple[dict[str, Any], Any]:
    """Latent and draft of one more pass over some scales."""
    settings = {"preset": "custom bounds", "values": bounds, "scales": scales}
    within = graph and (graph, name)
    residual = host.run(
        "MoSs_Refine", within, draft=drafted, dispatch=dispatch(host, drafted, **settings), **widgets
    ).result[0]
    return host.run("MoSs_Composite", draft=drafted, residual=residual).result


@pytest.mark.parametrize("graph", [TWO_PASSES, None], ids=["kept", "rebuilt"])
@pytest.mark.parametrize("batch", [1, 2])
def test_two_passes_in_the_graph_are_the_plan_bit_for_bit(
    host: FakeHost, nano: tuple, graph: dict | None, batch: int
) -> None:
    drafted = draw(host, nano, refine_scales=4, seed=5, batch_size=batch)
    _, between = refine_again(host, drafted, "first", "-4", "70", graph)
    latent, after = refine_again(host, between, "second", "-1", "45", graph, guidance=False)

    plan = parse_plan("draft-4; -4@70; -1@45 unguided")
    expected = generate(drafted.model.backbone, drafted.draft.recipe, plan)
    assert torch.equal(latent["samples"], expected.total)
    cost = latent["moss_cost"]
    assert cost.label == str(plan) and cost.refine_tokens == expected.cost.refine_tokens
    assert cost.tokens_per_scale == expected.cost.tokens_per_scale
    assert cost.kv_bytes == expected.cost.kv_bytes or graph is None
    assert after.draft.left == range(7, 7)


def test_a_second_pass_is_one_pass_of_its_tokens_and_redraws_nothing(
    host: FakeHost, draft: Any, passes: list[int]
) -> None:
    drafted = draft(refine_scales=4)
    passes.clear()
    _, between = refine_again(host, drafted, "first", "-4", "70")
    refine_again(host, between, "second", "-1", "45", guidance=False)
    assert passes == [25, 115]  # 70 % of 6 x 6, 45 % of 16 x 16
    passes.clear()
    refine_again(host, between, "second", "-1", "30")
    refine_again(host, drafted, "first", "-4", "50")
    assert passes == [77, 18]


def test_a_pass_whose_keys_went_is_run_again_and_counted(
    host: FakeHost, draft: Any, passes: list[int]
) -> None:
    drafted = draft(refine_scales=4)
    _, between = refine_again(host, drafted, "first", "-4", "70", None)
    passes.clear()
    latent, _ = refine_again(host, between, "second", "-1", "45", None)
    assert passes == [25, 115] and latent["moss_cost"].seconds["rebuild"] > 0


def test_a_finished_draft_after_passes_may_be_drawn_on_densely(host: FakeHost, draft: Any) -> None:
    drafted = draft(refine_scales=3)
    _, between = refine_again(host, drafted, "first", "-3", "100")
    dense = host.run("MoSs_DenseRefine", draft=between).result[0]
    assert torch.equal(dense["samples"], host.run("MoSs_DenseRefine", draft=drafted).result[0]["samples"])
    with pytest.raises(ValueError, match="wire it to MoSs Draft"):
        host.run("MoSs_FastVARRefine", draft=between)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [("all", (-3, -2, -1)), ("", (-3, -2, -1)), ("-1", (-1,)), ("-3, -1", (-3, -1)), ("2 1", (-2, -1))],
)
def test_scales_of_a_pass_are_counted_from_the_end(
    host: FakeHost, draft: Any, scales: str, expected: tuple
) -> None:
    bounds = {"preset": "custom bounds", "values": ", ".join(["50"] * len(expected))}
    assert dispatch(host, draft(refine_scales=3), scales=scales, **bounds).step.scales == expected


@pytest.mark.parametrize("scales", ["-4", "last", "-1, fine", "0"])
def test_scales_that_the_draft_has_not_left_are_refused(host: FakeHost, draft: Any, scales: str) -> None:
    with pytest.raises(ValueError, match="not scales of this draft; write all, or .*: -3, -2, -1"):
        dispatch(host, draft(refine_scales=3), scales=scales)
