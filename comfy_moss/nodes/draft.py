"""Infinity Draft: draw the first scales, live."""

from __future__ import annotations

from comfy_api.latest import io

from ..model.sampling import Guidance
from ..model.schedule import PRESETS, Schedule, parse_aspect
from ..pipeline.cost import Cost
from ..pipeline.draft import Recipe, draw_draft
from ..pipeline.stopwatch import Stopwatch
from .clip import text_features
from .model import MossModel
from .progress import Progress
from .schema import DraftIO, Model, schema
from .values import Drafted, latent

ASPECTS = ("1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "5:2", "3:1", "4:5", "3:4", "2:3", "9:16", "1:2", "2:5", "1:3")
MODEL_AREA = "model's own"
MAX_SEED = 2**64 - 1


def make_recipe(
    model: MossModel, positive: list, negative: list | None, schedule: Schedule, seed: int, cfg: float, tau: float, batch: int
) -> Recipe:
    """The recipe of a batch; pictures count up from `seed`.

    Raises:
        ValueError: conditionings that do not fit the model or each other.
    """
    width = model.backbone.text_width
    text = text_features(positive, "positive")
    denied = text_features(negative, "negative") if negative is not None else ()
    for name, rows in (("positive", text), ("negative", denied)):
        if rows and rows[0].shape[1] != width:
            raise ValueError(
                f"the {name} prompt was encoded to {rows[0].shape[1]} numbers a token and this model reads {width}; "
                "use the CLIP of the same Load Infinity"
            )
        if len(rows) not in (0, 1, batch):
            raise ValueError(
                f"the {name} input holds {len(rows)} prompts for a batch of {batch}; give one, or one for each picture"
            )
    if all(map(model.backbone.is_empty, denied)):
        denied = ()  # the model's own unconditional text serves better than an empty prompt
    text, denied = (rows * batch if len(rows) == 1 else rows for rows in (text, denied))
    seeds = tuple((seed + n) % (MAX_SEED + 1) for n in range(batch))
    guidance, sampling = Guidance(cfg or model.files.cfg), model.files.sampling(tau or model.files.tau)
    return Recipe(text, denied or None, seeds, schedule, guidance, sampling)


class InfinityDraft(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_InfinityDraft",
            display_name="Infinity Draft",
            description="Draws the picture coarse to fine, but leaves the last scales, the costly ones, to a refine node. "
            "Everything behind it can be changed without drawing it again.",
            search_aliases=["infinity sampler", "moss draft", "next-scale sampler", "text to image"],
            inputs=[
                Model.Input("model", tooltip="From Load Infinity."),
                io.Conditioning.Input("positive", tooltip="What to draw: CLIP Text Encode with the CLIP of Load Infinity."),
                io.Combo.Input(
                    "aspect", options=list(ASPECTS), default="1:1",
                    tooltip="Width : height. These are the ratios the model was trained on.",
                ),
                io.Combo.Input(
                    "area", options=[MODEL_AREA, *PRESETS], default=MODEL_AREA,
                    tooltip="How large. 1M is about 1024 x 1024 for released models (half the side for nano), 0.25M a quarter "
                    "of it. model's own is the size it was trained for; others look worse.",
                ),
                io.Int.Input(
                    "refine_scales", default=4, min=0, max=12,
                    tooltip="k: how many of the last scales are left to the refine node. More is faster and uses less memory; "
                    "fewer stays closer to the plain model. The paper uses 2 to 5. 0 draws the whole picture here.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                    tooltip="The same seed gives the same draft for every k, batch size and device.",
                ),
                io.Float.Input(
                    "cfg", default=0.0, min=0.0, max=20.0, step=0.1,
                    tooltip="Guidance: how strictly the prompt is followed. 0 = the model's own value (nano 1.5, 2B 3). 1 "
                    "switches guidance off, which halves time and memory.",
                ),
                io.Float.Input(
                    "tau", default=0.0, min=0.0, max=4.0, step=0.05,
                    tooltip="Temperature: how much chance there is. 0 = the model's own value (0.5; 8B 1). Lower is calmer, "
                    "higher wilder.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64,
                    tooltip="Pictures at once, with seeds counting up. Each is the same as if drawn alone.",
                ),
                io.Boolean.Input(
                    "preview", default=True, tooltip="Show the picture after every scale. Costs a small decode each.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="What to keep out. Without it, or with an empty prompt, the model's own unconditional text is used.",
                ),
            ],
            outputs=[
                DraftIO.Output("draft", tooltip="For Frequency Map, MoSs Refine and the other refine nodes."),
                io.Latent.Output("latent", tooltip="The draft itself, for VAE Decode."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: MossModel, positive: list, aspect: str, area: str, refine_scales: int, seed: int, cfg: float, tau: float,
        batch_size: int, preview: bool, negative: list | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        schedule = model.files.schedule(parse_aspect(aspect), model.files.area if area == MODEL_AREA else area)
        scales = len(schedule) - refine_scales
        if scales < 1:
            raise ValueError(
                f"refine_scales {refine_scales} leaves nothing to draft: this picture has {len(schedule)} scales; "
                f"choose at most {len(schedule) - 1}"
            )
        recipe = make_recipe(model, positive, negative, schedule, seed, cfg, tau, batch_size)
        rows = batch_size * (2 if recipe.guidance.active(len(schedule)) else 1)
        model.slot.clear()  # the last draft's cache makes room
        model.load(schedule.tokens(0, min(scales, len(schedule) - 1)), rows, schedule.tokens(scales - 1, scales))
        watch, progress = Stopwatch(model.backbone.device), Progress(model, scales, preview=preview)
        with watch.stage("draft"):
            draft, cache = draw_draft(model.backbone, recipe, scales, on_scale=progress)
        tokens = tuple(h * w if n < scales else 0 for n, (h, w) in enumerate(schedule.grids))
        label = f"draft-{refine_scales}" if refine_scales else "dense"
        seconds = {"draft": watch.seconds["draft"] - progress.seconds}
        drafted = Drafted(model, draft, model.sketch(draft.total), Cost(label, tokens, cache.nbytes, seconds))
        if refine_scales:
            model.slot.keep(draft, cache)
        return io.NodeOutput(drafted, latent(draft.total, drafted.cost))


