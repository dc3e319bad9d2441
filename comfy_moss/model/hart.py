"""HART's transformer: the prompt stands before the picture in one sequence; every token gets one of V codes.

Shapes: B pictures, R rows (2B when guided), T text tokens, N tokens, C width, H heads, D = C / H, c channels
of a token, V codes.  Parameter names are those of the released file.
Facts: docs/hart.md, sections 3 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..ops import TORCH, Kernels
from .backbone import HART, Pass, PositionedText, Published, Sized, Step, Text, TokenWork
from .cache import KVCache, token_bytes
from .graphs import Graphs
from .hart_head import (
    DiffusionNet,
    DiffusionSchedule,
    SinusoidEmbedding,
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
from .layers import PackedBias, device_of
from .memory import FLOAT
from .quantize import downsample, upsample
from .rope import behind_prompt, coordinate_rotation, prompt_rotation, rotate
from .sampling import look_up
from .schedule import Grid, Schedule
from .tiny_decoder import TinyDecoder
from .vae import Tokenizer

MAX_LOG_SCALE = math.log(100)
SHARPNESS = 0.25  # of attention, times 1 / sqrt(D)


@dataclass(frozen=True)
class HartConfig:
    """Sizes of a model."""

    depth: int
    width: int  # C
    heads: int
    hidden: int  # of the feed-forward
    codes: int  # V
    channels: int  # c
    text_width: int
    text_length: int  # T
    sides: tuple[int, ...]  # of the square scales, coarsest first
    diffusion_width: int
    diffusion_depth: int
    diffusion_steps: int = 8
    eps: float = 1e-6
    context_norm: bool = True  # whether text features are normalised
    cosine: bool = False  # whether heads have learned scales

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class HartCondition:
    """What the prompts say, ready for the transformer.

    Attributes:
        context: (R, T, C) embedded text of the prompts, the input of scale 0.
        positions: (R, T) position of every text token.
        scale, shift: (R, 1, C) modulation of the head.
        batch: B, number of pictures; R = 2B when guided, else B.
    """

    context: Tensor
    positions: Tensor
    scale: Tensor
    shift: Tensor
    batch: int
    given = ()

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""
        return len(self.context) > self.batch

    @property
    def offset(self) -> Tensor:
        """(R,) position of the last text token, from where the picture's positions count on."""
        return self.positions[:, -1]

    def unguided(self) -> HartCondition:
        """The prompts' rows alone."""
        n = self.batch
        return HartCondition(self.context[:n], self.positions[:n], self.scale[:n], self.shift[:n], n)


def _described(text: Text) -> tuple[int, ...] | str:
    if isinstance(text, PositionedText):
        return tuple(text.features.shape)
    return f"{tuple(text.shape)} without positions"


