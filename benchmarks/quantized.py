"""What weights in 8 bits change on nano: `python -m benchmarks.quantized --save`; `--page` writes the stored
result into docs/precision.md.

First which layers matter: the matrices of one kind in 8 bits, all others as they are; and how large the
numbers are that come out of them, which float16 has to hold.  Then all of them: size of the file, bits that
are drawn differently from the same bits before (teacher forcing), and the score with the paired difference.
"int8, ComfyUI" is int8 as its layers compute: they round what goes into a layer to 8 bits too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from comfy_moss.images import write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.checkpoint import transformer_from_state
from comfy_moss.model.infinity import InfinityTransformer
from comfy_moss.model.layers import Layers
from comfy_moss.model.quantized_weights import FORMATS, dequantized, quantized
from comfy_moss.model.tensors import Tensors, open_tensors
from comfy_moss.pipeline.draft import draw_draft
from comfy_moss.pipeline.plan import generate
from comfy_moss.request import Request, check

from .analysis import weights
from .draw import as_seen
from .kv_cache import agreement, difference, hits_of, score
from .machine import hardware, versions
from .quality import memory, span, table
from .shapes import SHAPES
from .studio import Studio, load, parse_methods
from .suite import Case, in_turn, prompts

METHODS = ("dense", "sparse3")
LAYERS = ("sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj", "ffn.fc1", "ffn.fc2")
RESULT = Path(__file__).parent / "results" / "quantized-nano.json"
PAGE = Path(__file__).parents[1] / "docs" / "precision.md"
HEADING = "## Weights in 8 bits, measured"
COMFYUI = "int8, ComfyUI"
SOME = 2  # batches that tell which layers matter


# --- models -------------------------------------------------------------------------------------------------


class Rounding(nn.Linear):
    """A linear layer that rounds its input to 8 bits, a scale a row, where `rounds` is set."""

    rounds = False
    weight_function = (None,)  # says that the layer must be called

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds:
            scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            x = (x / scale).round() * scale
        return F.linear(x, self.weight, self.bias)


class Operations:
    """Layers of plain torch, but linear ones."""

    Linear, Embedding, LayerNorm, RMSNorm = Rounding, nn.Embedding, nn.LayerNorm, nn.RMSNorm


def with_weights(backbone: Backbone, tensors: Tensors, rounds: bool = False) -> Backbone:
    """The model with other weights, whose blocks maybe round what goes into their layers."""
    layers = Layers(pick=lambda *_: Operations if rounds else nn)
    transformer = transformer_from_state(dequantized(tensors), "cpu", layers=layers)
    for layer in transformer.blocks.modules():
        if rounds and isinstance(layer, Rounding):
            layer.rounds = True
    return replace(backbone, transformer=transformer)


def variants(backbone: Backbone, tensors: Tensors) -> dict[str, Backbone]:
    """Every format."""
    found = {kind: with_weights(backbone, quantized(tensors, kind)) for kind in FORMATS}
    return found | {COMFYUI: with_weights(backbone, quantized(tensors, "int8"), True)}


def one_kind(tensors: Tensors, kind: str, layer: str) -> Tensors:
    """The matrices of one kind in 8 bits."""
    return quantized(tensors, kind, [other for other in LAYERS if other != layer])


def size(tensors: Tensors, packed: str | None) -> int:
    """Bytes of the file that `convert` writes: what is not in 8 bits, in bfloat16."""
    found = quantized(tensors, packed) if packed else tensors
    kinds = {name: found[name] for name in found}
    whole = (torch.uint8, torch.int8, torch.float8_e4m3fn)
    return sum(
        value.numel() * (value.element_size() if value.dtype in whole or name.endswith("_scale") else 2)
        for name, value in kinds.items()
    )


# --- measuring ----------------------------------------------------------------------------------------------


def measure(per_task: int, seed: int, batch: int) -> dict[str, Any]:
    """All of it; ready for JSON."""
    cases = in_turn(prompts(per_task, seed))
    asked = Request(prompt=cases[0].prompt, method="dense", seed=seed, device="cpu", precision="fp32")
    checked = check(asked)
    studio = load(checked, [case.prompt for case in cases])
    tensors = open_tensors(checked.files.transformer)
    models = variants(studio.backbone, tensors)
    methods = parse_methods(",".join(METHODS), checked.published)
    starts = range(0, len(cases), batch)
    kinds = {
        f"{kind}, {layer}": with_weights(studio.backbone, one_kind(tensors, kind, layer))
        for kind in FORMATS for layer in LAYERS
    }
    alike: dict[str, list[float]] = {name: [] for name in (*kinds, *models)}
    digits = {name: {model: "" for model in ("plain", *models)} for name in METHODS}
    for start in tqdm(starts, disable=not sys.stderr.isatty()):
        some = cases[start : start + batch]
        seeds = [seed + start + n for n in range(len(some))]
        asked_for = models if start >= SOME * batch else kinds | models
        for name, share in _agreed(studio, some, seeds, asked_for).items():
            alike[name].append(share)
        for name in METHODS:
            recipe = studio.recipe([case.prompt for case in some], seeds)
            for model, backbone in ({"plain": studio.backbone} | models).items():
                image = as_seen(generate(backbone, recipe, methods[name]).image)
                digits[name][model] += "".join(map(str, hits_of(image, some)))
    return {
        "command": f"python -m benchmarks.quantized --per-task {per_task} --seed {seed} --batch {batch}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(torch.device("cpu")), "versions": versions(),
        "tasks": [case.task for case in cases], "hits": digits,
        "agreement": {name: sum(shares) / len(shares) for name, shares in alike.items()},
        "bytes": {"plain": size(tensors, None)} | {kind: size(tensors, kind) for kind in FORMATS},
        "largest": largest(studio, tensors, cases[:batch], seed), "some": SOME * batch,
    }


def _agreed(
    studio: Studio, cases: Sequence[Case], seeds: Sequence[int], models: dict[str, Backbone]
) -> dict[str, float]:
    """Share of dense's bits that each model draws alike from the plain model's bits before."""
    recipe = studio.recipe([case.prompt for case in cases], seeds)
    whole, _ = draw_draft(studio.backbone, recipe, len(recipe.schedule))
    tokens = [h * w for h, w in recipe.schedule.grids]

    def share(backbone: Backbone) -> float:
        scales = agreement(backbone, recipe, whole.bits)
        return sum(a * n for a, n in zip(scales, tokens, strict=True)) / sum(tokens)

    return {name: share(backbone) for name, backbone in models.items()}


def largest(studio: Studio, tensors: Tensors, cases: Sequence[Case], seed: int) -> dict[str, float]:
    """The largest number that comes out of each kind of layer while pictures are drawn, without its sign."""
    backbone, most = with_weights(studio.backbone, tensors, True), dict.fromkeys(LAYERS, 0.0)
    for name, layer in backbone.transformer.blocks.named_modules():
        if isinstance(layer, Rounding):
            layer.rounds = False
            kind = name.partition(".")[2]

            def look(_: nn.Module, __: Any, out: Tensor, kind: str = kind) -> None:
                most[kind] = max(most[kind], out.abs().max().item())

            layer.register_forward_hook(look)
    recipe = studio.recipe([case.prompt for case in cases], [seed + n for n in range(len(cases))])
    draw_draft(backbone, recipe, len(recipe.schedule))
    return most


# --- the section of the page --------------------------------------------------------------------------------


def section(result: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    alike, weight = result["agreement"], weights(result["tasks"])
    layers = [
        ("only in 8 bits", lambda layer: f"`{layer}`"),
        *((kind, lambda layer, kind=kind: _missed(alike[f"{kind}, {layer}"])) for kind in FORMATS),
        ("largest output", lambda layer: f"{result['largest'][layer]:.0f}"),
    ]
    models = ["plain", *FORMATS, COMFYUI]
    columns: list[tuple[str, Any]] = [
        ("weights", lambda model: "bf16" if model == "plain" else model),
        ("file", lambda model: memory(result["bytes"].get(model, result["bytes"]["int8"]))),
        ("bits drawn differently", lambda model: "0" if model == "plain" else _missed(alike[model])),
    ]
    for name in METHODS:
        rows = result["hits"][name]
        columns.append((f"score, `{name}`", partial(_scored, rows, weight)))
        columns.append(("difference, paired", partial(_differs, rows, weight)))
    told = (
        f"{len(result['tasks'])} prompts ({result['some']} of them for the first table), float32 around the "
        f"weights, `{result['command']}`, {result['hardware']['processor']}, "
        f"torch {result['versions']['torch']}."
    )
    first = (
        "Share of dense's bits that are drawn differently, from the same bits before, when the matrices of "
        "one kind are in 8 bits; and the largest number, without its sign, that such a layer puts out:"
    )
    tables = table(layers, list(LAYERS), "<>>>"), table(columns, models, "<" + ">" * 6)
    return "\n\n".join((first, tables[0], "All of them:", tables[1], told, released()))


def released() -> str:
    """Sizes of the released transformers' files, by their shapes."""
    rows = {}
    for name in ("125m", "2b", "8b"):
        with torch.device("meta"):
            tensors = Tensors.of(InfinityTransformer(SHAPES[name].transformer).state_dict())
        rows[name] = {kind: memory(size(tensors, kind)) for kind in (None, *FORMATS)}
    columns = [("Infinity", str)]
    columns += [(kind or "bf16", lambda name, kind=kind: rows[name][kind]) for kind in (None, *FORMATS)]
    told = "The transformer's file, computed from the released shapes:"
    return f"{told}\n\n{table(columns, list(rows), '<>>>')}"


