"""How alike two pictures are (PSNR and SSIM), and how much texture one holds.

Images are (B, H, W, 3) in [0, 1], as ComfyUI passes them; one picture is compared with many by giving it a batch of 1.
All are computed in float64 on the CPU, a picture at a time, so that neither device nor batch changes the number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW, _SIGMA = 11, 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # (K L)^2 with values up to L = 1
_PERIOD = 25 / 256  # of the shorter side: about a period of the shapes world's textures, whose mean is the flat colour


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,) float64; infinite for equal pictures.

    Raises:
        ValueError: the pictures differ in size, or in number and neither is 1.
    """
    return torch.stack([10 * (1 / (x - y).square().mean()).log10() for x, y in _pairs(a, b)])


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, (B,) float64: 1 for equal pictures, about 0 for unrelated ones; it can be negative.

    After Wang et al. 2004: Gaussian window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie
    inside the picture; the mean over places and over the colour channels.

    Raises:
        ValueError: as `psnr`, or the pictures are narrower or lower than 11 pixels.
    """
    return torch.stack([_ssim(x, y) for x, y in _pairs(a, b, _WINDOW)])


def texture_energy(images: Tensor, inside: Tensor) -> Tensor:
    """How strong a texture is where objects are, (B,) float64, >= 0: the mean squared distance, over places and channels, of a
    pixel from the mean of the object's pixels around it.  0 for flat objects and where there are none; blur lowers it.

    Args:
        inside: bool (B, H, W), the places that belong to objects; none but these are looked at.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if images.dim() != 4 or inside.shape != images.shape[:3]:
        raise ValueError(f"the objects' places {tuple(inside.shape)} do not belong to pictures of shape {tuple(images.shape)}")
    return torch.stack([_texture_energy(x.cpu().double(), m.cpu()) for x, m in zip(images, inside, strict=True)])


def _texture_energy(image: Tensor, inside: Tensor) -> Tensor:
    """Of one picture (H, W, 3)."""
    reach = round(min(inside.shape) * _PERIOD / 2)

    def window(values: Tensor) -> Tensor:
        rows = F.avg_pool2d(values, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        return F.avg_pool2d(rows, (1, 2 * reach + 1), stride=1, padding=(0, reach))

    places = inside.double()
    around = window((image * places[..., None]).movedim(-1, 0)) / window(places[None]).clamp_min(1e-9)
    deviation = (image - around.movedim(0, -1)).square().mean(-1)
    return (deviation * places).sum() / places.sum().clamp_min(1)


def _pairs(a: Tensor, b: Tensor, least: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (H, W, 3) in float64, two by two, of at least that many pixels a side."""
    if a.dim() != 4 or a.shape[1:] != b.shape[1:] or (len(a) != len(b) and 1 not in (len(a), len(b))):
        raise ValueError(
            f"pictures of shape {tuple(a.shape)} cannot be compared with pictures of shape {tuple(b.shape)} (number, height, "
            "width, channels); give both the same size, and as many of the one as of the other or a single one"
        )
    if min(a.shape[1:3]) < least:
        raise ValueError(f"pictures need at least {least} x {least} pixels to be compared, got {a.shape[2]} x {a.shape[1]}")
    for n in range(max(len(a), len(b))):
        yield tuple(images[n % len(images)].cpu().double() for images in (a, b))


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """Of two pictures (H, W, 3)."""
    mean_a, mean_b, aa, bb, ab = map(_blur, (a, b, a * a, b * b, a * b))
    cov, var_a, var_b = ab - mean_a * mean_b, aa - mean_a * mean_a, bb - mean_b * mean_b
    light = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    return (light * (2 * cov + _C2) / (var_a + var_b + _C2)).mean()


def _blur(image: Tensor) -> Tensor:
    """Gaussian mean of every window that lies inside the picture, (H, W, 3) -> (H - 10, W - 10, 3)."""
    weights = [math.exp(-((n - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for n in range(_WINDOW)]
    for axis in (0, 1):
        places = image.shape[axis] - _WINDOW + 1
        total = torch.zeros_like(image.narrow(axis, 0, places))
        for n, weight in enumerate(weights):
            total.add_(image.narrow(axis, n, places), alpha=weight / sum(weights))
        image = total
    return image
