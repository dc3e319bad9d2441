"""Token Dispatch: give each frequency band to one of the last scales."""

from __future__ import annotations

import math

import torch
from comfy_api.latest import io
from torch import Tensor

from ..model.backbone import PAPER, Published
from ..pipeline.dispatch import DispatchConfig, dispatch_tokens
from ..pipeline.heatmap import enlarge, overlay
from ..pipeline.painting import join_masks, read_painting
from ..pipeline.stopwatch import Stopwatch
from .inspector import inspector
from .schema import DispatchIO, FrequencyIO, schema
from .values import Dispatched, Measured

AUTOMATIC, PRINTED = "automatic", "paper"
PRESETS = (AUTOMATIC, PRINTED, "custom bounds", "custom shares")


def known_bounds(k: int, published: Published = PAPER) -> dict[str, tuple[float, ...] | None]:
    """By preset the bounds for k refine scales that are known without being typed, None where there are none: those found for the
    model, else the paper's; and the paper's.  For k = 1 all tokens."""
    if k == 1:
        return {AUTOMATIC: (100.0,), PRINTED: (100.0,)}
    return {AUTOMATIC: published.best.get(k), PRINTED: published.bounds.get(k)}


def suggested_bounds(k: int, published: Published = PAPER) -> DispatchConfig:
    """The model's bounds, or even steps where there are none."""
    return DispatchConfig(known_bounds(k, published)[AUTOMATIC] or tuple(100 * (k - n) / (k + 1) for n in range(k)))


def read_config(preset: str, values: str, k: int, published: Published = PAPER) -> DispatchConfig:
    """The bounds that the widgets stand for.

    Args:
        published: settings of the methods for the model.

    Raises:
        ValueError: not k percentages, impossible ones, none known for this k, or no scale to refine.
    """
    known = f"{min(published.best)} to {max(published.best)}" if len(published.best) > 1 else f"{min(published.best)}"
    if k == 0:
        raise ValueError(
            f"this draft is finished: there is no scale left to refine; set refine_scales of Infinity Draft to {known}"
        )
    if preset in (AUTOMATIC, PRINTED):
        if bounds := known_bounds(k, published)[preset]:
            return DispatchConfig(bounds)
        raise ValueError(
            f"the paper has no bounds for {k} refine scales of this model; set refine_scales to {known}, "
            "or preset to custom bounds"
        )
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
                    "preset", options=list(PRESETS), default=AUTOMATIC,
                    tooltip="automatic: the bounds found best for this model, or else the paper's. paper: the published bounds "
                    "for the draft's k. custom bounds or custom shares: the numbers below.",
                ),
                io.String.Input(
                    "values", default="80, 70, 30, 10",
                    tooltip="One percentage for each refine scale, coarsest first; only for the custom presets. Bounds fall: "
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
        config = read_config(preset, values, drafted.draft.refine_scales, drafted.model.backbone.published)
        painted = join_masks(mask, read_painting(painting))
        known = known_bounds(config.k, drafted.model.backbone.published)
        watch = Stopwatch(torch.device("cpu"))
        with watch.stage("dispatch"):
            dispatch = dispatch_tokens(frequency.frequency, schedule, config, painted)
        size = tuple(side * drafted.model.backbone.stride for side in frequency.frequency.shape[1:])
        colours = overlay(fit_picture(image, drafted.sketch, size), dispatch, schedule)
        cost = frequency.cost.plus("dispatch", watch.seconds["dispatch"])
        shown = inspector("dispatch", drafted, frequency.frequency, config, known, painted)
        return io.NodeOutput(Dispatched(drafted, config, dispatch, cost), colours, ui=shown)