def page(text: str, result: dict[str, Any]) -> str:
    """The page with the measurement as its last section."""
    return f"{text.partition(HEADING)[0].rstrip()}\n\n{HEADING}\n\n{section(result)}\n"


def _missed(share: float) -> str:
    return f"{100 * (1 - share):.2f} %"


def _scored(rows: dict[str, str], weight: Any, model: str) -> str:
    return span(score(rows[model], weight))


def _differs(rows: dict[str, str], weight: Any, model: str) -> str:
    return "" if model == "plain" else span(difference([rows["plain"], rows[model]], weight), "+.3f")


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--per-task", type=int, default=10, help="prompts of each of the six tasks")
    parser.add_argument("--seed", type=int, default=501)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--save", action="store_true", help=f"store the result as results/{RESULT.name}")
    parser.add_argument("--page", action="store_true", help="write the stored result into docs/precision.md")
    args = parser.parse_args()
    if not args.page:
        result = measure(args.per_task, args.seed, args.batch)
        if args.save:
            write_files({RESULT: (json.dumps(result, indent=1) + "\n").encode()})
        sys.stdout.write(section(result) + "\n")
        return
    write_files({PAGE: page(PAGE.read_text(), json.loads(RESULT.read_text())).encode()})


if __name__ == "__main__":
    main()
