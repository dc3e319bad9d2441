"""Drawing: every prompt by every method, in batches, timed in turn and looked at afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comfy_moss.images import png, psnr, ssim, to_bytes, to_image, write_files
from comfy_moss.model.infinity_backbone import InfinityBackbone
from comfy_moss.model.quantize import quantize_scales
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.frequency import contribution, frequency_map
from comfy_moss.pipeline.generate import Picture, generate
from comfy_moss.pipeline.plan import Method, Plan

from ..detector import detect, interior, judge
from ..metrics import texture_energy
from ..rendering import render
from ..texture import shows_texture
from .loading import load_model
from .order import Order
from .rows import CODEC, RENDER, Row, as_lines, batch_path

SHOWN = tuple(range(0, 56, 7))  # prompts whose pictures are kept for the page: another task and shape each
CORRELATED = range(2, 6)  # k
ALIKE = 99.0  # dB, told of equal pictures
Say = Callable[[str], None]


@dataclass(frozen=True)
class Drawn:
    """A method's batch: images (B, H, W, 3) as uint8 files would hold them, and what they took."""

    images: Tensor
    picture: Picture | None = None
    totals: tuple[Tensor, ...] = ()  # dense: the sum of codes after every scale


@dataclass(frozen=True)
class Studio:
    """A model, and the features of every prompt; the model's codec must quantise as Infinity's does."""

    order: Order
    backbone: InfinityBackbone
    features: dict[str, Tensor]

    def recipe(self, numbers: Sequence[int]) -> Recipe:
        """The prompts of these numbers, each of which is its picture's seed too."""
        files, text = self.order.files, tuple(self.features[self.order.cases[n].prompt] for n in numbers)
        return Recipe(text, None, tuple(numbers), self.order.schedule, files.guidance(files.cfg), files.sampling(files.tau))


def open_studio(order: Order) -> Studio:
    """Load the model."""
    return Studio(order, *load_model(order.files, order.device, order.dtype, [case.prompt for case in order.cases]))


def draw_missing(studio: Studio, folder: Path, share: slice, say: Say) -> None:
    """Draw and store the batches that the folder lacks; `share` says which of all batches are this process's."""
    order = studio.order
    todo = [n for n in range(len(order.batches))[share] if not batch_path(folder, n).exists()]
    if todo:
        generate(studio.backbone, studio.recipe([0]), Plan(0))  # the first picture takes longer; it is not counted
    for done, batch in enumerate(todo):
        say(f"batch {done + 1} of {len(todo)}")
        numbers = order.batches[batch]
        drawn = draw(studio, numbers)
        shown = {(n, name): images.images[n - numbers.start] for name, images in drawn.items() for n in numbers if n in SHOWN}
        pictures = {picture_path(folder, *key): png(image) for key, image in shown.items()}
        write_files(pictures | {batch_path(folder, batch): as_lines(look(order, numbers, drawn))})


def picture_path(folder: Path, n: int, name: str) -> Path:
    return folder / "pictures" / f"{n:05d}-{name}.png"


# --- drawing ----------------------------------------------------------------------------------------------------


def draw(studio: Studio, numbers: Sequence[int]) -> dict[str, Drawn]:
    """By name, every method's pictures of some prompts, drawn in an order of its own, then the true ones and the codec's."""
    names = list(studio.order.methods)
    random.Random(numbers[0]).shuffle(names)
    recipe = studio.recipe(numbers)
    drawn = {name: _drawn(studio.backbone, recipe, studio.order.methods[name]) for name in names}
    height, width = drawn[names[0]].images.shape[1:3]
    cases = [studio.order.cases[n] for n in numbers]
    true = np.stack([render(c.scene, np.random.default_rng(n), height, width) for n, c in zip(numbers, cases, strict=True)])
    truth = torch.from_numpy(true).float() / 255
    return drawn | {RENDER: Drawn(truth), CODEC: Drawn(_recoded(studio.backbone, recipe, truth))}


