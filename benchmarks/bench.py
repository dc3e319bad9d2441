"""Time, memory and arithmetic of the methods on this machine: `python -m comfy_moss bench`.

First the machine's ceilings, the exact limits and the text encoder, then all methods and the decoder in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from comfy_moss.images import check_writable
from comfy_moss.model.backbone import PAPER, Backbone, Published
from comfy_moss.model.graphs import Graphs
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import Schedule, parse_aspect
from comfy_moss.ops import TORCH, Kernels, choose
from comfy_moss.pipeline.cost import Cost, Stopwatch
from comfy_moss.pipeline.draft import Recipe, Run, draft_of, empty_total
from comfy_moss.pipeline.plan import STAGES, Method, Plan, generate, run_pass
from comfy_moss.request import choose_device

from . import machine
from .limits import Limit, Wrapped, check_limits
from .machine import Ceilings, Sample, Say, name_of, run_rounds, spread, times_as_fast
from .shapes import Kind, build_backbone, build_text, default_pixels, kind_of
from .studio import parse_methods, refines
from .work import Roofline

FORMAT = 1  # of the result; raised when a key changes its meaning
OPTIONS = (
    "shape", "pixels", "aspect", "device", "precision", "backend", "methods", "runs", "warmup", "cfg",
    "graphs",
)
ABLATED = 4  # k of the ablation, where it is measured: the default method's
TEXT = "text"
DECODE = "decode"  # the decoder among the calls; among the stages of a picture it has the same name

# --- the request --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """A checked measurement.

    Attributes:
        shape: "nano" or a key of `shapes.SHAPES`.
        pixels: image area, a key of `schedule.PRESETS`.
        dtype: of the transformer's blocks, the codec and the text encoder.
        reason: why these kernels, in words.
        methods: by name, in the order of the tables.
        guided: run the unconditional rows too.
        graphs: run the transformer's passes as CUDA graphs.
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
    methods: Mapping[str, Method]
    runs: int
    warmup: int
    guided: bool
    graphs: bool
    command: str


def check(args: argparse.Namespace) -> Bench:
    """Refuse what is wrong with the options.

    Raises:
        ValueError: a value out of range, a device or backend that cannot be used, or a file that cannot be
            written.
    """
    if args.runs < 1 or args.warmup < 0:
        raise ValueError(
            f"at least 1 run and 0 warm-ups are needed, got --runs {args.runs} and --warmup {args.warmup}"
        )
    pixels, kind = args.pixels or default_pixels(args.shape), kind_of(args.shape)
    schedule = kind.schedule(parse_aspect(args.aspect), pixels)
    methods = parse_methods(args.methods or default_methods(kind.published), kind.published)
    for method in methods.values():
        method.tokens_per_scale(schedule)  # refuses what this schedule cannot carry
    for path in (args.json, args.markdown, args.profile, args.save and args.save / "result.json"):
        check_writable(path)
    device, dtype = choose_device(args.device, args.precision)
    _check_device(device, args.graphs == "on", kind)
    kernels, reason = choose(args.backend, device)
    return Bench(
        args.shape, pixels, args.aspect, schedule, device, dtype, kernels, reason, methods, args.runs,
        args.warmup,
        args.cfg == "on" and kind.guidance.active(len(schedule)), args.graphs == "on",
        _command(args, kind, pixels, device, dtype),
    )


def _check_device(device: torch.device, graphs: bool, kind: Kind) -> None:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"measured is on cpu and cuda only, not on {device.type}")
    if graphs and kind.published is not PAPER:
        raise ValueError("CUDA graphs are for Infinity's shapes; leave --graphs off")
    if graphs and device.type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, not {device.type}; leave --graphs off")


def _command(
    args: argparse.Namespace, kind: Kind, pixels: str, device: torch.device, dtype: torch.dtype
) -> str:
    """All that decides the measurement, spelled out; not where the result is written."""
    methods = args.methods or default_methods(kind.published)
    decided = {"pixels": pixels, "device": device, "precision": name_of(dtype), "methods": methods}
    named = {name: decided.get(name, getattr(args, name)) for name in OPTIONS}
    return "python -m comfy_moss bench " + " ".join(f"--{name} {value}" for name, value in named.items())


def default_methods(published: Published) -> str:
    """All methods of the paper, with its bounds for this family."""
    return ",".join(["dense", "fastvar", *(f"moss{k}" for k in published.bounds)])


# --- what is run --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A method with the kernels it runs on, as CUDA graphs or not, under the name that tables give it."""

    label: str
    method: Method
    kernels: Kernels
    graphs: bool = False

    @property
    def run(self) -> str:
        """What is run: the same for two variants that differ in their label alone."""
        what = str(self.method) if isinstance(self.method, Plan) else self.method.label
        return ", ".join([what, self.kernels.name, *["graphs"] * self.graphs])


