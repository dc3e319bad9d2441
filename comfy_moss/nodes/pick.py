"""MoSs Pick Drafts: a sheet of cheap drafts, each with its map; only the chosen ones go on to be refined."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from .. import typed
from ..images import poster
from ..pipeline.frequency import frequency_map
from ..pipeline.heatmap import enlarge, heatmap
from .sample import saved_sketch
from .wires import Drafted, DraftIO, MossNode, latent, schema

SIDE = 256  # pixels of the longer side of a picture on the sheet


def read_picks(text: str, pictures: int) -> list[int]:
    """Numbers of pictures from 1 ("1, 3", "2-4", "all"), as indices from 0, each once and in order.

    Raises:
        ValueError: something else, or a number that the draft does not have.
    """
    words = [word for word in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text.strip().lower())) if word]
    if words == ["all"]:
        return list(range(pictures))
    picked: set[int] = set()
    for word in words:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= pictures:
            raise ValueError(
                f"picks {typed.quoted(text)} are not among the {pictures} drafts; write numbers from 1 to "
                f'{pictures}, such as "1, 3", or "all"'
            )
        picked |= set(range(first - 1, last))
    if not picked:
        raise ValueError(f'picks is empty; write numbers from 1 to {pictures}, such as "1, 3", or "all"')
    return sorted(picked)


def picked_from(drafted: Drafted, pictures: list[int]) -> Drafted:
    """Some pictures of a draft, with a part of its KV cache where that is still there."""
    model, whole = copy(drafted.model), drafted.draft
    object.__setattr__(model, "store", drafted.model.store.part())  # the model's own store empties it, too
    draft = whole.pick(pictures)
    if drafted.model.store.holds(whole) and not whole.passes and whole.refine_scales:
        model.store.keep(draft, drafted.model.store.run_of(model.backbone, whole).pick(pictures))
    shown = [drafted.pictures[n] for n in pictures] if drafted.pictures else []
    return replace(drafted, model=model, draft=draft, sketch=drafted.sketch[pictures], pictures=shown)


def sheet(drafted: Drafted, maps: Tensor, picked: list[int]) -> Tensor:
    """All drafts with their maps below them, numbered, the picked ones marked; (1, H, W, 3)."""
    size = maps.shape[1:3]
    pictures = enlarge(drafted.sketch, size)
    titles = [f"{n + 1} {'picked' if n in picked else ''}".strip() for n in range(len(pictures))]
    notes = [f"seed {seed}" for seed in drafted.draft.recipe.seeds]
    pairs = [torch.cat([picture, one], dim=0)[None] for picture, one in zip(pictures, maps, strict=True)]
    return poster(pairs, titles, notes, [None] * len(pairs))


class PickDrafts(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_PickDrafts",
            display_name="MoSs Pick Drafts",
            description="Shows a batch of drafts side by side, each with its frequency map, and passes on "
            "those that you pick: a draft takes a fraction of a picture's work, so look at many and refine "
            "the best.",
            search_aliases=["draft sheet", "contact sheet", "choose", "select batch", "moss pick"],
            has_intermediate_output=True,
            inputs=[
                DraftIO.Input("draft", tooltip="From MoSs Draft, with a batch_size of more than 1."),
                io.String.Input(
                    "picks", default="1",
                    tooltip="Which drafts go on, numbered from 1: 2, or 1, 3, or 2-4, or all. Keep the seed "
                    "of MoSs Draft fixed while you choose: then only the refining runs again.",
                ),
            ],
            outputs=[
                DraftIO.Output(
                    "picked", display_name="draft", tooltip="The picked drafts, for MoSs Frequency Map."
                ),
                io.Latent.Output("latent", tooltip="The picked drafts themselves, for VAE Decode."),
                io.Image.Output("sheet", tooltip="All drafts with their maps, as one picture."),
            ],
        )

    @classmethod
    def execute(cls, draft: Drafted, picks: str) -> io.NodeOutput:
        whole = draft.draft
        chosen = read_picks(picks, len(whole.total))
        height, width = (side * draft.model.backbone.stride for side in whole.total.shape[2:])
        scale = SIDE / max(height, width)
        maps = heatmap(frequency_map(whole.total), (round(height * scale), round(width * scale)))
        picked = picked_from(draft, chosen)
        shown = {
            "pictures": draft.pictures, "maps": saved_sketch(maps, 1), "picked": chosen,
            "seeds": [str(seed) for seed in whole.recipe.seeds], "size": [width, height],
        }
        drawn = latent(picked.draft.total, picked.cost)
        return io.NodeOutput(picked, drawn, sheet(draft, maps, chosen), ui={"moss_drafts": [shown]})

