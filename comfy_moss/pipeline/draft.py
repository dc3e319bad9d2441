"""Draft: draw the first scales in order, everywhere.

The draft itself is small plain data that can be stored on the CPU, saved and shared.  The KV cache is a
companion that can be rebuilt from it (same numbers, at a draft's cost), so whoever runs short of memory may
drop it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..model.backbone import Backbone, Branch, Condition, Step, Tables, Text
from ..model.cache import KVCache
from ..model.sampling import Finite, Guidance, Sampling
from ..model.schedule import Positions, Schedule
from .dispatch import Dispatch, RefinePass, on_cpu
from .source import Source

# (scales done, scales in all, sum of codes so far); may raise to cancel
OnScale = Callable[[int, int, Tensor], None]


UNUSED_NEGATIVE = "The negative prompt changes nothing: the picture is drawn without guidance (cfg 1)."


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a picture besides the weights and the method.

    Attributes:
        text: B text features, each (L_i, Ct), with positions where the model reads them.
        negative: the same for negative prompts; None = the model's learned unconditional text.
        seeds: B noise seeds, one a picture.
        source: the picture that this one is drawn from; None = from nothing.
    """

    text: tuple[Text, ...]
    negative: tuple[Text, ...] | None
    seeds: tuple[int, ...]
    schedule: Schedule
    guidance: Guidance = Guidance()
    sampling: Sampling = Sampling()
    source: Source | None = None

    def __post_init__(self) -> None:
        if not len(self.text) == len(self.seeds) == len(self.negative or self.text):
            raise ValueError(
                f"{len(self.text)} prompts, {len(self.seeds)} seeds and {len(self.negative or ())} negative "
                "prompts do not pair up"
            )

    def same_prompts(self, other: Recipe) -> bool:
        """Whether both ask for the same pictures, but for chance: their conditions are interchangeable."""
        facts = [(one.schedule, one.guidance.active(len(one.schedule))) for one in (self, other)]
        return facts[0] == facts[1] and all(
            _same(ours, theirs) for ours, theirs in ((self.text, other.text), (self.negative, other.negative))
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is asked for in vain, in sentences."""
        unused = self.negative is not None and not self.guidance.active(len(self.schedule))
        return (UNUSED_NEGATIVE,) if unused else ()

    def pick(self, pictures: Sequence[int]) -> Recipe:
        """The recipe of some of its pictures."""
        text, seeds = (tuple(values[n] for n in pictures) for values in (self.text, self.seeds))
        negative = self.negative and tuple(self.negative[n] for n in pictures)
        source = self.source and self.source.pick(list(pictures))
        return replace(self, text=text, negative=negative, seeds=seeds, source=source)

    def condition(self, backbone: Backbone) -> Condition:
        """The prompts made ready for every layer of the model."""
        guided = self.guidance.active(len(self.schedule))
        return backbone.condition(self.text, self.negative, guided, self.schedule)


def _same(a: object, b: object) -> bool:
    """Whether two texts, or tuples of such, say the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and torch.equal(a, b))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a is b


@dataclass(frozen=True)
class Residual:
    """What a refine pass drew: the dispatched tokens, per scale (B, n_i, d), of the kind of `Draft.bits`.

    Attributes:
        made_by: the pass; its strength is what the tokens are laid over the draft with.
    """

    dispatch: Dispatch
    bits: tuple[Tensor, ...]
    made_by: RefinePass

    def pick(self, pictures: Sequence[int]) -> Residual:
        """What was drawn of some of the pictures."""
        cells = tuple(cells[list(pictures)] for cells in self.dispatch.cells)
        dispatch = replace(self.dispatch, cells=cells)
        return replace(self, dispatch=dispatch, bits=tuple(bits[list(pictures)] for bits in self.bits))

    def cpu(self) -> Residual:
        """The same on the CPU; itself where it is there."""
        dispatch, bits = self.dispatch.cpu(), on_cpu(self.bits)
        if dispatch is self.dispatch and bits is self.bits:
            return self
        return replace(self, dispatch=dispatch, bits=bits)


