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


def as_mask(mask: Tensor) -> Tensor:
    """A mask as neighbours pass it, (h, w), (B, h, w), (B, 1, h, w) or (B, h, w, 1), as (B, h, w) float32 on the CPU.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = tuple(mask.shape)
    mask = mask[None] if mask.dim() == 2 else mask
    while mask.dim() > 3 and 1 in (mask.shape[1], mask.shape[-1]):
        mask = mask.squeeze(1) if mask.shape[1] == 1 else mask.squeeze(-1)
    if mask.dim() != 3 or mask.numel() == 0:
        raise ValueError(f"the mask input has the shape {shape}, which is no mask; wire it to a MASK output")
    return torch.nan_to_num(mask.detach().float().cpu(), 0.0, 1.0, 0.0).clamp(0, 1)


def as_picture(image: Tensor) -> Tensor:
    """A picture as neighbours pass it, (B, H, W, C) or (H, W, C), of any number of channels, as (B, H, W, 3).

    One channel (or one and its alpha) is grey; of more the first three count.  float32 in [0, 1] on the CPU.

    Raises:
        ValueError: another shape, or nothing in it.
    """
    shape = tuple(image.shape)
    image = image[None] if image.dim() == 3 else image.squeeze(1) if image.dim() == 5 else image
    if image.dim() != 4 or image.numel() == 0:
        raise ValueError(f"the image input has the shape {shape}, which is no picture; wire it to an IMAGE output")
    image = image.detach().float().cpu() / (1 if image.is_floating_point() else 255)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(*image.shape[:-1], 3)
    return torch.nan_to_num(image, 0.0, 1.0, 0.0)


def join_masks(mask: Tensor | None, painting: Tensor | None) -> Tensor | None:
    """What either marks.

    Args:
        mask: as `as_mask` reads it, any size.
        painting: (1, rows, columns).

    Returns:
        (B or 1, ., .) of the larger of the two sizes, or None.
    """
    mask = None if mask is None else as_mask(mask)
    if mask is None or painting is None:
        return painting if mask is None else mask
    size = [max(sides) for sides in zip(mask.shape[1:], painting.shape[1:], strict=True)]
    fitted = (F.interpolate(m[:, None].float().cpu(), size, mode="nearest-exact")[:, 0] for m in (mask, painting))
    return torch.maximum(*fitted)
