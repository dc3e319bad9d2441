"""Train nano's transformer and text encoder: python -m training.train_transformer --minutes 80 --state DIR [--resume].

Runs the very forward pass of inference, scale by scale with a cache that autograd can follow.  Every step sees many
pictures up to the 8 x 8 scale (layout, shape and colour are decided there) and a few up to a late scale (texture).
Bits are flipped at random in what the next scale sees, so that the model learns to repair its own errors.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5EncoderModel

from comfy_moss.model.backbone import Pass
from comfy_moss.model.infinity import InfinityCondition, InfinityTransformer
from comfy_moss.model.quantize import bits_to_codes, resample
from comfy_moss.model.rope import rotation
from comfy_moss.model.schedule import Positions

from .hints import PLACE_WEIGHT, WORD_WEIGHT, Hints
from .nano import CONFIG, SCHEDULE, make_text_model, make_tokenizer, make_transformer
from .pool import Batches, encoded_pictures, is_of_pairs
from .workers import average_gradients, launch, move_average, same_everywhere, save_state

PLACE_BLOCK = 1  # after which tokens tell their place
EARLY = 5  # scales of a short sequence: 121 tokens
EARLY_WEIGHTS = torch.tensor([1.0, 1.4, 2.0, 2.4, 2.8]) / 9.6
FLIPS = 0.2  # at most so many of the bits that later scales see are wrong
QUERY_RATE = 0.1  # of the learning rate, for the queries of the text encoder
SHORT_BATCH = 24  # pictures a worker and step, up to scale EARLY
LONG_BATCH = {7: 4, 8: 3, 9: 2, 10: 1}  # scales -> pictures: about the same number of tokens
LONG_SHARE = [0.2, 0.2, 0.3, 0.3]  # of the steps: textures are drawn last
log = logging.getLogger("train_transformer")


class GrowingCache:
    """A KV cache that autograd can follow: the interface of model.cache.KVCache, by concatenation."""

    def __init__(self, rows: int) -> None:
        empty = torch.empty(rows, CONFIG.heads, 0, CONFIG.head_dim)
        self.layers = [(empty, empty)] * CONFIG.depth

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        past_k, past_v = self.layers[layer]
        self.layers[layer] = (torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2))

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
        """Text features (B, T, Ct), and the condition: None = the learned unconditional text, as long as a typical caption."""
        batch = self.tokenizer([c or "" for c in captions], padding=True, return_tensors="pt")
        features = self.text(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        lengths = batch.attention_mask.sum(1).tolist()
        rows = [
            self.transformer.cfg_uncond[: 3 + n % 15] if captions[n] is None else features[n, : lengths[n]]
            for n in range(len(captions))
        ]
        return features, self.transformer.condition(rows, None, guided=False)


def corrupted_scales(features: Tensor, scales: int, flips: float = FLIPS) -> tuple[list[Tensor | None], list[Tensor]]:
    """Inputs (B, h*w, d) and target bits (B, h*w, d) of every scale, with bits flipped in what later scales see."""
    size, total = SCHEDULE.grids[-1], torch.zeros_like(features)
    inputs, targets = [], []
    for n, grid in enumerate(SCHEDULE.grids[:scales]):
        inputs.append(resample(total, grid).flatten(2).transpose(1, 2) if n else None)
        residual = F.interpolate(features - total, size=grid, mode="area") if grid != size else features - total
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
        inner: tokens (B, N, C) after block PLACE_BLOCK: of the first EARLY scales together, then of every other scale.
    """

    losses: Tensor
    words: Tensor
    inner: list[Tensor]


