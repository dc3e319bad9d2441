"""The machine: what it is, what it can do at best, and how calls are timed on it: in turn, told as median and
spread."""

from __future__ import annotations

import os
import platform
import random
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from comfy_moss import __version__

Result = TypeVar("Result")
Say = Callable[[str], None]  # progress, a line at a time


def hardware(device: torch.device) -> dict[str, Any]:
    """What runs the measurement; load_average is that of the last minute, before it began, None where it is
    not told."""
    facts = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device.type != "cuda":
        return {"device": facts["processor"], **facts}
    card = torch.cuda.get_device_properties(device)
    capability = f"{card.major}.{card.minor}"
    return {"device": card.name, **facts, "capability": capability, "memory_bytes": card.total_memory}


def _processor() -> str:
    """The processor's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of everything that decides speed; what is not installed is left out."""
    found = {"comfy_moss": __version__, "python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    for package in ("triton", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def timed(device: torch.device, call: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that a call takes from an idle device to an idle device, and what it returned.

    CUDA events on a GPU, the wall clock elsewhere.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, result
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = call()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000, result


def peak_memory(device: torch.device, call: Callable[[], Result]) -> tuple[int | None, Result]:
    """Most bytes allocated on a GPU during a call, weights included, and what it returned; None elsewhere."""
    if device.type != "cuda":
        return None, call()
    torch.cuda.reset_peak_memory_stats(device)
    result = call()
    return torch.cuda.max_memory_allocated(device), result


def peak_allocated(call: Callable[[], Result]) -> tuple[int, Result]:
    """Most bytes that torch had allocated on the CPU during a call above those before it, and what it
    returned: every allocation and release, as torch's profiler tells them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        result = call()
    events = (event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]")
    now = most = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events):
        now += change
        most = max(most, now)
    return most, result


def count_launches(device: torch.device, call: Callable[[], Result]) -> tuple[int, Result]:
    """How many kernels, copies and fills a GPU was given during a call, and what the call returned."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        result = call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in trace.events()), result


def count_waits(device: torch.device, call: Callable[[], Result]) -> tuple[int | None, Result]:
    """How often the processor waited for a GPU during a call, as torch tells it, and what the call returned;
    None elsewhere.
    """
    if device.type != "cuda":
        return None, call()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in told), result


def write_trace(device: torch.device, call: Callable[[], object], path: Path) -> None:
    """Write what a call does, operation by operation, as a trace for chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    call()  # once unmeasured
    with profile(activities=activities) as trace:
        call()
    path.parent.mkdir(parents=True, exist_ok=True)
    trace.export_chrome_trace(str(path))


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a call."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Ceilings:
    """The best this device did in large, simple work.

    Attributes:
        flops: floating-point operations a second in a matrix product, two for each multiply-add.
        bandwidth: bytes a second in a copy, read and written ones counted.
        how: what was run.
    """

    flops: float
    bandwidth: float
    how: str


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, side: int | None = None, copied: int | None = None,
    runs: int = 5,
) -> Ceilings:
    """Run a large square matrix product and a large copy; the fastest of several runs counts, on random
    values.

    Args:
        dtype: of the matrices.
        side: of the matrices; copied: bytes in the copy's source.  None = enough to fill this kind of device.
    """
    large = device.type == "cuda"
    side, copied = side or (8192 if large else 3072), copied or (2**30 if large else 2**29)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = _fastest(device, partial(torch.matmul, left, right), runs)
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = _fastest(device, partial(target.copy_, source), runs)
    what = f"{side} x {side} matrix product in {name_of(dtype)}, copy of {copied / 2**20:g} MiB"
    return Ceilings(2 * side**3 / product, 2 * copied / copy, f"{what}, fastest of {runs}")


def _fastest(device: torch.device, call: Callable[[], object], runs: int) -> float:
    timed(device, call)  # once unmeasured
    return min(timed(device, call)[0] for _ in range(runs))


def name_of(dtype: torch.dtype) -> str:
    """fp32 or bf16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


# --- rounds -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One measured call: its time, its peak of GPU memory (None on a CPU), and what it returned."""

    seconds: float
    peak_bytes: int | None
    result: Any


def run_rounds(
    device: torch.device, calls: Mapping[str, Callable[[], Any]], runs: int, warmup: int, say: Say
) -> dict[str, list[Sample]]:
    """Run all calls once a round, in an order drawn anew for each: a slow minute of the machine hits all
    alike.

    Args:
        runs: rounds that are measured, after `warmup` rounds that are not.
        calls: what they return is kept, so it should be small.

    Returns:
        Per call, its samples by round.
    """
    order, names = random.Random(0), list(calls)
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for turn in range(-warmup, runs):
        order.shuffle(names)
        part = f"round {turn + 1}/{runs}" if turn >= 0 else f"warm-up {turn + warmup + 1}/{warmup}"
        for name in names:
            say(f"{part}: {name}")
            peak, (seconds, result) = peak_memory(device, partial(timed, device, calls[name]))
            samples[name] += [Sample(seconds, peak, result)] * (turn >= 0)
    return samples


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Median and interquartile range; the latter is None for a single value."""
    low, median, high = np.percentile(values, (25, 50, 75)).tolist()
    return {"median": median, "iqr": high - low if len(values) > 1 else None}


def times_as_fast(samples: Sequence[float], reference: Sequence[float]) -> dict[str, float | None]:
    """Spread of the reference's seconds over these, each pair from one round."""
    return spread(np.divide(reference, samples))