def ablation(
    methods: Sequence[Method], kernels: Kernels, guided: bool, graphs: bool = False
) -> tuple[Variant, ...]:
    """The paper's ablation (Table 2) for one k, one change a row; none without a MoSs.

    Args:
        kernels: what the methods are measured on; where that is plain torch, the row of the kernels is
            missing.
        guided: also add the option to run the refine step without guidance.
        graphs: also add CUDA graphs.
    """
    refining = [method for method in methods if refines(method)]
    if not refining:
        return ()
    method = next((m for m in refining if m.k == ABLATED), refining[-1])
    name = method.label
    rows = [
        Variant(f"{name}, SA", _with(method, cross_scale=False), TORCH),
        Variant(f"{name}, CSSA", method, TORCH),
    ]
    if kernels != TORCH:
        rows.append(Variant(f"{name}, CSSA + kernels", method, kernels))
    if graphs:
        rows.append(replace(rows[-1], label=f"{rows[-1].label} + graphs", graphs=True))
    if guided:
        alone = f"{rows[-1].label}, no guidance in refine"
        rows.append(replace(rows[-1], label=alone, method=_with(method, guidance=False)))
    return tuple(rows)


def _with(plan: Plan, **settings: Any) -> Plan:
    """The plan with other settings of its passes."""
    return replace(plan, passes=tuple(replace(step, **settings) for step in plan.passes))


class Undecoded(Wrapped):
    """Hands the sum of codes through, so that `generate` takes the time of drawing alone."""

    def decode(self, total: Tensor) -> Tensor:
        return total


class Counting(Undecoded):
    """Counts what each pass through the transformer gives the GPU to do."""

    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner)
        self.launches: list[int] = []

    def forward(self, *args: Any, **options: Any) -> Tensor:
        count, hidden = machine.count_launches(self.device, partial(self.inner.forward, *args, **options))
        self.launches.append(count)
        return hidden


def calls(
    backbone: Backbone, recipe: Recipe, variants: Sequence[Variant]
) -> dict[str, Callable[[], Cost | None]]:
    """What is run in every round: each variant's drawing, by `Variant.run`, and the decoder, under DECODE."""
    total = empty_total(backbone, recipe).normal_()
    draws = {v.run: partial(_draw, _part(Undecoded, backbone, v), recipe, v) for v in variants}
    return draws | {DECODE: partial(_decode, backbone, total)}


def _part(kind: type[Undecoded], backbone: Backbone, variant: Variant) -> Undecoded:
    graphs = {"graphs": Graphs()} if variant.graphs else {}
    return kind(replace(backbone, kernels=variant.kernels, **graphs))


def _draw(backbone: Undecoded, recipe: Recipe, variant: Variant) -> Cost:
    return generate(backbone, recipe, variant.method).cost


@torch.inference_mode()
def _decode(backbone: Backbone, total: Tensor) -> None:
    backbone.decode(total)


def refine_launches(backbone: Backbone, recipe: Recipe, variant: Variant) -> int | None:
    """What the last pass, which is the refine step's, gives a GPU to do; None on a CPU, and for a graph."""
    if backbone.device.type != "cuda" or variant.graphs:
        return None
    counting = _part(Counting, backbone, variant)
    generate(counting, recipe, variant.method)
    return counting.launches[-1]


def on_a_gpu(backbone: Backbone, recipe: Recipe, variant: Variant) -> dict[str, Any]:
    """What a picture asks of a GPU and its driver: launches of the refine pass, waits while its codes are
    drawn, and with graphs how many passes were recorded and the bytes that takes; None on a CPU.
    """
    found: dict[str, Any] = {"refine_launches": refine_launches(backbone, recipe, variant)}
    part = _part(Undecoded, backbone, variant)
    found["waits"], _ = machine.count_waits(backbone.device, partial(_codes, part, recipe, variant))
    if variant.graphs:
        for _ in range(2):
            _codes(part, recipe, variant)
        graphs = part.inner.graphs
        found |= {"recorded_passes": graphs.recorded, "graph_bytes": graphs.nbytes}
    return found


def _codes(backbone: Undecoded, recipe: Recipe, variant: Variant) -> None:
    """Draw the codes of a picture; of a plan without what ends it."""
    if isinstance(variant.method, Plan):
        plan_of_picture(backbone, recipe, variant.method)
    else:
        generate(backbone, recipe, variant.method)


