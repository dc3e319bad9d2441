"""What edits by words and redrawing do to a picture, and what acceleration costs in them.

    python -m benchmarks.edits draw FOLDER    draw and judge every case by every way; goes on where it stopped
    python -m benchmarks.edits time FOLDER    an edit by the default plan against the same edit drawn densely
    python -m benchmarks.edits page FOLDER    rows and times into benchmarks/results and docs/edits.md
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from comfy_moss.images import to_bytes, to_image, write_files
from comfy_moss.pipeline.cost import Cost
from comfy_moss.pipeline.plan import generate, parse_method
from comfy_moss.pipeline.source import Edit, Source, encode_picture
from comfy_moss.request import Request, check

from . import RESULTS, ROOT
from .analysis import Interval, mean, weights
from .edit_cases import KINDS, EditCase, cases, judge
from .machine import hardware, versions
from .quality import machine, span, table
from .quality import versions as told_versions
from .studio import Studio, json_bytes, load, read_note

PER_KIND, SEED = 24, 5
STORED = RESULTS / "edits-nano.json"
PAGE, SHEET = ROOT / "docs" / "edits.md", ROOT / "docs" / "images" / "edits-nano.png"
SHOWN = (0, 5, 10, 1, 6, 11, 2, 3, 8, 13, 4, 9)  # twelve cases of all kinds
LIMIT = 99.0  # dB, told of equal pictures


@dataclass(frozen=True)
class Way:
    """How the target is drawn.

    Attributes:
        scales: taken from the picture; None = an edit.
        edit: preserve, follow and rule.
    """

    plan: str = "sparse3"
    scales: int | None = None
    edit: tuple[int, int, str] | None = None

    @property
    def title(self) -> str:
        if self.edit is None:
            codec = self.scales == CODEC
            return "the codec alone: nothing drawn" if codec else f"redraw, {self.scales} scales kept"
        preserve, follow, rule = self.edit
        return f"edit by {rule}, {preserve} kept, to {follow}"

    def source(self, source: Source, before: tuple) -> Source:
        """The picture as the recipe carries it."""
        if self.edit is None:
            return replace(source, scales=self.scales)
        preserve, follow, rule = self.edit
        return replace(source, edit=Edit(before, preserve, follow, rule))


CODEC = 10  # scales of nano: all of them
PLANS = ("dense", "draft-2", "draft-3", "moss2", "moss3", "moss4", "moss5", "sparse4")
GATE, SHIFT, BACKGROUND = (2, 7, "gate"), (2, 5, "shift"), (0, 7, "gate")
WAYS = {
    "codec": Way("draft-9", CODEC), **{f"redraw-{n}": Way(scales=n) for n in range(8)},
    "shift": Way(edit=SHIFT), "gate": Way(edit=GATE), "gate-all": Way(edit=BACKGROUND),
    **{f"gate-{plan}": Way(plan, edit=GATE) for plan in PLANS},
}


@dataclass(frozen=True)
class Row:
    """One case: what was seen, squared error outside the true mask (of 255), and tokens of the draft and
    passes.
    """

    fulfilled: bool
    kept: bool
    error: float
    tokens: int


def prepare(asked: Sequence[EditCase]) -> Studio:
    checked = check(Request(prompt=asked[0].prompts[1], method="dense"))
    return load(checked, [prompt for case in asked for prompt in case.prompts])


def sourced(studio: Studio, case: EditCase) -> Source:
    given = torch.from_numpy(case.pictures()[0]).float()[None] / 255
    return encode_picture(studio.backbone, given, studio.checked.schedule)


def picture_of(
    studio: Studio, case: EditCase, source: Source, number: int, way: Way
) -> tuple[np.ndarray, Cost]:
    """The edited picture, uint8 (H, W, 3), and what it took."""
    before, target = case.prompts
    recipe = replace(
        studio.recipe([target], [number]), source=way.source(source, (studio.features[before],))
    )
    drawn = generate(studio.backbone, recipe, parse_method(way.plan, published=studio.checked.published))
    return to_bytes(to_image(drawn.image))[0].numpy(), drawn.cost


def look(case: EditCase, outside: np.ndarray, picture: np.ndarray, cost: Cost) -> Row:
    verdict = judge(case, picture)
    error = (picture.astype(float) - case.pictures()[0])[outside]
    return Row(verdict.fulfilled, verdict.kept, float(np.square(error).mean()), sum(cost.tokens_per_scale))


# --- drawing ------------------------------------------------------------------------------------------------


def draw(folder: Path, seconds: float, turns: int) -> bool:
    """Draw what the folder lacks, every case by every way, the kinds in turn; False = time is up first."""
    asked, end = cases(PER_KIND, SEED)[: turns * len(KINDS)], time.monotonic() + seconds
    studio = prepare(asked)
    for n, case in enumerate(asked):
        path = folder / f"{n:03d}.json"
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not (left := [name for name in WAYS if name not in rows]):
            continue
        if time.monotonic() > end:
            return False
        source, outside, files = sourced(studio, case), ~case.may_change(), {}
        for name in left:
            picture, cost = picture_of(studio, case, source, n, WAYS[name])
            rows[name] = asdict(look(case, outside, picture, cost))
            if n in SHOWN:
                files[folder / f"{n:03d}-{name}.png"] = _png(picture)
        write_files(files | {path: json.dumps(rows).encode()})
    return True


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of drawing and of decoding of one edit, by the default plan and densely, in turns."""
    case = cases(1, SEED)[0]
    studio = prepare([case])
    source = sourced(studio, case)
    ways = {name: WAYS[name] for name in ("gate", "gate-dense", "shift")}
    ways |= {"shift-dense": replace(WAYS["shift"], plan="dense")}
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            cost = picture_of(studio, case, source, 0, way)[1]
            if turn:  # the first one warms up
                decoding = cost.seconds["decode"]
                found[name].append([cost.total_seconds - decoding, decoding])
    return {"hardware": hardware(studio.checked.device), "versions": versions(), "seconds": found}


