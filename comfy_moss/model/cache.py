"""Preallocated keys and values of the tokens drawn so far."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer in one buffer, filled from the front.

    Layers may hold different numbers of tokens (FastVAR drops tokens in some layers only).

    Args:
        capacity: tokens each layer can hold.
        rows: batch rows, unconditional ones included.
    """

    def __init__(
        self, capacity: Sequence[int], rows: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shapes = [(2, rows, heads, tokens, head_dim) for tokens in capacity]
        self.layers = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.lengths = [0] * len(self.layers)
        self.whole: KVCache | None = None  # whose memory this is a part of, and which therefore must live

    def reserve(self, layer: int, tokens: int) -> tuple[Tensor, Tensor]:
        """The next places of a layer for keys and values (rows, heads, tokens, head_dim), to be filled by the caller.

        Raises:
            ValueError: the layer is full.
        """
        start, end = self.lengths[layer], self.lengths[layer] + tokens
        if end > self.layers[layer].shape[3]:
            raise ValueError(f"the KV cache of layer {layer} holds {self.layers[layer].shape[3]} tokens, {end} were needed")
        self.lengths[layer] = end
        k, v = self.layers[layer][:, :, :, start:end]
        return k, v

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store k and v (rows, heads, N, head_dim) behind what the layer holds.

        Raises:
            ValueError: the layer is full.
        """
        for place, new in zip(self.reserve(layer, k.shape[2]), (k, v), strict=True):
            place.copy_(new)

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, length, head_dim) stored in a layer; no copy."""
        k, v = self.layers[layer][:, :, :, : self.lengths[layer]]
        return k, v

    def grown(self, capacity: int) -> KVCache:
        """A copy that can hold `capacity` tokens a layer; this cache stays as it is."""
        _, rows, heads, _, head_dim = self.layers[0].shape
        new = KVCache([capacity] * len(self.layers), rows, heads, head_dim, self.layers[0].dtype, self.layers[0].device)
        for layer in range(len(self.layers)):
            new.append(layer, *self.view(layer))
        return new

    def first_rows(self, rows: int) -> KVCache:
        """The cache of the first rows only; shares memory, so do not append to it."""
        part = copy(self)
        part.layers = [layer[:, :rows] for layer in self.layers]
        part.lengths = list(self.lengths)
        part.whole = self
        return part

    def twin(self) -> KVCache:
        """A cache on the same memory with lengths of its own: to fill again what is no longer needed."""
        twin = copy(self)
        twin.lengths, twin.whole = list(self.lengths), None
        return twin

    @property
    def nbytes(self) -> int:
        """Bytes really allocated."""
        return sum(layer.nbytes for layer in self.layers)
