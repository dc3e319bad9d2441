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
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .forward import EARLY, Nano, look, schedule_of
from .hints import PLACE_WEIGHT, WORD_WEIGHT, Hints
from .nano import CONFIG, SCHEDULE, SCHEDULES, SIDES
from .pool import Batch, Batches, encoded_pictures, is_of_pairs
from .stream import Stream
from .workers import average_gradients, launch, move_average, same_everywhere, save_state

EARLY_WEIGHTS = torch.tensor([1.0, 1.4, 2.0, 2.4, 2.8]) / 9.6
QUERY_RATE = 0.1  # of the learning rate, for the queries of the text encoder
SHORT_BATCH = 24  # pictures a worker and step, up to scale EARLY
LONG_BATCH = {7: 4, 8: 3, 9: 2, 10: 1}  # scales -> pictures: about the same number of tokens
LONG_SHARE = [0.2, 0.2, 0.3, 0.3]  # of the steps: textures are drawn last
LAST = {10: (0.4, 0.2), 11: (0.35, 0.3), 12: (0.25, 0.5)}  # late scale of 1M -> share of the steps, first half and second
log = logging.getLogger("train_transformer")


def learning_rate(peak: float, done: float, step: int, warm_up: int) -> float:
    """Short warm-up, flat for a third of this part of the training, then a cosine down to 3 %."""
    fall = max(0.0, done - 0.33) / 0.67
    return peak * min(1, (step + 1) / warm_up) * (0.97 * 0.5 * (1 + math.cos(math.pi * fall)) + 0.03)


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


