"""A batch of the evaluation: some prompts drawn by every method, timed in turn, and looked at by a
program."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from comfy_moss.images import psnr, ssim, to_bytes, to_image
from comfy_moss.model.backbone import Backbone
from comfy_moss.model.quantize import quantize_scales
from comfy_moss.model.sampling import Guidance
from comfy_moss.pipeline.cost import Stopwatch
from comfy_moss.pipeline.draft import Draft, Recipe, Run, draw_scales, empty_total
from comfy_moss.pipeline.frequency import contribution, frequency_map
from comfy_moss.pipeline.plan import STAGES, Method, Plan, finish, generate

from .detector import detect, interior, judge, shows_texture
from .metrics import Drawn, texture_energy
from .rendering import render
from .suite import Case

RENDER, CODEC = "render", "codec"  # beside the methods: the true picture, and what the codec leaves of it
CORRELATED = range(2, 6)  # k
ALIKE = 99.0  # dB, told of equal pictures


@dataclass(frozen=True)
class Row:
    """One picture.

    Attributes:
        n: number of the prompt; also the picture's seed.
        method: as `studio.label` names it, or RENDER or CODEC.
        hit: whether it shows what its prompt asks for.
        shuffled: whether it shows what another prompt asks for.
        psnr, ssim: likeness in dB and up to 1, of a method to dense, of CODEC to RENDER; None for dense and
            RENDER.
        textured: whether it shows the texture that its prompt names; None where that names none.
        texture: energy of the texture inside the objects, see `texture_energy`.
        draw_s, decode_s: seconds a picture of its batch; None for RENDER and CODEC, as are:
        tokens, kv_bytes: what a picture took.
        correlation: dense, of some prompts: by k, Pearson's r of the draft's frequency and what the last k
            scales added.
    """

    n: int
    method: str
    hit: bool
    shuffled: bool
    psnr: float | None
    ssim: float | None
    textured: bool | None
    texture: float
    draw_s: float | None = None
    decode_s: float | None = None
    tokens: int | None = None
    kv_bytes: int | None = None
    correlation: dict[str, float] | None = None


def draw(
    backbone: Backbone, recipe: Recipe, methods: Mapping[str, Method], cases: Sequence[Case]
) -> dict[str, Drawn]:
    """By name, every method's pictures of the cases, in an order of this batch, then the true ones and the
    codec's."""
    plans: dict[Guidance, dict[str, Plan]] = {}  # by that of the draft
    turns: list[Callable[[], dict[str, Drawn]]] = []
    for name, method in methods.items():
        if isinstance(method, Plan):
            plans.setdefault(method.recipe(recipe).guidance, {})[name] = method
        else:
            turns.append(partial(_alone, backbone, recipe, name, method))
    turns += [partial(draw_together, backbone, recipe, alike) for alike in plans.values()]
    seeds, drawn = recipe.seeds, {}
    random.Random(seeds[0]).shuffle(turns)
    for turn in turns:
        drawn |= turn()
    size = drawn["dense"].images.shape[1:3]
    true = [render(case.scene, np.random.default_rng(n), *size) for n, case in zip(seeds, cases, strict=True)]
    truth = torch.from_numpy(np.stack(true)).float() / 255
    return drawn | {RENDER: Drawn(truth), CODEC: Drawn(_recoded(backbone, recipe, truth))}


def _alone(backbone: Backbone, recipe: Recipe, name: str, method: Method) -> dict[str, Drawn]:
    picture = generate(backbone, recipe, method)
    return {name: Drawn(as_seen(picture.image), cost=picture.cost)}


@torch.inference_mode()
def draw_together(backbone: Backbone, recipe: Recipe, plans: Mapping[str, Plan]) -> dict[str, Drawn]:
    """Pictures of plans that draft with the same strength: every scale is drafted once, and each plan goes on
    from its draft.

    Noise is keyed by scale and place, so a draft of its own would be the same, and the time until then counts
    for every plan.
    """
    recipe = next(iter(plans.values())).recipe(recipe)
    schedule = recipe.schedule
    drafts = {name: plan.on(schedule).draft for name, plan in plans.items()}
    stored = {name: plan.stored(schedule) for name, plan in plans.items()}
    clock = Stopwatch(backbone.device)
    with clock.stage("draft"):
        live = Run.begin(backbone, recipe, max(stored.values()))
    bits: list[Tensor] = []
    total, drawn = empty_total(backbone, recipe), {}
    totals: list[Tensor] = []
    for scale in range(max(drafts.values())):
        with clock.stage("draft"):
            new, total = draw_scales(live, total, range(scale, scale + 1))
        bits, totals = [*bits, *new], [*totals, total.cpu()]
        draft = Draft(recipe, tuple(bits), total, backbone.model_id)
        for name in (name for name, scales in drafts.items() if scales == scale + 1):
            watch = Stopwatch(backbone.device, STAGES)
            twin = replace(live, cache=live.cache.twin())  # what it stores, the next scale writes over
            picture = finish(twin, draft, plans[name], watch)
            with watch.stage("decode"):
                image = backbone.decode(picture.total.to(backbone.device))
            own = backbone.new_cache(live.condition, stored[name]).nbytes
            seconds = watch.seconds | {"draft": clock.seconds["draft"]}
            kept = (*totals, picture.total) if plans[name].passes else tuple(totals)
            drawn[name] = Drawn(as_seen(image), kept, replace(picture.cost, kv_bytes=own, seconds=seconds))
    return drawn


