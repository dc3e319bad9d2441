"""Pictures as input of the command line: reading them, what is taken of them, and what a recipe remembers.

A recipe does not hold the picture.  It names its file and has a hash of its pixels, so that the same result
can be drawn again from the same picture, and another picture is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps
from torch import Tensor

from .images import from_pillow
from .model.backbone import Backbone, Text
from .model.schedule import Grid, Schedule
from .pipeline.heatmap import change_map
from .pipeline.source import (
    FITS,
    Edit,
    Source,
    encode_picture,
    fit_mask,
    fit_picture,
    mask_of,
    picture_size,
)

if TYPE_CHECKING:
    from .request import Request

MODES = ("redraw", "inpaint", "edit", "refine")
REDRAW = 3  # scales that are taken from the picture unless someone says otherwise


@dataclass(frozen=True)
class Input:
    """A picture to start from.

    Attributes:
        image: (1, H, W, 3) in [0, 1], of its own size.
        mask: (1, h, w) in [0, 1], 1 = may change; None = everywhere.
        mode: one of MODES.
    """

    image: Tensor
    mask: Tensor | None
    mode: str
    fit: str

    @property
    def ratio(self) -> float:
        """Height over width."""
        return self.image.shape[1] / self.image.shape[2]

    def fitted(self, backbone: Backbone, schedule: Schedule) -> Tensor:
        """The picture at the size that is drawn."""
        return fit_picture(self.image, picture_size(backbone, schedule), self.fit, backbone.stride)

    def fitted_mask(self, size: Grid) -> Tensor:
        """The mask at that height and width."""
        return fit_mask(self.mask, self.image.shape[1:3], size, self.fit)

    def panels(
        self, backbone: Backbone, schedule: Schedule, change: Tensor | None, count: int
    ) -> dict[str, Tensor]:
        """By name, images (B, H, W, 3) of what was there before the draft: the picture, and where it may
        change or did.

        Args:
            change: (B, h, w) >= 0, how much an edit changed each place.
            count: B.
        """
        size, found = picture_size(backbone, schedule), {"picture": self.fitted(backbone, schedule)}
        if change is not None:
            found["change"] = change_map(change, size)
        elif self.mask is not None:
            found["mask"] = self.fitted_mask(size)[..., None].expand(-1, -1, -1, 3)
        return {name: image.expand(count, -1, -1, -1) for name, image in found.items()}


def read_input(request: Request) -> Input | None:
    """The picture that a request starts from; None = from none.

    Raises:
        ValueError: a file that is no picture, or options that do not go together.
    """
    if request.picture is None:
        return None
    mode = request.mode or ("edit" if request.source.strip() else "inpaint" if request.mask else "redraw")
    _check(request, mode)
    image = _read(request.picture, "RGB", "picture", request.sha256[:1])
    mask = None
    if request.mask:
        mask = _read(request.mask, "L", "mask", request.sha256[1:2])[..., 0]
        fit_mask(mask, image.shape[1:3], image.shape[1:3])  # refuses another shape
        if not mask.any():
            raise ValueError(f"the mask {request.mask} is black everywhere; paint what may change in white")
    return Input(image, mask, mode, request.fit)


def _check(request: Request, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if request.fit not in FITS:
        raise ValueError(f"fit {request.fit!r} is unknown; choose one of {', '.join(FITS)}")
    if mode == "inpaint" and request.mask is None:
        raise ValueError("inpainting needs a mask: --mask with a picture that is white where may be redrawn")
    if mode == "edit" and not request.source.strip():
        raise ValueError("an edit needs the prompt that the picture is of: --source \"a red circle\"")
    if mode != "edit" and request.source.strip():
        raise ValueError(f"--source belongs to the mode edit; the mode {mode} has no use for it")
    if mode == "edit" and request.source.split() == request.prompt.split():
        raise ValueError("both prompts are the same, so nothing would change; say in PROMPT what to change")
    if request.taken is not None and request.taken < 0:
        raise ValueError(f"the strength is a number of scales, 0 or more, got {request.taken}")


def _read(path: Path, mode: str, what: str, expected: Sequence[str]) -> Tensor:
    """A picture file as (1, H, W, 3), turned as its camera says."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert(mode)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # Pillow raises many kinds over damaged files
        raise ValueError(f"the {what} {path} is no picture that can be read; use a PNG or JPEG") from error
    if expected and fingerprint(picture) != expected[0]:
        raise ValueError(f"the {what} {path} is not the one that the recipe was drawn from; use that one")
    return from_pillow(picture)


