"""VAREdit: Infinity, fine-tuned to change a picture as an instruction says.

The picture to change (the source) stands before the first scale as a prefix: its codec features on the last
grid, one token a cell, run once through all blocks.  Later tokens attend to its keys and values; in block 0
to a copy of them shrunk to the grid of their own scale.  Facts: docs/fine-tunes.md, section 1.

Shapes: B pictures, R rows (2B when guided), N tokens, H heads, D channels a head, L source tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..ops import Int8Segment, Segment, area_mean, dequantized
from .backbone import AttentionCall, Pass, PicturedText, Step, TokenWork
from .cache import KVCache
from .infinity import InfinityBackbone, InfinityCondition
from .quantize import map_to_tokens
from .rope import grid_positions, rotation_at
from .sampling import look_up
from .schedule import RATIOS, Grid, Positions, Schedule

WHITE = (255, 255, 255)


# --- the picture --------------------------------------------------------------------------------------------


def padded_square(picture: Image.Image, side: int) -> Image.Image:
    """A picture at the top left of a white square, at side x side pixels: what the encoder reads."""
    square = Image.new("RGB", (max(picture.size),) * 2, WHITE)
    square.paste(picture.convert("RGB"), (0, 0))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def cropped_to(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The inverse: what was drawn, at the (width, height) of the source, without the padding."""
    side = max(size)
    return picture.resize((side, side), Image.Resampling.LANCZOS).crop((0, 0, *size))


# --- positions ----------------------------------------------------------------------------------------------


def running_positions(schedule: Schedule, device: torch.device | str = "cpu") -> Tensor:
    """(y, x) of every token as they run, the source's, then scale by scale: (L + tokens, 2).

    They are the first rows of a list made for the 1M schedule, whatever the schedule: a block of source
    tokens diagonally below the picture, then the scales.  Smaller schedules have fewer source tokens than the
    block has rows, so their scales stand inside it; they were trained like that.
    """
    largest = replace(schedule, grids=RATIOS[schedule.ratio])
    h, w = schedule.rope_grid
    source = torch.cartesian_prod(torch.arange(h, h + h), torch.arange(w, w + w))
    scales = [Positions.of_scale(largest, n) for n in range(len(largest))]
    y, x = grid_positions(Positions.concat(scales), largest)
    listed = torch.cat([source, torch.stack([y[0], x[0]], dim=-1).long()])
    return listed[: source_tokens(schedule) + schedule.tokens()].to(device)


def source_tokens(schedule: Schedule) -> int:
    """L: one token a cell of the last grid."""
    return schedule.tokens(len(schedule) - 1)


def running_rows(positions: Positions, schedule: Schedule) -> Tensor:
    """(B or 1, N) the row of `running_positions` that each token has."""
    first = [source_tokens(schedule) + schedule.tokens(0, n) for n in range(len(schedule))]
    widths = [width for _, width in schedule.grids]
    first, widths = (look_up(numbers, positions)[..., 0].long() for numbers in (first, widths))
    return first + positions.row * widths + positions.col


@dataclass(frozen=True)
class Places:
    """`running_positions` of a schedule, the same for all rows of a batch."""

    table: Tensor


# --- the prefix ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditCondition(InfinityCondition):
    """What the instructions and the sources say.

    Attributes:
        source: keys and values of the source tokens in every block; only read.
        places: where tokens stand.
    """

    source: KVCache | None = None
    places: Places | None = None

    def unguided(self) -> EditCondition:
        plain = super().unguided()
        source = self.source and self.source.first_rows(self.batch)
        return EditCondition(**vars(plain) | {"source": source, "places": self.places})


@dataclass(frozen=True)
class EditPass(Pass):
    """A pass whose tokens attend to the source as well."""

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> list[AttentionCall]:
        context, condition = self.context(layer, k, v), self.step.condition
        if layer:
            return [_call(q, (condition.source.view(layer), *context), k.shape[2], self.step.visible)]
        return self._in_block_0(q, context, k.shape[2])

    def _in_block_0(
        self, q: Tensor, context: tuple[Segment | Int8Segment, ...], new: int
    ) -> list[AttentionCall]:
        """Each token sees the source at its own scale's grid, and not at the grids of others.

        So every scale of the pass takes an attention call of its own.
        """
        step, calls = self.step, []
        for scale, tokens in _scales(step.positions):
            source = shrunk(step.condition.source.view(0), step.schedule, scale, q.dtype)
            segments, visible = (source, *context), step.visible
            if visible is not None and visible.dim() == 3:
                visible = visible[:, tokens]
            elif visible is not None:  # by scale: of the new tokens those of this one
                past, (k, v) = _two(segments, new, q.dtype)
                segments, visible = (past, (k[:, :, tokens], v[:, :, tokens])), None
            calls.append(_call(q[:, :, tokens], segments, new, visible))
        return calls