# --- the page -----------------------------------------------------------------------------------------------


def combine(folder: Path, times: dict[str, Any] | None) -> dict[str, Any]:
    """The cases of a folder as one result: as many turns of the kinds as are whole."""
    found = []
    while (path := folder / f"{len(found):03d}.json").exists():
        found.append(json.loads(path.read_text(encoding="utf-8")))
    found = list(takewhile(lambda rows: rows.keys() >= WAYS.keys(), found))
    turns = len(found) // len(KINDS)
    rows = {name: [case[name] for case in found[: turns * len(KINDS)]] for name in WAYS}
    setting = {"command": f"python -m benchmarks.edits draw FOLDER --turns {turns}", "seed": SEED}
    return {**setting, "cases": turns * len(KINDS), "rows": rows, "times": times}


@dataclass(frozen=True)
class Found:
    """A result, opened: everything by name of a way."""

    result: dict[str, Any]

    @property
    def count(self) -> int:
        return self.result["cases"]

    def column(self, name: str, of: str, kind: str | None = None) -> Interval:
        rows = self.result["rows"][name]
        kinds = [KINDS[n % len(KINDS)] for n in range(len(rows))]
        chosen = [(row, k) for row, k in zip(rows, kinds, strict=True) if kind in (None, k)]
        values = [self._value(row, of) for row, _ in chosen]
        return mean(values, weights([k for _, k in chosen]))

    def minus(self, name: str, other: str, of: str) -> Interval:
        pairs = zip(self.result["rows"][name], self.result["rows"][other], strict=True)
        values = [self._value(a, of) - self._value(b, of) for a, b in pairs]
        return mean(values, weights([KINDS[n % len(KINDS)] for n in range(len(values))]))

    @staticmethod
    def _value(row: dict[str, Any], of: str) -> float:
        if of == "both":
            return float(row["fulfilled"] and row["kept"])
        if of == "psnr":
            return min(LIMIT, 10 * np.log10(255**2 / max(row["error"], 1e-12)))
        return float(row[of])


def page(result: dict[str, Any]) -> str:
    """docs/edits.md."""
    found = Found(result)
    text = (Path(__file__).parent / "text" / "edits.md").read_text(encoding="utf-8")
    redraws = [name for name, way in WAYS.items() if way.plan == "sparse3" or name == "codec"]
    plans = [name for name, way in WAYS.items() if way.edit == GATE]
    plans.sort(key=lambda name: -found.column(name, "tokens").value)
    return text.format(
        count=found.count, ways=_ways(found, redraws), kinds=_kinds(found, redraws),
        plans=_plans(found, plans), speed=_speed(result["times"]), sheet=f"images/{SHEET.name}",
    )


def _ways(found: Found, names: Sequence[str]) -> str:
    return table([
        ("way", lambda name: WAYS[name].title),
        ("tokens", lambda name: f"{found.column(name, 'tokens').value:.0f}"),
        ("target fulfilled", lambda name: span(found.column(name, "fulfilled"))),
        ("rest preserved", lambda name: span(found.column(name, "kept"))),
        ("both", lambda name: span(found.column(name, "both"))),
        ("PSNR outside the true mask", lambda name: f"{span(found.column(name, 'psnr'), '.2f')} dB"),
    ], names)