def plan_of_picture(backbone: Backbone, recipe: Recipe, plan: Plan) -> None:
    """The drafted scales and all passes of a plan, left on the device."""
    fitted = plan.on(recipe.schedule)
    with torch.inference_mode():
        live = Run.begin(backbone, recipe, plan.stored(recipe.schedule))
        draft = draft_of(live, fitted.draft)
        for n, step in enumerate(fitted.passes, start=1):
            store = n < len(fitted.passes)
            draft, live, _ = run_pass(live, draft, step, Stopwatch(torch.device("cpu")), store=store)


def _decoder(
    backbone: Backbone, recipe: Recipe, samples: Sequence[Sample], ceilings: Ceilings
) -> dict[str, float]:
    """The decoder's operations, and what part of its time they would take at the ceiling."""
    with torch.device("meta"):
        codec = deepcopy(backbone.vae).to("meta")
        total = empty_total(replace(backbone, vae=codec), recipe).to("meta")
    weight = next(codec.decoder.parameters())
    flops = machine.count_flops(lambda: codec.decode(total.to(weight)))
    seconds = spread([sample.seconds for sample in samples])["median"]
    return {"flops": flops, "roofline_share": flops / ceilings.flops / seconds}


def write_profile(setup: Bench, path: Path) -> None:
    """A trace of one picture by the last of the methods, from its prompt's features to its pixels."""
    backbone, kind = build_backbone(setup.shape, setup.device, setup.dtype), kind_of(setup.shape)
    graphs = {"graphs": Graphs()} if setup.graphs else {}
    backbone = replace(backbone, kernels=setup.kernels, **graphs)
    text = build_text(setup.shape, setup.device, setup.dtype)()
    guidance = kind.guidance if setup.guided else Guidance(1.0)
    recipe = Recipe((text,), None, (0,), setup.schedule, guidance, kind.sampling)
    method = list(setup.methods.values())[-1]
    for _ in range(2):  # so that a recorded pass replays in the trace
        generate(backbone, recipe, method)
    machine.write_trace(setup.device, partial(generate, backbone, recipe, method), path)


