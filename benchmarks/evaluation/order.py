"""One order for an evaluation: everything that can be known to be right before anything slow."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comfy_moss.images import check_writable
from comfy_moss.model.catalog import default_roots
from comfy_moss.model.library import ModelFiles, find_model
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.pipeline.plan import Method
from comfy_moss.request import choose_device

from ..bench.machine import name_of
from ..suite import TASKS, Case, prompts
from .methods import parse_methods

OPTIONS = ("model", "methods", "per-task", "seed", "pixels", "device", "precision", "batch", "workers", "correlation")


@dataclass(frozen=True)
class Order:
    """A checked order.

    Attributes:
        methods: by name, in the order of the tables.
        cases: the six tasks in turn, so that any first part of them is balanced.
        others: for every case another one, whose caption its picture should not fulfil but by chance.
        correlated: of how many of the first prompts the correlation is measured.
        workers: processes that share the prompts.
        part: which of them this is, from 0; None = the one that starts them and puts the results together.
        options: what to type for the same again; `roots` adds where models are looked for.
    """

    files: ModelFiles
    pixels: str
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    methods: dict[str, Method]
    cases: tuple[Case, ...]
    others: tuple[Case, ...]
    seed: int
    batch: int
    correlated: int
    workers: int
    part: int | None
    out: Path | None
    options: tuple[str, ...]
    roots: tuple[str, ...]

    @property
    def batches(self) -> list[range]:
        """The numbers of the prompts of every batch."""
        count = len(self.cases)
        return [range(start, min(start + self.batch, count)) for start in range(0, count, self.batch)]


def check(args: argparse.Namespace) -> Order:
    """Refuse what is wrong with the order.

    Raises:
        ValueError: a value out of range, a device that cannot be used, a model that is not there, or an output that cannot be
            written.
    """
    _check_numbers(args)
    for path in (args.json, args.out and args.out / "run.json", args.save and args.save / "result.json"):
        check_writable(path)
    files = find_model(args.model, [*args.models, *default_roots()])
    methods = parse_methods(args.methods, files.published)
    pixels = args.pixels or files.area
    schedule = make_schedule(1.0, pixels)
    for method in methods.values():
        method.tokens_per_scale(schedule)
    device, dtype = choose_device(args.device, args.precision)
    cases = in_turn(prompts(args.per_task, args.seed))
    decided = {
        "methods": ",".join(methods), "pixels": pixels, "device": device, "precision": name_of(dtype),
        "workers": args.workers or usual_workers(device, -(-len(cases) // args.batch)),
    }  # fmt: skip
    return Order(
        files, pixels, schedule, device, dtype, methods, cases, partners(cases, args.seed), args.seed, args.batch,
        args.correlation, decided["workers"], args.part, args.out, _options(args, decided),
        tuple(f"--models={folder}" for folder in args.models),
    )  # fmt: skip


def usual_workers(device: torch.device, batches: int) -> int:
    """One on a GPU; on a CPU one a thread, up to four: looking at pictures is no work for several threads."""
    return 1 if device.type != "cpu" else min(torch.get_num_threads(), batches, 4)


def _check_numbers(args: argparse.Namespace) -> None:
    for name, value, least in (
        ("--per-task", args.per_task, 1), ("--batch", args.batch, 1), ("--workers", args.workers, 1),
        ("--correlation", args.correlation, 0), ("--seed", args.seed, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, got {value}")


def _options(args: argparse.Namespace, decided: dict[str, Any]) -> tuple[str, ...]:
    """All that decides the rows and their times, spelled out."""
    named = {name: decided.get(name, getattr(args, name.replace("-", "_"))) for name in OPTIONS}
    return tuple(word for name, value in named.items() for word in (f"--{name}", str(value)))


def in_turn(cases: list[Case]) -> tuple[Case, ...]:
    """Cases one of each task after another; `cases` holds as many of each."""
    tasks = [[case for case in cases if case.task == task] for task in TASKS]
    return tuple(case for group in zip(*tasks, strict=True) for case in group)


def partners(cases: tuple[Case, ...], seed: int) -> tuple[Case, ...]:
    """For every case another one, drawn at random, no two the same."""
    circle = np.random.default_rng(seed).permutation(len(cases)).tolist()
    follower = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    return tuple(cases[follower[n]] for n in range(len(cases)))
