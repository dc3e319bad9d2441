"""Cost: what a picture took, as measured, and what a method takes in multiply-adds, as predicted from its
token counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model.backbone import TokenWork
from ..model.schedule import Schedule

# stages that depend on what ran before and on what is shown, not on the method
AROUND = ("load", "rebuild", "preview")


class Stopwatch:
    """Seconds by stage.  On a GPU marks are left in its queue, and waited for when somebody reads them."""

    def __init__(self, device: torch.device, stages: Sequence[str] = ()) -> None:
        self.device = device
        self._seconds = dict.fromkeys(stages, 0.0)
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = self._mark()
        yield
        self._marks.append((name, start, self._mark()))

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, of all blocks so far; the same dictionary every time."""
        marks, self._marks = self._marks, []
        if marks and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for name, start, end in marks:
            spent = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
        return self._seconds

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


@dataclass(frozen=True)
class Cost:
    """What drawing took.

    Attributes:
        label: the method with its k, as `Method.label` writes it: "dense", "draft-4", "fastvar", "moss4".
        tokens_per_scale: tokens a picture, one number for every scale of the schedule, 0 where the
            transformer did not run.
        kv_bytes: of the largest KV cache that was allocated.
        seconds: wall time by stage, in the order they ran.
        refine_tokens: tokens a picture that refine passes drew.
        queue_to_latent: seconds from the queue to the finished latent, in the run of the graph that made it;
            None outside a host.
        model: what drew it, and what its file is taken for; empty outside a host.
    """

    label: str
    tokens_per_scale: tuple[int, ...]
    kv_bytes: int
    seconds: dict[str, float]
    refine_tokens: int = 0
    queue_to_latent: float | None = None
    model: str = ""

    def plus(self, seconds: Mapping[str, float], **changes: Any) -> Cost:
        """A copy with stages' times added, and with other fields replaced.  A stage that ran again counts
        both times.
        """
        summed = self.seconds | {
            stage: self.seconds.get(stage, 0.0) + more for stage, more in seconds.items()
        }
        return replace(self, **changes, seconds=summed)

    @property
    def total_seconds(self) -> float:
        """All that one waits for."""
        return sum(self.seconds.values())

    @property
    def method_seconds(self) -> float:
        """What the method itself takes: all but AROUND."""
        return sum(seconds for stage, seconds in self.seconds.items() if stage not in AROUND)


# --- multiply-adds, by arithmetic ---------------------------------------------------------------------------


@dataclass(frozen=True)
class ForwardPass:
    """Some layers of one forward pass, all of which run the same tokens.

    Attributes:
        rows: of the batch, unconditional ones included.
        tokens: new tokens a row.
        past: tokens a row in the cache.
        attended: over all new tokens of a row, how many tokens each attends to, itself included.
        stored: whether the new tokens go into the cache.
        layers: how many; None = all of them.
    """

    rows: int
    tokens: int
    past: int
    attended: int
    stored: bool
    layers: int | None = None

    @classmethod
    def of(
        cls, rows: int, past: int, counts: Sequence[int], stored: bool, cross_scale: bool = True
    ) -> ForwardPass:
        """A pass over that many tokens of every of its scales, which see each other or (SA) only their own
        scale.
        """
        tokens = sum(counts)
        seen = tokens**2 if cross_scale else sum(n**2 for n in counts)
        return cls(rows, tokens, past, tokens * past + seen, stored)

    def macs(self, work: TokenWork, depth: int = 1) -> float:
        """Multiply-adds of the blocks: their matrices, self-attention's scores and values."""
        layers = depth if self.layers is None else self.layers
        return self.rows * (self.tokens * work.linear + self.attended * work.attention) * layers / depth


def whole_scales(schedule: Schedule, scales: int, rows: int, prefix: int = 0) -> list[ForwardPass]:
    """The passes of drawing the first scales whole: each attends to all earlier ones and to itself.

    Args:
        prefix: tokens of the prompt that run with the first scale and stay in the cache; see `TokenWork`.
    """
    passes, past = [], 0
    for scale in range(scales):
        tokens = schedule.tokens(scale, scale + 1) + (0 if scale else prefix)
        passes.append(ForwardPass.of(rows, past, (tokens,), stored=scale < len(schedule) - 1))
        past += tokens
    return passes