def _kinds(found: Found, names: Sequence[str]) -> str:
    columns = [("both, by kind", lambda name: WAYS[name].title)]
    columns += [
        (kind, lambda name, kind=kind: f"{found.column(name, 'both', kind).value:.2f}") for kind in KINDS
    ]
    return table(columns, names)


def _plans(found: Found, names: Sequence[str]) -> str:
    def minus(of: str, form: str) -> Any:
        return lambda name: "" if name == "gate-dense" else span(found.minus(name, "gate-dense", of), form)

    return table([
        ("plan", lambda name: WAYS[name].plan),
        ("tokens", lambda name: f"{found.column(name, 'tokens').value:.0f}"),
        ("target fulfilled", lambda name: span(found.column(name, "fulfilled"))),
        ("both", lambda name: span(found.column(name, "both"))),
        ("both minus dense's", minus("both", "+.3f")),
        ("PSNR outside", lambda name: f"{found.column(name, 'psnr').value:.2f} dB"),
        ("minus dense's", minus("psnr", "+.2f")),
    ], names)


def _speed(times: dict[str, Any] | None) -> str:
    if times is None:
        return "Not measured yet."
    middle = {
        name: [statistics.median(part) for part in zip(*rounds, strict=True)]
        for name, rounds in times["seconds"].items()
    }
    rows = [(rule, middle[rule], middle[f"{rule}-dense"]) for rule in ("gate", "shift")]
    drawn = table([
        ("edit", lambda rule, ours, dense: rule),
        ("sparse3", lambda rule, ours, dense: f"{1000 * ours[0]:.0f} ms"),
        ("dense", lambda rule, ours, dense: f"{1000 * dense[0]:.0f} ms"),
        ("times as fast", lambda rule, ours, dense: f"{dense[0] / ours[0]:.2f}"),
        ("with the decoder", lambda rule, ours, dense: f"{sum(dense) / sum(ours):.2f}"),
    ], rows)
    rounds = len(times["seconds"]["gate"])
    threads = f"threads: {times['hardware']['threads']}"
    where = f"{machine(times, 'device', threads)}\n{told_versions(times)}"
    return f"{drawn}\n\nMedians of {rounds} rounds in turns, without loading the model.\n\n{where}"


def sheet(folder: Path, names: Sequence[str]) -> Image.Image:
    """Twelve cases, a row each: the picture, ways, and the perfect edit."""
    asked, side, top = cases(PER_KIND, SEED), 128, 22
    titles = ["picture", *names, "perfect"]
    whole = Image.new("RGB", (len(titles) * (side + 6), top + len(SHOWN) * (side + 24)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for n, title in enumerate(titles):
        pen.text((n * (side + 6) + 2, 3), title, "black", font)
    for row, number in enumerate(SHOWN):
        before, after = asked[number].pictures()
        drawn = [np.asarray(Image.open(folder / f"{number:03d}-{name}.png")) for name in names]
        y = top + row * (side + 24)
        for n, picture in enumerate([before, *drawn, after]):
            whole.paste(Image.fromarray(picture).resize((side, side)), (n * (side + 6), y))
        source, target = (prompt.removeprefix("a photo of ") for prompt in asked[number].prompts)
        pen.text((2, y + side + 3), f"{source}  ->  {target}", (90, 90, 90), font)
    return whole


def main() -> int:
    about = __doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edits", description=about)
    parser.add_argument("what", choices=("draw", "time", "page"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("edits"))
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many")
    parser.add_argument("--turns", type=int, default=PER_KIND, help="how many cases of every kind")
    parser.add_argument("--rounds", type=int, default=5, help="of time")
    args = parser.parse_args()
    times = args.folder / "times.json"
    if args.what == "draw":
        return 0 if draw(args.folder, args.seconds, args.turns) else 1
    if args.what == "time":
        stamp = {"date": time.strftime("%Y-%m-%d")}
        write_files({times: json_bytes(measure(args.rounds) | stamp)})
        return 0
    result = combine(args.folder, read_note(times) if times.exists() else None)
    sheet(args.folder, ("redraw-3", "shift", "gate", "gate-dense")).save(SHEET, optimize=True)
    write_files({STORED: json_bytes(result), PAGE: page(result).encode()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
