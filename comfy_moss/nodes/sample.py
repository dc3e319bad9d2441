"""Draw: the draft, its refinement, and the rivals that finish it densely or by FastVAR."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import replace
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..model.backbone import text_width
from ..model.library import facts
from ..model.schedule import PRESETS, Schedule, make_schedule, parse_aspect
from ..ops import BACKENDS, choose
from ..pipeline.cost import Cost, Stopwatch
from ..pipeline.draft import Draft, Recipe, Run, draft_of
from ..pipeline.fastvar import FastVARConfig, finish_fastvar
from ..pipeline.heatmap import enlarge
from ..pipeline.memory import RESERVED, Memory, predict, remedies
from ..pipeline.plan import Plan, plan_of
from ..pipeline.refine import composite, draw_pass, finish_dense, finished
from .host import PREVIEW, MossModel, Note, Progress, notes_of, text_features, warn
from .methods import (
    CUSTOM,
    METHODS,
    RECOMMENDED,
    Choice,
    another_pass_follows,
    budget_input,
    plan_chosen,
    seconds_input,
)
from .wires import (
    Dispatched,
    Drafted,
    DraftIO,
    Model,
    MossNode,
    Refined,
    ResidualIO,
    latent,
    same_draft,
    schema,
    stage,
)

ASPECTS = (
    "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "5:2", "3:1", "4:5", "3:4", "2:3", "9:16", "1:2", "2:5", "1:3",
)
MODEL_AREA = "model's own"
MAX_SEED = 2**64 - 1


def preview_input() -> io.Boolean.Input:
    """The widget of every node that draws scale by scale."""
    return io.Boolean.Input(
        "preview", default=True,
        tooltip="Show the picture after every scale, in coarse colours that cost next to nothing. ComfyUI's "
        "setting Live preview method decides too: none shows nothing.",
    )


def refine_scales_input(tooltip: str, default: int = 3, most: int = 12) -> io.Int.Input:
    """k, of every node that makes a draft."""
    return io.Int.Input("refine_scales", default=default, min=0, max=most, tooltip=tooltip)


def seed_input(tooltip: str) -> io.Int.Input:
    """The seed of the first picture, of every node that draws."""
    return io.Int.Input(
        "seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip
    )


def cfg_input(tooltip: str) -> io.Float.Input:
    """Guidance; 0 = the model's own."""
    return io.Float.Input("cfg", default=0.0, min=0.0, max=20.0, step=0.1, tooltip=tooltip)


def tau_input(tooltip: str) -> io.Float.Input:
    """Temperature; 0 = the model's own."""
    return io.Float.Input("tau", default=0.0, min=0.0, max=4.0, step=0.05, tooltip=tooltip)


def make_recipe(
    model: MossModel, positive: list, negative: list | None, schedule: Schedule, seed: int, cfg: float,
    tau: float, batch: int,
) -> Recipe:
    """The recipe of a batch; pictures count up from `seed`.

    Raises:
        ValueError: conditionings that do not fit the model or each other.
    """
    width = model.backbone.text_width
    text = text_features(positive, "positive")
    denied = text_features(negative, "negative") if negative is not None else ()
    for name, rows in (("positive", text), ("negative", denied)):
        if rows and (found := text_width(rows[0])) != width:
            raise ValueError(
                f"the {name} prompt was encoded to {found} numbers a token and this model reads {width}; "
                "use the CLIP of the same MoSs Load Infinity"
            )
        if len(rows) not in (0, 1, batch):
            raise ValueError(
                f"the {name} input holds {len(rows)} prompts for a batch of {batch}; give one, or one for "
                "each picture"
            )
    if all(map(model.backbone.is_empty, denied)):
        denied = ()  # the model's own unconditional text serves better than an empty prompt
    text, denied = (rows * batch if len(rows) == 1 else rows for rows in (text, denied))
    seeds = tuple((seed + n) % (MAX_SEED + 1) for n in range(batch))
    guidance, sampling = (
        model.files.guidance(cfg or model.files.cfg), model.files.sampling(tau or model.files.tau),
    )
    return Recipe(text, denied or None, seeds, schedule, guidance, sampling)


