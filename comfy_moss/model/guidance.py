"""Classifier-free guidance: how strong, at which scales, and where in the network the two halves are mixed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .rope import Positions
from .sampling import per_scale


@dataclass(frozen=True)
class Guidance:
    """Guidance strength.

    Attributes:
        cfg: strength, one number or one a scale; 1 = no guidance.
        layers: 0 = mix the logits (the official way); -k = mix the rows after the k-th block from the end; 1 = nothing.
    """

    cfg: float | tuple[float, ...] = 3.0
    layers: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        values = self.cfg if isinstance(self.cfg, tuple) else (self.cfg,)
        if not all(math.isfinite(v) and v >= 0 for v in values):
            raise ValueError(f"cfg (guidance) must be 0 or more, got {self.cfg}")

    def active(self, scales: int) -> bool:
        """Whether any scale needs the unconditional rows."""
        return any(c != 1 for c in per_scale(self.cfg, scales, "cfg"))

    def at(self, positions: Positions, scales: int) -> Tensor:
        """Strength of every token, (B or 1, N, 1) float32."""
        table = torch.tensor(per_scale(self.cfg, scales, "cfg"), device=positions.scale.device)
        return table[positions.scale][..., None]

    def mixes(self, depth: int, cfg: Tensor) -> dict[int, Tensor]:
        """Block index -> strength of every token, for the layers inside the network.

        Raises:
            ValueError: the network has too few blocks.
        """
        inside = [layer for layer in self.layers if layer not in (0, 1)]
        if not all(-depth < layer < 0 for layer in inside):
            raise ValueError(f"guidance layers must be 0 or between -{depth - 1} and -1 for this model, got {self.layers}")
        return {depth + layer: cfg for layer in inside}


def mix_rows(x: Tensor, cfg: Tensor) -> Tensor:
    """Both halves of x (2B, N, C) become cfg * positive + (1 - cfg) * negative, except tokens with cfg 1."""
    positive, negative = x.chunk(2)
    mixed = cfg * positive + (1 - cfg) * negative
    return torch.where(cfg.repeat(2 if cfg.shape[0] > 1 else 1, 1, 1) != 1, torch.cat([mixed, mixed]), x)