@torch.inference_mode()
def _recoded(backbone: Backbone, recipe: Recipe, images: Tensor) -> Tensor:
    """What the codec makes of pictures (B, H, W, 3), one at a time; it must quantise as Infinity's does."""
    weight = next(backbone.vae.parameters())
    grids = [backbone.map_grid(grid) for grid in recipe.schedule.grids]
    pixels = (2 * images - 1).movedim(-1, 1).to(weight.device, weight.dtype)
    totals = (quantize_scales(backbone.vae.encode(x[None]), grids)[1] for x in pixels)
    return torch.cat([as_seen(backbone.decode(total)) for total in totals])


def as_seen(image: Tensor) -> Tensor:
    """Decoded pictures as images in [0, 1] in the 256 steps of a file."""
    return to_bytes(to_image(image)).float() / 255


# --- looking ------------------------------------------------------------------------------------------------


def look(
    drawn: Mapping[str, Drawn], numbers: Sequence[int], cases: Sequence[Case], others: Sequence[Case],
    correlated: int,
) -> list[Row]:
    """The rows of a batch.

    Args:
        numbers: of its prompts; cases: what they ask for; others: what its pictures fulfil by chance alone.
        correlated: of how many of its first pictures the correlation is measured.
    """
    references = {RENDER: None, "dense": None, CODEC: drawn[RENDER].images}
    rows = []
    for name, pictures in drawn.items():
        likeness = _likeness(pictures.images, references.get(name, drawn["dense"].images))
        told = _correlations(pictures, correlated) if name == "dense" else []
        extra = [{"correlation": found} for found in told] + [{}] * (len(numbers) - len(told))
        facts = zip(numbers, _seen(pictures.images, cases, others), likeness, extra, strict=True)
        rows += [Row(n, name, **seen, **alike, **_cost(pictures), **more) for n, seen, alike, more in facts]
    return rows


def _seen(
    images: Tensor, cases: Sequence[Case], others: Sequence[Case]
) -> list[dict[str, bool | float | None]]:
    height, width = images.shape[1:3]
    rows, inside = [], []
    for case, other, picture in zip(cases, others, (255 * images).round().byte().numpy(), strict=True):
        found = detect(picture)
        hit, chance = (judge(c.task, c.scene, found, min(height, width)) for c in (case, other))
        rows.append({"hit": hit, "shuffled": chance, "textured": shows_texture(case.scene, found, picture)})
        inside.append(interior(found, height, width))
    energies = texture_energy(images, torch.from_numpy(np.stack(inside))).tolist()
    return [row | {"texture": energy} for row, energy in zip(rows, energies, strict=True)]


def _likeness(images: Tensor, reference: Tensor | None) -> list[dict[str, float | None]]:
    if reference is None:
        return [{"psnr": None, "ssim": None}] * len(images)
    pairs = zip(
        psnr(images, reference).clamp_max(ALIKE).tolist(), ssim(images, reference).tolist(), strict=True
    )
    return [{"psnr": signal, "ssim": structure} for signal, structure in pairs]


def _cost(drawn: Drawn) -> dict[str, float | int]:
    """Seconds, tokens and bytes a picture; nothing for what no method drew."""
    if drawn.cost is None:
        return {}
    count, cost = len(drawn.images), drawn.cost
    decoding = cost.seconds["decode"]
    return {
        "draw_s": (cost.total_seconds - decoding) / count,
        "decode_s": decoding / count,
        "tokens": sum(cost.tokens_per_scale),
        "kv_bytes": cost.kv_bytes // count,
    }


def _correlations(dense: Drawn, count: int) -> list[dict[str, float]]:
    """Of the first pictures: by k, how the draft's frequency goes with the length of the codes added
    since."""
    if count <= 0:
        return []
    final, found = dense.totals[-1][:count].cpu(), {}
    for k in (k for k in CORRELATED if k < len(dense.totals)):
        draft = dense.totals[-1 - k][:count].cpu()
        found[str(k)] = contribution(draft, final, frequency_map(draft)).correlation
    return [{k: values[n] for k, values in found.items()} for n in range(len(final))]
