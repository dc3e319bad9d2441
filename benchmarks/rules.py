"""Try other rules of the method beside the paper's, on one model, at equal tokens and from the same drafts.

    python -m benchmarks.rules --k 3 --prompts 24                                 # the paper's bounds
    python -m benchmarks.rules --k 3 --rules paper,window-5,nested,strength-0.5   # only these
    python -m benchmarks.rules --k 3 --rules paper --bounds 50,15,5 60,0,0        # several bounds, brought to
    equal tokens

A rule says how busy a place is (window; on which grid), which scale redraws it (bands), how the redrawn codes
are laid over the draft (composite) and how strongly.  The rules that only serve as controls give places to
scales at random, or calm places first. Printed are means over prompts: likeness of the codes and the picture
to dense's (dB), texture energy against dense's (1 = equal) and the share of pictures that show what was asked
for; and after a metric the gain over the first row with its 95 % interval, paired by picture.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comfy_moss.cli import add_drawing
from comfy_moss.images import to_image
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.schedule import Grid, Schedule
from comfy_moss.pipeline.dispatch import Dispatch, band, busiest_first
from comfy_moss.pipeline.draft import Draft, Residual
from comfy_moss.pipeline.frequency import frequency_map
from comfy_moss.pipeline.refine import refine

from .analysis import Interval, mean, weights
from .calibrate import Batch, Measure, at_tokens, check, prepare, spend
from .commands import add_calibrate
from .metrics import METRICS, Drawn, Pair
from .search import Bounds
from .studio import load

SHOWN = ("latent", "psnr", "texture", "overall")


@dataclass(frozen=True)
class Rule:
    """One way to do it; the defaults are the paper's.

    Attributes:
        window: of the frequency.
        own_grid: the frequency of the draft resized to a scale's grid, instead of the final grid's averaged
            over its tokens.
        bands: ranks = each scale takes its ranks on its own grid; partition = every place of the final grid
            belongs to one scale; nested = places of a finer scale are redrawn at the coarser ones too;
            random; inverted = calm places first.
        composite: plain = codes in an empty map, upsampled; inside = divided by the upsampled mask, inside
            the tokens; spread = the same also where it fades out; nearest = every token a flat block; shared
            = divided by the masks of all scales together where they overlap.
    """

    window: int = 3
    own_grid: bool = False
    bands: str = "ranks"
    composite: str = "plain"
    strength: float = 1.0


RULES = {
    "paper": Rule(),
    "window-5": Rule(window=5),
    "window-7": Rule(window=7),
    "own-grid": Rule(own_grid=True),
    "partition": Rule(bands="partition"),
    "nested": Rule(bands="nested"),
    "inside": Rule(composite="inside"),
    "spread": Rule(composite="spread"),
    "nearest": Rule(composite="nearest"),
    "shared": Rule(composite="shared"),
    "strength-0.75": Rule(strength=0.75),
    "strength-0.5": Rule(strength=0.5),
    "nested-0.75": Rule(bands="nested", strength=0.75),
    "nested-shared": Rule(bands="nested", composite="shared"),
    "random": Rule(bands="random"),
    "inverted": Rule(bands="inverted"),
    "draft": Rule(strength=0.0),
}


# --- which tokens -----------------------------------------------------------------------------------------


def scale_scores(backbone: Backbone, draft: Draft, grids: tuple[Grid, ...], rule: Rule) -> list[Tensor]:
    """What the tokens of each refine scale are ranked by, (B, h, w)."""
    if rule.bands == "random":
        chance = torch.Generator().manual_seed(sum(draft.recipe.seeds))
        return [torch.rand(len(draft.total), *grid, generator=chance) for grid in grids]
    if rule.own_grid:
        whole = [backbone.tokens(draft.total, grid).transpose(1, 2).unflatten(2, grid) for grid in grids]
        return [frequency_map(total, rule.window) for total in whole]
    frequency = frequency_map(draft.total, rule.window)
    sign = -1 if rule.bands == "inverted" else 1
    return [sign * F.adaptive_avg_pool2d(frequency, grid) for grid in grids]


def partition_scores(frequency: Tensor, grids: tuple[Grid, ...], bounds: Bounds) -> list[Tensor]:
    """Per scale, how much of each token lies in places of the final grid whose rank is in the scale's
    band."""
    order_ = busiest_first(frequency)
    ranks = torch.empty_like(order_).scatter_(1, order_, torch.arange(order_.shape[1]).expand_as(order_))
    share = 100 * (ranks.view_as(frequency) + 0.5) / order_.shape[1]
    bands = zip(bounds, (*bounds[1:], 0.0), strict=True)
    inside = [((share > low) & (share <= up)).float() for up, low in bands]
    return [F.adaptive_avg_pool2d(places, grid) for places, grid in zip(inside, grids, strict=True)]


def choose(backbone: Backbone, draft: Draft, bounds: Bounds, rule: Rule) -> Dispatch:
    """The tokens that each scale redraws."""
    schedule = draft.recipe.schedule
    first = len(schedule) - len(bounds)
    grids = schedule.grids[first:]
    lower = (0.0,) * len(bounds) if rule.bands == "nested" else (*bounds[1:], 0.0)
    ranks = [band(h * w, up, low) for (h, w), up, low in zip(grids, bounds, lower, strict=True)]
    if rule.bands == "partition":
        scores = partition_scores(frequency_map(draft.total, rule.window), grids, bounds)
        ranks = [range(len(r)) for r in ranks]
    else:
        scores = scale_scores(backbone, draft, grids, rule)
    cells = [busiest_first(s)[:, r.start : r.stop].sort(1).values for s, r in zip(scores, ranks, strict=True)]
    return Dispatch(tuple(range(first, len(schedule))), tuple(cells))


def spent(schedule: Schedule, bounds: Bounds, rule: Rule) -> int:
    if rule.bands != "nested":
        return spend(schedule, bounds)
    grids = schedule.grids[-len(bounds) :]
    return sum(len(band(h * w, up, 0.0)) for (h, w), up in zip(grids, bounds, strict=True))


def equal_bounds(schedule: Schedule, bounds: Bounds, rule: Rule) -> Bounds:
    """The bounds, lowered by one factor where the rule would spend more tokens on them."""
    budget, low, high = spend(schedule, bounds), 0.0, 1.0
    if spent(schedule, bounds, rule) <= budget:
        return bounds
    for _ in range(40):
        middle = (low + high) / 2
        fits = spent(schedule, tuple(b * middle for b in bounds), rule) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return tuple(b * low for b in bounds)


# --- laying over ------------------------------------------------------------------------------------------


def lay(backbone: Backbone, draft: Draft, residual: Residual, rule: Rule) -> Tensor:
    """The sum of codes (B, c, H, W) with the redrawn ones."""
    schedule, added, masks = draft.recipe.schedule, [], []
    parts = residual.dispatch.scales, residual.dispatch.cells, residual.bits
    for scale, cells, bits in zip(*parts, strict=True):
        h, w = schedule.grids[scale]
        codes = backbone.codes(bits)
        whole = codes.new_zeros(len(bits), h * w, codes.shape[-1])
        whole.scatter_(1, cells[..., None].expand_as(codes), codes)
        filled = torch.zeros(len(bits), h * w, dtype=torch.bool).scatter_(1, cells, True)
        size = draft.total.shape[-2:]
        mask = filled.view(-1, 1, h, w).float()
        soft = F.interpolate(mask, size, mode="bilinear", align_corners=False)
        hard = F.interpolate(mask, size, mode="nearest")
        smooth = backbone.code_map(whole, scale, schedule, filled)
        if rule.composite == "nearest":
            smooth = F.interpolate(whole.transpose(1, 2).unflatten(2, (h, w)), size, mode="nearest")
        elif rule.composite in ("inside", "spread"):
            reach = hard if rule.composite == "inside" else (soft > 1e-3).float()
            smooth = smooth / soft.clamp_min(1e-3) * reach
        added.append(smooth)
        masks.append(soft)
    total = sum(added) if rule.composite != "shared" else sum(added) / sum(masks).clamp_min(1)
    return draft.total + rule.strength * total


# --- measuring --------------------------------------------------------------------------------------------


@torch.inference_mode()
def draw(measure: Measure, batch: Batch, bounds: Bounds, rule: Rule) -> Drawn:
    backbone, method = measure.backbone, measure.method
    dispatch = choose(backbone, batch.draft, bounds, rule)
    step = replace(method.passes[0], bounds=tuple(bounds))
    residual = refine(backbone, batch.draft, dispatch, step, batch.cache)
    total = lay(backbone, batch.draft, residual, rule)
    return Drawn(to_image(backbone.decode(total)), (total,))


def judge(measure: Measure, bounds: Bounds, rule: Rule) -> dict[str, np.ndarray]:
    """By metric, the value of every picture."""
    pairs = [Pair(draw(measure, batch, bounds, rule), batch.dense, batch.cases) for batch in measure.batches]
    shown = [name for name in SHOWN if pairs[0].cases or not METRICS[name].needs_cases]
    values = {name: [METRICS[name].values(pair).numpy().astype(float) for pair in pairs] for name in shown}
    return {name: np.concatenate(of) for name, of in values.items()}


def rows(measure: Measure, tried: list[Bounds], rules: dict[str, Rule], tasks: list[str]) -> Iterator[str]:
    """The table, a line at a time."""
    schedule, weight, first = measure.batches[0].draft.recipe.schedule, weights(tasks), None
    for bounds, (name, rule) in itertools.product(tried, rules.items()):
        own = equal_bounds(schedule, bounds, rule)
        found = judge(measure, own, rule)
        if first is None:
            first = found
            yield "  ".join([f"{'rule':<14} {'bounds':<22} {'tokens':>6}", *(f"{m:<31}" for m in found)])
        cells = [_cell(mean(found[m], weight), mean(found[m] - first[m], weight)) for m in found]
        text = ",".join(f"{round(b, 2):g}" for b in own)
        head = f"{name:<14} {text:<22} {spent(schedule, own, rule):>6}"
        yield "  ".join([head, *(f"{cell:<31}" for cell in cells)])


def _cell(value: Interval, gain: Interval) -> str:
    return f"{value.value:7.3f} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def main(write: Callable[[str], object] = sys.stdout.write) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add_calibrate(parser)
    add_drawing(parser)
    parser.add_argument("--rules", default=",".join(RULES), help="only these")
    told = "not the paper's, but brought to its tokens"
    parser.add_argument("--bounds", nargs="+", metavar="T1,T2,...", help=told)
    args = parser.parse_args()
    torch.set_num_threads(1)
    named = [tuple(map(float, text.split(","))) for text in args.bounds or ()]
    args.bounds = None
    asked = check(args)
    studio, schedule = load(asked.checked, asked.prompts), asked.checked.schedule
    paper = studio.backbone.published.bounds[args.k]
    tokens = asked.tokens or spend(schedule, paper)
    same = not asked.tokens
    tried = [b if b == paper and same else at_tokens(b, schedule, tokens) for b in named or [paper]]
    quality = replace(METRICS["combined"], needs_cases=False)
    measure = prepare(asked, studio, quality, lambda done, of: sys.stderr.write(f"drafts {done}/{of}\n"))
    write(f"k = {args.k}, {len(asked.prompts)} prompts\n")
    for row in rows(measure, tried, {name: RULES[name] for name in args.rules.split(",")}, asked.tasks):
        write(row + "\n")


if __name__ == "__main__":
    main()
