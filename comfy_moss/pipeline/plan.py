"""Plan: some scales drawn whole, then refine passes over parts of the others; some may be left out.

Dense, skipping the last scales and MoSs-k of the paper are plans; so is everything between.  After every pass
but the last its tokens join the KV cache, and the frequency map is made anew from the new sum of codes.

A plan as text: the draft, then the passes, each behind a semicolon:

    dense                                   every scale whole
    draft-4                                 all but the last 4
    draft-4; -4@80 -3@70 -2@30 -1@10        MoSs4 of the paper: one pass over the last 4 scales
    draft-3; -1@45 unguided                 all but 3, then the busiest 45 % of the last one, without guidance
    draft-4 cfg 3; -4@70; -1@45 unguided    two passes, guidance 3 in all but the last

"-1@45" is a scale and its bound: -1 is the last scale, -2 the one before; 9 is the tenth, counted from 0.
"draft 7" draws the first 7 scales.  Behind a pass may stand "unguided" or "cfg X", "sa" (no cross-scale
attention) and "strength X"; behind the draft "cfg X" (for all of the plan) and "window N" (of the frequency
map).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .. import typed
from ..model.backbone import PAPER, PAPER_BOUNDS, Backbone, Published, TokenWork
from ..model.schedule import Schedule
from .cost import Cost, ForwardPass, Stopwatch, whole_scales
from .dispatch import Dispatch, RefinePass, dispatch_tokens
from .draft import Draft, OnScale, Recipe, Run, draft_of
from .edit import edit_draft
from .fastvar import FastVARConfig, finish_fastvar
from .frequency import frequency_map
from .refine import composite, draw_pass, finished


@dataclass(frozen=True)
class Plan:
    """How a picture is drawn.

    Attributes:
        draft: number of scales drawn whole; 0 or below = all but that many of the last.
        passes: refine passes in order, each over finer scales than the one before.
        guidance: strength everywhere but in passes with their own; None = the recipe's.
        window: side of the frequency map's window, odd, >= 3.

    Raises:
        ValueError: a value out of range.
    """

    draft: int
    passes: tuple[RefinePass, ...] = ()
    guidance: float | None = None
    window: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        if self.guidance is not None and not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance of a plan must be 0 or more, got {self.guidance}")
        if self.window < 3 or self.window % 2 == 0:
            raise ValueError(f"the frequency window must be odd and at least 3, got {self.window}")

    @classmethod
    def moss(cls, bounds: Sequence[float], **settings: Any) -> Plan:
        """MoSs-k of the paper: all but the last k scales, then one pass over those; settings of `RefinePass`.
        """
        return cls(-len(bounds), (RefinePass.of_last(bounds, **settings),))

    @property
    def k(self) -> int:
        """How many of the last scales are not drafted; 0 where that depends on the schedule."""
        return max(0, -self.draft)

    @property
    def name(self) -> str:
        """Its kind: "dense", "draft", "moss" (the paper's: one pass over all scales that are left), else
        "plan".
        """
        if self.draft <= 0 and not self.passes:
            return "draft" if self.draft else "dense"
        papers = self.k and len(self.passes) == 1 and self.passes[0].scales == tuple(range(-self.k, 0))
        return "moss" if papers else "plan"

    @property
    def label(self) -> str:
        """Short name, as tables print it: "dense", "draft-4", "moss4", else the plan as text."""
        names = {"dense": "dense", "draft": f"draft-{self.k}", "moss": f"moss{self.k}"}
        return names.get(self.name) or str(self)

    def on(self, schedule: Schedule) -> Plan:
        """The same with its scales counted from the first.

        Raises:
            ValueError: the schedule is too short, or the passes are out of order.
        """
        size = len(schedule)
        passes = [step.on(schedule) for step in self.passes]
        draft = self.draft if self.draft > 0 else size + self.draft
        if not 1 <= draft <= size:
            what = f"skipping {-self.draft} scales leaves nothing to draw" if draft < 1 else f"{draft} scales"
            raise ValueError(f"{what}; this picture has {size} scales")
        first = draft
        for step in passes:
            if step.scales[0] < first:
                raise ValueError(
                    f"a pass over scale {step.scales[0]} cannot come after scale {first - 1} was drawn; "
                    "every pass redraws finer scales than all before it"
                )
            first = step.scales[-1] + 1
        _check_guidance(self.guidance, passes)
        return replace(self, draft=draft, passes=tuple(passes))

    def recipe(self, recipe: Recipe) -> Recipe:
        """With the plan's strength of guidance, where it names one."""
        if self.guidance is None:
            return recipe
        return replace(recipe, guidance=recipe.guidance.of_strength(self.guidance))

    def stored(self, schedule: Schedule) -> int:
        """Tokens a row that the cache holds at the end: those of the draft and of all passes, but for what
        nobody looks back at, which is the schedule's last scale and the last pass.
        """
        plan = self.on(schedule)
        drafted = schedule.tokens(0, min(plan.draft, len(schedule) - 1))
        return drafted + sum(sum(step.counts(schedule)) for step in plan.passes[:-1])

    def forward_passes(
        self, schedule: Schedule, guided: bool, prefix: int = 0, depth: int = 1
    ) -> list[ForwardPass]:
        """What it computes; see `cost.ForwardPass.macs`.

        Args:
            guided: whether the recipe asks for guidance.
            prefix: tokens of the prompt in the cache; see `TokenWork`.
            depth: of the model; every pass runs all layers.
        """
        plan = self.on(schedule)
        rows = 2 if (guided if self.guidance is None else self.guidance != 1) else 1
        found = whole_scales(schedule, plan.draft, rows, prefix)
        past = prefix + schedule.tokens(0, plan.draft)
        for n, step in enumerate(plan.passes, start=1):
            rows, counts = rows if step.guided else 1, step.counts(schedule)
            found.append(ForwardPass.of(rows, past, counts, n < len(plan.passes), step.cross_scale))
            past += sum(counts)
        return found

    def tokens_per_scale(self, schedule: Schedule) -> tuple[int, ...]:
        """Tokens a picture that the transformer runs at every scale."""
        plan = self.on(schedule)
        tokens = [h * w if n < plan.draft else 0 for n, (h, w) in enumerate(schedule.grids)]
        for step in plan.passes:
            for scale, count in zip(step.scales, step.counts(schedule), strict=True):
                tokens[scale] += count
        return tuple(tokens)

    def __str__(self) -> str:
        words = [f"draft {self.draft}" if self.draft > 0 else f"draft{self.draft}" if self.draft else "dense"]
        words += [] if self.guidance is None else [f"cfg {_digits(self.guidance)}"]
        words += [f"window {self.window}"] * (self.window != 3)
        return "; ".join([" ".join(words), *map(_pass_text, self.passes)])


def _check_guidance(guidance: float | None, passes: Sequence[RefinePass]) -> None:
    off = guidance == 1
    for step in passes:
        if off and step.guided and step.guidance is not None:
            raise ValueError(
                f"a pass with guidance {step.guidance:g} cannot follow a draft or a pass without guidance; "
                "switch it on in all of them, or off in this one too"
            )
        off = off or not step.guided


# --- plans as text ------------------------------------------------------------------------------------------

_DRAFT = re.compile(r"dense|draft-(\d+)|draft (\d+)")
_TOKENS = re.compile(r"(-?\d+)@(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)%?")
_EXAMPLE = "write for example: draft-3; -1@45 unguided"


def _pass_text(step: RefinePass) -> str:
    words = [f"{scale}@{_digits(bound)}" for scale, bound in zip(step.scales, step.bounds, strict=True)]
    words += ["sa"] * (not step.cross_scale)
    if step.guidance is not None:
        words.append("unguided" if step.guidance == 1 else f"cfg {_digits(step.guidance)}")
    words += [f"strength {_digits(step.strength)}"] * (step.strength != 1)
    return " ".join(words)


def _digits(value: float) -> str:
    """All digits of a number, and none that say nothing."""
    return repr(float(value)).removesuffix(".0")


def parse_plan(text: str) -> Plan:
    """A plan from its text; see the top of this file.

    Raises:
        ValueError: not a plan; the sentence names the part that is wrong.
    """
    first, *others = (" ".join(part.lower().split()) for part in text.strip().rstrip(";").split(";"))
    head = _DRAFT.match(first)
    if not head or head[2] == "0":
        raise ValueError(f"the plan {typed.quoted(text)} does not begin with what is drafted; {_EXAMPLE}")
    settings = _settings(first[head.end() :].split(), {"cfg": "guidance", "window": "window"}, text)
    if (window := settings.get("window", 3.0)) != round(window):
        raise ValueError(
            f"the window of the plan {typed.quoted(text)} is no whole number; write for example: window 5"
        )
    draft = int(head[2]) if head[2] else -int(head[1] or 0)
    return Plan(
        draft, tuple(_parse_pass(part, text) for part in others), settings.get("guidance"), round(window)
    )


def _parse_pass(part: str, text: str) -> RefinePass:
    words = part.split()
    cells = [found for word in words if (found := _TOKENS.fullmatch(word))]
    if not cells:
        raise ValueError(f"the pass {part!r} of the plan {typed.quoted(text)} names no scale; {_EXAMPLE}")
    flags = {"sa": {"cross_scale": False}, "unguided": {"guidance": 1.0}}
    rest = [word for word in words if not _TOKENS.fullmatch(word) and word not in flags]
    settings: dict[str, Any] = _settings(rest, {"cfg": "guidance", "strength": "strength"}, text)
    for flag in flags.keys() & set(words):
        if settings.keys() & flags[flag].keys():
            raise ValueError(f"the pass {part!r} says both cfg and unguided; leave one out")
        settings |= flags[flag]
    return RefinePass(tuple(int(c[1]) for c in cells), tuple(float(c[2]) for c in cells), **settings)


def _settings(words: Sequence[str], known: dict[str, str], text: str) -> dict[str, float]:
    """Pairs of a word and a number."""
    found = {}
    for name, value in zip_longest(words[::2], words[1::2], fillvalue=""):
        if name not in known:
            raise ValueError(f"{name!r} in the plan {typed.quoted(text)} is not understood; {_EXAMPLE}")
        try:
            found[known[name]] = float(value)
        except ValueError:
            raise ValueError(
                f"{name} in the plan {typed.quoted(text)} needs a number behind it, got {value!r}"
            ) from None
    return found


# --- methods by name ----------------------------------------------------------------------------------------

Method = Plan | FastVARConfig
METHODS = ("dense", "draft", "fastvar", "moss", *(f"moss{k}" for k in PAPER_BOUNDS))
_NAME = re.compile(
    rf"(?P<name>dense|fastvar|moss[{''.join(map(str, PAPER_BOUNDS))}]?|draft(?:-\d+)?)"
    r"(?P<variants>(?:-(?:paper|sa|unguided))*)"
)


def parse_method(
    text: str, bounds: Sequence[float] | None = None, skip: int | None = None, published: Published = PAPER
) -> Method:
    """A method from its name or from its plan as text.

    Args:
        text: one of METHODS, "draft-3", a named plan of the model, or a plan; moss2..moss5 carry the model's
            bounds: found for it, else the paper's.  Behind a moss may stand "-paper" for the paper's bounds,
                "-sa"
            for a pass without cross-scale attention, "-unguided" for one without guidance.
        bounds: own bounds in percent, for moss (any number of them) or moss2..moss5 (that many).
        skip: how many of the last scales "draft" leaves out; None = as many as the model's first method
            refines.
        published: settings of the methods for the model.

    Raises:
        ValueError: unknown name, bounds or skip given to another method, or bounds missing, too many or
            impossible.
    """
    found = _NAME.fullmatch(text.strip().lower())
    if not found or (found["variants"] and not found["name"].startswith("moss")):
        return _other(text, bounds, skip, published)
    name = found["name"]
    moss = name.startswith("moss")
    if bounds is not None and not moss:
        raise ValueError(f"bounds belong to the moss methods; {name} has no use for them")
    if skip is not None and name != "draft":
        raise ValueError(f"skip belongs to the method draft; {name} has no use for it")
    if moss:
        return _moss(name, found["variants"].split("-")[1:], bounds, published)
    if name.startswith("draft"):
        return _skipping(int(name.partition("-")[2] or (published.k if skip is None else skip)))
    return FastVARConfig.printed(published) if name == "fastvar" else Plan(0)


def _other(text: str, bounds: Sequence[float] | None, skip: int | None, published: Published) -> Plan:
    if bounds is not None or skip is not None:
        raise ValueError(
            f"bounds and skip belong to the methods moss and draft; {typed.quoted(text)} has no use for them"
        )
    if text in published.plans:
        return parse_plan(published.plans[text])
    if any(sign in text.strip() for sign in "@; "):
        return parse_plan(text)
    known = ", ".join([*METHODS, *published.plans])
    raise ValueError(f"method {typed.quoted(text)} is unknown; choose one of {known}, or a plan")


def _skipping(scales: int) -> Plan:
    if scales < 0:
        raise ValueError(f"the number of scales to skip must be 0 or more, got {scales}")
    return Plan(-scales)


def _moss(name: str, variants: Sequence[str], bounds: Sequence[float] | None, published: Published) -> Plan:
    known = published.bounds if "paper" in variants else published.best
    found = _bounds(name, bounds, known)
    return Plan.moss(
        found, cross_scale="sa" not in variants, guidance=1.0 if "unguided" in variants else None
    )


def _bounds(
    name: str, bounds: Sequence[float] | None, known: Mapping[int, tuple[float, ...]]
) -> tuple[float, ...]:
    if name == "moss":
        if not bounds:
            raise ValueError(
                "the method moss needs bounds, for example 80,70,30,10; or choose moss2 to moss5"
            )
        return tuple(bounds)
    k = int(name.removeprefix("moss"))
    if bounds is not None and len(bounds) != k:
        raise ValueError(
            f"{name} takes {k} bounds, got {len(bounds)}; use the method moss for another number of them"
        )
    if bounds is None and k not in known:
        printed = ", ".join(f"moss{k}" for k in known)
        raise ValueError(
            f"the paper has no bounds of {name} for this model; choose {printed}, or give {k} bounds"
        )
    return known[k] if bounds is None else tuple(bounds)


def plan_of(draft: Draft) -> Plan:
    """The plan by which a draft was drawn, as far as it is, with scales counted from the end."""
    size = len(draft.recipe.schedule)
    passes = [replace(r.made_by, scales=tuple(s - size for s in r.dispatch.scales)) for r in draft.passes]
    return Plan(draft.scales - size, tuple(passes))


def share_of_dense(
    method: Method, schedule: Schedule, work: TokenWork, guided: bool, depth: int = 1
) -> float:
    """Multiply-adds of a method as a share of dense's, both from the same recipe: 0.25 = a quarter.

    A prediction of the transformer's arithmetic alone: the codec, the text encoder and the device are no part
    of it.

    Args:
        guided: whether the recipe asks for guidance.
    """
    before = work.before(schedule)
    ours, dense = (
        sum(step.macs(work, depth) for step in plan.forward_passes(schedule, guided, before, depth))
        for plan in (method, Plan(0))
    )
    return ours / dense


# --- running a plan -----------------------------------------------------------------------------------------

# Generate: one picture from a recipe by any method, with its cost counted the same way for all of them.

STAGES = ("draft", "frequency", "dispatch", "refine", "composite", "decode")


@dataclass(frozen=True)
class PassMaps:
    """What explains a refine pass: the draft that it started from, that draft's map (B, h, w), and who
    redraws what.
    """

    draft: Draft
    frequency: Tensor
    dispatch: Dispatch

    def cpu(self) -> PassMaps:
        """The same on the CPU."""
        return PassMaps(self.draft.cpu(), self.frequency.cpu(), self.dispatch.cpu())


@dataclass(frozen=True)
class Picture:
    """B pictures and what they took.

    Attributes:
        total: (B, c, h, w) sum of codes.
        cost: tokens, bytes and seconds.
        passes: what explains each refine pass; empty for other methods.
        image: (B, 3, H, W) float32 in [-1, 1], RGB; None = not decoded.
        change: (B, h, w) >= 0, how much an edit changed each place of the draft; None = there was no edit.
    """

    total: Tensor
    cost: Cost
    passes: tuple[PassMaps, ...] = ()
    image: Tensor | None = None
    change: Tensor | None = None


def check_edits(method: Method) -> None:
    """Refuse a method that draws from the target's prompt alone.

    Raises:
        ValueError: as said.
    """
    if not isinstance(method, Plan):
        raise ValueError(f"an edit by words cannot be drawn by {method.label}; choose another method")


def generate(
    backbone: Backbone, recipe: Recipe, method: Method, on_scale: OnScale | None = None,
    painted: Tensor | None = None,
) -> Picture:
    """Draw and decode.

    Args:
        on_scale: called after every drawn scale and after every pass (scales done = its last one plus one);
            may raise to cancel.
        painted: see `dispatch_tokens`; for every pass.

    Raises:
        ValueError: the method does not fit this recipe's schedule, or cannot follow its edit.
    """
    if recipe.source is not None and recipe.source.edit is not None:
        check_edits(method)
    watch = Stopwatch(backbone.device, STAGES)
    if isinstance(method, Plan):
        picture = run(backbone, recipe, method, watch, on_scale, painted)
    else:
        with watch.stage("draft"):
            drawn, cache, tokens = finish_fastvar(backbone, recipe, method, on_scale=on_scale)
        total = finished(backbone, drawn)
        picture = Picture(total, Cost(method.label, tuple(tokens), cache.nbytes, watch.seconds))
    with watch.stage("decode"), torch.inference_mode():
        image = backbone.decode(picture.total.to(backbone.device))
    return replace(picture, image=image, cost=replace(picture.cost, seconds=watch.seconds))


@torch.inference_mode()
def run(
    backbone: Backbone, recipe: Recipe, plan: Plan, watch: Stopwatch | None = None,
    on_scale: OnScale | None = None, painted: Tensor | None = None,
) -> Picture:
    """Draw a picture by a plan; arguments as of `generate`."""
    schedule, watch = recipe.schedule, watch or Stopwatch(backbone.device, STAGES)
    fitted = plan.on(schedule)
    recipe = plan.recipe(recipe)
    stored, change = plan.stored(schedule), None
    with watch.stage("draft"):
        if recipe.source is not None and recipe.source.edit is not None:
            live, draft, change = edit_draft(backbone, recipe, fitted.draft, stored, on_scale)
        else:
            live = Run.begin(backbone, recipe, stored)
            draft = draft_of(live, fitted.draft, on_scale=on_scale)
    return replace(finish(live, draft, plan, watch, on_scale, painted), change=change)


def finish(
    live: Run, draft: Draft, plan: Plan, watch: Stopwatch, on_scale: OnScale | None = None,
    painted: Tensor | None = None,
) -> Picture:
    """The passes of a plan, from its draft and the run that drew it; other arguments as of `run`."""
    schedule, fitted = draft.recipe.schedule, plan.on(draft.recipe.schedule)
    kv_bytes, maps = live.cache.nbytes, []
    painted = painted if painted is None else painted.to(live.backbone.device)
    for n, step in enumerate(fitted.passes, start=1):
        draft, live, found = run_pass(
            live, draft, step, watch, plan.window, painted, store=n < len(fitted.passes)
        )
        maps.append(found)
        if on_scale:
            done = len(schedule) if n == len(fitted.passes) else step.scales[-1] + 1
            on_scale(done, len(schedule), draft.total)
    draft, shown = live.finished(draft), tuple(found.cpu() for found in maps)
    total = draft.total
    if draft.recipe.source is not None:
        with watch.stage("composite"):
            total = finished(live.backbone, draft)
    cost = Cost(plan.label, draft.tokens_per_scale, kv_bytes, watch.seconds, draft.refined)
    return Picture(total, cost, shown)


def run_pass(
    live: Run, draft: Draft, step: RefinePass, watch: Stopwatch, window: int = 3,
    painted: Tensor | None = None, store: bool = False,
) -> tuple[Draft, Run, PassMaps]:
    """One pass from frequency map to composite: the new draft, the run for what follows, and the maps."""
    recipe = draft.recipe
    with watch.stage("frequency"):
        frequency = frequency_map(draft.total, window)
    with watch.stage("dispatch"):
        dispatch = dispatch_tokens(frequency, recipe.schedule, step, painted, recipe.source)
    with watch.stage("refine"):
        residual, live = draw_pass(live, draft, dispatch, step, store)
    with watch.stage("composite"):
        return composite(live.backbone, draft, residual), live, PassMaps(draft, frequency, dispatch)
