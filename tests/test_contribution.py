"""What the drafter and the refiner each add to a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from comfy_moss.pipeline.frequency import contribution

FREQUENCY = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]])


def _codes(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 5, 4, 6, generator=torch.Generator().manual_seed(seed))


def _placed(lengths: torch.Tensor) -> torch.Tensor:
    """Codes (B, 2, H, W) of these lengths (B, H, W), along (3, 4)."""
    return torch.stack([0.6 * lengths, -0.8 * lengths], dim=1)


def test_a_contribution_is_the_length_of_what_was_added() -> None:
    draft = torch.zeros(1, 2, 2, 3)
    draft[0, :, 1, 2] = torch.tensor([3.0, -4.0])
    final = draft.clone()
    final[0, :, 0, 1] += torch.tensor([6.0, 8.0])

    parts = contribution(draft, final, FREQUENCY)

    assert parts.drafter.tolist() == [[[0, 0, 0], [0, 0, 5]]]
    assert parts.refiner.tolist() == [[[0, 10, 0], [0, 0, 0]]]


def test_the_correlations_are_pearsons_one_a_picture() -> None:
    draft, final, frequency = (
        _codes(0), _codes(1), torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2)),
    )

    parts = contribution(draft, final, frequency)

    for n in range(2):
        busy = frequency[n].flatten().double().numpy()
        for part, r in ((draft, parts.drafter_correlation), (final - draft, parts.correlation)):
            length = np.sqrt((part[n].double().numpy() ** 2).sum(0)).ravel()
            assert r[n] == pytest.approx(np.corrcoef(length, busy)[0, 1], abs=1e-6)
    assert len(parts.correlation) == len(parts.drafter_correlation) == 2
    assert parts.correlation[0] != pytest.approx(parts.correlation[1], abs=1e-3)


def test_a_refiner_that_follows_the_frequency_correlates_fully() -> None:
    draft = _placed(10 - FREQUENCY)
    parts = contribution(draft, draft + _placed(1 + 2 * FREQUENCY), FREQUENCY)
    assert parts.correlation == (pytest.approx(1, abs=1e-6),) and parts.correlation[0] <= 1
    assert parts.drafter_correlation == (pytest.approx(-1, abs=1e-6),) and parts.drafter_correlation[0] >= -1


def test_small_differences_on_large_codes_are_not_lost() -> None:
    """Squares of them in float32 would drown in rounding."""
    draft = torch.full((1, 1, 2, 3), 4096.0)
    final = draft + 2.0**-11 * FREQUENCY[:, None]
    parts = contribution(draft, final, 1e6 + FREQUENCY)
    assert parts.correlation == (pytest.approx(1, abs=1e-9),)
    assert torch.equal(parts.refiner, 2.0**-11 * FREQUENCY)


def test_where_nothing_varies_there_is_no_correlation() -> None:
    draft = _codes(3, batch=1)
    untouched = contribution(draft, draft, torch.rand(1, 4, 6))
    flat = contribution(draft, _codes(4, batch=1), torch.full((1, 4, 6), 0.1))
    assert untouched.correlation == flat.correlation == flat.drafter_correlation == (0.0,)
    assert untouched.refiner.abs().max() == 0 and untouched.drafter_correlation != (0.0,)


def test_rounding_is_not_variation() -> None:
    steady = torch.tensor([0.1, 0.7, 0.3])[None, :, None, None].expand(1, 3, 37, 41).contiguous()
    parts = contribution(
        steady, 2 * steady, torch.rand(1, 37, 41, generator=torch.Generator().manual_seed(0))
    )
    assert parts.correlation == parts.drafter_correlation == (0.0,)


def test_one_untouched_picture_leaves_the_others_as_they_are() -> None:
    draft, final, frequency = (
        _codes(0), _codes(1), torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2)),
    )
    final[0] = draft[0]
    parts = contribution(draft, final, frequency)
    alone = contribution(draft[1:], final[1:], frequency[1:])
    assert parts.correlation == (0.0, *alone.correlation)
    assert torch.equal(parts.refiner[1:], alone.refiner) and parts.refiner.dtype == torch.float32


@pytest.mark.parametrize(
    ("final", "frequency"), [((2, 5, 4, 3), (2, 4, 6)), ((1, 5, 4, 6), (2, 4, 6)), ((2, 5, 4, 6), (2, 6, 4))]
)
def test_maps_of_different_pictures_are_refused(final: tuple[int, ...], frequency: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same draft"):
        contribution(_codes(0), torch.zeros(final), torch.zeros(frequency))


@pytest.mark.gpu
def test_maps_may_lie_on_different_devices() -> None:
    draft, final, frequency = _codes(0), _codes(1), torch.rand(2, 4, 6)
    assert (
        contribution(draft, final.cuda(), frequency.cuda()).correlation
        == contribution(draft, final, frequency).correlation
    )
