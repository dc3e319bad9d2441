"""What the nodes say about themselves: shared vocabulary of sockets and schemas."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io

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
