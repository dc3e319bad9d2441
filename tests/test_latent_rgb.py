"""The linear map from codes to colours: what it finds, and what it makes of codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comfy_moss.model.vae import LatentRGB, fit_latent_rgb

STRIDE = 8


def _codec(channels: int) -> tuple[Tensor, Tensor]:
    """A matrix (c, 3) and an offset (c,) that make codes of mean colours."""
    chance = torch.Generator().manual_seed(1)
    return torch.randn(channels, 3, generator=chance), torch.randn(channels, generator=chance)


def _encode(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return torch.einsum("dc,bchw->bdhw", matrix, F.avg_pool2d(images, STRIDE)) + offset[:, None, None]


@pytest.mark.parametrize("channels", [3, 16])
def test_a_codec_that_is_linear_is_found_out(channels: int) -> None:
    codec = _codec(channels)
    rgb = fit_latent_rgb(lambda images: _encode(images, *codec), STRIDE)
    picture = F.interpolate(torch.tensor([-1.0, -0.5, 0, 1]).expand(2, 3, 4), size=32)[:, :, None].expand(
        -1, -1, 32, -1
    )
    shown = rgb(_encode(picture, *codec))
    expected = (F.avg_pool2d(picture, STRIDE).movedim(1, -1) + 1) / 2
    assert shown.shape == (2, 4, 4, 3) and shown.dtype == torch.float32
    assert torch.allclose(shown, expected, atol=0.02)


def test_the_fit_is_the_same_every_time() -> None:
    one, other = (fit_latent_rgb(lambda images: _encode(images, *_codec(4)), STRIDE) for _ in range(2))
    assert torch.equal(one.factors, other.factors) and torch.equal(one.bias, other.bias)


def test_colours_stay_in_range_and_a_codec_that_says_nothing_gives_grey() -> None:
    wild = LatentRGB(torch.full((4, 3), 100.0), torch.zeros(3))(torch.randn(1, 4, 2, 2))
    assert wild.min() >= 0 and wild.max() <= 1
    mute = fit_latent_rgb(lambda images: images.new_zeros(len(images), 4, 4, 4), STRIDE)
    assert torch.allclose(mute(torch.zeros(1, 4, 4, 4)), torch.tensor(0.5), atol=0.2)
