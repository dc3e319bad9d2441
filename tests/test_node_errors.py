"""What the nodes refuse, each in one sentence that says what to do; and the menus of models.  In a stand-in
for ComfyUI.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TINY_FILE, with_tiny
from fakehost import FakeHost


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with with_tiny(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def parts(host: FakeHost) -> tuple[Any, Any, Any]:
    """model, clip and vae of the tiny model."""
    return host.run("MoSs_LoadInfinity", model=TINY_FILE).result


@pytest.fixture(scope="module")
def draft(host: FakeHost, parts: tuple) -> Callable[..., Any]:
    """A function that drafts at the smallest area: 7 scales."""
    model, clip, _ = parts
    defaults = {"model": model, "positive": clip.encode("a red cat"), "area": "0.06M", "refine_scales": 4}
    return lambda **widgets: host.run("MoSs_InfinityDraft", **{**defaults, **widgets}).result[0]


@pytest.fixture(scope="module")
def four(draft: Callable[..., Any]) -> Any:
    """A draft with k = 4."""
    return draft()


@pytest.fixture(scope="module")
def measured(host: FakeHost) -> Callable[[Any], Any]:
    return lambda draft: host.run("MoSs_FrequencyMap", draft=draft).result[0]


@pytest.fixture(scope="module")
def latent(host: FakeHost, four: Any) -> dict[str, Any]:
    return host.run("MoSs_DenseRefine", draft=four).result[0]


def refused(message: str, run: Callable, *args: Any, **inputs: Any) -> None:
    """It raises a ValueError with this in its message, which is one sentence."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run(*args, **inputs)
    text = str(caught.value)
    assert "\n" not in text and ". " not in text and not text.endswith(".") and len(text) < 300, text


# --- the draft ----------------------------------------------------------------------------------------------


def test_a_draft_must_leave_itself_a_scale(draft: Callable) -> None:
    assert draft(refine_scales=6).draft.scales == 1
    refused(
        "refine_scales 7 leaves nothing to draft: this picture has 7 scales; choose at most 6", draft,
        refine_scales=7,
    )


def test_combined_prompts_are_refused(draft: Callable, parts: tuple) -> None:
    both = parts[1].encode("a red cat") + parts[1].encode("a blue dog")
    refused("the positive input holds 2 combined conditionings", draft, positive=both)
    refused("the negative input holds 2 combined conditionings", draft, negative=both)
    refused("the positive input holds 0 combined conditionings", draft, positive=[])


