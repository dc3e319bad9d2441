"""What the pipeline asks of a next-scale-prediction model.  A new model is one class with these members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .cache import KVCache
from .guidance import Guidance
from .layers import Branch, Condition, run_whole
from .rope import Positions
from .sampling import Sampling, bit_noise
from .schedule import Grid, Schedule

Noise = Callable[[Sequence[int], Positions, int], Tensor]  # see sampling.bit_noise


@dataclass(frozen=True)
class Step:
    """Which tokens are drawn, of what picture: everything about a forward pass but the tokens' values and the cache."""

    positions: Positions
    schedule: Schedule
    condition: Condition
    guidance: Guidance


@dataclass(frozen=True)
class TokenWork:
    """Multiply-adds that a token of one row takes in all blocks together.

    Attention over the text is left out, and so is what lies around the blocks: embedding, head, text conditioning.

    Attributes:
        linear: the blocks' matrices: self-attention's qkv and out, cross-attention's query and out, feed-forward.
        attention: for each token attended to in self-attention, itself included: its score and its value.
    """

    linear: float
    attention: float


class Backbone(Protocol):
    """Shapes: B pictures, R rows (2B when guided), N tokens, d bits a token, c channels of the code map."""

    device: torch.device
    channels: int  # c
    stride: int  # pixels per cell of the code map
    model_id: str  # short hash of the weights
    depth: int  # transformer blocks
    work: TokenWork  # what a token costs

    def map_grid(self, grid: Grid) -> Grid:
        """Grid of the code map that belongs to a token grid."""

    def condition(self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> Condition:
        """Prepare text features (L_i, Ct) for every layer."""

    def new_cache(self, condition: Condition, capacity: int | Sequence[int]) -> KVCache:
        """An empty cache for that many tokens a layer."""

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        """Input tokens (B, h*w, d) of a scale: the sum of codes (B, c, H, W) resampled to its grid."""

    def forward(
        self,
        tokens: Tensor | None,
        step: Step,
        cache: KVCache | None,
        store: bool,
        visible: Tensor | None = None,
        branch: Branch = run_whole,
    ) -> Tensor:
        """Hidden states (R, N, C) of the tokens (B, N, d); tokens None = the start token.

        Args:
            cache: keys and values of earlier tokens.
            store: append these tokens' keys and values to it.
            visible: (1 or R, N, N) bool, which new token sees which, or (N,) int32, a group each that sees only itself; None =
                all see all.
            branch: how residual branches are run.
        """

    def sample(self, hidden: Tensor, step: Step, sampling: Sampling, seeds: Sequence[int], noise: Noise = bit_noise) -> Tensor:
        """Bits (B, N, d) uint8 drawn from hidden states."""

    def codes(self, bits: Tensor) -> Tensor:
        """Token codes (B, N, d) of bits (B, N, d); a token of zeros adds nothing to the map."""

    def code_map(self, codes: Tensor, grid: Grid, full: Grid) -> Tensor:
        """Token codes (B, h*w, d) of one scale as a map (B, c, H, W) at full size."""

    def decode(self, total: Tensor) -> Tensor:
        """Sum of codes (B, c, H, W) -> image (B, 3, H * stride, W * stride) in [-1, 1]."""
