"""MoSs Refine and MoSs Composite: redraw the dispatched tokens in one pass, and lay them over the draft."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management as mm
from comfy_api.latest import io

from ..ops import BACKENDS, choose
from ..pipeline.composite import composite
from ..pipeline.refine import RefineConfig, refine
from ..pipeline.stopwatch import Stopwatch
from .progress import Progress
from .schema import DispatchIO, DraftIO, ResidualIO, schema
from .values import Dispatched, Drafted, Refined, check_same_shape, latent


class MossRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Refine",
            display_name="MoSs Refine",
            description="Redraws the dispatched tokens of all refine scales in one pass. They see the draft and each other.",
            search_aliases=["mixture of scales", "cross-scale attention", "cssa", "moss sampler"],
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft."),
                DispatchIO.Input("dispatch", tooltip="From Token Dispatch."),
                io.Boolean.Input(
                    "cross_scale_attention", default=True,
                    tooltip="On: tokens of all refine scales see each other. Off: only those of their own scale (the paper's "
                    "ablation).",
                ),
                io.Boolean.Input(
                    "guidance", default=True,
                    tooltip="On: the draft's cfg also guides this pass. Off: half the work here, a little less faithful to "
                    "the prompt.",
                ),
                io.Combo.Input(
                    "backend", options=list(BACKENDS), default="auto",
                    tooltip="How attention and RoPE are computed. auto takes the fastest that works here; torch always works; "
                    "triton needs an NVIDIA card of the RTX 30 series or newer.",
                ),
            ],
            outputs=[ResidualIO.Output("residual", tooltip="For MoSs Composite.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, draft: Drafted, dispatch: Dispatched, cross_scale_attention: bool, guidance: bool, backend: str
    ) -> io.NodeOutput:
        check_same_shape(draft, dispatch.drafted, "dispatch")
        model, counts = draft.model, dispatch.dispatch.counts
        kernels = choose(backend, mm.get_torch_device())[0]
        model.load(draft.schedule.tokens(0, draft.draft.scales), draft.rows, sum(counts))
        watch, progress = Stopwatch(model.backbone.device), Progress(model, 2, preview=False)
        cache = model.slot.of(model.backbone, draft.draft)
        progress(1, 2, draft.draft.total)
        backbone, config = replace(model.backbone, kernels=kernels), RefineConfig(cross_scale_attention, guidance)
        with watch.stage("refine"):
            residual = refine(backbone, draft.draft, dispatch.dispatch, config, cache)
        progress(2, 2, draft.draft.total)
        tokens = draft.cost.tokens_per_scale[: draft.draft.scales] + counts
        changes = {"label": f"moss{len(counts)}", "tokens_per_scale": tokens}
        return io.NodeOutput(Refined(draft, residual, dispatch.cost.plus("refine", watch.seconds["refine"], **changes)))


class MossComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Composite",
            display_name="MoSs Composite",
            description="Lays the refined tokens over the draft.",
            search_aliases=["moss blend", "strength"],
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft."),
                ResidualIO.Input("residual", tooltip="From MoSs Refine."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05, display_mode=io.NumberDisplay.slider,
                    tooltip="How much of the refinement is added. 1 is the paper's; 0 shows the draft. Lower if detail looks "
                    "overdone.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="For VAE Decode.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, draft: Drafted, residual: Refined, strength: float) -> io.NodeOutput:
        check_same_shape(draft, residual.drafted, "residual")
        if draft.draft.model_id != residual.drafted.draft.model_id:
            raise ValueError("the residual was drawn by another model than the draft; wire both to one Infinity Draft")
        model = draft.model
        watch = Stopwatch(model.backbone.device)
        with watch.stage("composite"):
            total = composite(model.backbone, draft.draft, residual.residual, strength)
        return io.NodeOutput(latent(total, residual.cost.plus("composite", watch.seconds["composite"])))
