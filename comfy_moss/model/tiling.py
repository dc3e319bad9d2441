"""Decoding in tiles, for pictures that a device has too little memory to decode at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

TILE, OVERLAP = 32, 8  # cells of the code map
log = logging.getLogger(__name__)


def decode_as_fits(decode: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
    """Decode at once, or in tiles where the device has too little memory for that; see `decode_in_tiles`."""
    try:
        return decode(codes)
    except torch.OutOfMemoryError:
        log.warning("the picture is decoded in tiles, because this device has too little memory to decode it at once")
    return decode_in_tiles(decode, codes)


def decode_in_tiles(decode: Callable[[Tensor], Tensor], codes: Tensor, tile: int = TILE, overlap: int = OVERLAP) -> Tensor:
    """Decode overlapping tiles one after the other and blend them linearly; close to decoding at once, but not equal, since
    the codec's norms see a tile where they would see the picture.

    Args:
        decode: codes (B, c, h, w) -> image (B, 3, h * stride, w * stride).
        codes: (B, c, H, W).
        tile, overlap: side of a tile and least overlap of neighbours, in cells; overlap < tile.

    Returns:
        (B, 3, H * stride, W * stride), as `decode` would give at once where the codes fit into one tile.
    """
    rows, columns = (_spans(length, tile, overlap) for length in codes.shape[2:])
    if len(rows) == len(columns) == 1:
        return decode(codes)
    image = weights = None
    for top, bottom in rows:
        for left, right in columns:
            part = decode(codes[:, :, top:bottom, left:right])
            stride = part.shape[2] // (bottom - top)
            if image is None:
                image = part.new_zeros(*part.shape[:2], *(stride * n for n in codes.shape[2:]))
                weights = torch.zeros_like(image[:1, :1])
            ramp = _ramp(part.shape[2], overlap * stride, part)[:, None] * _ramp(part.shape[3], overlap * stride, part)
            place = slice(top * stride, bottom * stride), slice(left * stride, right * stride)
            image[(..., *place)] += part * ramp
            weights[(..., *place)] += ramp
    return image / weights


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Tiles of one size from end to end, as evenly spread as whole cells allow."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(n * (length - tile) / (count - 1)) for n in range(count)]
    return [(start, start + tile) for start in starts]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """Weights that rise over the overlap from nearly 0 to 1 and fall again."""
    distance = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(distance, distance.flip(0)).clamp_max(overlap) / overlap