def size_note(model: MossModel, aspect: str, area: str) -> list[Note]:
    """A warning where the model has not learned to draw such pictures."""
    if model.files.learned(parse_aspect(aspect), area):
        return []
    areas = " or ".join(model.files.areas)
    made_for = f"{'squares of ' if model.files.squares_only else ''}{areas}"
    text = f"This model was trained on {made_for} pictures; {aspect} at {area} will look worse."
    return [Note("size", text, {"trained": made_for, "aspect": aspect, "area": area})]


def guidance_note(recipe: Recipe) -> list[Note]:
    """A warning that a negative prompt is there in vain."""
    notes = [Note("negative", text) for text in recipe.notes]
    for note in notes:
        warn(note)
    return notes


def memory_note(model: MossModel, plan: Plan, recipe: Recipe, caches: int = 1) -> list[Note]:
    """A warning where the device has too little memory for that, before it runs out, and what would help.

    Args:
        caches: of keys and values, at once; an edit has two.
    """
    schedule, batch = recipe.schedule, len(recipe.seeds)
    there, guided = mm.get_total_memory(mm.get_torch_device()), recipe.guidance.active(len(schedule))
    ways = {"": predict(model.backbone, plan, schedule, guided, batch)}
    ways |= _ways(model, plan, schedule, guided, batch)
    ways = {name: replace(memory, cache=caches * memory.cache) for name, memory in ways.items()}
    found = ways.pop("")
    if not (ways := remedies(found, there, ways)):
        return []
    needed, free = (f"{size / 2**30:.1f}" for size in (found.least + RESERVED, there))
    values = {"needed": needed, "there": free, "ways": ", ".join(ways)}
    text = (
        f"This picture needs about {needed} GiB and this device has {free} GiB; what helps: {values['ways']}."
    )
    note = Note("memory", text, values)
    warn(note)
    return [note]


def _ways(
    model: MossModel, plan: Plan, schedule: Schedule, guided: bool, batch: int
) -> dict[str, Memory]:
    """What may be changed to need less, by name."""
    backbone, (height, width) = model.backbone, schedule.grids[-1]
    found = {}
    if batch > 1:
        found["one picture at a time"] = predict(backbone, plan, schedule, guided)
    if not backbone.int8_cache:
        small = replace(backbone, int8_cache=True)
        found["kv_cache 8 bits"] = predict(small, plan, schedule, guided, batch)
    if 0 < plan.k < 5 and len(schedule) > 5:
        found["a method that leaves out more scales"] = predict(backbone, Plan(-5), schedule, guided, batch)
    for area in PRESETS:
        with contextlib.suppress(ValueError):  # a model of one size
            other = model.files.schedule(schedule.ratio, area)
            if math.prod(other.grids[-1]) < height * width:
                found[f"area {area}"] = predict(backbone, plan, other, guided, batch)
    return found


@functools.lru_cache
def sizes() -> dict[str, dict[str, tuple[int, int]]]:
    """Columns and rows of the last token grid, by area and aspect."""
    pairs = [(area, aspect) for area in PRESETS for aspect in ASPECTS]
    grids = {pair: make_schedule(parse_aspect(pair[1]), pair[0]).grids[-1] for pair in pairs}
    return {area: {aspect: grids[area, aspect][::-1] for aspect in ASPECTS} for area in PRESETS}


