"""Draw a benchmark's pictures into the layout that its scorer expects: `python -m comfy_moss export`.

The scorer is given the folder DIR/images and finds nothing but pictures there: HPSv2's takes every entry for
a style, DPG-Bench's for a picture, and ImageReward's counts them.  What we have to say about them lies beside
it, in DIR.  What is there already is not drawn again.  No prompts are bundled: the user has the benchmark's
own files.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from comfy_moss.images import png, to_bytes, to_image, write_files
from comfy_moss.model.backbone import Backbone
from comfy_moss.pipeline.plan import generate
from comfy_moss.request import Checked, Request, recipe_of
from comfy_moss.request import check as check_request

from .export_prompts import Prompt, Prompts, read_dpg, read_geneval, read_hpsv2, read_imagereward
from .studio import Studio, difference, load, read_note
from .workers import Batches, Workers

IMAGES = "images"
NOTE = "moss.json"  # what made the pictures, in DIR
JPEG_QUALITY = 95
_MAY_DIFFER = ("device", "torch")  # between the runs of one export
_ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}  # the last bytes of a complete file

# --- layouts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A benchmark's demands.

    Attributes:
        name: as typed on the command line; title: as its authors write it.
        read: the prompts file -> prompts.
        path: (prompt, n from 0) -> path below DIR/images; pictures with the same path are tiles of one grid.
        pictures: how many a prompt the authors ask for.
        choices: the only numbers its scorer takes; () = any.
        square: whether its scorer cuts tiles out by one side length.
    """

    name: str
    title: str
    read: Callable[[Path], Prompts]
    path: Callable[[Prompt, int], Path]
    pictures: int
    choices: tuple[int, ...] = ()
    square: bool = False

    def per_prompt(self, wanted: int | None) -> int:
        """Pictures a prompt, the authors' number where None; raises ValueError where the scorer cannot take
        it."""
        number = self.pictures if wanted is None else wanted
        if number < 1 or (self.choices and number not in self.choices):
            allowed = " or ".join(map(str, self.choices)) or "1 or more"
            raise ValueError(f"of pictures {self.title} takes {allowed} a prompt, got --per-prompt {number}")
        return number


LAYOUTS = {
    # 00000/samples/0000.png; only names made of digits count, and only PNG.  The prompt's own line lies
    # beside `samples`
    # as metadata.jsonl.  evaluation/evaluate_images.py DIR/images --outfile RESULTS.jsonl --model-path
    # DETECTOR
    "geneval": Layout(
        "geneval", "GenEval", read_geneval, lambda p, n: Path(p.name, "samples", f"{n:04d}.png"), 4
    ),
    # ID.png, a 2 x 2 grid of 4 square pictures, row by row; or one picture where the scorer's PIC_NUM is 1.
    # dpg_bench/dist_eval.sh DIR/images RESOLUTION, the side of one tile in pixels
    "dpg": Layout("dpg", "DPG-Bench", read_dpg, lambda p, n: Path(f"{p.name}.png"), 4, (1, 4), square=True),
    # STYLE/00000.jpg by place in the style's list; one picture a prompt, JPEG only.
    # hpsv2.evaluate("DIR/images", hps_version="v2.1")
    "hpsv2": Layout("hpsv2", "HPSv2", read_hpsv2, lambda p, n: Path(p.folder, f"{p.name}.jpg"), 1, (1,)),
    # ID_0.png, ID_1.png, all in one folder, which stands for the model.  DIR/metadata.jsonl lists id, prompt
    # and
    # pictures (paths from DIR, "gen_image_paths") as one JSON list, the form that Infinity's own scoring
    # script reads.
    # test-benchmark.py --img_dir DIR --model images --prompts_path PROMPTS
    "imagereward": Layout(
        "imagereward", "ImageReward", read_imagereward, lambda p, n: Path(f"{p.name}_{n}.png"), 10
    ),
}


@dataclass(frozen=True)
class Target:
    """One file to make: the picture `numbers` of a prompt, as a grid where there are several."""

    path: Path
    prompt: Prompt
    numbers: tuple[int, ...]


