"""Where each benchmark's scorer looks for pictures: one small function a benchmark.

The scorer is given the folder DIR/images and finds nothing but pictures there: HPSv2's takes every entry for a style,
DPG-Bench's for a picture, and ImageReward's counts them.  What we have to say about them lies beside it, in DIR.

Each function gives the path below DIR/images of picture `n` (from 0) of a prompt.  Pictures with the same path are tiles
of one grid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .prompts import READERS, Prompt, Prompts

IMAGES = "images"


def geneval(prompt: Prompt, n: int) -> Path:
    """GenEval: 00000/samples/0000.png; only names made of digits count, and only PNG.

    The prompt's own line lies beside `samples` as metadata.jsonl.  Usually 4 pictures a prompt.
    Scored with: evaluation/evaluate_images.py DIR/images --outfile RESULTS.jsonl --model-path DETECTOR
    """
    return Path(prompt.name, "samples", f"{n:04d}.png")


def dpg(prompt: Prompt, n: int) -> Path:
    """DPG-Bench: ID.png, a 2 x 2 grid of 4 square pictures, row by row; or one picture where the scorer's PIC_NUM is 1.

    Scored with: dpg_bench/dist_eval.sh DIR/images RESOLUTION, the side of one tile in pixels
    """
    return Path(f"{prompt.name}.png")


def hpsv2(prompt: Prompt, n: int) -> Path:
    """HPSv2: STYLE/00000.jpg by place in the style's list; one picture a prompt, JPEG only.

    Scored with: hpsv2.evaluate("DIR/images", hps_version="v2.1")
    """
    return Path(prompt.folder, f"{prompt.name}.jpg")


def imagereward(prompt: Prompt, n: int) -> Path:
    """ImageReward: ID_0.png, ID_1.png, all in one folder, which stands for the model; usually 10 pictures a prompt.

    DIR/metadata.jsonl lists id, prompt and pictures (paths from DIR, "gen_image_paths") as one JSON list, the form that
    Infinity's own scoring script reads.
    Scored with: test-benchmark.py --img_dir DIR --model images --prompts_path PROMPTS
    """
    return Path(f"{prompt.name}_{n}.png")


@dataclass(frozen=True)
class Layout:
    """A benchmark's demands.

    Attributes:
        name: as typed on the command line.
        title: as its authors write it.
        path: (prompt, n) -> path below DIR/images.
        pictures: how many a prompt the authors ask for.
        choices: the only numbers its scorer takes; () = any.
        square: whether its scorer cuts tiles out by one side length.
    """

    name: str
    title: str
    path: Callable[[Prompt, int], Path]
    pictures: int
    choices: tuple[int, ...] = ()
    square: bool = False

    def read(self, path: Path) -> Prompts:
        """The prompts file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what this benchmark's prompts look like.
        """
        return READERS[self.name](path)

    def per_prompt(self, wanted: int | None) -> int:
        """Pictures a prompt, the authors' number where None.

        Raises:
            ValueError: a number that the scorer cannot take.
        """
        number = self.pictures if wanted is None else wanted
        if number < 1 or (self.choices and number not in self.choices):
            allowed = " or ".join(map(str, self.choices)) or "1 or more"
            raise ValueError(f"of pictures {self.title} takes {allowed} a prompt, got --per-prompt {number}")
        return number


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("geneval", "GenEval", geneval, 4),
        Layout("dpg", "DPG-Bench", dpg, 4, choices=(1, 4), square=True),
        Layout("hpsv2", "HPSv2", hpsv2, 1, choices=(1,)),
        Layout("imagereward", "ImageReward", imagereward, 10),
    )
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
    if layout.name == "imagereward":
        entries = [
            p.record | {"gen_image_paths": [(IMAGES / layout.path(p, n)).as_posix() for n in range(per_prompt)]} for p in prompts
        ]
        return {Path("metadata.jsonl"): _dump(entries).encode()}
    return {}


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `export`: all but those of the model and of what decides a picture."""
    add = parser.add_argument
    add("suite", choices=LAYOUTS, help="whose prompts and layout")
    add("--prompts", type=Path, required=True, metavar="FILE", help="the benchmark's own prompts (dpg, hpsv2: or their folder)")
    add("--out", type=Path, required=True, metavar="DIR", help="goes on where it was stopped; pictures to score: DIR/images")
    add("--per-prompt", type=int, metavar="N", help="pictures a prompt (default: the benchmark's own number)")
    add("--batch", type=int, default=1, metavar="N", help="pictures drawn together (default: 1)")