class InfinityDraft(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_InfinityDraft",
            display_name="MoSs Draft",
            description="Draws the picture coarse to fine, but leaves the last scales, the costly ones, to "
            "a refine node. Everything behind it can be changed without drawing it again.",
            has_intermediate_output=True,
            search_aliases=[
                "infinity draft", "infinity sampler", "next-scale sampler", "text to image",
            ],
            inputs=[
                Model.Input("model", tooltip="From MoSs Load Infinity."),
                io.Conditioning.Input(
                    "positive", tooltip="What to draw: CLIP Text Encode with the CLIP of MoSs Load Infinity."
                ),
                io.Combo.Input(
                    "aspect", options=list(ASPECTS), default="1:1",
                    tooltip="Width : height. Most released models were trained on all of these, others on "
                    "1:1 alone; the node shows the size in pixels, and warns.",
                ),
                io.Combo.Input(
                    "area", options=[MODEL_AREA, *PRESETS], default=MODEL_AREA,
                    extra_dict={"moss": {"models": facts(), "sizes": sizes()}},  # for the page
                    tooltip="How large. 1M is about 1024 x 1024 for released models (half the side for "
                    "nano), 0.25M a quarter of it. model's own is the size it was trained for; others look "
                    "worse.",
                ),
                refine_scales_input(
                    tooltip="k: how many of the last scales are left to the refine node; only for the "
                    "method custom. More is faster and uses less memory; fewer stays closer to the plain "
                    "model. The paper uses 2 to 5. 0 draws the whole picture here.",
                ),
                seed_input(
                    tooltip="The same seed gives the same draft for every k, batch size and device.",
                ),
                cfg_input(
                    tooltip="Guidance: how strictly the prompt is followed. 0 = the model's own value (nano "
                    "1.5, 2B 3). 1 switches guidance off, which halves time and memory.",
                ),
                tau_input(
                    tooltip="Temperature: how much chance there is. 0 = the model's own value (0.5; 8B 1). "
                    "Lower is calmer, higher wilder.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64,
                    tooltip="Pictures at once, with seeds counting up. Each is the same as if drawn alone.",
                ),
                preview_input(),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="What to keep out. Without it, or with an empty prompt, the model's own "
                    "unconditional text is used.",
                ),
                io.Combo.Input(
                    "method", options=list(METHODS), default=RECOMMENDED, optional=True,
                    tooltip="What is drafted here and what MoSs Token Dispatch and MoSs Refine then do. "
                    "recommended: for nano sparse3, which its tables show best at a fifth of the plain "
                    "model's work; for others the paper's. moss2 to moss5: the paper's. sparse4 needs two "
                    "refine passes. custom: refine_scales above. by budget and by seconds: the best known "
                    "plan within the numbers below.",
                ),
                budget_input(), seconds_input(),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            outputs=[
                DraftIO.Output("draft", tooltip="For MoSs Frequency Map and the other refine nodes."),
                io.Latent.Output("latent", tooltip="The draft itself, for VAE Decode."),
            ],
        )

    @classmethod
    def execute(
        cls, model: MossModel, positive: list, aspect: str, area: str, refine_scales: int, seed: int,
        cfg: float, tau: float, batch_size: int, preview: bool, negative: list | None = None,
        method: str = CUSTOM, budget: float = 0.2, seconds: float = 2.0,
    ) -> io.NodeOutput:
        area = model.files.area if area == MODEL_AREA else area
        schedule = model.files.schedule(parse_aspect(aspect), area)
        notes = [*notes_of(positive, "positive"), *notes_of(negative, "negative")]
        notes += size_note(model, aspect, area)
        recipe = make_recipe(model, positive, negative, schedule, seed, cfg, tau, batch_size)
        plan, told = plan_chosen(model, recipe, Choice(method, budget, seconds), getattr(cls, "hidden", None))
        recipe = plan.recipe(recipe) if plan else recipe
        left = plan.k if plan else refine_scales
        scales = len(schedule) - left
        if scales < 1:
            what = f"the method {method}" if plan else f"refine_scales {refine_scales}"
            raise ValueError(
                f"{what} leaves nothing to draft: this picture has {len(schedule)} scales; choose at most "
                f"{len(schedule) - 1}"
            )
        notes += [*told, *guidance_note(recipe), *memory_note(model, plan or Plan(-left), recipe)]
        rows = batch_size * (2 if recipe.guidance.active(len(schedule)) else 1)
        progress = Progress(model, scales, preview=preview)
        model.store.clear()  # the last draft's cache makes room
        with progress.stage("load"):
            tokens = schedule.tokens(0, min(scales, len(schedule) - 1))
            model.load(tokens, rows, schedule.tokens(scales - 1, scales), 0 if left else tokens)
        with progress.stage("draft"):
            run = Run.begin(model.backbone, recipe, tokens)
            draft = run.finished(draft_of(run, scales, on_scale=progress))
        if left:
            model.store.keep(draft, run)
        drawn = plan_of(draft)
        cost = Cost(drawn.label, drawn.tokens_per_scale(schedule), run.cache.nbytes, progress.seconds)
        drafted = replace(with_sketch(model, draft, cost, progress.watch), plan=plan)
        # what the node shows when it did not have to run again
        shown = {"images": drafted.pictures} if progress.shown else {}
        height, width = (side * model.backbone.stride for side in draft.total.shape[2:])
        used = {
            "width": width, "height": height, "cfg": recipe.guidance.asked, "tau": tau or model.files.tau,
            "drafted": scales, "scales": len(schedule), "plan": str(plan) if plan else "",
        }
        shown |= {"moss_used": [used], "moss_notes": [vars(note) for note in notes]}
        return io.NodeOutput(drafted, latent(draft.total, drafted.cost), ui=shown)