def targets(layout: Layout, prompts: Sequence[Prompt], per_prompt: int) -> list[Target]:
    """Every file of a benchmark in the order of its prompts; paths below DIR."""
    found = []
    for prompt in prompts:
        numbers: dict[Path, list[int]] = {}
        for n in range(per_prompt):
            numbers.setdefault(IMAGES / layout.path(prompt, n), []).append(n)
        found += [Target(path, prompt, tuple(of)) for path, of in numbers.items()]
    return found


def lists(layout: Layout, prompts: Sequence[Prompt], per_prompt: int) -> dict[Path, bytes]:
    """The files besides pictures that a scorer reads, by path below DIR."""
    if layout.name == "geneval":
        return {Path(IMAGES, p.name, "metadata.jsonl"): f"{_dump(p.record)}\n".encode() for p in prompts}
    if layout.name != "imagereward":
        return {}
    paths = [[(IMAGES / layout.path(p, n)).as_posix() for n in range(per_prompt)] for p in prompts]
    entries = [p.record | {"gen_image_paths": of} for p, of in zip(prompts, paths, strict=True)]
    return {Path("metadata.jsonl"): _dump(entries).encode()}


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


# --- the request --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """A checked export.

    Attributes:
        checked: the model, the method, and the first prompt.
        out: DIR.
        batch: pictures drawn together; does not change them.
        workers: who draws; a file is drawn by one of them.
    """

    checked: Checked
    layout: Layout
    prompts: Prompts
    per_prompt: int
    out: Path
    batch: int
    workers: Workers

    @cached_property
    def targets(self) -> list[Target]:
        """Every file, in the order of the prompts."""
        return targets(self.layout, self.prompts.items, self.per_prompt)

    @property
    def images(self) -> Path:
        """The folder that the scorer is given."""
        return self.out / IMAGES


def check(args: argparse.Namespace) -> Export:
    """Refuse what is wrong with the options, before anything slow and before anything is written.

    Raises:
        ValueError: a value out of range, prompts of another form, or pictures in DIR made with other
            settings.
    """
    layout = LAYOUTS[args.suite]
    per_prompt = layout.per_prompt(args.per_prompt)
    if args.batch < 1:
        raise ValueError(f"the batch must hold at least 1 picture, got {args.batch}")
    prompts = layout.read(args.prompts)
    first = {"prompt": prompts.items[0].text, "batch": per_prompt, "output": args.out / "picture.png"}
    checked = check_request(Request.of(args, **first))
    if layout.square and checked.schedule.ratio != 1.0:
        raise ValueError(f"{layout.title} takes square pictures only; leave --aspect out, or give 1:1")
    workers = Workers.of(args, checked.device, len(prompts.items))
    asked = Export(checked, layout, prompts, per_prompt, args.out, args.batch, workers)
    _check_note(asked, None)
    return asked


# --- drawing ------------------------------------------------------------------------------------------------


def export(asked: Export) -> int:
    """Draw what is missing.

    Returns:
        How many files were written; a later call goes on where this one was stopped.

    Raises:
        ValueError: DIR holds pictures of another model, or a prompt is too long.
    """
    missing = [n for n, target in enumerate(asked.targets) if not _complete(asked.out / target.path)]
    if not missing:
        return 0
    drawn = Gallery.ready(asked)
    _check_note(asked, drawn.studio.backbone)
    _write_notes(asked, drawn.studio.backbone)
    for n in missing:
        (asked.out / asked.targets[n].path).unlink(missing_ok=True)  # what broke off
    with Batches(asked.workers, asked, Gallery.ready, draw_batch, "batches") as batches:
        batches.loaded = drawn
        batches.run({batch: asked.out / asked.targets[batch[-1]].path for batch in _batches(asked, missing)})
    return len(missing)


def _complete(path: Path) -> bool:
    """Whether a picture is there as a whole; a copy that broke off is not."""
    return path.is_file() and path.read_bytes().endswith(_ENDS[path.suffix])


def _batches(asked: Export, missing: Sequence[int]) -> list[tuple[int, ...]]:
    """Numbers of targets that are drawn together: as few as fill a batch."""
    found: list[tuple[int, ...]] = []
    pictures = asked.batch
    for n in missing:
        if pictures >= asked.batch:
            found.append(())
            pictures = 0
        found[-1] += (n,)
        pictures += len(asked.targets[n].numbers)
    return found


@dataclass(frozen=True)
class Gallery:
    """An export and the model that draws it."""

    asked: Export
    studio: Studio

    @classmethod
    def ready(cls, asked: Export) -> Gallery:
        return cls(asked, load(asked.checked, [prompt.text for prompt in asked.prompts.items]))


def draw_batch(gallery: Gallery, batch: Sequence[int]) -> dict[Path, bytes]:
    """The files of some targets; pictures are drawn together, as many as a batch holds."""
    asked, studio = gallery.asked, gallery.studio
    chosen, seed = [asked.targets[n] for n in batch], asked.checked.request.seed
    pending = [(target, n) for target in chosen for n in target.numbers]
    images: list[Tensor] = []
    for start in range(0, len(pending), asked.batch):
        part = pending[start : start + asked.batch]
        recipe = studio.recipe([of.prompt.text for of, _ in part], [seed + n for _, n in part])
        images += to_image(generate(studio.backbone, recipe, asked.checked.method).image)
    files = {}
    for target in chosen:
        own, images = images[: len(target.numbers)], images[len(target.numbers) :]
        files[asked.out / target.path] = _encode(asked, studio.backbone, target, own)
    return files


def _encode(asked: Export, backbone: Backbone, target: Target, images: Sequence[Tensor]) -> bytes:
    """One file: a picture that carries its recipe where it is a PNG, or a grid of pictures row by row."""
    if target.path.suffix == ".jpg":
        buffer = io.BytesIO()
        image = Image.fromarray(to_bytes(images[0]).numpy())
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return buffer.getvalue()
    if len(images) == 1:
        return png(images[0], _recipe(asked, backbone, target.prompt, target.numbers[0]))
    return png(torch.cat([torch.cat(tuple(images[n : n + 2]), 1) for n in range(0, len(images), 2)]))


def _recipe(asked: Export, backbone: Backbone, prompt: Prompt, number: int = 0) -> dict[str, Any]:
    request = replace(asked.checked.request, prompt=prompt.text)
    return recipe_of(replace(asked.checked, request=request), backbone, request.seed + number)


# --- moss.json ----------------------------------------------------------------------------------------------


def _note(asked: Export, backbone: Backbone | None) -> dict[str, Any]:
    """What makes the pictures: all that a picture's recipe holds but the prompt, and the prompts as a whole.

    Without `backbone`, what is known before the model is loaded.
    """
    recipe = _recipe(asked, backbone or SimpleNamespace(model_id=None), asked.prompts.items[0])
    rule = "picture n of a prompt, counted from 0, has the seed `seed` + n"
    unknown = ("prompt",) if backbone else ("prompt", "model_id")
    return {
        "suite": asked.layout.name, "prompts_sha256": asked.prompts.sha256, "prompts": len(
            asked.prompts.items
        ),
        "per_prompt": asked.per_prompt, "seed_rule": rule,
        **{name: value for name, value in recipe.items() if name not in unknown},
    }


def _check_note(asked: Export, backbone: Backbone | None) -> None:
    """Refuse to mix pictures of two kinds in one folder."""
    path, instead = asked.out / NOTE, "choose another --out"
    if not path.exists():
        if asked.images.exists() and any(asked.images.iterdir()):
            raise ValueError(
                f"{asked.images} holds files but {path} is missing, which says what made them; {instead}"
            )
        return
    old = read_note(path)
    if old is None:
        raise ValueError(f"{path} is damaged, so what made the pictures there is unknown; {instead}")
    if found := difference(old, _note(asked, backbone), _MAY_DIFFER):
        settings = "or repeat the settings of its moss.json"
        raise ValueError(f"{asked.out} holds pictures made with {found}; {instead}, {settings}")


def _write_notes(asked: Export, backbone: Backbone) -> None:
    note = _dump(_note(asked, backbone), indent=1) + "\n"
    files = {Path(NOTE): note.encode()} | lists(asked.layout, asked.prompts.items, asked.per_prompt)
    write_files({asked.out / path: data for path, data in files.items()})
