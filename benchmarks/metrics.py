"""How much texture a picture holds.

Images are (B, H, W, 3) in [0, 1].  Computed in float64 on the CPU, a picture at a time, so that neither device nor batch
changes the number.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PERIOD = 25 / 256  # of the shorter side: about a period of the shapes world's textures, whose mean is the flat colour


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
