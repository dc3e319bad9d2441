"""KV store: where what the draft in use left on the device waits for refine passes: its KV cache and its prepared text.

Both are large and live on the GPU, while a host keeps outputs alive for many pictures and cannot see what they hold.
So they are not part of the draft: this one place owns them, for one draft and one sequence of passes over it at a time,
and never longer than that draft lives.  Whoever finds something missing has it made anew from the draft's tokens: same
numbers, at the cost of drawing them.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace

from ..model.backbone import Backbone
from .draft import Draft, OnScale, Residual, Run
from .refine import extend, rebuild


class KVStore:
    """Room for what one draft left, and the passes over it."""

    def __init__(self) -> None:
        self._draft: weakref.ref[Draft] | None = None
        self._run: Run | None = None  # whose cache holds the draft before its passes
        self._passes: tuple[Residual, ...] = ()
        self._extended: Run | None = None  # whose cache holds these passes too, in the same memory

    def keep(self, draft: Draft, run: Run) -> None:
        """Own what a run left behind for a draft without passes, until another's takes its place or the draft dies."""
        self._draft, self._run = weakref.ref(draft, self._forget), run
        self._passes, self._extended = (), None

    def holds(self, draft: Draft) -> bool:
        """Whether this very draft is here, its passes set aside."""
        return self._run is not None and self._draft is not None and self._draft() is (draft.base or draft)

    def missing(self, draft: Draft) -> int:
        """Tokens a row that would have to be run again to have all of a draft here."""
        if not self.holds(draft):
            return draft.cached_tokens
        return 0 if self._has(draft.passes) else draft.cached_tokens - (draft.base or draft).cached_tokens

    def run_of(self, backbone: Backbone, draft: Draft, on_scale: OnScale | None = None) -> Run:
        """A run whose cache holds a draft with all its passes; what is missing is made anew and kept.

        Args:
            on_scale: called after every scale that is made anew; may raise to cancel, which leaves the store empty.
        """
        base = draft.base or draft
        if not self.holds(draft):
            self.clear()  # first, so that two caches never stand side by side
            self.keep(base, rebuild(backbone, base, on_scale)[1])
        if not self._has(draft.passes):
            start = self.with_room(base, draft.cached_tokens - base.cached_tokens)
            self._passes, self._extended = draft.passes, extend(start, base, draft.passes)[1]
        run = self._extended if draft.passes else self._run
        return replace(run, backbone=backbone)

    def with_room(self, draft: Draft, tokens: int) -> Run:
        """A run like that of a draft which is here, whose cache takes so many more tokens a row."""
        run = self._extended if draft.passes else self._run
        grown = run.cache.grown(run.cache.lengths[0] + tokens)
        if not draft.passes:
            self._run = replace(run, cache=grown)  # lets the smaller memory go
            self._passes, self._extended = (), None
        return replace(run, cache=grown.twin())

    def keep_pass(self, draft: Draft, residual: Residual, run: Run) -> None:
        """Own a run whose cache holds one more pass over a draft that is here."""
        self._passes, self._extended = (*draft.passes, residual), run

    def clear(self) -> None:
        """Let everything go."""
        self._draft = self._run = self._extended = None
        self._passes = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the cache held now."""
        return self._run.cache.nbytes if self._run else 0

    def _has(self, passes: Sequence[Residual]) -> bool:
        """Whether exactly these passes are in the cache; how strongly they were laid over the draft does not matter."""
        same = len(passes) == len(self._passes)
        return not passes or (same and all(a.bits is b.bits for a, b in zip(passes, self._passes, strict=True)))

    def _forget(self, dead: weakref.ref[Draft]) -> None:
        if self._draft is dead:
            self.clear()