def saved_sketch(sketch: Tensor, stride: int) -> list[dict[str, Any]]:
    """Files for the web page of pictures (B, h, w, 3), at the size of what is drawn or, if that is larger,
    PREVIEW.

    Returns:
        For each its name, folder and kind of folder, as the page asks for it.
    """
    size = [side * stride for side in sketch.shape[1:3]]
    scale = min(1.0, PREVIEW / max(size))
    large = enlarge(sketch, [round(side * scale) for side in size])
    return [dict(entry) for entry in ui.ImageSaveHelper.save_images(large, "MoSs", io.FolderType.temp, None)]


def with_sketch(model: MossModel, draft: Draft, cost: Cost, watch: Stopwatch) -> Drafted:
    """What travels on the wire, with what the web page shows of it; that is a stage of its own."""
    with watch.stage("preview"):
        sketch = model.rgb(draft.total)
        pictures = saved_sketch(sketch, model.backbone.stride)
    cost = cost.plus({"preview": watch.seconds["preview"]}, model=model.files.told)
    return Drafted(model, draft, sketch, pictures, cost)


def stored(progress: Progress, drafted: Drafted) -> Run:
    """A run with the draft's cache and prepared text; what had to go is made again, as a stage of its own."""
    model, draft = drafted.model, drafted.draft
    if not model.store.missing(draft):
        return model.store.run_of(model.backbone, draft)
    with progress.stage("rebuild"):
        return model.store.run_of(model.backbone, draft, progress)


