"""Which methods are measured beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comfy_moss.model.backbone import PAPER, Published
from comfy_moss.ops import TORCH, Kernels
from comfy_moss.pipeline.plan import Method, Plan, parse_method

ABLATED = 4  # k of the ablation, where it is measured: the default method's


@dataclass(frozen=True)
class Variant:
    """A method with the kernels it runs on, as CUDA graphs or not, under the name that tables give it."""

    label: str
    method: Method
    kernels: Kernels
    graphs: bool = False

    @property
    def run(self) -> str:
        """What is run: the same for two variants that differ in their label alone."""
        passes = self.method.passes if isinstance(self.method, Plan) else ()
        options = ["SA"] * any(not step.cross_scale for step in passes)
        options += ["no guidance in refine"] * any(not step.guided for step in passes)
        return ", ".join([self.method.label, *options, self.kernels.name, *["graphs"] * self.graphs])


def parse_methods(text: str, published: Published = PAPER) -> tuple[Method, ...]:
    """Methods from a list such as "dense,draft-2,fastvar,moss4", in the order of the tables.

    Dense is always among them, being the yardstick, and beside every MoSs-k the draft it started from, its honest rival:
    the same scales skipped and nothing refined.

    Args:
        published: settings as printed for the model's family.

    Raises:
        ValueError: a name is unknown, or the list is empty.
    """
    named = [parse_method(name, published=published) for name in text.split(",") if name.strip()]
    if not named:
        raise ValueError("no methods are named; list some, for example dense,moss4")
    rivals = [Plan(method.draft) for method in named if isinstance(method, Plan) and method.passes]
    return tuple(sorted({Plan(0), *named, *rivals}, key=_place))


def _place(method: Method) -> tuple[int, int, str]:
    """Dense, then FastVAR, then by k the draft before what refines it."""
    return {"dense": 0, "fastvar": 1}.get(method.name, 2), method.k, method.name


def _changed(plan: Plan, **changes: object) -> Plan:
    """The plan with other settings in all of its passes."""
    return replace(plan, passes=tuple(replace(step, **changes) for step in plan.passes))


def ablation(methods: Sequence[Method], kernels: Kernels, guided: bool, graphs: bool = False) -> tuple[Variant, ...]:
    """The paper's ablation (Table 2) for one k, one change a row; none without a MoSs.

    Args:
        kernels: what the methods are measured on; where that is plain torch, the row of the kernels is missing.
        guided: also add the option to run the refine step without guidance.
        graphs: also add CUDA graphs.
    """
    refining = [method for method in methods if method.name == "moss"]
    if not refining:
        return ()
    method = next((m for m in refining if m.k == ABLATED), refining[-1])
    rows = [
        Variant(f"{method.label}, SA", _changed(method, cross_scale=False), TORCH),
        Variant(f"{method.label}, CSSA", method, TORCH),
    ]
    if kernels != TORCH:
        rows.append(Variant(f"{method.label}, CSSA + kernels", method, kernels))
    if graphs:
        rows.append(replace(rows[-1], label=f"{rows[-1].label} + graphs", graphs=True))
    if guided:
        last = rows[-1]
        rows.append(replace(last, label=f"{last.label}, no guidance in refine", method=_changed(method, guidance=1.0)))
    return tuple(rows)
