"""Drafts of VAREdit and NSARM, fine-tunes of Infinity that draw from a picture; and what follows them.

Facts: docs/fine-tunes.md.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..colour import fix_colours
from ..images import to_bytes
from ..model.backbone import PicturedText
from ..model.family import NSARM, VAREDIT
from ..model.nsarm import SIDES, SMALL, TIMES
from ..model.varedit import cropped_to, padded_square
from ..pipeline.cost import Cost
from ..pipeline.dispatch import as_picture
from ..pipeline.draft import Recipe, draft_of
from ..pipeline.plan import Plan, plan_of
from .host import MossModel, Progress
from .pictures import drafted_scales
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
from .wires import DraftIO, Model, MossNode, latent, schema

AS_IT_IS, CROPPED = "as it is", "the reference's, without padding"
COLOURS = {  # name -> statistics, low frequencies
    "as they are": (False, False), "the reference's": (True, True), "its statistics only": (True, False),
    "its low frequencies only": (False, True),
}
EDIT_AREAS = ("0.25M", "1M")


def require(model: MossModel, family: str, node: str) -> None:
    """Refuse a model of another family.

    Raises:
        ValueError: it is one.
    """
    if model.files.family.name != family:
        raise ValueError(
            f"{node} draws with {family}, but this model is {model.files.told}; choose one of {family}'s "
            "files in the loader or, if this is one, set its family there"
        )


def to_pillow(pictures: Tensor) -> list[Image.Image]:
    """Pictures (B, H, W, 3) in [0, 1] at 8 bit."""
    return [Image.fromarray(one.numpy()) for one in to_bytes(pictures.cpu())]


def from_pillow(pictures: list[Image.Image]) -> Tensor:
    """Pictures of one size, as (B, H, W, 3) in [0, 1]."""
    rows = [torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8) for one in pictures]
    width, height = pictures[0].size
    return torch.stack(rows).view(len(rows), height, width, 3) / 255


def drawn(
    model: MossModel, recipe: Recipe, pictures: Tensor, refine_scales: int, preview: bool
) -> io.NodeOutput:
    """The draft of pictures (B, H, W, 3) in [0, 1], of the size that the model reads.

    What the last draft made ready for the same words and pictures is used again.
    """
    schedule, backbone, store = recipe.schedule, model.backbone, model.store
    guidance_note(recipe)
    memory_note(model, Plan(-refine_scales), recipe)
    scales, rows = len(schedule) - refine_scales, len(recipe.seeds)
    rows *= 2 if recipe.guidance.active(len(schedule)) else 1
    tokens, before = schedule.tokens(0, min(scales, len(schedule) - 1)), backbone.work.before(schedule)
    progress = Progress(model, scales, preview=preview)
    store.drop()  # the last draft's cache makes room
    with progress.stage("load"):
        past = 0 if refine_scales else before + tokens
        model.load(before + tokens, rows, max(before, schedule.tokens(scales - 1, scales)), past)
    with progress.stage("encode"):
        pixels = (2 * pictures - 1).movedim(-1, 1).contiguous()
        features = backbone.encode(pixels.to(backbone.device)).cpu()
        text = (PicturedText(*pair) for pair in zip(recipe.text, features, strict=True))
        recipe = replace(recipe, text=tuple(text))
        store.make_room(recipe)
    with progress.stage("draft"):
        run = store.begin(backbone, recipe, tokens)
        draft = run.finished(draft_of(run, scales, on_scale=progress))
    if refine_scales:
        store.keep(draft, run)
    plan = plan_of(draft)
    cost = Cost(plan.label, plan.tokens_per_scale(schedule), run.cache.nbytes, progress.seconds)
    drafted = with_sketch(model, draft, cost, progress.watch)
    shown = {"images": drafted.pictures} if progress.shown else None
    return io.NodeOutput(drafted, latent(draft.total, drafted.cost), ui=shown)


def draft_outputs() -> list:
    return [
        DraftIO.Output("draft", tooltip="For MoSs Frequency Map, MoSs Refine and the other refine nodes."),
        io.Latent.Output("latent", tooltip="The draft itself, for VAE Decode."),
    ]


SEED = (
    "Of the first picture; the others of a batch count up. Another seed costs less than the first: what was "
    "made ready of words and picture is used again."
)


class InstructEdit(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_InstructEdit",
            display_name="MoSs Instruct Edit",
            description="Changes a picture as an instruction says, with VAREdit: make it autumn. It gives a "
            "draft, with which every other node works.",
            has_intermediate_output=True,
            search_aliases=["edit by instruction", "varedit", "image edit", "instruct pix2pix"],
            inputs=[
                Model.Input("model", tooltip="From MoSs Load Infinity, with a file of VAREdit."),
                io.Image.Input(
                    "image", tooltip="The picture to change, of any size and shape, or a batch of them."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What to change, as an instruction: CLIP Text Encode with the CLIP of the "
                    "loader.",
                ),
                refine_scales_input(
                    default=4,
                    tooltip="k: how many of the last scales are left to the refine node. 0 draws the whole "
                    "picture here.",
                ),
                seed_input(SEED),
                cfg_input(
                    tooltip="Guidance: how strictly the instruction is followed. 0 = the model's own value "
                    "(3). 1 switches guidance off.",
                ),
                tau_input(
                    tooltip="Temperature: how much chance there is. 0 = the model's own value (0.1), where "
                    "seeds differ little.",
                ),
                io.Combo.Input(
                    "area", options=[MODEL_AREA, *EDIT_AREAS], default=MODEL_AREA,
                    tooltip="How large the square is that is drawn: 0.25M is 512 x 512, 1M 1024 x 1024. "
                    "model's own goes by the file's name.",
                ),
                preview_input(),
                io.Conditioning.Input(
                    "negative", optional=True,
                    tooltip="What to keep out. Without it the model's own unconditional text is used.",
                ),
            ],
            outputs=draft_outputs(),
        )

    @classmethod
    def execute(
        cls, model: MossModel, image: Tensor, positive: list, refine_scales: int, seed: int, cfg: float,
        tau: float, area: str, preview: bool, negative: list | None = None,
    ) -> io.NodeOutput:
        require(model, VAREDIT, "MoSs Instruct Edit")
        image, schedule = as_picture(image), model.files.schedule(1.0, _area(model, area))
        drafted_scales(schedule, refine_scales)
        recipe = make_recipe(model, positive, negative, schedule, seed, cfg, tau, len(image))
        side = model.backbone.stride * model.backbone.map_grid(schedule.grids[-1])[0]
        square = from_pillow([padded_square(one, side) for one in to_pillow(image)])
        return drawn(model, recipe, square, refine_scales, preview)


def _area(model: MossModel, area: str) -> str:
    return model.files.area if area == MODEL_AREA else area


class Enlarge(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Enlarge",
            display_name="MoSs Enlarge",
            description=f"Enlarges a small, damaged picture {TIMES} times with NSARM, from {SMALL} x {SMALL} "
            f"to {TIMES * SMALL} x {TIMES * SMALL}. It gives a draft, with which every other node works.",
            has_intermediate_output=True,
            search_aliases=["upscale", "super resolution", "nsarm", "restore"],
            inputs=[
                Model.Input("model", tooltip="From MoSs Load Infinity, with NSARM.pth."),
                io.Image.Input(
                    "image", tooltip=f"A picture of {SMALL} x {SMALL} pixels, or a batch of them."
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the picture shows, in detail: CLIP Text Encode with the CLIP of the "
                    "loader.",
                ),
                refine_scales_input(
                    default=2, most=6,
                    tooltip="k: how many of the last scales are left to the refine node. With 6 nothing is "
                    "drawn here: the first seven scales come from the picture. 0 draws all of it here.",
                ),
                seed_input(SEED),
                tau_input(
                    tooltip="Temperature: how much chance there is. 0 = the model's own value (0.5).",
                ),
                preview_input(),
            ],
            outputs=draft_outputs(),
        )

    @classmethod
    def execute(
        cls, model: MossModel, image: Tensor, positive: list, refine_scales: int, seed: int, tau: float,
        preview: bool,
    ) -> io.NodeOutput:
        require(model, NSARM, "MoSs Enlarge")
        image, schedule = as_picture(image), model.files.schedule(1.0, model.files.area)
        if image.shape[1:3] != (SMALL, SMALL):
            height, width = image.shape[1:3]
            raise ValueError(
                f"MoSs Enlarge takes pictures of {SMALL} x {SMALL} pixels, got {width} x {height}; scale "
                "yours with Upscale Image, or cut it into tiles"
            )
        if len(schedule) - refine_scales < len(SIDES):
            raise ValueError(
                f"refine_scales {refine_scales} leaves fewer than the {len(SIDES)} scales that come from the "
                f"picture; choose at most {len(schedule) - len(SIDES)}"
            )
        recipe = make_recipe(model, positive, None, schedule, seed, 0.0, tau, len(image))
        return drawn(model, recipe, to_bytes(image) / 255, refine_scales, preview)


class MatchPicture(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_MatchPicture",
            display_name="MoSs Match Picture",
            description="Gives a drawn picture the size or the colours of the one that it was made from. "
            "Works with pictures of any model.",
            search_aliases=["colour fix", "color fix", "adain", "wavelet color", "color match", "uncrop"],
            inputs=[
                io.Image.Input("image", tooltip="What was drawn, from VAE Decode."),
                io.Image.Input("reference", tooltip="What it was made from."),
                io.Combo.Input(
                    "size", options=[AS_IT_IS, CROPPED], default=AS_IT_IS,
                    tooltip="The second undoes the padding of MoSs Instruct Edit: the square is scaled to "
                    "the reference's longer side and cropped to its shape.",
                ),
                io.Combo.Input(
                    "colours", options=list(COLOURS), default="as they are",
                    tooltip="The reference's are what MoSs Enlarge wants: mean and spread of every channel, "
                    "then the low frequencies. The detail stays the drawn picture's.",
                ),
            ],
            outputs=[io.Image.Output("matched", display_name="image", tooltip="For Save Image.")],
        )

    @classmethod
    def execute(cls, image: Tensor, reference: Tensor, size: str, colours: str) -> io.NodeOutput:
        image, reference = as_picture(image), as_picture(reference)
        if size == CROPPED:
            side = (reference.shape[2], reference.shape[1])
            image = from_pillow([cropped_to(one, side) for one in to_pillow(image)])
        statistics, wavelet = COLOURS[colours]
        if statistics or wavelet:
            image = fix_colours(image, reference, statistics, wavelet)
        return io.NodeOutput(image)
