"""Families of Infinity models: the plain one, and fine-tunes that run its transformer in another way.

The names and shapes of their tensors are the same, so a file of one loads as another, and draws badly.
NSARM's holds a network besides, by which it is known.  VAREdit's is known by what `convert` wrote into it, by
its name, or by the artist's word.  Facts: docs/fine-tunes.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .contents import TRANSFORMER, identify
from .infinity import InfinityBackbone
from .nsarm import EnlargeBackbone
from .tensors import CheckpointError, Tensors
from .varedit import EditBackbone

INFINITY, VAREDIT, NSARM = "Infinity", "VAREdit", "NSARM"
BACKBONES: dict[str, type[InfinityBackbone]] = {
    INFINITY: InfinityBackbone, VAREDIT: EditBackbone, NSARM: EnlargeBackbone,
}
MAPS = "map_transformer."  # names that only NSARM's file has
AREAS = {"1024": "1M", "512": "0.25M"}  # pixels in the name of a VAREdit file -> image area
VAREDIT_NAME = re.compile(r"(?:.*varedit.*[-_.])?(?:8b-(?P<large>1024|512)|2b-(?P<small>512))(?:[-_.].*)?")
ELSEWHERE = re.compile(r"infinity[-_ ]?star", re.IGNORECASE)
KEY, AREA_KEY, HEADS_KEY = "moss_family", "moss_area", "moss_map_heads"  # in a safetensors file's metadata


@dataclass(frozen=True)
class Family:
    """What a transformer file is taken for.

    Attributes:
        name: a key of BACKBONES.
        reason: why, to be read behind "taken for Infinity".
        area: that it was made for, a key of `schedule.PRESETS`; None = not known by this.
    """

    name: str
    reason: str
    area: str | None = None


PLAIN = Family(INFINITY, "because nothing marks it as another")


def family_of(tensors: Tensors, chosen: str | None = None) -> Family:
    """What a transformer file is taken for.

    Args:
        chosen: by the artist, a key of BACKBONES; None = as the file says.

    Raises:
        CheckpointError: the choice contradicts the file.
    """
    if chosen and chosen not in BACKBONES:
        raise CheckpointError(f"the family {chosen!r} is unknown; choose one of {', '.join(BACKBONES)}")
    maps = any(name.startswith(MAPS) for name in tensors)
    if chosen and (chosen == NSARM) != maps:
        holds = "holds" if maps else "lacks"
        raise CheckpointError(
            f"{tensors.path.name} {holds} the tensors {MAPS}*, by which {NSARM} is known, and cannot be run "
            f"as {chosen}; choose automatic"
        )
    named = _by_name(tensors)
    if chosen:
        return Family(chosen, "as chosen", named.area if named and named.name == chosen else None)
    if maps:
        return Family(NSARM, f"by its tensors {MAPS}*", "1M")
    written = tensors.metadata.get(KEY)
    if written in BACKBONES:
        return Family(written, "as is written in it", tensors.metadata.get(AREA_KEY))
    return named or PLAIN


def _by_name(tensors: Tensors) -> Family | None:
    """VAREdit's, by the name of the file or of a folder that it lies in."""
    path = tensors.path
    stem = path.name.lower().removesuffix(".safetensors").removesuffix(".pth")
    if found := VAREDIT_NAME.fullmatch(stem):
        return Family(VAREDIT, "by its name", AREAS[found["large"] or found["small"]])
    if stem.startswith("infinity"):
        return None  # Infinity's own names
    if any("varedit" in part.lower() for part in (stem, *path.absolute().parts[-5:-1])):
        pixels = next((pixels for pixels in AREAS if pixels in stem), None)
        return Family(VAREDIT, "by its name", AREAS.get(pixels))
    return None


def map_heads(tensors: Tensors) -> tuple[int, ...] | None:
    """Heads of NSARM's maps as written into the file; None = the released ones."""
    text = tensors.metadata.get(HEADS_KEY)
    return tuple(map(int, text.split(","))) if text and re.fullmatch(r"\d+(,\d+)*", text) else None


def facts(tensors: Tensors, chosen: str | None = None) -> dict[str, str]:
    """What `convert` writes into a file: of an Infinity transformer its family, which its name may not say
    later.
    """
    if identify(tensors) != TRANSFORMER:
        return tensors.metadata
    family = family_of(tensors, chosen)
    if family is PLAIN:
        return tensors.metadata  # a guess is not written down
    found = {KEY: family.name} | ({AREA_KEY: family.area} if family.area else {})
    return tensors.metadata | found


def refuse_others(tensors: Tensors) -> None:
    """Refuse a file of InfinityStar.

    Raises:
        CheckpointError: it is one, by its name.
    """
    if found := next((part for part in tensors.path.absolute().parts[-3:] if ELSEWHERE.search(part)), None):
        raise CheckpointError(
            f"{found} is of InfinityStar, a video model with another transformer and another VAE, which this "
            "pack cannot run; choose an Infinity model"
        )