def fingerprint(picture: Image.Image) -> str:
    """A hash of a picture's size and pixels, whatever file they are in."""
    return hashlib.sha256(f"{picture.size}{picture.mode}".encode() + picture.tobytes()).hexdigest()


def fingerprints(request: Request) -> list[str]:
    """Of the picture and, where there is one, the mask of a request."""
    pairs = ((request.picture, "RGB"), (request.mask, "L"))
    found = []
    for path, mode in pairs:
        if path is not None:
            with Image.open(path) as file:
                found.append(fingerprint(ImageOps.exif_transpose(file).convert(mode)))
    return found


def source_of(
    given: Input, request: Request, backbone: Backbone, schedule: Schedule, scales: int, before: Text | None
) -> Source:
    """The picture as the recipe carries it, for all pictures of the batch.

    Args:
        scales: that the method drafts.
        before: features of the prompt that the picture is of.

    Raises:
        ValueError: a picture smaller than a cell, a mask that covers no cell, or more scales than there are.
    """
    if (request.taken or 0) > len(schedule):
        raise ValueError(f"the strength is {request.taken} scales, but this picture has {len(schedule)}")
    source = encode_picture(backbone, given.fitted(backbone, schedule), schedule)
    if given.mask is not None:
        mask = given.fitted_mask(picture_size(backbone, schedule))
        source = replace(source, mask=mask_of(mask, schedule))
    if given.mode == "edit":
        edit = Edit((before,) * request.batch, **_edit_settings(request, schedule))
        return replace(source, edit=edit).of_pictures(request.batch)
    usual = {"redraw": REDRAW, "inpaint": 0, "refine": scales}[given.mode]
    taken = usual if request.taken is None else request.taken
    return replace(source, scales=taken).of_pictures(request.batch)


def _edit_settings(request: Request, schedule: Schedule) -> dict[str, Any]:
    chosen = {"preserve": request.taken, "follow": request.follow, "rule": request.rule}
    settings = {name: value for name, value in chosen.items() if value is not None}
    if request.taken is not None and request.follow is None:
        settings["follow"] = max(request.taken, Edit.follow)
    return settings


def remembered(given: Input, request: Request) -> dict[str, Any]:
    """What a recipe says of the picture it was drawn from."""
    facts = {
        "picture": request.picture.name, "mask": request.mask.name if request.mask else None,
        "sha256": fingerprints(request), "mode": given.mode, "fit": given.fit, "taken": request.taken,
    }
    if given.mode == "edit":
        facts |= {"source": request.source, "follow": request.follow, "rule": request.rule}
    return facts


def picture_options(edit: Any) -> tuple[str, dict[str, Any]]:
    """What `remembered` says as it is typed for the command `edit`: the picture's file, and options by name.

    Raises:
        ValueError: something else.
    """
    fine = isinstance(edit, Mapping) and isinstance(edit.get("picture"), str)
    numbers = {name: edit.get(name) for name in ("taken", "follow")} if fine else {}
    texts = {name: edit.get(name) for name in ("mask", "mode", "fit", "source", "rule")} if fine else {}
    hashes = (edit.get("sha256") or []) if fine else None
    fine = fine and isinstance(hashes, list) and all(isinstance(h, str) for h in hashes)
    fine = fine and all(n is None or type(n) is int for n in numbers.values())
    if not fine or not all(t is None or isinstance(t, str) for t in texts.values()):
        said = repr(str(edit)[:60])
        raise ValueError(f"the recipe in this picture is damaged: its edit is {said}; use another picture")
    chosen = {"strength": numbers["taken"], "follow": numbers["follow"], **texts, "sha256": ",".join(hashes)}
    return edit["picture"], {name: value for name, value in chosen.items() if value not in (None, "")}
