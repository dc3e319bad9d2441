"""Pictures made while training goes on: each is new once, and is drawn again for short sequences."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.suite import held_out
from comfy_moss.benchmarks.world import Scene
from comfy_moss.model.vae import VAE

from .nano import SIDES
from .pool import Batch, any_scene, pair_scene, read_captions
from .train_vae import CONFIG, to_float

PAIRS = 0.5  # share of pictures of two different things
FIRST = {"0.25M": 256, "1M": 64}  # pictures made at once: a minute's work for either preset


class Stream:
    """Endless pictures of one preset, none of them held out for the evaluation.

    Args:
        area: "0.25M" or "1M".
        vae: weights of the codec.
        first, most: so many pictures are made at once (None = FIRST), and so many kept.
        look: another look of a rendered picture, uint8 (H, W, 3) -> same; None = as rendered.
    """

    def __init__(
        self,
        area: str,
        vae: dict[str, Tensor],
        rng: np.random.Generator,
        first: int | None = None,
        most: int = 2000,
        look: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.look = look or (lambda picture: picture)
        self.side, self.rng = SIDES[area], rng
        self.vae = VAE(CONFIG)
        self.vae.load_state_dict(vae)
        self.kept: deque[tuple[Scene, Tensor]] = deque(maxlen=most)
        for _ in range(FIRST[area] if first is None else first):
            self._make()

    @torch.no_grad()
    def _make(self) -> tuple[Scene, Tensor]:
        make = pair_scene if self.rng.random() < PAIRS else any_scene
        while held_out(scene := make(self.rng)):
            pass
        picture = self.look(render(scene, self.rng, self.side, self.side))
        image = torch.from_numpy(picture).permute(2, 0, 1)[None]
        self.kept.append((scene, self.vae.encode(to_float(image))[0].half()))
        return self.kept[-1]

    def new(self, count: int) -> Batch:
        """Pictures not seen before."""
        return self._batch([self._make() for _ in range(count)])

    def draw(self, count: int) -> Batch:
        """Pictures seen before."""
        return self._batch([self.kept[n] for n in self.rng.integers(0, len(self.kept), count)])

    def _batch(self, pictures: list[tuple[Scene, Tensor]]) -> Batch:
        scenes, features = zip(*pictures, strict=True)
        return Batch(torch.stack(features).float(), read_captions([*scenes], self.rng), [*scenes])
