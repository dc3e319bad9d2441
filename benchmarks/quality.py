"""The tables of docs/quality.md: what skipping, pruning, MoSs and plans cost; and the cells of all pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .analysis import DRAWS, MARGIN, YARDSTICK, Interval, Mixture, Study
from .draw import CODEC, RENDER
from .suite import TASKS

INSTRUMENT = (
    "The instrument itself: the true rendering of every prompt, what the codec alone leaves of it, which is "
    "about the best that a method can reach, and chance, which is pictures judged by another prompt's "
    "caption:"
)
CORRELATION = (
    "Does the draft's frequency tell where late scales have work to do? Pearson's r, over the places of a "
    "picture, of the draft's frequency and the length of the codes that dense's last k scales added; its "
    "mean over prompts (the paper finds 0.447 on its model):"
)
CHANCE = {RENDER: "true renderings", "dense": "dense"}
Result = dict[str, Any]


def file_name(result: Result) -> str:
    """Of a stored result, without what it ends with; --name tells several of a model and schedule apart."""
    setting = result["setting"]
    told = ["quality", setting["model"], str(setting["scales"]), result.get("name", "")]
    return "-".join(filter(None, told))


def image_name(result: Result, kind: str) -> str:
    """File name of a result's picture in docs/images; kind is "pareto" or "grid"."""
    return f"{file_name(result)}-{kind}.png"


def page(results: Sequence[Result], benches: Sequence[Result]) -> str:
    """The whole of docs/quality.md but its last section; `benches` are the stored results of `bench`."""
    gates = [f"{_title(result)}: {gate(Study(result))}" for result in results]
    text = (Path(__file__).parent / "text" / "quality.md").read_text(encoding="utf-8").format(DRAWS=DRAWS)
    parts = ["# Quality", *(gates or ["No result is stored yet."]), text]
    return "\n\n".join(parts) + "".join(f"\n{section(result, benches)}" for result in results)


def section(result: Result, benches: Sequence[Result] = ()) -> str:
    """One result of `evaluate`: whether it means anything, how it was measured, and its tables."""
    study = Study(result)
    heading = f"## {_title(result)}"
    parts = [
        heading, gate(study), _asked(study),
        INSTRUMENT, _instrument(study), "Table 1, quality against cost:", _costs(study),
        f"![Score and texture of every method against drawing time](images/{image_name(result, 'pareto')})",
        f"![Some prompts drawn by every method](images/{image_name(result, 'grid')})",
        "Score by task:", table([("method", str), *_by_task(study)], study.methods),
    ]
    if study.mosses:
        parts += ["MoSs-k against its rivals, paired:", _pairs(study)]
    if ablated := _ablated(study):
        parts.append("Table 2, parts of the refine step, each paired with the whole:")
        parts += [_ablation(study, ablated), _kernels(benches)]
    if result["correlation"]:
        parts.append(CORRELATION)
        parts.append(_correlations(study))
    return "\n\n".join(parts) + "\n"


def _title(result: Result) -> str:
    setting = result["setting"]
    told = f"{setting['model']}, {setting['width']} x {setting['height']}, {setting['scales']} scales"
    name = f" ({result['name']})" if result.get("name") else ""
    return f"{told}, guidance {setting['cfg']:g}, {setting['prompts']} prompts{name}"


def gate(study: Study) -> str:
    """Whether the model's late scales do anything that the tables could tell."""
    passed = study.gate()
    if passed is None:
        reason = f"because {YARDSTICK} was not drawn; whether the tables mean anything is open"
        return f"**Gate: not tested**, {reason}."
    ours, theirs = study.faithfulness("dense"), study.faithfulness(YARDSTICK)
    apart = study.faithfulness_difference("dense", YARDSTICK)
    told = (
        f"with textures dense scores {span(ours)} and {YARDSTICK} {span(theirs)}, a paired difference of "
        f"{signed(apart)}; asked for are {MARGIN:.2f} and intervals apart. By the six tasks alone the "
        f"difference is {signed(study.difference('dense', YARDSTICK))}"
    )
    if passed:
        return f"**Gate: passed.** Late scales show in the score: {told}."
    return f"**Gate: not passed, so no table of methods below means anything yet**: {told}."


def _asked(study: Study) -> str:
    result, setting = study.result, study.result["setting"]
    several = f"{study.workers} processes at once, so times are those of a busy machine"
    shared = "one process" if study.workers == 1 else several
    threads = f"threads of each process: {result['hardware']['threads']}; {shared}"
    bounds = {name: ", ".join(f"{b:g}" for b in setting["bounds"][name]) for name in study.mosses}
    shown = "; ".join(f"{name} {of}" for name, of in bounds.items())
    return "\n".join([
        f"    {result['command']}", "", machine(result, "device", threads), versions(result),
        f"- weights: {setting['model_id']}, {setting['precision']}; {setting['scales']} scales; guidance "
        f"{setting['cfg']:g}, temperature {setting['tau']:g}; noise: {setting['noise']}",
        f"- prompts: {setting['prompts']}, {result['distinct_prompts']} of them distinct, from seed "
        f"{setting['seed']}; picture n has seed n; batches of {setting['batch']}",
        *[f"- bounds in percent, coarsest refined scale first: {shown}"] * bool(shown),
        *(f"- {name}: `{study.text(name)}`" for name in study.plans if study.text(name) != name),
    ])


