"""Token Dispatch: give each frequency band to one of the last scales."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from comfy_api.latest import io
from torch import Tensor

from ..pipeline.dispatch import PAPER_BOUNDS, DispatchConfig, dispatch_tokens
from ..pipeline.heatmap import enlarge, overlay
from ..pipeline.painting import join_masks, read_painting
from ..pipeline.stopwatch import Stopwatch
from .inspector import inspector
from .schema import DispatchIO, FrequencyIO, schema
from .values import Dispatched, Measured

PRESETS = ("paper", "custom bounds", "custom shares")


def paper_bounds(k: int, printed: Mapping[int, tuple[float, ...]] = PAPER_BOUNDS) -> DispatchConfig:
    """The paper's bounds for k refine scales; for k = 1 all tokens.

    Args:
        printed: what the paper prints for this family of models.

    Raises:
        ValueError: the paper has none for this k.
    """
    known = f"{min(printed)} to {max(printed)}" if len(printed) > 1 else f"{min(printed)}"
    if k == 0:
        raise ValueError(
            f"this draft is finished: there is no scale left to refine; set refine_scales of Infinity Draft to {known}"
        )
    if k not in (1, *printed):
        raise ValueError(
            f"the paper has no bounds for {k} refine scales of this model; set refine_scales to {known}, "
            "or preset to custom bounds"
        )
    return DispatchConfig(printed.get(k, (100.0,)))


def suggested_bounds(k: int, printed: Mapping[int, tuple[float, ...]] = PAPER_BOUNDS) -> DispatchConfig:
    """The paper's bounds, or even steps where it has none."""
    if k in (1, *printed):
        return paper_bounds(k, printed)
    return DispatchConfig(tuple(100 * (k - n) / (k + 1) for n in range(k)))


def read_config(
    preset: str, values: str, k: int, printed: Mapping[int, tuple[float, ...]] = PAPER_BOUNDS
) -> DispatchConfig:
    """The bounds that the widgets stand for.

    Raises:
        ValueError: not k percentages, impossible ones, or no scale to refine.
    """
    if preset == "paper" or k == 0:
        return paper_bounds(k, printed)
    try:
        numbers = tuple(float(part) for part in values.replace("%", "").replace(";", ",").split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"values {values!r} are not numbers; write percentages with commas, such as 80, 70, 30, 10")
    if len(numbers) != k:
        raise ValueError(
            f"values holds {len(numbers)} numbers, but the draft leaves {k} scales to refine; write {k}, coarsest scale first"
        )
    return DispatchConfig.from_shares(numbers) if preset == "custom shares" else DispatchConfig(numbers)


def fit_picture(image: Tensor | None, sketch: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture under the overlay, (B, H, W, 3): the artist's, or else the draft's sketch.

    Raises:
        ValueError: another number of pictures.
    """
    if image is not None and len(image) not in (1, len(sketch)):
        raise ValueError(f"the image input holds {len(image)} pictures, the draft {len(sketch)}; give one, or as many")
    picture = sketch if image is None else image[..., :3].to(torch.float32).cpu().expand(len(sketch), -1, -1, -1)
    return enlarge(picture, size)


class TokenDispatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_TokenDispatch",
            display_name="Token Dispatch",
            description="Decides which places are redrawn, and at which scale: the busiest at the finest. Drag the handles of "
            "the histogram, or paint a mask.",
            search_aliases=["moss dispatch", "bounds", "mixture of scales", "token budget"],
            has_intermediate_output=True,
            inputs=[
                FrequencyIO.Input("frequency", tooltip="From Frequency Map."),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="paper",
                    tooltip="paper: the published bounds for the draft's k. custom bounds or custom shares: the numbers below.",
                ),
                io.String.Input(
                    "values", default="80, 70, 30, 10",
                    tooltip="One percentage for each refine scale, coarsest first; not used with preset paper. Bounds fall: "
                    "80, 70, 30, 10 gives the busiest 10 % to the finest scale, 10-30 % to the one before. Shares say the "
                    "same as 10, 40, 20, 10.",
                ),
                io.String.Input(
                    "painting", default="",
                    tooltip="Cells painted with the brush of the map below. They are redrawn first, at the finest scales; the "
                    "number of tokens stays the same.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Painted places come first and are redrawn at the finest scales. The number of tokens stays the "
                    "same.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The picture under the overlay, such as the decoded draft. Without it a small sketch.",
                ),
            ],
            outputs=[
                DispatchIO.Output("dispatch", tooltip="For MoSs Refine."),
                io.Image.Output("overlay", tooltip="One colour for each scale over the picture; grey stays as drafted."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, frequency: Measured, preset: str, values: str, painting: str = "", mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        drafted, schedule = frequency.drafted, frequency.drafted.schedule
        printed = drafted.model.backbone.published.bounds
        config = read_config(preset, values, drafted.draft.refine_scales, printed)
        painted = join_masks(mask, read_painting(painting))
        watch = Stopwatch(torch.device("cpu"))
        with watch.stage("dispatch"):
            dispatch = dispatch_tokens(frequency.frequency, schedule, config, painted)
        size = tuple(side * drafted.model.backbone.stride for side in frequency.frequency.shape[1:])
        colours = overlay(fit_picture(image, drafted.sketch, size), dispatch, schedule)
        cost = frequency.cost.plus("dispatch", watch.seconds["dispatch"])
        shown = inspector("dispatch", drafted, frequency.frequency, config, painted)
        return io.NodeOutput(Dispatched(drafted, config, dispatch, cost), colours, ui=shown)
