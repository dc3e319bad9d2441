"""Draw the help pages' pictures and the icon, with the included model on the CPU.

    python docs/pictures.py [FILE ...]

Without names all of them, else those below js/docs.

Writes js/docs/<node id>/picture.jpg, or picture.png where a map or a table is shown, and icon.png.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path.remove(str(ROOT))  # the folder kernels/ must not pass for the package of that name

import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from torch import Tensor  # noqa: E402

from comfy_moss.benchmarks.shapes import HART_07B, SHAPES  # noqa: E402
from comfy_moss.colour import fix_colours  # noqa: E402
from comfy_moss.images import psnr, ssim, to_bytes, to_image, write_files  # noqa: E402
from comfy_moss.model.backbone import NANO, Backbone  # noqa: E402
from comfy_moss.model.checkpoint import load_infinity  # noqa: E402
from comfy_moss.model.library import find_model  # noqa: E402
from comfy_moss.model.nsarm import SIDES, EnlargeBackbone  # noqa: E402
from comfy_moss.model.sampling import Guidance, Sampling  # noqa: E402
from comfy_moss.model.schedule import Schedule, make_schedule  # noqa: E402
from comfy_moss.model.text import TextEncoder  # noqa: E402
from comfy_moss.pipeline.cost import Cost, report  # noqa: E402
from comfy_moss.pipeline.dispatch import RefinePass  # noqa: E402
from comfy_moss.pipeline.draft import Recipe  # noqa: E402
from comfy_moss.pipeline.frequency import contribution, frequency_map  # noqa: E402
from comfy_moss.pipeline.heatmap import (  # noqa: E402
    change_map,
    colour_bar,
    enlarge,
    heatmap,
    legend,
    overlay,
    scale_colours,
)
from comfy_moss.pipeline.plan import Picture, generate, parse_method  # noqa: E402
from comfy_moss.pipeline.source import Edit, encode_picture  # noqa: E402

PROMPT = "a red heart on a gradient white background"
EDITED = "a blue heart on a gradient white background"
TEXTURED, MANY = "a dotted yellow circle", "four yellow crosses on a gradient white background"
SEED = 5
LORA_NAMES = """PEFT  base_model.model.blocks.1.sa.proj.lora_A.weight
kohya  lora_unet_blocks_1_sa_proj.lora_down.weight
EditInfinity  block_chunks.0.module.1.sa.proj.lora_down.weight"""
WIDTH = 640  # pixels; the help panel is about 240 wide until somebody widens it
MARGIN, GAP, TEXT = 16, 12, 30
INK, QUIET, PAPER = (28, 30, 36), (112, 116, 126), (255, 255, 255)
LIMIT = 60_000  # bytes of a picture
ICON = 400
RUNS = 3  # the report shows the fastest


@dataclass(frozen=True)
class Drawn:
    """One prompt, drawn by every method.

    Attributes:
        scales: images (1, H, W, 3) of the dense picture after every scale.
        moss: the method to start with.
        half: the same at strength 0.5.
    """

    scales: list[Tensor]
    dense: Picture
    moss: Picture
    half: Picture
    fastvar: Picture

    @property
    def draft(self) -> Tensor:
        """The draft as an image."""
        return self.scales[self.moss.passes[0].draft.scales - 1]


def load() -> tuple[Backbone, Recipe]:
    files = find_model("nano", [])
    text = TextEncoder.load(files.text).encode([PROMPT])
    schedule = make_schedule(1.0, files.area)
    recipe = Recipe(tuple(text), None, (SEED,), schedule, Guidance(files.cfg), Sampling(files.tau))
    return load_infinity(files.transformer, files.vae, files.text), recipe


def draw(backbone: Backbone, recipe: Recipe) -> Drawn:
    sums: list[Tensor] = []
    generate(backbone, recipe, parse_method("dense"), on_scale=lambda done, scales, total: sums.append(total))
    with torch.inference_mode():
        scales = [to_image(backbone.decode(total)) for total in sums]
    moss = parse_method(NANO.method, published=NANO)
    half = replace(moss, passes=tuple(replace(step, strength=0.5) for step in moss.passes))
    methods = (parse_method("dense"), moss, half, parse_method("fastvar"))
    return Drawn(
        scales, *(fastest([generate(backbone, recipe, method) for _ in range(RUNS)]) for method in methods)
    )


def fastest(pictures: Sequence[Picture]) -> Picture:
    return min(pictures, key=lambda picture: picture.cost.total_seconds)


def to_pillow(image: Tensor, width: int) -> Image.Image:
    """An image (1, H, W, 3) at another width."""
    height = round(width * image.shape[1] / image.shape[2])
    return Image.fromarray(to_bytes(enlarge(image, (height, width))[0]).numpy())


def sheet(panels: Sequence[tuple[str, Tensor]], columns: int, footer: Tensor | None = None) -> Image.Image:
    """Panels in rows on white, each below its title, and an image of the whole width under them."""
    width = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    shown = [(title, to_pillow(image, width)) for title, image in panels]
    step = TEXT + GAP + shown[0][1].height + GAP
    rows = -(-len(shown) // columns)
    below = footer.shape[1] + GAP if footer is not None else 0
    page = Image.new("RGB", (WIDTH, rows * step + below + MARGIN), PAPER)
    write, font = ImageDraw.Draw(page), ImageFont.load_default(TEXT)
    for n, (title, image) in enumerate(shown):
        left, top = MARGIN + n % columns * (width + GAP), GAP + n // columns * step
        write.text((left, top + TEXT), title, INK, font, "ls")
        page.paste(image, (left, top + TEXT + GAP))
    if footer is not None:
        page.paste(to_pillow(footer, WIDTH - 2 * MARGIN), (MARGIN, rows * step + GAP))
    return page


def table(text: str) -> Image.Image:
    """Lines of a name and a value, at least two spaces apart."""
    rows = [line.split("  ", 1) for line in text.splitlines()]
    rows = [(name, value.strip()) for name, value in rows]
    for size in range(TEXT, 8, -1):
        font = ImageFont.load_default(size)
        names, values = (max(font.getlength(row[n]) for row in rows) for n in (0, 1))
        if 2 * MARGIN + names + 2 * GAP + values <= WIDTH:
            break
    step = round(1.5 * size)
    page = Image.new("RGB", (WIDTH, step * len(rows) + 2 * MARGIN), PAPER)
    write = ImageDraw.Draw(page)
    for n, (name, value) in enumerate(rows):
        line = MARGIN + (n + 0.5) * step
        write.text((MARGIN, line), name, QUIET, font, "lm")
        write.text((MARGIN + names + 2 * GAP, line), value, INK, font, "lm")
    return page


def late_colours(k: int, schedule: Schedule) -> Tensor:
    """(k, 3) colours of the last k scales."""
    return scale_colours(range(len(schedule) - k, len(schedule)), schedule)


def scale_bars(schedule: Schedule, refined: Sequence[int]) -> Image.Image:
    """A column for every scale, as high as it is wide in tokens; the last ones in colour, with the tokens
    that are redrawn.
    """
    sides = [side for side, _ in schedule.grids]
    step, height, font = (WIDTH - 2 * MARGIN) / len(sides), 300, ImageFont.load_default(20)
    page = Image.new("RGB", (WIDTH, height + 4 * TEXT), PAPER)
    pen = ImageDraw.Draw(page)
    colours = [tuple(round(255 * c) for c in rgb.tolist()) for rgb in late_colours(len(refined), schedule)]
    for n, side in enumerate(sides):
        late = n - len(sides) + len(refined)
        left, top, bottom = MARGIN + n * step, 2 * TEXT + height * (1 - side / sides[-1]), 2 * TEXT + height
        pen.rectangle((left + 4, top, left + step - 4, bottom), colours[late] if late >= 0 else QUIET)
        pen.text((left + step / 2, bottom + 8), str(side), INK, font, "mt")
        if late >= 0:
            pen.text((left + step / 2, top - 8), str(refined[late]), INK, font, "mb")
    pen.text((MARGIN, TEXT), "side of each scale in tokens; above, how many MoSs2 redraws", QUIET, font, "lm")
    return page


def hart_scales() -> Image.Image:
    """HART's scales and what MoSs2 redraws of the last two, by arithmetic."""
    schedule, moss2 = HART_07B.schedule(1.0, "1M"), RefinePass.of_last(HART_07B.published.bounds[2])
    return scale_bars(schedule, moss2.counts(schedule))


