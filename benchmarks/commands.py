"""The laboratory's commands: their options, and what they print.

Imports torch only where a command runs, so that --help is instant.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_moss.model.schedule import PRESETS

from .bench import RESULTS
from .evaluation.calibration import options as calibration
from .evaluation.export import layouts as export
from .evaluation.names import EVALUATED

Options = Callable[[argparse.ArgumentParser], None]


def add_commands(commands: Any, add_method: Options, add_drawing: Options) -> None:
    """Add the laboratory's commands to the command line.

    Args:
        add_method, add_drawing: give a parser the options of a method, and of all else that decides a picture.
    """
    _add_bench(commands)
    _add_evaluate(commands)
    _add_export(commands, add_method, add_drawing)
    _add_calibrate(commands, add_drawing)
    _add_verify(commands)


def _add_bench(commands: Any) -> None:
    parser = commands.add_parser("bench", help="measure speed and memory of the methods on this machine")
    add = parser.add_argument
    add("--shape", choices=("nano", "125m", "2b", "8b", "hart-0.7b"), default="nano", help="all but nano get random weights")
    add("--pixels", choices=PRESETS, help="image area (default: 1M, for nano 0.25M)")
    add("--aspect", default="1:1", help="width:height (default: 1:1)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto = bf16 on cuda and CPUs with AMX, else fp32")
    add("--backend", choices=("auto", "torch", "triton"), default="auto", help="auto = Triton's kernels where they are faster")
    add("--methods", metavar="M1,M2,...", help="dense and every moss's draft-k are added (default: all that the paper has)")
    add("--runs", type=int, default=5, metavar="N", help="rounds of all methods, in random order (default: 5)")
    add("--warmup", type=int, default=1, metavar="N", help="rounds before those, not counted (default: 1)")
    add("--cfg", choices=("on", "off"), default="on", help="guidance: off = half the rows (default: on)")
    add("--graphs", choices=("on", "off"), default="off", help="run the transformer as CUDA graphs (default: off)")
    add("--json", type=Path, nargs="?", const=Path("-"), metavar="FILE", help="write all numbers there, or print only them")
    add("--markdown", type=Path, metavar="FILE", help="write the printed tables there as well")
    add("--save", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="store all numbers there, default benchmarks/results")
    add("--tables", action="store_true", help="measure nothing: write docs/performance.md from all stored results")
    parser.set_defaults(run=_bench)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="measure the quality of the methods on the shapes world, against their time")
    add = parser.add_argument
    add("--model", default="nano", help="a model that draws the shapes world (default: nano)")
    add("--models", type=Path, action="append", default=[], metavar="DIR", help="look for models here first; may be repeated")
    add("--methods", default=EVALUATED, metavar="M1,M2,...", help=f"draft = draft-1 to draft-5 (default: {EVALUATED})")
    add("--per-task", type=int, default=10, metavar="N", help="prompts of each of the six tasks (default: 10)")
    add("--seed", type=int, default=0, help="of the prompts; picture n has seed n (default: 0)")
    add("--pixels", choices=PRESETS, help="image area (default: the model's own)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the model (default: auto)")
    add("--batch", type=int, default=3, metavar="N", help="pictures drawn together (default: 3)")
    add("--workers", type=int, metavar="N", help="processes that share prompts and cores (default: one a thread, up to 4)")
    add("--part", type=int, help=argparse.SUPPRESS)  # which worker this is
    add("--correlation", type=int, default=100, metavar="N", help="first prompts whose contribution is measured (default: 100)")
    add("--out", type=Path, metavar="DIR", help="keep what was drawn there, and go on from what is there already")
    add("--json", type=Path, nargs="?", const=Path("-"), metavar="FILE", help="write all numbers there, or print only them")
    add("--save", type=Path, nargs="?", const=RESULTS, metavar="DIR", help="store all numbers there, default benchmarks/results")
    add("--tables", action="store_true", help="draw nothing: write docs/quality.md from all stored results")
    parser.set_defaults(run=_evaluate)


def _add_export(commands: Any, add_method: Options, add_drawing: Options) -> None:
    parser = commands.add_parser("export", help="draw the pictures of a benchmark that is scored elsewhere")
    export.add_options(parser)
    add_method(parser)
    add_drawing(parser)
    parser.set_defaults(run=_export)


def _add_calibrate(commands: Any, add_drawing: Options) -> None:
    parser = commands.add_parser("calibrate", help="search the bounds of MoSs-k for a model by a metric")
    calibration.add_options(parser)
    add_drawing(parser)
    parser.set_defaults(run=_calibrate)


def _add_verify(commands: Any) -> None:
    parser = commands.add_parser("verify", help="compare this implementation with reference numbers")
    parser.add_argument("directory", type=Path, help="directory of reference numbers with a manifest.json")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_verify)


# --- export, calibrate ------------------------------------------------------------------------------------------


def _export(args: argparse.Namespace) -> int:
    from .evaluation.export import run

    order = run.check(args)
    written = run.export(order, _counter("files"))
    print(f"{order.images}: files written for {order.layout.title}: {written}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from .evaluation.calibration import order as orders
    from .evaluation.calibration import store
    from .evaluation.calibration.table import facts, table

    order = orders.check(args)
    result = orders.run(order, _counter)
    print(json.dumps(facts(order, result)) if args.json else table(order, result))
    if args.save:
        print(store.save(store.record(order, result), args.save), file=sys.stderr)
    return 0


def _counter(things: str) -> Callable[[int, int], None]:
    """Tells on stderr how many of how many are done: on one line that is written over, or where nobody watches a line a tenth."""
    width, tenth = 24, -1

    def show(done: int, of: int) -> None:
        nonlocal tenth
        text = f"{done}/{of} {things}"
        if sys.stderr.isatty():
            bar = "#" * (width * done // of)
            sys.stderr.write(f"\r[{bar:.<{width}}] {text}" if done < of else "\r\x1b[K")
        elif 10 * done // of > tenth:
            tenth = 10 * done // of
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    return show


# --- bench ------------------------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> int:
    from comfy_moss.images import write_files

    from .bench import order, run, store, tables

    if args.tables:
        print(store.write_page())
        return 0
    result = run.bench(order.check(args), _progress_line())
    text, data = tables.section(result), store.as_json(result)
    printed = args.json == Path("-")
    files = {args.json: data} if args.json and not printed else {}
    write_files(files | ({args.markdown: text.encode()} if args.markdown else {}))
    if args.save:
        store.save(result, args.save)
    sys.stdout.write(data.decode() if printed else text)
    return 0 if all(limit["passed"] for limit in result["limits"]) else 1


def _progress_line() -> Callable[[str], None]:
    """What is being measured, on one line of stderr that is written over; nothing where nobody watches."""

    def show(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    return show


# --- evaluate ---------------------------------------------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> int:
    from comfy_moss.images import write_files

    from .evaluation import order, run, store, tables

    if args.tables:
        print(store.write_page())
        return 0
    asked, say = order.check(args), _progress_line()
    if asked.part is not None:
        run.draw_part(asked, args.out, say)
        return 0
    result, pictures = run.evaluate(asked, say)
    printed = args.json == Path("-")
    if args.json and not printed:
        write_files({args.json: store.as_json(result)})
    if args.save:
        store.save(asked, result, pictures, args.save)
    sys.stdout.write(store.as_json(result).decode() if printed else tables.section(result))
    return 0


# --- verify -----------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from .verify import verify

    checks = []
    for check in verify(args.directory):
        checks.append({**vars(check), "passed": check.passed})
        if not args.json:
            verdict = "PASS" if check.passed else "FAIL"
            print(f"{verdict}  {check.case:<28} {check.quantity:<20} {check.error:.3g} (allowed {check.allowed:.3g})", flush=True)
    passed = bool(checks) and all(check["passed"] for check in checks)
    if args.json:
        print(json.dumps({"passed": passed, "checks": checks}))
    return 0 if passed else 1
