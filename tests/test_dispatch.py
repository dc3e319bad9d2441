"""Frequency, dispatch and composite."""

from __future__ import annotations

import pytest
import torch

from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass, band, bounds_of_shares, dispatch_tokens
from comfy_moss.pipeline.frequency import frequency_map

SCHEDULE = make_schedule(1.25, "0.25M")


def noise(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, *SCHEDULE.grids[-1], generator=torch.Generator().manual_seed(0))


def test_frequency_is_the_local_variance():
    total = torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(1)) + 100
    patch = total[1, :, 2:5, 3:6].flatten(1)
    corner = total[1, :, :2, :2].flatten(1)

    frequency = frequency_map(total)

    assert frequency[1, 3, 4].item() == pytest.approx(patch.var(1, correction=0).mean().item(), rel=1e-5)
    assert frequency[1, 0, 0].item() == pytest.approx(corner.var(1, correction=0).mean().item(), rel=1e-5)
    assert frequency_map(torch.full((1, 2, 5, 5), 3.0)).abs().max() == 0


@pytest.mark.parametrize("window", [1, 2, 4])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ValueError, match=f"got {window}"):
        frequency_map(torch.zeros(1, 1, 4, 4), window)


def test_each_scale_takes_its_band_of_ranks():
    dispatch = dispatch_tokens(noise(), SCHEDULE, RefinePass.of_last((80, 40, 10)))
    finest = noise().flatten()

    chosen = finest[dispatch.cells[-1][0]]
    n = finest.numel()

    assert dispatch.scales == (7, 8, 9)
    assert chosen.min() > finest.sort(descending=True).values[len(chosen)]
    assert len(chosen) == len(band(n, 10, 0)) == round(0.1 * n)


def test_cost_does_not_depend_on_the_picture():
    bounds = (90.0, 50.0, 15.0)
    for frequency in (noise(2), torch.zeros(2, *SCHEDULE.grids[-1])):
        dispatch = dispatch_tokens(frequency, SCHEDULE, RefinePass.of_last(bounds))
        assert dispatch.counts == RefinePass.of_last(bounds).counts(SCHEDULE)


def test_ties_go_in_raster_order():
    dispatch = dispatch_tokens(torch.zeros(1, *SCHEDULE.grids[-1]), SCHEDULE, RefinePass.of_last((50, 25)))
    n = SCHEDULE.tokens(9, 10)
    assert dispatch.cells[-1][0].tolist() == list(range(len(band(n, 25, 0))))


def test_painted_places_come_first_and_the_budget_stays():
    painted = torch.zeros(1, 64, 64)
    painted[:, :16, :16] = 1
    plain = dispatch_tokens(noise(), SCHEDULE, RefinePass.of_last((50, 25)))

    biased = dispatch_tokens(noise(), SCHEDULE, RefinePass.of_last((50, 25)), painted)

    h, w = SCHEDULE.grids[-1]
    inside = {r * w + c for r in range(h // 4) for c in range(w // 4)}
    assert biased.counts == plain.counts
    assert inside <= set(biased.cells[-1][0].tolist())
    assert not inside <= set(plain.cells[-1][0].tolist())


def test_bands_never_overlap_or_run_out():
    for n in (1, 7, 576, 1024, 2304, 4096):
        for upper, lower in ((100, 0), (100, 99.9), (50, 15), (99.5, 0.5)):
            ranks = band(n, upper, lower)
            assert 0 <= ranks.start and ranks.stop <= n


@pytest.mark.parametrize(
    "bounds, words", [((25, 50), "fall"), ((120,), "between 0 and 100"), ((-1,), "between"), ((), "between")]
)
def test_impossible_bounds_are_named(bounds, words):
    with pytest.raises(ValueError, match=words):
        RefinePass.of_last(bounds)


def test_as_many_bounds_as_scales_are_refused():
    with pytest.raises(ValueError, match="10 refine scales leave no scale"):
        dispatch_tokens(noise(), SCHEDULE, RefinePass.of_last((50.0,) * 10))


def test_shares_are_bounds_in_other_words():
    assert bounds_of_shares([25, 25]) == (50, 25)
    for impossible in ([60, 60], [-1, 50], [float("nan"), 50], []):
        with pytest.raises(ValueError, match="at most 100"):
            bounds_of_shares(impossible)
