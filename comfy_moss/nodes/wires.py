"""The wires between the nodes: their sockets, and what travels along them.

All of it is plain and small: no KV cache, no GPU tensor.  The host prints every input when a node fails, hence the short
__repr__s.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..model.schedule import Schedule
from ..pipeline.cost import Cost
from ..pipeline.dispatch import Dispatch, RefinePass
from ..pipeline.draft import Draft, Residual
from .host import MossModel, seconds_in_queue

CATEGORY = "MoSs"

Model = io.Custom("MOSS_MODEL")
DraftIO = io.Custom("MOSS_DRAFT")
FrequencyIO = io.Custom("MOSS_FREQUENCY")
DispatchIO = io.Custom("MOSS_DISPATCH")
ResidualIO = io.Custom("MOSS_RESIDUAL")


def schema(**settings: Any) -> io.Schema:
    """A schema of this pack; settings that an older host does not know are left out."""
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(category=CATEGORY, **{name: value for name, value in settings.items() if name in known})


@dataclass(frozen=True, repr=False)
class Drafted:
    """A draft, the model that drew it and what it took.

    Attributes:
        sketch: (B, h, w, 3) in [0, 1], the draft by the linear map, one pixel a cell of its map.
        pictures: where the host finds the sketch as files, as its web page names them.
    """

    model: MossModel
    draft: Draft
    sketch: Tensor
    pictures: list[dict[str, Any]]
    cost: Cost

    @property
    def schedule(self) -> Schedule:
        return self.draft.recipe.schedule

    @property
    def shape(self) -> tuple[Schedule, range, int, int]:
        """What parts of one picture have in common: scales, those that are left, passes so far and batch."""
        return self.schedule, self.draft.left, len(self.draft.passes), len(self.draft.total)

    @property
    def rows(self) -> int:
        """Batch rows of the model, unconditional ones included."""
        return len(self.draft.total) * (2 if self.draft.recipe.guidance.active(len(self.schedule)) else 1)

    def __repr__(self) -> str:
        passes = f" and {len(self.draft.passes)} refine pass(es)" if self.draft.passes else ""
        return f"a draft of {self.draft.scales} of {len(self.schedule)} scales{passes}, {len(self.draft.total)} picture(s)"


@dataclass(frozen=True, repr=False)
class Measured:
    """The frequency map of a draft, (B, H, W)."""

    drafted: Drafted
    frequency: Tensor
    cost: Cost

    def __repr__(self) -> str:
        return f"the frequency map of {self.drafted}"


@dataclass(frozen=True, repr=False)
class Dispatched:
    """Which tokens of a draft each refine scale redraws."""

    drafted: Drafted
    step: RefinePass
    dispatch: Dispatch
    cost: Cost

    def __repr__(self) -> str:
        return f"{sum(self.dispatch.counts)} tokens of {self.drafted}"


@dataclass(frozen=True, repr=False)
class Refined:
    """What the refine step drew."""

    drafted: Drafted
    residual: Residual
    cost: Cost

    def __repr__(self) -> str:
        return f"refined tokens of {self.drafted}"


def check_same_shape(drafted: Drafted, other: Drafted, what: str) -> None:
    """Refuse parts of differently shaped pictures.

    Raises:
        ValueError: aspect, size, drafted scales or batch differ.
    """
    if drafted.shape != other.shape:
        raise ValueError(
            f"the {what} was made from {other}, the draft is {drafted} of another shape; wire both to one Infinity Draft"
        )


def latent(total: Tensor, cost: Cost) -> dict[str, Any]:
    """A LATENT for the host's VAE nodes: the sum of codes (B, c, H, W), with what it took for MoSs Report."""
    samples = total.to("cpu", torch.float32)
    return {"samples": samples, "moss_cost": replace(cost, queue_to_latent=seconds_in_queue())}
