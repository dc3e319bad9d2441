"""The names of methods on the command line and in tables."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ..pipeline.generate import Method, parse_method

DRAFTS = range(1, 6)
_VARIANTS: dict[str, dict[str, Any]] = {"sa": {"cross_scale": False}, "unguided": {"guidance": False}}
_NAME = re.compile(rf"(draft)-(\d+)|(moss\d+)((?:-(?:{'|'.join(_VARIANTS)}))*)")


def parse_methods(text: str) -> dict[str, Method]:
    """Methods by name, in the order of the tables, from a list such as "dense,draft,fastvar,moss4,moss4-sa".

    `draft` stands for draft-1 to draft-5, `-sa` for a refine step without cross-scale attention, `-unguided` for one without
    guidance.  Dense is always among them, being the yardstick, and beside every MoSs-k the draft-k it started from.

    Raises:
        ValueError: a name is unknown, or the list is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("no methods are named; list some, for example dense,draft,moss4")
    named = [m for name in names for m in ([Method("draft", skip=k) for k in DRAFTS] if name == "draft" else [_parse(name)])]
    rivals = [Method("draft", skip=method.k) for method in named if method.name == "moss"]
    return {label(method): method for method in sorted({Method("dense"), *named, *rivals}, key=_place)}


def label(method: Method) -> str:
    """The name again: "draft-3", "moss4-sa-unguided"."""
    options = {"sa": not method.cross_scale, "unguided": not method.guidance}
    return "-".join([method.label, *(name for name, chosen in options.items() if chosen)])


def _parse(name: str) -> Method:
    found = _NAME.fullmatch(name)
    if not found:
        return parse_method(name)
    if found[1]:
        return parse_method("draft", skip=int(found[2]))
    options = {key: value for part in found[4].split("-") if part for key, value in _VARIANTS[part].items()}
    return replace(parse_method(found[3]), **options)


def _place(method: Method) -> tuple[int, int, str, int]:
    """Dense, then FastVAR, then by k the draft before what refines it."""
    first = {"dense": 0, "fastvar": 1}.get(method.name, 2)
    return first, method.k, method.name, 2 * (not method.guidance) + (not method.cross_scale)
