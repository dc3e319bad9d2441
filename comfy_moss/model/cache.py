"""Preallocated keys and values of the tokens drawn so far."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from ..ops import Segment


class KVCache:
    """Keys and values of every layer in one buffer, filled from the front.

    Layers may hold different numbers of tokens (FastVAR drops tokens in some layers only).  Several caches
    may share one memory (`twin`, `first_rows`, `grown`): each knows how much of it is its own, and
    `overwritten` tells when another one has since written there.

    Args:
        capacity: tokens each layer can hold.
        rows: R, of the batch: prompts, then their unconditional twins.
    """

    def __init__(
        self,
        capacity: Sequence[int],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shapes = [(2, rows, heads, tokens, head_dim) for tokens in capacity]
        self.layers = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.lengths = [0] * len(self.layers)
        self.prefix: KVCache | None = None  # of what came before the first token: its own memory, only read
        self.owner: KVCache | None = None  # whose memory this is, and which must live as long
        self._writes: list[object] = []  # a mark for every pass now in the memory; shared by all on it
        self._mine: list[object] = []  # the marks that this cache's tokens need

    @property
    def rows(self) -> int:
        """R."""
        return self.layers[0].shape[1]

    @property
    def overwritten(self) -> bool:
        """Whether another cache on the same memory has written over tokens of this one."""
        return self._writes[: len(self._mine)] != self._mine

    @property
    def nbytes(self) -> int:
        """Bytes really allocated, by whomever the memory is shared with; with those of the prefix."""
        prefix = self.prefix.nbytes if self.prefix else 0
        return prefix + sum(layer.untyped_storage().nbytes() for layer in self.layers)

    def room(self, layer: int, tokens: int) -> Segment:
        """The next free memory of a layer, (R, H, tokens, D) each, for whoever can compute in place.

        Raises:
            ValueError: the layer is full.
        """
        start, end = self.lengths[layer], self.lengths[layer] + tokens
        if end > (capacity := self.layers[layer].shape[3]):
            raise ValueError(f"the KV cache of layer {layer} holds {capacity} tokens, {end} were needed")
        k, v = self.layers[layer][:, :, :, start:end]
        return k, v

    def append(self, layer: int, k: Tensor, v: Tensor) -> Segment:
        """Store k and v (R, H, N, D) behind what the layer holds; no copy of what lies in its `room` already.

        Returns:
            All that the layer holds now.

        Raises:
            ValueError: the layer is full.
        """
        for free, new in zip(self.room(layer, k.shape[2]), (k, v), strict=True):
            if new.data_ptr() != free.data_ptr():
                free.copy_(new)
        if layer == 0:  # once a pass
            mark = object()
            self._writes[len(self._mine) :] = [mark]
            self._mine = [*self._mine, mark]
        self.lengths[layer] += k.shape[2]
        return self.view(layer)

    def view(self, layer: int) -> Segment:
        """Keys and values (R, H, length, D) stored in a layer; no copy."""
        k, v = self.layers[layer][:, :, :, : self.lengths[layer]]
        return k, v

    def twin(self) -> KVCache:
        """A cache on the same memory with lengths of its own; what it appends does not change this one."""
        twin = copy(self)
        twin.lengths, twin.owner = list(self.lengths), self.owner or self
        return twin

    def first_rows(self, rows: int) -> KVCache:
        """The cache of the first rows only, on the same memory.

        It may be appended to: that is how a pass without guidance keeps its tokens.  The other rows then lack
        them, so a pass with guidance cannot follow on it (`backbone.Step` refuses that).
        """
        part = self.twin()
        part.layers = [layer[:, :rows] for layer in self.layers]
        return part

    def of_rows(self, rows: Sequence[int]) -> KVCache:
        """A copy that holds these rows alone."""
        first = self.layers[0]
        _, _, heads, _, head_dim = first.shape
        new = KVCache(self.lengths, len(rows), heads, head_dim, first.dtype, first.device)
        for layer in range(len(self.layers)):
            new.append(layer, *(stored[list(rows)] for stored in self.view(layer)))
        new.prefix = self.prefix and self.prefix.of_rows(rows)
        return new

    def grown(self, capacity: int) -> KVCache:
        """A cache with the same tokens that can hold `capacity` tokens a layer; this one stays as it is.

        No copy where the memory is large enough: allocate for all passes at once if they are known.
        """
        if all(layer.shape[3] >= capacity for layer in self.layers):
            return self.twin()
        first = self.layers[0]
        _, rows, heads, _, head_dim = first.shape
        new = KVCache([capacity] * len(self.layers), rows, heads, head_dim, first.dtype, first.device)
        new.prefix = self.prefix
        for layer in range(len(self.layers)):
            new.append(layer, *self.view(layer))
        return new

    def detached(self) -> KVCache:
        """The same tokens on the same memory, for a recording: keeps nobody alive, writes for nobody."""
        apart = self.twin()
        apart.owner, apart._writes = None, list(self._mine)
        return apart

    def cleared(self) -> KVCache:
        """An empty cache on the same memory."""
        empty = self.twin()
        empty.lengths, empty._mine, empty.owner = [0] * len(self.layers), [], None
        return empty
