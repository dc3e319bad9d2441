"""HART behind the pipeline's Backbone interface: transformer, residual diffusion and tokenizer together.

A drawn token is its vector of c numbers: a mix of codes, at the last scale with the diffusion's residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..ops import TORCH, Kernels
from .backbone import HART, Pass, PositionedText, Published, Step, TokenWork
from .cache import KVCache
from .hart import HartCondition, HartTransformer
from .hart_head import (
    DiffusionSchedule,
    draw_code,
    draw_residual,
    exponential,
    guidance_weights,
    gumbel_softmax,
    normal,
    pass_of,
    progress,
    top_k_of,
    top_k_top_p,
)
from .quantize import downsample, upsample
from .rope import picture_rotation, prompt_rotation
from .sampling import bit_noise, check_finite
from .schedule import Grid, Schedule
from .vae import Tokenizer, decode_as_fits

CHUNK = 1024  # tokens whose logits and noise, a number for every code, are in memory at once


@dataclass(frozen=True)
class HartBackbone:
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        smooth: tokens are mixes of codes, as released; off = single codes.
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
        return self.transformer.config.text_width

    @property
    def work(self) -> TokenWork:
        depth, width, hidden = self.depth, self.width, self.transformer.config.hidden
        matrices = 4 * width**2 + 3 * width * hidden  # 3 qkv, out; gate, up, down
        return TokenWork(float(depth * matrices), float(2 * width * depth), self._prefix)

    @property
    def _prefix(self) -> int:
        """Tokens in the cache beside the picture's: the prompt takes the place of scale 0."""
        return self.transformer.config.text_length - 1

    @property
    def _dtype(self) -> torch.dtype:
        """Of the blocks, and so of keys and values."""
        return self.transformer.blocks[0].attn.q_bias.dtype

    @property
    def channels(self) -> int:
        return self.vae.config.channels

    @property
    def stride(self) -> int:
        return self.vae.config.stride

    def map_grid(self, grid: Grid) -> Grid:
        return tuple(grid)

    def is_empty(self, text: PositionedText) -> bool:
        return bool((text.positions < 0).all())  # all of it is padding

    def condition(
        self, text: Sequence[PositionedText], negative: Sequence[PositionedText] | None, guided: bool
    ) -> HartCondition:
        return self.transformer.condition(text, negative, guided)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        return 2 * rows * (tokens + self._prefix) * self.width * self.depth * self._dtype.itemsize

    def new_cache(self, condition: HartCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        capacity = [tokens + self._prefix for tokens in capacity]
        return KVCache(
            capacity, len(condition.context), config.heads, config.head_dim, self._dtype, self.device
        )

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return rearrange(downsample(total, grid), "b c h w -> b (h w) c")

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        condition, head_dim = step.condition, self.transformer.config.head_dim
        if set(step.guidance.layers) - {0, 1}:
            raise ValueError(
                f"this model is guided at its logits alone (layer 0), not at layers {step.guidance.layers}"
            )
        x = self.transformer.embed(tokens, step.positions.scale, condition, len(step.schedule))
        if tokens is None:
            tables = prompt_rotation(condition.positions, head_dim)
            return self.transformer(x, Pass(step, *tables, kernels=self.kernels))[:, -1:]
        if self.passes > 1 and step.visible is None and step.branch is None and _is_whole_last_scale(step):
            step = replace(step, visible=self._visible_in_passes(step))
        tables = picture_rotation(step.positions, step.schedule, condition.offset, head_dim)
        return self.transformer(x, Pass(step, *tables, kernels=self.kernels))

    def draw_order(self, step: Step) -> Tensor:
        """(B, N) a random order of the last scale's tokens; passes take them from its end."""
        return bit_noise(step.seeds, step.positions, 1)[..., 0].argsort(dim=1)

    def _visible_in_passes(self, step: Step) -> Tensor:
        """(R, N, N) bool: a token sees those of its own pass and of earlier ones.

        Nothing that a pass draws goes into the next one's input, so all of them can run at once.
        """
        number = pass_of(self.draw_order(step), self.passes).repeat(2 if step.condition.guided else 1, 1)
        return number[:, :, None] >= number[:, None, :]

    def logits(self, hidden: Tensor, step: Step) -> Tensor:
        """Logits (B, N, V) after guidance and temperature."""
        scales, condition, scale = len(step.schedule), step.condition, step.positions.scale[0]
        tau = step.sampling.tau_at(step.positions, scales)
        if not condition.guided or 0 not in step.guidance.layers:
            return self.transformer.logits(hidden[: condition.batch], condition.unguided()) / tau
        t = guidance_weights(step.guidance, scales, self.device)[scale][:, None]
        positive, negative = self.transformer.logits(hidden, condition).chunk(2)
        return ((1 + t) * positive - t * negative) / tau

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        parts = [slice(first, first + CHUNK) for first in range(0, hidden.shape[1], CHUNK)]
        return torch.cat([self._draw(hidden[:, part], step.part(part)) for part in parts], dim=1)

    def noise_of(self, step: Step) -> Tensor:
        """Uniform noise (B, N, .): for a token's code, for every code in its mix, for its residual."""
        config = self.transformer.config
        residual = (config.diffusion_steps + 1) * config.channels if _last(step).any() else 0
        return bit_noise(step.seeds, step.positions, 1 + config.codes + residual)

    def _draw(self, hidden: Tensor, step: Step) -> Tensor:
        """Token vectors (B, N, c) from hidden states (R, N, C)."""
        logits, noise = self.logits(hidden, step), self.noise_of(step)
        check_finite(logits)
        logits = top_k_top_p(logits, top_k_of(step.positions, step.sampling.top_k), step.sampling.top_p)
        codes, book = draw_code(logits, noise[..., 0]), self.vae.quantize.codebook
        tokens = book[codes]
        if self.smooth:
            ratio = progress(len(step.schedule), self.device)[step.positions.scale[0]]
            tokens = gumbel_softmax(logits, ratio, exponential(noise[..., 1 : 1 + len(book)])) @ book
        last = _last(step).nonzero()[:, 0]
        if self.residual and len(last):
            rest = normal(noise[:, last, 1 + len(book) :])
            tokens[:, last] += self.draw_residual(hidden[:, last], codes[:, last], step, rest)
        return tokens

    def draw_residual(self, hidden: Tensor, codes: Tensor, step: Step, noise: Tensor) -> Tensor:
        """Residuals (B, N, c) of the last scale's tokens.

        Args:
            hidden: (R, N, C); codes: (B, N) their drawn codes.
            noise: (B, N, (S + 1) * c) of the normal distribution: the start, then every diffusion step.
        """
        condition, config = step.condition, self.transformer.config
        z = self.transformer.residual_condition(hidden, self.vae.quantize.codebook[codes]).flatten(0, 1)
        guided = condition.guided and 0 in step.guidance.layers
        positive, negative = z[: codes.numel()], z[codes.numel() :]
        w = guidance_weights(step.guidance, len(step.schedule))[-1].item()
        noise = rearrange(noise, "b n (s c) -> s (b n) c", c=config.channels)
        schedule, net = DiffusionSchedule.of(config.diffusion_steps), self.transformer.diffloss["net"]
        residual = draw_residual(net, schedule, positive, negative if guided else None, w, noise)
        return rearrange(residual, "(b n) c -> b n c", b=len(codes))

    def codes(self, tokens: Tensor) -> Tensor:
        return tokens

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        grid, full = schedule.grids[scale], schedule.grids[-1]
        image = rearrange(codes, "b (h w) c -> b c h w", h=grid[0])
        if scale == len(schedule) - 1:
            return image
        added = self.vae.quantize.phi(upsample(image, full), scale, len(schedule))
        if filled is None:
            return added
        # Bicubic weights and phi's bias reach beyond the drawn cells; what was not drawn must stay as it is.
        region = rearrange(filled.float(), "b (h w) -> b 1 h w", h=grid[0])
        region = F.interpolate(region, size=tuple(full), mode="nearest-exact")
        return added * region

    def decode(self, total: Tensor) -> Tensor:
        return decode_as_fits(self.vae.decode, total.to(self.vae.post_quant_conv.weight)).float()


def _last(step: Step) -> Tensor:
    """(N,) bool: tokens of the last scale.  Every picture's sequence lists the scales alike."""
    return step.positions.scale[0] == len(step.schedule) - 1


def _is_whole_last_scale(step: Step) -> bool:
    h, w = step.schedule.grids[-1]
    return len(step.positions) == h * w and bool(_last(step).all())