def look(nano: Nano, features: Tensor, captions: list[str | None], scales: int, flips: float = FLIPS) -> Seen:
    """Run the first `scales` scales of pictures, given as codec features (B, c, H, W)."""
    inputs, targets = corrupted_scales(features, scales, flips)
    words, condition = nano.read(captions)
    model, cache = nano.transformer, GrowingCache(len(features))
    hidden, inner = [], []
    for part in ([*range(EARLY)], *([n] for n in range(EARLY, scales))):  # the early scales in one masked pass
        positions = Positions.concat([Positions.of_scale(SCHEDULE, n) for n in part])
        x = torch.cat([model.embed(inputs[n], Positions.of_scale(SCHEDULE, n).scale, condition) for n in part], dim=1)
        scale = positions.scale[0]
        visible = (scale[:, None] >= scale)[None] if len(part) > 1 else None
        tables = rotation(positions, SCHEDULE, CONFIG.head_dim)
        step = Pass(*tables, cache, store=part[-1] < scales - 1, visible=visible)
        for layer, block in enumerate(model.blocks):
            x = block(x, layer, step, condition)
            inner += [x] if layer == PLACE_BLOCK else []
        hidden.append(x)
    logits = model.logits(torch.cat(hidden, dim=1), condition)
    margins = (logits[..., 1] - logits[..., 0]).split([h * w for h, w in SCHEDULE.grids[:scales]], dim=1)
    pairs = zip(margins, targets, strict=True)
    return Seen(torch.stack([F.binary_cross_entropy_with_logits(m, t.float()) for m, t in pairs]), words, inner)


def learning_rate(peak: float, done: float, step: int) -> float:
    """Short warm-up, flat for a third of this part of the training, then a cosine down to 3 %."""
    fall = max(0.0, done - 0.33) / 0.67
    return peak * min(1, (step + 1) / 80) * (0.97 * 0.5 * (1 + math.cos(math.pi * fall)) + 0.03)