def test_a_prompt_of_another_models_encoder_is_refused(draft: Callable) -> None:
    other = [[torch.zeros(1, 4, 128), {}]]
    refused(
        "the positive prompt was encoded to 128 numbers a token and this model reads 32", draft,
        positive=other,
    )
    refused("the negative prompt was encoded to 128 numbers a token", draft, negative=other)
    refused("the positive input is no text conditioning", draft, positive=[[torch.zeros(4, 32), {}]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_prompt_that_is_not_numbers_is_refused(draft: Callable, value: float) -> None:
    broken = [[torch.full((1, 4, 32), value), {}]]
    refused("the positive input holds values that are not numbers", draft, positive=broken)
    refused("the negative input holds values that are not numbers", draft, negative=broken)


def test_a_batch_takes_one_prompt_or_as_many_as_pictures(draft: Callable) -> None:
    two = [[torch.randn(2, 4, 32), {}]]
    assert len(draft(positive=two, negative=two, batch_size=2).draft.total) == 2
    refused("the positive input holds 2 prompts for a batch of 3", draft, positive=two, batch_size=3)
    refused("the negative input holds 2 prompts for a batch of 1", draft, negative=two)


def test_a_prompt_of_ten_thousand_characters_is_refused(parts: tuple) -> None:
    refused("the prompt is too long", parts[1].encode, "a red cat " * 1000)


def test_a_prompt_weight_is_warned_about_once_and_read_as_text(
    parts: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        weighted = parts[1].encode("a (red:1.2) cat and a (blue:0.5) dog")
    assert len(caplog.messages) == 1 and "(red:1.2)" in caplog.messages[0]
    caplog.clear()
    plain = parts[1].encode("a red cat (left), two dogs: right")
    assert caplog.messages == [] and weighted[0][0].shape[1] > plain[0][0].shape[1]


# --- dispatch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "custom bounds", "custom shares"])
def test_a_finished_draft_has_nothing_to_dispatch(
    host: FakeHost, draft: Callable, measured: Callable, preset: str
) -> None:
    inputs = {"frequency": measured(draft(refine_scales=0)), "preset": preset}
    refused(
        "this draft is finished: there is no scale left to refine", host.run, "MoSs_TokenDispatch", **inputs
    )


def test_the_paper_has_no_bounds_for_six_scales(host: FakeHost, draft: Callable, measured: Callable) -> None:
    six = measured(draft(refine_scales=6))
    refused("the paper has no bounds for 6 refine scales", host.run, "MoSs_TokenDispatch", frequency=six)


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        (
            "custom bounds", "80, 70, 30",
            "values holds 3 numbers, but the draft leaves 4 scales to refine; write 4",
        ),
        ("custom bounds", "80, 70, 30, 10, 5", "values holds 5 numbers"),
        ("custom bounds", "80, 70, thirty, 10", "values '80, 70, thirty, 10' are not numbers"),
        ("custom bounds", "", "values '' are not numbers"),
        ("custom bounds", "80, 70,, 10", "are not numbers"),
        ("custom bounds", "80, nan, 30, 10", "are not numbers"),
        ("custom bounds", "10, 30, 70, 80", "bounds must fall"),
        ("custom bounds", "101, 70, 30, 10", "between 0 and 100"),
        ("custom bounds", "80, 70, 30, -1", "between 0 and 100"),
        ("custom shares", "50, 40, 20, 10", "sum to at most 100"),
        ("custom shares", "-10, 40, 20, 10", "0 or more"),
        ("custom shares", "nan, 40, 20, 10", "are not numbers"),
    ],
)
def test_impossible_values_are_refused(
    host: FakeHost, four: Any, measured: Callable, preset: str, values: str, message: str
) -> None:
    refused(message, host.run, "MoSs_TokenDispatch", frequency=measured(four), preset=preset, values=values)


def test_masks_and_pictures_are_one_or_as_many_as_the_drafts(
    host: FakeHost, draft: Callable, measured: Callable
) -> None:
    two = measured(draft(batch_size=2))
    for count in (1, 2):
        mask, image = torch.ones(count, 9, 9), torch.ones(count, 9, 9, 3)
        host.run("MoSs_TokenDispatch", frequency=two, mask=mask, image=image)
    run = partial(host.run, "MoSs_TokenDispatch", frequency=two)
    refused("it needs one mask, or one each for 2", run, mask=torch.ones(3, 9, 9))
    run(mask=torch.ones(1, 1, 9, 9))
    refused("the mask input has the shape", run, mask=torch.ones(1, 2, 9, 9))
    run(mask=torch.ones(9, 9))  # some nodes leave the first axis out
    refused("the image input holds 3 pictures, the draft 2", run, image=torch.ones(3, 9, 9, 3))
    refused("the painting '4x4:?' is damaged", run, painting="4x4:?")


# --- refine and after ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"aspect": "16:9"}, {"area": "0.25M"}, {"refine_scales": 3}, {"batch_size": 2}]
)
def test_parts_of_differently_shaped_pictures_are_refused(
    host: FakeHost, draft: Callable, four: Any, measured: Callable, change: dict
) -> None:
    other = draft(**change)
    dispatch = host.run("MoSs_TokenDispatch", frequency=measured(other)).result[0]
    refused("the dispatch was made from", host.run, "MoSs_Refine", draft=four, dispatch=dispatch)
    residual = host.run("MoSs_Refine", draft=other, dispatch=dispatch).result[0]
    refused("the residual was made from", host.run, "MoSs_Composite", draft=four, residual=residual)
    if "refine_scales" not in change:
        latent = host.run("MoSs_DenseRefine", draft=other).result[0]
        refused("do not belong to one picture", host.run, "MoSs_ContributionMap", draft=four, latent=latent)


def test_a_backend_that_cannot_run_here_is_refused(host: FakeHost, four: Any, measured: Callable) -> None:
    dispatch = host.run("MoSs_TokenDispatch", frequency=measured(four)).result[0]
    refused(
        "the Triton kernels cannot run here", host.run, "MoSs_Refine", draft=four, dispatch=dispatch,
        backend="triton",
    )


def test_a_residual_of_another_model_is_refused(host: FakeHost, four: Any, measured: Callable) -> None:
    model, clip, _ = host.run("MoSs_LoadInfinity").result
    other = host.run(
        "MoSs_InfinityDraft", model=model, positive=clip.encode("a red cat"), area="0.06M",
        refine_scales=4,
    ).result[0]
    dispatch = host.run("MoSs_TokenDispatch", frequency=measured(four)).result[0]
    residual = host.run("MoSs_Refine", draft=other, dispatch=dispatch).result[0]
    refused(
        "the residual was drawn by another model", host.run, "MoSs_Composite", draft=four, residual=residual
    )


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_the_strength_lies_between_0_and_1(
    host: FakeHost, four: Any, measured: Callable, strength: float
) -> None:
    dispatch = host.run("MoSs_TokenDispatch", frequency=measured(four)).result[0]
    residual = host.run("MoSs_Refine", draft=four, dispatch=dispatch).result[0]
    refused(
        "strength must lie between 0 and 1", host.run, "MoSs_Composite", draft=four, residual=residual,
        strength=strength,
    )


