"""What a KV cache in 8 bits changes on nano: `python -m benchmarks.kv_cache --save`.

The same prompts and seeds are drawn with either cache, which differ in nothing else: bits that are drawn
differently, the score of either with the paired difference, and the bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from comfy_moss.images import psnr, write_files
from comfy_moss.model.backbone import Backbone, Step
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.plan import Method, generate
from comfy_moss.request import Request, check

from .analysis import Interval, mean, weights
from .detector import detect, judge
from .draw import ALIKE, as_seen
from .limits import Wrapped
from .machine import hardware, versions
from .quality import memory, span, table
from .studio import Studio, load, parse_methods
from .suite import Case, in_turn, prompts

COMMAND = "python -m benchmarks.kv_cache"
METHODS = "dense,moss2,sparse3"
RESULT = Path(__file__).parent / "results" / "kv-cache-nano.json"
KINDS = (False, True)  # in 8 bits or not


@dataclass
class Forced(Wrapped):
    """A model whose every scale is followed by known bits, whatever it draws itself (teacher forcing)."""

    inner: Backbone
    bits: Sequence[Tensor]
    same: list[Tensor] = field(default_factory=list)  # a scale: (B, N, d) whether it drew the known bits

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        known = self.bits[len(self.same)]
        self.same.append(self.inner.sample(hidden, step) == known)
        return known


def agreement(backbone: Backbone, recipe: Recipe, bits: Sequence[Tensor]) -> list[float]:
    """Share of the bits that the model draws as given, scale by scale, from the given bits before it."""
    forced = Forced(backbone, bits)
    draw_draft(forced, recipe, len(recipe.schedule))
    return [scale.double().mean().item() for scale in forced.same]


def compare(studio: Studio, method: Method, cases: Sequence[Case], numbers: Sequence[int]) -> dict[str, Any]:
    """One batch by one method, with either cache."""
    recipe = studio.recipe([case.prompt for case in cases], numbers)
    backbones = [replace(studio.backbone, int8_cache=kind) for kind in KINDS]
    drawn = [generate(backbone, recipe, method) for backbone in backbones]
    images = [as_seen(picture.image) for picture in drawn]
    return {
        "hits": [hits_of(seen, cases) for seen in images],
        "psnr": psnr(images[1], images[0]).clamp_max(ALIKE).tolist(),
        "kv_bytes": [picture.cost.kv_bytes // len(cases) for picture in drawn],
    }


def hits_of(images: Tensor, cases: Sequence[Case]) -> list[int]:
    pictures = (255 * images).round().byte().numpy()
    side = min(images.shape[1:3])
    return [
        int(judge(case.task, case.scene, detect(picture), side))
        for case, picture in zip(cases, pictures, strict=True)
    ]


def measure(per_task: int, seed: int, batch: int) -> dict[str, Any]:
    """All methods on six tasks' prompts; ready for JSON."""
    cases = in_turn(prompts(per_task, seed))
    asked = Request(prompt=cases[0].prompt, method="dense", seed=seed, device="cpu", precision="fp32")
    checked = check(asked)
    studio = load(checked, [case.prompt for case in cases])
    methods = parse_methods(METHODS, checked.published)
    methods = {name: methods[name] for name in METHODS.split(",")}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    agreed = []
    for start in tqdm(range(0, len(cases), batch), disable=not sys.stderr.isatty()):
        numbers = range(start, min(start + batch, len(cases)))
        some = [cases[n] for n in numbers]
        for name, method in methods.items():
            parts[name].append(compare(studio, method, some, [seed + n for n in numbers]))
        agreed.append(_agreed(studio, some, [seed + n for n in numbers]))
    rows = {name: _joined(of) for name, of in parts.items()}
    bits = [sum(scale) / len(agreed) for scale in zip(*agreed, strict=True)]
    tokens = [h * w for h, w in checked.schedule.grids]
    return {
        "command": f"{COMMAND} --per-task {per_task} --seed {seed} --batch {batch}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(torch.device("cpu")), "versions": versions(),
        "tasks": [case.task for case in cases], "rows": rows, "agreement": [round(x, 6) for x in bits],
        "agreement_all": sum(a * n for a, n in zip(bits, tokens, strict=True)) / sum(tokens),
    }


def _agreed(studio: Studio, cases: Sequence[Case], seeds: Sequence[int]) -> list[float]:
    recipe = studio.recipe([case.prompt for case in cases], seeds)
    whole, _ = draw_draft(studio.backbone, recipe, len(recipe.schedule))
    return agreement(replace(studio.backbone, int8_cache=True), recipe, whole.bits)


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "hits": ["".join(str(hit) for part in parts for hit in part["hits"][n]) for n in range(len(KINDS))],
        "psnr": [round(value, 2) for part in parts for value in part["psnr"]],
        "kv_bytes": parts[0]["kv_bytes"],
    }


# --- the section of the page --------------------------------------------------------------------------------


def section(result: dict[str, Any]) -> str:
    """The measurement as Markdown."""
    weight, rows = weights(result["tasks"]), result["rows"]
    scored = {name: [score(digits, weight) for digits in row["hits"]] for name, row in rows.items()}
    columns = [
        ("method", lambda name: f"`{name}`"),
        ("score, full", lambda name: span(scored[name][0])),
        ("score, 8 bits", lambda name: span(scored[name][1])),
        ("difference, paired", lambda name: span(difference(rows[name]["hits"], weight), "+.3f")),
        ("PSNR to full", lambda name: f"{sum(rows[name]['psnr']) / len(rows[name]['psnr']):.1f} dB"),
        ("cache, full", lambda name: memory(rows[name]["kv_bytes"][0])),
        ("cache, 8 bits", lambda name: memory(rows[name]["kv_bytes"][1])),
    ]
    least = min(result["agreement"])
    told = (
        f"From the same bits before it, {100 * result['agreement_all']:.3f} % of dense's bits are drawn "
        f"alike (the scale that agrees least: {100 * least:.3f} %). {len(result['tasks'])} prompts, float32, "
        f"`{result['command']}`, {result['hardware']['processor']}, torch {result['versions']['torch']}."
    )
    return f"{table(columns, list(rows), '<' + '>' * 6)}\n\n{told}"


def score(digits: str, weight: Any) -> Interval:
    return mean([int(digit) for digit in digits], weight)


def difference(hits: Sequence[str], weight: Any) -> Interval:
    return mean([int(b) - int(a) for a, b in zip(*hits, strict=True)], weight)


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--per-task", type=int, default=40, help="prompts of each of the six tasks")
    parser.add_argument("--seed", type=int, default=401)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--save", action="store_true", help=f"store the result as results/{RESULT.name}")
    args = parser.parse_args()
    result = measure(args.per_task, args.seed, args.batch)
    if args.save:
        write_files({RESULT: (json.dumps(result, indent=1) + "\n").encode()})
    sys.stdout.write(section(result) + "\n")


if __name__ == "__main__":
    main()
