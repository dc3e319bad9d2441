"""Report: what a picture took, beside a reference where there is one, for people and for programs."""

from __future__ import annotations

import math
from typing import Any

from .cost import AROUND, Cost

_AROUND = f"{', '.join(AROUND[:-1])} and {AROUND[-1]}"


def report(cost: Cost, reference: Cost | None = None, psnr: float | None = None, ssim: float | None = None) -> str:
    """A small table in plain text.

    Args:
        reference: what another picture took, with which this one is compared.
        psnr, ssim: likeness to the reference picture, in dB and up to 1.

    Returns:
        Lines of a name and a value.
    """
    data = report_data(cost, reference, psnr, ssim)
    rows = [
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
        rows.append(("speed", f"{data['times_as_fast']:.2f} times as fast as the reference, without {_AROUND}"))
    if psnr is not None:
        rows.append(("PSNR", f"{psnr:.2f} dB against the reference picture"))
    if ssim is not None:
        rows.append(("SSIM", f"{ssim:.4f} against the reference picture"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def report_data(
    cost: Cost, reference: Cost | None = None, psnr: float | None = None, ssim: float | None = None
) -> dict[str, Any]:
    """The same as numbers, for JSON; arguments as of `report`.  What was not given is left out.

    Returns:
        method, tokens {in_order, refined, per_scale}, kv_bytes, kv_mib, seconds by stage, total_seconds and, in a host,
        queue_to_latent_seconds;
        reference {method, tokens, kv_bytes, ...} and, where both are above 0, times_as_fast: its method_seconds over this one's;
        psnr in dB, None for equal pictures (infinite, which JSON cannot say), and ssim.
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
    } | ({} if cost.queue_to_latent is None else {"queue_to_latent_seconds": cost.queue_to_latent})


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
