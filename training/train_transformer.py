"""Train nano's transformer and text: python -m training.train_transformer --minutes 80 --state DIR
[--resume].

Every step sees many pictures up to the 8 x 8 scale (layout, shape and colour are decided there) and a few
up to a late scale (texture).  With --area 1M it goes on to 13 scales: 512 x 512 pixels, and 256 x 256
beside them.
"""

from __future__ import annotations

import argparse
import logging
import math
import time

import numpy as np
import torch

from .forward import Nano
from .hints import Hints
from .lessons import lessons
from .nano import CONFIG, SIDES
from .workers import average_gradients, launch, move_average, same_everywhere, save_state

QUERY_RATE = 0.1  # of the learning rate, for the queries of the text encoder
log = logging.getLogger("train_transformer")


def learning_rate(peak: float, done: float, step: int, warm_up: int) -> float:
    """Short warm-up, flat for a third of this part of the training, then a cosine down to 3 %."""
    fall = max(0.0, done - 0.33) / 0.67
    return peak * min(1, (step + 1) / warm_up) * (0.97 * 0.5 * (1 + math.cos(math.pi * fall)) + 0.03)


def optimizers_for(nano: Nano) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    """Muon for the matrices of all blocks, AdamW for the rest; steps of one size, so that one rate serves
    both.

    T5 does not divide its scores by the root of the width: its queries must stay small, or words attend to
    single other words by content alone and their order is lost.
    """
    inside = [*nano.transformer.blocks.named_parameters(), *nano.text.encoder.block.named_parameters()]
    matrices = {name: p for name, p in inside if p.dim() == 2 and "bias" not in name}
    queries = [p for name, p in matrices.items() if name.endswith("SelfAttention.q.weight")]
    slow = {id(p) for p in queries}
    known = {id(p) for p in matrices.values()}
    rest = [p for p in nano.parameters() if id(p) not in known]
    plain = {"params": [p for p in matrices.values() if id(p) not in slow], "rate": 1.0}
    muon = torch.optim.Muon(
        [plain, {"params": queries, "rate": QUERY_RATE}], weight_decay=0.02, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.02, "rate": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "rate": 1.0},
    ]
    return muon, torch.optim.AdamW(groups, betas=(0.9, 0.97), fused=True)


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
        states = state["optimizer"] or ()  # none after training.restore
        for optimizer, kept in zip(optimizers, states, strict=False):
            optimizer.load_state_dict(kept)
        hints.load_state_dict(state.get("hints") or hints.state_dict())
        ema, step, before = state["ema"], state["step"], state["seconds"]
    if (planned := 60 * args.minutes - before) <= 0:
        raise SystemExit(
            f"--minutes {args.minutes:g} is used up: {path} has {before / 60:.1f} minutes; give more"
        )
    lesson = lessons(rank, workers, args, vae, np.random.default_rng(rank + 1000 * step))
    torch.manual_seed(rank + 1000 * step)
    if rank == 0:
        log.info(f"{sum(p.numel() for p in nano.parameters()) / 1e6:.2f} M parameters")
    same_everywhere(0.0)
    first, start, logged, history = step, time.time() - before, time.time(), []

    def save(seconds: float) -> None:
        kept = [optimizer.state_dict() for optimizer in optimizers]
        save_state(
            path,
            model=nano.state_dict(),
            hints=hints.state_dict(),
            optimizer=kept,
            ema=ema,
            step=step,
            seconds=seconds,
        )

    while (done := same_everywhere((time.time() - start - before) / planned)) < 1:
        rate = learning_rate(args.peak, done, step - first, args.warm_up)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["rate"] * rate
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
            log.info(f"{seconds:.0f}s step {step} lr {rate:.1e} bits a bit {bits}")
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
    options.add_argument(
        "--late", type=float, default=1.0, help="share of the steps with late scales, in the first half"
    )
    launch(work, options)
