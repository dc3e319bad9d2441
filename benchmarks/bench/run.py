"""The measurement itself: ceilings, limits, the text encoder, then all methods and the decoder in turn."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from torch import Tensor, nn

from comfy_moss.model.backbone import Backbone
from comfy_moss.model.graphs import Graphs
from comfy_moss.model.sampling import Guidance
from comfy_moss.ops import TORCH
from comfy_moss.pipeline.draft import Recipe

from .calls import DECODE, calls, refine_launches
from .limits import Limit, check_limits
from .machine import hardware, measure_ceilings, name_of, versions
from .measure import Say, run_rounds, spread
from .order import Order
from .rows import Rows, peak
from .shapes import build_backbone, build_text, kind_of
from .variants import Variant, ablation
from .work import Model

FORMAT = 1  # of the result; raised when a key changes its meaning
TEXT = "text"


def bench(order: Order, say: Say) -> dict[str, Any]:
    """Measure.

    Args:
        say: told what is being done, a line at a time.

    Returns:
        The result, ready for JSON; see docs/performance.md for what its numbers mean.  All times are in seconds.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = hardware(order.device)
    say("ceilings: a large matrix product and a large copy")
    ceilings = measure_ceilings(order.device, order.dtype)
    say("text encoder")
    text, encoding = _measure_text(order, say)
    say("weights")
    backbone = build_backbone(order.shape, order.device, order.dtype)
    say("limits")
    limits = _limits(order, backbone)
    main = [Variant(method.label, method, order.kernels, order.graphs) for method in order.methods]
    extra = ablation(order.methods, order.kernels, order.guided, order.graphs)
    kind = kind_of(order.shape)
    recipe = Recipe((text,), None, (0,), order.schedule, kind.guidance if order.guided else Guidance(1.0), kind.sampling)
    samples = run_rounds(order.device, calls(backbone, recipe, [*main, *extra]), order.runs, order.warmup, say)
    itemsize = next(backbone.transformer.blocks.parameters()).dtype.itemsize
    model = Model(backbone.work, backbone.depth, itemsize)
    rows = Rows(order, model, ceilings, samples, encoding, all(limit.passed for limit in limits))
    return {
        "format": FORMAT,
        "command": order.command,
        "date": started,
        "hardware": machine,
        "versions": versions(),
        "setting": _setting(order, backbone, len(text)),
        "ceilings": vars(ceilings),
        "limits": [{**vars(limit), "passed": limit.passed} for limit in limits],
        "text_s": spread(encoding),
        "decode_s": spread([sample.seconds for sample in samples[DECODE]]),
        "decode_peak_bytes": peak(samples[DECODE]),
        "methods": [rows.row(variant) for variant in main],
        "ablation": [rows.row(v) | {"refine_launches": refine_launches(backbone, recipe, v)} for v in extra],
    }


def _measure_text(order: Order, say: Say) -> tuple[Tensor, list[float]]:
    """A prompt's features and the seconds of each run.  The encoder is gone before the model comes, as in `generate`."""
    encode = build_text(order.shape, order.device, order.dtype)
    samples = run_rounds(order.device, {TEXT: encode}, order.runs, order.warmup, say)[TEXT]
    return samples[-1].result, [sample.seconds for sample in samples]


def _limits(order: Order, backbone: Backbone) -> list[Limit]:
    """With plain torch, which the ablation runs on, with the kernels of the order, and with those as graphs."""
    common = backbone.transformer.config.head_dim, order.device, order.dtype
    used = {kernels.name: kernels for kernels in (TORCH, order.kernels)}
    found = [limit for kernels in used.values() for limit in check_limits(*common, kernels, shape=order.shape)]
    return found + (check_limits(*common, order.kernels, Graphs(), order.shape) if order.graphs else [])


def _setting(order: Order, backbone: Backbone, prompt_tokens: int) -> dict[str, Any]:
    height, width = (backbone.stride * n for n in backbone.map_grid(order.schedule.grids[-1]))
    return {
        "shape": order.shape, "weights": backbone.model_id, "parameters": _count(backbone.transformer),
        "weight_bytes": sum(p.nbytes for part in (backbone.transformer, backbone.vae) for p in part.parameters()),
        "width": width, "height": height, "pixels": order.pixels, "aspect": order.aspect, "grids": order.schedule.grids,
        "prompt_tokens": prompt_tokens, "precision": name_of(order.dtype), "backend": order.kernels.name,
        "backend_reason": order.reason, "graphs": order.graphs, "guided": order.guided,
        "runs": order.runs, "warmup": order.warmup,
    }  # fmt: skip


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
