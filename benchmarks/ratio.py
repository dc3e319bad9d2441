"""Time a MoSs method and dense in turn on random weights, without codec and text encoder, beside what arithmetic predicts.

    python benchmarks/ratio.py                                # HART-0.7B, moss2, on the CPU in float32: minutes a picture
    python benchmarks/ratio.py --shape 2b --method moss4 --device cuda --runs 5

Told are the pairs' ratios, each from one round, and the bound: dense's multiply-adds in the transformer's blocks over the
method's.  Head, sampling and HART's residual diffusion are in the times and not in the bound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path.remove(str(ROOT))  # the folder kernels/ must not pass for the package of that name

import torch  # noqa: E402

from comfy_moss.benchmarks.bench.calls import DECODE, calls  # noqa: E402
from comfy_moss.benchmarks.bench.machine import hardware, versions  # noqa: E402
from comfy_moss.benchmarks.bench.measure import run_rounds, spread, times_as_fast  # noqa: E402
from comfy_moss.benchmarks.bench.shapes import SHAPES  # noqa: E402
from comfy_moss.benchmarks.bench.variants import Variant, parse_methods  # noqa: E402
from comfy_moss.model.backbone import Backbone, PositionedText, Text  # noqa: E402
from comfy_moss.ops import choose  # noqa: E402
from comfy_moss.pipeline.draft import Recipe  # noqa: E402
from comfy_moss.pipeline.plan import share_of_dense  # noqa: E402

LENGTH = 20  # tokens of the prompt, where the model reads as many as there are


def prompt(backbone: Backbone) -> Text:
    """Random features of one prompt; a model that keeps it in the cache reads a fixed length, and positions."""
    length = backbone.work.prefix + 1 if backbone.work.prefix else LENGTH
    features = torch.randn(length, backbone.text_width, generator=torch.Generator().manual_seed(0))
    if not backbone.work.prefix:
        return features
    return PositionedText(features, torch.arange(length).clamp_max(LENGTH - 1).float())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="hart-0.7b")
    parser.add_argument("--method", default="moss2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0)
    args = parser.parse_args()
    device, kind = torch.device(args.device), SHAPES[args.shape]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backbone, schedule = kind.build(device, dtype, f"random {args.shape}"), kind.schedule(1.0, "1M")
    recipe = Recipe((prompt(backbone),), None, (0,), schedule, kind.guidance, kind.sampling)
    methods = [m for m in parse_methods(args.method, kind.published) if m.name != "draft"]
    kernels = choose("auto", device)[0]
    variants = {m.label: Variant(m.label, m, kernels) for m in methods}
    made = calls(backbone, recipe, list(variants.values()))
    made.pop(DECODE)
    samples = run_rounds(device, made, args.runs, args.warmup, _say)
    seconds = {label: [s.seconds for s in samples[v.run]] for label, v in variants.items()}
    told = {**hardware(device), **versions(), "dtype": str(dtype), "shape": args.shape}
    sys.stdout.write(", ".join(f"{name}: {value}" for name, value in told.items()) + "\n")
    for method in methods:
        times, cost = seconds[method.label], samples[variants[method.label].run][-1].result
        sys.stdout.write(f"{method.label}: {sum(cost.tokens_per_scale)} tokens, {spread(times)['median']:.1f} s {times}\n")
        if method.name == "moss":
            bound = 1 / share_of_dense(method, schedule, backbone.work, guided=True)
            ratio = times_as_fast(times, seconds["dense"])["median"]
            sys.stdout.write(f"dense : {method.label} = {ratio:.2f} measured, {bound:.2f} by arithmetic\n")


def _say(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


if __name__ == "__main__":
    main()