# --- the result ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """All that a row of the result is made from.

    Attributes:
        samples: by `Variant.run`, and the decoder's under DECODE; the same number for all, by round.
        encoding: seconds of each run of the text encoder.
        trusted: whether every limit holds; if not, no row tells a speed-up.
    """

    bench: Bench
    model: Roofline
    ceilings: Ceilings
    samples: Mapping[str, Sequence[Sample]]
    encoding: Sequence[float]
    trusted: bool

    def row(self, variant: Variant) -> dict[str, Any]:
        """One variant: what it does, what it allocates, and how long it takes, in bytes and seconds."""
        samples = self.samples[variant.run]
        drawing, whole = self._seconds(variant)
        cost, stages = samples[-1].result, [stage for stage in STAGES if stage != DECODE]
        return {
            "label": variant.label,
            "kernels": variant.kernels.name,
            "tokens": sum(cost.tokens_per_scale),
            "tokens_per_scale": list(cost.tokens_per_scale),
            "kv_bytes": cost.kv_bytes,
            # graphs keep memory, beside the others'
            "peak_bytes": None if self.bench.graphs else peak(samples),
            **self._work(variant, spread(drawing)["median"]),
            "drawing_s": spread(drawing),
            "end_to_end_s": spread(whole),
            "stages_s": {
                stage: spread([s.result.seconds[stage] for s in samples])["median"] for stage in stages
            },
            "rounds_s": drawing,
            **self._speed(drawing, whole),
        }

    def _work(self, variant: Variant, seconds: float) -> dict[str, float]:
        """Operations and bytes by arithmetic, and how much of the time they would take at the ceilings."""
        model, bench = self.model, self.bench
        before = model.work.before(bench.schedule)
        steps = variant.method.forward_passes(bench.schedule, bench.guided, before, model.depth)
        roofline = model.seconds(steps, self.ceilings)
        return {
            "flops": sum(map(model.flops, steps)), "bytes": sum(map(model.bytes, steps)),
            "roofline_s": roofline, "roofline_share": roofline / seconds,
        }

    def _seconds(self, variant: Variant) -> tuple[list[float], list[float]]:
        """Of every round: drawing, and the whole picture with that round's decoding and the prompt's median
        time."""
        drawing = [sample.seconds for sample in self.samples[variant.run]]
        decoding = [sample.seconds for sample in self.samples[DECODE]]
        return drawing, (np.median(self.encoding) + np.add(drawing, decoding)).tolist()

    def _speed(self, drawing: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
        names = ("times_as_fast", "times_as_fast_end_to_end")
        if not self.trusted:
            return dict.fromkeys(names)
        dense = Variant("dense", self.bench.methods["dense"], self.bench.kernels, self.bench.graphs)
        pairs = zip((drawing, whole), self._seconds(dense), strict=True)
        return dict(zip(names, (times_as_fast(ours, reference) for ours, reference in pairs), strict=True))


def peak(samples: Sequence[Sample]) -> int | None:
    """Most bytes of GPU memory in any of them; None on a CPU."""
    return max((sample.peak_bytes for sample in samples if sample.peak_bytes is not None), default=None)


def bench(setup: Bench, say: Say) -> dict[str, Any]:
    """Measure.

    Args:
        say: told what is being done, a line at a time.

    Returns:
        The result, ready for JSON; see docs/performance.md for what its numbers mean.  All times are in
        seconds.
    """
    facts = {
        "format": FORMAT, "command": setup.command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": machine.hardware(setup.device), "versions": machine.versions(),
    }
    say("ceilings: a large matrix product and a large copy")
    ceilings = machine.measure_ceilings(setup.device, setup.dtype)
    say("text encoder")
    text, encoding = _measure_text(setup, say)
    say("weights")
    backbone = build_backbone(setup.shape, setup.device, setup.dtype)
    say("limits")
    limits = _limits(setup, backbone)
    main = [Variant(name, method, setup.kernels, setup.graphs) for name, method in setup.methods.items()]
    extra = ablation(list(setup.methods.values()), setup.kernels, setup.guided, setup.graphs)
    kind = kind_of(setup.shape)
    guidance = kind.guidance if setup.guided else Guidance(1.0)
    prompt = kind.prompt(text, backbone, setup.schedule)
    recipe = Recipe((prompt,), None, (0,), setup.schedule, guidance, kind.sampling)
    samples = run_rounds(
        setup.device, calls(backbone, recipe, [*main, *extra]), setup.runs, setup.warmup, say
    )
    itemsize = next(backbone.transformer.blocks.parameters()).dtype.itemsize
    model = Roofline(backbone.work, backbone.depth, itemsize)
    rows = Rows(setup, model, ceilings, samples, encoding, all(limit.passed for limit in limits))
    return facts | {
        "setting": _setting(setup, backbone, len(text)),
        "ceilings": vars(ceilings),
        "limits": [{**vars(limit), "passed": limit.passed} for limit in limits],
        "text_s": spread(encoding),
        "decode_s": spread([sample.seconds for sample in samples[DECODE]]),
        "decode_peak_bytes": peak(samples[DECODE]),
        "methods": [rows.row(variant) for variant in main],
        "decoder": _decoder(backbone, recipe, samples[DECODE], ceilings),
        "ablation": [rows.row(v) | on_a_gpu(backbone, recipe, v) for v in extra],
    }


def _measure_text(setup: Bench, say: Say) -> tuple[Tensor, list[float]]:
    """A prompt's features and the seconds of each run.  The encoder is gone before the model comes."""
    encode = build_text(setup.shape, setup.device, setup.dtype)
    samples = run_rounds(setup.device, {TEXT: encode}, setup.runs, setup.warmup, say)[TEXT]
    return samples[-1].result, [sample.seconds for sample in samples]


def _limits(setup: Bench, backbone: Backbone) -> list[Limit]:
    """With plain torch, which the ablation runs on, with the kernels asked for, and with those as graphs."""
    common = backbone.transformer.config.head_dim, setup.device, setup.dtype
    used = {kernels.name: kernels for kernels in (TORCH, setup.kernels)}
    found = [
        limit for kernels in used.values() for limit in check_limits(*common, kernels, shape=setup.shape)
    ]
    return found + (check_limits(*common, setup.kernels, Graphs(), setup.shape) if setup.graphs else [])


def _setting(setup: Bench, backbone: Backbone, prompt_tokens: int) -> dict[str, Any]:
    height, width = (backbone.stride * n for n in backbone.map_grid(setup.schedule.grids[-1]))
    return {
        "shape": setup.shape, "weights": backbone.model_id, "parameters": _count(backbone.transformer),
        "weight_bytes": sum(
            p.nbytes for part in (backbone.transformer, backbone.vae) for p in part.parameters()
        ),
        "width": width, "height": height, "pixels": setup.pixels, "aspect": setup.aspect,
        "grids": setup.schedule.grids, "prompt_tokens": prompt_tokens, "precision": name_of(setup.dtype),
        "backend": setup.kernels.name, "backend_reason": setup.reason, "graphs": setup.graphs,
        "guided": setup.guided, "runs": setup.runs, "warmup": setup.warmup,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
