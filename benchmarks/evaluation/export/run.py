"""Draw a benchmark's pictures into the layout its scorer expects; what is there already is not drawn again."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from comfy_moss import request as requests
from comfy_moss.images import png, to_bytes, to_image, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.pipeline.generate import generate

from ..loading import Studio, load
from ..notes import difference, read_note
from .layouts import IMAGES, LAYOUTS, Layout, Target, lists, targets
from .prompts import Prompt, Prompts

NOTE = "moss.json"  # what made the pictures, in DIR
JPEG_QUALITY = 95
_MAY_DIFFER = ("device", "torch")  # between the runs of one export
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}  # the last bytes of a complete file
OnFile = Callable[[int, int], None]  # (files done, files in all); may raise to cancel


@dataclass(frozen=True)
class Order:
    """A checked order for one benchmark.

    Attributes:
        out: DIR.
        batch: pictures drawn together; does not change them.
    """

    job: requests.Checked
    layout: Layout
    prompts: Prompts
    per_prompt: int
    out: Path
    batch: int

    @property
    def images(self) -> Path:
        """The folder that the scorer is given."""
        return self.out / IMAGES


def check(args: argparse.Namespace) -> Order:
    """Refuse what is wrong with the order, before anything slow and before anything is written.

    Raises:
        OSError: the prompts cannot be read.
        ValueError: a value out of range, prompts of another form, or pictures in DIR that were made with other settings.
    """
    layout = LAYOUTS[args.suite]
    per_prompt = layout.per_prompt(args.per_prompt)
    if args.batch < 1:
        raise ValueError(f"the batch must hold at least 1 picture, got {args.batch}")
    prompts = layout.read(args.prompts)
    first = {"prompt": prompts.items[0].text, "batch": per_prompt, "output": args.out / "picture.png", "maps": None}
    job = requests.check(requests.Request.of(args, **first))
    if layout.square and job.schedule.ratio != 1.0:
        raise ValueError(f"{layout.title} takes square pictures only; leave --aspect out, or give 1:1")
    order = Order(job, layout, prompts, per_prompt, args.out, args.batch)
    _check_note(order, None)
    return order


def export(order: Order, on_file: OnFile) -> int:
    """Draw what is missing.

    Args:
        on_file: called once before the first picture and after every file.

    Returns:
        How many files were written; a later call goes on where this one was stopped.

    Raises:
        ValueError: DIR holds pictures of another model, a prompt is too long, or a file of the model is damaged.
        OSError: a file cannot be written.
    """
    every = targets(order.layout, order.prompts.items, order.per_prompt)
    missing = [target for target in every if not _complete(order.out / target.path)]
    done = len(every) - len(missing)
    if not missing:
        on_file(done, done)
        return 0
    studio = load(order.job, [target.prompt.text for target in missing])
    _check_note(order, studio.backbone)
    _write_notes(order, studio.backbone)
    on_file(done, len(every))
    for number, (target, images) in enumerate(_drawn(studio, order, missing), done + 1):
        write_files({order.out / target.path: _encode(order, studio.backbone, target, images)})
        on_file(number, len(every))
    return len(missing)


def _complete(path: Path) -> bool:
    """Whether a picture is there as a whole; a copy that broke off is not."""
    return path.is_file() and path.read_bytes().endswith(_ENDS[path.suffix])


def _drawn(studio: Studio, order: Order, missing: Sequence[Target]) -> Iterator[tuple[Target, list[Tensor]]]:
    """Every target with its images (H, W, 3), drawn in batches that may hold several targets or parts of one."""
    seed, pending = order.job.request.seed, [(target, n) for target in missing for n in target.numbers]
    images: list[Tensor] = []
    queue = iter(missing)
    target = next(queue, None)
    for start in range(0, len(pending), order.batch):
        part = pending[start : start + order.batch]
        recipe = studio.recipe([of.prompt.text for of, _ in part], [seed + n for _, n in part])
        images += to_image(generate(studio.backbone, recipe, order.job.method).image)
        while target and len(images) >= len(target.numbers):
            yield target, images[: len(target.numbers)]
            images = images[len(target.numbers) :]
            target = next(queue, None)


def _encode(order: Order, backbone: Backbone, target: Target, images: Sequence[Tensor]) -> bytes:
    """One file: a picture that carries its recipe where it is a PNG, or a grid of pictures row by row."""
    if target.path.suffix == ".jpg":
        buffer = io.BytesIO()
        Image.fromarray(to_bytes(images[0]).numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue()
    if len(images) == 1:
        return png(images[0], _recipe(order, backbone, target.prompt, order.job.request.seed + target.numbers[0]))
    return png(torch.cat([torch.cat(tuple(images[n : n + 2]), 1) for n in range(0, len(images), 2)]))


def _recipe(order: Order, backbone: Backbone, prompt: Prompt, seed: int) -> dict[str, Any]:
    request = replace(order.job.request, prompt=prompt.text)
    return requests.recipe_of(replace(order.job, request=request), backbone, seed)


# --- moss.json --------------------------------------------------------------------------------------------------


def _note(order: Order, backbone: Backbone | None) -> dict[str, Any]:
    """What makes the pictures: all that a picture's recipe holds but the prompt, and the prompts as a whole.

    Without `backbone`, what is known before the model is loaded.
    """
    recipe = _recipe(order, backbone or SimpleNamespace(model_id=None), order.prompts.items[0], order.job.request.seed)
    suite = {"suite": order.layout.name, "prompts_sha256": order.prompts.sha256, "prompts": len(order.prompts.items)}
    rule = {"per_prompt": order.per_prompt, "seed_rule": "picture n of a prompt, counted from 0, has the seed `seed` + n"}
    unknown = ("prompt",) if backbone else ("prompt", "model_id")
    return suite | rule | {name: value for name, value in recipe.items() if name not in unknown}


def _check_note(order: Order, backbone: Backbone | None) -> None:
    """Refuse to mix pictures of two kinds in one folder."""
    path, note = order.out / NOTE, _note(order, backbone)
    if not path.exists():
        if order.images.exists() and any(order.images.iterdir()):
            raise ValueError(f"{order.images} holds files but {path} is missing, which says what made them; choose another --out")
        return
    old = read_note(path)
    if old is None:
        raise ValueError(f"{path} is damaged, so what made the pictures there is unknown; choose another --out")
    if found := difference(old, note, _MAY_DIFFER):
        raise ValueError(
            f"{order.out} holds pictures made with {found}; choose another --out, or repeat the settings of its moss.json"
        )


def _write_notes(order: Order, backbone: Backbone) -> None:
    note = json.dumps(_note(order, backbone), indent=1, ensure_ascii=False) + "\n"
    files = {Path(NOTE): note.encode()} | lists(order.layout, order.prompts.items, order.per_prompt)
    write_files({order.out / path: data for path, data in files.items()})
