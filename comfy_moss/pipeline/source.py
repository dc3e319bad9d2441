"""Source: the picture that another one is drawn from, as the model's own tokens, and which places may change.

Three things can be taken from it: its first scales whole (`gt_leak` of Infinity), the places outside a mask
    at
every scale (inpainting as in VAR's notebook), and the seam between both, blended in the space of codes
(EditInfinity).  An empty mask gives the picture's own codes, a full one what is drawn without a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.backbone import Backbone, Text
from ..model.schedule import Grid, Schedule
from ..ops import area_mean

FITS = ("crop", "pad", "stretch")  # what is done to a picture of other proportions
COVERED = 0.2  # share of a cell from which it counts as masked
COARSE = 3  # scales of so many tokens a side at most are kept whole while anything is
SEAM = 4  # cells from the mask over which the picture's own codes fade in
LARGE = 6  # of the 16 cells of a 4 x 4 grid: masks from this size on get a hard edge


RULES = ("shift", "gate")


@dataclass(frozen=True)
class Edit:
    """How a picture follows another prompt.

    Attributes:
        text: features of the prompts that the pictures are of, one a picture.
        preserve: K_c, how many of the first scales stay the source's.
        follow: K_f, from which scale on the target's prompt alone draws, where something changed.
        rule: "shift" or "gate", see `edit`.
        gate: of the rule "gate": by how much a bit's probability must fall.
        found: places count as changed where the change is above this share of the largest; 0 = all places may
            change from `follow` on.

    Raises:
        ValueError: a value out of range.
    """

    text: tuple[Text, ...]
    preserve: int = 2
    follow: int = 7
    rule: str = "gate"
    gate: float = 0.2
    found: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.preserve <= self.follow:
            raise ValueError(
                f"preserve must lie between 0 and follow, got {self.preserve} with follow {self.follow}"
            )
        if self.rule not in RULES:
            raise ValueError(f"the rule of an edit is {' or '.join(RULES)}, got {self.rule!r}")
        for name, value in (("gate", self.gate), ("found", self.found)):
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")


@dataclass(frozen=True)
class Source:
    """The picture that another one is drawn from.

    Attributes:
        bits: per scale its tokens, (B or 1, h*w, d), of the kind of `Draft.bits`; of an unfinished draft only
            those of the scales that it has.
        scales: how many of the first scales are taken from it whole.
        mask: (B or 1, H, W) bool on the last scale's token grid, True = may change; None = everywhere.
        first: the first scale at which the mask counts.
        edit: how the picture follows another prompt; None = it does not.
    """

    bits: tuple[Tensor, ...]
    scales: int = 0
    mask: Tensor | None = None
    first: int = 0
    edit: Edit | None = None

    def pick(self, pictures: list[int]) -> Source:
        """The sources of some of the pictures; what is the same for all of them stays."""
        bits = tuple(bits[pictures] if len(bits) > 1 else bits for bits in self.bits)
        mask = self.mask[pictures] if self.mask is not None and len(self.mask) > 1 else self.mask
        edit = self.edit and replace(self.edit, text=tuple(self.edit.text[n] for n in pictures))
        return replace(self, bits=bits, mask=mask, edit=edit)

    def known(self, scale: int) -> Tensor | None:
        """The tokens of a scale that is taken whole; None = it is drawn."""
        return self.bits[scale] if scale < min(self.scales, len(self.bits)) else None

    def masked(self, scale: int) -> bool:
        """Whether places of a scale are kept from the picture."""
        return self.mask is not None and self.first <= scale < len(self.bits)

    def kept(self, grid: Grid) -> Tensor:
        """(B, h*w) bool: the tokens of a scale of this grid that stay the picture's."""
        keep = F.interpolate((~self.mask)[:, None].float(), size=tuple(grid), mode="bilinear")[:, 0] > 0.5
        if max(grid) <= COARSE:  # these say what the whole picture is like
            keep = (~self.mask).any(2, keepdim=True).any(1, keepdim=True).expand_as(keep)
        return keep.flatten(1)

    def lay(self, drawn: Tensor, scale: int, grid: Grid) -> Tensor:
        """Tokens (B, h*w, d) of a scale with the picture's own where they are kept."""
        if not self.masked(scale):
            return drawn
        own, keep = self.bits[scale].to(drawn.device), self.kept(grid).to(drawn.device)
        return torch.where(keep[..., None], own, drawn)

    def blend(self, added: Tensor, scale: int, schedule: Schedule, backbone: Backbone) -> Tensor:
        """What a scale adds, (B, c, H, W), without a seam: outside the mask exactly what the picture's codes
        add.
        """
        if not self.masked(scale):
            return added
        codes = backbone.codes(self.bits[scale].to(added.device))
        own = backbone.code_map(codes, scale, schedule)
        return torch.lerp(added, own.expand_as(added), seam(self.mask, added.shape[-2:]).to(added))

    def complete(self, drawn: Tensor, scale: int, schedule: Schedule, backbone: Backbone) -> Tensor:
        """What a scale adds of which only some places were drawn, `drawn` (B, c, H, W): with the picture's
        own codes where they are kept, and then without a seam.
        """
        if not self.masked(scale):
            return drawn
        keep = self.kept(schedule.grids[scale]).to(drawn.device)
        codes = backbone.codes(self.bits[scale].to(drawn.device)) * keep[..., None]
        kept = backbone.code_map(codes, scale, schedule, keep)
        return self.blend(drawn + kept, scale, schedule, backbone)

    def of_pictures(self, count: int) -> Source:
        """The same for a batch of `count` drawn from one picture."""
        bits = tuple(b.expand(count, -1, -1) if len(b) == 1 else b for b in self.bits)
        return replace(self, bits=bits)


