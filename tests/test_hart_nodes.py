"""HART in the nodes, in a stand-in for ComfyUI: one loader of its own, and every other node as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakehost import FakeHost, installed
from hart_builders import TINY, write_hart_model

from comfy_moss.model.library import find_model
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import generate, parse_method

NAME = "hart-0.7b-1024px"
PROMPT = "a red star and two dogs"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        write_hart_model(host.models / "hart" / NAME)
        yield host.start()


@pytest.fixture(scope="module")
def parts(host: FakeHost) -> tuple[Any, Any, Any]:
    """model, clip and vae."""
    return host.run("MoSs_LoadHART", model=NAME).result


def draw(host: FakeHost, parts: tuple, **widgets: Any) -> Any:
    return host.run(
        "MoSs_InfinityDraft", model=parts[0], positive=parts[1].encode(PROMPT), refine_scales=2, **widgets
    ).result[0]


def finish(host: FakeHost, draft: Any, method: str) -> dict[str, Any]:
    if method != "moss2":
        return host.run(
            {"dense": "MoSs_DenseRefine", "fastvar": "MoSs_FastVARRefine"}[method], draft=draft
        ).result[0]
    frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
    dispatch = host.run("MoSs_TokenDispatch", frequency=frequency).result[0]
    residual = host.run("MoSs_Refine", draft=draft, dispatch=dispatch).result[0]
    return host.run("MoSs_Composite", draft=draft, residual=residual).result[0]


@pytest.mark.parametrize("method", ["moss2", "dense", "fastvar"])
def test_the_graph_draws_the_pipelines_picture_bit_for_bit(host: FakeHost, parts: tuple, method: str):
    files = find_model(str(host.models / "hart" / NAME), [])
    text = tuple(files.load_text().encode([PROMPT]))
    recipe = Recipe(
        text, None, (5,), files.schedule(1.0, files.area), files.guidance(files.cfg),
        files.sampling(files.tau),
    )
    drawn = generate(files.load(), recipe, parse_method(method, published=files.published))

    latent = finish(host, draw(host, parts, seed=5), method)

    assert torch.equal(latent["samples"], drawn.total)
    assert latent["moss_cost"].tokens_per_scale == drawn.cost.tokens_per_scale
    assert latent["moss_cost"].kv_bytes >= drawn.cost.kv_bytes > 0
    assert torch.equal(parts[2].decode(latent["samples"]), ((drawn.image + 1) / 2).movedim(1, -1))


def test_the_papers_bounds_are_those_for_this_model(host: FakeHost, parts: tuple):
    draft = draw(host, parts)
    measured = host.run("MoSs_FrequencyMap", draft=draft)
    dispatched = host.run("MoSs_TokenDispatch", frequency=measured.result[0])

    assert dispatched.result[0].step.bounds == (80.0, 55.0)
    for shown in (measured, dispatched):
        known = shown.ui["moss_inspector"][0]["known"]
        assert (known["automatic"][2], known["paper"][2]) == ((80.0, 55.0), (80.0, 55.0))
    assert dispatched.ui["moss_inspector"][0]["draft_tokens"] == TINY.text_length + 4 + 9 + 16


def test_where_the_paper_has_no_bounds_this_is_said(host: FakeHost, parts: tuple):
    draft = host.run(
        "MoSs_InfinityDraft", model=parts[0], positive=parts[1].encode(PROMPT), refine_scales=3
    ).result[0]
    frequency = host.run("MoSs_FrequencyMap", draft=draft)
    known = frequency.ui["moss_inspector"][0]["known"]
    assert (known["automatic"][3], known["paper"][3]) == (None, None)
    with pytest.raises(
        ValueError, match="no bounds for 3 refine scales of this model; set refine_scales to 2, or"
    ):
        host.run("MoSs_TokenDispatch", frequency=frequency.result[0])
    custom = {"preset": "custom bounds", "values": "90, 60, 30"}
    assert host.run("MoSs_TokenDispatch", frequency=frequency.result[0], **custom).result[0].step.scales == (
        -3, -2, -1,
    )


def test_contribution_and_report_take_what_this_model_draws(host: FakeHost, parts: tuple):
    draft = draw(host, parts)
    latent = finish(host, draft, "moss2")
    drafter, refiner, _ = host.run("MoSs_ContributionMap", draft=draft, latent=latent).result
    assert drafter.shape == refiner.shape == (1, 16, 16, 3)
    assert "moss2" in host.run("MoSs_Report", latent=latent, reference=finish(host, draft, "dense")).result[0]


def test_an_empty_negative_prompt_is_none_and_a_real_one_changes_the_draft(host: FakeHost, parts: tuple):
    plain, empty, denied = (
        draw(host, parts, **extra).draft.total
        for extra in ({}, {"negative": parts[1].encode("")}, {"negative": parts[1].encode("a cat")})
    )
    assert torch.equal(plain, empty) and not torch.equal(plain, denied)


@pytest.mark.parametrize(
    "change", [{"more_smooth": False}, {"residual_diffusion": False}, {"last_scale_passes": 3}]
)
def test_every_setting_of_the_loader_changes_the_picture(host: FakeHost, parts: tuple, change: dict):
    other = host.run("MoSs_LoadHART", model=NAME, **change).result
    pictures = [finish(host, draw(host, loaded, seed=1), "dense")["samples"] for loaded in (parts, other)]
    assert not torch.equal(*pictures)


@pytest.mark.parametrize("widgets", [{"aspect": "16:9"}, {"area": "0.06M"}])
def test_only_squares_of_one_size_are_drawn(host: FakeHost, parts: tuple, widgets: dict):
    with pytest.raises(ValueError, match="128 x 128 pictures only; choose 1:1"):
        draw(host, parts, **widgets)


def test_prompts_of_another_loader_are_refused(host: FakeHost, parts: tuple):
    nano = host.run("MoSs_LoadInfinity").result
    with pytest.raises(ValueError, match="use the CLIP of the same"):
        host.run("MoSs_InfinityDraft", model=parts[0], positive=nano[1].encode(PROMPT))
    with pytest.raises(ValueError, match="use the CLIP of the same"):
        host.run("MoSs_InfinityDraft", model=nano[0], positive=parts[1].encode(PROMPT))


def test_a_model_that_is_not_there_is_named(host: FakeHost):
    with pytest.raises(ValueError, match="no HART model 'none found' in models/hart"):
        host.run("MoSs_LoadHART", model="none found")
    assert (
        host.nodes["MoSs_LoadHART"].fingerprint_inputs("none found", "automatic", precision="auto")
        == "missing"
    )


def test_a_replaced_system_prompt_is_noticed(host: FakeHost):
    node, file = host.nodes["MoSs_LoadHART"], host.models / "hart" / NAME / "system_prompt.txt"
    before = node.fingerprint_inputs(NAME, "automatic")
    content = file.read_bytes()
    file.unlink()
    assert node.fingerprint_inputs(NAME, "automatic") != before
    file.write_bytes(content)


def test_only_the_loader_names_the_model():
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "nodes")
        for path in (ROOT / "comfy_moss" / folder).glob("*.py")
        if re.search("(?<![a-z])hart", path.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert found == {"comfy_moss/nodes/load.py"}
