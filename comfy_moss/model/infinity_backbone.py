"""Infinity behind the pipeline's Backbone interface: transformer and codec together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..ops import TORCH, Kernels
from .backbone import PAPER, Branch, Noise, Pass, Published, Step, TokenWork, run_whole
from .cache import KVCache
from .graphs import Graphs
from .infinity import InfinityCondition, InfinityTransformer
from .quantize import bits_to_codes, map_to_tokens, resample, tokens_to_map
from .rope import rotation
from .sampling import Sampling, bit_noise, draw_bits, per_scale
from .schedule import Grid, Schedule
from .vae import VAE, decode_as_fits


@dataclass(frozen=True)
class InfinityBackbone:
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        graphs: replays the passes of a picture that are like those of an earlier one; None = runs every kernel by itself.
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
        config = self.transformer.config
        matrices = 6 * config.width**2 + 2 * config.width * config.hidden  # 3 qkv, out, query, out; both of the feed-forward
        return TokenWork(float(config.depth * matrices), float(2 * config.width * config.depth))

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

    def map_grid(self, grid: Grid) -> Grid:
        return (2 * grid[0], 2 * grid[1]) if self.patchify else tuple(grid)

    def is_empty(self, text: Tensor) -> bool:
        return len(text) == 1  # its end token alone

    def condition(self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> InfinityCondition:
        return self.transformer.condition(text, negative, guided)

    def new_cache(self, condition: InfinityCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        dtype = self.transformer.blocks[0].sa.q_bias.dtype
        make = self.graphs.new_cache if self.graphs else KVCache
        return make(capacity, len(condition.pooled), config.heads, config.head_dim, dtype, self.device)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        dtype = self.transformer.blocks[0].sa.q_bias.dtype
        return 2 * rows * tokens * self.width * self.depth * dtype.itemsize

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return map_to_tokens(resample(total, self.map_grid(grid)), self.patchify)

    def forward(
        self,
        tokens: Tensor | None,
        step: Step,
        cache: KVCache | None,
        store: bool,
        visible: Tensor | None = None,
        branch: Branch = run_whole,
    ) -> Tensor:
        transformer = self.transformer
        x = transformer.embed(tokens, step.positions.scale, step.condition)
        tables = rotation(step.positions, step.schedule, transformer.config.head_dim)
        if len(tables[0]) > 1:  # every picture has its own tokens: repeat for the unconditional rows
            tables = (table.repeat(len(x) // len(table), 1, 1) for table in tables)
        mix = step.guidance.mixes(self.depth, step.guidance.at(step.positions, len(step.schedule)))
        run = partial(self.graphs.run, transformer) if self.graphs else transformer
        return run(x, Pass(*tables, cache, store, visible, branch, mix, self.kernels), step.condition)

    def logits(self, hidden: Tensor, step: Step, tau: float | tuple[float, ...]) -> Tensor:
        """Logits (B, N, d, 2) after temperature and guidance."""
        scales, condition = len(step.schedule), step.condition
        taus = torch.tensor(per_scale(tau, scales, "tau"), device=hidden.device)[step.positions.scale][..., None, None]
        if not condition.guided or 0 not in step.guidance.layers:
            return self.transformer.logits(hidden[: condition.batch], condition.unguided()) / taus
        positive, negative = (half / taus for half in self.transformer.logits(hidden, condition).chunk(2))
        cfg = step.guidance.at(step.positions, scales)[..., None]
        return torch.where(cfg == 1, positive, cfg * positive + (1 - cfg) * negative)

    def sample(self, hidden: Tensor, step: Step, sampling: Sampling, seeds: Sequence[int], noise: Noise = bit_noise) -> Tensor:
        logits = self.logits(hidden, step, sampling.tau)
        if not torch.isfinite(logits).all():
            raise ValueError("the model returned values that are not numbers; its file is damaged or does not fit this precision")
        return draw_bits(logits, noise(seeds, step.positions, logits.shape[-2]), sampling.top_k, sampling.top_p)

    def codes(self, bits: Tensor) -> Tensor:
        return bits_to_codes(bits, self.channels)

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        image = tokens_to_map(codes, schedule.grids[scale], self.patchify)  # zeros stay zeros, so `filled` adds nothing
        return resample(image, self.map_grid(schedule.grids[-1]))

    def decode(self, total: Tensor) -> Tensor:
        return decode_as_fits(self.vae.decode, total.to(self.vae.decoder.conv_in.conv.weight)).float()
