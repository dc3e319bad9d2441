"""The rivals, for comparison in one graph: draw the rest densely, or by FastVAR."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..pipeline.cost import Cost
from ..pipeline.dense import finish_dense
from ..pipeline.fastvar import FastVARConfig, finish_fastvar
from ..pipeline.stopwatch import Stopwatch
from .model import MossModel
from .progress import Progress
from .schema import DraftIO, schema
from .values import Drafted, latent


class DenseRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_DenseRefine",
            display_name="Infinity Dense Refine",
            description="Draws the remaining scales one after the other and everywhere, as the plain model does: the slow "
            "reference.",
            search_aliases=["infinity full", "plain infinity", "dense"],
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft."),
                io.Boolean.Input(
                    "preview", default=True, tooltip="Show the picture after every scale. Costs a small decode each.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, draft: Drafted, preview: bool) -> io.NodeOutput:
        model, schedule, first = draft.model, draft.schedule, draft.draft.scales
        if not draft.draft.refine_scales:
            return io.NodeOutput(latent(draft.draft.total, draft.cost))
        last = len(schedule)
        cached = schedule.tokens(0, first) + schedule.tokens(0, last - 1)  # the draft's cache is copied
        model.load(cached, draft.rows, schedule.tokens(last - 1))
        watch, progress = Stopwatch(model.backbone.device), Progress(model, last - first, first, preview)
        cache = model.slot.of(model.backbone, draft.draft)
        with watch.stage("dense"):
            done, grown = finish_dense(model.backbone, draft.draft, cache, progress)
        seconds = watch.seconds["dense"] - progress.seconds
        tokens = tuple(h * w for h, w in schedule.grids)
        cost = draft.cost.plus("dense", seconds, label="dense", tokens_per_scale=tokens, kv_bytes=grown.nbytes)
        return io.NodeOutput(latent(done.total, cost))


def check_fastvar(drafted: Drafted) -> FastVARConfig:
    """FastVAR's settings, if it can take over this draft.

    Raises:
        ValueError: the draft has already drawn scales that FastVAR prunes or skips.
    """
    config = FastVARConfig.printed(drafted.model.backbone)
    needed = config.skip + len(config.prune)
    if drafted.draft.refine_scales < needed:
        raise ValueError(
            f"FastVAR works on the last {needed} scales, but this draft leaves only {drafted.draft.refine_scales}; "
            f"set refine_scales of Infinity Draft to {needed} or more"
        )
    return config


def finish(model: MossModel, drafted: Drafted, config: FastVARConfig, preview: bool) -> tuple[Tensor, Cost]:
    """Sum of codes and cost.  FastVAR saves updates of the drafted scales too, so it runs them again with their bits given."""
    schedule = drafted.schedule
    last = len(schedule) - config.skip
    watch, progress = Stopwatch(model.backbone.device), Progress(model, last, preview=preview)
    with watch.stage("whole picture"):
        drawn, cache, tokens = finish_fastvar(model.backbone, drafted.draft.recipe, config, drafted.draft.bits, progress)
    seconds = {"whole picture": watch.seconds["whole picture"] - progress.seconds}
    return drawn.total, Cost("fastvar", tuple(tokens), cache.nbytes, seconds)


class FastVARRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_FastVARRefine",
            display_name="FastVAR Refine",
            description="Finishes the draft by FastVAR (arXiv 2503.23367): late scales on their most active tokens only, the "
            "last two skipped. The rival to compare with.",
            search_aliases=["fastvar", "token pruning"],
            inputs=[
                DraftIO.Input("draft", tooltip="From Infinity Draft, with refine_scales 4 or more."),
                io.Boolean.Input(
                    "preview", default=True, tooltip="Show the picture after every scale. Costs a small decode each.",
                ),
            ],
            outputs=[io.Latent.Output("latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(cls, draft: Drafted, preview: bool) -> io.NodeOutput:
        config, model, schedule = check_fastvar(draft), draft.model, draft.schedule
        last = len(schedule) - config.skip
        model.load(schedule.tokens(0, last - 1), draft.rows, schedule.tokens(last - 1, last))
        total, cost = finish(model, draft, config, preview)
        return io.NodeOutput(latent(total, cost))