# --- report -------------------------------------------------------------------------------------------------

_AROUND = f"{', '.join(AROUND[:-1])} and {AROUND[-1]}"


def report(
    cost: Cost, reference: Cost | None = None, psnr: float | None = None, ssim: float | None = None
) -> str:
    """The rows of `report_rows` as lines of plain text."""
    rows = report_rows(cost, reference, psnr, ssim)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def report_rows(
    cost: Cost, reference: Cost | None = None, psnr: float | None = None, ssim: float | None = None
) -> list[tuple[str, str]]:
    """A small table: names and values.

    Args:
        reference: what another picture took, with which this one is compared.
        psnr, ssim: likeness to the reference picture, in dB and up to 1.
    """
    data = report_data(cost, reference, psnr, ssim)
    rows = [
        *([("model", cost.model)] if cost.model else []),
        ("method", cost.label),
        ("drawn in order", f"{data['tokens']['in_order']} tokens a picture"),
        ("refined", f"{data['tokens']['refined']} tokens a picture"),
        ("tokens per scale", " ".join(map(str, cost.tokens_per_scale))),
        ("KV cache", f"{data['kv_mib']:.2f} MiB"),
        *((stage, _milliseconds(seconds)) for stage, seconds in cost.seconds.items() if seconds),
        ("total", _milliseconds(cost.total_seconds)),
    ]
    if cost.queue_to_latent is not None:
        rows.append(("queue to latent", f"{_milliseconds(cost.queue_to_latent)} in the run that made it"))
    if reference:
        rows.append((f"{reference.label} (reference)", f"{_milliseconds(reference.total_seconds)} in total"))
    if "times_as_fast" in data:
        rows.append(
            ("speed", f"{data['times_as_fast']:.2f} times as fast as the reference, without {_AROUND}")
        )
    if psnr is not None:
        rows.append(("PSNR", f"{psnr:.2f} dB against the reference picture"))
    if ssim is not None:
        rows.append(("SSIM", f"{ssim:.4f} against the reference picture"))
    return rows


def report_data(
    cost: Cost, reference: Cost | None = None, psnr: float | None = None, ssim: float | None = None
) -> dict[str, Any]:
    """The same as numbers, for JSON; arguments as of `report`.  What was not given is left out.

    Returns:
        method, tokens {in_order, refined, per_scale}, kv_bytes, kv_mib, seconds by stage, total_seconds and,
        in a host, queue_to_latent_seconds;
        reference {method, tokens, kv_bytes, ...} and, where both are above 0, times_as_fast: its
        method_seconds over this one's; psnr in dB, None for equal pictures (infinite, which JSON cannot say),
        and ssim.
    """
    data = _numbers(cost)
    if reference:
        data["reference"] = _numbers(reference)
        if cost.method_seconds > 0 and reference.method_seconds > 0:
            data["times_as_fast"] = reference.method_seconds / cost.method_seconds
    if psnr is not None:
        data["psnr"] = psnr if math.isfinite(psnr) else None
    if ssim is not None:
        data["ssim"] = ssim
    return data


def _numbers(cost: Cost) -> dict[str, Any]:
    refined = cost.refine_tokens
    return {
        "method": cost.label,
        "tokens": {
            "in_order": sum(cost.tokens_per_scale) - refined,
            "refined": refined,
            "per_scale": list(cost.tokens_per_scale),
        },
        "kv_bytes": cost.kv_bytes,
        "kv_mib": cost.kv_bytes / 2**20,
        "seconds": dict(cost.seconds),
        "total_seconds": cost.total_seconds,
    } | ({} if cost.queue_to_latent is None else {"queue_to_latent_seconds": cost.queue_to_latent}) | (
        {"model": cost.model} if cost.model else {}
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