def _drawn(backbone: InfinityBackbone, recipe: Recipe, method: Method) -> Drawn:
    totals: list[Tensor] = []
    keep = (lambda _done, _scales, total: totals.append(total)) if method.name == "dense" else None
    picture = generate(backbone, recipe, method, keep)
    return Drawn(_as_seen(picture.image), picture, tuple(totals))


@torch.inference_mode()
def _recoded(backbone: InfinityBackbone, recipe: Recipe, images: Tensor) -> Tensor:
    """What the codec makes of pictures (B, H, W, 3), one at a time."""
    weight = next(backbone.vae.parameters())
    grids = [backbone.map_grid(grid) for grid in recipe.schedule.grids]
    pixels = (2 * images - 1).movedim(-1, 1).to(weight.device, weight.dtype)
    return torch.cat([_as_seen(backbone.decode(quantize_scales(backbone.vae.encode(x[None]), grids)[1])) for x in pixels])


def _as_seen(image: Tensor) -> Tensor:
    """Decoded pictures as images in [0, 1] in the 256 steps of a file."""
    return to_bytes(to_image(image)).float() / 255


# --- looking ----------------------------------------------------------------------------------------------------


def look(order: Order, numbers: Sequence[int], drawn: dict[str, Drawn]) -> list[Row]:
    """The rows of a batch."""
    references = {RENDER: None, "dense": None, CODEC: drawn[RENDER].images}
    rows = []
    for name, pictures in drawn.items():
        reference = references.get(name, drawn["dense"].images)
        likeness = [{"psnr": None, "ssim": None}] * len(numbers) if reference is None else _likeness(pictures.images, reference)
        seen, cost = _seen(order, numbers, pictures.images), _cost(pictures)
        correlations = _correlations(pictures, order.correlated - numbers[0]) if name == "dense" else []
        for at, n in enumerate(numbers):
            extra = {"correlation": correlations[at]} if at < len(correlations) else {}
            rows.append(Row(n, name, **seen[at], **likeness[at], **cost, **extra))
    return rows


def _seen(order: Order, numbers: Sequence[int], images: Tensor) -> list[dict[str, bool | float | None]]:
    height, width = images.shape[1:3]
    rows, inside = [], []
    for n, picture in zip(numbers, (255 * images).round().byte().numpy(), strict=True):
        found = detect(picture)
        hits = [judge(case.task, case.scene, found, min(height, width)) for case in (order.cases[n], order.others[n])]
        rows.append({"hit": hits[0], "shuffled": hits[1], "textured": shows_texture(order.cases[n].scene, found, picture)})
        inside.append(interior(found, height, width))
    energies = texture_energy(images, torch.from_numpy(np.stack(inside))).tolist()
    return [row | {"texture": energy} for row, energy in zip(rows, energies, strict=True)]


def _likeness(images: Tensor, reference: Tensor) -> list[dict[str, float]]:
    pairs = zip(psnr(images, reference).tolist(), ssim(images, reference).tolist(), strict=True)
    return [{"psnr": min(signal, ALIKE), "ssim": structure} for signal, structure in pairs]


def _cost(drawn: Drawn) -> dict[str, float | int]:
    """Seconds, tokens and bytes a picture; nothing for what no method drew."""
    picture = drawn.picture
    if picture is None:
        return {}
    count, cost = len(drawn.images), picture.cost
    decoding = cost.seconds["decode"]
    return {
        "draw_s": (cost.total_seconds - decoding) / count,
        "decode_s": decoding / count,
        "tokens": sum(cost.tokens_per_scale),
        "kv_bytes": cost.kv_bytes // count,
    }


def _correlations(dense: Drawn, count: int) -> list[dict[str, float]]:
    """Of the first pictures: by k, how the draft's frequency goes with the length of the codes that the last k scales added."""
    if count <= 0:
        return []
    final, found = dense.totals[-1][:count].cpu(), {}
    for k in CORRELATED:
        if k < len(dense.totals):
            draft = dense.totals[-1 - k][:count].cpu()
            found[str(k)] = contribution(draft, final, frequency_map(draft)).correlation
    return [{k: values[n] for k, values in found.items()} for n in range(len(final))]
