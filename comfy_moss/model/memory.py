"""Bytes by arithmetic: what weights, a forward pass and the decoder take at most, from their sizes alone.

Of plain torch, operation by operation; fused kernels take less.  Held against measurements by
`benchmarks/memory.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from .vae import VAEConfig

FLOAT = 4  # bytes of the residual stream's numbers, whatever the weights'


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of torch says, of a GPU or of the processor's memory."""
    told = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError | RuntimeError) and (
        isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in told)
    )


def weight_bytes(module: nn.Module) -> int:
    """Of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def block_bytes(
    width: int, hidden: int, inner: int, item: int, tokens: int, past: int, stored: bool, int8: bool
) -> int:
    """What a transformer block holds at its largest moment, for one row.

    Args:
        width: C; hidden: numbers inside of the feed-forward.
        inner: how many tensors of `hidden` numbers the feed-forward holds at once.
        item: bytes of one of the blocks' numbers.
        tokens: new ones; past: those in the cache.
        stored: the new ones join the cache, where old and new lie side by side already.
        int8: the cache is in 8 bits, and widened to be read.
    """
    stream = 2 * FLOAT + 2 * item  # the residual stream and an update before the block, and both in it
    packed = 3 * item  # queries, keys and values
    turning = stream + packed + item + 3 * FLOAT  # rotary positions are computed in float32
    attending = stream + packed + 3 * item  # queries, keys and what was read
    feeding = (stream + item) * width + inner * hidden * item
    joined = 0 if stored and not int8 else 2 * item * width * (past + tokens) if past else 0
    widened = (2 * item + (FLOAT if item < FLOAT else 0)) * width * past if int8 else 0
    return max(turning * width * tokens, attending * width * tokens + joined + widened, feeding * tokens)


def decoder_bytes(config: VAEConfig, pixels: int, item: int) -> int:
    """What decoding one picture at once takes: maps of a residual block or of an upsampling, each with the
    copy in the order that convolutions read on a CPU, or as workspace on a GPU.
    """
    widths = [config.width * times for times in config.mult]
    most = 0.0
    for level, outputs in enumerate(widths):
        inputs, area = widths[min(level + 1, len(widths) - 1)], pixels / 4**level
        first, later = 3 * inputs + outputs, inputs + 4 * outputs  # blocks of the level
        most = max(most, area * first, area * later * (config.decoder_blocks > 1))
        if level:
            most = max(most, area * (inputs + outputs + 3 * 4 * outputs))
    return round(most * item) + 3 * pixels * (item + FLOAT)
