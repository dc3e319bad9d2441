"""PSNR, SSIM and the energy of textures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from comfy_moss.benchmarks.metrics import texture_energy
from comfy_moss.images import psnr, ssim


def _pictures(count: int = 1, height: int = 17, width: int = 14, seed: int = 0) -> torch.Tensor:
    """Soft shapes, as pictures are: noise would have no structure to lose."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return smooth.movedim(1, -1).contiguous()


def _noisy(image: torch.Tensor, amount: float, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return (image + amount * noise).clamp(0, 1)


def _ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, window by window; images (H, W, 3) in float64."""
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2, values = 0.01**2, 0.03**2, []
    for channel in range(3):
        for row in range(a.shape[0] - 10):
            for column in range(a.shape[1] - 10):
                x, y = (image[row : row + 11, column : column + 11, channel] for image in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("amount", [0.02, 0.3])
def test_ssim_is_what_its_definition_gives_window_by_window(amount: float) -> None:
    a, b = _pictures(2), _noisy(_pictures(2), amount)
    expected = [_ssim_by_hand(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-10)
    assert 0.05 < min(expected) and max(expected) < 0.995


def test_equal_pictures_are_fully_alike() -> None:
    image = _pictures(2)
    assert ssim(image, image.clone()).tolist() == [1, 1]
    assert psnr(image, image.clone()).tolist() == [math.inf, math.inf]


def test_psnr_is_in_decibels_of_the_mean_squared_error() -> None:
    black = torch.zeros(1, 4, 5, 3)
    speck = black.clone()
    speck[0, 1, 2, 0] = 1
    assert psnr(black, black + 0.1).tolist() == pytest.approx([20], abs=1e-5)
    assert psnr(black, black + 1).tolist() == [0]
    assert psnr(black, speck).tolist() == pytest.approx([10 * math.log10(60)])


def test_neither_depends_on_which_picture_comes_first() -> None:
    a, b = _pictures(), _noisy(_pictures(), 0.1)
    assert torch.equal(ssim(a, b), ssim(b, a)) and torch.equal(psnr(a, b), psnr(b, a))


def test_both_fall_with_noise() -> None:
    image = _pictures()
    for measure in (psnr, ssim):
        values = [measure(image, _noisy(image, amount)).item() for amount in (0.01, 0.05, 0.2, 0.5)]
        assert values == sorted(set(values), reverse=True)


def test_a_negative_loses_its_structure_and_a_lighter_picture_keeps_it() -> None:
    image = 0.2 + 0.5 * _pictures()
    assert ssim(image, 0.9 - image).item() < 0 < 0.9 < ssim(image, image + 0.05).item()


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_one_picture_is_compared_with_each_of_many(measure) -> None:
    one, many = _pictures(), _noisy(_pictures().expand(3, -1, -1, -1), 0.1)
    single = torch.cat([measure(one, image[None]) for image in many])
    assert torch.equal(measure(one, many), single) and torch.equal(measure(many, one), single)
    assert len(single.unique()) == 3


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    "shape", [(1, 17, 15, 3), (1, 14, 17, 3), (2, 17, 14, 3), (1, 17, 14, 4), (17, 14, 3)]
)
def test_pictures_that_do_not_fit_are_refused(measure, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        measure(_pictures(3), torch.zeros(shape))


def test_pictures_smaller_than_the_window_are_refused_by_ssim_only() -> None:
    for height, width in ((10, 30), (30, 10)):
        small = torch.zeros(1, height, width, 3)
        with pytest.raises(
            ValueError, match=f"at least 11 x 11 pixels to be compared, got {width} x {height}"
        ):
            ssim(small, small)
        assert psnr(small, small).item() == math.inf
    assert ssim(torch.zeros(1, 11, 11, 3), torch.zeros(1, 11, 11, 3)).item() == 1


# --- texture ------------------------------------------------------------------------------------------------


def _striped(contrast: float, side: int = 128, period: int = 12) -> torch.Tensor:
    """Grey stripes of `contrast` around a slow slope, (1, side, side, 3)."""
    x = torch.arange(side)
    stripes = 0.5 + 0.1 * x / side + contrast * (x // (period // 2) % 2 - 0.5)
    return stripes[None, None, :, None].expand(1, side, side, 3)


INSIDE = torch.zeros(1, 128, 128, dtype=torch.bool)
INSIDE[:, 30:100, 30:100] = True


def test_a_texture_has_the_energy_of_its_contrast_and_a_slope_has_none() -> None:
    assert texture_energy(_striped(0.2), INSIDE).item() == pytest.approx(0.1**2, rel=0.1)
    assert texture_energy(_striped(0.4), INSIDE).item() == pytest.approx(0.2**2, rel=0.1)
    assert texture_energy(_striped(0.0), INSIDE).item() < 1e-6


def test_blur_takes_energy_away_and_noise_adds_some() -> None:
    sharp = _striped(0.2)
    soft = torch.nn.functional.avg_pool2d(sharp.movedim(-1, 1), 7, 1, 3).movedim(1, -1)
    noisy = sharp + 0.05 * torch.randn(sharp.shape, generator=torch.Generator().manual_seed(0))
    soft, sharp, noisy = (texture_energy(image, INSIDE).item() for image in (soft, sharp, noisy))
    assert soft < 0.6 * sharp < sharp < noisy


def test_only_what_is_inside_objects_counts() -> None:
    outside = torch.where(INSIDE[..., None], _striped(0.2), torch.rand(1, 128, 128, 3))
    assert texture_energy(outside, INSIDE).item() == pytest.approx(
        texture_energy(_striped(0.2), INSIDE).item(), rel=1e-9
    )
    assert texture_energy(_striped(0.2), torch.zeros_like(INSIDE)).item() == 0


def test_places_that_do_not_fit_the_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong"):
        texture_energy(_striped(0.2), INSIDE[:, 1:])
