"""Slot: where the KV cache of the draft in use waits for the refine step.

A cache is large and lives on the GPU, while a host keeps outputs alive for many pictures and cannot see what they hold.  So
the cache is not part of the draft: this one place owns it, for one draft at a time, and never longer than that draft lives.
Whoever finds the slot empty rebuilds the cache from the draft's bits: same numbers, at a draft's cost.
"""

from __future__ import annotations

import weakref

from ..model.backbone import Backbone
from ..model.cache import KVCache
from .draft import Draft, rebuild_cache


class CacheSlot:
    """Room for the cache of one draft."""

    def __init__(self) -> None:
        self._draft: weakref.ref[Draft] | None = None
        self._cache: KVCache | None = None

    def keep(self, draft: Draft, cache: KVCache) -> None:
        """Own this cache until another takes its place, the draft dies, or `clear`."""
        self._cache = cache
        self._draft = weakref.ref(draft, self._forget)

    def of(self, backbone: Backbone, draft: Draft) -> KVCache:
        """The cache of a draft; rebuilt and kept when the slot holds another's or nothing."""
        if self._cache is None or self._draft is None or self._draft() is not draft:
            self.clear()  # first, so that two caches never stand side by side
            self.keep(draft, rebuild_cache(backbone, draft))
        return self._cache

    def clear(self) -> None:
        """Let the cache go."""
        self._draft = self._cache = None

    @property
    def nbytes(self) -> int:
        """Bytes of the cache held now."""
        return self._cache.nbytes if self._cache else 0

    def _forget(self, dead: weakref.ref[Draft]) -> None:
        if self._draft is dead:
            self.clear()
