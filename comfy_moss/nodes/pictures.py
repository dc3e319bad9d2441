"""Pictures in: a draft of a picture instead of one of noise, and a draft that follows another prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..model.schedule import PRESETS, Schedule
from ..pipeline.cost import Cost
from ..pipeline.dispatch import as_mask, as_picture
from ..pipeline.draft import Draft, Recipe, Run, draft_of
from ..pipeline.edit import edit_draft
from ..pipeline.heatmap import change_map
from ..pipeline.plan import Plan, parse_method, plan_of
from ..pipeline.refine import finished
from ..pipeline.source import (
    FITS,
    RULES,
    Edit,
    Source,
    encode_picture,
    fit_mask,
    fit_picture,
    mask_of,
    picture_size,
)
from .host import MossModel, Progress
from .sample import (
    MODEL_AREA,
    cfg_input,
    guidance_note,
    make_recipe,
    memory_note,
    preview_input,
    refine_scales_input,
    seed_input,
    tau_input,
    with_sketch,
)
from .wires import Drafted, DraftIO, Model, MossNode, latent, schema


def drawn(
    model: MossModel, draft: Draft, run: Run, progress: Progress
) -> tuple[Drafted, dict[str, Any], dict[str, Any] | None]:
    """What a node that made a draft hands on: the draft, its latent with what the picture keeps of its own
    finer codes, and what the node shows.
    """
    schedule, plan = draft.recipe.schedule, plan_of(draft)
    if draft.left:
        model.store.keep(draft, run)
    cost = Cost(plan.label, plan.tokens_per_scale(schedule), run.cache.nbytes, progress.seconds)
    published = model.backbone.published.on(schedule)
    method = parse_method(published.method, published=published)
    # what the method does next is known where this draft has as many scales left as its own
    named = method if isinstance(method, Plan) and method.k == draft.refine_scales else None
    drafted = replace(with_sketch(model, draft, cost, progress.watch), plan=named)
    total = finished(model.backbone, draft)
    shown = {"images": drafted.pictures} if progress.shown else None
    return drafted, latent(total, drafted.cost), shown


def begin(model: MossModel, recipe: Recipe, scales: int, twice: int, preview: bool) -> Progress:
    """Make room for a draft of that many scales, drawn with so many caches."""
    schedule, count = recipe.schedule, len(recipe.seeds)
    guidance_note(recipe)
    memory_note(model, Plan(scales - len(schedule)), recipe, twice)
    rows = count * (2 if recipe.guidance.active(len(schedule)) else 1)
    progress = Progress(model, scales, preview=preview)
    model.store.clear()  # the last draft's cache makes room
    with progress.stage("load"):
        tokens = schedule.tokens(0, min(scales, len(schedule) - 1))
        past = 0 if scales < len(schedule) else tokens
        model.load(twice * tokens, rows, schedule.tokens(scales - 1, scales), past)
    return progress


def source_of(model: MossModel, image: Tensor, mask: Tensor | None, schedule: Schedule) -> Source:
    """The tokens of pictures (B, H, W, 3) of the schedule's size, and what may change in them."""
    source = encode_picture(model.backbone, image, schedule)
    if mask is None:
        return source
    found = mask_of(mask, schedule)
    return replace(source, mask=found.expand(len(image), -1, -1) if len(found) == 1 else found)


def fitted(
    model: MossModel, image: Tensor, mask: Tensor | None, schedule: Schedule, fit: str
) -> tuple[Tensor, Tensor | None]:
    """Picture and mask at the size that is drawn.

    Raises:
        ValueError: a picture smaller than a cell, or a mask of another shape or another number.
    """
    image, size = as_picture(image), picture_size(model.backbone, schedule)
    if mask is not None:
        mask = as_mask(mask)
        if len(mask) not in (1, len(image)):
            raise ValueError(
                f"{len(mask)} masks do not pair up with {len(image)} pictures; give one, or as many"
            )
        mask = fit_mask(mask, image.shape[1:3], size, fit)
    return fit_picture(image, size, fit, model.backbone.stride), mask


