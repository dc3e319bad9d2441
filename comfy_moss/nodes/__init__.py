"""ComfyUI's side: thin nodes around the pipeline, and the list of them.  The only folder that imports
ComfyUI.
"""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .. import __version__
from .load import LoadHART, LoadInfinity, register_folders
from .maps import ContributionMap, FrequencyMap, MossReport, TokenDispatch
from .pictures import EditDraft, ImageToDraft
from .sample import DenseRefine, FastVARRefine, InfinityDraft, MossComposite, MossRefine
from .tunes import Enlarge, InstructEdit, MatchPicture

NODES: list[type[io.ComfyNode]] = [
    LoadInfinity, LoadHART, InfinityDraft, FrequencyMap, TokenDispatch, MossRefine, MossComposite,
    DenseRefine, FastVARRefine, ContributionMap, MossReport, InstructEdit, Enlarge, MatchPicture,
    ImageToDraft, EditDraft,
]
log = logging.getLogger(__name__)


class MossExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> MossExtension:
    """Called once by the host."""
    register_folders()
    log.info(f"MoSs {__version__}: {len(NODES)} nodes")
    return MossExtension()
