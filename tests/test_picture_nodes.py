"""The nodes that start from a picture, in a stand-in for ComfyUI: what they draw, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from builders import TINY_FILE, with_tiny
from fakehost import FakeHost

from comfy_moss.pipeline.source import encode_picture, mask_of, seam

SCALES = 7  # at the smallest area


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with with_tiny(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def parts(host: FakeHost) -> tuple[Any, Any, Any]:
    return host.run("MoSs_LoadInfinity", model=TINY_FILE).result


@pytest.fixture(scope="module")
def picture(parts: tuple) -> torch.Tensor:
    side = 16 * parts[0].backbone.stride
    return torch.rand(1, side, side, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def start(host: FakeHost, parts: tuple, picture: torch.Tensor) -> Callable[..., tuple]:
    """A function that makes a draft of the picture: draft, latent, picture and mask."""
    model, clip, _ = parts
    usual = {"model": model, "image": picture, "positive": clip.encode("a red cat"), "area": "0.06M"}
    return lambda **widgets: host.run("MoSs_ImageToDraft", **{**usual, **widgets}).result


def own(parts: tuple, picture: torch.Tensor, draft: Any) -> torch.Tensor:
    """The sum of the picture's own codes."""
    backbone, schedule = parts[0].backbone, draft.schedule
    source, total = encode_picture(backbone, picture, schedule), 0
    for scale, bits in enumerate(source.bits):
        total = total + backbone.code_map(backbone.codes(bits), scale, schedule)
    return total


def refined(host: FakeHost, draft: Any, **widgets: Any) -> tuple[dict[str, Any], Any, Any]:
    """The latent and the draft after one pass, and its dispatch."""
    frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
    settings = {"preset": "custom bounds", "values": "45", "scales": "-1", **widgets}
    dispatch = host.run("MoSs_TokenDispatch", frequency=frequency, **settings).result[0]
    residual = host.run("MoSs_Refine", draft=draft, dispatch=dispatch).result[0]
    done = host.run("MoSs_Composite", draft=draft, residual=residual, strength=1.0).result
    return (*done, dispatch)


