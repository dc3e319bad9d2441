"""Budget: the plan for a share of dense's work, or for seconds, among those with stored evidence.

`calibrate` chose them, or `evaluate` measured them, on one model and schedule.  Another model is offered them
too, and told so: what a plan costs there is arithmetic, how good it is there nobody has measured.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..images import write_files
from ..model.backbone import Backbone
from ..model.found import FoundPlan, found_plans
from ..model.schedule import Schedule
from .draft import Recipe
from .plan import OnScale, Plan, generate, parse_plan, share_of_dense


@dataclass(frozen=True)
class Offer:
    """A plan for a model and a schedule.

    Attributes:
        work: multiply-adds as a share of dense's, here.
        found: where it comes from.
        own: whether it was found on this model and this number of scales.
        seconds: that a batch took on this machine; None = not measured.
    """

    plan: Plan
    work: float
    found: FoundPlan
    own: bool
    seconds: float | None = None

    @property
    def note(self) -> str:
        """What it is, in a line."""
        found, timed = self.found, "" if self.seconds is None else f", {self.seconds:.2g} s"
        told = f"{found.name}: {self.plan}; {100 * self.work:.0f} % of dense's work{timed}"
        if self.own:
            return f"{told}, scored {found.score:.2f} [{found.low:.2f}, {found.high:.2f}]"
        return f"{told}; found on {found.model} with {found.scales} scales, not on this model"


def offers(
    backbone: Backbone, schedule: Schedule, guided: bool, model: str, known: Sequence[FoundPlan] | None = None
) -> list[Offer]:
    """What can be offered, cheapest first: the plans of this very model and schedule, else nano's nearest.

    Args:
        guided: whether the recipe asks for guidance.
        model: its name.
        known: the plans; None = all that were chosen.
    """
    known = found_plans() if known is None else known
    size = len(schedule)
    own = [one for one in known if (one.model, one.scales) == (model, size)]
    nanos = [one for one in known if one.model == "nano"]
    nearest = min((one.scales for one in nanos), key=lambda scales: abs(scales - size), default=0)
    made = []
    for one in own or [one for one in nanos if one.scales == nearest]:
        plan = parse_plan(one.text) if own else elsewhere(parse_plan(one.text))
        if plan.k < size:
            work = share_of_dense(plan, schedule, backbone.work, guided, backbone.depth)
            made.append(Offer(plan, work, one, bool(own)))
    return sorted(made, key=lambda offer: offer.work)


def elsewhere(plan: Plan) -> Plan:
    """A plan for another model than it was found on: the draft's strength is that one's own (nano scores as
    well without guidance, released models are published with it), and passes without guidance stay so.
    """
    passes = tuple(replace(p, guidance=p.guidance if p.guidance == 1 else None) for p in plan.passes)
    return replace(plan, passes=passes, guidance=None)


def plan_for(budget: float, known: Sequence[Offer]) -> Offer:
    """The best plan that takes at most this share of dense's multiply-adds.

    Args:
        known: by `offers`.

    Raises:
        ValueError: the budget is no share, or no known plan takes so little.
    """
    check_budget(budget)
    least = f"the cheapest takes {known[0].work:.2g}" if known else "none was found yet"
    return _best(
        [offer for offer in known if offer.work <= budget],
        f"no plan is known that takes {budget:g} of dense's work or less; {least}",
    )


def check_budget(budget: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: as said.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"a budget is a share of dense's work above 0 and up to 1, got {budget:g}; try 0.2")


def plan_within(
    seconds: float, known: Sequence[Offer], measure: Callable[[Plan], float], times: Path, key: str
) -> Offer:
    """The best plan that takes at most so long.

    Args:
        known: by `offers`.
        measure: plan -> seconds here; called once a machine for each plan that may fit.
        times: file of what was measured before; key: of this model, device, precision, size and batch.

    Raises:
        ValueError: even the cheapest takes longer, or none is known.
    """
    timed: list[Offer] = []
    for offer in known:  # cheapest first: what follows one that is too slow is too slow
        timed.append(replace(offer, seconds=_known_seconds(offer.plan, measure, times, key)))
        if timed[-1].seconds > seconds:
            break
    least = f"the cheapest takes {timed[0].seconds:.2g} s" if timed else "none was found yet"
    return _best(
        [offer for offer in timed if offer.seconds <= seconds],
        f"no plan is known that takes {seconds:g} s or less here; {least}",
    )


def _best(fitting: Sequence[Offer], otherwise: str) -> Offer:
    if not fitting:
        raise ValueError(otherwise)
    return max(fitting, key=lambda offer: (offer.found.score, -offer.work))


def seconds_of(
    backbone: Backbone, recipe: Recipe, plan: Plan, on_scale: OnScale | None = None
) -> float:
    """That a batch takes here, with its decoder; the first run is not counted."""
    return [generate(backbone, recipe, plan, on_scale).cost.total_seconds for _ in range(2)][1]


def place_of(backbone: Backbone, recipe: Recipe, dtype: torch.dtype) -> str:
    """All that decides how long a plan takes on this machine; dtype: of the weights."""
    device, last = backbone.device, "x".join(map(str, recipe.schedule.grids[-1]))
    cuda = device.type == "cuda"
    chip = torch.cuda.get_device_name(device) if cuda else f"{torch.get_num_threads()} threads"
    guided = "guided" if recipe.guidance.active(len(recipe.schedule)) else "unguided"
    what = (backbone.model_id, last, guided, str(dtype), f"batch {len(recipe.seeds)}")
    return ", ".join([platform.node(), str(device), chip, torch.__version__, *what])


def times_file() -> Path:
    """Where this machine's times are kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "comfy_moss" / "seconds.json"


def _known_seconds(plan: Plan, measure: Callable[[Plan], float], times: Path, key: str) -> float:
    """From the file, or measured and written there."""
    known = _read(times)
    name = f"{key}: {plan}"
    if name not in known:
        known = {**known, name: round(measure(plan), 4)}
        write_files({times: (json.dumps(known, indent=1) + "\n").encode()})
    return known[name]


def _read(times: Path) -> Mapping[str, float]:
    """What was measured; nothing where the file is missing or holds something else."""
    try:
        known = json.loads(times.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
