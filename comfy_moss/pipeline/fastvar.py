"""FastVAR (arXiv 2503.23367): run late scales on their most active tokens only, and skip the last two.  A
baseline.

The released code names widths (24 saves, 32 and 40 prune, 48 and 64 are skipped), which fits only 1:1 at one
megapixel. Here the same scales are named by their rank from the end, which is identical there and prunes at
every other ratio too. Facts: docs/infinity.md, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..model.backbone import Backbone, Branch, Pruning, Published
from ..model.cache import KVCache
from ..model.schedule import Grid, Schedule
from ..ops import area_mean
from .cost import ForwardPass
from .draft import Draft, OnScale, Recipe, Run, draw_scales, empty_total


@dataclass(frozen=True)
class FastVARConfig(Pruning):
    """Which scales are pruned how far."""

    @classmethod
    def printed(cls, published: Published) -> FastVARConfig:
        """As published for a family of models."""
        return cls(**vars(published.pruning))

    name = label = "fastvar"
    k = 0

    def __post_init__(self) -> None:
        if self.skip < 0 or not all(0 <= ratio < 1 for ratio in self.prune):
            raise ValueError(
                f"FastVAR needs skip >= 0 and prune ratios in [0, 1), got skip {self.skip}, prune "
                f"{self.prune}"
            )

    def kept(self, schedule: Schedule) -> list[int]:
        """Tokens per scale that pruning blocks run: all, some, or 0 on skipped scales.

        Raises:
            ValueError: the schedule has too few scales.
        """
        first = len(schedule) - self.skip - len(self.prune)
        if first < 1:
            raise ValueError(
                f"FastVAR with skip {self.skip} and {len(self.prune)} pruned scales needs more than "
                f"{len(schedule)} scales"
            )
        ratios = [0.0] * first + list(self.prune)
        tokens = [h * w for h, w in schedule.grids]
        return [n - int(n * ratio) for n, ratio in zip(tokens, ratios, strict=False)] + [0] * self.skip

    def tokens_per_scale(self, schedule: Schedule) -> tuple[int, ...]:
        """As `kept`."""
        return tuple(self.kept(schedule))

    def forward_passes(
        self, schedule: Schedule, guided: bool, prefix: int = 0, depth: int = 1
    ) -> list[ForwardPass]:
        """What it computes: every scale twice, in the layers that prune and in those that run every token."""
        pruning, scales = sum(map(self.prunes, range(depth))), len(schedule) - self.skip
        whole = [h * w for h, w in schedule.grids]
        passes = []
        for scale in range(scales):
            for layers, tokens in ((pruning, self.kept(schedule)), (depth - pruning, whole)):
                past = sum(tokens[:scale]) + (prefix if scale else 0)
                counts = (tokens[scale] + (0 if scale else prefix),)
                step = ForwardPass.of(2 if guided else 1, past, counts, stored=scale < scales - 1)
                passes.append(replace(step, layers=layers))
        return [step for step in passes if step.layers]

    def prunes(self, layer: int) -> bool:
        return layer >= self.first_layer and (self.last_layer is None or layer <= self.last_layer)


@dataclass
class Pruner:
    """The updates that tokens get which do not run a residual branch: those saved at a coarser scale.

    Attributes:
        saved: (layer, kind) -> update (R, h*w, C) of the saved scale.
    """

    config: FastVARConfig
    schedule: Schedule
    saved: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The first pruned scale; the one before it is saved."""
        return len(self.schedule) - self.config.skip - len(self.config.prune)

    def branch(self, scale: int) -> Branch | None:
        """How this scale runs its residual branches; None = as the plain model does."""
        if scale == self.first - 1 and self.config.prune:
            return Saving(self)
        kept = self.config.kept(self.schedule)[scale]
        return (
            None
            if scale < self.first or kept == self.schedule.tokens(scale, scale + 1)
            else Pruned(self, scale, kept)
        )

    def upsampled(self, layer: int, kind: str, grid: Grid) -> Tensor:
        """A saved update area-resampled to another grid, (R, h*w, C)."""
        image = self.saved[layer, kind].transpose(1, 2).unflatten(2, self.schedule.grids[self.first - 1])
        return area_mean(image, grid).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Saving:
    """A `Branch` of all tokens, whose updates are saved for the scales to come."""

    pruner: Pruner

    def pick(self, layer: int, kind: str, x: Tensor) -> None:
        return None

    def fill(self, layer: int, kind: str, update: Tensor, picked: Tensor | None) -> Tensor:
        if self.pruner.config.prunes(layer):
            self.pruner.saved[layer, kind] = update
        return update


@dataclass(frozen=True)
class Pruned:
    """A `Branch` of the `kept` most active tokens; the others take the update saved at a coarser scale."""

    pruner: Pruner
    scale: int
    kept: int

    def pick(self, layer: int, kind: str, x: Tensor) -> Tensor | None:
        return most_active(x, self.kept) if self.pruner.config.prunes(layer) else None

    def fill(self, layer: int, kind: str, update: Tensor, picked: Tensor | None) -> Tensor:
        if picked is None:
            return update
        saved = self.pruner.upsampled(layer, kind, self.pruner.schedule.grids[self.scale]).to(update.dtype)
        return saved.scatter(1, picked[..., None].expand_as(update), update)


def most_active(x: Tensor, count: int) -> Tensor:
    """Indices (R, count), ascending, of the tokens of x (R, N, C) farthest from the mean token."""
    score = (x - x.mean(dim=1, keepdim=True)).square().sum(-1)
    return score.topk(count, dim=1).indices.sort(dim=1).values


@torch.inference_mode()
def finish_fastvar(
    backbone: Backbone,
    recipe: Recipe,
    config: FastVARConfig | None = None,
    given: Sequence[Tensor] = (),
    on_scale: OnScale | None = None,
) -> tuple[Draft, KVCache, list[int]]:
    """Draw a picture by FastVAR.

    Args:
        config: None = as published for this family of models.
        given: drawn tokens of leading scales, from a draft of the same recipe; those scales are run but not
            drawn anew.

    Returns:
        All scales it ran as a draft (its total is the picture), the cache, and tokens per scale.
    """
    schedule, config = recipe.schedule, config or FastVARConfig.printed(backbone.published)
    kept = config.kept(schedule)
    last = len(schedule) - config.skip
    stored = last - 1  # nobody looks back at the last one that is run
    capacity = [
        sum(kept[:stored]) if config.prunes(layer) else schedule.tokens(0, stored)
        for layer in range(backbone.depth)
    ]
    condition = recipe.condition(backbone)
    given = given or condition.given
    run = Run(backbone, recipe, condition, backbone.new_cache(condition, capacity))
    pruner = Pruner(config, schedule)
    bits, total = [], empty_total(backbone, recipe)
    for scale in range(last):
        drawn, total = draw_scales(
            run, total, range(scale, scale + 1), given, pruner.branch(scale), on_scale, store=scale < stored
        )
        bits += drawn
    return run.finished(Draft(recipe, tuple(bits), total, backbone.model_id)), run.cache, kept
