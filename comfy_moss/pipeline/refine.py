"""Refine: redraw the dispatched tokens of a pass's scales in ONE forward pass, and lay them over the draft
(composite).

With cross-scale attention (CSSA) every token of the pass sees all others and everything in the cache; without
it (the paper's SA ablation) only those of its own scale, and the cache.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.backbone import Backbone, Condition
from ..model.cache import KVCache
from ..model.schedule import Grid, Positions
from .dispatch import Dispatch, RefinePass
from .draft import Draft, OnScale, Recipe, Residual, Run, draft_of, draw_scales


def refine_sequence(backbone: Backbone, draft: Draft, dispatch: Dispatch) -> tuple[Tensor, Positions]:
    """Tokens (B, N, d) and positions of all scales of a pass as one sequence, coarsest scale first.

    Every scale's input is the draft resized to its grid, as the dense loop makes the input of its next scale.
    """
    schedule = draft.recipe.schedule
    total = draft.total.to(backbone.device)
    tokens, positions = [], []
    for scale, cells in zip(dispatch.scales, dispatch.cells, strict=True):
        cells = cells.to(backbone.device)
        whole = backbone.tokens(total, schedule.grids[scale])
        tokens.append(whole.gather(1, cells[..., None].expand(-1, -1, whole.shape[-1])))
        positions.append(Positions.of_cells(schedule, scale, cells))
    return torch.cat(tokens, dim=1), Positions.concat(positions)


@torch.inference_mode()
def refine(
    backbone: Backbone,
    draft: Draft,
    dispatch: Dispatch,
    made_by: RefinePass,
    cache: KVCache | None = None,
    condition: Condition | None = None,
) -> Residual:
    """Draw the dispatched tokens, attending to the draft's cache and to each other.  Changes neither draft
    nor cache.

    Args:
        cache: the draft's cache; rebuilt when None.
        condition: the recipe's prompts made ready for this model, as the draft used them; made anew when
            None.

    Raises:
        ValueError: the dispatch was made for another draft.
    """
    condition = condition or draft.recipe.condition(backbone)
    if cache is None:
        run = rebuild(backbone, draft, condition=condition)[1]
    else:
        run = Run(backbone, draft.recipe, condition, cache)
    return run.finished(draw_pass(run, draft, dispatch, made_by, store=False)[0])


def draw_pass(
    run: Run, draft: Draft, dispatch: Dispatch, made_by: RefinePass, store: bool,
    given: Residual | None = None,
) -> tuple[Residual, Run]:
    """One refine pass of a run whose cache holds the draft.

    Args:
        store: append the keys and values of the pass to the cache, for the passes that follow.
        given: what the pass is known to have drawn (teacher forcing); None = draw.

    Returns:
        What was drawn, on its device (see `Run.finished`), and the run for the next pass: once guidance is
        off its unconditional rows are gone.

    Raises:
        ValueError: the dispatch was made for another draft, or guidance is asked for after it was switched
            off.
    """
    _check(draft, dispatch)
    drawn_as = run.guided_by(made_by.guidance)
    follows = drawn_as if not made_by.guided else run
    if sum(dispatch.counts) == 0:
        return Residual(dispatch, tuple(draft.bits[0][:, :0] for _ in dispatch.cells), made_by), follows
    tokens, positions = refine_sequence(run.backbone, draft, dispatch)
    visible = None if made_by.cross_scale else positions.scale[0].int()  # the same scales for every picture
    step = drawn_as.step(positions, store, visible)
    hidden = run.backbone.forward(tokens, step)
    if given is not None:
        return given, follows
    bits = run.backbone.sample(hidden, step).split(list(dispatch.counts), dim=1)
    return Residual(dispatch, bits, made_by), follows


def _check(draft: Draft, dispatch: Dispatch) -> None:
    first, pictures = dispatch.scales[0], len(dispatch.cells[0])
    if first not in draft.left or pictures != len(draft.total):
        left = f"{draft.left.start} to {draft.left.stop - 1}" if draft.left else "none"
        raise ValueError(
            f"this dispatch redraws scales from {first} on in {pictures} pictures, but the draft is of "
            f"{len(draft.total)} pictures and has these scales left: {left}"
        )


@torch.inference_mode()
def composite(
    backbone: Backbone, draft: Draft, residual: Residual, device: torch.device | None = None
) -> Draft:
    """The draft with a pass laid over it, by the pass's strength.

    Each scale's codes stand in an otherwise empty map, upsampled like the dense loop's, and without effect on
    places that nobody drew.  The result is a draft again: its `total` (B, c, H, W), on that device, can be
    decoded, or refined by another pass.

    Args:
        device: where the codec is, if not with the transformer.
    """
    total = draft.total.to(device or backbone.device)
    for _, added, _ in _added(backbone, draft, residual, total.device):
        total = total + added
    passes, base = (*draft.passes, residual), draft.base or draft
    return replace(draft, total=total, passes=passes, base=base)


def _added(
    backbone: Backbone, draft: Draft, residual: Residual, device: torch.device
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """What every scale of a pass adds to the sum of codes: the scale, (B, c, H, W), and which tokens were
    drawn.
    """
    schedule, dispatch = draft.recipe.schedule, residual.dispatch
    for scale, cells, bits in zip(dispatch.scales, dispatch.cells, residual.bits, strict=True):
        h, w = schedule.grids[scale]
        codes, cells = backbone.codes(bits.to(device)), cells.to(device)
        whole = codes.new_zeros(len(bits), h * w, bits.shape[-1])
        whole.scatter_(1, cells[..., None].expand_as(codes), codes)
        filled = torch.zeros(len(bits), h * w, dtype=torch.bool, device=device).scatter_(1, cells, True)
        yield scale, residual.made_by.strength * backbone.code_map(whole, scale, schedule, filled), filled


@torch.inference_mode()
def finished(backbone: Backbone, draft: Draft, device: torch.device | None = None) -> Tensor:
    """The sum of codes (B, c, H, W) to decode: the draft's and, of the picture that it was drawn from, the
    finer codes of all places that stay: those outside the mask and, where the whole draft is that picture's,
    those that no pass redrew.

    Args:
        device: where the codec is, if not with the transformer.
    """
    source, base = draft.recipe.source, draft.base or draft
    schedule, scales = draft.recipe.schedule, range(base.scales, len(draft.recipe.schedule))
    device = device or backbone.device
    if source is None or len(source.bits) <= base.scales or not scales:
        return draft.total
    size, added = schedule.grids[-1], {}
    redrawn = torch.zeros(len(draft.total), *size, dtype=torch.bool, device=device)
    for residual in draft.passes:
        for scale, new, filled in _added(backbone, draft, residual, device):
            added[scale] = added.get(scale, 0) + new
            redrawn |= _nearest(filled.view(-1, *schedule.grids[scale]), size)
    if source.scales >= base.scales:
        open_to_change = redrawn if source.mask is None else redrawn & source.mask.to(device)
        source = replace(source, mask=open_to_change, first=0)
    total = base.total.to(device)
    for scale in scales:
        new = added.get(scale, torch.zeros_like(total))
        total = total + source.complete(new, scale, schedule, backbone)
    return total.cpu()


def _nearest(cells: Tensor, size: Grid) -> Tensor:
    """Cells (B, h, w) bool on a finer grid."""
    return F.interpolate(cells[:, None].float(), size=tuple(size), mode="nearest-exact")[:, 0] > 0.5


@torch.inference_mode()
def rebuild(
    backbone: Backbone,
    draft: Draft,
    on_scale: OnScale | None = None,
    room: int = 0,
    condition: Condition | None = None,
) -> tuple[Draft, Run]:
    """A draft, and a run whose cache holds it, made anew from its tokens alone: same numbers, at a draft's
    cost.

    Args:
        room: tokens a row that the cache can take besides.
    """
    run = Run.begin(backbone, draft.recipe, draft.cached_tokens + room, condition=condition)
    again = draft_of(run, draft.scales, given=draft.bits, on_scale=on_scale)
    return extend(run, again, draft.passes)


def extend(run: Run, draft: Draft, passes: Sequence[Residual]) -> tuple[Draft, Run]:
    """Lay known passes over a draft and put their keys and values into the run's cache."""
    for residual in passes:
        _, run = draw_pass(run, draft, residual.dispatch, residual.made_by, store=True, given=residual)
        draft = composite(run.backbone, draft, residual)
    return draft, run