class MossRefine(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Refine",
            display_name="MoSs Refine",
            description="Redraws the dispatched tokens of all refine scales in one pass. They see the draft "
            "and each other.",
            search_aliases=["mixture of scales", "cross-scale attention", "cssa", "moss sampler"],
            inputs=[
                stage("MOSS_DISPATCH").Input("dispatch", tooltip="From MoSs Token Dispatch."),
                io.Boolean.Input(
                    "cross_scale_attention", default=True,
                    tooltip="On: tokens of all refine scales see each other. Off: only those of their own "
                    "scale (the paper's ablation).",
                ),
                io.Boolean.Input(
                    "guidance", default=True,
                    tooltip="On: as the method says; the paper's let the draft's cfg guide this pass too, "
                    "sparse ones do not. Off: never, which halves the work here.",
                ),
                io.Combo.Input(
                    "backend", options=list(BACKENDS), default="auto",
                    tooltip="How attention and RoPE are computed. auto takes the fastest that works here; "
                    "torch always works; triton needs an NVIDIA card of the RTX 30 series or newer.",
                ),
                DraftIO.Input(
                    "draft", optional=True,
                    tooltip="Not needed: dispatch carries the draft. For older workflows.",
                ),
            ],
            outputs=[ResidualIO.Output("residual", tooltip="For MoSs Composite.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls, dispatch: Any, cross_scale_attention: bool, guidance: bool, backend: str,
        draft: Drafted | None = None,
    ) -> io.NodeOutput:
        draft = same_draft(draft, dispatch, "dispatch")
        if not isinstance(dispatch, Dispatched):  # MoSs Token Dispatch is bypassed: nothing to redraw
            return io.NodeOutput(dispatch)
        model, counts, base = draft.model, dispatch.dispatch.counts, draft.draft
        kernels = model.backbone.kernels if backend == "auto" else choose(backend, mm.get_torch_device())[0]
        step = dispatch.step
        cross_scale = cross_scale_attention and step.cross_scale
        step = replace(step, cross_scale=cross_scale, guidance=step.guidance if guidance else 1.0)
        store = another_pass_follows(getattr(cls, "hidden", None))
        missing, scales = model.store.missing(base), 0 if model.store.holds(base) else base.scales
        progress = Progress(model, scales + 1, first=base.scales - scales)
        with progress.stage("load"):
            room = missing + (sum(counts) if store else 0)
            model.load(room, draft.rows, sum(counts), 0 if store else base.cached_tokens)
        run = stored(progress, draft)
        run = model.store.with_room(base, sum(counts)) if store else run
        run = replace(run, backbone=replace(model.backbone, kernels=kernels))
        with progress.stage("refine"), torch.inference_mode():
            residual, run = draw_pass(run, base, dispatch.dispatch, step, store)
            residual = run.finished(residual)
        if store:
            model.store.keep_pass(base, residual, run)
        progress(base.scales + 1, base.scales + 1, base.total)
        kv_bytes = max(draft.cost.kv_bytes, model.store.nbytes)
        return io.NodeOutput(
            Refined(draft, residual, dispatch.cost.plus(progress.seconds, kv_bytes=kv_bytes))
        )


class MossComposite(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Composite",
            display_name="MoSs Composite",
            description="Lays the refined tokens over the draft.",
            search_aliases=["moss blend", "strength"],
            inputs=[
                stage("MOSS_RESIDUAL").Input("residual", tooltip="From MoSs Refine."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the refinement is added. 1 is the paper's; 0 shows the draft. "
                    "Lower if detail looks overdone.",
                ),
                DraftIO.Input(
                    "draft", optional=True,
                    tooltip="Not needed: residual carries the draft. For older workflows.",
                ),
                io.Latent.Input(
                    "draft_latent", optional=True,
                    tooltip="The draft's latent, which goes on in place of the picture while this node is "
                    "bypassed (Ctrl+B). Otherwise not used.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            outputs=[
                io.Latent.Output("latent", tooltip="For VAE Decode."),
                DraftIO.Output(
                    "next_draft", display_name="draft",
                    tooltip="The result as a draft, for another pass: to MoSs Frequency Map, MoSs Token "
                    "Dispatch and MoSs Refine again.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, residual: Any, strength: float, draft: Drafted | None = None,
        draft_latent: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        draft = same_draft(draft, residual, "residual")
        if not isinstance(residual, Refined):  # a node before this one is bypassed: the picture is the draft
            return io.NodeOutput(latent(draft.draft.total, draft.cost), draft)
        if draft.draft.model_id != residual.drafted.draft.model_id:
            raise ValueError(
                "the residual was drawn by another model than the draft; wire both to one MoSs Draft"
            )
        model, watch = draft.model, Stopwatch(mm.get_torch_device())
        with watch.stage("load"):
            # part of what the codes add may be the codec's to say; the transformer's never
            device = model.load_codec()
        with watch.stage("composite"):
            made_by = replace(residual.residual.made_by, strength=strength)
            residual_of = replace(residual.residual, made_by=made_by)
            laid = composite(model.backbone, draft.draft, residual_of, device).cpu()
            total = finished(model.backbone, laid, device)
        changes = {
            "label": plan_of(laid).label, "tokens_per_scale": laid.tokens_per_scale,
            "refine_tokens": laid.refined,
        }
        drafted = with_sketch(
            model, laid, residual.cost.plus(watch.seconds, **changes), Stopwatch(watch.device)
        )
        drafted = replace(drafted, plan=draft.plan)
        shown = unfinished(drafted, getattr(cls, "hidden", None))
        return io.NodeOutput(latent(total, drafted.cost), drafted, ui=shown)


def unfinished(drafted: Drafted, hidden: Any) -> dict[str, list] | None:
    """A warning on the node where the method goes on and the graph does not."""
    if drafted.next_pass is None or another_pass_follows(hidden):
        return None
    text = (
        f"The method {drafted.plan.label} has {len(drafted.plan.passes)} refine passes and this graph runs "
        f"{len(drafted.draft.passes)}; wire this node's draft to MoSs Frequency Map, MoSs Token Dispatch and "
        "MoSs Refine again."
    )
    counts = {"passes": len(drafted.plan.passes), "run": len(drafted.draft.passes)}
    note = Note("unfinished", text, {"method": drafted.plan.label, **counts})
    warn(note)
    return {"moss_notes": [vars(note)]}


class DenseRefine(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_DenseRefine",
            display_name="MoSs Dense Refine",
            description="Draws the remaining scales one after the other and everywhere, as the plain model "
            "does: the slow reference.",
            search_aliases=["infinity full", "plain infinity", "dense"],
            inputs=[DraftIO.Input("draft", tooltip="From MoSs Draft."), preview_input()],
            outputs=[io.Latent.Output("latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, draft: Drafted, preview: bool) -> io.NodeOutput:
        model, schedule, base = draft.model, draft.schedule, draft.draft
        if not base.left:
            return io.NodeOutput(latent(base.total, draft.cost))
        first, last = base.left.start, len(schedule)
        scales = 0 if model.store.holds(base) else base.scales
        progress = Progress(model, scales + last - first, first - scales, preview)
        with progress.stage("load"):
            grown = base.cached_tokens + schedule.tokens(first, last - 1)  # the draft's cache is copied
            model.load(model.store.missing(base) + grown, draft.rows, schedule.tokens(last - 1), grown)
        run = stored(progress, draft)
        with progress.stage("dense"):
            done, cache = finish_dense(model.backbone, base, run.cache, progress, condition=run.condition)
        plan = plan_of(done)
        tokens = plan.tokens_per_scale(schedule)
        cost = draft.cost.plus(
            progress.seconds, label=plan.label, tokens_per_scale=tokens, kv_bytes=cache.nbytes
        )
        return io.NodeOutput(latent(finished(model.backbone, done), cost))


def check_fastvar(drafted: Drafted) -> FastVARConfig:
    """FastVAR's settings, if it can take over this draft.

    Raises:
        ValueError: the draft has already drawn scales that FastVAR prunes or skips.
    """
    config = FastVARConfig.printed(drafted.model.backbone.published)
    if drafted.draft.passes:
        raise ValueError(
            "FastVAR goes on from scales that were drawn whole; wire it to MoSs Draft, not to MoSs "
            "Composite"
        )
    needed = config.skip + len(config.prune)
    if drafted.draft.refine_scales < needed:
        raise ValueError(
            f"FastVAR works on the last {needed} scales, but this draft leaves only "
            f"{drafted.draft.refine_scales}; set refine_scales of MoSs Draft to {needed} or more"
        )
    return config


class FastVARRefine(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_FastVARRefine",
            display_name="MoSs FastVAR Refine",
            description="Finishes the draft by FastVAR (arXiv 2503.23367): late scales on their most active "
            "tokens only, the last two skipped. The rival to compare with.",
            search_aliases=["fastvar", "token pruning"],
            inputs=[
                DraftIO.Input("draft", tooltip="From MoSs Draft, with refine_scales 4 or more."),
                preview_input(),
            ],
            outputs=[io.Latent.Output("latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, draft: Drafted, preview: bool) -> io.NodeOutput:
        config, model, schedule = check_fastvar(draft), draft.model, draft.schedule
        last = len(schedule) - config.skip
        progress = Progress(model, last, preview=preview)
        with progress.stage("load"):
            past = schedule.tokens(0, last - 1)
            model.load(past, draft.rows, schedule.tokens(last - 1, last), past)
        # it saves updates of drafted scales too, so those run again with their bits given
        with progress.stage("whole picture"):
            recipe, bits = draft.draft.recipe, draft.draft.bits
            drawn, cache, tokens = finish_fastvar(model.backbone, recipe, config, bits, progress)
        cost = Cost("fastvar", tuple(tokens), cache.nbytes, progress.seconds)
        return io.NodeOutput(latent(finished(model.backbone, drawn), cost))
