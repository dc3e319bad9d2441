"""Cells and tables of the pages, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .analysis import Interval

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