def short_step(nano: Nano, hints: Hints, batch: Batch, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate gradients of the first EARLY scales; what these cost in nats a bit, and what words and places do."""
    short = look(nano, batch.features, batch.captions, EARLY)
    told = hints(short.words, batch.captions, batch.scenes)
    placed = hints.places(short.inner[0], SCHEDULE, range(EARLY))
    (share * ((short.losses * EARLY_WEIGHTS).sum() + WORD_WEIGHT * told + PLACE_WEIGHT * placed)).backward()
    return short.losses.detach(), told.detach(), placed.detach()


def long_step(nano: Nano, hints: Hints, batch: Batch, scales: int, learnt_from: int = 0) -> tuple[Tensor, Tensor]:
    """Accumulate gradients of scales after the EARLY ones, whole: of all, or of `learnt_from` and later ones."""
    first = max(EARLY, learnt_from)
    long = look(nano, batch.features, batch.captions, scales, learnt_from=learnt_from)
    schedule = schedule_of(batch.features)
    later = [hints.places(long.inner[1 + n - EARLY], schedule, [n]) for n in range(first, scales)]
    placed = torch.stack(later).mean()
    early = 0.0 if learnt_from else 0.2 * (long.losses[:EARLY] * EARLY_WEIGHTS).sum()
    (long.losses[first:].mean() + early + PLACE_WEIGHT * placed).backward()
    return long.losses.detach(), placed.detach()


def train_step(nano: Nano, hints: Hints, batches: Batches, late: Batches, scales: int) -> Tensor:
    """Accumulate the gradients of one short batch, and of one up to `scales` if that is more.

    Returns nats per bit of every scale (NaN where not seen), and what words, early places and late places cost.
    """
    seen = torch.full((len(SCHEDULE) + 3,), math.nan)
    seen[:EARLY], seen[-3], seen[-2] = short_step(nano, hints, batches.draw(SHORT_BATCH))
    if scales > EARLY:
        losses, seen[-1] = long_step(nano, hints, late.draw(LONG_BATCH[scales]), scales)
        seen[EARLY:scales] = losses[EARLY:]
    return seen


def late_scale(step: int, done: float) -> int:
    """Which of the last scales of 1M a step trains, the same for all workers: dear ones more often at the end."""
    shares = [share[done >= 0.5] for share in LAST.values()]
    return int(np.random.default_rng(step).choice([*LAST], p=shares))


def train_large_step(nano: Nano, hints: Hints, small: Stream, large: Stream, step: int, scale: int) -> Tensor:
    """Accumulate gradients of both presets' first scales, of whole pictures of 0.25M in every other step, of the same scales of
    1M, and of one late `scale` of 1M.

    Returns nats per bit of every scale of 0.25M, then of 1M (NaN where not seen), then words, early places and late places.
    """
    seen = torch.full((len(SCHEDULE) + len(SCHEDULES["1M"]) + 3,), math.nan)
    both = [seen[: len(SCHEDULE)], seen[len(SCHEDULE) : -3]]
    for stream, losses in zip((small, large), both, strict=True):
        losses[:EARLY], seen[-3], seen[-2] = short_step(nano, hints, stream.draw(SHORT_BATCH // 2), 0.5)
    for stream, losses in zip((small, large), both, strict=True):
        if stream is large or step % 2 == 0:
            told, _ = long_step(nano, hints, stream.new(1), len(SCHEDULE))
            losses[EARLY : len(SCHEDULE)] = told[EARLY:]
    told, seen[-1] = long_step(nano, hints, large.new(1), scale + 1, learnt_from=scale)
    both[1][scale] = told[scale]
    return seen


def scales_of_step(step: int, late: float) -> int:
    """How many scales the second batch of a step has, the same for all workers; EARLY = no second batch."""
    rng = np.random.default_rng(step)
    return int(rng.choice(list(LONG_BATCH), p=LONG_SHARE)) if rng.random() < late else EARLY


def lessons(
    rank: int, workers: int, args: argparse.Namespace, vae: dict[str, Tensor], rng: np.random.Generator
) -> Callable[[Nano, Hints, int, float], Tensor]:
    """What a worker learns in a step: a function of nano, hints, step and the share of this part of the training done."""
    if args.area == "1M":
        streams = [Stream(area, vae, rng) for area in SIDES]
        return lambda nano, hints, step, done: train_large_step(
            nano, hints, *streams, step, late_scale(step, done)
        )
    mine = range(rank, args.parts, workers)
    if not mine:
        raise SystemExit(f"{workers} workers cannot share {args.parts} parts of the pool; give more --parts or fewer --workers")
    batches = Batches(*encoded_pictures(args.state, mine, vae), rng)
    textured = [part for part in mine if not is_of_pairs(part)] or mine  # with four workers some have pairs alone
    late = Batches(*encoded_pictures(args.state, textured, vae), rng)
    return lambda nano, hints, step, done: train_step(
        nano, hints, batches, late, scales_of_step(step, args.late if done < 0.5 else 1.0)
    )


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
    lesson = lessons(rank, workers, args, vae, np.random.default_rng(rank + 1000 * step))
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
            group["lr"] = group["rate"] * learning_rate(args.peak, done, step - first, args.warm_up)
        nano.zero_grad()
        hints.zero_grad()
        history.append(lesson(nano, hints, step, done))
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
            log.info(f"{seconds:.0f}s step {step} lr {learning_rate(args.peak, done, step - first, args.warm_up):.1e} bits a bit {bits}")
            log.info(f"words {told:.3f} nats, places {early:.4f} early, {late_ones:.4f} late")
            history.clear()
            save(seconds)
    if rank == 0:
        save(time.time() - start)
        log.info(f"done after step {step}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--area", choices=[*SIDES], default="0.25M", help="1M trains both presets")
    options.add_argument("--parts", type=int, default=8, help="parts of the pool, shared among the workers")
    options.add_argument("--peak", type=float, default=2e-3, help="highest learning rate of this part")
    options.add_argument("--warm-up", type=int, default=80, help="steps in which the learning rate rises")
    options.add_argument("--late", type=float, default=1.0, help="share of the steps with late scales, in the first half")
    launch(work, options)
