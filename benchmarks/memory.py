"""How much memory pictures take: `python -m benchmarks.memory` prints the table, `--measure` holds the
prediction against what torch allocates on the CPU, `--save` stores that, `--page` writes docs/memory.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from comfy_moss.images import write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.memory import weight_bytes
from comfy_moss.model.sampling import Guidance
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.memory import RESERVED, TEXT, Memory, predict
from comfy_moss.pipeline.plan import Method, parse_method, run

from . import kv_cache
from .machine import hardware, name_of, peak_allocated, versions
from .quality import memory, table
from .shapes import FLAN_T5_XL, NANO, build_backbone, kind_of

RESULT = Path(__file__).parent / "results" / "memory-cpu.json"
STORED = (RESULT, kv_cache.RESULT)
PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
CARDS = (8, 12, 16, 24)  # GiB
METHODS = ("dense", "moss2", "moss4", "moss5", "fastvar")
MEASURED = {NANO: "0.25M", "125m": "0.06M"}  # shapes, and areas at which a CPU draws them in seconds
SIZES = {"125m": ("0.06M",), "2b": ("0.25M", "1M"), "8b": ("0.25M", "1M")}
DRAWN = ("dense", "moss2", "moss4")
ALLOWED = 0.10  # of a prediction


@dataclass(frozen=True)
class Case:
    """One picture: a shape with its weights in so many bytes a number, or 8 bits, and a method at a size."""

    shape: str
    dtype: torch.dtype
    method: str
    pixels: str
    int8_cache: bool = False
    int8_weights: bool = False

    @cached_property
    def predicted(self) -> Memory:
        """By arithmetic, on a model without values."""
        backbone = replace(empty(self.shape, self.dtype), int8_cache=self.int8_cache)
        found = predict(backbone, self.plan, kind_of(self.shape).schedule(1.0, self.pixels), guided=True)
        if not self.int8_weights:
            return found
        saved = blocks(backbone) // 2  # of bfloat16
        layer = found.layer - saved // backbone.depth
        return replace(found, transformer=found.transformer - saved, layer=layer)

    @property
    def plan(self) -> Method:
        return parse_method(self.method, published=kind_of(self.shape).published)


def empty(shape: str, dtype: torch.dtype) -> Backbone:
    """A model of released sizes without values."""
    device = torch.device("cpu" if shape == NANO else "meta")
    return build_backbone(shape, device, dtype)


def blocks(backbone: Backbone) -> int:
    """Bytes of the large matrices."""
    return sum(p.nbytes for p in backbone.transformer.blocks.parameters() if p.dim() == 2)


# --- measured -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(shape: str, dtype: torch.dtype, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Drawing and decoding with random prompts: what torch allocates above the weights, and what was
    predicted.
    """
    backbone = build_backbone(shape, torch.device("cpu"), dtype)
    schedule = kind_of(shape).schedule(1.0, MEASURED[shape])
    text = torch.randn(TEXT, backbone.text_width, generator=torch.Generator().manual_seed(0))
    recipe = Recipe((text,), None, (0,), schedule, Guidance(3.0))
    rows = []
    for int8 in (False, True):
        model = replace(backbone, int8_cache=int8)
        for name in methods:
            method = parse_method(name, published=kind_of(shape).published)
            drawing, total = peak_allocated(partial(_drawn, model, recipe, method))
            decoding, _ = peak_allocated(partial(backbone.decode, total))
            found = predict(model, method, schedule, guided=True, text=TEXT)
            weights = found.transformer + found.codec
            rows.append({
                "shape": shape, "precision": name_of(dtype), "method": name, "int8_cache": int8,
                "weights": weights, "drawing": drawing, "predicted_drawing": found.drawing,
                "decoder": decoding, "predicted_decoder": found.decoder,
            })
    return rows


def _drawn(model: Backbone, recipe: Recipe, method: Method) -> torch.Tensor:
    from comfy_moss.pipeline.fastvar import finish_fastvar

    if method.label == "fastvar":
        return finish_fastvar(model, recipe, method)[0].total
    return run(model, recipe, method).total


def apart(row: dict[str, Any]) -> dict[str, float]:
    """How far a prediction is off, as a share of what was measured: of drawing, decoding and the whole peak.
    """
    peaks = [
        row["weights"] + max(row[first], row[second])
        for first, second in (("drawing", "decoder"), ("predicted_drawing", "predicted_decoder"))
    ]
    return {
        "drawing": row["predicted_drawing"] / row["drawing"] - 1,
        "decoder": row["predicted_decoder"] / row["decoder"] - 1, "peak": peaks[1] / peaks[0] - 1,
    }


# --- as tables ----------------------------------------------------------------------------------------------


def cards(cases: Sequence[Case]) -> str:
    """What fits on which card."""
    columns = [
        ("model", lambda case: case.shape.upper()), ("size", lambda case: _side(case)),
        ("weights, cache", _precision), ("method", lambda case: f"`{case.method}`"),
        *((f"{size} GB", lambda case, size=size: case.predicted.fit(size * 2**30)) for size in CARDS),
    ]
    return table(columns, cases, "<" * 4 + "<" * len(CARDS))


