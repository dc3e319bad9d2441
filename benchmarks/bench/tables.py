"""Results as Markdown: one section a result, and the page of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
STAGES = {  # rows of the table of stages: which of the stages that `generate` tells apart
    "draft": ("draft",),
    "frequency, dispatch": ("frequency", "dispatch"),
    "refine": ("refine",),
    "composite": ("composite",),
}

INTRODUCTION = """# Performance

Every number on this page was measured by the command above its table and is written here by
`python -m comfy_moss bench --tables` from the files in `benchmarks/results/`; none is typed by hand.

## What the columns say

- **tokens**: tokens a picture that the transformer ran. **KV cache**: as really allocated. **peak memory**: most GPU memory
  allocated while drawing, weights of transformer and codec included.
- **drawing**: from the prompt's features to the sum of codes: all of the method, without text encoder and decoder.
  **end to end**: text encoder, drawing and decoder together. Median of the rounds, in brackets the interquartile range; CUDA
  events on a GPU, the wall clock on a CPU.
- **times as fast**: dense's time over this one's, each pair from one round, then the median. In every round all methods run
  once, in random order. It is left out where a check fails: before anything is timed, a small model must reproduce the exact
  limits (one refine scale with bound 100 is dense's last step; a draft of all scales is the plain model) and the logits of
  plain float32 on the CPU, on the very device, precision and kernels that are measured.
- **FLOP**: floating-point operations of the transformer's blocks by arithmetic, both rows of guidance counted: their matrices,
  and self-attention's scores and values; attention over the text, embedding, head, frequency map and codec are not counted.
- **of roofline**: the least time those operations, and the bytes of weights and KV cache, would take, over the measured time. A
  forward pass cannot take less than the longer of operations over ceiling and bytes over ceiling; passes follow one another. The
  ceilings are what a large matrix product and a large copy reached on the same machine just before.
- **launches in refine**: kernels, copies and fills that the GPU is given for the transformer's pass of the refine step; a CUDA
  graph is given as one. With graphs no peak memory is told, since they keep memory between pictures.
- **draft-k** skips the last k scales and refines nothing. It is what **moss-k** starts from and the rival it has to beat, so it
  stands beside it in every table. Bounds are the paper's, for every model. These tables tell speed, not quality.
- The values of the weights do not change the time, so the released shapes have random ones.
"""


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole of docs/performance.md."""
    sections = [section(result) for result in results] or ["No result is stored yet.\n"]
    return "\n".join([INTRODUCTION, *sections])


def section(result: dict[str, Any]) -> str:
    """One result: how it was measured, and its tables."""
    setting = result["setting"]
    guidance = "with guidance" if setting["guided"] else "without guidance"
    heading = f"{setting['shape']}, {setting['width']} x {setting['height']}, {setting['precision']}, {guidance}"
    parts = [f"## {heading}: {result['hardware']['device']}", _conditions(result), _rows(result["methods"]), _stages(result)]
    if result["ablation"]:
        parts.append("The parts of one method, one change a row (the paper's Table 2 is the rows up to the kernels):")
        parts.append(_rows(result["ablation"]))
    return "\n\n".join(parts) + "\n"


def _conditions(result: dict[str, Any]) -> str:
    hardware, setting, ceilings = result["hardware"], result["setting"], result["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    busy = "" if hardware["load_average"] is None else f", load average {hardware['load_average']:g} before"
    return "\n".join([
        f"    {result['command']}",
        "",
        f"- {result['date'][:10]}; {hardware['processor']}, cores: {hardware['cores']}, threads: {hardware['threads']}{busy}",
        f"- {versions}",
        f"- weights: {setting['weights']}, {setting['parameters'] / 1e6:.1f} million in the transformer, "
        f"{_memory(setting['weight_bytes'])} with the codec; {len(setting['grids'])} scales; prompt of "
        f"{setting['prompt_tokens']} tokens",
        f"- rounds: {setting['runs']}, after {setting['warmup']} to warm up; kernels: {setting['backend_reason']}"
        + (", replayed as CUDA graphs" if setting.get("graphs") else ""),
        f"- ceilings: {_prefixed(ceilings['flops'])}FLOP/s, {_prefixed(ceilings['bandwidth'])}B/s ({ceilings['how']})",
        f"- {_checks(result)}",
    ])  # fmt: skip


def _checks(result: dict[str, Any]) -> str:
    failed = [limit for limit in result["limits"] if not limit["passed"]]
    if not failed:
        return f"checks: all {len(result['limits'])} hold"
    told = "; ".join(f"{c['name']} ({c['kernels']}): {c['error']:.3g}, allowed {c['allowed']:g}" for c in failed)
    return f"**no speed-up is told, because checks fail on this very device: {told}**"


def _rows(rows: Sequence[Row]) -> str:
    """A table of variants; a column that this device or these checks have nothing for is left out."""
    columns: dict[str, Callable[[Row], str]] = {
        "method": lambda row: row["label"],
        "tokens": lambda row: str(row["tokens"]),
        "KV cache": lambda row: _memory(row["kv_bytes"]),
        "FLOP": lambda row: _prefixed(row["flops"]),
        "drawing": lambda row: _spread(row["drawing_s"]),
        "times as fast": lambda row: _times(row["times_as_fast"]),
        "end to end": lambda row: _spread(row["end_to_end_s"]),
        "times as fast, end to end": lambda row: _times(row["times_as_fast_end_to_end"]),
        "of roofline": lambda row: f"{100 * row['roofline_share']:.0f} %",
        "peak memory": lambda row: _memory(row["peak_bytes"]),
        "launches in refine": lambda row: str(row["refine_launches"] or "one graph"),
    }
    if any(row["peak_bytes"] is None for row in rows):
        del columns["peak memory"]
    if all(row.get("refine_launches") is None for row in rows):
        del columns["launches in refine"]
    if any(row["times_as_fast"] is None for row in rows):
        del columns["times as fast"], columns["times as fast, end to end"]
    return _table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _stages(result: dict[str, Any]) -> str:
    """A column for dense and for every MoSs, a row for every stage."""
    rows = [row for row in result["methods"] if row["label"] == "dense" or row["label"].startswith("moss")]
    body = [["text encoder", *(_time(result["text_s"]["median"]) for _ in rows)]]
    for name, parts in STAGES.items():
        body.append([name, *(_time(sum(row["stages_s"][part] for part in parts)) for row in rows)])
    body.append(["decoder", *(_time(result["decode_s"]["median"]) for _ in rows)])
    title = "Where the time goes, stage by stage (medians; dense has no stage but the draft):"
    return f"{title}\n\n{_table(['stage', *(row['label'] for row in rows)], body)}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(value: dict[str, float | None]) -> str:
    """Median and, of several rounds, the interquartile range."""
    return _time(value["median"]) + ("" if value["iqr"] is None else f" ({_time(value['iqr'])})")


def _times(value: dict[str, float | None]) -> str:
    return f"{value['median']:.2f}"


def _time(seconds: float) -> str:
    """Three digits, in ms below ten seconds; nothing for a stage that did not run."""
    if seconds == 0:
        return ""
    return f"{_digits(seconds)} s" if seconds >= 10 else f"{_digits(1000 * seconds)} ms"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _memory(size: int) -> str:
    return f"{_digits(size / 2**30)} GiB" if size >= 2**30 else f"{_digits(size / 2**20)} MiB"


def _prefixed(value: float) -> str:
    """With the prefix of a unit."""
    size, prefix = next(((10**power, prefix) for power, prefix in ((12, "T"), (9, "G")) if value >= 10**power), (10**6, "M"))
    return f"{_digits(value / size)} {prefix}"
