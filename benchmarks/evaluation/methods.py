"""The names of methods on the command line and in tables."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from comfy_moss.model.backbone import PAPER, Published
from comfy_moss.pipeline.generate import Method, parse_method

DRAFTS = range(1, 6)
_VARIANTS: dict[str, dict[str, Any]] = {"sa": {"cross_scale": False}, "unguided": {"guidance": False}}
_NAME = re.compile(rf"(draft)-(\d+)|(moss\d+)((?:-(?:paper|{'|'.join(_VARIANTS)}))*)")


def parse_methods(text: str, published: Published = PAPER) -> dict[str, Method]:
    """Methods by name, in the order of the tables, from a list such as "dense,draft,fastvar,moss4,moss4-sa".

    `draft` stands for draft-1 to draft-5, `-paper` for the paper's bounds where the model has its own, `-sa` for a refine step
    without cross-scale attention, `-unguided` for one without guidance.  Dense is always among them, being the yardstick, and
    beside every MoSs-k the draft-k it started from.

    Args:
        published: settings of the methods for the model.

    Raises:
        ValueError: a name is unknown, or the list is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("no methods are named; list some, for example dense,draft,moss4")
    drafts = [Method("draft", skip=k) for k in DRAFTS]
    named = [method for name in names for method in (drafts if name == "draft" else [_parse(name, published)])]
    rivals = [Method("draft", skip=method.k) for method in named if method.name == "moss"]
    found = {label(method, published): method for method in (Method("dense"), *named, *rivals)}
    return dict(sorted(found.items(), key=lambda item: _place(*item)))


def label(method: Method, published: Published = PAPER) -> str:
    """The name again: "draft-3", "moss4-paper-sa-unguided"."""
    printed = method.name == "moss" and method.bounds != published.best.get(method.k)
    options = {"paper": printed, "sa": not method.cross_scale, "unguided": not method.guidance}
    return "-".join([method.label, *(name for name, chosen in options.items() if chosen)])


def _parse(name: str, published: Published) -> Method:
    found = _NAME.fullmatch(name)
    if not found:
        return parse_method(name, published=published)
    if found[1]:
        return parse_method("draft", skip=int(found[2]))
    parts = found[4].split("-")[1:]
    options = {key: value for part in parts if part in _VARIANTS for key, value in _VARIANTS[part].items()}
    settings = replace(published, calibrated={}) if "paper" in parts else published
    return replace(parse_method(found[3], published=settings), **options)


def _place(name: str, method: Method) -> tuple[int, int, str, int, bool]:
    """Dense, then FastVAR, then by k the draft before what refines it."""
    first = {"dense": 0, "fastvar": 1}.get(method.name, 2)
    return first, method.k, method.name, 2 * (not method.guidance) + (not method.cross_scale), "-paper" in name
