"""Time every kernel beside its torch twin and the vendor's own, at the shapes of Infinity-2B's refine step.

    python -m benchmarks.kernels                       # on the GPU if there is one
    python -m benchmarks.kernels --json kernels.json   # also as JSON
    python -m benchmarks.kernels --tune                # attention with other tiles, too

Everything that is timed is first compared with the twin in float64, and may err twice as much as the twin
itself; what errs more is not timed, and the exit code is 1.  All rivals of an operation run in turn, in every
round anew, each with a cold L2. TB/s counts the bytes that must be moved, each once, and TFLOP/s the
operations of attention, whatever a rival really does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from comfy_moss.kernels import reference
from comfy_moss.model.cache import KVCache
from comfy_moss.ops import TORCH, Kernels, choose, merged_attention

from .machine import hardware, spread, versions

# drafted, dispatched: MoSs2 to 5, and 988 padded
SHAPES = ((4121, 1600), (2521, 995), (1497, 1613), (921, 988), (921, 1024))
TILES = (
    (128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 3), (128, 32, 4, 3), (128, 128, 8, 2), (64, 64, 4, 2),
    (64, 64, 4, 3),
)
VENDORS = {
    "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
RATES = ("terabytes_s", "teraflops")
# bytes: more than any L2 holds, and long enough to write that a call's launches are queued meanwhile
FLUSH = 512 * 2**20

Call = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """One operation at one shape.

    Attributes:
        twin: the definition; runs in float64 on `arguments` turned to float64.
        rivals: by name, what is compared, each called with `arguments`.
        moved: bytes read and written at least; flops: of matrix products.
    """

    operation: str
    twin: Call
    arguments: tuple
    rivals: dict[str, Call]
    moved: int
    flops: int = 0


@dataclass(frozen=True)
class Shape:
    """Sizes of one refine step: rows, tokens in the cache, new tokens, heads, channels of a head."""

    rows: int
    past: int
    tokens: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)


def rope_cases(shape: Shape, kinds: Sequence[Kernels]) -> Iterator[Case]:
    """Without and with a place in the cache."""
    channels, element = shape.rows * shape.tokens * shape.heads * shape.size, shape.dtype.itemsize
    angles = shape.random(shape.rows, shape.tokens, shape.size // 2, dtype=torch.float32)
    qkv = shape.random(shape.rows, shape.tokens, 3, shape.heads, shape.size)
    args = qkv, shape.random(shape.heads), angles.cos(), angles.sin()
    tables = 2 * angles.nbytes
    rivals = {kind.name: kind.cosine_rope2d for kind in kinds}
    yield Case("cosine_rope2d", TORCH.cosine_rope2d, args, rivals, 4 * channels * element + tables)
    cache = KVCache(
        [shape.past + shape.tokens], shape.rows, shape.heads, shape.size, shape.dtype, shape.device
    )
    cache.lengths = [shape.past]
    room = cache.room(0, shape.tokens)
    rivals = {kind.name: partial(kind.cosine_rope2d, into=room) for kind in kinds}
    yield Case("cosine_rope2d into cache", TORCH.cosine_rope2d, args, rivals, 6 * channels * element + tables)


def attention_cases(
    shape: Shape, kinds: Sequence[Kernels], tiles: Sequence[tuple[int, ...]]
) -> Iterator[Case]:
    """All see all, and the ablation by scales; torch's own backends are given the joined segments for
    nothing."""
    q, *new = (shape.random(shape.rows, shape.heads, shape.tokens, shape.size) for _ in range(3))
    q = q * 3 / shape.size**0.5  # scores about as far apart as a trained model's
    segments = (tuple(shape.random(2, shape.rows, shape.heads, shape.past, shape.size)), tuple(new))
    joined = [torch.cat(pair, dim=2) for pair in zip(*segments, strict=True)]
    total = shape.past + shape.tokens
    moved = 2 * shape.rows * shape.heads * shape.size * (total + shape.tokens) * shape.dtype.itemsize
    flops = 4 * shape.rows * shape.heads * shape.size * total * shape.tokens
    rivals: dict[str, Call] = {kind.name: kind.cross_scale_attention for kind in kinds}
    for kind in kinds[1:]:
        rivals |= {f"triton {tile}": partial(kind.cross_scale_attention, tile=_tile(tile)) for tile in tiles}
    vendors = {f"{name}, no joining": partial(_vendor, backend, *joined) for name, backend in VENDORS.items()}
    available = {name: call for name, call in vendors.items() if shape.device.type == "cuda"}
    yield Case(
        "cross_scale_attention", TORCH.cross_scale_attention, (q, segments), rivals | available, moved, flops
    )
    scales = (torch.arange(shape.tokens, device=shape.device) * 4 // shape.tokens).int()
    rivals = {kind.name: kind.cross_scale_attention for kind in kinds}
    yield from merging_cases(shape, kinds, segments, q)
    yield Case(
        "cross_scale_attention by scale", TORCH.cross_scale_attention, (q, segments, scales), rivals, moved,
        flops,
    )


def merging_cases(
    shape: Shape, kinds: Sequence[Kernels], segments: Sequence[tuple[Tensor, Tensor]], q: Tensor
) -> Iterator[Case]:
    """What merges two parts; on a GPU attention in two parts stands beside the others, too."""
    parts = [reference.partial_attention(q.float(), k.float(), v.float()) for k, v in segments]
    args = tuple((out.to(shape.dtype), log_sum) for out, log_sum in parts)
    rivals = {kind.name: kind.merge_attention for kind in kinds}
    yield Case("merge_attention", TORCH.merge_attention, args, rivals, 3 * q.nbytes)
    if shape.device.type == "cuda":
        merged = partial(merged_attention, merge=kinds[-1].merge_attention)
        rivals = {"vendor in two parts": merged, "torch, joining": TORCH.cross_scale_attention}
        flops = 4 * q.numel() * sum(k.shape[2] for k, _ in segments)
        args, twin = (q, segments), TORCH.cross_scale_attention
        yield Case("attention in two parts", twin, args, rivals, 4 * q.nbytes, flops)


def _tile(sizes: tuple[int, ...]) -> object:
    from comfy_moss.kernels.cross_scale_attention import Tile

    return Tile(*sizes)


def _vendor(backend: SDPBackend, k: Tensor, v: Tensor, q: Tensor, segments: object) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def norm_cases(shape: Shape, kinds: Sequence[Kernels]) -> Iterator[Case]:
    """The norms round to the weights' dtype; the residual stream is float32."""
    width = shape.heads * shape.size
    x, y = shape.random(
        shape.rows, shape.tokens, width, dtype=torch.float32
    ), shape.random(shape.rows, shape.tokens, width)
    vectors = shape.random(shape.rows, 1, 6, width, dtype=torch.float32)
    weight, bias = shape.random(2, width)
    for name, args in (
        ("modulated_norm", (x, vectors[:, :, 2], vectors[:, :, 4])), ("affine_norm", (x, weight, bias))
    ):
        rivals = {kind.name: partial(getattr(kind, name), dtype=shape.dtype) for kind in kinds}
        yield Case(
            name, partial(getattr(TORCH, name), dtype=torch.float64), args, rivals, x.nbytes + y.nbytes
        )
    rivals = {kind.name: kind.gated_add for kind in kinds} | {"addcmul": torch.addcmul}
    yield Case("gated_add", TORCH.gated_add, (x, vectors[:, :, 1], y), rivals, 2 * x.nbytes + y.nbytes)


