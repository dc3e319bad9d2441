"""One order for pictures: check it before anything slow, load the model, write the files.  Prints nothing."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .images import png, to_image, write_files
from .model.backbone import Backbone, Published
from .model.library import ModelFiles, default_roots, find_model
from .model.sampling import NOISE_ID, Guidance, per_scale
from .model.schedule import Schedule, parse_aspect
from .ops import choose
from .pipeline.draft import Recipe
from .pipeline.generate import Method, Picture, parse_method
from .pipeline.heatmap import explain


@dataclass(frozen=True)
class Job:
    """A checked order: everything that can be known to be right before weights are read.

    Attributes:
        args: the command line.
        settings: guidance and sampling of the recipe.
        pixels: image area, a key of `schedule.PRESETS`.
        dtype: of the transformer's blocks, the codec and the text encoder.
    """

    args: argparse.Namespace
    files: ModelFiles
    method: Method
    schedule: Schedule
    settings: dict[str, Any]
    pixels: str
    device: torch.device
    dtype: torch.dtype

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a picture, counting up."""
        return tuple(range(self.args.seed, self.args.seed + self.args.batch))


def check(args: argparse.Namespace) -> Job:
    """Refuse what is wrong with the order.

    Raises:
        ValueError: a value out of range, an output that cannot be written, or a model that is not there.
    """
    _check_texts(args)
    _check_outputs(args)
    if args.batch < 1:
        raise ValueError(f"the batch must hold at least 1 picture, got {args.batch}")
    if not 0 <= args.seed <= 2**64 - args.batch:
        raise ValueError(f"seeds lie between 0 and 2^64 - 1, got {args.seed} for {args.batch} pictures")
    ratio = parse_aspect(args.aspect)
    device, dtype = choose_device(args.device, args.precision)
    files = find_model(args.model, [*args.models, *default_roots()])
    pixels, method = args.pixels or files.area, _method(args, files.published)
    schedule = files.schedule(ratio, pixels)
    method.check(schedule)
    cfg = _scales(files.cfg if args.cfg is None else args.cfg, schedule, "cfg")
    tau = _scales(files.tau if args.tau is None else args.tau, schedule, "tau")
    settings = {"guidance": Guidance(cfg), "sampling": files.sampling(tau)}
    return Job(args, files, method, schedule, settings, pixels, device, dtype)


def _method(args: argparse.Namespace, published: Published) -> Method:
    bounds = [args.bounds] if isinstance(args.bounds, float) else args.bounds
    name = args.method or ("draft" if args.skip is not None else "moss" if bounds else f"moss{published.k}")
    options = {"cross_scale": not args.no_cssa, "guidance": not args.no_refine_guidance}
    return replace(parse_method(name, bounds, args.skip, published), strength=args.strength, window=args.window, **options)


def _scales(value: float | Sequence[float], schedule: Schedule, name: str) -> float | tuple[float, ...]:
    """One number, or at least one a scale."""
    values = per_scale(value, len(schedule), name)
    return float(value) if isinstance(value, (int, float)) else values


def _check_texts(args: argparse.Namespace) -> None:
    if not args.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw")
    try:
        (args.prompt + args.negative).encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt holds bytes that are not text; write it in UTF-8") from None


def _check_outputs(args: argparse.Namespace) -> None:
    if args.output.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as PNG; name the output something.png instead of {str(args.output)!r}")
    if args.output.is_dir():
        raise ValueError(f"{args.output} is a folder; name the picture to write in it")
    for folder in (args.output.absolute().parent, *([args.maps.absolute()] if args.maps else [])):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ValueError(f"nothing can be written to {folder}; choose another folder")


def choose_device(name: str, precision: str) -> tuple[torch.device, torch.dtype]:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device {name!r} cannot be used here; choose auto, or cpu") from None
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or (device.type == "cpu" and cpu_prefers_bf16()) else "fp32"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def cpu_prefers_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: it has AMX.  AVX-512's bfloat16 alone is not
    enough: on such a Xeon torch's products were measured to be slower than in float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    return bool(capabilities.get("amx_bf16"))


