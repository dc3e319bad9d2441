"""Results as Markdown: one section a result, and the page of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..suite import TASKS
from .analysis import MARGIN, YARDSTICK, Mixture, Study
from .bootstrap import DRAWS, Interval
from .rows import CODEC, RENDER

PAPER_CORRELATION = 0.447
PLOT, GRID = "pareto", "grid"

INTRODUCTION = f"""What skipping, pruning and MoSs cost in quality, measured on the embedded model: every picture is drawn from a
caption of the shapes world and looked at by a program. It is a small model of a small world, so these are statements about the
methods on this model, not about the released ones. Every number on this page was measured by the command above its tables and
is written here by `python -m comfy_moss evaluate --tables` from the files `benchmarks/results/quality-*.json`; none is typed by
hand.

## What the columns say

- **score**: share of pictures that show what their prompt asks for, the mean of GenEval's six tasks. Prompts come from a fixed
  seed and from combinations of things and background that training leaves out ([training/README.md](../training/README.md) says
  since when). Every method gets the same prompts and seeds.
- **[low, high]**: 95 % interval of a bootstrap over prompts within their tasks ({DRAWS} draws). Differences and ratios are
  paired: both methods are drawn from the same prompts each time. Where nothing or everything succeeded, the interval has no
  width, which is a weakness of the bootstrap, not certainty.
- **PSNR, SSIM**: likeness to dense's picture of the same prompt and seed. Another, equally good picture counts as unlike.
- **texture shown**: of the prompts that name a texture (stripes, checks, dots), the share whose things have it. The six tasks
  do not ask for it, and it is what late scales draw.
- **with textures**: the score where a picture that lacks a texture its prompt names does not count. The gate is about this one:
  without late scales there is no texture, and with six tasks that are blind to it nothing could be told.
- **texture energy**: squared distance of a pixel from its surroundings in the same object, summed over the same prompts, as a
  share of dense's and of the true rendering's. Blur, which is what skipping costs, lowers it; noise raises it, so it is no score
  by itself.
- **drawing**: from the prompt's features to the sum of codes, a picture; **with decoder**: and to pixels. Median over batches;
  in every batch all methods run once, in an order drawn anew. **times as fast**: dense's drawing time over this one's, batch by
  batch.
- **tokens**: tokens a picture that the transformer ran. **KV cache**: a picture's share of what was allocated.
- **moss-k** uses the bounds found for this model by `calibrate` where they beat the paper's, **-paper** the paper's.
- **draft-k** skips the last k scales; it is what **moss-k** starts from. **-sa**: refined tokens see only their own scale.
  **-unguided**: no guidance in the refine step.
- **equal time**: two methods mixed, one or the other for every picture, so that a picture takes as long on average as one of
  moss-k's. Anyone can draw like this, so moss-k has to beat it.
"""


def image_name(result: dict[str, Any], kind: str) -> str:
    """File name of a result's picture in docs/images; kind is PLOT or GRID."""
    return f"quality-{result['setting']['model']}-{kind}.png"


def page(results: Sequence[dict[str, Any]], benchmarks: Sequence[dict[str, Any]]) -> str:
    """The whole of docs/quality.md; benchmarks are the stored results of `bench`."""
    gates = [f"{result['setting']['model']}: {gate(Study(result))}" for result in results] or ["No result is stored yet."]
    return "\n\n".join(["# Quality", *gates, INTRODUCTION]) + "".join(f"\n{section(r, benchmarks)}" for r in results)


def section(result: dict[str, Any], benchmarks: Sequence[dict[str, Any]] = ()) -> str:
    """One result: whether it means anything, how it was measured, and its tables."""
    study, setting = Study(result), result["setting"]
    heading = f"## {setting['model']}, {setting['width']} x {setting['height']}, {setting['prompts']} prompts"
    parts = [
        heading, gate(study), _conditions(study),
        "The instrument itself: the true rendering of every prompt, what the codec alone leaves of it, which is about the best "
        "that a method can reach, and chance, which is pictures judged by another prompt's caption:", _instrument(study),
        "Table 1, quality against cost:", _costs(study), _pictures(result),
        "Score by task:", _tasks(study),
    ]  # fmt: skip
    if study.mosses:
        parts += ["MoSs-k against its rivals, paired:", _pairs(study)]
    if ablated := _ablated(study):
        parts.append("Table 2, parts of the refine step, each paired with the whole:")
        parts += [_ablation(study, ablated), _kernels(benchmarks)]
    if result["correlation"]:
        parts += [_correlation_text(), _correlations(study)]
    return "\n\n".join(parts) + "\n"


