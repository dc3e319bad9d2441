"""Maps: how busy the draft is, which scale redraws which place, what each step added, and what it took."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .. import typed
from ..images import psnr, ssim
from ..model.backbone import PAPER, Published
from ..pipeline.cost import Cost, Stopwatch, report, report_rows
from ..pipeline.dispatch import (
    RefinePass,
    as_picture,
    bounds_of_shares,
    dispatch_tokens,
    join_masks,
    read_painting,
)
from ..pipeline.draft import Draft
from ..pipeline.frequency import contribution, frequency_map
from ..pipeline.heatmap import enlarge, heatmap, inspection, overlay, percentile
from .wires import Dispatched, DispatchIO, Drafted, DraftIO, FrequencyIO, Measured, MossNode, schema, stage

AUTOMATIC, PRINTED, METHOD = "automatic", "paper", "method"
PRESETS = (METHOD, AUTOMATIC, PRINTED, "custom bounds", "custom shares")


def known_bounds(k: int, published: Published = PAPER) -> dict[str, tuple[float, ...] | None]:
    """By preset the bounds for k refine scales that are known without being typed, None where there are none:
    those found for the
    model, else the paper's; and the paper's.  For k = 1 all tokens."""
    if k == 1:
        return {AUTOMATIC: (100.0,), PRINTED: (100.0,)}
    return {AUTOMATIC: published.best.get(k), PRINTED: published.bounds.get(k)}


def suggested_bounds(k: int, published: Published = PAPER) -> RefinePass:
    """The model's bounds, or even steps where there are none."""
    return RefinePass.of_last(
        known_bounds(k, published)[AUTOMATIC] or tuple(100 * (k - n) / (k + 1) for n in range(k))
    )


def read_scales(text: str, draft: Draft) -> tuple[int, ...]:
    """The scales of a pass, from the end: -1 is the last.  Empty or "all" = all that the draft leaves.

    Raises:
        ValueError: not numbers, or scales that are not left.
    """
    left = tuple(scale - len(draft.recipe.schedule) for scale in draft.left)
    if text.strip().lower() in ("", "all"):
        return left
    numbers = re.findall(r"-?\d+", text)
    scales = tuple(-abs(int(number)) for number in numbers)
    if not scales or re.sub(r"-?\d+", "", text).strip(" ,;") or not set(scales) <= set(left):
        names = ", ".join(map(str, left)) or "none"
        advice = f"write all, or some of those that are left, coarsest first: {names}"
        raise ValueError(f"scales {typed.quoted(text)} are not scales of this draft; {advice}")
    return scales


def read_pass(preset: str, values: str, scales: str, drafted: Drafted) -> RefinePass:
    """The pass that the widgets stand for, scales counted from the end.

    The method of MoSs Draft, where one was chosen by name, says which scales and whether with guidance; the
    numbers are its own or custom ones.  The other presets are the paper's kind of pass: all scales left.

    Raises:
        ValueError: see `read_scales` and `read_config`.
    """
    planned, published = drafted.next_pass, drafted.published
    if preset in (AUTOMATIC, PRINTED) or scales.strip().lower() not in ("", "all"):
        planned = None
    if planned and preset == METHOD:
        return planned
    chosen = planned.scales if planned else read_scales(scales, drafted.draft)
    config = read_config(preset, values, len(chosen), published)
    return replace(planned or config, scales=chosen, bounds=config.bounds)


def read_config(preset: str, values: str, k: int, published: Published = PAPER) -> RefinePass:
    """The bounds that the widgets stand for.

    Args:
        published: settings of the methods for the model.

    Raises:
        ValueError: not k percentages, impossible ones, none known for this k, or no scale to refine.
    """
    known = (
        f"{min(published.best)} to {max(published.best)}"
        if len(published.best) > 1
        else f"{min(published.best)}"
    )
    if k == 0:
        raise ValueError(
            "this draft is finished: there is no scale left to refine; set refine_scales of MoSs Draft "
            f"to {known}"
        )
    if preset in (METHOD, AUTOMATIC, PRINTED):
        if bounds := known_bounds(k, published)[PRINTED if preset == PRINTED else AUTOMATIC]:
            return RefinePass.of_last(bounds)
        raise ValueError(
            f"the paper has no bounds for {k} refine scales of this model; set refine_scales to {known}, "
            "or preset to custom bounds"
        )
    try:
        numbers = typed.percentages(values)
    except ValueError as error:
        raise ValueError(f"values {error}") from None
    if len(numbers) != k:
        raise ValueError(
            f"values holds {len(numbers)} numbers, but the draft leaves {k} scales to refine; write {k}, "
            "coarsest scale first"
        )
    return RefinePass.of_last(bounds_of_shares(numbers) if preset == "custom shares" else numbers)


def fit_picture(image: Tensor | None, sketch: Tensor, size: tuple[int, int]) -> Tensor:
    """The picture under the overlay, (B, H, W, 3): the artist's, or else the draft's sketch.

    Raises:
        ValueError: another number of pictures.
    """
    picture = sketch if image is None else as_picture(image)
    if len(picture) not in (1, len(sketch)):
        raise ValueError(
            f"the image input holds {len(picture)} pictures, the draft {len(sketch)}; give one, or as many"
        )
    return enlarge(picture.expand(len(sketch), -1, -1, -1), size)