@torch.inference_mode()
def finish_dense(
    backbone: Backbone,
    draft: Draft,
    cache: KVCache | None = None,
    on_scale: OnScale | None = None,
    condition: Condition | None = None,
) -> tuple[Draft, KVCache]:
    """Draw what the draft lacks as the plain model does: every scale that is left, whole, one after the
    other.

    Args:
        cache: the draft's cache; rebuilt when None.  It is not changed.

    Returns:
        The finished picture as a draft, and the larger cache that drawing it took.
    """
    condition = condition or draft.recipe.condition(backbone)
    if cache is None:
        cache = rebuild(backbone, draft, condition=condition)[1].cache
    if not draft.left:
        return draft, cache
    schedule, recipe = draft.recipe.schedule, draft.recipe
    grown = cache.grown(cache.lengths[0] + schedule.tokens(draft.left.start, len(schedule) - 1))
    run, done = Run(backbone, recipe, condition, grown), draft
    if not draft.passes:
        bits, total = draw_scales(run, draft.total.to(backbone.device), draft.left, on_scale=on_scale)
        whole = Draft(recipe, (*draft.bits, *bits), total, draft.model_id)
        return run.finished(whole), grown
    for scale in draft.left:
        count = schedule.tokens(scale, scale + 1)
        cells = torch.arange(count, device=backbone.device).expand(len(draft.total), -1)
        whole, made_by = Dispatch((scale,), (cells,)), RefinePass((scale,), (100.0,))
        residual, run = draw_pass(run, done, whole, made_by, store=scale != draft.left[-1])
        done = composite(backbone, done, residual)
        if on_scale:
            on_scale(scale + 1, len(schedule), done.total)
    return run.finished(done), grown


