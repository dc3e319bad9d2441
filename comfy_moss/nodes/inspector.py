"""What the inspector in the browser gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pipeline.dispatch import DispatchConfig
from ..pipeline.inspection import inspection
from .values import Drafted


def inspector(
    kind: str, drafted: Drafted, frequency: Tensor, config: DispatchConfig, known: Mapping[str, Any],
    painted: Tensor | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The `ui` of a node that shows the inspector; `js/` draws it.

    Args:
        kind: "frequency" or "dispatch".
        known: by preset its bounds for this draft, or None.
    """
    backbone, kv_bytes = drafted.model.backbone, drafted.cost.kv_bytes
    data = inspection(frequency, drafted.schedule, config, backbone.work, kv_bytes, painted)
    pictures = ui.ImageSaveHelper.save_images(drafted.sketch, "MoSs", io.FolderType.temp, None)
    return {"moss_inspector": [{**data, "kind": kind, "known": dict(known), "pictures": [dict(picture) for picture in pictures]}]}
