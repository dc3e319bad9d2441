"""What the pipeline asks of a next-scale-prediction model, and the small types that both sides share.

A new model is one class with the members of `Backbone`; what its blocks read of a step is a `Pass`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..ops import TORCH, Int8Segment, Kernels, Segment
from .cache import KVCache
from .layers import is_plain
from .memory import FLOAT, block_bytes
from .rope import grid_coordinates, rotation
from .sampling import Finite, Guidance, Sampling, bit_noise, noise_keys, noise_of
from .schedule import Grid, Positions, Schedule


class PositionedText(NamedTuple):
    """Text features of a model whose text positions are not simply 0, 1, 2, ...

    Attributes:
        features: (L, Ct).
        positions: (L,) float32, position of every row; negative where a row stands for no word.
    """

    features: Tensor
    positions: Tensor


class PicturedText(NamedTuple):
    """What a picture is to become, in words, for models that draw from a picture.

    Attributes:
        features: (L, Ct) of the words.
        picture: (c, h, w) float32, the codec's features of the picture, not quantised.
    """

    features: Tensor
    picture: Tensor


Text = Tensor | PositionedText | PicturedText  # features (L, Ct) of a prompt


def text_width(text: Text) -> int:
    """Ct."""
    return (text if isinstance(text, Tensor) else text.features).shape[1]


class Condition(Protocol):
    """What the prompts say, in a form of the model's own; R rows, the prompts' before the unconditional ones.

    Attributes:
        batch: B, number of pictures; R = 2B when guided, else B.
        given: tokens of the first scales that need no drawing, each (B, h*w, d); most models know none.
    """

    batch: int
    given: Sequence[Tensor]

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""

    def unguided(self) -> Condition:
        """The prompts' rows alone."""


class Branch(Protocol):
    """Runs residual branches, each named by its layer and "sa", "ca" or "ffn", on some of the tokens only."""

    def pick(self, layer: int, kind: str, x: Tensor) -> Tensor | None:
        """Indices (R, K) of the tokens of x (R, N, C) that are to run the branch; None = all."""

    def fill(self, layer: int, kind: str, update: Tensor, picked: Tensor | None) -> Tensor:
        """Updates (R, N, C) of all tokens from those (R, K, C) of the picked ones."""


