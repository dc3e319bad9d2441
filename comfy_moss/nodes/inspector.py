"""What the inspector in the browser gets to see."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..pipeline.dispatch import DispatchConfig
from ..pipeline.inspection import inspection
from .values import Drafted


def inspector(
    kind: str, drafted: Drafted, frequency: Tensor, config: DispatchConfig, painted: Tensor | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The `ui` of a node that shows the inspector; `js/` draws it.

    Args:
        kind: "frequency" or "dispatch".
    """
    kv_bytes = drafted.cost.kv_bytes
    data = inspection(frequency, drafted.schedule, config, drafted.model.backbone.work, kv_bytes, painted)
    pictures = ui.ImageSaveHelper.save_images(drafted.sketch, "MoSs", io.FolderType.temp, None)
    return {"moss_inspector": [{**data, "kind": kind, "pictures": [dict(picture) for picture in pictures]}]}
