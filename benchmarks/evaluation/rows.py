"""What is stored of every picture, in files of one batch each.

A batch's file is written when all its pictures are there, so an interrupted evaluation goes on where it stopped, and several
processes can share a folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comfy_moss.images import write_files

from .notes import difference, read_note

_CLAIM = "run.json"
RENDER, CODEC = "render", "codec"  # beside the methods: the true picture, and what the codec leaves of it


@dataclass(frozen=True)
class Row:
    """One picture.

    Attributes:
        n: number of the prompt; also the picture's seed.
        method: as `methods.label` names it, or RENDER or CODEC.
        hit: whether it shows what its prompt asks for.
        shuffled: whether it shows what another prompt asks for.
        psnr, ssim: likeness in dB and up to 1, of a method to dense, of CODEC to RENDER; None for dense and RENDER.
        textured: whether it shows the texture that its prompt names; None where that names none.
        texture: energy of the texture inside the objects, see `metrics.texture_energy`.
        draw_s, decode_s: seconds a picture of its batch; None for RENDER and CODEC, as are:
        tokens, kv_bytes: what a picture took.
        correlation: dense, of some prompts: by k, Pearson's r of the draft's frequency and of what the last k scales added.
    """

    n: int
    method: str
    hit: bool
    shuffled: bool
    psnr: float | None
    ssim: float | None
    textured: bool | None
    texture: float
    draw_s: float | None = None
    decode_s: float | None = None
    tokens: int | None = None
    kv_bytes: int | None = None
    correlation: dict[str, float] | None = None


def batch_path(folder: Path, batch: int) -> Path:
    return folder / "rows" / f"{batch:05d}.jsonl"


def as_lines(rows: Sequence[Row]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(row)) + "\n" for row in rows).encode()


def read_rows(folder: Path) -> list[Row]:
    """All rows of a folder, by prompt.

    Raises:
        ValueError: a file is damaged.
    """
    rows = []
    for path in sorted((folder / "rows").glob("*.jsonl")):
        try:
            rows += [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (ValueError, TypeError):
            raise ValueError(f"{path} holds no rows of this version; delete it, and that batch is drawn again") from None
    return sorted(rows, key=lambda row: row.n)


def claim(folder: Path, setting: dict[str, Any], facts: dict[str, Any]) -> None:
    """Make the folder that of this evaluation, or find that it is.

    Args:
        setting: what decides the rows.
        facts: of where and when they were made, which may change on the way; those of the start are kept.

    Raises:
        ValueError: the folder holds rows of another setting.
    """
    path = folder / _CLAIM
    if not path.exists():
        write_files({path: (json.dumps({**facts, "setting": setting}, indent=1) + "\n").encode()})
    elif wrong := difference((read_note(path) or {}).get("setting", {}), setting):
        raise ValueError(f"{folder} holds another evaluation, of {wrong}; name another folder with --out")


def read_claim(folder: Path) -> dict[str, Any]:
    """Facts and setting of a folder's evaluation."""
    return json.loads((folder / _CLAIM).read_text(encoding="utf-8"))
