"""One order for measurements: everything that can be known to be right before anything slow."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from comfy_moss.images import check_writable
from comfy_moss.model.backbone import PAPER, Published
from comfy_moss.model.schedule import Schedule, parse_aspect
from comfy_moss.ops import Kernels, choose
from comfy_moss.pipeline.plan import Method
from comfy_moss.request import choose_device

from .machine import name_of
from .shapes import NANO, Kind, kind_of
from .variants import parse_methods

OPTIONS = ("shape", "pixels", "aspect", "device", "precision", "backend", "methods", "runs", "warmup", "cfg", "graphs")


@dataclass(frozen=True)
class Order:
    """A checked order.

    Attributes:
        shape: "nano" or a key of `shapes.SHAPES`.
        pixels: image area, a key of `schedule.PRESETS`.
        dtype: of the transformer's blocks, the codec and the text encoder.
        reason: why these kernels, in words.
        guided: run the unconditional rows too.
        graphs: run the transformer's passes as CUDA graphs.
        published: settings of the methods as printed for the shape's family.
        command: what to type for the same again.
    """

    shape: str
    pixels: str
    aspect: str
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    kernels: Kernels
    reason: str
    methods: tuple[Method, ...]
    runs: int
    warmup: int
    guided: bool
    graphs: bool
    published: Published
    command: str


def check(args: argparse.Namespace) -> Order:
    """Refuse what is wrong with the order.

    Raises:
        ValueError: a value out of range, a device or backend that cannot be used, or a file that cannot be written.
    """
    if args.runs < 1 or args.warmup < 0:
        raise ValueError(f"at least 1 run and 0 warm-ups are needed, got --runs {args.runs} and --warmup {args.warmup}")
    pixels = args.pixels or default_pixels(args.shape)
    kind = kind_of(args.shape)
    schedule = kind.schedule(parse_aspect(args.aspect), pixels)
    methods = parse_methods(args.methods or default_methods(kind.published), kind.published)
    for method in methods:
        method.tokens_per_scale(schedule)  # refuses what this schedule cannot carry
    for path in (args.json, args.markdown, args.save and args.save / "result.json"):
        check_writable(path)
    device, dtype = choose_device(args.device, args.precision)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"measured is on cpu and cuda only, not on {device.type}")
    if args.graphs == "on" and kind.published is not PAPER:
        raise ValueError("CUDA graphs are for Infinity's shapes; leave --graphs off")
    if args.graphs == "on" and device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, not {device.type}; leave --graphs off")
    kernels, reason = choose(args.backend, device)
    return Order(
        args.shape, pixels, args.aspect, schedule, device, dtype, kernels, reason, methods, args.runs, args.warmup,
        args.cfg == "on", args.graphs == "on", kind.published, _command(args, kind, pixels, device, dtype),
    )  # fmt: skip


def _command(args: argparse.Namespace, kind: Kind, pixels: str, device: torch.device, dtype: torch.dtype) -> str:
    """All that decides the measurement, spelled out; not where the result is written."""
    methods = args.methods or default_methods(kind.published)
    decided = {"pixels": pixels, "device": device, "precision": name_of(dtype), "methods": methods}
    named = {name: decided.get(name, getattr(args, name)) for name in OPTIONS}
    return "python -m comfy_moss bench " + " ".join(f"--{name} {value}" for name, value in named.items())


def default_methods(published: Published) -> str:
    """All methods of the paper, with its bounds for this family."""
    return ",".join(["dense", "fastvar", *(f"moss{k}" for k in published.bounds)])


def default_pixels(shape: str) -> str:
    """The embedded model's own size, and for the released shapes the paper's one megapixel."""
    return "0.25M" if shape == NANO else "1M"