def _call(
    q: Tensor, segments: tuple[Segment | Int8Segment, ...], new: int, visible: Tensor | None
) -> AttentionCall:
    return q, segments if len(segments) < 3 and visible is None else _two(segments, new, q.dtype), visible


def _two(
    segments: Sequence[Segment | Int8Segment], new: int, dtype: torch.dtype
) -> tuple[Segment, Segment]:
    """The same as what came before, and the last `new` tokens: all that some kernels take."""
    plain = (dequantized(segment, dtype) for segment in segments)
    k, v = (torch.cat(parts, dim=2) for parts in zip(*plain, strict=True))
    past = k.shape[2] - new
    return (k[:, :, :past], v[:, :, :past]), (k[:, :, past:], v[:, :, past:])


def _scales(positions: Positions) -> list[tuple[int, slice]]:
    """The scales of a pass, and where their tokens stand in it: side by side, and alike for every picture."""
    found, first = [], 0
    for scale, count in positions.told():
        found.append((scale, slice(first, first + count)))
        first += count
    return found


def shrunk(
    source: Segment | Int8Segment, schedule: Schedule, scale: int, dtype: torch.dtype
) -> Segment | Int8Segment:
    """Keys and values (R, H, L, D) of the source, averaged over a scale's cells; not normalised again."""
    grid, whole = schedule.grids[scale], schedule.grids[-1]
    if grid == whole:
        return source
    return tuple(_area(part, whole, grid) for part in dequantized(source, dtype))


def _area(part: Tensor, whole: Grid, grid: Grid) -> Tensor:
    image = rearrange(part.float(), "r heads (h w) d -> r (heads d) h w", h=whole[0])
    means = area_mean(image, grid).to(part.dtype)
    return rearrange(means, "r (heads d) h w -> r heads (h w) d", heads=part.shape[1])


# --- the model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditBackbone(InfinityBackbone):
    """Infinity with a source picture, which comes encoded with the instruction (`PicturedText`)."""

    pass_type = EditPass

    @property
    def work(self) -> TokenWork:
        return replace(super().work, pictured=True)

    def condition(
        self,
        text: Sequence[PicturedText],
        negative: Sequence[Tensor] | None,
        guided: bool,
        schedule: Schedule,
    ) -> EditCondition:
        """The instructions, and the sources run once through all blocks.

        Raises:
            ValueError: a text without a picture.
        """
        if not all(isinstance(one, PicturedText) for one in text):
            raise ValueError("this model edits a picture and got none; wire one to MoSs Instruct Edit")
        plain = super().condition([one.features for one in text], negative, guided, schedule)
        places = Places(running_positions(schedule, self.device))
        empty = EditCondition(**vars(plain), places=places)
        tokens = self.source_tokens(torch.stack([one.picture for one in text]), schedule)
        return replace(empty, source=self._source(tokens, empty, schedule))

    def source_tokens(self, pictures: Tensor, schedule: Schedule) -> Tensor:
        """(B, L, d) of encoded pictures (B, c, H, W): nothing is quantised."""
        pictures, grid = pictures.to(self.device, torch.float32), self.map_grid(schedule.grids[-1])
        same = tuple(pictures.shape[-2:]) == grid
        return map_to_tokens(pictures if same else area_mean(pictures, grid), self.patchify)

    def _source(self, tokens: Tensor, condition: EditCondition, schedule: Schedule) -> KVCache:
        """Keys and values of the source: it sees itself and nothing else."""
        positions = Positions.of_scale(schedule, len(schedule) - 1, self.device)
        cache = super().new_cache(condition, tokens.shape[1])
        step = Step(positions, schedule, condition, cache=cache, store=True)
        x = self.transformer.embed(tokens, positions.scale, condition, len(schedule))
        places = condition.places.table[: tokens.shape[1]].T[:, None]
        tables = rotation_at(*places, self.transformer.config.head_dim)
        self.transformer(x, Pass(step, *tables, kernels=self.kernels))
        return cache

    def rotation(self, step: Step) -> tuple[Tensor, Tensor]:
        rows = running_rows(step.positions, step.schedule)
        places = step.condition.places.table[rows].unbind(-1)
        return rotation_at(*places, self.transformer.config.head_dim)

    def new_cache(self, condition: EditCondition, capacity: int | Sequence[int]) -> KVCache:
        cache = super().new_cache(condition, capacity)
        cache.prefix = condition.source
        return cache

    def is_empty(self, text: Tensor | PicturedText) -> bool:
        return super().is_empty(text.features if isinstance(text, PicturedText) else text)
