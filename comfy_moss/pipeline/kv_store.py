"""KV store: where what the draft in use left on the device waits for the refine step: its KV cache and its prepared text.

Both are large and live on the GPU, while a host keeps outputs alive for many pictures and cannot see what they hold.  So they
are not part of the draft: this one place owns them, for one draft at a time, and never longer than that draft lives.  Whoever
finds the store empty rebuilds them from the draft: same numbers, at a draft's cost.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from ..model.backbone import Backbone, Condition
from ..model.cache import KVCache
from .draft import Draft, OnScale
from .refine import rebuild


@dataclass(frozen=True)
class Stored:
    """What a draft left on the device."""

    cache: KVCache
    condition: Condition


class KVStore:
    """Room for the cache and the text of one draft."""

    def __init__(self) -> None:
        self._draft: weakref.ref[Draft] | None = None
        self._stored: Stored | None = None

    def keep(self, draft: Draft, cache: KVCache, condition: Condition) -> None:
        """Own these until others take their place, the draft dies, or `clear`."""
        self._stored = Stored(cache, condition)
        self._draft = weakref.ref(draft, self._forget)

    def holds(self, draft: Draft) -> bool:
        """Whether this very draft's cache is here."""
        return self._stored is not None and self._draft is not None and self._draft() is draft

    def of(self, backbone: Backbone, draft: Draft, on_scale: OnScale | None = None) -> Stored:
        """Cache and text of a draft; rebuilt and kept when the store holds another's or nothing.

        Args:
            on_scale: called after every scale of a rebuild; may raise to cancel, which leaves the store empty.
        """
        if not self.holds(draft):
            self.clear()  # first, so that two caches never stand side by side
            condition = draft.recipe.condition(backbone)
            run = rebuild(backbone, draft, on_scale, condition=condition)[1]
            self.keep(draft, run.cache, run.condition)
        return self._stored

    def clear(self) -> None:
        """Let everything go."""
        self._draft = self._stored = None

    @property
    def nbytes(self) -> int:
        """Bytes of the cache held now."""
        return self._stored.cache.nbytes if self._stored else 0

    def _forget(self, dead: weakref.ref[Draft]) -> None:
        if self._draft is dead:
            self.clear()
