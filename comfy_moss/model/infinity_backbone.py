"""Infinity behind the pipeline's Backbone interface: transformer and codec together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ops import TORCH, Kernels
from .backbone import PAPER, Pass, Published, Step, TokenWork
from .cache import KVCache
from .graphs import Graphs
from .infinity import InfinityCondition, InfinityTransformer
from .quantize import bits_to_codes, map_to_tokens, resample, tokens_to_map
from .rope import rotation
from .sampling import bit_noise, check_finite, draw_bits
from .schedule import Grid, Schedule
from .vae import VAE, decode_as_fits


@dataclass(frozen=True)
class InfinityBackbone:
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        graphs: replays the passes of a picture that are like an earlier one's; None = every kernel by itself.
        published: settings of the methods for this model.
    """

    transformer: InfinityTransformer
    vae: VAE
    model_id: str = ""
    kernels: Kernels = field(default=TORCH, kw_only=True)
    graphs: Graphs | None = field(default=None, kw_only=True)
    published: Published = field(default=PAPER, kw_only=True)

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_start.device

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
    def work(self) -> TokenWork:
        depth, width, hidden = self.depth, self.width, self.transformer.config.hidden
        matrices = 6 * width**2 + 2 * width * hidden  # 3 qkv, out, query, out; both of the feed-forward
        return TokenWork(float(depth * matrices), float(2 * width * depth))

    @property
    def channels(self) -> int:
        return self.vae.config.channels

    @property
    def stride(self) -> int:
        return self.vae.config.stride

    @property
    def patchify(self) -> bool:
        """Whether a token covers 2 x 2 cells of the code map."""
        return self.transformer.config.bits == 4 * self.channels

    @property
    def _dtype(self) -> torch.dtype:
        """Of the blocks, and so of keys and values."""
        return self.transformer.blocks[0].sa.q_bias.dtype

    def map_grid(self, grid: Grid) -> Grid:
        return (2 * grid[0], 2 * grid[1]) if self.patchify else tuple(grid)

    def is_empty(self, text: Tensor) -> bool:
        return len(text) == 1  # its end token alone

    def condition(
        self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool
    ) -> InfinityCondition:
        return self.transformer.condition(text, negative, guided)

    def new_cache(self, condition: InfinityCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        make = self.graphs.new_cache if self.graphs else KVCache
        return make(capacity, len(condition.pooled), config.heads, config.head_dim, self._dtype, self.device)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        return 2 * rows * tokens * self.width * self.depth * self._dtype.itemsize

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return map_to_tokens(resample(total, self.map_grid(grid)), self.patchify)

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        x = self.transformer.embed(tokens, step.positions.scale, step.condition)
        tables = rotation(step.positions, step.schedule, self.transformer.config.head_dim)
        if len(tables[0]) > 1:  # every picture has its own tokens: repeat for the unconditional rows
            tables = (table.repeat(len(x) // len(table), 1, 1) for table in tables)
        mix = step.guidance.mixes(self.depth, step.guidance.at(step.positions, len(step.schedule)))
        now = Pass(step, *tables, mix, self.kernels)
        hidden = self.graphs.replay(self.transformer, x, now) if self.graphs else None
        return self.transformer(x, now) if hidden is None else hidden

    def logits(self, hidden: Tensor, step: Step) -> Tensor:
        """Logits (B, N, d, 2) after temperature and guidance."""
        scales, condition = len(step.schedule), step.condition
        tau = step.sampling.tau_at(step.positions, scales)[..., None]
        if not condition.guided or 0 not in step.guidance.layers:
            return self.transformer.logits(hidden[: condition.batch], condition.unguided()) / tau
        positive, negative = (half / tau for half in self.transformer.logits(hidden, condition).chunk(2))
        cfg = step.guidance.at(step.positions, scales)[..., None]
        return torch.where(cfg == 1, positive, cfg * positive + (1 - cfg) * negative)

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        logits = self.logits(hidden, step)
        check_finite(logits)
        noise = bit_noise(step.seeds, step.positions, logits.shape[-2])
        return draw_bits(logits, noise, step.sampling.top_k, step.sampling.top_p)

    def codes(self, bits: Tensor) -> Tensor:
        return bits_to_codes(bits, self.channels)

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        image = tokens_to_map(codes, schedule.grids[scale], self.patchify)  # zeros stay zeros, so no `filled`
        return resample(image, self.map_grid(schedule.grids[-1]))

    def decode(self, total: Tensor) -> Tensor:
        return decode_as_fits(self.vae.decode, total.to(self.vae.decoder.conv_in.conv.weight)).float()
