"""What one step of the transformer's training looks at, and what it costs there."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .forward import EARLY, Nano, look, schedule_of
from .hints import PLACE_WEIGHT, WORD_WEIGHT, Hints
from .nano import SCHEDULE, SCHEDULES, SIDES
from .pool import Batch, Batches, encoded_pictures, is_of_pairs
from .stream import Stream

Lesson = Callable[[Nano, Hints, int, float], Tensor]  # (nano, hints, step, share of this part done) -> costs
EARLY_WEIGHTS = torch.tensor([1.0, 1.4, 2.0, 2.4, 2.8]) / 9.6
SHORT_BATCH = 24  # pictures a worker and step, up to scale EARLY
LONG_BATCH = {7: 4, 8: 3, 9: 2, 10: 1}  # scales -> pictures: about the same number of tokens
LONG_SHARE = [0.2, 0.2, 0.3, 0.3]  # of the steps: textures are drawn last
# Late scale of 1M -> its share of the steps, in the first half of a part of the training and in the second.
LAST = {10: (0.4, 0.2), 11: (0.35, 0.3), 12: (0.25, 0.5)}


def short_step(nano: Nano, hints: Hints, batch: Batch, share: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Accumulate gradients of the first EARLY scales; and what they, words and places cost in nats."""
    short = look(nano, batch.features, batch.captions, EARLY)
    told = hints(short.words, batch.captions, batch.scenes)
    placed = hints.places(short.inner[0], schedule_of(batch.features), range(EARLY))
    (share * ((short.losses * EARLY_WEIGHTS).sum() + WORD_WEIGHT * told + PLACE_WEIGHT * placed)).backward()
    return short.losses.detach(), told.detach(), placed.detach()


def long_step(
    nano: Nano, hints: Hints, batch: Batch, scales: int, learnt_from: int = 0
) -> tuple[Tensor, Tensor]:
    """Accumulate gradients of whole scales after the EARLY ones: of all, or of `learnt_from` and later ones.
    """
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

    Returns nats per bit of every scale (NaN where not seen), and what words, early places and late places
    cost.
    """
    seen = torch.full((len(SCHEDULE) + 3,), math.nan)
    seen[:EARLY], seen[-3], seen[-2] = short_step(nano, hints, batches.draw(SHORT_BATCH))
    if scales > EARLY:
        losses, seen[-1] = long_step(nano, hints, late.draw(LONG_BATCH[scales]), scales)
        seen[EARLY:scales] = losses[EARLY:]
    return seen


def late_scale(step: int, done: float) -> int:
    """Which of the last scales of 1M a step trains, alike on all workers: dear ones more often at the end."""
    shares = [share[done >= 0.5] for share in LAST.values()]
    return int(np.random.default_rng(step).choice([*LAST], p=shares))


def train_large_step(nano: Nano, hints: Hints, small: Stream, large: Stream, scale: int) -> Tensor:
    """Accumulate gradients of both presets alike, whose first scales are nearly the same.

    Of their first scales, of all scales that 0.25M has, and of one late `scale` of 1M, whole, with the scales
    before it as they are.  A picture of 1M is new once, for that scale; making one takes a second.

    Returns nats per bit of every scale of 0.25M, then of 1M (NaN where not seen), then what words, early
    places and late places cost.
    """
    shared, seen = len(SCHEDULE), torch.full((len(SCHEDULE) + len(SCHEDULES["1M"]) + 3,), math.nan)
    small_costs, large_costs = seen[:shared], seen[shared:-3]
    for stream, costs in ((small, small_costs), (large, large_costs)):
        costs[:EARLY], seen[-3], seen[-2] = short_step(nano, hints, stream.draw(SHORT_BATCH // 2), 0.5)
        batch = stream.new(1) if stream is small else stream.draw(1)
        costs[EARLY:shared] = long_step(nano, hints, batch, shared)[0][EARLY:]
    costs, seen[-1] = long_step(nano, hints, large.new(1), scale + 1, learnt_from=scale)
    large_costs[scale] = costs[scale]
    return seen


def scales_of_step(step: int, late: float) -> int:
    """How many scales the second batch of a step has, the same for all workers; EARLY = no second batch."""
    rng = np.random.default_rng(step)
    return int(rng.choice(list(LONG_BATCH), p=LONG_SHARE)) if rng.random() < late else EARLY


def lessons(
    rank: int, workers: int, args: argparse.Namespace, vae: dict[str, Tensor], rng: np.random.Generator
) -> Lesson:
    """What a worker learns in a step, from pictures of its own."""
    if args.area == "1M":
        streams = [Stream(area, vae, rng) for area in SIDES]
        return lambda nano, hints, step, done: train_large_step(nano, hints, *streams, late_scale(step, done))
    mine = range(rank, args.parts, workers)
    if not mine:
        raise SystemExit(
            f"{workers} workers cannot share {args.parts} parts of the pool; "
            "give more --parts or fewer --workers"
        )
    batches = Batches(*encoded_pictures(args.state, mine, vae), rng)
    textured = [part for part in mine if not is_of_pairs(part)] or mine  # of four workers some have none
    late = Batches(*encoded_pictures(args.state, textured, vae), rng)
    return lambda nano, hints, step, done: train_step(
        nano, hints, batches, late, scales_of_step(step, args.late if done < 0.5 else 1.0)
    )