def _by_task(study: Study) -> list[Column]:
    """Cells of a method's name: its score and its parts; of a name and "shuffled" the score at chance."""
    def part(task: str) -> Column:
        return task.replace("_", " "), lambda name, column="hits": _short(study.score(name, task, column))

    return [("score", lambda name, column="hits": span(study.score(name, None, column))), *map(part, TASKS)]


def _instrument(study: Study) -> str:
    shown = {(RENDER, "hits"): "true renderings", (CODEC, "hits"): "codec alone"}
    shown |= {(name, "shuffled"): f"{title}, captions shuffled" for name, title in CHANCE.items()}
    columns = [("pictures", lambda *row: shown[row]), *_by_task(study)]
    columns.append(
        ("texture shown", lambda name, column: span(study.textured(name)) if column == "hits" else "")
    )
    return table(columns, list(shown))


def _costs(study: Study) -> str:
    def compared(cell: Callable[[str], str]) -> Callable[[str], str]:
        return lambda name: "" if name == "dense" else cell(name)

    known = study.work("dense") is not None
    work = [("of dense's work", lambda name: f"{study.work(name):.3f}")] * known
    return table([
        ("method", str),
        ("tokens", lambda name: str(study.rows[name]["tokens"])), *work,
        ("KV cache", lambda name: f"{study.rows[name]['kv_bytes'] / 2**20:.2f} MiB"),
        ("drawing", lambda name: time(study.seconds(name))),
        ("with decoder", lambda name: time(study.whole_seconds(name))),
        ("times as fast", lambda name: f"{study.times_as_fast(name):.2f}"),
        ("score", lambda name: span(study.score(name))),
        ("score minus dense's", compared(lambda name: signed(study.difference(name, "dense")))),
        ("texture shown", lambda name: span(study.textured(name))),
        ("with textures", lambda name: span(study.faithfulness(name))),
        ("minus dense's", compared(lambda name: signed(study.faithfulness_difference(name, "dense")))),
        ("PSNR", compared(lambda name: f"{study.likeness(name, 'psnr').value:.2f} dB")),
        ("SSIM", compared(lambda name: f"{study.likeness(name, 'ssim').value:.3f}")),
        ("texture energy against dense", compared(lambda name: _short(study.energy(name, "dense")))),
        ("against truth", lambda name: _short(study.energy(name, RENDER))),
    ], study.methods)


def _pairs(study: Study) -> str:
    refining = [*study.mosses, *study.plans]
    rows = [(name, title, rival) for name in refining for title, rival in study.rivals(name).items()]

    def both(heading: str, difference: Callable[[str, str | Mixture], Interval | None]) -> list[Column]:
        told = (heading, lambda name, _, rival: signed(difference(name, rival)))
        return [told, ("verdict", lambda name, _, rival: _verdict(difference(name, rival)))]

    return table([
        ("method", lambda name, title, rival: name),
        ("rival", lambda name, title, rival: _rival(title, rival)),
        ("drawing", lambda name, title, rival: time(study.seconds(name))),
        ("rival's drawing", lambda name, title, rival: time(_seconds(study, rival))),
        *both("score minus the rival's", study.difference),
        *both("texture shown minus the rival's", study.textured_difference),
        *both("with textures minus the rival's", study.faithfulness_difference),
        ("texture energy against the rival's", lambda name, title, rival: _short(study.energy(name, rival))),
    ], rows)


def _verdict(difference: Interval | None) -> str:
    return "" if difference is None else ("not told apart", "higher", "lower")[difference.sign]


def _rival(title: str, rival: str | Mixture) -> str:
    if isinstance(rival, str):
        return title
    if not rival.share:
        return f"{title}: {rival.first}"
    return f"{title}: {100 * (1 - rival.share):.0f} % {rival.first}, {100 * rival.share:.0f} % {rival.second}"


def _seconds(study: Study, rival: str | Mixture) -> float:
    return study.seconds(rival) if isinstance(rival, str) else rival.seconds


def _ablated(study: Study) -> dict[str, list[str]]:
    """The variants of every moss-k's refine step, where it was drawn whole as well."""
    variants = {
        base: [f"{base}{end}" for end in ("-sa", "-unguided", "-sa-unguided")] for base in study.mosses
    }
    found = {base: [name for name in study.methods if name in names] for base, names in variants.items()}
    return {base: names for base, names in found.items() if names}


