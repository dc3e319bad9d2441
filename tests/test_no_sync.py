"""While a picture is drawn nobody waits for the device and nothing is copied to it: on a GPU the processor
then runs ahead of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from builders import TINY, tiny_backbone
from hart_builders import SCHEDULE as HART_SCHEDULE
from hart_builders import prompt, tiny_hart_backbone
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from comfy_moss.model.backbone import HART, Backbone
from comfy_moss.model.sampling import Finite, Guidance, Ramp, Sampling
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.draft import Draft, Recipe, Run, draw_draft
from comfy_moss.pipeline.plan import PassMaps, generate, parse_method
from comfy_moss.pipeline.refine import finish_dense

SCHEDULE = make_schedule(1.5, "0.06M")
METHODS = ["dense", "moss3", "moss2-sa", "moss2-unguided", "draft-4; -4@70 cfg 2; -1@45 unguided", "fastvar"]
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "allclose")


class Operations(TorchDispatchMode):
    """Operations whose result the processor has to wait for."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        self.seen[name] += name in WAITS
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Calls that copy to the device, or from it."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        made = name in ("tensor", "as_tensor", "asarray") and kwargs.get("device") is not None
        self.seen["copies to the device"] += made
        self.seen["copies from the device"] += name in ("cpu", "numpy")
        return func(*args, **kwargs)


def recipe(batch: int = 1) -> Recipe:
    text = tuple(torch.randn(5, TINY.text_width) for _ in range(batch))
    return Recipe(text, None, tuple(range(batch)), SCHEDULE)


def hart_recipe(batch: int = 1) -> Recipe:
    text = tuple(prompt(n) for n in range(batch))
    return Recipe(text, None, tuple(range(batch)), HART_SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0))


def drawing(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], Any]) -> Counter[str]:
    """What waits or copies between the prepared prompts and the end of a drawing."""
    seen: Counter[str] = Counter()
    begin, finished = Recipe.condition, Run.finished
    modes: list[Any] = []

    def prepared(self: Recipe, backbone: Backbone) -> Any:
        condition = begin(self, backbone)
        modes[:] = [Operations(seen), Calls(seen)]
        for mode in modes:
            mode.__enter__()
        return condition

    def ended(self: Run, drawn: Any) -> Any:
        for mode in reversed(modes):
            mode.__exit__(None, None, None)
        modes.clear()
        return finished(self, drawn)

    monkeypatch.setattr(Recipe, "condition", prepared)
    monkeypatch.setattr(Run, "finished", ended)
    draw()
    assert not modes
    return +seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 2])
def test_no_method_waits_or_copies(monkeypatch, method, batch) -> None:
    model = tiny_backbone()
    assert drawing(monkeypatch, lambda: generate(model, recipe(batch), parse_method(method))) == {}


@pytest.mark.parametrize("method", ["dense", "moss2", "fastvar"])
def test_hart_neither(monkeypatch, method) -> None:
    model, chosen = tiny_hart_backbone(), parse_method(method, published=HART)
    assert drawing(monkeypatch, lambda: generate(model, hart_recipe(2), chosen)) == {}


def test_the_spies_see_what_they_are_there_for(monkeypatch) -> None:
    sample = type(tiny_backbone()).sample

    def waiting(self: Any, hidden: Tensor, step: Any) -> Tensor:
        assert torch.tensor([1.0], device=hidden.device).any() and len(hidden.nonzero().cpu())
        return sample(self, hidden, step)

    monkeypatch.setattr(type(tiny_backbone()), "sample", waiting)
    seen = drawing(monkeypatch, lambda: draw_draft(tiny_backbone(), recipe(), 3))
    assert seen["copies to the device"] == seen["copies from the device"] == seen["nonzero"] == 3
    assert seen["is_nonzero"] + seen["_local_scalar_dense"] >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_is_drawn_on_a_device_that_cannot_be_read(monkeypatch, method) -> None:
    """torch's meta device refuses every look at a value."""
    model = tiny_backbone()
    model.transformer.to("meta"), model.vae.to("meta")
    monkeypatch.setattr(Run, "finished", lambda self, drawn: drawn)
    monkeypatch.setattr(PassMaps, "cpu", lambda self: self)
    picture = generate(model, recipe(2), parse_method(method))
    assert picture.image.is_meta and picture.image.shape[0] == 2


@pytest.mark.parametrize("method", ["dense", "moss2"])
def test_hart_too(monkeypatch, method) -> None:
    model = tiny_hart_backbone()
    model.transformer.to("meta"), model.vae.to("meta")
    monkeypatch.setattr(Run, "finished", lambda self, drawn: drawn)
    monkeypatch.setattr(PassMaps, "cpu", lambda self: self)
    assert generate(model, hart_recipe(2), parse_method(method, published=HART)).image.is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_torch_itself_refuses_to_wait(monkeypatch, method) -> None:
    model = tiny_backbone()
    model.transformer.cuda(), model.vae.cuda()
    condition, finished = Recipe.condition, Run.finished

    def prepared(self: Recipe, backbone: Backbone) -> Any:
        found = condition(self, backbone)
        torch.cuda.set_sync_debug_mode("error")
        return found

    def ended(self: Run, drawn: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        return finished(self, drawn)

    monkeypatch.setattr(Recipe, "condition", prepared)
    monkeypatch.setattr(Run, "finished", ended)
    try:
        image = generate(model, recipe(), parse_method(method)).image
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert image.is_cuda and image.isfinite().all()


# --- values that are no numbers -----------------------------------------------------------------------------


def broken(model: Any) -> Any:
    model.transformer.head.bias.data[0] = torch.nan
    return model


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_no_numbers_are_told_at_the_end(method) -> None:
    with pytest.raises(ValueError, match="returned values that are not numbers; its file is damaged"):
        generate(broken(tiny_backbone()), recipe(), parse_method(method))


def test_every_step_that_somebody_sees_tells_them() -> None:
    whole = tiny_backbone()
    draft, cache = draw_draft(whole, recipe(), 3)
    drafting = partial(draw_draft, broken(tiny_backbone()), recipe(), 3)
    for step in (drafting, partial(finish_dense, broken(whole), draft, cache)):
        with pytest.raises(ValueError, match="values that are not numbers"):
            step()


def test_finiteness_is_asked_once_and_forgotten() -> None:
    finite = Finite()
    finite.note(torch.ones(2)), finite.note(torch.tensor([1.0, torch.inf]))
    with pytest.raises(ValueError, match="not numbers"):
        finite.check()
    finite.check()


def test_drafts_and_residuals_that_are_on_the_cpu_stay_who_they_are() -> None:
    draft, _ = draw_draft(tiny_backbone(), recipe(), 3)
    assert draft.cpu() is draft and isinstance(draft, Draft)
    assert replace(draft, base=draft).cpu().base is draft
