"""Frequency Map: how busy the draft is around every token."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..pipeline.frequency import frequency_map
from ..pipeline.heatmap import heatmap, percentile
from ..pipeline.stopwatch import Stopwatch
from .dispatch import known_bounds, suggested_bounds
from .inspector import inspector
from .schema import DraftIO, FrequencyIO, schema
from .values import Drafted, Measured


class FrequencyMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_FrequencyMap",
            display_name="Frequency Map",
            description="Scores every place of the draft by its local variance: edges and textures are busy, flat areas calm. "
            "Hover the map to read a token.",
            search_aliases=["heatmap", "variance", "moss frequency", "detail map"],
            has_intermediate_output=True,
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft."),
                io.Int.Input(
                    "window", default=3, min=3, max=15, step=2,
                    tooltip="Side of the window around each place, in tokens; odd. The paper uses 3. Larger spreads busy "
                    "areas out.",
                ),
            ],
            outputs=[
                FrequencyIO.Output("frequency", tooltip="For Token Dispatch."),
                io.Image.Output("heatmap", tooltip="The map in colour, dark = calm, pale = busy, at the picture's size."),
                io.Mask.Output("mask", tooltip="The map as a mask from 0 (calmest) to 1 (busiest), at the picture's size."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, draft: Drafted, window: int) -> io.NodeOutput:
        watch = Stopwatch(torch.device("cpu"))
        with watch.stage("frequency"):
            frequency = frequency_map(draft.draft.total, window)
        size = [side * draft.model.backbone.stride for side in frequency.shape[1:]]
        mask = torch.nn.functional.interpolate(percentile(frequency)[:, None], size=size, mode="nearest-exact")[:, 0]
        measured = Measured(draft, frequency, draft.cost.plus("frequency", watch.seconds["frequency"]))
        k, published = draft.draft.refine_scales, draft.model.backbone.published
        bounds, known = suggested_bounds(max(k, 1), published), known_bounds(k, published)
        shown = inspector("frequency", draft, frequency, bounds, known) if k else None
        return io.NodeOutput(measured, heatmap(frequency, size), mask, ui=shown)