class Tables:
    """What the passes of a run look up by token, made when first asked for, once a run, on its device."""

    def __init__(self, schedule: Schedule, seeds: Sequence[int], device: torch.device) -> None:
        self.schedule, self.seeds, self.device = schedule, seeds, device

    @cached_property
    def positions(self) -> Positions:
        """Of all tokens of all scales, (1, T)."""
        return Positions.of_all(self.schedule, self.device)

    @cached_property
    def noise(self) -> Tensor:
        """Keys of the noise, (B, T), see `sampling.noise_of`."""
        return noise_keys(self.seeds, self.positions)

    @cached_property
    def rotations(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Size of a head -> cos and sin, each (1, T, .), see `rope.rotation`."""
        return {}

    def rotation(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """See `rope.rotation`."""
        if head_dim not in self.rotations:
            self.rotations[head_dim] = rotation(self.positions, self.schedule, head_dim)
        return self.rotations[head_dim]

    @cached_property
    def coordinates(self) -> tuple[Tensor, Tensor]:
        """See `rope.grid_coordinates`, each (1, T)."""
        return grid_coordinates(self.positions, self.schedule)


@dataclass(frozen=True)
class Step:
    """Everything about a forward pass but the tokens' values: which tokens of what picture, drawn how.

    A pass without guidance takes `condition.unguided()` and `cache.first_rows(condition.batch)`.  If it
    stores its tokens, only the prompts' rows have them; so passes with guidance come before those without.

    Attributes:
        positions: of the N tokens.
        seeds: B noise seeds.
        cache: keys and values of earlier tokens; None = there are none, and none are kept.
        store: append these tokens' keys and values to it.
        visible: which new token sees which: None = all see all, (N,) int32 = those with its own number (its
            scale), (R or 1, N, N) bool = row sees column.
        branch: runs residual branches on some of the tokens only; None = on all.
        tables: what the passes of this run look up; None = it is made anew.
        finite: told of all logits and asked at the end of the run; None = asked at once.

    Raises:
        ValueError: the cache lacks rows, or another cache has overwritten its tokens.
    """

    positions: Positions
    schedule: Schedule
    condition: Condition
    guidance: Guidance = Guidance()
    sampling: Sampling = Sampling()
    seeds: tuple[int, ...] = ()
    cache: KVCache | None = None
    store: bool = False
    visible: Tensor | None = None
    branch: Branch | None = None
    tables: Tables | None = None
    finite: Finite | None = None

    def __post_init__(self) -> None:
        if self.cache is None:
            return
        rows = self.condition.batch * (2 if self.condition.guided else 1)
        if self.cache.rows != rows:
            raise ValueError(
                f"this pass runs {rows} rows but the KV cache holds {self.cache.rows}: after a pass without "
                "guidance, which stores the prompts' rows alone, no pass with guidance can follow"
            )
        if self.cache.overwritten:
            raise ValueError("these keys and values were overwritten by another pass; rebuild them")

    def part(self, tokens: slice) -> Step:
        """Some of the tokens, for drawing them."""
        return replace(self, positions=self.positions.part(tokens))

    def rotation(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the tokens, each (B or 1, N, head_dim / 2), see `rope.rotation`."""
        if self.tables is None or self.positions.place is None:
            return rotation(self.positions, self.schedule, head_dim)
        return tuple(map(self.positions.take, self.tables.rotation(head_dim)))

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """Where the tokens lie, each (B or 1, N), see `rope.grid_coordinates`."""
        if self.tables is None or self.positions.place is None:
            return grid_coordinates(self.positions, self.schedule)
        return tuple(map(self.positions.take, self.tables.coordinates))

    def noise(self, bits: int) -> Tensor:
        """Uniform noise (B, N, bits) of the tokens, see `sampling.bit_noise`."""
        if self.tables is None or self.positions.place is None:
            return bit_noise(self.seeds, self.positions, bits)
        return noise_of(self.positions.take(self.tables.noise), bits)

    def check_finite(self, logits: Tensor) -> None:
        """Refuse logits that are no numbers, at once or at the end of the run.

        Raises:
            ValueError: as said.
        """
        finite = self.finite or Finite()
        finite.note(logits)
        if self.finite is None:
            finite.check()


class Update(NamedTuple):
    """What a residual branch adds to the tokens.

    Attributes:
        layer, kind: the branch, see `Branch`.
        value: (R, N, C), or (R, K, C) of the picked tokens.
        picked: (R, K) their indices; None = all.
        gamma: (R, 1, C) factor; None = 1.
    """

    layer: int
    kind: str
    value: Tensor
    picked: Tensor | None = None
    gamma: Tensor | None = None


# what `Kernels.cross_scale_attention` is called with
AttentionCall = tuple[Tensor, tuple[Segment | Int8Segment, ...], Tensor | None]


@dataclass(frozen=True)
class Pass:
    """A step as the blocks of a transformer read it.

    Attributes:
        cos, sin: (R or 1, N, .) rotary tables of the tokens.
        mix: layer -> guidance strength (B or 1, N, 1) mixed into the rows after that layer.
    """

    step: Step
    cos: Tensor
    sin: Tensor
    mix: Mapping[int, Tensor] = field(default_factory=dict)
    kernels: Kernels = TORCH

    def pick(self, layer: int, kind: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens of x (R, N, C) that run a residual branch, and their indices; None = all of them."""
        picked = self.step.branch.pick(layer, kind, x) if self.step.branch else None
        return (x, None) if picked is None else (gather_tokens(x, picked), picked)

    def add(
        self,
        layer: int,
        kind: str,
        x: Tensor,
        update: Tensor,
        picked: Tensor | None,
        gamma: Tensor | None = None,
    ) -> Tensor:
        """x (R, N, C) plus a residual branch's update of the picked tokens, times gamma (R, 1, C)."""
        if self.step.branch is None:
            return x + update if gamma is None else self.kernels.gated_add(x, gamma, update)
        update = update.to(x.dtype) if gamma is None else gamma * update
        return x + self.step.branch.fill(layer, kind, update, picked)

    def added(self, x: Tensor, update: Update | None) -> Tensor:
        """x (R, N, C) plus an update."""
        return x if update is None else self.add(update.layer, update.kind, x, *update[2:])

    def normed(
        self, layer: int, kind: str, x: Tensor, update: Update | None,
        norm: tuple[Tensor, Tensor] | nn.Module, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add an update to x (R, N, C), and norm what the next branch reads.

        Args:
            norm: scale and shift of `Kernels.modulated_norm`, or a LayerNorm.

        Returns:
            x with the update, the normed tokens that run the branch, and their indices; None = all.
        """
        modulated = isinstance(norm, tuple)
        fused = modulated or is_plain(norm, x, any_type=True)
        gains = norm if modulated else (norm.weight, norm.bias)
        if fused and update is not None and self.step.branch is None:
            both = self.kernels.add_norm(x, update.value, update.gamma, *gains, modulated, dtype)
            return *both, None
        x = self.added(x, update)
        part, picked = self.pick(layer, kind, x)
        if not fused:
            return x, norm(part).to(dtype), picked
        alone = self.kernels.modulated_norm if modulated else self.kernels.affine_norm
        return x, alone(part, *gains, dtype), picked

    def rotary(self, picked: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tables of all tokens, or of the picked ones."""
        if picked is None:
            return self.cos, self.sin
        tables = (table.expand(len(picked), -1, -1) for table in (self.cos, self.sin))
        return tuple(gather_tokens(table, picked) for table in tables)

    def room(self, layer: int, tokens: int) -> Segment | None:
        """Where new keys and values are to be written: in the cache, or anywhere (None)."""
        return self.step.cache.room(layer, tokens) if self.step.store else None

    def context(self, layer: int, k: Tensor, v: Tensor) -> tuple[Segment | Int8Segment, ...]:
        """All that new tokens with these keys and values attend to, themselves last; stores them if asked to.

        In the cache old and new lie side by side, so that nothing has to be joined.  Of one in 8 bits the new
        tokens see each other as they are: whether they are stored makes no difference to what they see.
        """
        cache = self.step.cache
        if cache is None:
            return ((k, v),)
        if self.step.store and not cache.int8:
            return (cache.append(layer, k, v),)
        before = cache.view(layer)
        if self.step.store:
            cache.append(layer, k, v)
        return before, (k, v)

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> list[AttentionCall]:
        """What new tokens attend to, from their queries, keys and values (R, H, N, D) each: the calls that
        give their results in the order of the tokens.
        """
        return [(q, self.context(layer, k, v), self.step.visible)]


def gather_tokens(x: Tensor, picked: Tensor) -> Tensor:
    """Tokens (R, K, C) of x (R, N, C) at indices (R, K)."""
    return x.gather(1, picked[..., None].expand(-1, -1, x.shape[-1]))


@dataclass(frozen=True)
class Pruning:
    """FastVAR's settings.

    Attributes:
        skip: number of last scales that are not run at all.
        prune: share of tokens dropped in each of the scales before those, coarsest first; the scale before
            them is saved.
        first_layer, last_layer: blocks that prune, inclusive; last_layer None = to the end.
    """

    skip: int = 2
    prune: tuple[float, ...] = (0.4, 0.5)
    first_layer: int = 3
    last_layer: int | None = 27


@dataclass(frozen=True)
class Published:
    """Settings of the methods for a family of models, as printed; for one model also what was found for it.

    Attributes:
        bounds: number of refine scales k -> t_1 >= ... >= t_k in percent, coarsest refine scale first.
        k: scales that the cheap rival skips, and that the paper's first method refines.
        pruning: FastVAR's.
        searched: number of a picture's scales -> like bounds, found by `calibrate` for one model on such
            pictures; only those that scored above the printed ones at equal tokens.
        calibrated: those of them that are for this picture, see `on`.
        plans: plans by name, each as text (see pipeline/plan.py), found on the embedded model.
        first: name of the method to start with; "" = the paper's with k scales.
    """

    bounds: Mapping[int, tuple[float, ...]]
    k: int
    pruning: Pruning
    searched: Mapping[int, Mapping[int, tuple[float, ...]]] = field(default_factory=dict)
    calibrated: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    plans: Mapping[str, str] = field(default_factory=dict)
    first: str = ""

    @property
    def method(self) -> str:
        """Name of the method to start with."""
        return self.first or f"moss{self.k}"

    def on(self, schedule: Schedule) -> Published:
        """The same for pictures of this schedule: with the bounds found on as many scales, or nearly as many.
        """
        if not self.searched:
            return self
        nearest = min(self.searched, key=lambda scales: abs(scales - len(schedule)))
        return replace(self, calibrated=self.searched[nearest])

    @property
    def best(self) -> dict[int, tuple[float, ...]]:
        """The bounds to use unless someone says otherwise: the found ones, else the printed ones."""
        assert self.calibrated or not self.searched, "found for several schedules; `on` says which is drawn"
        return {**self.bounds, **self.calibrated}


# Sparse refine passes: all but the last scales drafted, then parts of a few, the last pass without guidance.
PLANS = {"sparse3": "draft-3; -1@45 unguided", "sparse4": "draft-4; -4@70; -1@45 unguided"}
PAPER_BOUNDS = {
    2: (50.0, 25.0),
    3: (50.0, 15.0, 5.0),
    4: (80.0, 70.0, 30.0, 10.0),
    5: (90.0, 50.0, 15.0, 10.0, 5.0),
}
PAPER = Published(PAPER_BOUNDS, 4, Pruning(), plans=PLANS)  # of Infinity, the family of the paper first
_BOTH = {2: (40.0, 30.0), 3: (30.0, 20.0, 20.0)}  # the search of 3 ended alike on both; of 2 there is one
NANO = replace(  # see docs/quality.md
    PAPER, first="sparse3",
    searched={
        10: {**_BOTH, 4: (60.0, 30.0, 30.0, 30.0)},
        13: {**_BOTH, 4: (40.0, 30.0, 30.0, 30.0), 5: (40.0, 20.0, 20.0, 20.0, 20.0)},
    },
)
HART = Published({2: (80.0, 55.0)}, 2, Pruning(skip=0, prune=(0.5, 0.75), first_layer=0, last_layer=None))


@dataclass(frozen=True)
class TokenWork:
    """Multiply-adds that a token of one row takes in all blocks together.

    Cross-attention to the text is left out, and so is what lies around the blocks: embedding, head, text.

    Attributes:
        linear: the blocks' matrices: self-attention's qkv and out, cross-attention's query and out, and
            both of the feed-forward.
        attention: for each token attended to in self-attention, itself included: its score and its value.
        prefix: tokens of the prompt that run before the picture's first one and stay in the cache.
        pictured: a picture runs before it as well, one token a cell of the last grid.
    """

    linear: float
    attention: float
    prefix: int = 0
    pictured: bool = False

    def before(self, schedule: Schedule) -> int:
        """Tokens that run before the first one drawn: the prompt's, and a picture's."""
        return self.prefix + (schedule.tokens(len(schedule) - 1) if self.pictured else 0)


class PromptReader(Protocol):
    """What turns prompts into the text features that a model reads."""

    @property
    def width(self) -> int:
        """Ct, numbers in a row of features."""

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """Features of each prompt, (L_i, Ct) float32 on the CPU."""

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt."""

    def features(self, ids: list[int], device: torch.device | None = None) -> Text:
        """Features (L, Ct) float32 on the CPU of token ids, computed on a device; None = where its weights
        are.
        """


INDICES = 40  # bytes a token: its scale, row, column and place, and the key of its noise


class Sized:
    """What a backbone tells of itself, from the settings of its two parts: `transformer` and codec, `vae`.

    Attributes:
        inner: tensors as wide as its feed-forward that this holds at once.
    """

    transformer: Any
    vae: Any
    int8_cache: bool
    inner: ClassVar[int] = 2

    @property
    def depth(self) -> int:
        return self.transformer.config.depth

    @property
    def width(self) -> int:
        return self.transformer.config.width

    @property
    def text_width(self) -> int:
        return self.transformer.config.text_width

    @property
    def channels(self) -> int:
        return self.vae.config.channels

    @property
    def stride(self) -> int:
        return self.vae.config.stride

    @property
    def item(self) -> int:
        return self._dtype.itemsize

    def table_bytes(self, tokens: int) -> int:
        rotation = FLOAT * self.transformer.config.head_dim
        return tokens * (rotation + INDICES)

    def pass_bytes(self, rows: int, tokens: int, past: int, stored: bool) -> int:
        hidden = self.transformer.config.hidden
        sizes = self.width, hidden, self.inner, self.item
        return rows * block_bytes(*sizes, tokens, past, stored, self.int8_cache)


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
    item: int  # bytes of one of the blocks' numbers
    work: TokenWork  # what a token costs
    published: Published  # settings of the methods for this model

    def map_grid(self, grid: Grid) -> Grid:
        """Grid of the code map that belongs to a token grid."""

    def is_empty(self, text: Text) -> bool:
        """Whether text features (L, Ct) are those of an empty prompt."""

    def condition(
        self, text: Sequence[Text], negative: Sequence[Text] | None, guided: bool, schedule: Schedule
    ) -> Condition:
        """Prepare text features (L_i, Ct) for every layer, for pictures of this schedule."""

    def new_cache(self, condition: Condition, capacity: int | Sequence[int]) -> KVCache:
        """An empty cache for that many tokens a layer, and for what the prompt itself takes; in 8 bits where
        this model is set so.
        """

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Bytes of a cache for that many tokens in every layer."""

    def pass_bytes(self, rows: int, tokens: int, past: int, stored: bool) -> int:
        """Bytes that a forward pass takes at most besides weights, condition and cache.

        Args:
            past: tokens a row in the cache; stored: whether the new ones join them.
        """

    def condition_bytes(self, rows: int, text: int) -> int:
        """Bytes of prompts of that many tokens made ready for every layer."""

    def table_bytes(self, tokens: int) -> int:
        """Bytes of what the tokens of a schedule look up, see `Tables`."""

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        """Input tokens (B, h*w, .) of a scale: the sum of codes (B, c, H, W) resampled to its grid."""

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        """Hidden states (R, N, C) of input tokens (B, N, .); None = of scale 0, which has no input."""

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
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

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H * stride, W * stride) in [-1, 1] -> features (B, c, H, W) float32, not yet
        quantised.
        """

    def quantize(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        """Features (B, c, H, W) of the schedule's size -> the tokens of every scale, each (B, h*w, d).

        Every scale says what the coarser ones left over, as `code_map` adds them up again.
        """

    def bit_probability(self, hidden: Tensor, step: Step) -> Tensor:
        """Probability (B, N, d) of every bit to be 1, from hidden states; `sample` draws by it.

        Raises:
            ValueError: this model does not draw bits.
        """
