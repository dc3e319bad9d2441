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
from comfy_moss.pipeline.cost import Cost, whole_scales
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.plan import Plan, parse_plan, run, share_of_dense
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


def macs(plan: Plan, schedule: Schedule, work: TokenWork) -> float:
    return sum(step.macs(work) for step in plan.forward_passes(schedule, guided=True))


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
    assert counted.total == sum(p.macs(backbone.work) for p in whole_scales(SCHEDULE, scales, rows)) > 0


def test_refining_multiplies_what_was_predicted(counted: Multiplications) -> None:
    backbone = tiny_backbone(depth=3, hidden=80)
    draft, cache = draw_draft(backbone, _recipe(SCHEDULE), 4)
    plan = Plan.moss((80.0, 40.0, 10.0))
    dispatch = dispatch_tokens(frequency_map(draft.total), SCHEDULE, plan.passes[0])
    drawn, counted.total = counted.total, 0

    refine(backbone, draft, dispatch, plan.passes[0], cache)

    assert counted.total == plan.forward_passes(SCHEDULE, guided=True)[-1].macs(backbone.work) > 0
    dense = macs(Plan(0), SCHEDULE, backbone.work)
    share = share_of_dense(plan, SCHEDULE, backbone.work, guided=True)
    assert share == pytest.approx((drawn + counted.total) / dense, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["draft-3; -3@70; -1@45 unguided", "draft 3; 3@50; 4@80 6@20", "draft-4 cfg 1; -2@30"]
)
@pytest.mark.parametrize("patchify", [False, True])
def test_a_plan_multiplies_what_was_predicted(counted: Multiplications, text: str, patchify: bool) -> None:
    backbone, plan = tiny_backbone(depth=3, hidden=80, patchify=patchify), parse_plan(text)
    run(backbone, _recipe(SCHEDULE), plan)
    assert counted.total == macs(plan, SCHEDULE, backbone.work) > 0


def test_every_scale_attends_to_all_before_it_and_to_itself() -> None:
    found = [sum(p.macs(WORK) for p in whole_scales(SMALL, scales, 1)) for scales in range(4)]
    assert found == [0, 101, 101 + 2 * 103, 101 + 2 * 103 + 4 * 107]


def test_refining_everything_that_was_left_of_one_scale_is_dense() -> None:
    whole, nothing = (Plan.moss((bound,)) for bound in (100.0, 0.0))
    assert share_of_dense(whole, SMALL, WORK, guided=True) == 1
    expected = (101 + 2 * 103) / (101 + 2 * 103 + 4 * 107)
    assert share_of_dense(nothing, SMALL, WORK, guided=True) == pytest.approx(expected)


def test_a_pass_without_guidance_is_half_the_work() -> None:
    on, off = (Plan(-3, (RefinePass((-1,), (45.0,), guidance=guided),)) for guided in (True, False))
    ours, half = (plan.forward_passes(SCHEDULE, guided=True)[-1].macs(WORK) for plan in (on, off))
    assert ours == 2 * half


@pytest.mark.parametrize(
    ("strength", "guided", "share"), [(1, True, 0.5), (1, False, 1), (1.5, False, 2), (3, True, 1)]
)
def test_a_plans_own_strength_decides_how_many_rows_it_draws(
    strength: float, guided: bool, share: float
) -> None:
    assert share_of_dense(Plan(0, guidance=strength), SCHEDULE, WORK, guided) == share


def test_fewer_tokens_are_less_work() -> None:
    plans = [Plan.moss((bound, bound, bound)) for bound in (0.0, 10.0, 30.0, 90.0)]
    shares = [share_of_dense(plan, SCHEDULE, WORK, guided=True) for plan in plans]
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


def test_loading_rebuilding_and_previews_are_waited_for_but_are_no_part_of_the_method() -> None:
    seconds = {"load": 8.0, "draft": 2.0, "preview": 0.25, "rebuild": 1.0, "refine": 0.5}
    cost = Cost("moss2", (1, 4, 3, 2), 1000, seconds)
    assert (cost.total_seconds, cost.method_seconds) == (11.75, 2.5)
