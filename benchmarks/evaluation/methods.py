"""The names of methods on the command line and in tables."""

from __future__ import annotations

from comfy_moss.model.backbone import PAPER, Published
from comfy_moss.pipeline.plan import Method, Plan, parse_method

DRAFTS = range(1, 6)


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
    drafts = [Plan(-k) for k in DRAFTS]
    parsed = [drafts if name == "draft" else [parse_method(name, published=published)] for name in names]
    named = [method for found in parsed for method in found]
    rivals = [Plan(method.draft) for method in named if isinstance(method, Plan) and method.passes]
    found = {label(method, published): method for method in (Plan(0), *named, *rivals)}
    return dict(sorted(found.items(), key=lambda item: _place(*item)))


def label(method: Method, published: Published = PAPER) -> str:
    """The name again: "draft-3", "moss4-paper-sa-unguided"."""
    if method.name != "moss":
        return method.label
    (step,) = method.passes
    printed = step.bounds != published.best.get(method.k)
    options = {"paper": printed, "sa": not step.cross_scale, "unguided": not step.guided}
    return "-".join([method.label, *(name for name, chosen in options.items() if chosen)])


def _place(name: str, method: Method) -> tuple[int, int, str, int, bool]:
    """Dense, then FastVAR, then by k the draft before what refines it."""
    first = {"dense": 0, "fastvar": 1}.get(method.name, 2)
    passes = method.passes if isinstance(method, Plan) else ()
    variant = sum(2 * (not step.guided) + (not step.cross_scale) for step in passes)
    return first, method.k, method.name, variant, "-paper" in name