def test_fastvar_needs_four_undrawn_scales(host: FakeHost, draft: Callable) -> None:
    three = draft(refine_scales=3)
    refused(
        "FastVAR works on the last 4 scales, but this draft leaves only 3", host.run, "MoSs_FastVARRefine",
        draft=three,
    )
    for k in (4, 6):
        host.run("MoSs_FastVARRefine", draft=draft(refine_scales=k))


# --- the report ---------------------------------------------------------------------------------------------


def test_the_report_refuses_latents_that_do_not_say_what_they_took(host: FakeHost, latent: dict) -> None:
    bare = {"samples": latent["samples"]}
    refused("the latent input does not say what it took", host.run, "MoSs_Report", latent=bare)
    refused(
        "the reference input does not say what it took", host.run, "MoSs_Report", latent=latent,
        reference=bare,
    )


def test_the_report_compares_two_pictures_of_one_size(host: FakeHost, latent: dict) -> None:
    picture = torch.rand(1, 32, 32, 3)
    for name in ("image", "reference_image"):
        refused(
            "wire both image and reference_image, or neither", host.run, "MoSs_Report", latent=latent,
            **{name: picture},
        )
    other = torch.rand(1, 32, 48, 3)
    refused(
        "cannot be compared", host.run, "MoSs_Report", latent=latent, image=picture, reference_image=other
    )
    same = host.run("MoSs_Report", latent=latent, image=picture, reference_image=picture).result[0]
    assert "inf dB" in same and "1.0000" in same


# --- models -------------------------------------------------------------------------------------------------


@pytest.fixture
def menus(host: FakeHost) -> Callable[[str], list[str]]:
    """What a menu of MoSs Load Infinity offers now."""
    schema = host.nodes["MoSs_LoadInfinity"].define_schema
    return lambda name: next(socket.settings["options"] for socket in schema().inputs if socket.id == name)


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_the_menus_offer_what_lies_in_the_models_folders(host: FakeHost, menus: Callable) -> None:
    names = (
        "infinity/infinity_2b_reg.pth", "infinity/8b/part.safetensors", "vae/infinity_vae_d32reg.pth",
        "vae/ae.safetensors", "text_encoders/flan-t5-xl/config.json",
        "text_encoders/flan-t5-xl/model.safetensors", "text_encoders/t5.safetensors",
        "text_encoders/clip/l.safetensors", "infinity/notes.txt",
    )
    files = [_touch(host.models / name) for name in names]
    assert menus("model") == ["nano (embedded)", "infinity_2b_reg.pth", "8b/part.safetensors", TINY_FILE]
    assert menus("vae") == ["automatic", "tiny/vae.safetensors", "infinity_vae_d32reg.pth"]
    assert menus("text_encoder") == ["automatic", "tiny/text", "flan-t5-xl"]
    for file in files:
        file.unlink()
    assert menus("model") == ["nano (embedded)", TINY_FILE]


def test_the_embedded_model_takes_no_foreign_parts(host: FakeHost) -> None:
    for part in ({"vae": "tiny/vae.safetensors"}, {"text_encoder": "tiny/text"}):
        refused("the embedded nano model brings its own VAE", host.run, "MoSs_LoadInfinity", **part)


def test_a_file_that_vanished_is_named(host: FakeHost) -> None:
    for part in (
        {"model": "gone.pth"},
        {"model": TINY_FILE, "vae": "gone.pth"},
        {"model": TINY_FILE, "text_encoder": "gone"},
    ):
        refused("is no longer in the folder", host.run, "MoSs_LoadInfinity", **part)


def test_a_part_that_is_nowhere_is_named(host: FakeHost) -> None:
    lonely = _touch(host.models / "infinity" / "lonely" / "transformer.safetensors")
    lonely.write_bytes((host.models / "infinity" / TINY_FILE).read_bytes())
    run = partial(host.run, "MoSs_LoadInfinity", model="lonely/transformer.safetensors")
    refused("its text encoder (the folder flan-t5-xl, into models/text_encoders) was not found", run)
    lonely.write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="transformer.safetensors"):
        run()
    lonely.unlink()


def test_a_replaced_file_is_loaded_again(host: FakeHost) -> None:
    node, choice = host.nodes["MoSs_LoadInfinity"], (TINY_FILE, "automatic", "automatic", "auto")
    before = node.fingerprint_inputs(*choice)
    assert node.fingerprint_inputs(*choice) == before
    os.utime(host.models / "infinity" / "tiny" / "vae.safetensors", (1, 1))
    assert node.fingerprint_inputs(*choice) != before
    assert node.fingerprint_inputs("gone.pth", *choice[1:]) == "missing"


def test_precision_is_the_artists_choice(host: FakeHost, parts: tuple) -> None:
    assert parts[0].backbone.transformer.dtype == torch.float32  # auto, on a CPU
    half = host.run("MoSs_LoadInfinity", model=TINY_FILE, precision="bf16").result
    assert half[0].backbone.transformer.dtype == half[2].vae_dtype == torch.bfloat16
