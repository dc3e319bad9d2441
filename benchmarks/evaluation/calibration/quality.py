"""What bounds are judged by: one value a picture, higher is better, mostly likeness to the draft's dense picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from comfy_moss.images import psnr, ssim, to_bytes

from ...detector import detect, interior, judge
from ...metrics import texture_energy
from ...suite import Case

ALIKE = 60.0  # dB, told of pictures that are alike or almost
_FAINT = 1e-4  # texture energy that nobody sees: a hundredth of the range


@dataclass(frozen=True)
class Drawn:
    """A batch of pictures.

    Attributes:
        total: (B, c, H, W) sum of codes.
        images: (B, h, w, 3) in [0, 1]; None where the metric looks at codes alone.
    """

    total: Tensor
    images: Tensor | None = None


@dataclass(frozen=True)
class Pair:
    """What is judged, beside the dense pictures of the same drafts; `cases` is empty for prompts outside the shapes world."""

    drawn: Drawn
    dense: Drawn
    cases: Sequence[Case] = ()


def _latent(pair: Pair) -> Tensor:
    """Signal-to-noise ratio of the codes against dense's, in dB."""
    signal, noise = (x.double().square().flatten(1).mean(1) for x in (pair.dense.total, pair.drawn.total - pair.dense.total))
    return (10 * (signal / noise).log10()).clamp_max(ALIKE)


def _psnr(pair: Pair) -> Tensor:
    return psnr(pair.drawn.images, pair.dense.images).clamp_max(ALIKE)


def _ssim(pair: Pair) -> Tensor:
    return ssim(pair.drawn.images, pair.dense.images)


def _texture(pair: Pair) -> Tensor:
    """How near the texture's energy is to dense's, too little or too much: the smaller over the larger, 1 = equal."""
    inside = torch.ones(pair.dense.images.shape[:3], dtype=torch.bool)
    if pair.cases:
        height, width = inside.shape[1:]
        inside = torch.from_numpy(np.stack([interior(detect(i), height, width) for i in _bytes(pair.dense)]))
    ours, dense = (texture_energy(drawn.images, inside) + _FAINT for drawn in (pair.drawn, pair.dense))
    return torch.minimum(ours, dense) / torch.maximum(ours, dense)


def _overall(pair: Pair) -> Tensor:
    """1 where the picture shows what its prompt asks for, else 0; the mean over balanced tasks is GenEval's overall score."""
    images = zip(pair.cases, _bytes(pair.drawn), strict=True)
    return torch.tensor([float(judge(case.task, case.scene, detect(image), min(image.shape[:2]))) for case, image in images])


def _combined(pair: Pair) -> Tensor:
    """The mean of overall, texture and SSIM."""
    return (_overall(pair) + _texture(pair) + _ssim(pair)) / 3


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
    """

    values: Callable[[Pair], Tensor]
    tolerance: float
    looks: bool = True
    needs_cases: bool = False


METRICS = {
    "latent": Quality(_latent, 0.5, looks=False),
    "psnr": Quality(_psnr, 1.0),
    "ssim": Quality(_ssim, 0.01),
    "texture": Quality(_texture, 0.03),
    "overall": Quality(_overall, 0.02, needs_cases=True),
    "combined": Quality(_combined, 0.01, needs_cases=True),
}