def gate(study: Study) -> str:
    """Whether the model's late scales do anything that the tables could tell."""
    passed = study.gate()
    if passed is None:
        return f"**Gate: not tested**, because {YARDSTICK} was not drawn; whether the tables mean anything is open."
    told = (
        f"with textures dense scores {_interval(study.faithfulness('dense'))} and {YARDSTICK} "
        f"{_interval(study.faithfulness(YARDSTICK))}, a paired difference of "
        f"{_signed(study.faithfulness_difference('dense', YARDSTICK))}; asked for are {MARGIN:.2f} and intervals apart. By the "
        f"six tasks alone the difference is {_signed(study.difference('dense', YARDSTICK))}"
    )
    if passed:
        return f"**Gate: passed.** Late scales show in the score: {told}."
    return f"**Gate: not passed, so no table of methods below means anything yet**: {told}."


# --- parts ------------------------------------------------------------------------------------------------------


def _conditions(study: Study) -> str:
    result = study.result
    hardware, setting = result["hardware"], result["setting"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    busy = "" if hardware["load_average"] is None else f", load average {hardware['load_average']:g} before"
    several = f"{setting['workers']} processes at once, so times are those of a busy machine"
    shared = "one process" if setting["workers"] == 1 else several
    return "\n".join([
        f"    {result['command']}",
        "",
        f"- {result['date'][:10]}; {hardware['device']}, cores: {hardware['cores']}, threads of each process: "
        f"{hardware['threads']}; {shared}{busy}",
        f"- {versions}",
        f"- weights: {setting['model_id']}, {setting['precision']}; {setting['scales']} scales; guidance {setting['cfg']:g}, "
        f"temperature {setting['tau']:g}; noise: {setting['noise']}",
        f"- prompts: {setting['prompts']}, {result['distinct_prompts']} of them distinct, from seed {setting['seed']}; picture n "
        f"has seed n; batches of {setting['batch']}",
        *_bounds(study),
    ])  # fmt: skip


def _bounds(study: Study) -> list[str]:
    """What the bounds of every MoSs-k were."""
    bounds = study.result["setting"]["bounds"]
    shown = [f"{name} {', '.join(f'{b:g}' for b in bounds[name])}" for name in study.mosses]
    return [f"- bounds in percent, coarsest refined scale first: {'; '.join(shown)}"] if shown else []


def _instrument(study: Study) -> str:
    lines = {
        "true renderings": (RENDER, "hits"), "codec alone": (CODEC, "hits"),
        "true renderings, captions shuffled": (RENDER, "shuffled"), "dense, captions shuffled": ("dense", "shuffled"),
    }  # fmt: skip
    body = [
        [name, *_by_task(study, *source), _interval(study.textured(source[0])) if source[1] == "hits" else ""]
        for name, source in lines.items()
    ]  # fmt: skip
    return _table(["pictures", "score", *map(_words, TASKS), "texture shown"], body)


def _tasks(study: Study) -> str:
    return _table(["method", "score", *map(_words, TASKS)], [[name, *_by_task(study, name)] for name in study.methods])


def _by_task(study: Study, name: str, column: str = "hits") -> list[str]:
    return [_interval(study.score(name, None, column)), *(_short(study.score(name, task, column)) for task in TASKS)]


def _costs(study: Study) -> str:
    head = ["method", "tokens", "KV cache", "drawing", "with decoder", "times as fast", "score", "score minus dense's",
            "texture shown", "with textures", "minus dense's",
            "PSNR", "SSIM", "texture energy against dense", "against truth"]  # fmt: skip
    return _table(head, [_cost(study, name) for name in study.methods])


def _cost(study: Study, name: str) -> list[str]:
    row, compared = study.rows[name], name != "dense"
    return [
        name, str(row["tokens"]), f"{row['kv_bytes'] / 2**20:.2f} MiB",
        _time(study.seconds(name)), _time(study.whole_seconds(name)), f"{study.times_as_fast(name):.2f}",
        _interval(study.score(name)), _signed(study.difference(name, "dense")) if compared else "",
        _interval(study.textured(name)), _interval(study.faithfulness(name)),
        _signed(study.faithfulness_difference(name, "dense")) if compared else "",
        f"{study.likeness(name, 'psnr').value:.2f} dB" if compared else "",
        f"{study.likeness(name, 'ssim').value:.3f}" if compared else "",
        _short(study.energy(name, "dense")) if compared else "", _short(study.energy(name, RENDER)),
    ]  # fmt: skip


def _pictures(result: dict[str, Any]) -> str:
    return "\n\n".join([
        f"![Score and texture of every method against drawing time](images/{image_name(result, PLOT)})",
        f"![Some prompts drawn by every method](images/{image_name(result, GRID)})",
    ])  # fmt: skip


def _pairs(study: Study) -> str:
    body = []
    for name in study.mosses:
        for title, rival in study.rivals(name).items():
            difference, textured = study.difference(name, rival), study.textured_difference(name, rival)
            both = study.faithfulness_difference(name, rival)
            body.append([
                name, _rival(title, rival), _time(study.seconds(name)), _time(_seconds(study, rival)), _signed(difference),
                _verdict(difference),
                _signed(textured), _verdict(textured), _signed(both), _verdict(both), _short(study.energy(name, rival)),
            ])  # fmt: skip
    head = ["method", "rival", "drawing", "rival's drawing", "score minus the rival's", "verdict",
            "texture shown minus the rival's", "verdict", "with textures minus the rival's", "verdict",
            "texture energy against the rival's"]  # fmt: skip
    return _table(head, body)


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
    variants = {base: [f"{base}{end}" for end in ("-sa", "-unguided", "-sa-unguided")] for base in study.mosses}
    found = {base: [name for name in study.methods if name in names] for base, names in variants.items()}
    return {base: names for base, names in found.items() if names}


def _ablation(study: Study, ablated: dict[str, list[str]]) -> str:
    body = []
    for base, variants in ablated.items():
        for name in (base, *variants):
            whole = name == base
            body.append([
                name, _part(name), _time(study.seconds(name)), _interval(study.score(name)),
                "" if whole else _signed(study.difference(name, base)), _interval(study.textured(name)),
                "" if whole else _signed(study.textured_difference(name, base)),
                f"{study.likeness(name, 'psnr').value:.2f} dB", _short(study.energy(name, RENDER)),
            ])  # fmt: skip
    head = ["method", "refine step", "drawing", "score", "minus the whole's", "texture shown", "minus the whole's",
            "PSNR to dense", "texture energy against truth"]  # fmt: skip
    return _table(head, body)


def _part(name: str) -> str:
    options = name.split("-")[1:]
    attention = "SA" if "sa" in options else "CSSA"
    return f"{attention}, no guidance" if "unguided" in options else attention


def _kernels(benchmarks: Sequence[dict[str, Any]]) -> str:
    """The table's last row, CSSA + kernels: a matter of time alone, from `bench` on GPUs."""
    text = "Kernels change a picture by no more than rounding, so their row is one of time alone, measured by `bench` on a GPU"
    body = [
        [result["hardware"]["device"], result["setting"]["shape"], row["label"], _time(row["drawing_s"]["median"])]
        for result in benchmarks if "capability" in result["hardware"] for row in result["ablation"]
    ]  # fmt: skip
    if not body:
        return f"{text}; none is stored yet."
    return f"{text}:\n\n{_table(['GPU', 'model', 'method', 'drawing'], body)}"


def _correlation_text() -> str:
    return (
        "Does the draft's frequency tell where late scales have work to do? Pearson's r, over the places of a picture, of the "
        "draft's frequency and the length of the codes that dense's last k scales added; its mean over prompts "
        f"(the paper finds {PAPER_CORRELATION} on its model):"
    )


def _correlations(study: Study) -> str:
    body = []
    for k, values in study.result["correlation"].items():
        found, count = study.correlation(k)
        positive = sum(value > 0 for value in values) / count
        body.append([k, str(count), _signed(found), f"{100 * positive:.0f} %"])
    return _table(["k", "prompts", "r", "prompts with r above 0"], body)


# --- cells ------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _words(task: str) -> str:
    return task.replace("_", " ")


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _short(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _signed(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
