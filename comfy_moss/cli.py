"""The command line: `python -m comfy_moss generate | verify | models | convert`.

Results go to stdout; progress and errors to stderr, an error as one sentence with exit code 2 and nothing written.
torch and transformers are imported only by the commands that need them, so that --help is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .model.schedule import PRESETS, Schedule, make_schedule, parse_aspect

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .model.backbone import Backbone
    from .model.library import ModelFiles
    from .pipeline.draft import OnScale, Recipe
    from .pipeline.generate import Method, Picture

EXAMPLES = """examples:
  python -m comfy_moss generate "two red circles" -o circles.png
  python -m comfy_moss generate "a blue star" --method moss2 --aspect 16:9 --maps explained
  python -m comfy_moss generate "a blue star" --bounds 60,30,10 --json"""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like any other error: in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a check failed), 2 (an error, told in one sentence) or 130 (interrupted)."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, OSError, MemoryError) as error:
        return _fail(_sentence(error), 2)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error):
            raise
        return _fail("the memory of this device is too small for this; try smaller --pixels, a smaller --batch or --precision bf16", 2)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m comfy_moss", description="Next-scale-prediction image models with Mixture of Scales.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    verify = commands.add_parser("verify", help="compare this implementation with reference numbers")
    verify.add_argument("directory", type=Path, help="directory of reference numbers with a manifest.json")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)
    models = commands.add_parser("models", help="which models are found where, and what is missing")
    models.add_argument("--models", type=Path, action="append", default=[], metavar="DIR", help="look here first; may be repeated")
    models.add_argument("--json", action="store_true", help="print one JSON list")
    models.set_defaults(run=_models)
    convert = commands.add_parser("convert", help="rewrite a released .pth or sharded checkpoint as one safetensors file")
    convert.add_argument("source", type=Path, help=".pth file, safetensors file or directory of shards")
    convert.add_argument("target", type=Path, help="the .safetensors file to write")
    convert.add_argument("--bf16", action="store_true", help="store in bfloat16, half the size")
    convert.set_defaults(run=_convert)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="draw a picture", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what to draw")
    add("--model", default="nano", help="name of an installed model, or its folder (default: nano)")
    add("--models", type=Path, action="append", default=[], metavar="DIR", help="look for models here first; may be repeated")
    add("--method", help="dense, draft, fastvar, moss, or moss2 to moss5 with the paper's bounds (default: moss4)")
    add("--bounds", type=_numbers, metavar="T1,T2,...", help="percentages for moss, coarsest refine scale first")
    add("--skip", type=int, metavar="K", help="method draft: leave out the last K scales (default: 4)")
    add("--seed", type=int, default=0, help="seed of the first picture; the next ones count up (default: 0)")
    add("--batch", type=int, default=1, metavar="N", help="number of pictures (default: 1)")
    add("--aspect", default="1:1", help="width:height, for example 16:9; the nearest ratio the model knows is used")
    add("--pixels", choices=PRESETS, help="image area (default: the model's own)")
    add("--negative", default="", metavar="PROMPT", help="what to stay away from")
    add("--cfg", type=_numbers, help="guidance strength, 1 = none; or one number a scale (default: the model's own)")
    add("--tau", type=_numbers, help="temperature above 0; or one number a scale (default: the model's own)")
    add("--strength", type=float, default=1.0, help="moss: how much of the refinement is added, 0 to 1 (default: 1)")
    add("--window", type=int, default=3, help="moss: side of the frequency window, odd (default: 3)")
    add("--no-cssa", action="store_true", help="moss: refined tokens see only their own scale")
    add("--no-refine-guidance", action="store_true", help="moss: no guidance in the refine step, half its work")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto = bf16 on cuda, else fp32")
    add("-o", "--output", type=Path, default=Path("out.png"), metavar="PNG", help="replaced if it exists; out_0.png, ... for a batch")
    add("--maps", type=Path, metavar="DIR", help="also write draft, frequency, dispatch, every scale and a poster there")
    add("--json", action="store_true", help="print one JSON object with tokens, memory and times")
    parser.set_defaults(run=_generate)


def _numbers(text: str) -> float | list[float]:
    """ "3" -> 3.0, "80,70" -> [80.0, 70.0]."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or a list like 80,70,30,10") from None
    return values if len(values) > 1 else values[0]


