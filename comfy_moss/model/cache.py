"""Preallocated keys and values of the tokens drawn so far."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from ..ops import Int8Segment, Segment, quantize_int8

SCALE = torch.float32  # of a token's and head's numbers in 8 bits


def token_bytes(heads: int, head_dim: int, dtype: torch.dtype, int8: bool = False) -> int:
    """Bytes of one token's keys and values in one layer and row."""
    each = head_dim + SCALE.itemsize if int8 else head_dim * dtype.itemsize
    return 2 * heads * each


class KVCache:
    """Keys and values of every layer in one buffer, filled from the front.

    Layers may hold different numbers of tokens (FastVAR drops tokens in some layers only).  Several caches
    may share one memory (`twin`, `first_rows`, `grown`): each knows how much of it is its own, and
    `overwritten` tells when another one has since written there.

    Args:
        capacity: tokens each layer can hold.
        rows: R, of the batch: prompts, then their unconditional twins.
        dtype: of the keys and values that are stored.
        int8: hold them in 8 bits, with a scale for every token and head: about half the memory of bfloat16.
            What is read then differs from what was stored by up to a 254th of a head's largest number.
    """

    def __init__(
        self,
        capacity: Sequence[int],
        rows: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
        int8: bool = False,
    ) -> None:
        shapes = [(2, rows, heads, tokens, head_dim) for tokens in capacity]
        stored, self.dtype, self.int8 = torch.int8 if int8 else dtype, dtype, int8
        self.layers = [torch.empty(shape, dtype=stored, device=device) for shape in shapes]
        self.scales = [torch.empty(shape[:-1], dtype=SCALE, device=device) for shape in shapes if int8]
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
        return prefix + sum(part.untyped_storage().nbytes() for part in (*self.layers, *self.scales))

    def room(self, layer: int, tokens: int) -> Segment | None:
        """The next free memory of a layer, (R, H, tokens, D) each, for whoever can compute in place; in 8
        bits nobody can (None).

        Raises:
            ValueError: the layer is full.
        """
        free = self._read(layer, self._next(layer, tokens))
        return None if self.int8 else free

    def append(self, layer: int, k: Tensor, v: Tensor) -> Segment | Int8Segment:
        """Store k and v (R, H, N, D) behind what the layer holds; no copy of what lies in its `room` already.

        Returns:
            All that the layer holds now.

        Raises:
            ValueError: the layer is full.
        """
        free = self._read(layer, self._next(layer, k.shape[2]))
        new = (k, v)
        if self.int8:
            numbers, scales = zip(quantize_int8(k), quantize_int8(v), strict=True)
            new = (*numbers, *scales)
        for place, part in zip(free, new, strict=True):
            if part.data_ptr() != place.data_ptr():
                place.copy_(part)
        self.advance(layer, k.shape[2])
        return self.view(layer)

    def advance(self, layer: int, tokens: int) -> None:
        """Count the next tokens of a layer, whose keys and values somebody has written there."""
        if layer == 0:  # once a pass
            mark = object()
            self._writes[len(self._mine) :] = [mark]
            self._mine = [*self._mine, mark]
        self.lengths[layer] += tokens

    def view(self, layer: int) -> Segment | Int8Segment:
        """Keys and values (R, H, length, D) stored in a layer; no copy."""
        return self._read(layer, slice(0, self.lengths[layer]))

    def _next(self, layer: int, tokens: int) -> slice:
        """Where the next tokens of a layer go.

        Raises:
            ValueError: the layer is full.
        """
        start, end = self.lengths[layer], self.lengths[layer] + tokens
        if end > (capacity := self.layers[layer].shape[3]):
            raise ValueError(f"the KV cache of layer {layer} holds {capacity} tokens, {end} were needed")
        return slice(start, end)

    def _read(self, layer: int, tokens: slice) -> Segment | Int8Segment:
        """Some of a layer's memory."""
        k, v = self.layers[layer][:, :, :, tokens]
        return Int8Segment(k, v, *self.scales[layer][:, :, :, tokens]) if self.int8 else (k, v)

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
        part.scales = [scales[:, :rows] for scales in self.scales]
        return part

    def of_rows(self, rows: Sequence[int]) -> KVCache:
        """A copy that holds these rows alone."""
        new = self._copied(self.lengths, list(rows))
        new.prefix = self.prefix and self.prefix.of_rows(rows)
        return new

    def grown(self, capacity: int) -> KVCache:
        """A cache with the same tokens that can hold `capacity` tokens a layer; this one stays as it is.

        No copy where the memory is large enough: allocate for all passes at once if they are known.
        """
        if all(layer.shape[3] >= capacity for layer in self.layers):
            return self.twin()
        new = self._copied([capacity] * len(self.layers), list(range(self.rows)))
        new.prefix = self.prefix
        return new

    def _copied(self, capacity: Sequence[int], rows: list[int]) -> KVCache:
        """The tokens of these rows in memory of their own, number for number."""
        first = self.layers[0]
        _, _, heads, _, head_dim = first.shape
        new = KVCache(capacity, len(rows), heads, head_dim, self.dtype, first.device, self.int8)
        for layer, length in enumerate(self.lengths):
            theirs = new._read(layer, new._next(layer, length))
            for mine, part in zip(self.view(layer), theirs, strict=True):
                part.copy_(mine[rows])
            new.advance(layer, length)
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