def work_bars(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], told: str) -> Image.Image:
    """A bar for every row, of parts with names and sizes; the same name has the same colour."""
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts))
    colours = dict(zip(names, [QUIET, (106, 27, 154), (245, 124, 0)], strict=False))
    most, step, left = 1.02 * max(sum(size for _, size in parts) for _, parts in rows), 3 * TEXT // 2, 130
    page = Image.new("RGB", (WIDTH, step * len(rows) + 3 * TEXT), PAPER)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(20)
    pen.text((MARGIN, TEXT), told, QUIET, font, "lm")
    for n, (row, parts) in enumerate(rows):
        x, top = float(left), 2 * TEXT + n * step
        pen.text((MARGIN, top + TEXT / 2), row, INK, font, "lm")
        for name, size in ((name, size) for name, size in parts if size):
            width = 3 + (WIDTH - MARGIN - left) * size / most
            pen.rectangle((x, top, x + width - 2, top + TEXT), colours[name])
            if width > font.getlength(name) + 8:
                pen.text((x + width / 2, top + TEXT / 2), name, PAPER, font, "mm")
            x += width
    return page


def work_of(shape: str, methods: Sequence[str]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Multiply-adds of a fine-tune by method: those of its picture, of the draft and of the refine pass."""
    kind, rows = SHAPES[shape], []
    model, schedule = kind.build(torch.device("meta"), torch.bfloat16, ""), kind.schedule(1.0, "1M")
    guided, before = kind.guidance.active(len(schedule)), model.work.before(schedule)
    for name in methods:
        plan = parse_method(name)
        passes = plan.forward_passes(schedule, guided, before, model.depth)
        macs = [step.macs(model.work, model.depth) for step in passes]
        first = len(model_given(model)) or 1
        parts = [("picture", sum(macs[:first])), ("draft", sum(macs[first : plan.on(schedule).draft]))]
        parts.append(("refine", sum(macs[plan.on(schedule).draft :])))
        rows.append((name.replace("moss", "MoSs"), parts))
    return rows


def model_given(model: Backbone) -> Sequence[int]:
    """The scales that a picture gives without drawing."""
    return SIDES if isinstance(model, EnlargeBackbone) else ()


def edit_work() -> Image.Image:
    rows = work_of("varedit-8b", ("dense", "moss2", "moss3", "moss4", "moss5"))
    return work_bars(rows, "work of an edit at 1024 x 1024; another seed saves its first part")


def enlarge_work() -> Image.Image:
    rows = work_of("nsarm-8b", ("dense", "moss2", "moss3", "moss4", "moss5"))
    return work_bars(rows, "work of an enlargement to 1024 x 1024, by method")


def matched(result: Tensor) -> Image.Image:
    """A faded picture, and a small one that gives its colours back."""
    faded, small = 0.3 + 0.5 * result, enlarge(result, (64, 64)).round(decimals=2)
    return sheet([("Drawn", faded), ("Reference", small), ("Matched", fix_colours(faded, small))], 3)


def cost(label: str, picture: Picture) -> Cost:
    """What drawing took, without the decoding."""
    seconds = {stage: spent for stage, spent in picture.cost.seconds.items() if stage != "decode"}
    return replace(picture.cost, label=label, seconds=seconds)


def help_pictures(drawn: Drawn, recipe: Recipe) -> dict[str, Image.Image]:
    """File in js/docs -> picture."""
    schedule, moss, inner = recipe.schedule, drawn.moss, WIDTH - 2 * MARGIN
    (maps,) = moss.passes
    result, half, dense, fastvar = (to_image(p.image) for p in (moss, drawn.half, drawn.dense, drawn.fastvar))
    before, size = ("Draft", drawn.draft), (inner, inner)
    grown = [(f"{w} x {h}", image) for (h, w), image in zip(schedule.grids, drawn.scales, strict=True)]
    parts = contribution(maps.draft.total, moss.total, maps.frequency)
    likeness = psnr(result, dense).item(), ssim(result, dense).item()
    return {
        "MoSs_LoadInfinity/picture.jpg": sheet([grown[n] for n in (0, 2, 4, 6, 8, 9)], 3),
        "MoSs_LoadHART/picture.png": hart_scales(),
        "MoSs_InstructEdit/picture.png": edit_work(),
        "MoSs_Enlarge/picture.png": enlarge_work(),
        "MoSs_MatchPicture/picture.jpg": matched(result),
        "MoSs_InfinityDraft/picture.jpg": sheet(grown[: maps.draft.scales], 3),
        "MoSs_FrequencyMap/picture.png": sheet(
            [before, ("Frequency", heatmap(maps.frequency, size))], 2, colour_bar(inner)
        ),
        "MoSs_TokenDispatch/picture.png": sheet(
            [before, ("Dispatch", overlay(enlarge(drawn.draft, size), maps.dispatch, schedule))], 2,
            legend(maps.dispatch, schedule, inner),
        ),
        "MoSs_Refine/picture.jpg": sheet([before, ("Refined", result)], 2),
        "MoSs_Composite/picture.jpg": sheet([("0", drawn.draft), ("0.5", half), ("1", result)], 3),
        "MoSs_DenseRefine/picture.jpg": sheet([before, (NANO.method, result), ("Dense", dense)], 3),
        "MoSs_FastVARRefine/picture.jpg": sheet([before, ("FastVAR", fastvar), ("Dense", dense)], 3),
        "MoSs_ContributionMap/picture.png": sheet(
            [("Drafter", heatmap(parts.drafter, size)), ("Refiner", heatmap(parts.refiner, size))], 2
        ),
        "MoSs_LoadLora/picture.png": table(LORA_NAMES),
        "MoSs_Report/picture.png": table(
            report(cost(NANO.method, moss), cost("dense", drawn.dense), *likeness)
        ),
    }


def edit_pictures(backbone: Backbone, recipe: Recipe, drawn: Drawn, text: Tensor) -> dict[str, Image.Image]:
    """The same of the nodes that start from a picture: the dense one, its colour or a part of it changed.

    Args:
        text: features of EDITED.
    """
    given, schedule, plan = to_image(drawn.dense.image), recipe.schedule, parse_method("sparse3")
    source, target = encode_picture(backbone, given, schedule), replace(recipe, text=(text,))
    white = torch.zeros(1, *schedule.grids[-1])
    white[:, 4:28, 16:] = 1
    ways = {
        "redrawn": replace(source, scales=3), "inpainted": replace(source, mask=white > 0),
        "edited": replace(source, edit=Edit(recipe.text)),
    }
    found = {name: generate(backbone, replace(target, source=way), plan) for name, way in ways.items()}
    size = given.shape[1:3]
    mask, change = white[..., None].expand(-1, -1, -1, 3), change_map(found["edited"].change, size)
    redrawn, inpainted, edited = (to_image(picture.image) for picture in found.values())
    panels = [("Picture", given), ("Redrawn", redrawn), ("Mask", mask), ("Inpainted", inpainted)]
    return {
        "MoSs_ImageToDraft/picture.jpg": sheet(panels, 4),
        "MoSs_EditDraft/picture.png": sheet([("Picture", given), ("Change", change), ("Edited", edited)], 3),
    }


def textured(backbone: Backbone, recipe: Recipe) -> Image.Image:
    """The plain model and its rivals at about equal time, on a texture; what MoSs Compare shows."""
    text = TextEncoder.load(find_model("nano", []).text).encode([TEXTURED])
    recipe = replace(recipe, text=tuple(text))
    names = ("dense", NANO.method, "moss3", "draft-2", "fastvar")
    methods = {name: parse_method(name, published=NANO) for name in names}
    images = {name: to_image(generate(backbone, recipe, method).image) for name, method in methods.items()}
    return sheet(list(images.items()), 3)


def drafts(backbone: Backbone, recipe: Recipe) -> Image.Image:
    """Three drafts above their maps, the second one picked; what MoSs Pick Drafts shows."""
    text = TextEncoder.load(find_model("nano", []).text).encode([MANY])
    panels, maps = [], []
    for n in range(3):
        seeded = replace(recipe, text=tuple(text), seeds=(10 + n,))
        picture = generate(backbone, seeded, parse_method("draft-3"))
        image = to_image(picture.image)
        panels.append((f"{n + 1}, picked" if n == 1 else f"{n + 1}", image))
        maps.append(("", heatmap(frequency_map(picture.total), image.shape[1:3])))
    return sheet([*panels, *maps], 3)


def encode(picture: Image.Image, suffix: str) -> bytes:
    """The best quality below the limit: fewer colours of a map's palette, or stronger compression."""
    for quality, colours in ((92, 256), (85, 128), (75, 64), (60, 32)):
        buffer = io.BytesIO()
        if suffix == ".jpg":
            picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        else:
            picture.quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() < LIMIT:
            break
    return buffer.getvalue()


def icon() -> Image.Image:
    """Tokens from coarse at the border to fine in the middle, in the colours of the overlay."""
    times, colours = (
        4, [tuple(round(255 * c) for c in colour.tolist()) for colour in late_colours(4, make_schedule())],
    )
    page = Image.new("RGBA", (ICON * times, ICON * times))
    pen = ImageDraw.Draw(page)
    pen.rounded_rectangle((0, 0, page.width - 1, page.height - 1), page.width * 0.18, INK)
    side, whole = page.width * 0.84, page.width / 2
    for level, colour in enumerate(colours):
        cell = side / 4
        for row in range(4):
            for column in range(4):
                inner = row in (1, 2) and column in (1, 2)
                if not inner or level == len(colours) - 1:
                    left, top = whole - side / 2 + column * cell, whole - side / 2 + row * cell
                    pad = cell * 0.05
                    pen.rounded_rectangle(
                        (left + pad, top + pad, left + cell - pad, top + cell - pad), cell * 0.12, colour
                    )
        side /= 2
    return page.resize((ICON, ICON), Image.Resampling.LANCZOS)


def main() -> None:
    torch.set_num_threads(1)
    backbone, recipe = load()
    drawn = draw(backbone, recipe)
    files, only = {}, sys.argv[1:]
    edited = TextEncoder.load(find_model("nano", []).text).encode([EDITED])[0]
    made = help_pictures(drawn, recipe) | edit_pictures(backbone, recipe, drawn, edited)
    made["MoSs_Compare/picture.jpg"] = textured(backbone, recipe)
    made["MoSs_PickDrafts/picture.jpg"] = drafts(backbone, recipe)
    for name, picture in made.items():
        if only and name not in only:
            continue
        path = ROOT / "js" / "docs" / name
        files[path] = encode(picture, path.suffix)
    write_files(files)
    if not only:
        icon().save(ROOT / "icon.png", optimize=True)


if __name__ == "__main__":
    main()
