"""What the pipeline asks of a next-scale-prediction model.  A new model is one class with these members."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..ops import TORCH, Kernels, Segment
from .cache import KVCache
from .sampling import Guidance, Sampling, bit_noise
from .schedule import Grid, Positions, Schedule

Noise = Callable[[Sequence[int], Positions, int], Tensor]  # see sampling.bit_noise
Update = Callable[[Tensor, Tensor | None], Tensor]  # (tokens, kept indices or None) -> residual update of those tokens
Branch = Callable[[int, str, Tensor, Update], Tensor]  # (layer, "sa" | "ca" | "ffn", x, update) -> update of all tokens


def run_whole(layer: int, kind: str, x: Tensor, update: Update) -> Tensor:
    """The plain way to run a residual branch: on all tokens."""
    return update(x, None)


@dataclass(frozen=True)
class Pass:
    """All that one forward pass over N tokens needs besides the tokens.

    Attributes:
        cos, sin: (R or 1, N, D / 2) rotary tables of the tokens.
        cache: earlier tokens; None when there are none and none are kept.
        store: append these tokens' keys and values to the cache.
        visible: which new token sees which: None = all see all, (N,) int32 = those with its own number (its scale),
            (R or 1, N, N) bool = row sees column.
        branch: how residual branches are run (FastVAR runs some on fewer tokens).
        mix: layer -> guidance strength (B or 1, N, 1) mixed into the rows after that layer.
        kernels: what the operations are computed with.
    """

    cos: Tensor
    sin: Tensor
    cache: KVCache | None = None
    store: bool = False
    visible: Tensor | None = None
    branch: Branch = run_whole
    mix: dict[int, Tensor] = field(default_factory=dict)
    kernels: Kernels = TORCH

    def rotary(self, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tables of all tokens, or of the kept ones; keep (R, K) indices."""
        if keep is None:
            return self.cos, self.sin
        index = keep[..., None].expand(-1, -1, self.cos.shape[-1])
        return tuple(table.expand(len(keep), -1, -1).gather(1, index) for table in (self.cos, self.sin))

    def places(self, layer: int, tokens: int) -> Segment | None:
        """Where new keys and values are to be written: in the cache, or anywhere (None) if it does not keep them itself."""
        return self.cache.reserve(layer, tokens) if self.store and isinstance(self.cache, KVCache) else None

    def context(self, layer: int, k: Tensor, v: Tensor) -> tuple[Segment, ...]:
        """All that new tokens with these keys and values attend to, themselves last; stored first if they are to be kept.

        In the cache old and new lie side by side, so that nothing has to be joined.
        """
        if self.cache is None:
            return ((k, v),)
        if not self.store:
            return self.cache.view(layer), (k, v)
        if not isinstance(self.cache, KVCache):  # in training: a cache that gradients pass through
            self.cache.append(layer, k, v)
        return (self.cache.view(layer),)

    def residual(self, layer: int, kind: str, x: Tensor, update: Update, gamma: Tensor | None = None) -> Tensor:
        """x plus the branch's update of it, times gamma (R, 1, C) if given."""
        if self.branch is run_whole:  # nothing comes between update and sum: gate and add at once
            y = run_whole(layer, kind, x, update)
            return x + y if gamma is None else self.kernels.gated_add(x, gamma, y)

        def gated(x: Tensor, keep: Tensor | None) -> Tensor:
            return update(x, keep).to(x.dtype) if gamma is None else gamma * update(x, keep)

        return x + self.branch(layer, kind, x, gated)


@dataclass(frozen=True)
class Pruning:
    """FastVAR's settings.

    Attributes:
        skip: number of last scales that are not run at all.
        prune: share of tokens dropped in each of the scales before those, coarsest first; the scale before them is saved.
        first_layer, last_layer: blocks that prune, inclusive; last_layer None = to the end.
    """

    skip: int = 2
    prune: tuple[float, ...] = (0.4, 0.5)
    first_layer: int = 3
    last_layer: int | None = 27


@dataclass(frozen=True)
class Published:
    """Settings for a family, as printed; for one model also what was found for it.

    Attributes:
        bounds: number of refine scales k -> t_1 >= ... >= t_k in percent, coarsest refine scale first.
        k: of the method to start with.
        pruning: FastVAR's.
        calibrated: like bounds, found by `calibrate` for one model; only those that beat the printed ones at equal tokens.
        plans: plans by name, each as text (see pipeline/plan.py), found on the embedded model.
    """

    bounds: Mapping[int, tuple[float, ...]]
    k: int
    pruning: Pruning
    calibrated: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> dict[int, tuple[float, ...]]:
        """The bounds to use unless someone says otherwise: the found ones, else the printed ones."""
        return {**self.bounds, **self.calibrated}


# Sparse refine passes: all but the last scales drafted, then parts of a few of them, the last pass without guidance.
PLANS = {"sparse3": "draft-3; -1@45 unguided", "sparse4": "draft-4; -4@70; -1@45 unguided"}
PAPER_BOUNDS = {
    2: (50.0, 25.0),
    3: (50.0, 15.0, 5.0),
    4: (80.0, 70.0, 30.0, 10.0),
    5: (90.0, 50.0, 15.0, 10.0, 5.0),
}
PAPER = Published(PAPER_BOUNDS, 4, Pruning(), plans=PLANS)  # of Infinity, the family that the paper is about first
NANO = replace(PAPER, calibrated={2: (40.0, 30.0), 3: (30.0, 20.0, 20.0), 4: (60.0, 30.0, 30.0, 30.0)})  # see docs/quality.md
HART = Published({2: (80.0, 55.0)}, 2, Pruning(skip=0, prune=(0.5, 0.75), first_layer=0, last_layer=None))


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