def _ablation(study: Study, ablated: Mapping[str, Sequence[str]]) -> str:
    rows = [(name, base) for base, variants in ablated.items() for name in (base, *variants)]

    def minus(difference: Callable[[str, str], Interval | None]) -> Column:
        return "minus the whole's", lambda name, base: "" if name == base else signed(difference(name, base))

    return table([
        ("method", lambda name, _: name),
        ("refine step", lambda name, _: _part(name)),
        ("drawing", lambda name, _: time(study.seconds(name))),
        ("score", lambda name, _: span(study.score(name))), minus(study.difference),
        ("texture shown", lambda name, _: span(study.textured(name))), minus(study.textured_difference),
        ("PSNR to dense", lambda name, _: f"{study.likeness(name, 'psnr').value:.2f} dB"),
        ("texture energy against truth", lambda name, _: _short(study.energy(name, RENDER))),
    ], rows)


def _part(name: str) -> str:
    options = name.split("-")[1:]
    attention = "SA" if "sa" in options else "CSSA"
    return f"{attention}, no guidance" if "unguided" in options else attention


def _kernels(benches: Sequence[Result]) -> str:
    """The table's last row, CSSA + kernels: a matter of time alone, from `bench` on GPUs."""
    text = (
        "Kernels change a picture by no more than rounding, so their row is one of time alone, measured by "
        "`bench` on a GPU"
    )
    measured = [(one, row) for one in benches if "capability" in one["hardware"] for row in one["ablation"]]
    if not measured:
        return f"{text}; none is stored yet."
    columns = [
        (
            "GPU", lambda one, row: one["hardware"]["device"]
        ), ("model", lambda one, row: one["setting"]["shape"]),
        (
            "method", lambda one, row: row["label"]
        ), ("drawing", lambda one, row: time(row["drawing_s"]["median"])),
    ]
    return f"{text}:\n\n{table(columns, measured)}"


def _correlations(study: Study) -> str:
    values = study.result["correlation"]
    return table([
        ("k", str),
        ("prompts", lambda k: str(len(values[k]))),
        ("r", lambda k: signed(study.correlation(k))),
        ("prompts with r above 0", lambda k: f"{100 * np.mean(np.array(values[k]) > 0):.0f} %"),
    ], list(values))


def signed(interval: Interval | None) -> str:
    return span(interval, "+.3f")


def _short(interval: Interval | None) -> str:
    return span(interval, ".2f")


# --- cells and tables, in Markdown --------------------------------------------------------------------------

Column = tuple[str, Callable[..., str]]


def table(columns: Sequence[Column], rows: Sequence[Any], aligned: str = "") -> str:
    """Rows in Markdown.

    Args:
        columns: heading, and what a row shows there.
        rows: each a tuple of the cells' arguments, or a single one.
        aligned: "<" or ">" a column, left or right; by default the first is left and all others are right.
    """
    cells = [row if isinstance(row, tuple) else (row,) for row in rows]
    marks = ["---" if mark == "<" else "---:" for mark in aligned or "<".ljust(len(columns), ">")]
    lines = [
        [heading for heading, _ in columns], marks, *([cell(*row) for _, cell in columns] for row in cells)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def span(of: Interval | None, form: str = ".3f") -> str:
    """A value with its interval; "" for None."""
    return "" if of is None else f"{of.value:{form}} [{of.low:{form}}, {of.high:{form}}]"


def time(seconds: float) -> str:
    """Three digits, in ms below ten seconds; nothing for a stage that did not run."""
    if seconds == 0:
        return ""
    return f"{digits(seconds)} s" if seconds >= 10 else f"{digits(1000 * seconds)} ms"


def digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def memory(size: int) -> str:
    return f"{digits(size / 2**30)} GiB" if size >= 2**30 else f"{digits(size / 2**20)} MiB"


def prefixed(value: float) -> str:
    """With the prefix of a unit."""
    size, prefix = next(((10**n, p) for n, p in ((12, "T"), (9, "G")) if value >= 10**n), (10**6, "M"))
    return f"{digits(value / size)} {prefix}"


def spread(value: Mapping[str, float | None]) -> str:
    """Median and, of several rounds, the interquartile range."""
    return time(value["median"]) + ("" if value["iqr"] is None else f" ({time(value['iqr'])})")


def machine(result: Mapping[str, Any], of: str, threads: str) -> str:
    hardware = result["hardware"]
    busy = "" if hardware["load_average"] is None else f", load average {hardware['load_average']:g} before"
    return f"- {result['date'][:10]}; {hardware[of]}, cores: {hardware['cores']}, {threads}{busy}"


def versions(result: Mapping[str, Any]) -> str:
    return "- " + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
