"""What `calibrate` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..bootstrap import Interval
from .compare import Row
from .order import Order, Result
from .trials import Bounds


def table(order: Order, result: Result) -> str:
    """The bounds that were found, and how they stand at equal tokens."""
    found, rows = result.found, result.rows
    head = (
        f"{order.metric} on {len(order.prompts)} prompts: {found.reference:.4g} with all tokens redrawn at the finest scale, "
        f"{found.value:.4g} with the {result.tokens} refine tokens a picture of\n"
        f"--bounds {_numbers(found.bounds)}"
    )
    title = f"{'at equal tokens':<15} {'bounds':<28} {'tokens':>6}  {order.metric:<24} against {rows[0].name}"
    return "\n".join([head, "", title, *map(_line, rows)])


def _line(row: Row) -> str:
    gain = _interval(row.gain, "+") if row.gain else ""
    return f"{row.name:<15} {_numbers(row.bounds):<28} {row.tokens:>6}  {_interval(row.value):<24} {gain}".rstrip()


def _numbers(bounds: Bounds) -> str:
    return ",".join(f"{round(bound, 2):g}" for bound in bounds)


def _interval(of: Interval, sign: str = "") -> str:
    return f"{of.value:{sign}.4g} [{of.low:{sign}.4g}, {of.high:{sign}.4g}]"


def facts(order: Order, result: Result) -> dict[str, Any]:
    """The same for --json."""
    setting = {"metric": order.metric, "prompts": len(order.prompts), **asdict(order.config), "tokens": order.tokens}
    found = {**asdict(result.found), "tokens": result.tokens}
    return {"setting": setting, "found": found, "equal_tokens": [asdict(row) for row in result.rows]}