class ImageToDraft(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_ImageToDraft",
            display_name="MoSs Image to Draft",
            description="Starts from a picture: its coarse scales are taken, the finer ones are drawn. With "
            "a mask only what is masked changes. With all drafted scales taken, the refine nodes add detail "
            "to the picture.",
            has_intermediate_output=True,
            search_aliases=["image to image", "img2img", "inpaint", "outpaint", "refine a picture"],
            inputs=[
                Model.Input("model", tooltip="From a loader of this pack; its own codec reads the picture."),
                io.Image.Input("image", tooltip="A picture of any size, or a batch of them."),
                io.Conditioning.Input(
                    "positive", tooltip="What to draw: CLIP Text Encode with the CLIP of the same loader."
                ),
                io.Int.Input(
                    "strength", default=3, min=0, max=13,
                    tooltip="How many of the first scales are taken from the picture. 0 draws from the "
                    "prompt alone, 2 or 3 keep the layout, more keep the things. All that are drafted keep "
                    "the picture: the refine nodes then redraw its detail alone.",
                ),
                refine_scales_input(
                    tooltip="k: how many of the last scales are left to the refine node. 0 draws the whole "
                    "picture here.",
                ),
                seed_input(
                    tooltip="Of the first picture; the others of a batch count up.",
                ),
                cfg_input(
                    tooltip="Guidance: how strictly the prompt is followed. 0 = the model's own value. 1 "
                    "switches guidance off.",
                ),
                tau_input(
                    tooltip="Temperature: how much chance there is. 0 = the model's own value.",
                ),
                io.Combo.Input(
                    "area", options=[MODEL_AREA, *PRESETS], default=MODEL_AREA,
                    tooltip="How large; the ratio is the nearest to the picture's that the model knows. "
                    "model's own is the size it was trained for.",
                ),
                io.Combo.Input(
                    "fit", options=list(FITS), default=FITS[0],
                    tooltip="What to do where the ratios differ: crop from the centre, pad with grey, or "
                    "stretch.",
                ),
                preview_input(),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="White may change, all else stays as the codec gives it: from the mask editor, "
                    "or from Pad Image for Outpainting. Refine nodes then redraw masked places alone.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="What to keep out. Without it the model's own unconditional text is used.",
                ),
            ],
            outputs=[
                DraftIO.Output("draft", tooltip="For MoSs Frequency Map and the other refine nodes."),
                io.Latent.Output("latent", tooltip="The draft itself, for VAE Decode."),
                io.Image.Output(
                    "picture", tooltip="The picture at the size that is drawn, to lay its pixels back."
                ),
                io.Mask.Output("fitted_mask", tooltip="The mask at that size; white without a mask."),
            ],
        )

    @classmethod
    def execute(
        cls, model: MossModel, image: Tensor, positive: list, strength: int, refine_scales: int, seed: int,
        cfg: float, tau: float, area: str, fit: str, preview: bool, mask: Tensor | None = None,
        negative: list | None = None,
    ) -> io.NodeOutput:
        image = as_picture(image)
        area = model.files.area if area == MODEL_AREA else area
        ratio = model.files.ratio_for(image.shape[1] / image.shape[2])
        schedule = model.files.schedule(ratio, area)
        scales = drafted_scales(schedule, refine_scales)
        image, mask = fitted(model, image, mask, schedule, fit)
        recipe = make_recipe(model, positive, negative, schedule, seed, cfg, tau, len(image))
        progress = begin(model, recipe, scales, 1, preview)
        with progress.stage("encode"):
            source = replace(source_of(model, image, mask, schedule), scales=strength)
        recipe = replace(recipe, source=source)
        with progress.stage("draft"):
            run = Run.begin(model.backbone, recipe, schedule.tokens(0, min(scales, len(schedule) - 1)))
            draft = run.finished(draft_of(run, scales, on_scale=progress))
        draft, samples, shown = drawn(model, draft, run, progress)
        mask = torch.ones(image.shape[:3]) if mask is None else mask
        return io.NodeOutput(draft, samples, image, mask, ui=shown)


def drafted_scales(schedule: Schedule, refine_scales: int) -> int:
    """How many scales are drafted.

    Raises:
        ValueError: none.
    """
    if refine_scales >= len(schedule):
        raise ValueError(
            f"refine_scales {refine_scales} leaves nothing to draft: this picture has {len(schedule)} "
            f"scales; choose at most {len(schedule) - 1}"
        )
    return len(schedule) - refine_scales


