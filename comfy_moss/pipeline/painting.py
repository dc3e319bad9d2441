"""Painting: cells marked by hand, as a short text that a workflow file can hold."""

from __future__ import annotations

import base64
import binascii
import re

import torch
import torch.nn.functional as F
from torch import Tensor

_FORM = re.compile(r"(\d{1,4})x(\d{1,4}):([A-Za-z0-9+/]*={0,2})")


def read_painting(text: str) -> Tensor | None:
    """Painted cells from their text.

    Args:
        text: "ROWSxCOLUMNS:" and base64 of one bit a cell, row by row, the first cell in the highest bit; "" = nothing painted.

    Returns:
        (1, rows, columns) float32 of 0 and 1, or None.

    Raises:
        ValueError: another form, or too few or too many bits.
    """
    if not text.strip():
        return None
    match = _FORM.fullmatch(text.strip())
    try:
        data = base64.b64decode(match[3], validate=True) if match else b""
    except binascii.Error:
        data = b""
    cells = int(match[1]) * int(match[2]) if match else 0
    if not cells or len(data) != -(-cells // 8):
        raise ValueError(f"the painting {text[:40]!r} is damaged; clear it and paint again")
    bits = torch.tensor(list(data))[:, None] >> torch.arange(7, -1, -1) & 1
    return bits.flatten()[:cells].view(1, int(match[1]), int(match[2])).float()


def write_painting(cells: Tensor) -> str:
    """The text of painted cells (rows, columns) bool; "" when none is."""
    if not cells.any():
        return ""
    rows, columns = cells.shape
    bits = F.pad(cells.flatten().long(), (0, -cells.numel() % 8)).view(-1, 8)
    data = bytes((bits << torch.arange(7, -1, -1)).sum(1).tolist())
    return f"{rows}x{columns}:{base64.b64encode(data).decode()}"


def join_masks(mask: Tensor | None, painting: Tensor | None) -> Tensor | None:
    """What either marks.

    Args:
        mask: (B or 1, h, w) or (h, w) in [0, 1], any size.
        painting: (1, rows, columns).

    Returns:
        (B or 1, ., .) of the larger of the two sizes, or None.
    """
    if mask is not None and mask.dim() == 2:
        mask = mask[None]
    if mask is None or painting is None:
        return painting if mask is None else mask
    size = [max(sides) for sides in zip(mask.shape[1:], painting.shape[1:], strict=True)]
    fitted = (F.interpolate(m[:, None].float().cpu(), size, mode="nearest-exact")[:, 0] for m in (mask, painting))
    return torch.maximum(*fitted)
