"""The laboratory's commands: their options, and what they print.

Imports torch only where a command runs, so that --help is instant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comfy_moss.model.schedule import PRESETS

from . import RESULTS

EVALUATED = "dense,draft,fastvar,moss2,moss3,moss4,moss5,moss4-sa,moss4-unguided"
# keys of `metrics.METRICS`
METRICS = ("psnr", "latent", "ssim", "texture", "overall", "combined", "faithful")
SUITES = ("geneval", "dpg", "hpsv2", "imagereward")  # keys of `export.LAYOUTS`
SHAPES = (  # nano and the keys of `shapes.SHAPES`
    "nano", "125m", "2b", "8b", "hart-0.7b", "varedit-8b", "nsarm-8b", "varedit-small", "nsarm-small",
)
ORDERS = ("finest", "coarsest")  # those of `topdown.ORDERS`
SEARCHES = ("plans", "choice", "topdown")  # those of `calibrate.SEARCHES`
Options = Callable[[argparse.ArgumentParser], None]


class _Options:
    """Options, one a line, each with its default told."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.add = parser.add_argument

    def choice(self, name: str, choices: Sequence[str], told: str) -> None:
        """The first one is the default."""
        self.add(name, choices=choices, default=choices[0], help=f"{told} (default: {choices[0]})")

    def text(self, name: str, default: str, told: str, shown: str | None = None) -> None:
        self.add(name, default=default, metavar=shown, help=f"{told} (default: {default})")

    def number(self, name: str, default: float | str, told: str, shown: str = "N") -> None:
        """A default in words stands for None: it is decided later."""
        known = default if isinstance(default, (int, float)) else None
        self.add(
            name, type=type(known or 0), default=known, metavar=shown, help=f"{told} (default: {default})"
        )

    def path(self, name: str, told: str, shown: str = "FILE", **settings: Any) -> None:
        self.add(name, type=Path, metavar=shown, help=told, **settings)


def add_commands(commands: Any, add_method: Options, add_drawing: Options) -> None:
    """Add the laboratory's commands to the command line.

    Args:
        add_method, add_drawing: give a parser the options of a method, and of all else that decides a
            picture.
    """
    for name, told, run, parts in (
        ("bench", "measure speed and memory of the methods on this machine", _bench, [_add_bench]),
        ("evaluate", "measure quality on the shapes world, against time", _evaluate, [_add_evaluate]),
        ("export", "draw a benchmark's pictures", _export, [_add_export, add_method, add_drawing]),
        (
            "calibrate",
            "search plans, or bounds of MoSs-k, by a metric",
            _calibrate,
            [add_calibrate, add_drawing],
        ),
        ("verify", "compare this implementation with reference numbers", _verify, [_add_verify]),
    ):
        parser = commands.add_parser(name, help=told)
        for add_options in parts:
            add_options(parser)
        parser.set_defaults(run=run)


def _add_device(options: _Options) -> None:
    options.add(
        "--pixels", choices=PRESETS, help="image area (default: the model's own; of released shapes 1M)"
    )
    options.text("--device", "auto", "auto, cpu, cuda, cuda:1")
    options.choice("--precision", ("auto", "fp32", "bf16"), "auto = bf16 where that is faster")


def _add_results(options: _Options, page: str) -> None:
    options.path("--json", "write all numbers there, or only print them", nargs="?", const=Path("-"))
    options.add(
        "--tables", action="store_true", help=f"measure nothing: write docs/{page} from all stored results"
    )
    _add_save(options)


def _add_save(options: _Options) -> None:
    options.path(
        "--save", "store the result there (default: benchmarks/results)", "DIR", nargs="?", const=RESULTS
    )


