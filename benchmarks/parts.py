"""Parts by themselves, on random weights: what the decoder, a whole drawing and the GPU's launches cost.

    python -m benchmarks.parts decoder     # the decoder at one megapixel in several ways, on the GPU if any
    python -m benchmarks.parts ratio       # HART-0.7B: moss2 and dense in turn, CPU, minutes a picture
    python -m benchmarks.parts ratio --shape 2b --method moss4 --device cuda --runs 5
    python -m benchmarks.parts launches    # what the refine step of Infinity-2B launches, without a GPU

decoder: all ways run in turn, in every round anew; PSNR is that against float32 decoded at once, of smooth
random codes. ratio: the pairs' ratios, each from one round, beside the bound: dense's multiply-adds in the
transformer's blocks over the method's.  Head, sampling and HART's residual diffusion are in the times and not
in the bound. launches: the transformer runs on the meta device, where nothing is computed, and every
operation that makes or fills a tensor is counted: with torch's operations, and with each kernel of kernels/
as the one launch that it is.  Attention counts as one launch in both.  On a GPU, `bench` counts what really
ran (column "launches in refine").
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from comfy_moss.model.backbone import Backbone, Pass, PositionedText, Step, Text
from comfy_moss.model.infinity import InfinityBackbone, InfinityTransformer
from comfy_moss.model.layers import join_biases
from comfy_moss.model.quantize import resample
from comfy_moss.model.schedule import Positions, make_schedule
from comfy_moss.model.strips import decode_in_strips
from comfy_moss.model.vae import VAE
from comfy_moss.ops import TORCH, Kernels, choose
from comfy_moss.pipeline.cost import Stopwatch
from comfy_moss.pipeline.draft import Recipe, Run, draft_of
from comfy_moss.pipeline.plan import parse_method, run_pass, share_of_dense

from .bench import DECODE, Variant, calls
from .machine import hardware, run_rounds, spread, times_as_fast, versions
from .shapes import SHAPES, fill_at_random
from .studio import parse_methods, refines

CELL = 16  # pixels, of the codecs of the 125M and 2B models
LENGTH = 20  # tokens of the prompt, where the model reads as many as there are
SCHEDULE = make_schedule()
TEXT, PAST, TOKENS = 20, 921, 988  # of the prompt, in the cache, and refined: MoSs5 at 1024 x 1024
LAUNCHES_NOTHING = {"detach", "alias", "empty", "empty_like", "new_empty", "_unsafe_view", "lift_fresh"}

# --- the decoder --------------------------------------------------------------------------------------------


def _ways(vae: VAE, codes: Tensor, kernels: Kernels) -> dict[str, partial]:
    last = codes.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": partial(_clamped, vae.decoder, codes),
        "channels last": partial(_clamped, vae.decoder, last),
        "channels last, fused norms": partial(_clamped, vae.decoder, last, kernels),
        "contiguous, in strips": partial(_clamped, partial(decode_in_strips, vae.decoder), codes),
        "channels last, in strips": partial(_clamped, partial(decode_in_strips, vae.decoder), last),
    }


def _clamped(decode: Callable[..., Tensor], *args: object) -> Tensor:
    return decode(*args).clamp(-1, 1)


@torch.inference_mode()
def decoder(args: argparse.Namespace) -> None:
    """Memory format, precision, fused norms and strips."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        vae = VAE(SHAPES["2b"].codec)
    vae = fill_at_random(vae, device, 0)
    smooth = torch.randn(1, vae.config.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = resample(smooth, (args.cells, args.cells)).to(device)
    exact = vae.decode(codes)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ways = {
        name: partial(_error, call, exact)
        for name, call in _ways(vae.to(dtype), codes.to(dtype), choose("auto", device)[0]).items()
    }
    _facts(device, pixels=args.cells * CELL, dtype=dtype)
    for name, rows in run_rounds(device, ways, args.runs or 3, 1, _say).items():
        seconds = statistics.median(row.seconds for row in rows)
        memory = f", peak {rows[0].peak_bytes / 2**30:.2f} GiB" if rows[0].peak_bytes else ""
        sys.stdout.write(f"{name:<34} {1000 * seconds:9.1f} ms{memory}, {rows[0].result:.1f} dB\n")


def _error(call: partial, exact: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    return (10 * (4 / (call().float() - exact).square().mean()).log10()).item()


# --- a drawing ----------------------------------------------------------------------------------------------


def _prompt(backbone: Backbone) -> Text:
    """Random features of a prompt; a model that keeps it in the cache reads a fixed length, and positions."""
    length = backbone.work.prefix + 1 if backbone.work.prefix else LENGTH
    features = torch.randn(length, backbone.text_width, generator=torch.Generator().manual_seed(0))
    if not backbone.work.prefix:
        return features
    return PositionedText(features, torch.arange(length).clamp_max(LENGTH - 1).float())


def ratio(args: argparse.Namespace) -> None:
    """A method and dense in turn."""
    device, kind = torch.device(args.device), SHAPES[args.shape]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    backbone, schedule = kind.build(device, dtype, f"random {args.shape}"), kind.schedule(1.0, "1M")
    recipe = Recipe((_prompt(backbone),), None, (0,), schedule, kind.guidance, kind.sampling)
    methods = parse_methods(args.method, kind.published)
    methods = {name: method for name, method in methods.items() if name in ("dense", args.method)}
    variants = {name: Variant(name, method, choose("auto", device)[0]) for name, method in methods.items()}
    made = calls(backbone, recipe, list(variants.values()))
    made.pop(DECODE)
    samples = run_rounds(device, made, args.runs or 1, args.warmup, _say)
    seconds = {name: [s.seconds for s in samples[variant.run]] for name, variant in variants.items()}
    _facts(device, dtype=dtype, shape=args.shape)
    for name, method in methods.items():
        tokens = sum(samples[variants[name].run][-1].result.tokens_per_scale)
        sys.stdout.write(
            f"{name}: {tokens} tokens, {spread(seconds[name])['median']:.1f} s {seconds[name]}\n"
        )
        if refines(method):
            bound = 1 / share_of_dense(method, schedule, backbone.work, guided=True, depth=backbone.depth)
            measured = times_as_fast(seconds[name], seconds["dense"])["median"]
            sys.stdout.write(f"dense : {name} = {measured:.2f} measured, {bound:.2f} by arithmetic\n")


# --- launches -----------------------------------------------------------------------------------------------


class Launches(TorchDispatchMode):
    """Counts operations by name; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        if not func.is_view and name not in LAUNCHES_NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class OneAttention(TorchFunctionMode):
    """Attention as the one kernel that it is on a GPU."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if func is F.scaled_dot_product_attention:
            self.launches.counts["attention"] += 1
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def fused(launches: Launches) -> Kernels:
    """Every kernel of kernels/ as one launch that returns what its twin returns."""

    def once(name: str, result: Callable[..., object]) -> Callable[..., object]:
        def launch(*args: object, **options: object) -> object:
            launches.counts[name] += 1
            return result(*args)

        return launch

    def like(x: Tensor, *_: object) -> Tensor:
        return torch.empty_like(x)

    def normed(
        x: Tensor, _scale: Tensor, _shift: Tensor, dtype: torch.dtype | None = None, *_: object
    ) -> Tensor:
        return torch.empty_like(x, dtype=dtype)

    def added(x: Tensor, *args: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=args[5])

    def roped(qkv: Tensor, *_: object) -> tuple[Tensor, ...]:
        return tuple(qkv.permute(2, 0, 3, 1, 4))

    def widened(x: Tensor, weight: Tensor, _bias: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:-1], len(weight))

    results = {
        "cosine_rope2d": roped, "modulated_norm": normed, "affine_norm": normed, "add_norm": added,
        "linear_gelu": widened,
    }
    names = [field.name for field in fields(Kernels) if field.name != "name"]
    return Kernels("fused", **{name: once(name, results.get(name, like)) for name in names})


def backbone_on_meta(kernels: Kernels = TORCH) -> InfinityBackbone:
    """Infinity-2B on the meta device, where nothing is computed."""
    config = SHAPES["2b"]
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(config.transformer), VAE(config.codec)
    transformer.blocks.to(torch.bfloat16)
    join_biases(transformer)
    return InfinityBackbone(transformer, vae.to(torch.bfloat16), "2b on meta", kernels=kernels)


@torch.inference_mode()
def count(kernels: Callable[[Launches], Kernels]) -> Counter[str]:
    """Launches of all blocks in one refine pass."""
    launches = Launches()
    backbone = backbone_on_meta(kernels(launches))
    config = backbone.transformer.config
    condition = backbone.condition([torch.empty(TEXT, config.text_width)], None, True, SCHEDULE)
    cache = backbone.new_cache(condition, PAST)
    cache.lengths = [PAST] * config.depth
    sizes = (2, TOKENS, config.width), (1, TOKENS, config.head_dim // 2)
    x, angles = (torch.empty(size, device="meta") for size in sizes)
    step = Step(Positions.of_scale(SCHEDULE, 0, "meta"), SCHEDULE, condition, cache=cache)
    with OneAttention(launches), launches:
        backbone.transformer(x, Pass(step, angles, angles, kernels=backbone.kernels))
    return launches.counts


@torch.inference_mode()
def count_picture(kernels: Callable[[Launches], Kernels], method: str) -> Counter[str]:
    """Launches of drawing a picture's codes: prompts, every pass and what lies around them; no codec."""
    launches = Launches()
    backbone = backbone_on_meta(kernels(launches))
    recipe = Recipe((torch.empty(TEXT, 2048),), None, (0,), SCHEDULE)
    plan = parse_method(method).on(SCHEDULE)
    with OneAttention(launches), launches:
        live = Run.begin(backbone, recipe, SCHEDULE.tokens(0, min(plan.draft, len(SCHEDULE) - 1)))
        draft = draft_of(live, plan.draft)
        for step in plan.passes:
            draft, live, _ = run_pass(live, draft, step, Stopwatch(torch.device("cpu")))
    return launches.counts


def launches(_args: argparse.Namespace) -> None:
    """With torch's operations, and with ours."""
    layers = SHAPES["2b"].transformer.depth
    for name, kernels in (("torch", lambda _: TORCH), ("kernels/", fused)):
        counts = count(kernels)
        parts = ", ".join(f"{operation} {number / layers:g}" for operation, number in counts.most_common())
        sys.stdout.write(f"{name}: {counts.total()} launches, a layer {counts.total() / layers:g}: {parts}\n")
        for method in ("dense", "moss5"):
            sys.stdout.write(f"{name}: {count_picture(kernels, method).total()} in all codes by {method}\n")


# --- the program --------------------------------------------------------------------------------------------


def _facts(device: torch.device, **more: object) -> None:
    told = {**hardware(device), **versions(), **more}
    sys.stdout.write(", ".join(f"{name}: {value}" for name, value in told.items()) + "\n")


def _say(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", choices=("decoder", "ratio", "launches"))
    add(
        "--cells", type=int, default=64,
        help="decoder: side of the code map (default: 64, that is 1024 pixels)",
    )
    add("--shape", choices=list(SHAPES), default="hart-0.7b", help="ratio: of the model (default: hart-0.7b)")
    add("--method", default="moss2", help="ratio: beside dense (default: moss2)")
    add("--device", default="cpu", help="ratio: where (default: cpu)")
    add("--runs", type=int, help="rounds (default: decoder 3, ratio 1)")
    add("--warmup", type=int, default=0, help="ratio: rounds before those (default: 0)")
    args = parser.parse_args()
    {"decoder": decoder, "ratio": ratio, "launches": launches}[args.part](args)


if __name__ == "__main__":
    main()
