"""Contribution Map and MoSs Report: what each step added, and what it took."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..images import psnr, ssim
from ..pipeline.contribution import contribution
from ..pipeline.cost import Cost
from ..pipeline.frequency import frequency_map
from ..pipeline.heatmap import heatmap
from ..pipeline.report import report
from .schema import DraftIO, schema
from .values import Drafted


class ContributionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_ContributionMap",
            display_name="Contribution Map",
            description="Shows where the draft and where the refinement made the picture, and how well the frequency map "
            "foretold it (paper, equation 2).",
            has_intermediate_output=True,
            search_aliases=["moss contribution", "correlation", "difference map"],
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft."),
                io.Latent.Input("latent", tooltip="The finished picture's latent: from MoSs Composite or another refine node."),
            ],
            outputs=[
                io.Image.Output("drafter", tooltip="Where the draft contributed, dark = little, pale = much."),
                io.Image.Output("refiner", tooltip="Where the refinement contributed."),
                io.Float.Output(
                    "correlation",
                    tooltip="Pearson's r of frequency and refinement, the mean of the batch: 1 = refined where busy."
                ),
            ],
        )

    @classmethod
    def execute(cls, draft: Drafted, latent: dict[str, Any]) -> io.NodeOutput:
        total = draft.draft.total
        parts = contribution(total, latent["samples"], frequency_map(total))
        size = [side * draft.model.backbone.stride for side in total.shape[2:]]
        mean = sum(parts.correlation) / len(parts.correlation)
        text = "Correlation of frequency and refinement: " + ", ".join(f"{r:.3f}" for r in parts.correlation)
        return io.NodeOutput(heatmap(parts.drafter, size), heatmap(parts.refiner, size), mean, ui=ui.PreviewText(text))


def cost_of(latent: dict[str, Any], name: str) -> Cost:
    """What a latent took.

    Raises:
        ValueError: it does not come from this pack.
    """
    if not isinstance(cost := latent.get("moss_cost"), Cost):
        raise ValueError(f"the {name} input does not say what it took; wire it straight to a node of this pack")
    return cost


def likeness(image: Tensor | None, reference: Tensor | None) -> tuple[float | None, float | None]:
    """PSNR in dB of the mean squared error over the batch, and mean SSIM.

    Raises:
        ValueError: only one of the two is given, or they differ in size.
    """
    if image is None and reference is None:
        return None, None
    if image is None or reference is None:
        raise ValueError("PSNR and SSIM compare two pictures; wire both image and reference_image, or neither")
    error = (10 ** (-psnr(image, reference) / 10)).mean().item()
    return (-10 * math.log10(error) if error > 0 else math.inf), ssim(image, reference).mean().item()


class MossReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Report",
            display_name="MoSs Report",
            description="What a picture took: tokens, memory and time by step. With a reference also how much faster it was "
            "and how alike the pictures are.",
            search_aliases=["benchmark", "statistics", "psnr", "ssim", "speed", "moss stats"],
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "latent", tooltip="From Infinity Draft, MoSs Composite, Infinity Dense Refine or FastVAR Refine.",
                ),
                io.Latent.Input(
                    "reference", optional=True, tooltip="The picture to compare with, usually from Infinity Dense Refine.",
                ),
                io.Image.Input("image", optional=True, tooltip="The decoded picture, for PSNR and SSIM."),
                io.Image.Input("reference_image", optional=True, tooltip="The decoded reference, for PSNR and SSIM."),
            ],
            outputs=[io.String.Output("text", tooltip="The table as text.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, latent: dict[str, Any], reference: dict[str, Any] | None = None, image: Tensor | None = None,
        reference_image: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        beside = cost_of(reference, "reference") if reference else None
        text = report(cost_of(latent, "latent"), beside, *likeness(image, reference_image))
        return io.NodeOutput(text, ui=ui.PreviewText(text))
