"""Data-parallel training with single-threaded processes: on a few cores this beats OpenMP threads clearly."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor


def launch(work: Callable[[int, int, argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Add the options that trainers share, and run work(rank, workers, options) in every worker."""
    parser.add_argument(
        "--minutes", type=float, required=True, help="training time in all, resumed parts included"
    )
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of the resumable state; vae.pt comes first"
    )
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_enter, (work, f"file://{folder}/meeting", args), nprocs=args.workers)


def _enter(rank: int, work: Callable[..., None], meeting: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.workers)
    work(rank, args.workers, args)
    dist.barrier()  # nobody leaves while another still works
    dist.destroy_process_group()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over the workers; a missing one counts as zero."""
    parameters = list(parameters)
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(g.view_as(p))


def same_everywhere(value: float) -> float:
    """Worker 0's value, on every worker (clocks differ, and workers must agree on when to stop)."""
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0)
    return box.item()


def move_average(average: dict[str, Tensor], model: torch.nn.Module, decay: float) -> None:
    """Exponential moving average of the weights, in place."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)


def save_state(path: Path, **state: object) -> None:
    """Write a resumable state so that an interruption never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
