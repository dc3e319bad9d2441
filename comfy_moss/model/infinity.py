"""Infinity's transformer: text conditioning, blocks, and two logits for every bit of every token.

Shapes: B pictures, R rows (2B when guided), N tokens, C width, d bits a token, Ct text width.
Parameter names are those of the released files, with blocks numbered through.  Facts: Infinity specification, 1.2, 3, 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import modulated_norm
from .guidance import mix_rows
from .layers import Block, Condition, Pass


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of a transformer, all readable from its weights."""

    depth: int
    width: int  # C
    heads: int
    hidden: int  # of the feed-forward
    bits: int  # d
    text_width: int  # Ct
    text_heads: int  # of the attention pool
    text_length: int  # rows of the learned unconditional text
    levels: int  # rows of the level embedding

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Iterable[int]]) -> InfinityConfig:
        """Read the sizes from {canonical parameter name: shape}; `scale_mul_1H11` may be (1, H, 1, 1) or (1, 1, H, 1)."""
        size = {name: tuple(shape) for name, shape in shapes.items()}
        blocks = {int(m[1]) for m in map(re.compile(r"blocks\.(\d+)\.").match, size) if m}
        return cls(
            depth=max(blocks) + 1,
            width=size["pos_start"][-1],
            heads=max(size["blocks.0.sa.scale_mul_1H11"]),
            hidden=size["blocks.0.ffn.fc1.weight"][0],
            bits=size["word_embed.weight"][1],
            text_width=size["text_norm.weight"][0],
            text_heads=size["text_proj_for_sos.ca.mat_q"][1],
            text_length=size["cfg_uncond"][0],
            levels=size["lvl_embed.weight"][0],
        )


class TextPool(nn.Module):
    """One vector from a prompt: learned queries, one a head, attend over its tokens."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        width, heads = config.width, config.text_heads
        self.mat_q = nn.Parameter(torch.zeros(1, heads, width // heads))
        self.mat_kv = nn.Linear(config.text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """Text (R, T, Ct) -> (R, C)."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = F.linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.mat_q.shape[1], -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # (R, heads, T, C / heads)
        q = self.mat_q.unsqueeze(2).expand(len(text), -1, -1, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1))


class AdaLinear(nn.Sequential):
    """SiLU, then a linear map to `count` modulation vectors: (R, C) -> (R, count, C)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, count * width))
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unflatten(-1, (self.count, -1))


class InfinityTransformer(nn.Module):
    """The network.  Blocks may be in a lower precision; everything around them and the residual stream stay float32."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_length, config.text_width))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = nn.RMSNorm(config.text_width, eps=1e-6)
        self.text_proj_for_sos = nn.ModuleDict({"ca": TextPool(config)})
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.lvl_embed = nn.Embedding(config.levels, width)
        self.word_embed = nn.Linear(config.bits, width)
        self.shared_ada_lin = AdaLinear(width, 6)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.hidden) for _ in range(config.depth))
        self.head_nm = nn.ModuleDict({"ada_lin": AdaLinear(width, 2)})
        self.head = nn.Linear(width, 2 * config.bits)

    def condition(self, positive: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool) -> Condition:
        """Prepare the prompts for every layer.

        Args:
            positive: B text features, each (L_i, Ct), L_i >= 1.
            negative: B features of negative prompts, or None for the learned unconditional text.
            guided: add the unconditional rows.
        """
        rows = list(positive)
        if guided:
            rows += negative if negative is not None else [self.cfg_uncond[: len(text)] for text in positive]
        lengths = torch.tensor([len(row) for row in rows], device=self.pos_start.device)
        text = nn.utils.rnn.pad_sequence([row.to(self.pos_start) for row in rows], batch_first=True)
        mask = torch.arange(text.shape[1], device=lengths.device) < lengths[:, None]
        mask = None if mask.all() else mask[:, None, None]
        text = self.text_norm(text)
        pooled = self.text_proj_for_sos["ca"](text, mask)
        memory = self.text_proj_for_ca(text)
        keys_values = tuple(block.ca.text_kv(memory) for block in self.blocks)
        return Condition(pooled, self.shared_ada_lin(pooled), keys_values, mask, len(positive))

    def embed(self, tokens: Tensor | None, scale: Tensor, condition: Condition) -> Tensor:
        """Input of block 0, (R, N, C): both halves of the rows see the same tokens.

        Args:
            tokens: (B, N, d) running sum of the codes at each token's place; None for the start token of scale 0.
            scale: (B or 1, N) scale of every token.
        """
        if tokens is None:
            x = condition.pooled[:, None] + self.pos_start
        else:
            x = self.word_embed(tokens).repeat(2 if condition.guided else 1, 1, 1)
        level = self.lvl_embed(scale)
        return x + (level.repeat(len(x) // len(level), 1, 1) if len(level) > 1 else level)

    def forward(self, x: Tensor, step: Pass, condition: Condition) -> Tensor:
        """Run all blocks over x (R, N, C)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, step, condition)
            if layer in step.mix and condition.guided:
                x = mix_rows(x, step.mix[layer])
        return x

    def logits(self, x: Tensor, condition: Condition) -> Tensor:
        """Hidden (R, N, C) -> (R, N, d, 2), the last axis being (bit 0, bit 1)."""
        scale, shift = self.head_nm["ada_lin"](condition.pooled)[:, None].unbind(2)
        return self.head(modulated_norm(x.float(), scale, shift)).unflatten(-1, (-1, 2))
