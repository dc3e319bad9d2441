"""What the papers print for each family of models: the bounds of MoSs, and how far FastVAR prunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    """Printed settings of a family.

    Attributes:
        bounds: number of refine scales k -> t_1 >= ... >= t_k in percent, coarsest refine scale first.
        k: of the method to start with.
        pruning: FastVAR's.
    """

    bounds: Mapping[int, tuple[float, ...]]
    k: int
    pruning: Pruning


PAPER_BOUNDS = {
    2: (50.0, 25.0),
    3: (50.0, 15.0, 5.0),
    4: (80.0, 70.0, 30.0, 10.0),
    5: (90.0, 50.0, 15.0, 10.0, 5.0),
}
PAPER = Published(PAPER_BOUNDS, 4, Pruning())  # of Infinity, the family that the paper is about first
HART = Published({2: (80.0, 55.0)}, 2, Pruning(skip=0, prune=(0.5, 0.75), first_layer=0, last_layer=None))