# --- generate ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A checked order: everything that can be known to be right before weights are read."""

    args: argparse.Namespace
    files: ModelFiles
    method: Method
    schedule: Schedule
    settings: dict[str, Any]  # guidance and sampling of the recipe
    pixels: str
    device: torch.device
    dtype: torch.dtype

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.args.seed, self.args.seed + self.args.batch))


def _generate(args: argparse.Namespace) -> int:
    job = _check(args)
    previews: list[tuple[int, Tensor]] = []
    bar = _progress_bar() if sys.stderr.isatty() and not args.json else None

    def on_scale(done: int, scales: int, total: Tensor) -> None:
        if bar:
            bar(done, scales, total)
        if args.maps:
            previews.append((done - 1, total.cpu()))

    from .pipeline.generate import generate

    backbone, recipe, seconds = _load(job)
    picture = generate(backbone, recipe, job.method, on_scale)
    seconds |= picture.seconds
    seconds["total"] = sum(seconds.values())
    paths = _write(job, backbone, picture, previews)
    _report(job, backbone, picture, seconds, paths)
    return 0


def _check(args: argparse.Namespace) -> _Job:
    """Refuse what is wrong with the order, before anything slow happens."""
    _check_texts(args)
    _check_outputs(args)
    if args.batch < 1:
        raise ValueError(f"the batch must hold at least 1 picture, got {args.batch}")
    if not 0 <= args.seed <= 2**64 - args.batch:
        raise ValueError(f"seeds lie between 0 and 2^64 - 1, got {args.seed} for {args.batch} pictures")
    ratio = parse_aspect(args.aspect)

    from .model.guidance import Guidance
    from .model.library import find_model
    from .model.sampling import Sampling, per_scale
    from .pipeline.generate import parse_method

    bounds = [args.bounds] if isinstance(args.bounds, float) else args.bounds
    name = args.method or ("draft" if args.skip is not None else "moss" if bounds else "moss4")
    method = replace(
        parse_method(name, bounds, args.skip),
        cross_scale=not args.no_cssa, guidance=not args.no_refine_guidance, strength=args.strength, window=args.window,
    )  # fmt: skip
    device, dtype = _device(args.device, args.precision)
    files = find_model(args.model, _roots(args))
    pixels = args.pixels or files.area
    schedule = make_schedule(ratio, pixels)
    method.check(schedule)
    cfg, tau = (_frozen(own if own is not None else default) for own, default in ((args.cfg, files.cfg), (args.tau, files.tau)))
    for name, value in (("cfg", cfg), ("tau", tau)):
        per_scale(value, len(schedule), name)
    settings = {"guidance": Guidance(cfg), "sampling": Sampling(tau)}
    return _Job(args, files, method, schedule, settings, pixels, device, dtype)


def _frozen(value: float | Sequence[float]) -> float | tuple[float, ...]:
    return float(value) if isinstance(value, (int, float)) else tuple(value)


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


def _device(name: str, precision: str) -> tuple[torch.device, torch.dtype]:
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device {name!r} cannot be used here; choose auto, or cpu") from None
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def _roots(args: argparse.Namespace) -> list[Path]:
    from .model.library import default_roots

    return [*args.models, *default_roots()]


def _load(job: _Job) -> tuple[Backbone, Recipe, dict[str, float]]:
    """The model and the prompts' features, and the seconds that took.  The text encoder is gone before the model comes."""
    from .model.checkpoint import load_infinity
    from .model.text import TextEncoder
    from .pipeline.draft import Recipe

    args, files, start = job.args, job.files, time.perf_counter()
    encoder = TextEncoder.load(files.text, job.device, job.dtype)
    loaded = time.perf_counter()
    text, *negative = encoder.encode([args.prompt] + ([args.negative] if args.negative.strip() else []))
    encoded = time.perf_counter()
    del encoder
    backbone = load_infinity(files.transformer, files.vae, files.text, job.device, job.dtype)
    recipe = Recipe(
        (text,) * args.batch, tuple(negative) * args.batch or None, job.seeds, job.schedule, **job.settings
    )
    return backbone, recipe, {"load": loaded - start + time.perf_counter() - encoded, "text": encoded - loaded}


def _progress_bar() -> OnScale:
    """A bar over the scales on stderr, wiped when full."""
    width = 24

    def show(done: int, scales: int, _total: Tensor) -> None:
        filled = width * done // scales
        text = f"[{'#' * filled}{'.' * (width - filled)}] scale {done}/{scales}"
        sys.stderr.write(f"\r{text}" if done < scales else f"\r{' ' * len(text)}\r")
        sys.stderr.flush()

    return show