@dataclass(frozen=True)
class Draft:
    """A picture drawn up to some scale: plain data that everything else can be made from again.

    Attributes:
        bits: per scale that was drawn whole, its tokens (B, h*w, d): bits (uint8), or whatever this model
            draws.
        total: R of the paper, (B, c, H, W) float32: the sum of the upsampled codes so far.
        model_id: weights that drew it.
        passes: refine passes laid over it since, in order.
        base: the draft before its passes; None = this one.
    """

    recipe: Recipe
    bits: tuple[Tensor, ...]
    total: Tensor
    model_id: str
    passes: tuple[Residual, ...] = ()
    base: Draft | None = None

    def cpu(self) -> Draft:
        """The same on the CPU, as it is stored; itself where it is there."""
        bits, base = on_cpu(self.bits), self.base and self.base.cpu()
        passes = tuple(residual.cpu() for residual in self.passes)
        here = bits is self.bits and base is self.base and self.total.device.type == "cpu"
        if here and all(a is b for a, b in zip(passes, self.passes, strict=True)):
            return self
        return replace(self, bits=bits, total=self.total.cpu(), passes=passes, base=base)

    @property
    def scales(self) -> int:
        """Number of scales that were drawn whole."""
        return len(self.bits)

    @property
    def left(self) -> range:
        """The scales that a further pass may redraw: those finer than any drawn one."""
        first = self.passes[-1].dispatch.scales[-1] + 1 if self.passes else self.scales
        return range(first, len(self.recipe.schedule))

    def pick(self, pictures: Sequence[int]) -> Draft:
        """The draft of some of its pictures, in that order."""
        rows = list(pictures)
        return Draft(
            self.recipe.pick(rows), tuple(bits[rows] for bits in self.bits), self.total[rows], self.model_id,
            tuple(residual.pick(rows) for residual in self.passes), self.base and self.base.pick(rows),
        )

    @property
    def refine_scales(self) -> int:
        """k of the paper: scales that are left."""
        return len(self.left)

    @property
    def tokens_per_scale(self) -> tuple[int, ...]:
        """Tokens a picture that the transformer ran at every scale."""
        tokens = [h * w if n < self.scales else 0 for n, (h, w) in enumerate(self.recipe.schedule.grids)]
        for dispatch in (residual.dispatch for residual in self.passes):
            for scale, count in zip(dispatch.scales, dispatch.counts, strict=True):
                tokens[scale] += count
        return tuple(tokens)

    @property
    def refined(self) -> int:
        """Tokens a picture that refine passes drew."""
        return sum(sum(residual.dispatch.counts) for residual in self.passes)

    @property
    def cached_tokens(self) -> int:
        """Tokens a row in the cache when all of this draft is in it; nobody looks back at the last scale."""
        schedule = self.recipe.schedule
        whole = schedule.tokens(0, min(self.scales, len(schedule) - 1))
        return whole + self.refined


Drawn = TypeVar("Drawn", Draft, Residual)