def parts(cases: Sequence[Case]) -> str:
    """What a picture takes, part by part."""

    def told(name: str) -> Callable[[Case], str]:
        return lambda case: memory(getattr(case.predicted, name))

    columns = [
        ("model", lambda case: case.shape.upper()), ("size", _side), ("weights, cache", _precision),
        ("method", lambda case: f"`{case.method}`"), ("transformer", told("transformer")),
        ("codec", told("codec")), ("cache", told("cache")), ("activations", told("activations")),
        ("decoder", told("decoder")), ("peak", told("peak")), ("streamed", told("least")),
    ]
    return table(columns, cases, "<" * 4 + ">" * 7)


def _side(case: Case) -> str:
    grid = kind_of(case.shape).schedule(1.0, case.pixels).grids[-1]
    side = 16 * grid[0] if case.shape != NANO else 8 * grid[0]
    return f"{side} x {side}"


def _precision(case: Case) -> str:
    weights = "8 bits" if case.int8_weights else {2: "bf16", 4: "fp32"}[case.dtype.itemsize]
    return f"{weights}, {'8 bits' if case.int8_cache else weights if not case.int8_weights else 'bf16'}"


def measured(rows: Sequence[dict[str, Any]]) -> str:
    """Prediction against measurement."""
    columns = [
        ("model", lambda row: row["shape"]), ("method", lambda row: f"`{row['method']}`"),
        ("weights, cache", lambda row: f"{row['precision']}, {'8 bits' if row['int8_cache'] else 'full'}"),
        ("weights", lambda row: memory(row["weights"])),
        *(
            column for name in ("drawing", "decoder") for column in (
                (name, lambda row, name=name: memory(row[name])),
                ("predicted", lambda row, name=name: memory(row[f"predicted_{name}"])),
                ("off by", lambda row, name=name: f"{100 * apart(row)[name]:+.1f} %"),
            )
        ),
        ("peak off by", lambda row: f"{100 * apart(row)['peak']:+.1f} %"),
    ]
    return table(columns, rows, "<<<" + ">" * 8)


def readme_cases() -> list[Case]:
    """Few enough to read: what people ask about."""
    half = torch.bfloat16
    wanted = [("125m", "0.06M", "dense"), *(("2b", "1M", name) for name in ("dense", "moss2", "moss4"))]
    wanted += [("8b", "0.25M", "moss4"), *(("8b", "1M", name) for name in ("dense", "moss2", "moss4"))]
    plain = [Case(shape, half, method, pixels) for shape, pixels, method in wanted]
    return [*plain, *(replace(case, int8_cache=True, int8_weights=True) for case in plain[1:])]


def all_cases() -> list[Case]:
    return [
        Case(shape, torch.bfloat16, method, pixels, int8_cache, int8_weights)
        for shape, sizes in SIZES.items() for pixels in sizes for method in METHODS
        for int8_cache, int8_weights in ((False, False), (True, False), (True, True))
    ]


def text_bytes() -> int:
    """Of flan-t5-xl's encoder in bfloat16."""
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**vars(FLAN_T5_XL), feed_forward_proj="gated-gelu")).bfloat16()
    return weight_bytes(model)


def page(result: dict[str, Any], cache: dict[str, Any] | None) -> str:
    """docs/memory.md."""
    text = (Path(__file__).parent / "text" / "memory.md").read_text(encoding="utf-8")
    facts = f"{result['hardware']['processor']}, torch {result['versions']['torch']}, `{result['command']}`"
    return text.format(
        cards=cards(readme_cases()), parts=parts(all_cases()), measured=measured(result["rows"]), facts=facts,
        text=memory(text_bytes()), reserved=memory(int(RESERVED)), prompt=TEXT,
        cache=kv_cache.section(cache) if cache else f"Not measured yet: `{kv_cache.COMMAND} --save`.",
    )


def measurement(shapes: Sequence[str]) -> dict[str, Any]:
    kinds = (torch.float32, torch.bfloat16)
    rows = [row for shape in shapes for dtype in kinds for row in measure(shape, dtype, DRAWN)]
    return {
        "command": f"python -m benchmarks.memory --measure {' '.join(shapes)}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(torch.device("cpu")), "versions": versions(), "rows": rows,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs="*", choices=MEASURED, metavar="SHAPE", help="nano, 125m")
    parser.add_argument("--save", action="store_true", help=f"store that as results/{RESULT.name}")
    parser.add_argument("--page", action="store_true", help="write docs/memory.md from the stored results")
    args = parser.parse_args()
    if args.page:
        found = (path.read_text(encoding="utf-8") if path.exists() else "null" for path in STORED)
        write_files({PAGE: page(*map(json.loads, found)).encode()})
        return 0
    if args.measure is None:
        sys.stdout.write(cards(readme_cases()) + "\n")
        return 0
    result = measurement(args.measure or list(MEASURED))
    if args.save:
        write_files({RESULT: (json.dumps(result, indent=1) + "\n").encode()})
    sys.stdout.write(measured(result["rows"]) + "\n")
    return int(any(abs(off) > ALLOWED for row in result["rows"] for off in apart(row).values()))


if __name__ == "__main__":
    sys.exit(main())