def _add_bench(parser: argparse.ArgumentParser) -> None:
    options = _Options(parser)
    options.choice("--shape", SHAPES, "all but nano get random weights")
    options.text("--aspect", "1:1", "width:height")
    _add_device(options)
    options.choice("--backend", ("auto", "torch", "triton"), "auto = Triton's kernels where they are faster")
    methods = "dense, and drafts of what is refined, are added (default: all of the paper)"
    options.add("--methods", metavar="M1,M2,...", help=methods)
    options.number("--runs", 5, "rounds of all methods, in random order")
    options.number("--warmup", 1, "rounds before those, not counted")
    options.choice("--cfg", ("on", "off"), "guidance: off = half the rows")
    options.choice("--graphs", ("off", "on"), "run the transformer as CUDA graphs")
    options.path("--markdown", "write the printed tables there as well")
    options.path("--profile", "measure one picture alone, and write what it does there as a Chrome trace")
    _add_results(options, "performance.md")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    options = _Options(parser)
    options.text("--model", "nano", "a model that draws the shapes world")
    options.path(
        "--models", "look for models here first; may be repeated", "DIR", action="append", default=[]
    )
    options.text("--methods", EVALUATED, "draft = draft-1 to draft-5", "M1,M2,...")
    budgets = "also the best plan found at each of these shares of dense's work"
    options.add("--budget", dest="budgets", type=_shares, default=(), metavar="B1,B2,...", help=budgets)
    options.number("--per-task", 10, "prompts of each of the six tasks")
    options.number("--seed", 0, "of the prompts; picture n has seed n")
    _add_device(options)
    options.number("--batch", 3, "pictures drawn together")
    _add_workers(options)
    options.add(
        "--cfg", type=float, metavar="X", help="guidance of what names none itself (default: the model's own)"
    )
    options.text("--name", "", "of the stored result, beside the model's")
    options.number("--correlation", 100, "first prompts whose contribution is measured")
    options.path("--out", "keep what was drawn there, and go on from what is there already", "DIR")
    _add_results(options, "quality.md")


def _add_export(parser: argparse.ArgumentParser) -> None:
    options = _Options(parser)
    options.add("suite", choices=SUITES, help="whose prompts and layout")
    options.path("--prompts", "the benchmark's own (dpg, hpsv2: or their folder)", required=True)
    options.path("--out", "goes on where it was stopped; pictures to score: DIR/images", "DIR", required=True)
    options.number("--per-prompt", "the benchmark's own number", "pictures a prompt")
    options.number("--batch", 1, "pictures drawn together")
    _add_workers(options)


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    options = _Options(parser)
    told = "plans, a choice among those found, or bounds the paper's way (default: plans; with --k topdown)"
    options.add("--search", choices=SEARCHES, help=told)
    options.add("--metric", choices=METRICS, help="higher is better (default: faithful; of topdown psnr)")
    options.number(
        "--prompts", "60, of topdown 24", "prompts of the shapes world to search on, a picture each"
    )
    options.path("--prompt-file", "prompts of your own instead, one a line")
    options.number("--trials", 120, "plans to measure")
    options.number("--choice", 96, "other prompts, which choose")
    budgets = "shares of dense's work that a plan is chosen for (default: 0.3,0.2,0.15,0.1)"
    options.add("--budgets", type=_shares, default=(0.3, 0.2, 0.15, 0.1), metavar="B1,B2,...", help=budgets)
    options.number("--k", "4", "topdown: scales that are refined", "K")
    options.add(
        "--tolerance", type=float, metavar="X", help="topdown: how much may be lost (default: by metric)"
    )
    budget = "topdown: not a tolerance but refine tokens a picture, at most; paper: as its bounds"
    options.add("--tokens", type=_budget, metavar="N", help=budget)
    options.number("--step", 5.0, "topdown: bounds are multiples of it, percent", "P")
    options.choice("--order", ORDERS, "topdown: which bound is searched first")
    options.number("--compare", 2, "topdown: random rivals beside the paper's bounds, at equal tokens")
    options.number("--batch", 4, "pictures drawn together")
    options.path("--state", "keep every try in this folder; the same folder again goes on from it", "DIR")
    options.path("--plot", "draw the metric against the cost of everything tried", "PNG")
    options.add("--json", action="store_true", help="print one JSON object")
    _add_workers(options)
    _add_save(options)


