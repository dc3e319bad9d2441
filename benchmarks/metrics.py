"""What pictures are judged by: one value a picture, higher is better; mostly likeness to dense's picture.

Images are (B, H, W, 3) in [0, 1].  Computed in float64 on the CPU, so that neither device nor batch changes a
number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comfy_moss.images import psnr, ssim, to_bytes
from comfy_moss.pipeline.cost import Cost

from .detector import detect, interior, judge, shows_texture
from .suite import Case

ALIKE = 60.0  # dB, told of pictures that are alike or almost
_FAINT = 1e-4  # texture energy that nobody sees: a hundredth of the range
# of the shorter side: about a period of the shapes world's textures, whose mean is the flat colour
_PERIOD = 25 / 256


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    Attributes:
        images: (B, H, W, 3) in [0, 1]; None where only codes are looked at.
        totals: (B, c, h, w) sums of codes, as far as they were kept; the last one is the picture's.
        cost: what the batch took; None where no method drew it.
    """

    images: Tensor | None
    totals: tuple[Tensor, ...] = ()
    cost: Cost | None = None


def texture_energy(images: Tensor, inside: Tensor) -> Tensor:
    """How strong a texture is where objects are, (B,) float64, >= 0; 0 for flat objects and where there are
    none.

    It is the mean squared distance, over places and channels, of a pixel from the mean of the object's pixels
    around it.  Blur lowers it.

    Args:
        inside: bool (B, H, W), the places that belong to objects; none but these are looked at.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if images.dim() != 4 or inside.shape != images.shape[:3]:
        sizes = tuple(inside.shape), tuple(images.shape)
        raise ValueError("the objects' places {} do not belong to pictures of shape {}".format(*sizes))
    return torch.stack(
        [_texture_energy(x.cpu().double(), m.cpu()) for x, m in zip(images, inside, strict=True)]
    )


def _texture_energy(image: Tensor, inside: Tensor) -> Tensor:
    """Of one picture (H, W, 3)."""
    reach = round(min(inside.shape) * _PERIOD / 2)

    def window(values: Tensor) -> Tensor:
        """Sums over what is within reach, of whatever width in the same time."""
        for axis, beside in ((-1, (reach + 1, reach)), (-2, (0, 0, reach + 1, reach))):
            sums, length = F.pad(values, beside).cumsum(axis), values.shape[axis]
            values = sums.narrow(axis, 2 * reach + 1, length) - sums.narrow(axis, 0, length)
        return values

    places = inside.double()
    around = window((image * places[..., None]).movedim(-1, 0)) / window(places[None]).clamp_min(1e-9)
    deviation = (image - around.movedim(0, -1)).square().mean(-1)
    return (deviation * places).sum() / places.sum().clamp_min(1)


# --- metrics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """What is judged, beside the dense pictures of the same drafts; `cases` is empty for prompts outside the
    shapes world."""

    drawn: Drawn
    dense: Drawn
    cases: Sequence[Case] = ()


def _latent(pair: Pair) -> Tensor:
    """Signal-to-noise ratio of the codes against dense's, in dB."""
    dense, ours = pair.dense.totals[-1], pair.drawn.totals[-1]
    signal, noise = (x.double().square().flatten(1).mean(1) for x in (dense, ours - dense))
    return (10 * (signal / noise).log10()).clamp_max(ALIKE)


def _psnr(pair: Pair) -> Tensor:
    return psnr(pair.drawn.images, pair.dense.images).clamp_max(ALIKE)


def _ssim(pair: Pair) -> Tensor:
    return ssim(pair.drawn.images, pair.dense.images)


def _texture(pair: Pair) -> Tensor:
    """How near the texture's energy is to dense's, too little or too much: the smaller over the larger, 1 =
    equal."""
    inside = torch.ones(pair.dense.images.shape[:3], dtype=torch.bool)
    if pair.cases:
        height, width = inside.shape[1:]
        inside = torch.from_numpy(np.stack([interior(detect(i), height, width) for i in _bytes(pair.dense)]))
    ours, dense = (texture_energy(drawn.images, inside) + _FAINT for drawn in (pair.drawn, pair.dense))
    return torch.minimum(ours, dense) / torch.maximum(ours, dense)


def _overall(pair: Pair) -> Tensor:
    """1 where the picture shows what its prompt asks for, else 0; over balanced tasks, GenEval's overall
    score."""
    found = [
        (case, detect(i), min(i.shape[:2])) for case, i in zip(pair.cases, _bytes(pair.drawn), strict=True)
    ]
    return torch.tensor([float(judge(case.task, case.scene, seen, side)) for case, seen, side in found])


def _combined(pair: Pair) -> Tensor:
    """The mean of overall, texture and SSIM."""
    return (_overall(pair) + _texture(pair) + _ssim(pair)) / 3


def _faithful(pair: Pair) -> Tensor:
    """1 where the picture shows what its prompt asks for, with its texture where it names one; half without
    that.

    Its mean is that of the two columns of the tables, score and with textures.
    """
    found = []
    for case, picture in zip(pair.cases, _bytes(pair.drawn), strict=True):
        seen = detect(picture)
        hit = judge(case.task, case.scene, seen, min(picture.shape[:2]))
        found.append(0.5 * hit * (2 - (shows_texture(case.scene, seen, picture) is False)))
    return torch.tensor(found)


def _bytes(drawn: Drawn) -> list[np.ndarray]:
    return list(to_bytes(drawn.images).numpy())


@dataclass(frozen=True)
class Quality:
    """A metric.

    Attributes:
        values: one value a picture, (B,).
        tolerance: how much of it may be lost unless the user says otherwise.
        looks: whether it looks at decoded pictures.
        needs_cases: whether only prompts of the shapes world can be judged.
        compares: whether it looks at dense's pictures.
    """

    values: Callable[[Pair], Tensor]
    tolerance: float
    looks: bool = True
    needs_cases: bool = False
    compares: bool = True


METRICS = {
    "latent": Quality(_latent, 0.5, looks=False),
    "psnr": Quality(_psnr, 1.0),
    "ssim": Quality(_ssim, 0.01),
    "texture": Quality(_texture, 0.03),
    "overall": Quality(_overall, 0.02, needs_cases=True, compares=False),
    "combined": Quality(_combined, 0.01, needs_cases=True),
    "faithful": Quality(_faithful, 0.02, needs_cases=True, compares=False),
}