def optimizers_for(nano: Nano) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices of all blocks, AdamW for the rest; steps of the same size, so that one rate serves both.

    T5 does not divide its scores by the root of the width: its queries must stay small, or words attend to single other
    words by content alone and their order is lost.
    """
    inside = [*nano.transformer.blocks.named_parameters(), *nano.text.encoder.block.named_parameters()]
    matrices = {name: p for name, p in inside if p.dim() == 2 and "bias" not in name}
    queries = [p for name, p in matrices.items() if name.endswith("SelfAttention.q.weight")]
    slow = {id(p) for p in queries}
    known = {id(p) for p in matrices.values()}
    rest = [p for p in nano.parameters() if id(p) not in known]
    plain = {"params": [p for p in matrices.values() if id(p) not in slow], "rate": 1.0}
    muon = torch.optim.Muon([plain, {"params": queries, "rate": QUERY_RATE}], weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.02, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
    ]
    return muon, torch.optim.AdamW(groups, betas=(0.9, 0.97), fused=True)


def train_step(nano: Nano, hints: Hints, batches: Batches, late: Batches, scales: int) -> Tensor:
    """Accumulate the gradients of one short batch, and of one up to `scales` if that is more.

    Returns nats per bit of every scale (NaN where not seen), and what words, early places and late places cost.
    """
    seen = torch.full((len(SCHEDULE) + 3,), math.nan)
    batch = batches.draw(SHORT_BATCH)
    short = look(nano, batch.features, batch.captions, EARLY)
    told = hints(short.words, batch.captions, batch.scenes), hints.places(short.inner[0], SCHEDULE, range(EARLY))
    ((short.losses * EARLY_WEIGHTS).sum() + WORD_WEIGHT * told[0] + PLACE_WEIGHT * told[1]).backward()
    seen[:EARLY], seen[-3], seen[-2] = short.losses.detach(), told[0].item(), told[1].item()
    if scales > EARLY:
        batch = late.draw(LONG_BATCH[scales])
        long = look(nano, batch.features, batch.captions, scales)
        later = [hints.places(tokens, SCHEDULE, [n]) for n, tokens in enumerate(long.inner[1:], EARLY)]
        placed = torch.stack(later).mean()
        early = 0.2 * (long.losses[:EARLY] * EARLY_WEIGHTS).sum()
        (long.losses[EARLY:].mean() + early + PLACE_WEIGHT * placed).backward()
        seen[EARLY:scales], seen[-1] = long.losses[EARLY:].detach(), placed.item()
    return seen


def scales_of_step(step: int, late: float) -> int:
    """How many scales the second batch of a step has, the same for all workers; EARLY = no second batch."""
    rng = np.random.default_rng(step)
    return int(rng.choice(list(LONG_BATCH), p=LONG_SHARE)) if rng.random() < late else EARLY


def work(rank: int, workers: int, args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    vae = torch.load(args.state / "vae.pt", weights_only=True)["ema"]
    torch.manual_seed(0)
    nano, hints = Nano(), Hints(CONFIG.text_width, CONFIG.width)
    optimizers = *optimizers_for(nano), torch.optim.AdamW([{"params": [*hints.parameters()], "rate": 1.0}])
    ema = {name: value.clone() for name, value in nano.state_dict().items()}
    step, before, path = 0, 0.0, args.state / "transformer.pt"
    if args.resume:
        state = torch.load(path, weights_only=True)
        nano.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizer"] or (), strict=False):  # none after training.restore
            optimizer.load_state_dict(kept)
        hints.load_state_dict(state.get("hints") or hints.state_dict())
        ema, step, before = state["ema"], state["step"], state["seconds"]
    if (planned := 60 * args.minutes - before) <= 0:
        raise SystemExit(f"--minutes {args.minutes:g} is used up: {path} has {before / 60:.1f} minutes; give more")
    rng = np.random.default_rng(rank + 1000 * step)
    mine = range(rank, args.parts, workers)
    if not mine:
        raise SystemExit(f"{workers} workers cannot share {args.parts} parts of the pool; give more --parts or fewer --workers")
    batches = Batches(*encoded_pictures(args.state, mine, vae), rng)
    textured = [part for part in mine if not is_of_pairs(part)] or mine  # with four workers some have pairs alone
    late = Batches(*encoded_pictures(args.state, textured, vae), rng)
    torch.manual_seed(rank + 1000 * step)
    if rank == 0:
        log.info(f"{sum(p.numel() for p in nano.parameters()) / 1e6:.2f} M parameters")
    same_everywhere(0.0)
    first, start, logged, history = step, time.time() - before, time.time(), []

    def save(seconds: float) -> None:
        kept = [optimizer.state_dict() for optimizer in optimizers]
        save_state(path, model=nano.state_dict(), hints=hints.state_dict(), optimizer=kept, ema=ema, step=step, seconds=seconds)

    while (done := same_everywhere((time.time() - start - before) / planned)) < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["rate"] * learning_rate(args.peak, done, step - first)
        nano.zero_grad()
        hints.zero_grad()
        history.append(train_step(nano, hints, batches, late, scales_of_step(step, args.late if done < 0.5 else 1.0)))
        average_gradients([*nano.parameters(), *hints.parameters()])
        torch.nn.utils.clip_grad_norm_(nano.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        if step % 4 == 0:
            move_average(ema, nano, min(0.98, step / (step + 40)))
        if rank == 0 and (time.time() - logged > 60):
            logged, seconds = time.time(), time.time() - start
            *losses, told, early, late_ones = torch.stack(history).nanmean(0).tolist()
            bits = " ".join(f"{loss / math.log(2):.3f}" for loss in losses)
            log.info(f"{seconds:.0f}s step {step} lr {learning_rate(args.peak, done, step - first):.1e} bits a bit {bits}")
            log.info(f"words {told:.3f} nats, places {early:.4f} early, {late_ones:.4f} late")
            history.clear()
            save(seconds)
    if rank == 0:
        save(time.time() - start)
        log.info(f"done after step {step}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--parts", type=int, default=8, help="parts of the pool, shared among the workers")
    options.add_argument("--peak", type=float, default=2e-3, help="highest learning rate of this part")
    options.add_argument("--late", type=float, default=1.0, help="share of the steps with late scales, in the first half")
    launch(work, options)
