"""The command line: `python -m comfy_moss generate | edit | bench | evaluate | export | calibrate | verify |
models | doctor | convert`.

Results go to stdout; progress and errors to stderr, an error as one sentence with exit code 2 and nothing
written. torch and transformers are imported only by the commands that need them, so that --help is instant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__, typed
from .model.schedule import PRESETS

if TYPE_CHECKING:
    from torch import Tensor

    from .pipeline.draft import OnScale
    from .pipeline.plan import Picture

EXAMPLES = """examples:
  python -m comfy_moss generate "two red circles" -o circles.png
  python -m comfy_moss generate "a blue star" --method moss2 --aspect 16:9 --maps explained
  python -m comfy_moss generate "a blue star" --bounds 60,30,10 --json"""
EDITS = """examples:
  python -m comfy_moss edit star.png "a red star" --strength 3
  python -m comfy_moss edit star.png "a red star" --source "a blue star" --maps explained
  python -m comfy_moss edit star.png "a red star" --mask white_where_it_may_change.png
  python -m comfy_moss edit star.png "a blue star" --mode refine"""

EDIT_MODES = ("redraw", "inpaint", "edit", "refine")
KV_CACHES = ("full", "int8")
LABORATORY = ("bench", "evaluate", "export", "calibrate", "verify")
# how torch's errors say it, on cuda and on the CPU
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like any other error: in one sentence."""

    def error(self, message: str) -> NoReturn:
        shown = message if len(message) < 400 else f"{message[:200]}..."
        raise ValueError(f"{shown}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a check failed), 2 (an error, told in one sentence) or 130
    (interrupted).
    """
    for stream in (sys.stdout, sys.stderr):
        _tolerate(stream)
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except (ValueError, OSError) as error:
        return _fail(_sentence(error), 2)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        return _fail(
            "this device has too little memory for that; try fewer --pixels, a smaller --batch or "
            "--precision bf16",
            2,
        )


def _print_json(data: Any) -> None:
    """As text where the console takes all of Unicode, else with escapes, which every reader of JSON
    understands.
    """
    text = json.dumps(data, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        text = json.dumps(data, default=str)
    print(text)


def _tolerate(stream: Any) -> None:
    """Write characters that a console does not have as escapes, rather than fail when all is drawn."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m comfy_moss", description="Next-scale-prediction image models with Mixture of Scales."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_edit(commands)
    _add_laboratory(commands)
    models = commands.add_parser("models", help="which models are found where, and what is missing")
    models.add_argument(
        "--models", type=_path, action="append", default=[], metavar="DIR", help="look here first"
    )
    models.add_argument("--json", action="store_true", help="print one JSON list")
    models.set_defaults(run=_models)
    doctor = commands.add_parser(
        "doctor", help="what is installed and found, what fits together: the text for a bug report"
    )
    doctor.add_argument(
        "directory", type=_path, nargs="*", help="models folders (default: where models are looked for)"
    )
    doctor.add_argument("--paths", action="store_true", help="say where the folders lie on this machine")
    doctor.set_defaults(run=_doctor)
    convert = commands.add_parser(
        "convert", help="rewrite a released .pth or sharded checkpoint as one safetensors file"
    )
    convert.add_argument("source", type=_path, help=".pth file, safetensors file or directory of shards")
    convert.add_argument("target", type=_path, help="the .safetensors file to write")
    convert.add_argument("--bf16", action="store_true", help="store in bfloat16, half the size")
    eight = convert.add_mutually_exclusive_group()
    for kind in ("fp8", "int8"):
        told = f"store a transformer's large matrices in {kind} as ComfyUI reads it, what is left in bfloat16"
        eight.add_argument(f"--{kind}", dest="packed", action="store_const", const=kind, help=told)
    convert.add_argument(
        "--keep", metavar="LAYERS", type=lambda text: tuple(text.split(",")), default=(),
        help="with --fp8 or --int8: layers that stay in bfloat16, for example ffn.fc2,sa.mat_qkv",
    )
    convert.add_argument(
        "--family", metavar="NAME", help="what an Infinity transformer is, written into the file, where its "
        "name does not say so: Infinity, VAREdit or NSARM",
    )
    convert.set_defaults(run=_convert)
    return parser


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="draw a picture", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what to draw")
    _add_method(parser)
    add(
        "--budget", type=float, metavar="SHARE",
        help="the best plan found that takes this share of dense's work or less, for example 0.2",
    )
    add(
        "--seconds", type=float, metavar="S",
        help="the best plan found that takes so long or less here (drawing and decoder; measured once)",
    )
    add_drawing(parser)
    _add_output(parser)
    parser.set_defaults(run=_generate)


def _add_edit(commands: Any) -> None:
    parser = commands.add_parser(
        "edit", help="draw a picture from another one", epilog=EDITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("picture", type=_path, metavar="PICTURE", help="PNG, JPEG or WebP of any size")
    add("prompt", metavar="PROMPT", help="what to draw")
    add("--source", default="", metavar="PROMPT", help="what PICTURE shows; it changes where PROMPT differs")
    add("--mask", type=_path, metavar="PNG", help="white where PICTURE may change, of its size")
    add(
        "--mode", type=_read(typed.word, EDIT_MODES, "mode"), metavar="MODE",
        help="redraw, inpaint (needs --mask), edit (needs --source) or refine, which adds detail alone "
        "(default: by what is given)",
    )
    add(
        "--strength", dest="taken", type=_read(typed.integer, "strength"), metavar="SCALES",
        help="how many of the first scales stay PICTURE's: 0 = none, all = the picture (default: by mode)",
    )
    add(
        "--follow", type=_read(typed.integer, "follow"), metavar="SCALE",
        help="mode edit: from which scale on PROMPT alone draws, where something changed",
    )
    add(
        "--rule", type=_read(typed.word, ("shift", "gate"), "rule"), metavar="RULE",
        help="mode edit: how bits change, shift (EditMod) or gate (AREdit)",
    )
    add(
        "--fit", type=_read(typed.word, ("crop", "pad", "stretch"), "fit"), default="crop", metavar="FIT",
        help="crop, pad or stretch PICTURE to the nearest ratio the model knows (default: crop)",
    )
    add(
        "--sha256", type=lambda text: [part for part in text.split(",") if part], default=(),
        metavar="HASHES", help="refuse another picture and mask than those that a recipe names",
    )
    _add_method(parser, "sparse3")
    add_drawing(parser, from_picture=True)
    _add_output(parser)
    parser.set_defaults(run=_generate)


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--batch", type=_read(typed.integer, "batch"), default=1, metavar="N",
        help="number of pictures (default: 1)",
    )
    add(
        "-o", "--output", type=_path, default=Path("out.png"), metavar="PNG",
        help="replaced if there; a batch: out_0.png, ...",
    )
    add(
        "--maps", type=_path, metavar="DIR",
        help="also write draft, frequency, dispatch, every scale and a poster there",
    )
    add(
        "--lora", type=_lora, action="append", default=[], metavar="FILE[:STRENGTH]",
        help="change the transformer by a LoRA (PEFT, kohya or EditInfinity); may be repeated",
    )
    add("--tiny", action="store_true", help="decode with the codec's tiny decoder: quicker, and not as well")
    add(
        "--kv-cache", type=_read(typed.word, KV_CACHES, "kv-cache"), default="full", metavar="KIND",
        help="full, or int8: keys and values in 8 bits, about half the memory of bf16 (default: full)",
    )
    add("--json", action="store_true", help="print one JSON object with tokens, memory and times")


def _add_laboratory(commands: Any) -> None:
    """The commands of `benchmarks/`, which lies beside this package in a clone; a registry install leaves it
    out.
    """
    try:
        from .benchmarks import commands as laboratory
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.benchmarks":
            raise
        for name in LABORATORY:
            parser = commands.add_parser(
                name, help="comes with a clone of the repository only", add_help=False
            )
            parser.parse_known_args = _absent
    else:
        laboratory.add_commands(commands, _add_method, add_drawing)


def _absent(*_line: object) -> NoReturn:
    names = ", ".join(LABORATORY)
    raise ValueError(
        f"{names} come with a clone of the repository, not with a registry install; clone it to use them"
    )


def _add_method(parser: argparse.ArgumentParser, usual: str = "moss4") -> None:
    add = parser.add_argument
    add(
        "--method",
        help="dense, draft, fastvar, moss, or moss2 to moss5 with the model's or the paper's bounds "
        f"(default: {usual})",
    )
    add(
        "--plan", metavar="TEXT",
        help='all of it in one text, for example "draft-3; -1@45 unguided", or a named plan',
    )
    add(
        "--bounds", type=_read(typed.percentages), metavar="T1,T2,...",
        help="percentages for moss, coarsest refine scale first",
    )
    add(
        "--skip", type=_read(typed.integer, "skip"), metavar="K",
        help="method draft: leave out the last K scales (default: 4)",
    )


def add_drawing(parser: argparse.ArgumentParser, from_picture: bool = False) -> None:
    """What else decides a picture, for every command that draws.

    Args:
        from_picture: another picture decides the ratio, and what "strength" is about.
    """
    add = parser.add_argument
    add("--model", default="nano", help="name of an installed model, or its folder (default: nano)")
    add(
        "--models", type=_path, action="append", default=[], metavar="DIR",
        help="look for models here first; may be repeated",
    )
    seed = _read(typed.integer, "seed")
    add("--seed", type=seed, default=0, help="seed of the first picture; the next ones count up (default: 0)")
    if not from_picture:
        add(
            "--aspect", default="1:1",
            help="width:height, for example 16:9; the nearest ratio the model knows is used",
        )
        add(
            "--strength", type=float, default=1.0,
            help="moss: how much of the refinement is added, 0 to 1 (default: 1)",
        )
    add(
        "--pixels", type=_read(typed.area, (*PRESETS,)), choices=PRESETS,
        help="image area (default: the model's own)",
    )
    add("--negative", default="", metavar="PROMPT", help="what to stay away from")
    add(
        "--cfg", type=_read(typed.numbers),
        help="guidance, 1 = none, 0 = the model's own; or one number a scale (default: 0)",
    )
    add(
        "--tau", type=_read(typed.numbers),
        help="temperature above 0; or one number a scale (default: the model's own)",
    )
    add("--window", type=int, default=3, help="moss: side of the frequency window, odd (default: 3)")
    add("--no-cssa", action="store_true", help="moss: refined tokens see only their own scale")
    add(
        "--no-refine-guidance", action="store_true",
        help="moss: no guidance in the refine step, half its work",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    choices, names = ("auto", "fp32", "bf16"), "auto = bf16 on cuda and CPUs with AMX, else fp32"
    add("--precision", type=_read(typed.precision), choices=choices, default="auto", help=names)


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:strength."""
    name, colon, strength = text.rpartition(":")
    try:
        return (_path(name), float(strength)) if colon and name else (_path(text), 1.0)
    except ValueError:  # a colon of the path's own
        return _path(text), 1.0


def _read(reader: Callable[..., Any], *details: Any) -> Callable[[str], Any]:
    """A reader of `typed` as argparse takes it; one number of a list of one is that number."""

    def read(text: str) -> Any:
        try:
            value = reader(text, *details)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value if not isinstance(value, tuple) else list(value) if len(value) > 1 else value[0]

    return read


_path = _read(typed.path)


# --- generate -----------------------------------------------------------------------------------------------


def _generate(args: argparse.Namespace) -> int:
    from . import request as requests
    from .pipeline.plan import Plan, generate

    checked = requests.check(requests.Request.of(args))
    previews: list[tuple[int, Tensor]] = []
    bar = _progress_bar() if sys.stderr.isatty() and not args.json else None

    def on_scale(done: int, scales: int, total: Tensor) -> None:
        if bar:
            bar(done, scales, total)
        if args.maps:
            previews.append((done - 1, total.cpu()))

    backbone, recipe, seconds = requests.load(checked)
    checked, offer = requests.settle(checked, backbone, recipe)
    if offer:
        print(offer.note, file=sys.stderr)
    drawn = checked.method.recipe(recipe) if isinstance(checked.method, Plan) else recipe
    for note in drawn.notes:
        print(f"note: {note}", file=sys.stderr)
    picture = generate(backbone, recipe, checked.method, on_scale)
    seconds |= picture.cost.seconds
    seconds["total"] = sum(seconds.values())
    paths = requests.write(checked, backbone, picture, previews)
    if args.json:
        _print_json(requests.facts(checked, backbone, picture, seconds, paths))
    else:
        print(*paths, _summary(picture, seconds, drawn.guidance.cfg), sep="\n")
    return 0


def _progress_bar() -> OnScale:
    """A bar over the scales on stderr, wiped when full."""
    width = 24

    def show(done: int, scales: int, _total: Tensor) -> None:
        filled = width * done // scales
        text = f"[{'#' * filled}{'.' * (width - filled)}] scale {done}/{scales}"
        sys.stderr.write(f"\r{text}" if done < scales else f"\r{' ' * len(text)}\r")
        sys.stderr.flush()

    return show


def _summary(picture: Picture, seconds: dict[str, float], cfg: float | Sequence[float]) -> str:
    height, width = picture.image.shape[2:]
    tokens, memory = sum(picture.cost.tokens_per_scale), picture.cost.kv_bytes / 2**20
    drawing = seconds["total"] - seconds["load"]
    cost = f"{tokens} tokens, {memory:.1f} MiB of KV cache, {drawing:.2f} s"
    strength = f"cfg {cfg:g}" if isinstance(cfg, (int, float)) else "cfg by scale"
    return f"{width} x {height}, {picture.cost.label}, {strength}: {cost}"


# --- the other commands -------------------------------------------------------------------------------------


def _models(args: argparse.Namespace) -> int:
    from .model.catalog import default_roots
    from .model.library import survey

    statuses = survey([*args.models, *default_roots()])
    if args.json:
        _print_json([{**vars(status), "missing": status.missing} for status in statuses])
        return 0
    for status in statuses:
        print(f"{status.name}: {'missing ' + ', '.join(status.missing) if status.missing else 'complete'}")
        parts = zip(("transformer", "vae", "text"), status.expected, strict=True)
        for part, expected in parts:
            print(f"  {part:<12} {expected:<36} {getattr(status, part) or 'not found'}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from .doctor import report
    from .model.catalog import default_roots

    print(report(args.directory or default_roots(), args.paths))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from .model.family import facts
    from .model.quantized_weights import quantized
    from .model.tensors import convert

    packed = (lambda tensors: quantized(tensors, args.packed, args.keep)) if args.packed else None
    half = args.bf16 or packed is not None
    convert(args.source, args.target, half, lambda tensors: facts(tensors, args.family), packed)
    print(args.target)
    return 0