def _add_workers(options: _Options) -> None:
    options.number("--workers", "one a thread, up to 4", "processes that share the batches and the cores")
    cluster = "a Ray cluster draws instead: auto, local or HOST:PORT; it shares this folder and the outputs"
    options.add("--cluster", metavar="ADDRESS", help=cluster)
    options.number("--gpus", 0.0, "with --cluster: GPUs that each task takes, 0.5 = two tasks share one", "X")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    options = _Options(parser)
    options.path("directory", "directory of reference numbers with a manifest.json", "DIR")
    options.add("--json", action="store_true", help="print one JSON object")


def _budget(text: str) -> int | str:
    if text != "paper" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write one, or paper")
    return text if text == "paper" else int(text)


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted((float(part) for part in text.split(",")), reverse=True))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of shares; write for example 0.3,0.2"
        ) from None


# --- running ----------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    from . import bench, pages

    if args.tables:
        print(pages.write_performance())
        return 0
    setup = bench.check(args)
    if args.profile:
        bench.write_profile(setup, args.profile)
        print(f"wrote {args.profile}; open it in chrome://tracing or ui.perfetto.dev")
        return 0
    result = bench.bench(setup, _say)
    text = pages.performance(result)
    _tell(args, text, pages.as_json(result), {args.markdown: text.encode()} if args.markdown else {})
    if args.save:
        pages.save_bench(result, args.save)
    return 0 if all(limit["passed"] for limit in result["limits"]) else 1


def _evaluate(args: argparse.Namespace) -> int:
    from . import evaluate, pages, quality

    if args.tables:
        print(pages.write_quality())
        return 0
    asked = evaluate.check(args)
    result, pictures = evaluate.evaluate(asked)
    _tell(args, quality.section(result), pages.as_json(result))
    if args.save:
        pages.save_evaluation(asked, result, pictures, args.save)
    return 0


def _export(args: argparse.Namespace) -> int:
    from . import export

    asked = export.check(args)
    written = export.export(asked)
    print(f"{asked.images}: files written for {asked.layout.title}: {written}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from . import calibrate, pages

    asked = calibrate.check(args)
    result = calibrate.run(asked, _counter)
    print(json.dumps(calibrate.facts(asked, result)) if args.json else pages.calibration_text(asked, result))
    if args.save:
        print(pages.save_calibration(calibrate.record(asked, result), args.save), file=sys.stderr)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from .verify import verify

    checks = []
    for check in verify(args.directory):
        checks.append({**vars(check), "passed": check.passed})
        if not args.json:
            numbers = f"{check.error:.3g} (allowed {check.allowed:.3g})"
            print(
                f"{'PASS' if check.passed else 'FAIL'}  {check.case:<28} {check.quantity:<20} {numbers}",
                flush=True,
            )
    passed = bool(checks) and all(check["passed"] for check in checks)
    if args.json:
        print(json.dumps({"passed": passed, "checks": checks}))
    return 0 if passed else 1


def _tell(args: argparse.Namespace, text: str, data: bytes, files: dict[Path, bytes] | None = None) -> None:
    """Print the tables or, with a bare --json, the numbers; write the numbers where --json says so."""
    from comfy_moss.images import write_files

    printed = args.json == Path("-")
    write_files(({args.json: data} if args.json and not printed else {}) | (files or {}))
    sys.stdout.write(data.decode() if printed else text)


def _say(text: str) -> None:
    """What is being measured, on one line of stderr that is written over; nothing where nobody watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def _counter(things: str) -> Callable[[int, int], None]:
    """Tells on stderr how many of how many are done: on one line that is written over, else a line every
    tenth."""
    told = -1

    def show(done: int, of: int) -> None:
        nonlocal told
        if sys.stderr.isatty():
            _say(f"{done}/{of} {things}" if done < of else "")
        elif 10 * done // of > told:
            told = 10 * done // of
            sys.stderr.write(f"{done}/{of} {things}\n")
            sys.stderr.flush()

    return show