class EditDraft(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_EditDraft",
            display_name="MoSs Edit Draft",
            description="Changes a draft where two prompts disagree, and says where. What did not change "
            "keeps its detail; the refine nodes redraw the rest.",
            has_intermediate_output=True,
            search_aliases=["edit by words", "prompt to prompt", "change prompt", "moss edit"],
            inputs=[
                DraftIO.Input(
                    "draft",
                    tooltip="From MoSs Image to Draft, with all drafted scales taken, or a draft from text.",
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Int.Input(
                    "preserve", default=Edit.preserve, min=0, max=13,
                    tooltip="How many of the first scales stay as they are. More keeps more; 0 or 1 also "
                    "changes the background.",
                ),
                io.Int.Input(
                    "follow", default=Edit.follow, min=0, max=13,
                    tooltip="Up to which scale both prompts are compared. From there on the new prompt alone "
                    "draws, where something changed.",
                ),
                io.Combo.Input(
                    "rule", options=list(RULES), default=Edit.rule,
                    tooltip="shift changes every bit by as much as its probability moved; gate draws bits "
                    "again whose probability fell clearly.",
                ),
                io.Float.Input(
                    "gate", default=Edit.gate, min=0.0, max=1.0, step=0.05,
                    tooltip="Of the rule gate: how far a bit's probability must fall. Lower changes more.",
                ),
                io.Float.Input(
                    "found", default=Edit.found, min=0.0, max=1.0, step=0.05,
                    tooltip="A place counts as changed from this share of the largest change on. 0: "
                    "everything may be redrawn at the finer scales.",
                ),
                preview_input(),
                io.Conditioning.Input(
                    "source", optional=True,
                    tooltip="What the picture shows now. Not needed where the draft was drawn from that "
                    "prompt.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="White may change; without it the change is found.",
                ),
            ],
            outputs=[
                DraftIO.Output(
                    "edited", display_name="draft", tooltip="For MoSs Frequency Map and refine nodes."
                ),
                io.Latent.Output("latent", tooltip="The draft itself, for VAE Decode."),
                io.Image.Output("heatmap", tooltip="Where it changed: dark = not at all, pale = most."),
                io.Mask.Output(
                    "changed",
                    tooltip="The same from 0 to 1. Wired to MoSs Token Dispatch, what changed most is "
                    "redrawn first.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, draft: Drafted, positive: list, preserve: int, follow: int, rule: str, gate: float,
        found: float, preview: bool, source: list | None = None, mask: Tensor | None = None,
    ) -> io.NodeOutput:
        model, base = draft.model, draft.draft
        recipe, schedule, count = base.recipe, base.recipe.schedule, len(base.total)
        if base.passes:
            raise ValueError("this draft was refined already; wire the draft from before MoSs Refine")
        target = prompts(model, positive, "positive", count)
        before = prompts(model, source, "source", count) if source is not None else recipe.text
        check_differ(target, before)
        edit = Edit(before, min(preserve, base.scales), max(preserve, follow), rule, gate, found)
        own = recipe.source
        # the whole draft is a picture's: its finer codes are known
        whole = own is not None and own.scales >= base.scales
        picture = Source(own.bits if whole else base.bits, edit=edit)
        if mask is not None:
            size = picture_size(model.backbone, schedule)
            fine = mask_of(fit_mask(as_mask(mask), size, size), schedule)
            picture = replace(picture, mask=fine.expand(count, -1, -1))
        recipe = replace(recipe, text=target, source=picture)
        progress = begin(model, recipe, base.scales, 2, preview)
        with progress.stage("draft"):
            run, changed, change = edit_draft(model.backbone, recipe, base.scales, on_scale=progress)
        result, samples, shown = drawn(model, changed, run, progress)
        size = picture_size(model.backbone, schedule)
        share = change / change.amax((1, 2), keepdim=True).clamp_min(1e-20)
        large = torch.nn.functional.interpolate(share[:, None], size=size, mode="nearest-exact")[:, 0]
        return io.NodeOutput(result, samples, change_map(change, size), large, ui=shown)


def prompts(model: MossModel, conditioning: list, name: str, count: int) -> tuple:
    """Text features of a conditioning, one a picture.

    Raises:
        ValueError: another number of prompts, or prompts of another model.
    """
    schedule = model.files.schedule(1.0, model.files.area)
    return make_recipe(model, conditioning, None, schedule, 0, 1.0, 0.0, count).text


def check_differ(target: tuple, before: tuple) -> None:
    """Refuse an edit without a change.

    Raises:
        ValueError: both prompts are the same.
    """
    def same(a: Any, b: Any) -> bool:
        a, b = (getattr(text, "features", text) for text in (a, b))
        return a.shape == b.shape and torch.equal(a, b)

    if all(same(a, b) for a, b in zip(target, before, strict=True)):
        raise ValueError("both prompts are the same, so nothing would change; say in positive what to change")
