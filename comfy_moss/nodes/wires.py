"""The wires between the nodes: their sockets, and what travels along them.

All of it is plain and small: no KV cache, no GPU tensor.  The host prints every input when a node fails,
hence the short __repr__s.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ..model.backbone import Published
from ..model.schedule import Schedule
from ..model.tensors import CheckpointError
from ..pipeline.cost import Cost
from ..pipeline.dispatch import Dispatch, RefinePass
from ..pipeline.draft import Draft, Residual
from ..pipeline.plan import Plan
from .host import MossModel, seconds_in_queue
from .memory import SMALLER, guarded, stores_in

CATEGORY = "MoSs"

Model = io.Custom("MOSS_MODEL")
DraftIO = io.Custom("MOSS_DRAFT")
FrequencyIO = io.Custom("MOSS_FREQUENCY")
DispatchIO = io.Custom("MOSS_DISPATCH")
ResidualIO = io.Custom("MOSS_RESIDUAL")
# Every wire of the chain carries all that came before it, so what a node needs may come from any earlier one.
# That is how a node can be bypassed: the host then wires its first input of a fitting kind through.
STAGES = ("MOSS_DRAFT", "MOSS_FREQUENCY", "MOSS_DISPATCH", "MOSS_RESIDUAL")


def stage(first: str) -> Any:
    """The kind of an input of the chain: what it is meant for, or any other stage."""
    return io.Custom(",".join(dict.fromkeys((first, *STAGES))))


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
        plan: the method it is drawn by, where that was chosen by name; scales counted from the end.
    """

    model: MossModel
    draft: Draft
    sketch: Tensor
    pictures: list[dict[str, Any]]
    cost: Cost
    plan: Plan | None = None

    @property
    def drafted(self) -> Drafted:
        """Itself, as of the later stages."""
        return self

    @property
    def next_pass(self) -> RefinePass | None:
        """What the method does next; None = nothing, or the method was not chosen by name."""
        passes = self.plan.passes[len(self.draft.passes) :] if self.plan else ()
        return passes[0] if passes else None

    @property
    def schedule(self) -> Schedule:
        return self.draft.recipe.schedule

    @property
    def published(self) -> Published:
        """Settings of the methods for this model and schedule."""
        return self.model.backbone.published.on(self.schedule)

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
        pictures = f"{len(self.draft.total)} picture(s)"
        return f"a draft of {self.draft.scales} of {len(self.schedule)} scales{passes}, {pictures}"


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
            f"the {what} was made from {other}, the draft is {drafted} of another shape; wire both to one "
            "MoSs Draft"
        )


def latent(total: Tensor, cost: Cost) -> dict[str, Any]:
    """A LATENT for the host's VAE nodes: the sum of codes (B, c, H, W), with what it took for MoSs Report."""
    samples = total.to("cpu", torch.float32)
    return {"samples": samples, "moss_cost": replace(cost, queue_to_latent=seconds_in_queue())}


def same_draft(draft: Drafted | None, other: Any, what: str) -> Drafted:
    """The draft that another part of a picture was made from; one that is wired must be of the same shape.

    Raises:
        ValueError: it is of another shape.
    """
    if draft is not None:
        check_same_shape(draft, other.drafted, what)
    return draft or other.drafted


# --- inputs, checked before a node runs ---------------------------------------------------------------------

# What reaches a node, checked before it runs: kinds and ranges as its schema says.
#
# The host checks widgets, but not what comes along a wire or from another pack, and it lets values through
# that are no numbers.

MENUS = ("model", "vae", "text_encoder", "lora")  # of files: a choice that is gone is told by the loader
SOURCES = {  # kind of wire -> its Python type, and the node that makes it
    "MOSS_MODEL": (MossModel, "a loader of this pack"), "MOSS_DRAFT": (Drafted, "MoSs Draft"),
    "MOSS_FREQUENCY": (Measured, "MoSs Frequency Map"), "MOSS_DISPATCH": (Dispatched, "MoSs Token Dispatch"),
    "MOSS_RESIDUAL": (Refined, "MoSs Refine"), "IMAGE": (Tensor, "a node with an IMAGE output"),
    "MASK": (Tensor, "a node with a MASK output"), "LATENT": (dict, "a node with a LATENT output"),
    "CONDITIONING": (list, "CLIP Text Encode"), "STRING": (str, "a node with a STRING output"),
    "BOOLEAN": (bool, "a node with a BOOLEAN output"),
    "VAE": (comfy.sd.VAE, "the loader that made the pictures"),
}


class MossNode(io.ComfyNode):
    """A node whose `execute` sees checked inputs only."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls).get("execute")
        # the host's locked copies have it already
        if own is not None and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_checked(own.__func__))


def _checked(run: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @functools.wraps(run)
    def execute(cls: type[MossNode], **inputs: Any) -> io.NodeOutput:
        sockets = {socket.id: socket for socket in cls.define_schema().inputs}
        ready = {
            name: _ready(sockets[name], value) if name in sockets else value for name, value in inputs.items()
        }
        if missing := [
            name for name, socket in sockets.items() if ready.get(name) is None and not socket.optional
        ]:
            raise ValueError(f"the input {missing[0]} has no value; wire it, or set it")
        name = cls.define_schema().display_name
        sentence = f"the device has too little memory for {name}: {SMALLER}; finished drafts are kept"
        try:
            return guarded(lambda: run(cls, **ready), sentence, stores_in(ready.values()))
        except CheckpointError as error:  # the host shows the class with its module, which helps nobody
            raise ValueError(str(error)) from error

    return execute


def _ready(socket: Any, value: Any) -> Any:
    """A value as the node takes it.

    Raises:
        ValueError: it is of another kind, out of range, or no number.
    """
    if value is None:
        return None
    kind = socket.get_io_type()
    if kind in ("INT", "FLOAT"):
        return _number(socket, value, kind == "INT")
    if kind == "COMBO":
        if not isinstance(value, str) or (value not in socket.options and socket.id not in MENUS):
            raise ValueError(f"{socket.id} is {_shown(value)}; choose one of {', '.join(socket.options)}")
        return value
    kinds = kind.split(",")
    wanted, sources = zip(*(SOURCES.get(one, (object, "")) for one in kinds), strict=True)
    if not isinstance(value, wanted) or (kind == "LATENT" and not isinstance(value.get("samples"), Tensor)):
        raise ValueError(
            f"the input {socket.id} got {_shown(value)}, which is no {kinds[0]}; wire it to {sources[0]}"
        )
    return value


def _number(socket: Any, value: Any, whole: bool) -> int | float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) and whole or (whole and value != int(value)):
        raise ValueError(f"{socket.id} is {_shown(value)}; give it a {'whole ' if whole else ''}number")
    if not socket.min <= value <= socket.max:
        raise ValueError(
            f"{socket.id} must lie between {socket.min:g} and {socket.max:g}, got {_shown(value)}"
        )
    return int(value) if whole else float(value)


def _shown(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, (str, int, float, bool)):
        text = repr(value)
        return text if len(text) < 60 else f"{text[:56]}..."
    return f"a {type(value).__name__}"
