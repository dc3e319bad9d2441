"""Infinity's transformer: text conditioning, blocks, and two logits for every bit of every token.

Shapes: B pictures, R rows (prompts, then unconditional twins), N tokens, C channels, H heads, D = C / H, d
bits a token, T text tokens of Ct numbers.  Parameter names are those of the released files, with blocks
numbered through.  Facts: docs/infinity.md, sections 1.2, 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ..ops import TORCH, Kernels, modulated_norm
from .backbone import PAPER, Pass, Published, Sized, Step, TokenWork, Update
from .cache import KVCache, token_bytes
from .contents import count_of
from .graphs import TEXT, Graphs
from .layers import PackedBias, device_of, finite, is_plain
from .memory import FLOAT
from .quantize import bits_to_codes, map_to_tokens, quantize_scales, resample, tokens_to_map
from .sampling import bit_probability, draw_bits, mix_rows
from .schedule import PRESETS, Grid, Schedule
from .tiny_decoder import TinyDecoder
from .vae import VAE

LEVELS = 15  # rows of the level embedding, one a scale


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
    levels: int  # rows of the level embedding: LEVELS, or twice as many with some of its own for preset 1M

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Iterable[int]]) -> InfinityConfig:
        """Read the sizes from {canonical parameter name: shape}.

        `scale_mul_1H11` may be (1, H, 1, 1) or (1, 1, H, 1).
        """
        size = {name: tuple(shape) for name, shape in shapes.items()}
        return cls(
            depth=count_of(size, r"blocks\.(\d+)\."),
            width=size["pos_start"][-1],
            heads=max(size["blocks.0.sa.scale_mul_1H11"]),
            hidden=size["blocks.0.ffn.fc1.weight"][0],
            bits=size["word_embed.weight"][1],
            text_width=size["text_norm.weight"][0],
            text_heads=size["text_proj_for_sos.ca.mat_q"][1],
            text_length=size["cfg_uncond"][0],
            levels=size["lvl_embed.weight"][0],
        )


@dataclass(frozen=True)
class InfinityCondition:
    """What the prompts say, ready for every layer.

    Attributes:
        pooled: (R, C) attention-pooled text, also the start token.
        modulation: (R, L, 6, C) adaLN vectors of every layer: gamma1, gamma2, scale1, scale2, shift1, shift2.
        head: (R, 2, C) scale and shift before the logits.
        text: per layer (k, v), each (R, H, T, D).
        text_mask: (R, 1, 1, T) bool, True on real tokens, or what is added to scores; None when all prompts
            have T tokens.
        batch: B, number of pictures; R = 2B when guided, else B.
    """

    pooled: Tensor
    modulation: Tensor
    head: Tensor
    text: tuple[tuple[Tensor, Tensor], ...]
    text_mask: Tensor | None
    batch: int
    given = ()

    @property
    def guided(self) -> bool:
        """Whether unconditional rows follow the prompts' rows."""
        return self.pooled.shape[0] > self.batch

    def unguided(self) -> InfinityCondition:
        """The prompts' rows alone."""
        n = self.batch
        text = tuple((k[:n], v[:n]) for k, v in self.text)
        mask = self.text_mask if self.text_mask is None else self.text_mask[:n]
        return InfinityCondition(self.pooled[:n], self.modulation[:n], self.head[:n], text, mask, n)


class SelfAttention(PackedBias):
    """Cosine attention: unit queries and keys, a learned scale a head, rotary positions, softmax scale 1."""

    def __init__(self, width: int, heads: int, operations: Any = nn) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = operations.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.proj = operations.Linear(width, width)

    @property
    def packed(self) -> nn.Module:
        return self.mat_qkv

    def forward(self, x: Tensor, layer: int, now: Pass, picked: Tensor | None) -> Tensor:
        qkv = rearrange(self.project(x), "r n (three h d) -> r n three h d", three=3, h=self.heads)
        scale, room = self.scale_mul_1H11.to(x.device).flatten(), now.room(layer, x.shape[1])
        q, k, v = now.kernels.cosine_rope2d(qkv, scale, *now.rotary(picked), room)
        parts = []
        for call in now.attention(layer, q, k, v):
            parts.append(now.kernels.cross_scale_attention(*call))
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return finite(self.proj(rearrange(out, "r h n d -> r n (h d)")))


