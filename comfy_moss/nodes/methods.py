"""Methods: what the menu of MoSs Draft stands for, a plan by name or the best one within a budget, and how
much of it a graph runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..model.backbone import Published
from ..pipeline.budget import Offer, offers, place_of, plan_for, plan_within, seconds_of, times_file
from ..pipeline.draft import Recipe
from ..pipeline.plan import Plan, parse_method
from .host import MossModel, Note, Progress

RECOMMENDED, CUSTOM, BUDGET, SECONDS = "recommended", "custom", "by budget", "by seconds"
METHODS = (RECOMMENDED, "sparse3", "sparse4", "moss2", "moss3", "moss4", "moss5", BUDGET, SECONDS, CUSTOM)


def budget_input() -> io.Float.Input:
    return io.Float.Input(
        "budget", default=0.2, min=0.01, max=1.0, step=0.01, optional=True,
        tooltip="For the method by budget: the picture may take at most this share of the plain model's "
        "work. Among plans whose quality was measured, the best that fits is taken.",
    )


def seconds_input() -> io.Float.Input:
    return io.Float.Input(
        "seconds", default=2.0, min=0.1, max=3600.0, step=0.1, optional=True,
        tooltip="For the method by seconds: drawing and decoding may take so long on this machine. Every "
        "plan that may fit is timed once, which makes the first run slower.",
    )


@dataclass(frozen=True)
class Choice:
    """What the artist set.

    Attributes:
        budget: share of dense's work, for BUDGET; seconds: for SECONDS.
    """

    method: str
    budget: float = 0.2
    seconds: float = 2.0


def plan_chosen(
    model: MossModel, recipe: Recipe, choice: Choice, hidden: Any
) -> tuple[Plan | None, list[Note]]:
    """The plan that a choice stands for (None = refine_scales says how many scales are left), and what the
    node tells of it.

    Args:
        hidden: see `passes_behind`: no plan with more passes than the graph runs is chosen.

    Raises:
        ValueError: a method that is not known for this model, or no plan is within the budget.
    """
    if choice.method not in (BUDGET, SECONDS):
        return plan_named(choice.method, model.backbone.published.on(recipe.schedule)), []
    guided = recipe.guidance.active(len(recipe.schedule))
    known = offers(model.backbone, recipe.schedule, guided, Path(model.files.name).name)
    most = max(1, passes_behind(hidden))
    known = [offer for offer in known if 1 <= len(offer.plan.passes) <= most]  # the nodes behind refine
    if choice.method == BUDGET:
        offer = plan_for(choice.budget, known)
    else:
        offer = _within(model, recipe, known, choice.seconds)
    values = {"plan": str(offer.plan), "work": f"{100 * offer.work:.0f}", "scales": offer.found.scales}
    key = "chosen" if offer.own else "chosen.elsewhere"
    return offer.plan, [Note(key, f"Plan {offer.note}.", values)]


def plan_named(method: str, published: Published) -> Plan | None:
    """The plan that a name in the menu stands for; None = refine_scales says how many scales are left.

    Raises:
        ValueError: a method that is not known for this model.
    """
    if method == CUSTOM:
        return None
    return parse_method(published.method if method == RECOMMENDED else method, published=published)


def _within(model: MossModel, recipe: Recipe, known: list[Offer], seconds: float) -> Offer:
    schedule = recipe.schedule
    rows = len(recipe.seeds) * (2 if recipe.guidance.active(len(schedule)) else 1)
    largest = schedule.tokens(len(schedule) - 1)
    progress = Progress(model, len(schedule))

    def measure(plan: Plan) -> float:
        model.load(schedule.tokens(0, len(schedule) - 1), rows, largest)
        return seconds_of(model.backbone, recipe, plan, progress)

    place = place_of(model.backbone, recipe, next(model.patcher.model.parameters()).dtype)
    return plan_within(seconds, known, measure, times_file(), place)


# --- what the graph runs ------------------------------------------------------------------------------------


def passes_behind(hidden: Any) -> int:
    """How many MoSs Refine nodes lie one behind the other after a node, most of any way; 0 where that cannot
    be told.

    Args:
        hidden: the node's hidden inputs: the graph as it was queued, and the node's name in it.
    """
    prompt, node = getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None)
    if not prompt or node is None:
        return 0
    behind: dict[str, list[str]] = {}
    for name, found in prompt.items():
        links = {str(v[0]) for v in found.get("inputs", {}).values() if isinstance(v, list) and v}
        for source in links:
            behind.setdefault(source, []).append(name)

    def longest(source: str) -> int:
        refines = (prompt[name].get("class_type") == "MoSs_Refine" for name in behind.get(source, ()))
        ways = zip(refines, map(longest, behind.get(source, ())), strict=True)
        return max((refine + rest for refine, rest in ways), default=0)

    return longest(str(node))


def another_pass_follows(hidden: Any) -> bool:
    """Whether in this graph the output of a MoSs Refine node comes to another one, so that its tokens' keys
    and values are worth their memory.  Where that cannot be told: no; the pass is then run again when it is
    needed.
    """
    return passes_behind(hidden) > 0
