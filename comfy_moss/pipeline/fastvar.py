"""FastVAR (arXiv 2503.23367): run late scales on their most active tokens only, and skip the last two.  A baseline.

The released code names widths (24 saves, 32 and 40 prune, 48 and 64 are skipped), which fits only 1:1 at one megapixel.
Here the same scales are named by their rank from the end, which is identical there and prunes at every other ratio too.
Facts: Infinity specification, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..model.backbone import Backbone, Branch, Noise, Pruning, Published, Update, run_whole
from ..model.cache import KVCache
from ..model.sampling import bit_noise
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
            raise ValueError(f"FastVAR needs skip >= 0 and prune ratios in [0, 1), got skip {self.skip}, prune {self.prune}")

    def kept(self, schedule: Schedule) -> list[int]:
        """Tokens per scale that pruning blocks run: all, some, or 0 on skipped scales.

        Raises:
            ValueError: the schedule has too few scales.
        """
        first = len(schedule) - self.skip - len(self.prune)
        if first < 1:
            raise ValueError(
                f"FastVAR with skip {self.skip} and {len(self.prune)} pruned scales needs more than {len(schedule)} scales"
            )
        ratios = [0.0] * first + list(self.prune)
        tokens = [h * w for h, w in schedule.grids]
        return [n - int(n * ratio) for n, ratio in zip(tokens, ratios, strict=False)] + [0] * self.skip

    def tokens_per_scale(self, schedule: Schedule) -> tuple[int, ...]:
        """As `kept`."""
        return tuple(self.kept(schedule))

    def forward_passes(self, schedule: Schedule, guided: bool, prefix: int = 0, depth: int = 1) -> list[ForwardPass]:
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


OnKeep = Callable[[int, int, str, Tensor], None]  # (scale, layer, "sa" | "ca" | "ffn", kept indices (R, K))


@dataclass
class Pruner:
    """Runs residual branches on the most active tokens; the others take the update saved at a coarser scale.

    Attributes:
        saved: (layer, kind) -> update (R, h*w, C) of the saved scale.
    """

    config: FastVARConfig
    schedule: Schedule
    on_keep: OnKeep | None = None
    saved: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def branch(self, scale: int) -> Branch:
        """How this scale runs its branches."""
        kept = self.config.kept(self.schedule)
        first_pruned = len(self.schedule) - self.config.skip - len(self.config.prune)
        if scale == first_pruned - 1 and self.config.prune:
            return self._save
        if scale < first_pruned or kept[scale] == self.schedule.tokens(scale, scale + 1):
            return run_whole

        def pruned(layer: int, kind: str, x: Tensor, update: Update) -> Tensor:
            if not self.config.prunes(layer):
                return update(x, None)
            keep = most_active(x, kept[scale])
            if self.on_keep:
                self.on_keep(scale, layer, kind, keep)
            index = keep[..., None].expand(-1, -1, x.shape[-1])
            base = self._enlarged(self.saved[layer, kind], first_pruned - 1, self.schedule.grids[scale])
            fresh = update(x.gather(1, index), keep)
            return base.to(fresh.dtype).scatter(1, index, fresh)

        return pruned

    def _save(self, layer: int, kind: str, x: Tensor, update: Update) -> Tensor:
        whole = update(x, None)
        if self.config.prunes(layer):
            self.saved[layer, kind] = whole
        return whole

    def _enlarged(self, saved: Tensor, scale: int, grid: Grid) -> Tensor:
        """A saved update (R, n, C) area-resampled to another grid, (R, h*w, C)."""
        image = saved.transpose(1, 2).unflatten(2, self.schedule.grids[scale])
        return area_mean(image, grid).flatten(2).transpose(1, 2)


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
    noise: Noise = bit_noise,
    store_last: bool = False,
    on_keep: OnKeep | None = None,
) -> tuple[Draft, KVCache, list[int]]:
    """Draw a picture by FastVAR.

    Args:
        config: None = as published for this family of models.
        given: drawn tokens of leading scales, from a draft of the same recipe; those scales are run but not drawn anew.
        store_last: also keep the last run scale in the cache, as the released code does to no use.

    Returns:
        All scales it ran as a draft (its total is the picture), the cache, and tokens per scale.
    """
    schedule, config = recipe.schedule, config or FastVARConfig.printed(backbone.published)
    kept = config.kept(schedule)
    last = len(schedule) - config.skip
    stored = last if store_last else min(last, len(schedule)) - 1
    capacity = [
        sum(kept[:stored]) if config.prunes(layer) else schedule.tokens(0, stored) for layer in range(backbone.depth)
    ]
    condition = recipe.condition(backbone)
    run = Run(backbone, recipe, condition, backbone.new_cache(condition, capacity), noise)
    pruner = Pruner(config, schedule, on_keep)
    bits, total = [], empty_total(backbone, recipe)
    for scale in range(last):
        drawn, total = draw_scales(
            run, total, range(scale, scale + 1), given, pruner.branch(scale), on_scale, store=scale < stored
        )
        bits += drawn
    return Draft(recipe, tuple(b.cpu() for b in bits), total.cpu(), backbone.model_id), run.cache, kept