def seam(mask: Tensor, size: Grid) -> Tensor:
    """How much of the picture's own codes a place takes, (B, 1, H, W) in [0, 1].

    None inside the mask and next to it, then more with the distance (of rows plus columns), all from SEAM + 1
    cells on; without a seam where the mask is large.

    Args:
        mask: (B, h, w) bool, True = may change.
        size: of the code map.
    """
    reach = F.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest-exact")
    hard, near = 1 - reach, torch.zeros_like(reach)
    for _ in range(SEAM):
        rows, columns = F.max_pool2d(reach, (3, 1), 1, (1, 0)), F.max_pool2d(reach, (1, 3), 1, (0, 1))
        reach = torch.maximum(rows, columns)
        near += reach
    large = (area_mean(mask[:, None].float(), (4, 4)) >= COVERED).sum((1, 2, 3), keepdim=True) >= LARGE
    return torch.where(large, hard, 1 - near / SEAM)


# --- pictures and masks as people have them -----------------------------------------------------------------


@torch.inference_mode()
def encode_picture(backbone: Backbone, image: Tensor, schedule: Schedule) -> Source:
    """The tokens of pictures (B, H, W, 3) in [0, 1] of any size; those of the schedule's size are not
    resampled.

    Raises:
        ValueError: they are of another size than the schedule's; see `fit_picture`.
    """
    size = picture_size(backbone, schedule)
    if tuple(image.shape[1:3]) != size:
        given = f"{image.shape[2]} x {image.shape[1]}"
        raise ValueError(f"the picture is {given} pixels and not {size[1]} x {size[0]}")
    pixels = (2 * image.to(backbone.device, torch.float32) - 1).movedim(-1, 1)
    return Source(tuple(bits.cpu() for bits in backbone.quantize(backbone.encode(pixels), schedule)))


def picture_size(backbone: Backbone, schedule: Schedule) -> Grid:
    """Height and width in pixels of what a schedule draws."""
    height, width = (side * backbone.stride for side in backbone.map_grid(schedule.grids[-1]))
    return height, width


def fit_picture(image: Tensor, size: Grid, fit: str = "crop", least: int = 1) -> Tensor:
    """Pictures (B, H, W, C) at another size; those that have it already stay as they are.

    Args:
        size: height and width.
        fit: crop = cut off what stands out, from the centre; pad = the whole picture on grey; stretch.
        least: shorter side of a picture that can be read at all.

    Raises:
        ValueError: a picture smaller than that.
    """
    height, width = image.shape[1:3]
    if min(height, width) < least:
        raise ValueError(
            f"the picture is {width} x {height} pixels, smaller than one cell of this model, "
            f"{least} x {least}; use a larger one"
        )
    return _fit(image.movedim(-1, 1), size, fit, 0.5).clamp(0, 1).movedim(1, -1)


def fit_mask(mask: Tensor, shape: Grid, size: Grid, fit: str = "crop") -> Tensor:
    """Masks (B, h, w) in [0, 1], of a picture of that shape, as `fit_picture` makes the picture; padding may
    not change.

    A mask of another size with the picture's proportions is scaled to it first.

    Raises:
        ValueError: other proportions.
    """
    height, width = mask.shape[1:]
    if abs(height / width - shape[0] / shape[1]) > 0.02 * shape[0] / shape[1]:
        raise ValueError(
            f"the mask is {width} x {height} pixels and the picture {shape[1]} x {shape[0]}; use a mask of "
            "the picture's size"
        )
    if (height, width) != tuple(shape):
        mask = F.interpolate(mask[:, None], size=tuple(shape), mode="nearest-exact")[:, 0]
    return _fit(mask[:, None], size, fit, 0.0)[:, 0].clamp(0, 1)


def _fit(image: Tensor, size: Grid, fit: str, around: float) -> Tensor:
    (height, width), (tall, wide) = image.shape[2:], size
    if (height, width) == (tall, wide):
        return image
    if fit == "stretch":
        return _resize(image, size)
    scale = (min if fit == "pad" else max)(tall / height, wide / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    image = _resize(image, inner)
    top, left = (tall - inner[0]) // 2, (wide - inner[1]) // 2  # negative where something is cut off
    return F.pad(image, (left, wide - inner[1] - left, top, tall - inner[0] - top), value=around)


def _resize(image: Tensor, size: Grid) -> Tensor:
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bicubic", antialias=True)


def mask_of(painted: Tensor, schedule: Schedule) -> Tensor:
    """A mask (B, h, w) in [0, 1] of any size as bool on the last token grid: cells that are covered enough.

    Raises:
        ValueError: nothing of it is.
    """
    covered = area_mean(painted.float(), schedule.grids[-1]) >= COVERED
    if not covered.flatten(1).any(1).all():
        raise ValueError("the mask is empty: nothing may change; paint what is to be redrawn in white")
    return covered