class SelfAttention(PackedBias):
    """Attention over everything drawn so far, at a quarter of the usual sharpness; or cosine attention."""

    def __init__(self, config: HartConfig, operations: Any) -> None:
        super().__init__()
        width, self.heads, self.sharpness = config.width, config.heads, SHARPNESS / math.sqrt(config.head_dim)
        self.qkv_proj = operations.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = operations.Linear(width, width)
        self.cosine = config.cosine
        if config.cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4.0)))

    @property
    def packed(self) -> nn.Module:
        return self.qkv_proj

    def forward(self, x: Tensor, layer: int, now: Pass, picked: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.project(x), "r n (three h d) -> three r h n d", three=3, h=self.heads)
        if self.cosine:
            scale = self.scale_mul_1H11.to(x.device, torch.float32).clamp_max(MAX_LOG_SCALE).exp()
            q = F.normalize(q.float(), dim=-1) * scale
            k = F.normalize(k.float(), dim=-1)
        cos, sin = now.rotary(picked)
        q, k = (rotate(part, cos, sin).to(x.dtype) for part in (q, k))
        scale = 1.0 if self.cosine else self.sharpness
        out = now.kernels.cross_scale_attention(q, now.context(layer, k, v), now.step.visible, scale)
        return self.proj(rearrange(out, "r h n d -> r n (h d)"))


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, hidden: int, operations: Any) -> None:
        super().__init__()
        self.gate_proj = operations.Linear(width, hidden, bias=False)
        self.up_proj = operations.Linear(width, hidden, bias=False)
        self.down_proj = operations.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Self-attention and feed-forward behind one and the same norm, which is float32, each a residual branch.
    """

    def __init__(self, config: HartConfig, operations: Any) -> None:
        super().__init__()
        self.attn = SelfAttention(config, operations)
        self.ffn = FeedForward(config.width, config.hidden, operations)
        self.ln_wo_grad = operations.RMSNorm(config.width, eps=config.eps)

    def forward(self, x: Tensor, layer: int, now: Pass) -> Tensor:
        """x (R, N, C), the residual stream, in float32; the weights may be of a lower precision."""
        dtype = self.attn.proj.bias.dtype
        part, picked = now.pick(layer, "sa", x)
        x = now.add(layer, "sa", x, self.attn(self.ln_wo_grad(part).to(dtype), layer, now, picked), picked)
        part, picked = now.pick(layer, "ffn", x)
        return now.add(layer, "ffn", x, self.ffn(self.ln_wo_grad(part).to(dtype)), picked)


class HartTransformer(nn.Module):
    """The network.  Matrices of blocks and diffusion may be in a lower precision than the residual stream.

    Args:
        operations: classes of the layers, see `layers`.
    """

    def __init__(self, config: HartConfig, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        width, linear, eps = config.width, operations.Linear, config.eps
        norm = operations.RMSNorm(config.text_width, eps=eps) if config.context_norm else nn.Identity()
        self.context_norm = norm
        self.context_embed = linear(config.text_width, width)
        self.word_embed = linear(config.channels, width)
        self.lvl_embed = SinusoidEmbedding(width, operations)
        self.blocks = nn.ModuleList(Block(config, operations) for _ in range(config.depth))
        modulation = nn.Sequential(nn.SiLU(), linear(width, 2 * width))
        norm = operations.RMSNorm(width, eps=eps)
        self.head_nm = nn.ModuleDict({"ln_wo_grad": norm, "ada_lin": modulation})
        self.head = linear(width, config.codes)
        self.decoder_norm = operations.RMSNorm(width, eps=eps)
        sizes = (config.channels, width, config.diffusion_width, config.diffusion_depth)
        self.diffloss = nn.ModuleDict({"net": DiffusionNet(*sizes, operations)})

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in."""
        return self.blocks[0].attn.proj.bias.dtype

    def condition(
        self, positive: Sequence[PositionedText], negative: Sequence[PositionedText] | None, guided: bool
    ) -> HartCondition:
        """Prepare the prompts.

        Args:
            positive: B prompts: features (T, text width) with positions.
            negative: B negative prompts, or None for zeros, which the model knows as no text.
            guided: add the unconditional rows.

        Raises:
            ValueError: features of another shape.
        """
        shape = (self.config.text_length, self.config.text_width)
        rows = list(positive)
        if guided:
            nothing = PositionedText(torch.zeros(shape), torch.zeros(shape[0]))
            rows += negative if negative is not None else [nothing] * len(positive)
        if other := next((got for got in map(_described, rows) if got != shape), None):
            raise ValueError(
                f"this model reads text of {shape[0]} tokens of {shape[1]} numbers and got {other}; "
                "encode one prompt for it"
            )
        like = (device_of(self), self.word_embed.bias.dtype)
        context = self.context_embed(self.context_norm(torch.stack([row.features.to(*like) for row in rows])))
        positions = torch.stack([row.positions.to(*like) for row in rows])
        pooled = context.amax(dim=1, keepdim=True)  # over all of them, the padding too
        scale, shift = self.head_nm["ada_lin"](pooled).chunk(2, dim=-1)
        return HartCondition(context, positions, scale, shift, len(positive))

    def levels(self, scales: int) -> Tensor:
        """(S, C): what tells tokens their scale."""
        return self.lvl_embed(torch.arange(scales, device=device_of(self)))

    def embed(self, tokens: Tensor | None, scale: Tensor, condition: HartCondition, scales: int) -> Tensor:
        """Input of block 0, (R, N, C), or (R, T, C) of the prompt, which stands in for scale 0.

        Args:
            tokens: (B, N, c) sum of codes at each token's position; None for scale 0.
            scale: (B or 1, N) scale of every token.
        """
        levels = self.levels(scales)
        if tokens is None:
            return condition.context + levels[0]
        x = self.word_embed(tokens) + levels[scale]
        return repeat(x, "b n c -> (twin b) n c", twin=2 if condition.guided else 1)

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        """Run all blocks over x (R, N, C)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, now)
        return x

    def logits(self, x: Tensor, condition: HartCondition) -> Tensor:
        """Hidden (R, N, C) -> (R, N, V)."""
        normed = self.head_nm["ln_wo_grad"](x.float())
        return self.head(normed * (1 + condition.scale) + condition.shift)

    def residual_condition(self, x: Tensor, codes: Tensor) -> Tensor:
        """What the diffusion is told: hidden (R, N, C) and the drawn codes (B, N, c) -> (R, N, C)."""
        drawn = self.word_embed(codes)
        return self.decoder_norm(x.float() + drawn.repeat(len(x) // len(drawn), 1, 1))


# --- the backbone -------------------------------------------------------------------------------------------

# HART behind the pipeline's Backbone interface: transformer, residual diffusion and tokenizer together.
#
# A drawn token is its vector of c numbers: a mix of codes, at the last scale with the diffusion's residual.

CHUNK = 1024  # tokens whose logits and noise, a number for every code, are in memory at once
DRAWING = 32  # bytes a token, row and code that drawing takes at most, roughly: logits, noise, their sort


@dataclass(frozen=True)
class HartBackbone(Sized):
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        graphs: replays the passes of a picture that are like an earlier one's; None = every kernel by itself.
        tiny: decodes in the codec's place: quicker, and not as well; None = the codec.
        int8_cache: keep keys and values in 8 bits, see `KVCache`.
        smooth: tokens are mixes of codes, as released; off = single codes.
        residual: the last scale's tokens get the diffusion's residual, as released.
        passes: in how many passes (MaskGIT) the last scale is drawn when it is drawn whole; 1 as released.
    """

    transformer: HartTransformer
    vae: Tokenizer
    model_id: str = ""
    kernels: Kernels = field(default=TORCH, kw_only=True)
    graphs: Graphs | None = field(default=None, kw_only=True)
    tiny: TinyDecoder | None = field(default=None, kw_only=True)
    int8_cache: bool = field(default=False, kw_only=True)
    smooth: bool = field(default=True, kw_only=True)
    residual: bool = field(default=True, kw_only=True)
    passes: int = field(default=1, kw_only=True)
    inner: ClassVar[int] = 3  # gate, up and their product

    @property
    def published(self) -> Published:
        return HART

    @property
    def device(self) -> torch.device:
        return device_of(self.transformer)

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
        return self.transformer.dtype

    def map_grid(self, grid: Grid) -> Grid:
        return tuple(grid)

    def is_empty(self, text: PositionedText) -> bool:
        return bool((text.positions < 0).all())  # all of it is padding

    def condition(
        self,
        text: Sequence[PositionedText],
        negative: Sequence[PositionedText] | None,
        guided: bool,
        schedule: Schedule,
    ) -> HartCondition:
        return self.transformer.condition(text, negative, guided)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        config = self.transformer.config
        each = token_bytes(config.heads, config.head_dim, self._dtype, self.int8_cache)
        return rows * (tokens + self._prefix) * self.depth * each

    def new_cache(self, condition: HartCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        capacity = [tokens + self._prefix for tokens in capacity]
        make = self.graphs.new_cache if self.graphs else KVCache
        sizes = len(condition.context), config.heads, config.head_dim
        return make(capacity, *sizes, self._dtype, self.device, self.int8_cache)

    def condition_bytes(self, rows: int, text: int) -> int:
        return rows * self.transformer.config.text_length * self.width * FLOAT

    def pass_bytes(self, rows: int, tokens: int, past: int, stored: bool) -> int:
        choosing = rows * min(tokens, CHUNK) * self.transformer.config.codes * DRAWING
        return max(super().pass_bytes(rows, tokens, past, stored), choosing)

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return rearrange(downsample(total, grid), "b c h w -> b (h w) c")

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        condition, head_dim = step.condition, self.transformer.config.head_dim
        if set(step.guidance.layers) - {0, 1}:
            raise ValueError(
                f"this model is guided at its logits alone (layer 0), not at layers {step.guidance.layers}"
            )
        x = self.transformer.embed(tokens, step.positions.scale, condition, len(step.schedule))
        run = partial(self.graphs.run, self.transformer) if self.graphs else self.transformer
        if tokens is None:
            tables = prompt_rotation(condition.positions, head_dim)
            return run(x, Pass(step, *tables, kernels=self.kernels))[:, -1:]
        if self.passes > 1 and step.visible is None and step.branch is None and _is_whole_last_scale(step):
            step = replace(step, visible=self._visible_in_passes(step))
        tables = coordinate_rotation(*behind_prompt(*step.coordinates(), condition.offset), head_dim)
        return run(x, Pass(step, *tables, kernels=self.kernels))

    def draw_order(self, step: Step) -> Tensor:
        """(B, N) a random order of the last scale's tokens; passes take them from its end."""
        return step.noise(1)[..., 0].argsort(dim=1)

    def _visible_in_passes(self, step: Step) -> Tensor:
        """(R, N, N) bool: a token sees those of its own pass and of earlier ones.

        Nothing that a pass draws goes into the next one's input, so all of them can run at once.
        """
        number = pass_of(self.draw_order(step), self.passes).repeat(2 if step.condition.guided else 1, 1)
        return number[:, :, None] >= number[:, None, :]

    def logits(self, hidden: Tensor, step: Step) -> Tensor:
        """Logits (B, N, V) after guidance and temperature."""
        scales, condition = len(step.schedule), step.condition
        tau = step.sampling.tau_at(step.positions, scales)
        if not condition.guided or 0 not in step.guidance.layers:
            return self.transformer.logits(hidden[: condition.batch], condition.unguided()) / tau
        t = look_up(guidance_weights(step.guidance, scales).tolist(), step.positions)
        positive, negative = self.transformer.logits(hidden, condition).chunk(2)
        return ((1 + t) * positive - t * negative) / tau

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        parts = [slice(first, first + CHUNK) for first in range(0, hidden.shape[1], CHUNK)]
        return torch.cat([self._draw(hidden[:, part], step.part(part)) for part in parts], dim=1)

    def noise_of(self, step: Step) -> Tensor:
        """Uniform noise (B, N, .): for a token's code, for every code in its mix, for its residual."""
        config = self.transformer.config
        finest = _last_tokens(step)
        residual = (config.diffusion_steps + 1) * config.channels if finest.start < finest.stop else 0
        return step.noise(1 + config.codes + residual)

    def _draw(self, hidden: Tensor, step: Step) -> Tensor:
        """Token vectors (B, N, c) from hidden states (R, N, C)."""
        logits, noise = self.logits(hidden, step), self.noise_of(step)
        step.check_finite(logits)
        logits = top_k_top_p(logits, top_k_of(step.positions, step.sampling.top_k), step.sampling.top_p)
        codes, book = draw_code(logits, noise[..., 0]), self.vae.quantize.codebook.to(logits.device)
        tokens = book[codes]
        if self.smooth:
            ratio = look_up(progress(len(step.schedule)).tolist(), step.positions)[..., 0]
            tokens = gumbel_softmax(logits, ratio, exponential(noise[..., 1 : 1 + len(book)])) @ book
        last = _last_tokens(step)
        if self.residual and last.start < last.stop:
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
        book = self.vae.quantize.codebook.to(codes.device)
        z = self.transformer.residual_condition(hidden, book[codes]).flatten(0, 1)
        guided = condition.guided and 0 in step.guidance.layers
        positive, negative = z[: codes.numel()], z[codes.numel() :]
        w = float(guidance_weights(step.guidance, len(step.schedule))[-1])  # on the CPU
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
        if self.tiny is not None:
            return self.tiny.decode(total).float()
        return self.vae.decode(total.to(device_of(self.vae), self.vae.dtype), self.kernels).float()

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image.to(device_of(self.vae), self.vae.dtype)).float()

    def quantize(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        book = self.vae.quantize.codebook.to(features.device)
        codes, _, left = self.vae.quantize.quantize(features, [side for side, _ in schedule.grids])
        tokens = [book[numbers] for numbers in codes]
        if self.residual:  # the last scale's tokens are whole vectors: a code and what it leaves over
            tokens[-1] = rearrange(left, "b c h w -> b (h w) c")
        return tokens

    def bit_probability(self, hidden: Tensor, step: Step) -> Tensor:
        raise ValueError("this model draws codes of a codebook and has no bits to edit; use Infinity")


def _last_tokens(step: Step) -> slice:
    """The tokens of the last scale, which come last; none where start is stop."""
    runs = step.positions.told()
    inside = sum(count for scale, count in runs if scale == len(step.schedule) - 1)
    return slice(len(step.positions) - inside, len(step.positions))


def _is_whole_last_scale(step: Step) -> bool:
    h, w = step.schedule.grids[-1]
    return step.positions.told() == ((len(step.schedule) - 1, h * w),)
