"""HART's transformer: the prompt stands before the picture in one sequence; every token gets one of V codes.

Shapes: B pictures, R rows (2B when guided), T text tokens, N tokens, C width, H heads, D = C / H, c channels
of a token, V codes.  Parameter names are those of the released file.
Facts: docs/hart.md, sections 3 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .backbone import Pass, PositionedText, Text
from .hart_head import DiffusionNet, SinusoidEmbedding
from .rope import rotate

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


class Norm(nn.RMSNorm):
    """In float32, whatever its gains are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)


class SelfAttention(nn.Module):
    """Attention over everything drawn so far, at a quarter of the usual sharpness; or cosine attention."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        width, self.heads, self.sharpness = config.width, config.heads, SHARPNESS / math.sqrt(config.head_dim)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.cosine = config.cosine
        if config.cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4.0)))

    def forward(self, x: Tensor, layer: int, now: Pass, picked: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv_proj.weight, bias)
        q, k, v = rearrange(qkv, "r n (three h d) -> three r h n d", three=3, h=self.heads)
        if self.cosine:
            q = F.normalize(q.float(), dim=-1) * self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
            k = F.normalize(k.float(), dim=-1)
        cos, sin = now.rotary(picked)
        q, k = (rotate(part, cos, sin).to(x.dtype) for part in (q, k))
        scale = 1.0 if self.cosine else self.sharpness
        out = now.kernels.cross_scale_attention(q, now.context(layer, k, v), now.step.visible, scale)
        return self.proj(rearrange(out, "r h n d -> r n (h d)"))


class FeedForward(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Self-attention and feed-forward behind one and the same norm, each a residual branch."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config.width, config.hidden)
        self.ln_wo_grad = Norm(config.width, eps=config.eps)

    def forward(self, x: Tensor, layer: int, now: Pass) -> Tensor:
        """x (R, N, C), the residual stream, in float32; the weights may be of a lower precision."""
        dtype = self.attn.q_bias.dtype
        part, picked = now.pick(layer, "sa", x)
        x = now.add(layer, "sa", x, self.attn(self.ln_wo_grad(part).to(dtype), layer, now, picked), picked)
        part, picked = now.pick(layer, "ffn", x)
        return now.add(layer, "ffn", x, self.ffn(self.ln_wo_grad(part).to(dtype)), picked)


class HartTransformer(nn.Module):
    """The network.  Matrices of blocks and diffusion may be in a lower precision than the residual stream."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.context_norm = Norm(config.text_width, eps=config.eps) if config.context_norm else nn.Identity()
        self.context_embed = nn.Linear(config.text_width, width)
        self.word_embed = nn.Linear(config.channels, width)
        self.lvl_embed = SinusoidEmbedding(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head_nm = nn.ModuleDict({"ln_wo_grad": Norm(width, eps=config.eps), "ada_lin": modulation})
        self.head = nn.Linear(width, config.codes)
        self.decoder_norm = Norm(width, eps=config.eps)
        net = DiffusionNet(config.channels, width, config.diffusion_width, config.diffusion_depth)
        self.diffloss = nn.ModuleDict({"net": net})

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
        like = self.word_embed.weight
        context = self.context_embed(self.context_norm(torch.stack([row.features.to(like) for row in rows])))
        positions = torch.stack([row.positions.to(like) for row in rows])
        pooled = context.amax(dim=1, keepdim=True)  # over all of them, the padding too
        scale, shift = self.head_nm["ada_lin"](pooled).chunk(2, dim=-1)
        return HartCondition(context, positions, scale, shift, len(positive))

    def levels(self, scales: int) -> Tensor:
        """(S, C): what tells tokens their scale."""
        return self.lvl_embed(torch.arange(scales, device=self.word_embed.weight.device))

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
