"""Results on disk, and docs/performance.md and docs/quality.md, which are made from all of them.

What the pages say by themselves stands in `text/`; every number comes from `results/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files
from comfy_moss.model.found import FOUND, with_found
from comfy_moss.model.library import EMBEDDED, RELEASES, UNKNOWN
from comfy_moss.pipeline.plan import parse_plan

from . import RESULTS, ROOT, bench, calibrate, evaluate, planner, quality
from .analysis import Interval, Study
from .draw import RENDER
from .plots import grid, pareto
from .quality import machine, memory, prefixed, span, spread, table, time, versions
from .shapes import default_pixels
from .studio import json_bytes
from .why import why

DOCS = ROOT / "docs"
PERFORMANCE, QUALITY, IMAGES = DOCS / "performance.md", DOCS / "quality.md", DOCS / "images"
TEXT = Path(__file__).resolve().parent / "text"
TABLE = "table"  # name of the evaluation that is the final table
KINDS = {
    "evaluate": ("quality-", evaluate.FORMAT),
    "calibrate": ("calibration-", calibrate.FORMAT),
    "plans": ("plans-", calibrate.FORMAT),
}
STAGES = {  # rows of the table of stages: which of the stages that `generate` tells apart
    "draft": ("draft",),
    "frequency, dispatch": ("frequency", "dispatch"),
    "refine": ("refine",),
    "composite": ("composite",),
}
Result = dict[str, Any]
APART = ("edits-", "kv-cache-", "memory-", "quantized-")  # results that other commands' own files read

# --- results on disk ----------------------------------------------------------------------------------------


def stored(command: str, folder: Path = RESULTS) -> list[Result]:
    """All results that a command stored, by name.

    Raises:
        ValueError: a file is no result of this version.
    """
    start, version = KINDS.get(command, ("", bench.FORMAT))
    others = () if start else (*(prefix for prefix, _ in KINDS.values()), *APART)
    paths = [path for path in sorted(folder.glob(f"{start}*.json")) if not path.name.startswith(others)]
    return [_read(path, version, command) for path in paths]


def _read(path: Path, version: int, command: str) -> Result:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["format"] == version:
            return result
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{path} is no result that this version's {command} stored; {command} again, or take the file away"
    )


def as_json(result: Result) -> bytes:
    """A result as a file, a list of an evaluation on one line."""
    if "methods" in result:  # of bench
        return json_bytes(result)
    return re.sub(rb"\[[^][{}]*\]", lambda found: b" ".join(found[0].split()), json_bytes(result))


def bench_name(result: Result) -> str:
    """<hardware>-<shape>-<precision>.json, and behind it what differs from the usual setting."""
    hardware, setting = result["hardware"], result["setting"]
    usual = {
        setting["pixels"]: default_pixels(setting["shape"]),
        setting["aspect"]: "1:1",
        "guided" if setting["guided"] else "unguided": "guided",
        "graphs" if setting.get("graphs") else "": "",
        setting["backend"]: "auto" if "capability" in hardware else "torch",
    }
    parts = [hardware["device"], setting["shape"], setting["precision"]]
    parts += [found for found, expected in usual.items() if found != expected]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-") + ".json"


def save_bench(result: Result, folder: Path) -> None:
    """Store a result under its own name, in place of an older one of the same hardware and setting."""
    write_files({folder / bench_name(result): as_json(result)})


def save_calibration(record: Result, folder: Path) -> Path:
    """Store bounds, in place of older ones of the same model, number of scales and k, or plans, of the same
    model and number of scales.

    What was chosen goes to the pack's own plans too, where the folder is the usual one.
    """
    of = f"{record['model']}-{record['scales']}"
    what = f"calibration-{of}-{record['setting']['k']}" if "found" in record else f"plans-{of}"
    path, files = folder / f"{what}.json", {}
    if folder == RESULTS and record.get("plans"):
        files = {FOUND: with_found(record)}
    write_files({path: as_json(record), **files})
    return path


def save_evaluation(
    asked: evaluate.Evaluation, result: Result, pictures: Mapping[tuple[int, str], bytes], folder: Path
) -> None:
    """Store a result and the grid of its shown pictures, in place of older ones of the same model.

    The grid goes to docs/images, as only there the page finds it; with another folder than usual, beside the
    result.
    """
    prompts = {n: asked.cases[n].prompt for n in sorted({n for n, _ in pictures})}
    sheet = grid(pictures, [RENDER, *asked.methods], prompts)
    images = IMAGES if folder == RESULTS else folder
    path, files = folder / f"{quality.file_name(result)}.json", {}
    if folder == RESULTS and asked.name == TABLE:
        files = {FOUND: with_found(measured_plans(result, stored("plans")))}
    write_files({path: as_json(result), images / quality.image_name(result, "grid"): sheet, **files})


def measured_plans(result: Result, chosen: Sequence[Result] = ()) -> Result:
    """All plans of the final table with their evidence, which flatters none of them: what a budget chooses
    from, in place of what `calibrate` told of those that it chose.

    Args:
        chosen: records of `calibrate`; a plan of theirs has all its names here.
    """
    study, setting = Study(result), result["setting"]
    key = setting["model"], setting["scales"]
    cfg = {"nano": EMBEDDED, **RELEASES}.get(setting["model"], UNKNOWN).cfg
    own = [one for one in chosen if (one["model"], one["scales"]) == key]
    names = {name: row["plan"] for one in own for name, row in one["plans"].items()}
    plans = {}
    for name, text in setting["plans"].items():
        told = {"plan": _with_strength(text, setting["cfg"], cfg), "work": study.work(name)}
        told["score"] = asdict(study.overall(name))
        plans |= {other: told for other in (name, *(n for n, plan in names.items() if plan == text))}
    told = {"metric": "faithful", "prompts": setting["prompts"], "seed": setting["seed"], "from": "evaluate"}
    facts = {name: setting[name] for name in ("model", "model_id", "scales", "cfg")}
    facts |= {name: result[name] for name in ("command", "date", "hardware", "versions")}
    return {**facts, "setting": told, "plans": plans}


def _with_strength(text: str, cfg: float, own: float) -> str:
    """A plan with the strength that its table was drawn with, where it names none and that is not the model's
    own: so it stays what was measured.
    """
    plan = parse_plan(text)
    return text if plan.guidance is not None or cfg == own else str(replace(plan, guidance=cfg))


def write_performance(folder: Path = RESULTS, target: Path = PERFORMANCE) -> Path:
    """Write docs/performance.md anew from all stored results."""
    sections = [performance(result) for result in stored("bench", folder)] or ["No result is stored yet.\n"]
    write_files({target: "\n".join([_text("performance"), *sections]).encode()})
    return target


def write_quality(folder: Path = RESULTS, target: Path = QUALITY) -> Path:
    """Write docs/quality.md with its plots, and docs/why.md, anew from all stored results."""
    results = sorted(
        stored("evaluate", folder), key=lambda one: (-one["setting"]["scales"], one.get("name") != TABLE)
    )
    found = sorted(stored("calibrate", folder), key=lambda one: -one["scales"])
    plots = {
        target.parent / "images" / quality.image_name(result, "pareto"): pareto(Study(result))
        for result in results
    }
    parts = [quality.page(results, stored("bench")), plans(stored("plans", folder)), calibrations(found)]
    text = "\n".join(filter(None, parts))
    asked = why(_text("why"), results)
    write_files({target: text.encode(), target.with_name("why.md"): asked.encode(), **plots})
    return target


def _text(name: str) -> str:
    return (TEXT / f"{name}.md").read_text(encoding="utf-8")


# --- performance --------------------------------------------------------------------------------------------


def performance(result: Result) -> str:
    """One result of `bench`: how it was measured, and its tables."""
    setting = result["setting"]
    guidance = "with guidance" if setting["guided"] else "without guidance"
    size = f"{setting['width']} x {setting['height']}"
    heading = f"{setting['shape']}, {size}, {setting['precision']}, {guidance}"
    parts = [
        f"## {heading}: {result['hardware']['device']}", _conditions(result), _variants(result["methods"]),
        "Where the time goes, stage by stage (medians; dense has no stage but the draft):", _stages(result),
    ]
    if result["ablation"]:
        parts.append(
            "The parts of one method, one change a row (the paper's Table 2 is the rows up to the kernels):"
        )
        parts.append(_variants(result["ablation"]))
    return "\n\n".join(parts) + "\n"


def _conditions(result: Result) -> str:
    setting, ceilings = result["setting"], result["ceilings"]
    replayed = ", replayed as CUDA graphs" if setting.get("graphs") else ""
    return "\n".join([
        f"    {result['command']}", "",
        machine(result, "processor", f"threads: {result['hardware']['threads']}"), versions(result),
        f"- weights: {setting['weights']}, {setting['parameters'] / 1e6:.1f} million in the transformer, "
        f"{memory(setting['weight_bytes'])} with the codec; {len(setting['grids'])} scales; prompt of "
        f"{setting['prompt_tokens']} tokens",
        f"- rounds: {setting['runs']}, after {setting['warmup']} to warm up; kernels: "
        + setting["backend_reason"]
        + replayed,
        f"- ceilings: {prefixed(ceilings['flops'])}FLOP/s, {prefixed(ceilings['bandwidth'])}B/s "
        f"({ceilings['how']})",
        *_decoder(result),
        f"- {_checks(result['limits'])}",
    ])


def _decoder(result: Result) -> list[str]:
    """How near the decoder comes to the ceiling; stored results of before lack it."""
    if not (found := result.get("decoder")):
        return []
    seconds, share = result["decode_s"]["median"], 100 * found["roofline_share"]
    return [f"- decoder: {time(seconds)}, {prefixed(found['flops'])}FLOP, {share:.0f} % of the ceiling"]


def _checks(limits: Sequence[Mapping[str, Any]]) -> str:
    failed = [limit for limit in limits if not limit["passed"]]
    if not failed:
        return f"checks: all {len(limits)} hold"
    told = "; ".join(
        f"{c['name']} ({c['kernels']}): {c['error']:.3g}, allowed {c['allowed']:g}" for c in failed
    )
    return f"**no speed-up is told, because checks fail on this very device: {told}**"


def _variants(rows: Sequence[Result]) -> str:
    """A table of variants; a column that this device or these checks have nothing for is left out."""
    columns: dict[str, Callable[[Result], str]] = {
        "method": lambda row: row["label"],
        "tokens": lambda row: str(row["tokens"]),
        "KV cache": lambda row: memory(row["kv_bytes"]),
        "FLOP": lambda row: prefixed(row["flops"]),
        "drawing": lambda row: spread(row["drawing_s"]),
        "times as fast": lambda row: f"{row['times_as_fast']['median']:.2f}",
        "end to end": lambda row: spread(row["end_to_end_s"]),
        "times as fast, end to end": lambda row: f"{row['times_as_fast_end_to_end']['median']:.2f}",
        "of roofline": lambda row: f"{100 * row['roofline_share']:.0f} %",
        "peak memory": lambda row: memory(row["peak_bytes"]),
        "launches in refine": lambda row: str(row["refine_launches"] or "one graph"),
        "waits": lambda row: str(row["waits"]),
        "recorded passes": lambda row: str(row.get("recorded_passes", "")),
    }
    if any(row["peak_bytes"] is None for row in rows):
        del columns["peak memory"]
    if all(row.get("refine_launches") is None for row in rows):
        del columns["launches in refine"]
    if all(row.get("waits") is None for row in rows):
        del columns["waits"], columns["recorded passes"]
    if any(row["times_as_fast"] is None for row in rows):
        del columns["times as fast"], columns["times as fast, end to end"]
    return table(list(columns.items()), rows)


def _stages(result: Result) -> str:
    """A column for dense and for every MoSs, a row for every stage."""
    shown = [row for row in result["methods"] if row["label"] == "dense" or row["label"].startswith("moss")]
    rows = [("text encoder", lambda row: result["text_s"]["median"])]
    rows += [
        (name, lambda row, of=of: sum(row["stages_s"][part] for part in of)) for name, of in STAGES.items()
    ]
    rows.append(("decoder", lambda row: result["decode_s"]["median"]))
    columns = [("stage", lambda name, _: name)]
    columns += [(row["label"], lambda _, seconds, row=row: time(seconds(row))) for row in shown]
    return table(columns, rows)


# --- calibration --------------------------------------------------------------------------------------------


def plans(found: Sequence[Result]) -> str:
    """The part of docs/quality.md about plans that were chosen; "" without any."""
    if not found:
        return ""
    parts = [_text("plans").rstrip()]
    for one in found:
        names = _names({name: row["plan"] for name, row in one["plans"].items()})
        setting, told = one["setting"], f"{len(one['tried'])} plans tried, {len(one['chosen'])} candidates"
        parts += [
            f"### {one['model']}, {one['scales']} scales",
            f"    {one['command']}",
            f"- {one['date'][:10]}; {one['hardware']['device']}, torch {one['versions']['torch']}; weights "
            f"{one['model_id']}; {told}; prompts: {setting['prompts']} of the search, "
            f"{setting['choice prompts']} of the choice; metric: {setting['metric']}",
            table(
                [
                    ("name", lambda row, names=names: names.get(row["plan"], "")),
                    ("plan", lambda row: f"`{row['plan']}`"),
                    ("of dense's work", lambda row: f"{row['work']:.3f}"),
                    ("drawing", lambda row: time(row["seconds"])),
                    ("search", lambda row: f"{row['found']:.3f}"),
                    ("choice", lambda row: f"{row['chosen']:.3f}"),
                    ("both", lambda row: span(Interval(**row["score"]))),
                ],
                one["chosen"],
                "<<>>>>>",
            ),
        ]
        if one["plot"]:
            parts.append(f"![All plans that were tried](images/{one['plot']})")
    return "\n\n".join(parts) + "\n"


def calibrations(found: Sequence[Result]) -> str:
    """The part of docs/quality.md about stored searches; "" without any."""
    if not found:
        return ""
    parts = [_text("calibration").rstrip(), "\n".join(f"    {one['command']}" for one in found)]
    parts.append("\n".join(
        f"- moss{one['setting']['k']}, {one['scales']} scales: {one['date'][:10]}; "
        f"{one['hardware']['device']}, torch {one['versions']['torch']}; weights {one['model_id']}; "
        f"{one['setting']['prompts']} prompts"
        for one in found
    ))
    columns = [
        ("model", lambda one, row: one["model"]),
        ("scales", lambda one, row: str(one["scales"])),
        ("k", lambda one, row: str(one["setting"]["k"])),
        ("bounds", lambda one, row: row["name"]),
        ("percent, coarsest first", lambda one, row: ", ".join(f"{b:.3g}" for b in row["bounds"])),
        ("refine tokens", lambda one, row: str(row["tokens"])),
        ("metric", lambda one, row: one["setting"]["metric"]),
        ("value", lambda one, row: span(Interval(**row["value"]))),
        ("minus the first row's", lambda one, row: span(row["gain"] and Interval(**row["gain"]), "+.3f")),
    ]
    parts.append(table(columns, [(one, row) for one in found for row in one["equal_tokens"]], "<>><<>>>>"))
    parts += [
        f"![Everything tried for moss{one['setting']['k']} on {one['scales']} scales](images/{one['plot']})"
        for one in found if one["plot"]
    ]
    return "\n\n".join(parts) + "\n"


def calibration_text(asked: calibrate.Calibrating, result: calibrate.Result) -> str:
    """What `calibrate` prints: what was found, and how it stands beside its rivals."""
    return _bounds_text(asked, result) if result.found else _plans_text(asked, result)


def _plans_text(asked: calibrate.Calibrating, result: calibrate.Result) -> str:
    """The chosen plans, or before a choice those that no other beats."""
    names = _names({name: one.plan for name, one in calibrate.named(result.chosen, asked.budgets).items()})
    if not result.chosen:
        return table([
            ("share of dense's work", lambda one: f"{one.work:.3f}"),
            (asked.metric, lambda one: f"{one.score:.3f}"), ("plan", lambda one: str(one.plan)),
        ], planner.front(result.tried), ">><")
    return table([
        ("name", lambda one: names.get(one.plan, "")),
        ("share of dense's work", lambda one: f"{one.work:.3f}"),
        (f"{asked.metric}, search", lambda one: f"{one.found:.3f}"),
        ("choice", lambda one: f"{one.chosen:.3f}"), ("both", lambda one: span(one.score)),
        ("drawing", lambda one: time(one.seconds)), ("plan", lambda one: one.plan),
    ], result.chosen, "<>>>>><")


def _names(plans: Mapping[str, str]) -> dict[str, str]:
    """By plan as text, the names that it got; one plan can be the best for several budgets."""
    return {text: ", ".join(name for name, own in plans.items() if own == text) for text in plans.values()}


def _bounds_text(asked: calibrate.Calibrating, result: calibrate.Result) -> str:
    found, rows = result.found, result.rows
    head = (
        f"{asked.metric} on {len(asked.sets['search'].texts)} prompts: {found.reference:.4g} with all tokens "
        "redrawn at "
        f"the finest scale, {found.value:.4g} with the {result.tokens} refine tokens a picture of\n"
        f"--bounds {_bounds(found.bounds)}"
    )
    title = f"{'at equal tokens':<15} {'bounds':<28} {'tokens':>6}  {asked.metric:<24} against {rows[0].name}"
    return "\n".join([head, "", title, *map(_compared, rows)])


def _compared(row: calibrate.Row) -> str:
    bounds = _bounds(row.bounds)
    value, gain = span(row.value, ".4g"), span(row.gain, "+.4g")
    return f"{row.name:<15} {bounds:<28} {row.tokens:>6}  {value:<24} {gain}".rstrip()


def _bounds(bounds: Sequence[float]) -> str:
    return ",".join(f"{round(bound, 2):g}" for bound in bounds)
