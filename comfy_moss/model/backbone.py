"""What the pipeline asks of a next-scale-prediction model.  A new model is one class with these members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .cache import KVCache
from .guidance import Guidance
from .layers import Branch, run_whole
from .published import Published
from .rope import Positions
from .sampling import Sampling, bit_noise
from .schedule import Grid, Schedule

Noise = Callable[[Sequence[int], Positions, int], Tensor]  # see sampling.bit_noise


class Condition(Protocol):
    """What the prompts say, in a form of the model's own; R rows, the prompts' before the unconditional ones.

    Attributes:
        batch: B, number of pictures; R = 2B when guided, else B.
    """

    batch: int

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""

    def unguided(self) -> Condition:
        """The prompts' rows alone."""


@dataclass(frozen=True)
class Step:
    """Which tokens are drawn, of what picture: everything about a forward pass but the tokens' values and the cache.

    Attributes:
        seeds: B noise seeds, for models whose passes draw lots.
    """

    positions: Positions
    schedule: Schedule
    condition: Condition
    guidance: Guidance
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenWork:
    """Multiply-adds that a token of one row takes in all blocks together.

    Cross-attention to the text is left out, and so is what lies around the blocks: embedding, head, text conditioning.

    Attributes:
        linear: the blocks' matrices: self-attention's qkv and out, cross-attention's query and out, feed-forward.
        attention: for each token attended to in self-attention, itself included: its score and its value.
        prefix: tokens of the prompt that run before the picture's first one and stay in the cache.
    """

    linear: float
    attention: float
    prefix: int = 0


class PromptReader(Protocol):
    """What turns prompts into the text features that a model reads."""

    @property
    def width(self) -> int:
        """Ct, numbers in a row of features."""

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Features of each prompt, (L_i, Ct) float32 on the CPU."""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""

    def features(self, ids: list[int]) -> Tensor:
        """Features (L, Ct) float32 on the CPU of token ids."""


class Backbone(Protocol):
    """Shapes: B pictures, R rows (2B when guided), N tokens, d numbers a token, c channels of the code map.

    What the numbers of a drawn token are is the model's own business: bits (uint8), or a vector (float32).
    """

    device: torch.device
    channels: int  # c
    stride: int  # pixels per cell of the code map
    model_id: str  # short hash of the weights
    depth: int  # transformer blocks
    width: int  # C, of the hidden states
    text_width: int  # Ct, numbers in a row of text features
    work: TokenWork  # what a token costs
    published: Published  # settings of the methods for this model

    def map_grid(self, grid: Grid) -> Grid:
        """Grid of the code map that belongs to a token grid."""

    def is_empty(self, text: Tensor) -> bool:
        """Whether text features (L, Ct) are those of an empty prompt."""

    def condition(self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> Condition:
        """Prepare text features (L_i, Ct) for every layer."""

    def new_cache(self, condition: Condition, capacity: int | Sequence[int]) -> KVCache:
        """An empty cache for that many tokens a layer, and for what the prompt itself takes."""

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Bytes of a cache for that many tokens in every layer."""

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        """Input tokens (B, h*w, .) of a scale: the sum of codes (B, c, H, W) resampled to its grid."""

    def forward(
        self,
        tokens: Tensor | None,
        step: Step,
        cache: KVCache | None,
        store: bool,
        visible: Tensor | None = None,
        branch: Branch = run_whole,
    ) -> Tensor:
        """Hidden states (R, N, C) of the input tokens (B, N, .); tokens None = those of scale 0, which has no input.

        Args:
            cache: keys and values of earlier tokens.
            store: append these tokens' keys and values to it.
            visible: (1 or R, N, N) bool, which new token sees which, or (N,) int32, a group each that sees only itself; None =
                all see all.
            branch: how residual branches are run.
        """

    def sample(self, hidden: Tensor, step: Step, sampling: Sampling, seeds: Sequence[int], noise: Noise = bit_noise) -> Tensor:
        """Tokens (B, N, d) drawn from hidden states."""

    def codes(self, tokens: Tensor) -> Tensor:
        """Codes (B, N, d) float32 of drawn tokens (B, N, d); zeros stand for a token that was not drawn."""

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        """What the codes (B, h*w, d) of a scale add to the map: (B, c, H, W) at full size.

        Args:
            filled: (B, h*w) bool, which tokens were drawn; None = all.  Far from those nothing is added.
        """

    def decode(self, total: Tensor) -> Tensor:
        """Sum of codes (B, c, H, W) -> image (B, 3, H * stride, W * stride) in [-1, 1]."""