def inspector(
    kind: str, drafted: Drafted, frequency: Tensor, config: RefinePass, painted: Tensor | None = None,
    painting: str = "", masked: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """The `ui` of a node that shows the inspector; `js/` draws it.

    Args:
        kind: "frequency" or "dispatch".
        painting: text of the widget, and whether there was a mask besides: what the ranks were made with.
    """
    backbone, kv_bytes = drafted.model.backbone, drafted.cost.kv_bytes
    data = inspection(drafted.draft, frequency, config, backbone.work, kv_bytes, painted)
    by_k = {k: known_bounds(k, drafted.published) for k in range(1, drafted.draft.refine_scales + 1)}
    known = {preset: {k: found[preset] for k, found in by_k.items()} for preset in (AUTOMATIC, PRINTED)}
    made_with, step = {"painting": painting, "masked": masked}, drafted.next_pass
    planned = step and {"scales": list(step.scales), "bounds": list(step.bounds)}
    more = {"kind": kind, "known": known, "planned": planned, **made_with, "pictures": drafted.pictures}
    return {"moss_inspector": [{**data, **more}]}


def measure(drafted: Drafted, window: int = 3) -> Measured:
    """The frequency map of a draft, with the time that it took."""
    watch = Stopwatch(torch.device("cpu"))
    with watch.stage("frequency"):
        frequency = frequency_map(drafted.draft.total, window)
    return Measured(drafted, frequency, drafted.cost.plus(watch.seconds))


class FrequencyMap(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_FrequencyMap",
            display_name="MoSs Frequency Map",
            description="Scores every place of the draft by its local variance: edges and textures are "
            "busy, flat areas calm. Hover the map to read a token.",
            search_aliases=["heatmap", "variance", "moss frequency", "detail map"],
            has_intermediate_output=True,
            inputs=[
                stage("MOSS_DRAFT").Input("draft", tooltip="From MoSs Draft."),
                io.Int.Input(
                    "window", default=3, min=3, max=15, step=2,
                    tooltip="Side of the window around each place, in tokens; odd. The paper uses 3. Larger "
                    "spreads busy areas out.",
                ),
            ],
            outputs=[
                FrequencyIO.Output("frequency", tooltip="For MoSs Token Dispatch."),
                io.Image.Output(
                    "heatmap", tooltip="The map in colour, dark = calm, pale = busy, at the picture's size."
                ),
                io.Mask.Output(
                    "mask",
                    tooltip="The map as a mask from 0 (calmest) to 1 (busiest), at the picture's size.",
                ),
            ],
        )

    @classmethod
    def execute(cls, draft: Any, window: int) -> io.NodeOutput:
        draft = draft.drafted
        measured = measure(draft, window)
        frequency = measured.frequency
        size = [side * draft.model.backbone.stride for side in frequency.shape[1:]]
        mask = torch.nn.functional.interpolate(
            percentile(frequency)[:, None], size=size, mode="nearest-exact"
        )[:, 0]
        k, published = draft.draft.refine_scales, draft.published
        bounds = draft.next_pass or suggested_bounds(max(k, 1), published)
        shown = inspector("frequency", draft, frequency, bounds) if k else None
        return io.NodeOutput(measured, heatmap(frequency, size), mask, ui=shown)


class TokenDispatch(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_TokenDispatch",
            display_name="MoSs Token Dispatch",
            description="Decides which places are redrawn, and at which scale: the busiest at the finest. "
            "Drag the handles of the histogram, or paint a mask.",
            search_aliases=["moss dispatch", "bounds", "mixture of scales", "token budget"],
            has_intermediate_output=True,
            inputs=[
                stage("MOSS_FREQUENCY").Input("frequency", tooltip="From MoSs Frequency Map."),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default=METHOD,
                    tooltip="method: as the method of MoSs Draft says. automatic: all scales that are left, "
                    "with the bounds found best for this model, or else the paper's. paper: the same with "
                    "the published bounds. custom bounds or custom shares: the numbers below.",
                ),
                io.String.Input(
                    "values", default="80, 70, 30, 10",
                    tooltip="One percentage for each refine scale, coarsest first; only for the custom "
                    "presets. Bounds fall: 80, 70, 30, 10 gives the busiest 10 % to the finest scale, 10-30 "
                    "% to the one before. Shares say the same as 10, 40, 20, 10.",
                ),
                io.String.Input(
                    "painting", default="",
                    tooltip="Cells painted with the brush of the map below. They are redrawn first, at the "
                    "finest scales; the number of tokens stays the same.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="Painted places come first and are redrawn at the finest scales. The number of "
                    "tokens stays the same.",
                ),
                io.Image.Input(
                    "image", optional=True,
                    tooltip="The picture under the overlay, such as the decoded draft. Without it a small "
                    "sketch.",
                ),
                io.String.Input(
                    "scales", default="all", optional=True,
                    tooltip="Which scales this pass redraws. all: those of the method, or all that the "
                    "draft leaves. Or some of them counted from the end, such as -1 for the last alone or "
                    "-4, -3; the others may follow in another pass, or be left out.",
                ),
            ],
            outputs=[
                DispatchIO.Output("dispatch", tooltip="For MoSs Refine."),
                io.Image.Output(
                    "overlay", tooltip="One colour for each scale over the picture; grey stays as drafted."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, frequency: Any, preset: str, values: str, painting: str = "", mask: Tensor | None = None,
        image: Tensor | None = None, scales: str = "all",
    ) -> io.NodeOutput:
        if not isinstance(frequency, Measured):  # MoSs Frequency Map is bypassed
            frequency = measure(frequency.drafted)
        drafted, schedule = frequency.drafted, frequency.drafted.schedule
        config = read_pass(preset, values, scales, drafted)
        painted = join_masks(mask, read_painting(painting))
        watch = Stopwatch(torch.device("cpu"))
        with watch.stage("dispatch"):
            dispatch = dispatch_tokens(
                frequency.frequency, schedule, config, painted, drafted.draft.recipe.source
            )
        size = tuple(side * drafted.model.backbone.stride for side in frequency.frequency.shape[1:])
        colours = overlay(fit_picture(image, drafted.sketch, size), dispatch, schedule)
        cost = frequency.cost.plus(watch.seconds)
        shown = inspector(
            "dispatch", drafted, frequency.frequency, config, painted, painting, mask is not None
        )
        return io.NodeOutput(Dispatched(drafted, config, dispatch, cost), colours, ui=shown)


class ContributionMap(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_ContributionMap",
            display_name="MoSs Contribution Map",
            description="Shows where the draft and where the refinement made the picture, and how well the "
            "frequency map foretold it (paper, equation 2).",
            has_intermediate_output=True,
            search_aliases=["moss contribution", "correlation", "difference map"],
            inputs=[
                DraftIO.Input("draft", tooltip="From MoSs Draft."),
                io.Latent.Input(
                    "latent",
                    tooltip="The finished picture's latent: from MoSs Composite or another refine node.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "drafter", tooltip="Where the draft contributed, dark = little, pale = much."
                ),
                io.Image.Output("refiner", tooltip="Where the refinement contributed."),
                io.Float.Output(
                    "correlation",
                    tooltip="Pearson's r of frequency and refinement, the mean of the batch: 1 = refined "
                    "where busy.",
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
        return io.NodeOutput(
            heatmap(parts.drafter, size), heatmap(parts.refiner, size), mean, ui=ui.PreviewText(text)
        )


def cost_of(latent: dict[str, Any], name: str) -> Cost:
    """What a latent took.

    Raises:
        ValueError: it does not come from this pack.
    """
    if not isinstance(cost := latent.get("moss_cost"), Cost):
        raise ValueError(
            f"the {name} input does not say what it took; wire it straight to a node of this pack"
        )
    return cost


def likeness(image: Tensor | None, reference: Tensor | None) -> tuple[float | None, float | None]:
    """PSNR in dB of the mean squared error over the batch, and mean SSIM.

    Raises:
        ValueError: only one of the two is given, or they differ in size.
    """
    if image is None and reference is None:
        return None, None
    if image is None or reference is None:
        raise ValueError(
            "PSNR and SSIM compare two pictures; wire both image and reference_image, or neither"
        )
    image, reference = as_picture(image), as_picture(reference)
    error = (10 ** (-psnr(image, reference) / 10)).mean().item()
    return (-10 * math.log10(error) if error > 0 else math.inf), ssim(image, reference).mean().item()


class MossReport(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Report",
            display_name="MoSs Report",
            description="What a picture took: tokens, memory and time by step. With a reference also how "
            "much faster it was and how alike the pictures are.",
            search_aliases=["benchmark", "statistics", "psnr", "ssim", "speed", "moss stats"],
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="From MoSs Draft, MoSs Composite, MoSs Dense Refine or MoSs FastVAR Refine.",
                ),
                io.Latent.Input(
                    "reference", optional=True,
                    tooltip="The picture to compare with, usually from MoSs Dense Refine.",
                ),
                io.Image.Input("image", optional=True, tooltip="The decoded picture, for PSNR and SSIM."),
                io.Image.Input(
                    "reference_image", optional=True, tooltip="The decoded reference, for PSNR and SSIM."
                ),
            ],
            outputs=[io.String.Output("text", tooltip="The table as text.")],
        )

    @classmethod
    def execute(
        cls, latent: dict[str, Any], reference: dict[str, Any] | None = None, image: Tensor | None = None,
        reference_image: Tensor | None = None,
    ) -> io.NodeOutput:
        beside = cost_of(reference, "reference") if reference else None
        told = cost_of(latent, "latent"), beside, *likeness(image, reference_image)
        text, rows = report(*told), [[name, name, value] for name, value in report_rows(*told)]
        return io.NodeOutput(text, ui={"text": (text,), "moss_report": rows})