def _write(job: _Job, backbone: Backbone, picture: Picture, previews: list[tuple[int, Tensor]]) -> list[Path]:
    """Write pictures and maps, all or none.  Returns the pictures' paths."""
    from .metadata import png, to_image, write_files

    images = to_image(picture.image)
    paths = [_numbered(job.args.output, n, job.args.batch) for n in range(job.args.batch)]
    recipes = [_recipe_of(job, backbone, seed) for seed in job.seeds]
    files = {path: png(image, recipe) for path, image, recipe in zip(paths, images, recipes, strict=True)}
    if job.args.maps:
        for name, batch in _maps(job, backbone, picture, previews).items():
            for n, image in enumerate(batch):
                files[_numbered(job.args.maps / f"{name}.png", n, job.args.batch)] = png(image)
    write_files(files)
    return paths


def _numbered(path: Path, n: int, count: int) -> Path:
    """out.png -> out_0.png, ... where there are several."""
    return path.with_stem(f"{path.stem}_{n:0{len(str(count - 1))}}") if count > 1 else path


def _maps(job: _Job, backbone: Backbone, picture: Picture, previews: list[tuple[int, Tensor]]) -> dict[str, Tensor]:
    """Name -> images (B, H, W, 3): every drawn scale, the result, and for moss what explains it."""
    import torch

    from .metadata import to_image
    from .pipeline.heatmap import explain

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


def _recipe_of(job: _Job, backbone: Backbone, seed: int) -> dict[str, Any]:
    """All that decides one picture of the batch, for its metadata and for --json."""
    import torch

    from .model.sampling import NOISE_ID

    args, method = job.args, job.method
    return {
        "prompt": args.prompt, "negative": args.negative, "seed": seed,
        "method": method.name, "bounds": list(method.bounds) or None, "skip": method.skip or None,
        "cssa": method.cross_scale, "refine_guidance": method.guidance, "strength": method.strength, "window": method.window,
        "cfg": job.settings["guidance"].cfg, "tau": job.settings["sampling"].tau, "aspect": args.aspect, "pixels": job.pixels,
        "model": job.files.name, "model_id": backbone.model_id, "noise": NOISE_ID,
        "precision": "bf16" if job.dtype == torch.bfloat16 else "fp32", "device": job.device.type,
        "version": __version__, "torch": torch.__version__,
    }  # fmt: skip


def _report(job: _Job, backbone: Backbone, picture: Picture, seconds: dict[str, float], paths: list[Path]) -> None:
    height, width = picture.image.shape[2:]
    if job.args.json:
        facts = _recipe_of(job, backbone, job.args.seed) | {
            "method": job.method.label, "seeds": job.seeds, "width": width, "height": height,
            "grids": job.schedule.grids, "tokens_per_scale": picture.tokens_per_scale, "refine_tokens": picture.refine_tokens,
            "kv_bytes": picture.kv_bytes, "seconds": {name: round(value, 6) for name, value in seconds.items()},
            "files": [str(path) for path in paths], "maps": str(job.args.maps) if job.args.maps else None,
        }  # fmt: skip
        print(json.dumps(facts, ensure_ascii=False))
        return
    for path in paths:
        print(path)
    tokens, memory = sum(picture.tokens_per_scale), picture.kv_bytes / 2**20
    drawing = seconds["total"] - seconds["load"]
    print(f"{width} x {height}, {job.method.label}: {tokens} tokens, {memory:.1f} MiB of KV cache, {drawing:.2f} s")


# --- the other commands -----------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from .verify import verify

    checks = list(verify(args.directory))
    passed = all(check.passed for check in checks)
    if args.json:
        rows = [{**vars(check), "passed": check.passed} for check in checks]
        print(json.dumps({"passed": passed, "checks": rows}))
    else:
        for check in checks:
            verdict = "PASS" if check.passed else "FAIL"
            print(f"{verdict}  {check.case:<28} {check.quantity:<20} {check.error:.3g} (allowed {check.allowed:.3g})")
    return 0 if passed and checks else 1


def _models(args: argparse.Namespace) -> int:
    from .model.library import survey

    for line in survey(_roots(args)):
        print(line)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from .model.checkpoint import convert

    convert(args.source, args.target, args.bf16)
    print(args.target)
    return 0
