"""MoSs Compare: several ways to draw one picture side by side, and which comes closest in the same time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..images import poster, psnr, ssim
from ..pipeline.cost import Cost
from .maps import cost_of
from .wires import MossNode, schema

RIVALS = 4
EQUAL = 1.35  # times as long as the first one still counts as equally long: a run's times vary by so much
NAMES = {"draft-3; -1@45 unguided": "sparse3", "draft-4; -4@70; -1@45 unguided": "sparse4"}


@dataclass(frozen=True, eq=False)  # by identity: two ways may give the same numbers
class Compared:
    """A picture beside the reference.

    Attributes:
        texture: energy of its finest detail as a share of the reference's; below 1 = blurred.
    """

    name: str
    seconds: float
    tokens: int
    psnr: float
    ssim: float
    texture: float
    image: Tensor


def texture_energy(image: Tensor) -> float:
    """Mean squared distance of the pixels (B, H, W, 3) from the mean of their 3 x 3 surroundings."""
    pixels = image.movedim(-1, 1)
    return (pixels - F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)).square().mean().item()


def compared(latent: dict[str, Any], image: Tensor, reference: Tensor, name: str) -> Compared:
    """What a latent of this pack took, and how like the reference its picture is."""
    cost = cost_of(latent, name)
    if image.shape != reference.shape:
        raise ValueError(f"the {name} input is of another size than the reference; draw all in one size")
    likeness = psnr(image, reference).mean().item(), ssim(image, reference).mean().item()
    energy = texture_energy(image) / max(texture_energy(reference), 1e-12)
    tokens = sum(cost.tokens_per_scale)
    return Compared(shown_name(cost), cost.method_seconds, tokens, *likeness, energy, image)


def shown_name(cost: Cost) -> str:
    """The short name of a plan that has one."""
    return NAMES.get(cost.label, cost.label)


def verdict(rivals: list[Compared]) -> str:
    """Which of those that took about as long as the first is closest to the reference."""
    first = rivals[0]
    equal = [rival for rival in rivals if rival.seconds <= EQUAL * first.seconds]
    left_out = [rival.name for rival in rivals if rival not in equal]
    closest = max(equal, key=lambda rival: rival.ssim)
    sharpest = min(equal, key=lambda rival: abs(rival.texture - 1))
    said = f"In about the time of {first.name}: {closest.name} is most like the reference"
    said += f", {'and' if sharpest is closest else 'but'} {sharpest.name} has most of its texture."
    return said + (f" Slower, so not counted: {', '.join(left_out)}." if left_out else "")


def table(reference: Compared, rivals: list[Compared]) -> str:
    """A line for each: time, how many times as fast as the reference, tokens, likeness and texture."""
    rows = [("", "seconds", "times as fast", "tokens", "PSNR", "SSIM", "texture")]
    rows.append((reference.name, f"{reference.seconds:.2f}", "1.0", f"{reference.tokens}", "", "", "100 %"))
    for one in rivals:
        speed = reference.seconds / max(one.seconds, 1e-9)
        likeness = (f"{one.psnr:.1f} dB", f"{one.ssim:.3f}", f"{100 * one.texture:.0f} %")
        rows.append((one.name, f"{one.seconds:.2f}", f"{speed:.1f}", f"{one.tokens}", *likeness))
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def side_by_side(reference: Compared, rivals: list[Compared]) -> Tensor:
    """The pictures with their names and figures; (B, H, W, 3)."""
    together = [reference, *rivals]
    notes = [f"{one.seconds:.2f} s, texture {100 * one.texture:.0f} %" for one in together]
    return poster([one.image for one in together], [one.name for one in together], notes)


class Compare(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_Compare",
            display_name="MoSs Compare",
            description="Decodes several ways to draw one picture, lays them side by side, and says which of "
            "those that took about as long comes closest to the reference.",
            search_aliases=["benchmark", "versus", "rivals", "moss compare"],
            is_output_node=True,
            inputs=[
                io.Vae.Input("vae", tooltip="From the loader that made the pictures."),
                io.Latent.Input("reference", tooltip="To compare with, usually from MoSs Dense Refine."),
                io.Latent.Input("latent_1", tooltip="The way whose time the others are held to."),
                *(
                    io.Latent.Input(f"latent_{n}", optional=True, tooltip="Another way to draw it.")
                    for n in range(2, RIVALS + 1)
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="All side by side with their names and figures."),
                io.String.Output("text", tooltip="The table and who is closest, as text."),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, reference: dict[str, Any], **latents: dict[str, Any] | None) -> io.NodeOutput:
        given = {name: latents[name] for name in sorted(latents) if latents[name] is not None}
        with torch.inference_mode():
            target = vae.decode(reference["samples"])
            images = {name: vae.decode(latent["samples"]) for name, latent in given.items()}
        base = compared(reference, target, target, "reference")
        rivals = [compared(latent, images[name], target, name) for name, latent in given.items()]
        text = f"{table(base, rivals)}\n\n{verdict(rivals)}"
        return io.NodeOutput(side_by_side(base, rivals), text, ui=ui.PreviewText(text))