def load(job: Job) -> tuple[Backbone, Recipe, dict[str, float]]:
    """The model and the prompts' features, and the seconds that took.  The text encoder is gone before the model comes."""
    args, files, start = job.args, job.files, time.perf_counter()
    encoder = files.load_text(job.device, job.dtype)
    loaded = time.perf_counter()
    text, *negative = encoder.encode([args.prompt] + ([args.negative] if args.negative.strip() else []))
    encoded = time.perf_counter()
    del encoder
    backbone = files.load(job.device, job.dtype)
    backbone = replace(backbone, kernels=choose("auto", job.device)[0])
    recipe = Recipe(
        (text,) * args.batch, tuple(negative) * args.batch or None, job.seeds, job.schedule, **job.settings
    )
    return backbone, recipe, {"load": loaded - start + time.perf_counter() - encoded, "text": encoded - loaded}


def write(job: Job, backbone: Backbone, picture: Picture, previews: list[tuple[int, Tensor]]) -> list[Path]:
    """Write pictures and maps, all or none.  Returns the pictures' paths."""
    images = to_image(picture.image)
    paths = [_numbered(job.args.output, n, job.args.batch) for n in range(job.args.batch)]
    recipes = [recipe_of(job, backbone, seed) for seed in job.seeds]
    files = {}
    if job.args.maps:
        for name, batch in _maps(job, backbone, picture, previews).items():
            for n, image in enumerate(batch):
                files[_numbered(job.args.maps / f"{name}.png", n, job.args.batch)] = png(image)
    files |= {path: png(image, recipe) for path, image, recipe in zip(paths, images, recipes, strict=True)}
    write_files(files)
    return paths


def _numbered(path: Path, n: int, count: int) -> Path:
    """out.png -> out_0.png, ... where there are several."""
    return path.with_stem(f"{path.stem}_{n:0{len(str(count - 1))}}") if count > 1 else path


def _maps(job: Job, backbone: Backbone, picture: Picture, previews: list[tuple[int, Tensor]]) -> dict[str, Tensor]:
    """Name -> images (B, H, W, 3): every drawn scale, the result, and for moss what explains it."""
    with torch.inference_mode():
        images = {f"scale_{n:02d}": to_image(backbone.decode(total.to(backbone.device))) for n, total in previews}
    images["result"] = to_image(picture.image)
    if not picture.dispatch:
        return images
    scales = picture.draft.scales
    images["draft"] = images[f"scale_{scales - 1:02d}"]
    notes = (f"{scales} scales in order, {sum(picture.tokens_per_scale[:scales])} tokens", job.method.label)
    shown = explain(
        images["draft"], images["result"], picture.frequency, picture.dispatch, job.schedule, job.args.prompt, notes
    )
    return images | shown


def recipe_of(job: Job, backbone: Backbone, seed: int) -> dict[str, Any]:
    """All that decides one picture of the batch, for its metadata and for --json."""
    args, method = job.args, job.method
    return {
        "prompt": args.prompt, "negative": args.negative, "seed": seed,
        "method": method.name, "bounds": list(method.bounds) or None, "skip": method.skip if method.name == "draft" else None,
        "cssa": method.cross_scale, "refine_guidance": method.guidance, "strength": method.strength, "window": method.window,
        "cfg": job.settings["guidance"].cfg, "tau": job.settings["sampling"].tau, "aspect": args.aspect, "pixels": job.pixels,
        "model": Path(job.files.name).name, "model_id": backbone.model_id, "noise": NOISE_ID,
        "precision": "bf16" if job.dtype == torch.bfloat16 else "fp32", "device": job.device.type,
        "version": __version__, "torch": torch.__version__,
    }  # fmt: skip


def facts(job: Job, backbone: Backbone, picture: Picture, seconds: dict[str, float], paths: Sequence[Path]) -> dict[str, Any]:
    """What --json prints: the recipe, what it cost, and where the pictures are."""
    height, width = picture.image.shape[2:]
    return recipe_of(job, backbone, job.args.seed) | {
        "method": job.method.label, "seeds": job.seeds, "width": width, "height": height, "grids": job.schedule.grids,
        "tokens_per_scale": picture.tokens_per_scale, "refine_tokens": picture.refine_tokens, "kv_bytes": picture.kv_bytes,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "files": [str(path) for path in paths], "maps": str(job.args.maps) if job.args.maps else None,
    }  # fmt: skip