def fused_cases(shape: Shape, kinds: Sequence[Kernels]) -> Iterator[Case]:
    """The residual add with its norm, the product with GELU, and the codec's norm at 256 x 256 pixels."""
    width = shape.heads * shape.size
    x = shape.random(shape.rows, shape.tokens, width, dtype=torch.float32)
    y, vectors = shape.random(shape.rows, shape.tokens, width), shape.random(shape.rows, 1, 3, width).float()
    rivals = {kind.name: partial(kind.add_norm, dtype=shape.dtype) for kind in kinds}
    args = (x, y, vectors[:, :, 0], vectors[:, :, 1], vectors[:, :, 2], True)
    twin = partial(TORCH.add_norm, dtype=torch.float64)
    yield Case("add_norm", twin, args, rivals, 2 * x.nbytes + 2 * y.nbytes)
    weight, bias = shape.random(4 * width, width) / width**0.5, shape.random(4 * width)
    rivals = {kind.name: kind.linear_gelu for kind in kinds}
    moved = y.nbytes + weight.nbytes + 4 * y.nbytes
    yield Case("linear_gelu", TORCH.linear_gelu, (y, weight, bias), rivals, moved, 8 * y.numel() * width)
    side = 256 if shape.device.type == "cuda" else 16
    image = shape.random(1, 256, side, side).contiguous(memory_format=torch.channels_last)
    rivals = {kind.name: kind.group_norm_silu for kind in kinds}
    args = (image, 32, shape.random(256), shape.random(256))
    yield Case("group_norm_silu", TORCH.group_norm_silu, args, rivals, 3 * image.nbytes)


