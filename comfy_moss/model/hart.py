"""HART's transformer: the prompt stands before the picture in one sequence, and every token gets one of V codes.

Shapes: B pictures, R rows (2B when guided), T slots of the prompt, N tokens, C width, c channels of a token, V codes.
Parameter names are those of the released file.  Facts: HART specification, sections 3 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Pass
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
        context: (R, T, C) embedded slots of the prompts, the input of scale 0.
        places: (R, T) position id of every slot.
        scale, shift: (R, 1, C) modulation of the head.
        batch: B, number of pictures; R = 2B when guided, else B.
    """

    context: Tensor
    places: Tensor
    scale: Tensor
    shift: Tensor
    batch: int

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""
        return len(self.context) > self.batch

    @property
    def offset(self) -> Tensor:
        """(R,) position of the last slot, from where the picture's positions count on."""
        return self.places[:, -1]

    def unguided(self) -> HartCondition:
        """The prompts' rows alone."""
        n = self.batch
        return HartCondition(self.context[:n], self.places[:n], self.scale[:n], self.shift[:n], n)


class Norm(nn.RMSNorm):
    """In float32, whatever its gains are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps)


class SelfAttention(nn.Module):
    """Attention over everything drawn so far, at a quarter of the usual sharpness; or cosine attention with learned scales."""

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

    def forward(self, x: Tensor, layer: int, step: Pass, keep: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv_proj.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (R, H, N, D)
        if self.cosine:
            q = F.normalize(q.float(), dim=-1) * self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
            k = F.normalize(k.float(), dim=-1)
        cos, sin = step.rotary(keep)
        q, k = (rotate(part, cos, sin).to(x.dtype) for part in (q, k))
        if places := step.places(layer, x.shape[1]):
            k, v = places[0].copy_(k), places[1].copy_(v)
        scale = 1.0 if self.cosine else self.sharpness
        out = step.kernels.cross_scale_attention(q, step.context(layer, k, v), step.visible, scale)
        return self.proj(out.transpose(1, 2).flatten(2))


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
    """Self-attention and feed-forward behind one and the same norm, as residual branches that FastVAR may run on fewer tokens."""

    def __init__(self, config: HartConfig) -> None:
        super().__init__()
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(config.width, config.hidden)
        self.ln_wo_grad = Norm(config.width, eps=config.eps)

    def forward(self, x: Tensor, layer: int, step: Pass) -> Tensor:
        dtype = self.attn.q_bias.dtype  # the weights', while x is float32

        def attend(x: Tensor, keep: Tensor | None) -> Tensor:
            return self.attn(self.ln_wo_grad(x).to(dtype), layer, step, keep)

        def feed_forward(x: Tensor, keep: Tensor | None) -> Tensor:
            return self.ffn(self.ln_wo_grad(x).to(dtype))

        x = step.residual(layer, "sa", x, attend)
        return step.residual(layer, "ffn", x, feed_forward)


class HartTransformer(nn.Module):
    """The network.  Matrices of the blocks and the diffusion may be in a lower precision; the residual stream stays float32."""

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

    def condition(self, positive: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> HartCondition:
        """Prepare the prompts.

        Args:
            positive: B text features, each (T, text width + 1); the last number of a slot is its position id.
            negative: B features of negative prompts, or None for zeros, which the model knows as no text.
            guided: add the unconditional rows.

        Raises:
            ValueError: features of another shape.
        """
        shape = (self.config.text_length, self.config.text_width + 1)
        rows = list(positive)
        if guided:
            rows += negative if negative is not None else [torch.zeros(shape)] * len(positive)
        if other := next((tuple(row.shape) for row in rows if row.shape != shape), None):
            raise ValueError(
                f"this model reads text of {shape[0]} slots of {shape[1]} numbers and got {other}; encode one prompt for it"
            )
        text = torch.stack([row.to(self.word_embed.weight) for row in rows])
        context = self.context_embed(self.context_norm(text[..., :-1]))
        pooled = context.amax(dim=1, keepdim=True)  # over all slots, the empty ones too
        scale, shift = self.head_nm["ada_lin"](pooled).chunk(2, dim=-1)
        return HartCondition(context, text[..., -1], scale, shift, len(positive))

    def levels(self, scales: int) -> Tensor:
        """(S, C): what tells tokens their scale."""
        return self.lvl_embed(torch.arange(scales, device=self.word_embed.weight.device))

    def embed(self, tokens: Tensor | None, scale: Tensor, condition: HartCondition, scales: int) -> Tensor:
        """Input of block 0, (R, N, C), or (R, T, C) of the prompt, which stands in for scale 0.

        Args:
            tokens: (B, N, c) sum of codes at each token's place; None for scale 0.
            scale: (B or 1, N) scale of every token.
        """
        levels = self.levels(scales)
        if tokens is None:
            return condition.context + levels[0]
        x = self.word_embed(tokens) + levels[scale]
        return x.repeat(2 if condition.guided else 1, 1, 1)

    def forward(self, x: Tensor, step: Pass) -> Tensor:
        """Run all blocks over x (R, N, C)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, step)
        return x

    def logits(self, x: Tensor, condition: HartCondition) -> Tensor:
        """Hidden (R, N, C) -> (R, N, V)."""
        normed = self.head_nm["ln_wo_grad"](x.float())
        return self.head(normed * (1 + condition.scale) + condition.shift)

    def residual_condition(self, x: Tensor, codes: Tensor) -> Tensor:
        """What the diffusion is told: hidden (R, N, C) and the drawn codes (B, N, c) -> (R, N, C)."""
        drawn = self.word_embed(codes)
        return self.decoder_norm(x.float() + drawn.repeat(len(x) // len(drawn), 1, 1))
