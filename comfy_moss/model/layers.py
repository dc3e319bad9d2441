"""The transformer block of Infinity: cosine self-attention, text cross-attention, feed-forward, all adaLN-modulated.

Shapes: R rows (prompts, then unconditional twins), N tokens, C channels, H heads, D = C / H.
Parameter names are those of the released files.  Facts: Infinity specification, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import TORCH, Kernels, Segment
from .cache import KVCache

Update = Callable[[Tensor, Tensor | None], Tensor]  # (tokens, kept indices or None) -> residual update of those tokens
Branch = Callable[[int, str, Tensor, Update], Tensor]  # (layer, "sa" | "ca" | "ffn", x, update) -> update of all tokens


def run_whole(layer: int, kind: str, x: Tensor, update: Update) -> Tensor:
    """The plain way to run a residual branch: on all tokens."""
    return update(x, None)


@dataclass(frozen=True)
class Condition:
    """What the prompts say, ready for every layer.

    Attributes:
        pooled: (R, C) attention-pooled text, also the start token.
        modulation: (R, 6, C) shared adaLN vectors: gamma1, gamma2, scale1, scale2, shift1, shift2.
        text: per layer (k, v), each (R, H, T, D).
        text_mask: (R, 1, 1, T) bool, True on real tokens; None when all prompts have T tokens.
        batch: B, number of pictures; R = 2B when guided, else B.
    """

    pooled: Tensor
    modulation: Tensor
    text: tuple[tuple[Tensor, Tensor], ...]
    text_mask: Tensor | None
    batch: int

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""
        return self.pooled.shape[0] > self.batch

    def unguided(self) -> Condition:
        """The prompts' rows alone."""
        n = self.batch
        text = tuple((k[:n], v[:n]) for k, v in self.text)
        mask = self.text_mask if self.text_mask is None else self.text_mask[:n]
        return Condition(self.pooled[:n], self.modulation[:n], text, mask, n)


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


class SelfAttention(nn.Module):
    """Cosine attention: unit queries and keys, a learned scale a head, rotary positions, softmax scale 1."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layer: int, step: Pass, keep: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))  # (R, N, 3, H, D)
        places = step.places(layer, x.shape[1])
        q, k, v = step.kernels.cosine_rope2d(qkv, self.scale_mul_1H11.flatten(), *step.rotary(keep), places)
        out = step.kernels.cross_scale_attention(q, step.context(layer, k, v), step.visible)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention over the text; keys and values are made once a prompt by `text_kv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (R, T, C) -> keys and values (R, H, T, D)."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = F.linear(text.to(bias.dtype), self.mat_kv.weight, bias)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q = self.mat_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch that `Pass.branch` may run on fewer tokens."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.sa = SelfAttention(width, heads)
        self.ca_norm = nn.LayerNorm(width, eps=1e-6)
        self.ca = CrossAttention(width, heads)
        self.ffn = FeedForward(width, hidden)

    def forward(self, x: Tensor, layer: int, step: Pass, condition: Condition) -> Tensor:
        modulation = self.ada_gss + condition.modulation[:, None]  # (R, 1, 6, C)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        text_k, text_v = condition.text[layer]
        kernels, dtype = step.kernels, text_k.dtype  # the weights', while x is float32

        def self_attend(x: Tensor, keep: Tensor | None) -> Tensor:
            return self.sa(kernels.modulated_norm(x, scale1, shift1, dtype), layer, step, keep)

        def read_text(x: Tensor, keep: Tensor | None) -> Tensor:
            norm = self.ca_norm
            return self.ca(kernels.affine_norm(x, norm.weight, norm.bias, dtype, norm.eps), text_k, text_v, condition.text_mask)

        def feed_forward(x: Tensor, keep: Tensor | None) -> Tensor:
            return self.ffn(kernels.modulated_norm(x, scale2, shift2, dtype))

        x = step.residual(layer, "sa", x, self_attend, gamma1)
        x = step.residual(layer, "ca", x, read_text)
        return step.residual(layer, "ffn", x, feed_forward, gamma2)