def errors(case: Case) -> dict[str, float | str]:
    """Largest error of every rival, as a multiple of the twin's allowance; in words where it does not run."""
    exact = _parts(case.twin(*_in_double(case.arguments)))
    found: dict[str, float | str] = {}
    allowed: list[float] = []
    for name, call in case.rivals.items():
        try:
            parts = _parts(call(*case.arguments))
        # a backend that does not take this dtype, or a tile that does not fit
        except (RuntimeError, ValueError) as error:
            found[name] = f"does not run: {str(error).partition(chr(10))[0]}"
            continue
        off = [(part.double() - right).abs().max().item() for part, right in zip(parts, exact, strict=True)]
        eps = torch.finfo(torch.float32).eps
        allowed = allowed or [
            2 * e + 4 * eps * right.abs().max().item() for e, right in zip(off, exact, strict=True)
        ]
        found[name] = max(e / limit for e, limit in zip(off, allowed, strict=True))
    return found


def _parts(value: object) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _in_double(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return tuple(_in_double(part) for part in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """One run: on a GPU between two events, queued behind work that empties the L2 and hides the launches of
    short calls."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    torch.empty(FLUSH, dtype=torch.uint8, device=device).zero_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def measure(case: Case, shape: Shape, runs: int) -> Iterator[dict]:
    """A row for every rival; those that err too much or do not run have a null time."""
    checked = errors(case)
    sound = [name for name, error in checked.items() if isinstance(error, float) and error <= 1]
    times: dict[str, list[float]] = {name: [] for name in sound}
    for turn in range(runs + 2):
        for name in sound:
            spent = seconds(shape.device, partial(case.rivals[name], *case.arguments))
            if turn >= 2:
                times[name].append(spent)
    for name, error in checked.items():
        row = {
            "operation": case.operation, "past": shape.past, "tokens": shape.tokens, "rival": name,
            "error": error,
        }
        yield row | (
            _speed(case, times[name]) if name in times else dict.fromkeys(("median_us", "iqr_us", *RATES))
        )


def _speed(case: Case, times: list[float]) -> dict[str, float | None]:
    found = spread(times)
    rates = (work / found["median"] / 1e12 for work in (case.moved, case.flops))
    return {
        "median_us": 1e6 * found["median"], "iqr_us": 1e6 * (found["iqr"] or 0.0),
        **dict(zip(RATES, rates, strict=True)),
    }


def line(row: dict) -> str:
    head = f"{row['operation']:30} {row['past']:5} {row['tokens']:5}  {row['rival']:26}"
    if row["median_us"] is None:
        reason = row["error"] if isinstance(
            row["error"], str
        ) else f"WRONG: {2 * row['error']:.3g} times the twin's error"
        return f"{head} {reason}"
    return (
        f"{head} {row['median_us']:9.1f} us  IQR {row['iqr_us']:7.1f}  {row['terabytes_s']:7.3f} TB/s  "
        f"{row['teraflops']:7.1f} TFLOP/s  error {row['error']:.2f} of what is allowed"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rows", type=int, default=2, help="batch rows, unconditional ones included")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--head-dim", type=int, default=128)
    pair = lambda text: tuple(map(int, text.split("x")))  # noqa: E731
    parser.add_argument(
        "--shapes", type=pair, nargs="+", default=SHAPES, help="drafted x dispatched tokens, such as 921x988"
    )
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--tune", action="store_true", help="also attention with other tiles")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.inference_mode()
def main() -> int:
    args, rows = parse(), []
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    found, reason = choose("auto", device)
    kinds = [TORCH] if found is TORCH else [TORCH, choose("triton", device)[0]]
    machine = hardware(device) | versions()
    sizes = f"{args.dtype}, {args.rows} rows, {args.heads} heads of {args.head_dim}"
    sys.stdout.write(f"{machine['device']}, {sizes}; {reason}\n")
    for past, tokens in args.shapes:
        torch.manual_seed(0)
        shape = Shape(args.rows, past, tokens, args.heads, args.head_dim, dtype, device)
        attention = attention_cases(shape, kinds, TILES if args.tune else ())
        rest = (norm_cases(shape, kinds), fused_cases(shape, kinds))
        for cases in (rope_cases(shape, kinds), attention, *rest):
            for case in cases:
                for row in measure(case, shape, args.runs):
                    rows.append(row)
                    sys.stdout.write(line(row) + "\n")
                    sys.stdout.flush()
    if args.json:
        setting = {key: getattr(args, key) for key in ("dtype", "rows", "heads", "head_dim", "runs")}
        result = {"hardware": machine, "backend": reason, "setting": setting, "rows": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(isinstance(row["error"], float) and not row["error"] <= 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
