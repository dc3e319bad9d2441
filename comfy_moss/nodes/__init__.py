"""ComfyUI's side: thin nodes around the pipeline, and the list of them.  The only folder that imports
ComfyUI.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from comfy_api.latest import ComfyExtension, io

from .. import __version__
from .compare import Compare
from .load import LoadHART, LoadInfinity, register_folders
from .lora import LoadLora
from .maps import ContributionMap, FrequencyMap, MossReport, TokenDispatch
from .pick import PickDrafts
from .pictures import EditDraft, ImageToDraft
from .sample import DenseRefine, FastVARRefine, InfinityDraft, MossComposite, MossRefine
from .tunes import Enlarge, InstructEdit, MatchPicture

NODES: list[type[io.ComfyNode]] = [
    LoadInfinity, LoadHART, InfinityDraft, FrequencyMap, TokenDispatch, MossRefine, MossComposite,
    DenseRefine, FastVARRefine, ContributionMap, MossReport, PickDrafts, Compare, InstructEdit, Enlarge,
    MatchPicture, ImageToDraft, EditDraft, LoadLora,
]
WORKFLOWS = Path(__file__).absolute().parents[2] / "workflows"
log = logging.getLogger(__name__)


class MossExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def serve_thumbnails() -> None:
    """Newer hosts serve nothing but .json files of templates, while their page asks for .jpg beside them."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None or not WORKFLOWS.is_dir():
        return
    web = sys.modules["aiohttp.web"]

    @server.routes.get(f"/workflow_templates/{WORKFLOWS.parent.name}/{{name}}.jpg")
    async def thumbnail(request: Any) -> Any:
        found = {file.stem: file for file in WORKFLOWS.glob("*.jpg")}.get(request.match_info["name"])
        return web.FileResponse(found) if found else web.Response(status=404)


async def comfy_entrypoint() -> MossExtension:
    """Called once by the host."""
    register_folders()
    serve_thumbnails()
    log.info(f"MoSs {__version__}: {len(NODES)} nodes")
    return MossExtension()
