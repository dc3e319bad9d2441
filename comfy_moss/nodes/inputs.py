"""What reaches a node, checked before it runs: kinds and ranges as its schema says.

The host checks widgets, but not what comes along a wire or from another pack, and it lets values through that are
no numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .host import MossModel
from .wires import Dispatched, Drafted, Measured, Refined

MENUS = ("model", "vae", "text_encoder")  # of files: a choice that is gone is told by the loader
SOURCES = {  # kind of wire -> its Python type, and the node that makes it
    "MOSS_MODEL": (MossModel, "a loader of this pack"),
    "MOSS_DRAFT": (Drafted, "Infinity Draft"),
    "MOSS_FREQUENCY": (Measured, "Frequency Map"),
    "MOSS_DISPATCH": (Dispatched, "Token Dispatch"),
    "MOSS_RESIDUAL": (Refined, "MoSs Refine"),
    "IMAGE": (Tensor, "a node with an IMAGE output"),
    "MASK": (Tensor, "a node with a MASK output"),
    "LATENT": (dict, "a node with a LATENT output"),
    "CONDITIONING": (list, "CLIP Text Encode"),
    "STRING": (str, "a node with a STRING output"),
    "BOOLEAN": (bool, "a node with a BOOLEAN output"),
}


class MossNode(io.ComfyNode):
    """A node whose `execute` sees checked inputs only."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = vars(cls).get("execute")
        if own is not None and not hasattr(own.__func__, "__wrapped__"):  # the host's locked copies have it already
            cls.execute = classmethod(_checked(own.__func__))


def _checked(run: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @functools.wraps(run)
    def execute(cls: type[MossNode], **inputs: Any) -> io.NodeOutput:
        sockets = {socket.id: socket for socket in cls.define_schema().inputs}
        ready = {name: _ready(sockets[name], value) if name in sockets else value for name, value in inputs.items()}
        if missing := [name for name, socket in sockets.items() if ready.get(name) is None and not socket.optional]:
            raise ValueError(f"the input {missing[0]} has no value; wire it, or set it")
        return run(cls, **ready)

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
    wanted, source = SOURCES.get(kind, (object, ""))
    if not isinstance(value, wanted) or (kind == "LATENT" and not isinstance(value.get("samples"), Tensor)):
        raise ValueError(f"the input {socket.id} got {_shown(value)}, which is no {kind}; wire it to {source}")
    return value


def _number(socket: Any, value: Any, whole: bool) -> int | float:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) and whole or (whole and value != int(value)):
        raise ValueError(f"{socket.id} is {_shown(value)}; give it a {'whole ' if whole else ''}number")
    if not socket.min <= value <= socket.max:
        raise ValueError(f"{socket.id} must lie between {socket.min:g} and {socket.max:g}, got {_shown(value)}")
    return int(value) if whole else float(value)


def _shown(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, (str, int, float, bool)):
        text = repr(value)
        return text if len(text) < 60 else f"{text[:56]}..."
    return f"a {type(value).__name__}"
