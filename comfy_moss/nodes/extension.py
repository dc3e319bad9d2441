"""The pack as ComfyUI sees it: its list of nodes."""

from __future__ import annotations

import logging

import comfy.model_management as mm
from comfy_api.latest import ComfyExtension, io

from .. import __version__
from ..ops import choose
from .analysis import ContributionMap, MossReport
from .baselines import DenseRefine, FastVARRefine
from .dispatch import TokenDispatch
from .draft import InfinityDraft
from .frequency import FrequencyMap
from .load import LoadInfinity, register_folder
from .load_hart import LoadHART, register_hart_folder
from .refine import MossComposite, MossRefine

NODES: list[type[io.ComfyNode]] = [
    LoadInfinity, LoadHART, InfinityDraft, FrequencyMap, TokenDispatch, MossRefine, MossComposite, DenseRefine,
    FastVARRefine, ContributionMap, MossReport,
]  # fmt: skip
log = logging.getLogger(__name__)


class MossExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> MossExtension:
    """Called once by the host."""
    register_folder()
    register_hart_folder()
    log.info(f"MoSs {__version__}: {len(NODES)} nodes; attention and RoPE: {choose('auto', mm.get_torch_device())[1]}")
    return MossExtension()