class CrossAttention(PackedBias):
    """Attention over the text; keys and values are made once a prompt by `text_kv`."""

    def __init__(self, width: int, heads: int, operations: Any = nn) -> None:
        super().__init__()
        self.heads = heads
        self.mat_q = operations.Linear(width, width)
        self.mat_kv = operations.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = operations.Linear(width, width)

    @property
    def packed(self) -> nn.Module:
        return self.mat_kv

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (R, T, C) -> keys and values (R, H, T, D)."""
        return _split(self.project(text.to(self.mat_q.bias.dtype)), self.heads)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q = rearrange(self.mat_q(x), "r n (h d) -> r h n d", h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return finite(self.proj(rearrange(out, "r h n d -> r n (h d)")))


def _split(kv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values, each (R, heads, T, D), from both side by side (R, T, 2C)."""
    k, v = rearrange(kv, "r t (two h d) -> two r h t d", two=2, h=heads)
    return k, v


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int, operations: Any = nn) -> None:
        super().__init__()
        self.fc1 = operations.Linear(width, hidden)
        self.fc2 = operations.Linear(hidden, width)

    def forward(self, x: Tensor, ops: Kernels) -> Tensor:
        if is_plain(self.fc1, x) and x.dtype != torch.float16:
            return self.fc2(ops.linear_gelu(x, self.fc1.weight, self.fc1.bias))
        return finite(self.fc2(F.gelu(finite(self.fc1(x)), approximate="tanh")))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each a residual branch."""

    def __init__(self, width: int, heads: int, hidden: int, operations: Any = nn) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        self.sa = SelfAttention(width, heads, operations)
        self.ca_norm = operations.LayerNorm(width, eps=1e-6)
        self.ca = CrossAttention(width, heads, operations)
        self.ffn = FeedForward(width, hidden, operations)

    def forward(
        self, x: Tensor, update: Update | None, layer: int, now: Pass
    ) -> tuple[Tensor, Update]:
        """x (R, N, C), the residual stream, in float32; the weights may be of a lower precision.

        Args:
            update: what is still to be added to x, by the branch before; None = nothing.

        Returns:
            x, and what is still to be added to it.
        """
        condition, dtype = now.step.condition, self.ada_gss.dtype
        gamma1, gamma2, scale1, scale2, shift1, shift2 = condition.modulation[:, layer, :, None].unbind(1)

        x, part, picked = now.normed(layer, "sa", x, update, (scale1, shift1), dtype)
        update = Update(layer, "sa", self.sa(part, layer, now, picked), picked, gamma1)

        x, part, picked = now.normed(layer, "ca", x, update, self.ca_norm, dtype)
        update = Update(layer, "ca", self.ca(part, *condition.text[layer], condition.text_mask), picked)

        x, part, picked = now.normed(layer, "ffn", x, update, (scale2, shift2), dtype)
        return x, Update(layer, "ffn", self.ffn(part, now.kernels), picked, gamma2)


class TextPool(PackedBias):
    """One vector from a prompt: learned queries, one a head, attend over its tokens."""

    def __init__(self, config: InfinityConfig, operations: Any = nn) -> None:
        super().__init__()
        width, heads = config.width, config.text_heads
        self.mat_q = nn.Parameter(torch.zeros(1, heads, width // heads))
        self.mat_kv = operations.Linear(config.text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = operations.Linear(width, width)

    @property
    def packed(self) -> nn.Module:
        return self.mat_kv

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """Text (R, T, Ct) -> (R, C)."""
        k, v = _split(self.project(text), self.mat_q.shape[1])
        q = repeat(self.mat_q.to(text), "1 h d -> r h 1 d", r=len(text))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(out, "r h 1 d -> r (h d)"))


def _text_mask(lengths: Sequence[int], text: Tensor, always: bool = False) -> Tensor | None:
    """(R, 1, 1, T) bool, True on real tokens of text (R, T, Ct); None where all are, unless always."""
    if min(lengths) == text.shape[1] and not always:
        return None
    real = torch.arange(text.shape[1]) < torch.tensor(lengths)[:, None]
    return rearrange(real, "r t -> r 1 1 t").to(text.device)


class AdaLinear(nn.Sequential):
    """SiLU, then a linear map to `count` modulation vectors: (R, C) -> (R, count, C)."""

    def __init__(self, width: int, count: int, operations: Any = nn) -> None:
        super().__init__(nn.SiLU(), operations.Linear(width, count * width))
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(super().forward(x), "r (n c) -> r n c", n=self.count)


class InfinityTransformer(nn.Module):
    """The network.  Blocks may be in a lower precision; what is around them, and the residual stream, not.

    Args:
        operations: classes of the layers, see `layers`.
    """

    def __init__(self, config: InfinityConfig, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        width, text_width, linear = config.width, config.text_width, operations.Linear
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_length, text_width))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.text_norm = operations.RMSNorm(text_width, eps=1e-6)
        self.text_proj_for_sos = nn.ModuleDict({"ca": TextPool(config, operations)})
        self.text_proj_for_ca = nn.Sequential(
            linear(text_width, width), nn.GELU(approximate="tanh"), linear(width, width)
        )
        self.lvl_embed = operations.Embedding(config.levels, width)
        self.word_embed = linear(config.bits, width)
        self.shared_ada_lin = AdaLinear(width, 6, operations)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.hidden, operations) for _ in range(config.depth)
        )
        self.head_nm = nn.ModuleDict({"ada_lin": AdaLinear(width, 2, operations)})
        self.head = linear(width, 2 * config.bits)

    @property
    def dtype(self) -> torch.dtype:
        """What the blocks compute in."""
        return self.blocks[0].ada_gss.dtype

    def condition(
        self, positive: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool, multiple: int = 1
    ) -> InfinityCondition:
        """Prepare the prompts for every layer.

        Args:
            positive: B text features, each (L_i, Ct), L_i >= 1.
            negative: B features of negative prompts, or None for the learned unconditional text.
            guided: add the unconditional rows.
            multiple: pad the text to a multiple of so many tokens, which are masked.

        Raises:
            ValueError: text of another model.
        """
        rows = list(positive)
        if not all(isinstance(row, Tensor) for row in (*rows, *(negative or ()))):
            raise ValueError("this text was encoded for another model; use this model's own text encoder")
        if guided:
            nothing = self.cfg_uncond.to(device_of(self))
            rows += negative if negative is not None else [nothing[: len(text)] for text in positive]
        rows = [row.to(device_of(self), self.pos_start.dtype) for row in rows]
        text = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        text = F.pad(text, (0, 0, 0, -text.shape[1] % multiple))
        mask = _text_mask([len(row) for row in rows], text, always=multiple > 1)
        text = self.text_norm(text)
        pooled = self.text_proj_for_sos["ca"](text, mask)
        if multiple > 1:  # as what is added to the scores, once and not in every layer of every pass
            mask = torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, -math.inf)
        memory = self.text_proj_for_ca(text)
        keys_values = tuple(block.ca.text_kv(memory) for block in self.blocks)
        own = torch.cat([block.ada_gss.to(text.device) for block in self.blocks], dim=1)  # (1, L, 6, C)
        modulation = own + rearrange(self.shared_ada_lin(pooled), "r six c -> r 1 six c")
        head = self.head_nm["ada_lin"](pooled)
        return InfinityCondition(pooled, modulation, head, keys_values, mask, len(positive))

    def embed(
        self, tokens: Tensor | None, scale: Tensor, condition: InfinityCondition, scales: int
    ) -> Tensor:
        """Input of block 0, (R, N, C): both halves of the rows see the same tokens.

        Args:
            tokens: (B, N, d) sum of the codes at each token's position; None for the start token of scale 0.
            scale: (B or 1, N) scale of every token.
            scales: how many there are in the schedule: what tells the presets apart.
        """
        if tokens is None:
            x = rearrange(condition.pooled, "r c -> r 1 c") + self.pos_start.to(condition.pooled)
        else:
            x = repeat(self.word_embed(tokens), "b n c -> (twin b) n c", twin=2 if condition.guided else 1)
        own = self.config.levels == 2 * LEVELS and scales == PRESETS["1M"]
        level = self.lvl_embed(scale + LEVELS if own else scale)
        return x + (level.repeat(len(x) // len(level), 1, 1) if len(level) > 1 else level)

    def forward(self, x: Tensor, now: Pass) -> Tensor:
        """Run all blocks over x (R, N, C)."""
        update = None
        for layer, block in enumerate(self.blocks):
            x, update = block(x, update, layer, now)
            if layer in now.mix and now.step.condition.guided:
                x, update = mix_rows(now.added(x, update), now.mix[layer]), None
        return now.added(x, update)

    def logits(self, x: Tensor, condition: InfinityCondition) -> Tensor:
        """Hidden (R, N, C) -> (R, N, d, 2), the last axis being (bit 0, bit 1)."""
        scale, shift = rearrange(condition.head, "r two c -> two r 1 c")
        logits = self.head(modulated_norm(x.float(), scale, shift))
        return rearrange(logits, "r n (d two) -> r n d two", two=2)


# --- the backbone -------------------------------------------------------------------------------------------

# Infinity behind the pipeline's Backbone interface: transformer and codec together.

@dataclass(frozen=True)
class InfinityBackbone(Sized):
    """See `backbone.Backbone` for the members' contracts.

    Attributes:
        kernels: what `ops.choose` found for the device.
        graphs: replays the passes of a picture that are like an earlier one's; None = every kernel by itself.
        tiny: decodes in the codec's place: quicker, and not as well; None = the codec.
        int8_cache: keep keys and values in 8 bits, see `KVCache`.
        published: settings of the methods for this model.
    """

    transformer: InfinityTransformer
    vae: VAE
    model_id: str = ""
    kernels: Kernels = field(default=TORCH, kw_only=True)
    graphs: Graphs | None = field(default=None, kw_only=True)
    tiny: TinyDecoder | None = field(default=None, kw_only=True)
    int8_cache: bool = field(default=False, kw_only=True)
    published: Published = field(default=PAPER, kw_only=True)
    pass_type: ClassVar[type[Pass]] = Pass

    @property
    def device(self) -> torch.device:
        return device_of(self.transformer)

    @property
    def work(self) -> TokenWork:
        depth, width, hidden = self.depth, self.width, self.transformer.config.hidden
        matrices = 6 * width**2 + 2 * width * hidden  # 3 qkv, out, query, out; both of the feed-forward
        return TokenWork(float(depth * matrices), float(2 * width * depth))

    @property
    def patchify(self) -> bool:
        """Whether a token covers 2 x 2 cells of the code map."""
        return self.transformer.config.bits == 4 * self.channels

    @property
    def _dtype(self) -> torch.dtype:
        """Of the blocks, and so of keys and values."""
        return self.transformer.dtype

    def map_grid(self, grid: Grid) -> Grid:
        return (2 * grid[0], 2 * grid[1]) if self.patchify else tuple(grid)

    def is_empty(self, text: Tensor) -> bool:
        return len(text) == 1  # its end token alone

    def condition(
        self, text: Sequence[Tensor], negative: Sequence[Tensor] | None, guided: bool, schedule: Schedule
    ) -> InfinityCondition:
        return self.transformer.condition(text, negative, guided, TEXT if self.graphs else 1)

    def new_cache(self, condition: InfinityCondition, capacity: int | Sequence[int]) -> KVCache:
        config = self.transformer.config
        capacity = [capacity] * config.depth if isinstance(capacity, int) else capacity
        make = self.graphs.new_cache if self.graphs else KVCache
        sizes = len(condition.pooled), config.heads, config.head_dim
        return make(capacity, *sizes, self._dtype, self.device, self.int8_cache)

    def cache_bytes(self, rows: int, tokens: int) -> int:
        config = self.transformer.config
        each = token_bytes(config.heads, config.head_dim, self._dtype, self.int8_cache)
        return rows * tokens * self.depth * each

    def condition_bytes(self, rows: int, text: int) -> int:
        keys_values = 2 * self.depth * text * self.width * self.item
        modulation = (6 * self.depth + 3) * self.width * FLOAT
        return rows * (keys_values + modulation)

    def tokens(self, total: Tensor, grid: Grid) -> Tensor:
        return map_to_tokens(resample(total, self.map_grid(grid)), self.patchify)

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        x = self.transformer.embed(tokens, step.positions.scale, step.condition, len(step.schedule))
        tables = self.rotation(step)
        if len(tables[0]) > 1:  # every picture has its own tokens: repeat for the unconditional rows
            tables = (table.repeat(len(x) // len(table), 1, 1) for table in tables)
        mix = step.guidance.mixes(self.depth, step.guidance.at(step.positions, len(step.schedule)))
        now = self.pass_type(step, *tables, mix, self.kernels)
        return self.graphs.run(self.transformer, x, now) if self.graphs else self.transformer(x, now)

    def rotation(self, step: Step) -> tuple[Tensor, Tensor]:
        """Rotary tables of a step's tokens, each (B or 1, N, D / 2)."""
        return step.rotation(self.transformer.config.head_dim)

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
        step.check_finite(logits)
        noise = step.noise(logits.shape[-2])
        return draw_bits(logits, noise, step.sampling.top_k, step.sampling.top_p)

    def bit_probability(self, hidden: Tensor, step: Step) -> Tensor:
        logits = self.logits(hidden, step)
        step.check_finite(logits)
        return bit_probability(logits, step.sampling.top_k, step.sampling.top_p)

    def codes(self, bits: Tensor) -> Tensor:
        return bits_to_codes(bits, self.channels)

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        image = tokens_to_map(codes, schedule.grids[scale], self.patchify)  # zeros stay zeros, so no `filled`
        return resample(image, self.map_grid(schedule.grids[-1]))

    def decode(self, total: Tensor) -> Tensor:
        if self.tiny is not None:
            return self.tiny.decode(total).float()
        return self.vae.decode(total.to(device_of(self.vae), self.vae.dtype), self.kernels).float()

    def encode(self, image: Tensor) -> Tensor:
        return self.vae.encode(image.to(device_of(self.vae), self.vae.dtype)).float()

    def quantize(self, features: Tensor, schedule: Schedule) -> list[Tensor]:
        maps, _ = quantize_scales(features, [self.map_grid(grid) for grid in schedule.grids])
        return [map_to_tokens(bits.to(torch.uint8), self.patchify) for bits in maps]
