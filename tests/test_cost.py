"""Costs: the predicted work is what the model really multiplies, and measured stages add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from builders import tiny_backbone
from torch.overrides import TorchFunctionMode

from comfy_moss.model.backbone import TokenWork
from comfy_moss.model.infinity import InfinityTransformer
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.pipeline.cost import Cost, dense_share, in_order_work, refine_work
from comfy_moss.pipeline.dispatch import DispatchConfig, dispatch_tokens
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import refine

SCHEDULE = make_schedule(1.5, "0.06M")
SMALL = Schedule(1.0, ((1, 1), (1, 2), (2, 2)), (2, 2))
WORK = TokenWork(100.0, 1.0)
TEXT = 9  # tokens of the prompt; no self-attention here sees as few


class Multiplications(TorchFunctionMode):
    """Counts multiply-adds of matrices and of self-attention while InfinityTransformer.forward runs."""

    total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            self.total += args[0].shape[:-1].numel() * args[1].numel()
        elif func is F.scaled_dot_product_attention and args[1].shape[2] != TEXT:
            self.total += 2 * args[0].numel() * args[1].shape[2]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Multiplications:
    """What the blocks multiply in this test."""
    mode, forward = Multiplications(), InfinityTransformer.forward

    def counting(*args):
        with mode:
            return forward(*args)

    monkeypatch.setattr(InfinityTransformer, "forward", counting)
    return mode


def _recipe(schedule: Schedule, **changes) -> Recipe:
    text = torch.randn(TEXT, 32, generator=torch.Generator().manual_seed(0))
    return replace(Recipe((text,), None, (0,), schedule), **changes)


@pytest.mark.parametrize(("guidance", "rows"), [(Guidance(), 2), (Guidance(1.0), 1)])
@pytest.mark.parametrize("scales", [1, 4, 7])
def test_drawing_in_order_multiplies_what_was_predicted(
    counted: Multiplications, scales: int, guidance: Guidance, rows: int
) -> None:
    backbone = tiny_backbone(depth=3, hidden=80)
    draw_draft(backbone, _recipe(SCHEDULE, guidance=guidance), scales)
    assert counted.total == rows * in_order_work(SCHEDULE, scales, backbone.work) > 0


def test_refining_multiplies_what_was_predicted(counted: Multiplications) -> None:
    backbone = tiny_backbone(depth=3, hidden=80)
    draft, cache = draw_draft(backbone, _recipe(SCHEDULE), 4)
    dispatch = dispatch_tokens(frequency_map(draft.total), SCHEDULE, DispatchConfig((80.0, 40.0, 10.0)))
    drawn, counted.total = counted.total, 0

    refine(backbone, draft, dispatch, cache=cache)

    refined = sum(dispatch.counts)
    assert counted.total == 2 * refine_work(SCHEDULE.tokens(0, 4), refined, backbone.work) > 0
    dense = 2 * in_order_work(SCHEDULE, len(SCHEDULE), backbone.work)
    assert dense_share(SCHEDULE, 4, refined, backbone.work) == pytest.approx((drawn + counted.total) / dense, rel=1e-12)


def test_every_scale_attends_to_all_before_it_and_to_itself() -> None:
    assert [in_order_work(SMALL, scales, WORK) for scales in range(4)] == [0, 101, 101 + 2 * 103, 101 + 2 * 103 + 4 * 107]


def test_refining_everything_that_was_left_of_one_scale_is_dense() -> None:
    assert dense_share(SMALL, 2, 4, WORK) == 1
    assert dense_share(SMALL, 2, 0, WORK) == pytest.approx((101 + 2 * 103) / (101 + 2 * 103 + 4 * 107))


def test_fewer_tokens_are_less_work() -> None:
    shares = [dense_share(SCHEDULE, 4, tokens, WORK) for tokens in (0, 50, 100, 400)]
    assert shares == sorted(set(shares))


def test_a_stage_is_added_without_changing_the_cost_it_was_added_to() -> None:
    draft = Cost("draft-2", (1, 4, 0, 0), 1000, {"draft": 2.0})
    refined = draft.plus({"refine": 0.5}, label="moss2", tokens_per_scale=(1, 4, 3, 2))
    assert refined == Cost("moss2", (1, 4, 3, 2), 1000, {"draft": 2.0, "refine": 0.5})
    assert draft == Cost("draft-2", (1, 4, 0, 0), 1000, {"draft": 2.0})
    assert (draft.total_seconds, refined.total_seconds) == (2.0, 2.5)


def test_stages_keep_the_order_they_ran_in_and_one_that_runs_twice_counts_twice() -> None:
    cost = Cost("dense", (1,), 0, {}).plus({"draft": 1.0, "decode": 4.0}).plus({"draft": 2.0})
    assert list(cost.seconds.items()) == [("draft", 3.0), ("decode", 4.0)]


def test_a_field_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="tokens"):
        Cost("dense", (1,), 0, {}).plus({"draft": 1.0}, tokens=(2,))


@pytest.mark.parametrize(
    ("label", "refined"), [("moss2", 5), ("moss3", 9), ("dense", 0), ("draft-2", 0), ("fastvar", 0)]
)
def test_only_moss_refines_and_only_its_last_scales(label: str, refined: int) -> None:
    assert Cost(label, (1, 4, 3, 2), 0, {}).refine_tokens == refined


def test_loading_rebuilding_and_previews_are_waited_for_but_are_no_part_of_the_method() -> None:
    cost = Cost("moss2", (1, 4, 3, 2), 1000, {"load": 8.0, "draft": 2.0, "preview": 0.25, "rebuild": 1.0, "refine": 0.5})
    assert (cost.total_seconds, cost.method_seconds) == (11.75, 2.5)