# --- the store of KV caches ---------------------------------------------------------------------------------

# KV store: where what the draft in use left on the device waits for refine passes: its KV cache and its
# prepared text.
#
# Both are large and live on the GPU, while a host keeps outputs alive for many pictures and cannot see what
# they hold. So they are not part of the draft: this one place owns them, for one draft and one sequence of
# passes over it at a time, and never longer than that draft lives. Whoever finds something missing has it
# made anew from the draft's tokens: same numbers, at the cost of drawing them.

class KVStore:
    """Room for what one draft left, and the passes over it."""

    def __init__(self) -> None:
        self._draft: weakref.ref[Draft] | None = None
        self._run: Run | None = None  # whose cache holds the draft before its passes
        self._passes: tuple[Residual, ...] = ()
        self._extended: Run | None = None  # whose cache holds these passes too, in the same memory
        self._prompts: tuple[Recipe, Condition] | None = None  # made ready for the last draft
        self._parts: weakref.WeakSet[KVStore] = weakref.WeakSet()

    def begin(self, backbone: Backbone, recipe: Recipe, tokens: int) -> Run:
        """A run that has drawn nothing yet, with room for that many tokens a row.

        Prompts (and pictures beside them) that are those of the last draft are not made ready anew: another
        seed begins where they end.
        """
        condition = self.prompts_of(recipe) or recipe.condition(backbone)
        self._prompts = recipe, condition
        return Run.begin(backbone, recipe, tokens, condition)

    def prompts_of(self, recipe: Recipe) -> Condition | None:
        """The prompts of a recipe, if they were made ready for the last draft."""
        return self._prompts[1] if self._prompts and self._prompts[0].same_prompts(recipe) else None

    def make_room(self, recipe: Recipe) -> None:
        """Let everything go that is of no use for drawing this."""
        self.drop()
        self._prompts = self._prompts if self.prompts_of(recipe) else None

    def part(self) -> KVStore:
        """A store of its own for some of the pictures of the draft in use, emptied together with this one."""
        part = KVStore()
        self._parts.add(part)
        return part

    def keep(self, draft: Draft, run: Run) -> None:
        """Own what a run left behind for a draft without passes, until another's takes its place or the draft
        dies.
        """
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
            on_scale: called after every scale that is made anew; may raise to cancel, which leaves the store
                empty.
        """
        base = draft.base or draft
        if not self.holds(draft):
            self.make_room(base.recipe)  # first, so that two caches never stand side by side
            run = self.begin(backbone, base.recipe, base.cached_tokens)
            draft_of(run, base.scales, given=base.bits, on_scale=on_scale)
            self.keep(base, run)
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

    def drop(self) -> None:
        """Let the draft go, but not its prompts."""
        self._draft = self._run = self._extended = None
        self._passes = ()
        for part in self._parts:
            part.clear()

    def clear(self) -> None:
        """Let everything go."""
        self.drop()
        self._prompts = None

    @property
    def nbytes(self) -> int:
        """Bytes of the cache held now."""
        return self._run.cache.nbytes if self._run else 0

    def _has(self, passes: Sequence[Residual]) -> bool:
        """Whether exactly these passes are in the cache; how strongly they were laid over the draft does not
        matter.
        """
        same = len(passes) == len(self._passes)
        return not passes or (
            same and all(a.bits is b.bits for a, b in zip(passes, self._passes, strict=True))
        )

    def _forget(self, dead: weakref.ref[Draft]) -> None:
        if self._draft is dead:
            self.drop()
