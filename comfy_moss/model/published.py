"""Settings of the methods for each family of models: what the papers print, and bounds found for a model of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Pruning:
    """FastVAR's settings.

    Attributes:
        skip: number of last scales that are not run at all.
        prune: share of tokens dropped in each of the scales before those, coarsest first; the scale before them is saved.
        first_layer, last_layer: blocks that prune, inclusive; last_layer None = to the end.
    """

    skip: int = 2
    prune: tuple[float, ...] = (0.4, 0.5)
    first_layer: int = 3
    last_layer: int | None = 27


@dataclass(frozen=True)
class Published:
    """Settings for a family, as printed; for one model also what was found for it.

    Attributes:
        bounds: number of refine scales k -> t_1 >= ... >= t_k in percent, coarsest refine scale first.
        k: of the method to start with.
        pruning: FastVAR's.
        calibrated: like bounds, found by `calibrate` for one model; only those that beat the printed ones at equal tokens.
    """

    bounds: Mapping[int, tuple[float, ...]]
    k: int
    pruning: Pruning
    calibrated: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    @property
    def best(self) -> dict[int, tuple[float, ...]]:
        """The bounds to use unless someone says otherwise: the found ones, else the printed ones."""
        return {**self.bounds, **self.calibrated}


PAPER_BOUNDS = {
    2: (50.0, 25.0),
    3: (50.0, 15.0, 5.0),
    4: (80.0, 70.0, 30.0, 10.0),
    5: (90.0, 50.0, 15.0, 10.0, 5.0),
}
PAPER = Published(PAPER_BOUNDS, 4, Pruning())  # of Infinity, the family that the paper is about first
NANO = replace(PAPER, calibrated={2: (40.0, 30.0), 3: (30.0, 20.0, 20.0), 4: (60.0, 30.0, 30.0, 30.0)})  # see docs/quality.md
HART = Published({2: (80.0, 55.0)}, 2, Pruning(skip=0, prune=(0.5, 0.75), first_layer=0, last_layer=None))