def corner(picture: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(picture.shape[:3])
    mask[:, : mask.shape[1] // 4, : mask.shape[2] // 4] = 1
    return mask


def test_no_scale_is_text_to_picture(host: FakeHost, parts: tuple, start: Callable) -> None:
    ours = start(strength=0, refine_scales=2, seed=4)[0].draft
    text = {"model": parts[0], "positive": parts[1].encode("a red cat"), "area": "0.06M"}
    theirs = host.run("MoSs_InfinityDraft", **text, refine_scales=2, seed=4).result[0].draft
    assert torch.equal(ours.total, theirs.total)


def test_all_scales_are_the_codecs_picture(start: Callable, parts: tuple, picture: torch.Tensor) -> None:
    draft, latent, fitted, mask = start(strength=13, refine_scales=0)
    assert torch.equal(latent["samples"], own(parts, picture, draft))
    assert torch.equal(fitted, picture) and (mask == 1).all()


def test_refining_a_picture_changes_what_is_dispatched_alone(
    host: FakeHost, start: Callable, parts: tuple, picture: torch.Tensor
) -> None:
    draft, before, _, _ = start(strength=13, refine_scales=2)
    assert torch.equal(before["samples"], own(parts, picture, draft))
    latent, _, dispatch = refined(host, draft, values="5")
    changed = (latent["samples"] != before["samples"]).any(1).sum()
    assert 0 < changed <= 41 * dispatch.dispatch.counts[0]


def test_inpainting_redraws_the_masked_places_alone_and_says_how_many(
    host: FakeHost, start: Callable, parts: tuple, picture: torch.Tensor
) -> None:
    draft, _, _, _ = start(strength=0, refine_scales=2, mask=corner(picture))
    latent, _, dispatch = refined(host, draft, values="100")
    mask = mask_of(corner(picture), draft.schedule)

    assert dispatch.dispatch.counts == (int(mask.sum()),)
    assert latent["moss_cost"].refine_tokens == int(mask.sum())
    assert latent["moss_cost"].tokens_per_scale[-1] == int(mask.sum())
    away = (seam(mask, latent["samples"].shape[-2:]) == 1).expand_as(latent["samples"])
    assert torch.equal(latent["samples"][away], own(parts, picture, draft)[away])
    dense = host.run("MoSs_DenseRefine", draft=draft, preview=False).result[0]["samples"]
    assert torch.equal(dense[away], own(parts, picture, draft)[away])


def test_the_page_learns_how_many_tokens_may_change(
    host: FakeHost, start: Callable, picture: torch.Tensor
) -> None:
    draft = start(strength=0, refine_scales=2, mask=corner(picture))[0]
    shown = host.run("MoSs_FrequencyMap", draft=draft).ui["moss_inspector"][0]
    assert shown["open"] == [int((~draft.draft.recipe.source.kept(tuple(g))).sum()) for g in shown["grids"]]
    whole = host.run("MoSs_FrequencyMap", draft=start(refine_scales=2)[0]).ui["moss_inspector"][0]
    assert whole["open"] == [h * w for h, w in whole["grids"]]


def test_a_batch_of_pictures_counts_seeds_up_and_any_size_is_fitted(start: Callable, parts: tuple) -> None:
    images = torch.rand(2, 50, 90, 3)
    draft, _, fitted, mask = start(image=images, mask=torch.ones(1, 50, 90), seed=5, fit="pad")
    assert draft.draft.recipe.seeds == (5, 6)
    height, width = fitted.shape[1:3]
    assert width / height == pytest.approx(90 / 50, rel=0.25) and mask.shape == (1, height, width)
    assert draft.draft.total.shape[2] * parts[0].backbone.stride == height


def test_an_edit_changes_the_draft_and_says_where(
    host: FakeHost, parts: tuple, start: Callable, picture: torch.Tensor
) -> None:
    draft = start(strength=13, refine_scales=2)[0]
    words = {"positive": parts[1].encode("a blue dog"), "source": parts[1].encode("a red cat")}
    result = host.run("MoSs_EditDraft", draft=draft, **words, rule="shift", preserve=1, follow=4).result
    edited, latent, heat, changed = result

    assert not torch.equal(edited.draft.total, draft.draft.total)
    assert edited.draft.recipe.source.mask is not None and changed.max() == 1
    assert heat.shape == picture.shape and changed.shape == picture.shape[:3]
    done, _, dispatch = refined(host, edited, mask=changed)
    kept = edited.draft.recipe.source.kept(draft.schedule.grids[-1])[0]
    assert not kept[dispatch.dispatch.cells[0][0]].any()
    assert done["samples"].shape == latent["samples"].shape


def test_a_draft_from_text_can_be_edited_without_naming_its_prompt(host: FakeHost, parts: tuple) -> None:
    text = {"model": parts[0], "positive": parts[1].encode("a red cat"), "area": "0.06M", "refine_scales": 2}
    draft = host.run("MoSs_InfinityDraft", **text).result[0]
    asked = {"draft": draft, "rule": "shift", "preserve": 1, "follow": 5}
    edited = host.run("MoSs_EditDraft", positive=parts[1].encode("a blue dog"), **asked).result[0]
    assert not torch.equal(edited.draft.total, draft.draft.total)
    assert edited.draft.recipe.source.edit.text is draft.draft.recipe.text


def refused(message: str, run: Callable, *args: Any, **inputs: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        run(*args, **inputs)
    assert re.match(r"[^\n]{20,240}$", str(error.value))


def test_what_cannot_be_drawn_from_is_told(
    host: FakeHost, parts: tuple, start: Callable, picture: torch.Tensor
) -> None:
    refused("smaller than one cell of this model", start, image=picture[:, :1, :1])
    refused("the mask is empty", start, mask=torch.zeros(picture.shape[:3]))
    refused("use a mask of the picture's size", start, mask=torch.ones(1, 20, 60))
    refused("3 masks do not pair up with 1 pictures", start, mask=torch.ones(3, *picture.shape[1:3]))
    refused("refine_scales 7 leaves nothing to draft", start, refine_scales=7)
    refused("which is no IMAGE", start, image="picture")


def test_what_cannot_be_edited_is_told(
    host: FakeHost, parts: tuple, start: Callable, picture: torch.Tensor
) -> None:
    draft = start(strength=13, refine_scales=2)[0]
    run, cat, dog = host.run, parts[1].encode("a red cat"), parts[1].encode("a blue dog")
    refused("both prompts are the same", run, "MoSs_EditDraft", draft=draft, positive=cat, source=cat)
    other = [[torch.rand(1, 4, 7), {}]]
    refused("was encoded to 7 numbers", run, "MoSs_EditDraft", draft=draft, positive=other)
    refused("the mask is empty", run, "MoSs_EditDraft", draft=draft, positive=dog, mask=corner(picture) * 0)
    after = refined(host, draft)[1]
    refused("was refined already", run, "MoSs_EditDraft", draft=after, positive=dog)