def _rows(value: Any, rows: list[int]) -> Any:
    """Rows of every tensor of a condition; whatever else it holds stays."""
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, KVCache):
        return value.of_rows(rows)
    return tuple(_rows(part, rows) for part in value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Run:
    """One drawing under way: the model, the recipe and what earlier tokens left behind.

    Attributes:
        tables: what its passes look up; finite: whether all they drew from were numbers.
    """

    backbone: Backbone
    recipe: Recipe
    condition: Condition
    cache: KVCache | None
    tables: Tables | None = None
    finite: Finite = field(default_factory=Finite)

    def __post_init__(self) -> None:
        recipe, tables = self.recipe, self.tables
        if tables is None or (tables.schedule, tables.seeds) != (recipe.schedule, recipe.seeds):
            tables = Tables(recipe.schedule, recipe.seeds, self.backbone.device)
            object.__setattr__(self, "tables", tables)

    @classmethod
    def begin(
        cls, backbone: Backbone, recipe: Recipe, tokens: int, condition: Condition | None = None
    ) -> Run:
        """With an empty cache for that many tokens a row; the prompts are made ready here, if the caller has
        not.
        """
        condition = condition or recipe.condition(backbone)
        return cls(backbone, recipe, condition, backbone.new_cache(condition, tokens))

    def pick(self, pictures: Sequence[int]) -> Run:
        """The same with some of its pictures alone, in memory of its own."""
        batch = self.condition.batch
        rows = [n + start for start in ((0, batch) if self.condition.guided else (0,)) for n in pictures]
        held = {field.name: getattr(self.condition, field.name) for field in fields(self.condition)}
        parts = {name: _rows(value, rows) for name, value in held.items()}
        condition = replace(self.condition, **parts | {"batch": len(pictures)})
        cache = self.cache and self.cache.of_rows(rows)
        return replace(self, recipe=self.recipe.pick(pictures), condition=condition, cache=cache)

    def guided_by(self, strength: float | None) -> Run:
        """The same under another guidance: None = as it is, 1 = none, which leaves the prompts' rows alone.

        Raises:
            ValueError: guidance is asked for after it was switched off.
        """
        if strength is None:
            return self
        if strength != 1:
            if not self.condition.guided:
                raise ValueError(
                    f"a pass with guidance {strength:g} cannot follow a draft or a pass without guidance; "
                    "switch it on in all of them, or off in this one too"
                )
            guidance = self.recipe.guidance.of_strength(strength)
            return replace(self, recipe=replace(self.recipe, guidance=guidance))
        if not self.condition.guided:
            return self
        condition = self.condition.unguided()
        cache = self.cache and self.cache.first_rows(condition.batch)
        return replace(self, condition=condition, cache=cache)

    def step(
        self, positions: Positions, store: bool, visible: Tensor | None = None, branch: Branch | None = None
    ) -> Step:
        """A forward pass over those tokens of this picture."""
        recipe = self.recipe
        settings = (recipe.guidance, recipe.sampling, recipe.seeds)
        passing = (self.cache, store, visible, branch, self.tables, self.finite)
        return Step(positions, recipe.schedule, self.condition, *settings, *passing)

    def finished(self, drawn: Drawn) -> Drawn:
        """What a step that somebody sees has drawn, on the CPU.  Here a GPU is waited for, nowhere before.

        Raises:
            ValueError: the model returned values that are not numbers.
        """
        self.finite.check()
        return drawn.cpu()

    def whole_scale(
        self, total: Tensor, scale: int, store: bool, branch: Branch | None = None
    ) -> tuple[Tensor | None, Step]:
        """Input tokens of a whole scale, from the sum (B, c, H, W) of all before it, and their pass."""
        schedule, backbone = self.recipe.schedule, self.backbone
        positions = Positions.of_scale(schedule, scale, backbone.device)
        tokens = backbone.tokens(total, schedule.grids[scale]) if scale else None
        return tokens, self.step(positions, store, branch=branch)


def lay_scale(run: Run, total: Tensor, scale: int, bits: Tensor) -> tuple[Tensor, Tensor]:
    """A scale's tokens (B, h*w, d) with what the recipe's source keeps of it, and the sum of codes with them.
    """
    schedule, backbone, source = run.recipe.schedule, run.backbone, run.recipe.source
    if source is not None:
        bits = source.lay(bits, scale, schedule.grids[scale])
    added = backbone.code_map(backbone.codes(bits), scale, schedule)
    return bits, total + (added if source is None else source.blend(added, scale, schedule, backbone))


def empty_total(backbone: Backbone, recipe: Recipe) -> Tensor:
    """The sum of no codes, (B, c, H, W)."""
    size = backbone.map_grid(recipe.schedule.grids[-1])
    return torch.zeros(len(recipe.seeds), backbone.channels, *size, device=backbone.device)


def draw_scales(
    run: Run,
    total: Tensor,
    scales: range,
    given: Sequence[Tensor] = (),
    branch: Branch | None = None,
    on_scale: OnScale | None = None,
    store: bool = True,
) -> tuple[list[Tensor], Tensor]:
    """Draw scales in order, each from the sum of all before it.

    Args:
        total: (B, c, H, W) sum of the codes of the scales before.
        given: bits that replace the drawn ones, indexed by scale (teacher forcing); absent = draw, or take
            them from the recipe's source.
        store: keep keys and values for later scales (those of the schedule's last scale never are).

    Returns:
        drawn tokens of the scales, each (B, h*w, d), and the new sum.
    """
    schedule, backbone, source = run.recipe.schedule, run.backbone, run.recipe.source
    drawn = []
    for scale in scales:
        known = given[scale] if scale < len(given) else source and source.known(scale)
        keep = store and scale < len(schedule) - 1
        if known is None or keep:  # a known scale that nobody looks back at leaves nothing to compute
            tokens, step = run.whole_scale(total, scale, keep, branch)
            hidden = backbone.forward(tokens, step)
        bits = backbone.sample(hidden, step) if known is None else known.to(backbone.device)
        bits, total = lay_scale(run, total, scale, bits)
        drawn.append(bits)
        if on_scale:
            on_scale(scale + 1, len(schedule), total)
    return drawn, total


def run_given(
    run: Run, total: Tensor, given: Sequence[Tensor], on_scale: OnScale | None = None
) -> tuple[list[Tensor], Tensor]:
    """Run the first scales, whose tokens are all known beforehand, for their keys and values.

    The first scale has no input of its own kind, so it runs alone; all others run in one pass, in which a
    token sees its own scale and coarser ones, as when they are drawn one after the other.

    Args:
        total: (B, c, H, W) the sum of no codes.
        given: tokens of the scales, each (B, h*w, d).

    Returns:
        as `draw_scales`.
    """
    schedule, backbone = run.recipe.schedule, run.backbone
    known, inputs, positions = [bits.to(backbone.device) for bits in given], [], []
    for scale, bits in enumerate(known):
        inputs.append(backbone.tokens(total, schedule.grids[scale]) if scale else None)
        positions.append(Positions.of_scale(schedule, scale, backbone.device))
        total = total + backbone.code_map(backbone.codes(bits), scale, schedule)
        if on_scale:
            on_scale(scale + 1, len(schedule), total)
    backbone.forward(None, run.step(positions[0], store=True))
    stored = slice(1, min(len(known), len(schedule) - 1))  # nobody looks back at the last scale
    if inputs[stored]:
        together = Positions.concat(positions[stored])
        visible = together.scale[:, :, None] >= together.scale[:, None, :]
        backbone.forward(torch.cat(inputs[stored], dim=1), run.step(together, True, visible))
    return known, total


@torch.inference_mode()
def draw_draft(
    backbone: Backbone,
    recipe: Recipe,
    scales: int,
    given: Sequence[Tensor] = (),
    on_scale: OnScale | None = None,
    condition: Condition | None = None,
) -> tuple[Draft, KVCache]:
    """Draw the first scales of a picture.

    Args:
        scales: how many, in [1, S].
        given: bits of leading scales to take instead of drawing them (gt_leak).
        condition: the recipe's prompts made ready for this model, where the caller has them; None = made
            here.

    Returns:
        The draft, and the cache of its tokens' keys and values (of all but the last scale when all S are
        drawn).

    Raises:
        ValueError: scales out of range.
    """
    schedule = recipe.schedule
    if not 1 <= scales <= len(schedule):
        raise ValueError(f"a draft has 1 to {len(schedule)} scales here, got {scales}")
    run = Run.begin(backbone, recipe, schedule.tokens(0, min(scales, len(schedule) - 1)), condition)
    return run.finished(draft_of(run, scales, given, on_scale)), run.cache


def draft_of(
    run: Run, scales: int, given: Sequence[Tensor] = (), on_scale: OnScale | None = None
) -> Draft:
    """The draft of a run that has drawn nothing yet, on its device (see `Run.finished`); arguments as of
    `draw_draft`.
    """
    bits, total = [], empty_total(run.backbone, run.recipe)
    if at_once := min(len(run.condition.given), scales):
        known = [*given, *run.condition.given[len(given) :]][:at_once]
        bits, total = run_given(run, total, known, on_scale)
    drawn, total = draw_scales(run, total, range(at_once, scales), given, on_scale=on_scale)
    return Draft(run.recipe, (*bits, *drawn), total, run.backbone.model_id)
