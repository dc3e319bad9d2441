"""The forward pass of training: that of inference, scale by scale, with a cache that autograd can follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from comfy_moss.model.backbone import Pass, Step
from comfy_moss.model.infinity import InfinityCondition, InfinityTransformer
from comfy_moss.model.quantize import bits_to_codes, resample
from comfy_moss.model.rope import rotation
from comfy_moss.model.schedule import Positions, Schedule
from comfy_moss.ops import TORCH, Segment

from .nano import CONFIG, SCHEDULES, make_text_model, make_tokenizer, make_transformer

PLACE_BLOCK = 1  # after which tokens tell their place
EARLY = 5  # scales of a short sequence: 121 tokens
FLIPS = 0.2  # at most so many of the bits that later scales see are wrong


def attention_in_bfloat16(q: Tensor, segments: Sequence[Segment], visible: Tensor | None = None) -> Tensor:
    """`Kernels.cross_scale_attention` with halved operands: quicker where processors multiply bfloat16
    (training/README.md), sums being kept in float32 all the same.
    """
    halved = [(k.bfloat16(), v.bfloat16()) for k, v in segments]
    return TORCH.cross_scale_attention(q.bfloat16(), halved, visible).to(q.dtype)


KERNELS = replace(TORCH, cross_scale_attention=attention_in_bfloat16)


class GrowingCache:
    """A KV cache that autograd can follow: what a pass asks of model.cache.KVCache, by concatenation."""

    overwritten = int8 = False

    def __init__(self, rows: int) -> None:
        empty = torch.empty(rows, CONFIG.heads, 0, CONFIG.head_dim)
        self.layers, self.rows = [(empty, empty)] * CONFIG.depth, rows

    def room(self, layer: int, tokens: int) -> None:
        """New keys and values lie by themselves first."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past_k, past_v = self.layers[layer]
        self.layers[layer] = (torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2))
        return self.layers[layer]

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.layers[layer]


class Nano(nn.Module):
    """Transformer and text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: InfinityTransformer = make_transformer()
        self.text: T5EncoderModel = make_text_model()
        self.tokenizer = make_tokenizer()

    def read(self, captions: list[str | None]) -> tuple[Tensor, InfinityCondition]:
        """Text features (B, T, Ct), and the condition; None = the unconditional text, as long as a caption.
        """
        batch = self.tokenizer([c or "" for c in captions], padding=True, return_tensors="pt")
        features = self.text(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        lengths = batch.attention_mask.sum(1).tolist()
        rows = [
            self.transformer.cfg_uncond[: 3 + n % 15] if captions[n] is None else features[n, : lengths[n]]
            for n in range(len(captions))
        ]
        return features, self.transformer.condition(rows, None, guided=False)


def schedule_of(features: Tensor) -> Schedule:
    """The square schedule whose last grid is that of the codec features (B, c, H, W)."""
    return next(
        schedule for schedule in SCHEDULES.values() if schedule.grids[-1] == tuple(features.shape[-2:])
    )


def corrupted_scales(
    features: Tensor, scales: int, flips: float = FLIPS
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Inputs and target bits (B, h*w, d) of every scale, with bits flipped in what later scales see."""
    grids = schedule_of(features).grids
    size, total = grids[-1], torch.zeros_like(features)
    inputs, targets = [], []
    for n, grid in enumerate(grids[:scales]):
        inputs.append(resample(total, grid).flatten(2).transpose(1, 2) if n else None)
        residual = (
            F.interpolate(features - total, size=grid, mode="area") if grid != size else features - total
        )
        bits = residual > 0
        targets.append(bits.flatten(2).transpose(1, 2))
        flip = torch.rand(len(bits), 1, 1, 1) * flips
        seen = bits ^ (torch.rand(bits.shape) < flip)
        total = total + resample(bits_to_codes(seen, features.shape[1]), size)
    return inputs, targets


@dataclass(frozen=True)
class Seen:
    """What a forward pass came to.

    Attributes:
        losses: cross-entropy of the bits of every scale in nats, (scales,).
        words: (B, T, Ct) features of the captions.
        inner: tokens (B, N, C) after block PLACE_BLOCK: of the first EARLY scales together, then of every
        other scale.
    """

    losses: Tensor
    words: Tensor
    inner: list[Tensor]


def look(
    nano: Nano,
    features: Tensor,
    captions: list[str | None],
    scales: int,
    flips: float = FLIPS,
    learnt_from: int = 0,
) -> Seen:
    """Run the first `scales` scales of pictures, given as codec features (B, c, H, W).

    Gradients pass through scale `learnt_from` and later ones alone: 0, or one from EARLY on.  Of the scales
    before, later ones see keys and values as they are, which costs a third of the work and half of the
    memory.
    """
    schedule = schedule_of(features)
    inputs, targets = corrupted_scales(features, scales, flips)
    words, condition = nano.read(captions)
    model, cache = nano.transformer, GrowingCache(len(features))
    losses, inner = [], []
    parts = [[*range(EARLY)], *([n] for n in range(EARLY, scales))]  # the early scales in one masked pass
    for part in parts:
        positions = Positions.concat([Positions.of_scale(schedule, n) for n in part])
        with torch.set_grad_enabled(torch.is_grad_enabled() and part[-1] >= learnt_from):
            x = torch.cat(
                [
                    model.embed(inputs[n], Positions.of_scale(schedule, n).scale, condition, len(schedule))
                    for n in part
                ],
                dim=1,
            )
            scale = positions.scale[0]
            visible = (scale[:, None] >= scale)[None] if len(part) > 1 else None
            keep = part[-1] < scales - 1
            step = Step(positions, schedule, condition, cache=cache, store=keep, visible=visible)
            now = Pass(step, *rotation(positions, schedule, CONFIG.head_dim), kernels=KERNELS)
            update = None
            for layer, block in enumerate(model.blocks):
                x, update = block(x, update, layer, now)
                inner += [now.added(x, update)] if layer == PLACE_BLOCK else []
            x = now.added(x, update)
            logits = model.logits(x, condition)
            margins = (logits[..., 1] - logits[..., 0]).split([len(targets[n][0]) for n in part], dim=1)
            pairs = zip(margins, (targets[n] for n in part), strict=True)
            losses += [F.binary_cross_entropy_with_logits(m, t.float()) for m, t in pairs]
    return Seen(torch.stack(losses), words, inner)
