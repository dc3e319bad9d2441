"""HART behind the pipeline's Backbone interface: transformer, residual diffusion and tokenizer together.

A drawn token is its vector of c numbers: a mix of codes, at the last scale with the diffusion's residual on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import TORCH, Kernels
from .backbone import HART, Branch, Noise, Pass, Published, Step, TokenWork, run_whole
from .cache import KVCache
from .hart import HartCondition, HartTransformer
from .hart_head import (
    NOT_NUMBERS,
    DiffusionSteps,
    draw_code,
    draw_residual,
    exponential,
    most_codes,
    normal,
    pass_of,
    progress,
    soft_mix,
    strengths,
    truncate,
)
from .quantize import enlarge, shrink
from .rope import picture_rotation, prompt_rotation
from .sampling import Sampling, bit_noise, per_scale
from .schedule import Grid, Positions, Schedule
from .vae import Tokenizer, decode_as_fits

CHUNK = 1024  # tokens whose logits and noise, a number for every code, are in memory at once


@dataclass(frozen=True)
class HartBackbone:
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        smooth: tokens are soft mixes of codes, as released; off = single codes.
        residual: the last scale's tokens get the diffusion's residual, as released.
        passes: in how many passes (MaskGIT) the last scale is drawn when it is drawn whole; 1 as released.
    """

    transformer: HartTransformer
    vae: Tokenizer
    model_id: str = ""
    kernels: Kernels = field(default=TORCH, kw_only=True)
    smooth: bool = field(default=True, kw_only=True)
    residual: bool = field(default=True, kw_only=True)
    passes: int = field(default=1, kw_only=True)

    @property
    def published(self) -> Published:
        return HART

    @property
    def device(self) -> torch.device:
        return self.transformer.word_embed.weight.device

    @property
    def depth(self) -> int:
        return self.transformer.config.depth

    @property
    def width(self) -> int:
        return self.transformer.config.width

    @property
    def text_width(self) -> int:
        return self.transformer.config.text_width + 1  # with the slot's position id

    @property
    def work(self) -> TokenWork:
        config = self.transformer.config
        matrices = 4 * config.width**2 + 3 * config.width * config.hidden  # 3 qkv, out; gate, up, down
        linear, attention = config.depth * matrices, 2 * config.width * config.depth
        return TokenWork(float(linear), float(attention), config.text_length - 1)

    @property
    def channels(self) -> int:
        return self.vae.config.channels

    @property
    def stride(self) -> int:
        return self.vae.config.stride

    def map_grid(self, grid: Grid) -> Grid:
        return tuple(grid)

    def is_empty(self, text: Tensor) -> bool:
        return bool((text[:, -1] < 0).all())  # no slot holds a token of the prompt

    def condition(self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> HartCondition:
        return self.transformer.condition(text, negative, guided)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        config, dtype = self.transformer.config, self.transformer.blocks[0].attn.q_bias.dtype
        return 2 * rows * (tokens + config.text_length - 1) * config.width * config.depth * dtype.itemsize

    def new_cache(self, condition: HartCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        capacity = [tokens + config.text_length - 1 for tokens in capacity]  # the prompt takes the place of scale 0
        dtype = self.transformer.blocks[0].attn.q_bias.dtype
        return KVCache(capacity, len(condition.context), config.heads, config.head_dim, dtype, self.device)

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return shrink(total, grid).flatten(2).transpose(1, 2)

    def forward(
        self,
        tokens: Tensor | None,
        step: Step,
        cache: KVCache | None,
        store: bool,
        visible: Tensor | None = None,
        branch: Branch = run_whole,
    ) -> Tensor:
        transformer, condition = self.transformer, step.condition
        if set(step.guidance.layers) - {0, 1}:
            raise ValueError(f"this model is guided at its logits alone (layer 0), not at layers {step.guidance.layers}")
        x = transformer.embed(tokens, step.positions.scale, condition, len(step.schedule))
        head_dim = transformer.config.head_dim
        if tokens is None:
            tables = prompt_rotation(condition.places, head_dim)
        else:
            tables = picture_rotation(step.positions, step.schedule, condition.offset, head_dim)
        if visible is None and self.passes > 1 and branch is run_whole and _is_whole_last_scale(step):
            visible = self._visible_in_passes(step)
        x = transformer(x, Pass(*tables, cache, store, visible, branch, kernels=self.kernels))
        return x[:, -1:] if tokens is None else x

    def draw_order(self, step: Step) -> Tensor:
        """(B, N) a random order of the last scale's tokens; passes take them from its end."""
        return bit_noise(step.seeds, step.positions, 1)[..., 0].argsort(dim=1)

    def _visible_in_passes(self, step: Step) -> Tensor:
        """(R, N, N) bool: a token sees those of its own pass and of earlier ones.

        Nothing that a pass draws goes into the next one's input, so all of them can run at once.
        """
        number = pass_of(self.draw_order(step), self.passes).repeat(2 if step.condition.guided else 1, 1)
        return number[:, :, None] >= number[:, None, :]

    def logits(self, hidden: Tensor, step: Step, tau: float | tuple[float, ...]) -> Tensor:
        """Logits (B, N, V) after guidance and temperature."""
        scales, condition, scale = len(step.schedule), step.condition, step.positions.scale[0]
        if condition.guided and 0 in step.guidance.layers:
            t = strengths(step.guidance, scales, self.device)[scale][:, None]
            positive, negative = self.transformer.logits(hidden, condition).chunk(2)
            logits = (1 + t) * positive - t * negative
        else:
            logits = self.transformer.logits(hidden[: condition.batch], condition.unguided())
        return logits / torch.tensor(per_scale(tau, scales, "tau"), device=self.device)[scale][:, None]

    def sample(self, hidden: Tensor, step: Step, sampling: Sampling, seeds: Sequence[int], noise: Noise = bit_noise) -> Tensor:
        drawn = []
        for first in range(0, hidden.shape[1], CHUNK):
            part = _columns(step, slice(first, first + CHUNK))
            entries = noise(seeds, part.positions, self._entries(part))
            drawn.append(self._draw(hidden[:, first : first + CHUNK], part, sampling, entries))
        return torch.cat(drawn, dim=1)

    def _entries(self, step: Step) -> int:
        """How much noise a token takes: for its code, for every code in the mix, and for the residual where there is one."""
        config = self.transformer.config
        residual = (config.diffusion_steps + 1) * config.channels if _last(step).any() else 0
        return 1 + config.codes + residual

    def _draw(self, hidden: Tensor, step: Step, sampling: Sampling, noise: Tensor) -> Tensor:
        """Token vectors (B, N, c) from hidden states (R, N, C) and uniform noise (B, N, entries)."""
        logits = self.logits(hidden, step, sampling.tau)
        if not torch.isfinite(logits).all():
            raise ValueError(NOT_NUMBERS)
        logits = truncate(logits, most_codes(step.positions, sampling.top_k), sampling.top_p)
        codes, book = draw_code(logits, noise[..., 0]), self.vae.quantize.codebook
        tokens = book[codes]
        if self.smooth:
            ratio = progress(len(step.schedule), self.device)[step.positions.scale[0]]
            tokens = soft_mix(logits, ratio, exponential(noise[..., 1 : 1 + len(book)])) @ book
        last = _last(step).nonzero()[:, 0]
        if self.residual and len(last):
            rest = normal(noise[:, last, 1 + len(book) :])
            tokens[:, last] += self.draw_residual(hidden[:, last], codes[:, last], step, rest)
        return tokens

    def draw_residual(self, hidden: Tensor, codes: Tensor, step: Step, noise: Tensor) -> Tensor:
        """Residuals (B, N, c) of the last scale's tokens.

        Args:
            hidden: (R, N, C); codes: (B, N) their drawn codes.
            noise: (B, N, (S + 1) * c) of the normal distribution, for the start and then every diffusion step.
        """
        condition, config = step.condition, self.transformer.config
        z = self.transformer.residual_condition(hidden, self.vae.quantize.codebook[codes]).flatten(0, 1)
        guided = condition.guided and 0 in step.guidance.layers
        positive, negative = z[: codes.numel()], z[codes.numel() :]
        w = strengths(step.guidance, len(step.schedule))[-1].item()
        noise = noise.flatten(0, 1).unflatten(-1, (-1, config.channels)).transpose(0, 1)
        steps, net = DiffusionSteps.of(config.diffusion_steps), self.transformer.diffloss["net"]
        return draw_residual(net, steps, positive, negative if guided else None, w, noise).unflatten(0, codes.shape)

    def codes(self, tokens: Tensor) -> Tensor:
        return tokens

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        grid, full = schedule.grids[scale], schedule.grids[-1]
        image = codes.transpose(1, 2).unflatten(2, grid)
        if scale == len(schedule) - 1:
            return image
        added = self.vae.quantize.phi(enlarge(image, full), scale, len(schedule))
        if filled is None:
            return added
        # Bicubic weights and phi's bias reach beyond the drawn cells; what was not drawn must stay as it is.
        region = F.interpolate(filled.unflatten(1, grid)[:, None].float(), size=tuple(full), mode="nearest-exact")
        return added * region

    def decode(self, total: Tensor) -> Tensor:
        return decode_as_fits(self.vae.decode, total.to(self.vae.post_quant_conv.weight)).float()


def _last(step: Step) -> Tensor:
    """(N,) bool: tokens of the last scale.  Every picture's sequence lists the scales alike."""
    return step.positions.scale[0] == len(step.schedule) - 1


def _is_whole_last_scale(step: Step) -> bool:
    h, w = step.schedule.grids[-1]
    return len(step.positions) == h * w and bool(_last(step).all())


def _columns(step: Step, part: slice) -> Step:
    """Some of the tokens of a step."""
    places = (step.positions.scale, step.positions.row, step.positions.col)
    return Step(Positions(*(place[:, part] for place in places)), step.schedule, step.condition, step.guidance, step.seeds)
