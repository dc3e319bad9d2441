"""The pictures that nano learns from: scenes with their codec features, and fresh captions every time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.suite import held_out
from comfy_moss.benchmarks.world import USUAL_COLORS, Scene, caption, sample_scene
from comfy_moss.model.vae import VAE

from .nano import SCHEDULE
from .train_vae import CONFIG, to_float

ANY, PAIRS = 1800, 1600  # pictures of a part: of any scene, most things textured; or of two different things
PLAIN = 0.25  # share of the things without a texture
USUAL = 0.4  # share of pairs in their shapes' usual colours, which captions leave out


def is_of_pairs(part: int) -> bool:
    """Parts 2, 3, 6, 7, ... hold pairs of different things alone: binding takes a small model longest."""
    return part % 4 >= 2


def any_scene(rng: np.random.Generator) -> Scene:
    return sample_scene(rng, plain_texture=PLAIN)


def pair_scene(rng: np.random.Generator) -> Scene:
    while len((scene := sample_scene(rng)).groups) < 2:
        pass
    if rng.random() >= USUAL:
        return scene
    things = [replace(group.thing, color=USUAL_COLORS[group.thing.shape]) for group in scene.groups]
    return replace(
        scene, groups=tuple(replace(g, thing=t) for g, t in zip(scene.groups, things, strict=True))
    )


@torch.no_grad()
def encoded_part(state: Path, part: int, vae: dict[str, Tensor]) -> tuple[list[Scene], Tensor]:
    """The scenes of a part and their codec features (n, c, 32, 32) float16, kept in a file."""
    count = PAIRS if is_of_pairs(part) else ANY
    generators = [np.random.default_rng(50_000_000 * (part + 1) + n) for n in range(count)]
    scenes = [(pair_scene if is_of_pairs(part) else any_scene)(rng) for rng in generators]
    path = state / f"features_{part}.pt"
    if path.exists():
        kept = torch.load(path, weights_only=True)
        if len(kept) != count:
            raise ValueError(
                f"{path} holds {len(kept)} pictures and the pool wants {count}; "
                "delete it, and it is made anew"
            )
        return scenes, kept
    model = VAE(CONFIG)
    model.load_state_dict(vae)
    out = torch.empty(count, CONFIG.channels, *SCHEDULE.grids[-1], dtype=torch.float16)
    for n, (scene, rng) in enumerate(zip(scenes, generators, strict=True)):
        image = torch.from_numpy(render(scene, rng)).permute(2, 0, 1)[None]
        out[n] = model.encode(to_float(image))[0]
    torch.save(out, path)
    return scenes, out


def encoded_pictures(state: Path, parts: Iterable[int], vae: dict[str, Tensor]) -> tuple[list[Scene], Tensor]:
    """The scenes of some parts of the pool with their features, without those held out for the evaluation."""
    loaded = [encoded_part(state, part, vae) for part in parts]
    scenes = [scene for part, _ in loaded for scene in part]
    kept = [n for n, scene in enumerate(scenes) if not held_out(scene)]
    return [scenes[n] for n in kept], torch.cat([features for _, features in loaded])[kept]


def read_captions(scenes: list[Scene], rng: np.random.Generator) -> list[str | None]:
    """Fresh wording every time; one in ten without text (for guidance), some with an unknown word."""
    texts: list[str | None] = []
    for scene in scenes:
        text = caption(scene, rng)
        text = f"{text} please" if rng.random() < 0.03 else text
        texts.append(None if rng.random() < 0.1 else text)
    return texts


@dataclass(frozen=True)
class Batch:
    """Codec features (B, c, H, W) float32, captions (None = no text), and what the pictures show."""

    features: Tensor
    captions: list[str | None]
    scenes: list[Scene]


class Batches:
    """Random pictures with fresh captions."""

    def __init__(self, scenes: list[Scene], features: Tensor, rng: np.random.Generator) -> None:
        self.scenes, self.features, self.rng = scenes, features, rng

    def draw(self, count: int) -> Batch:
        rows = self.rng.integers(0, len(self.scenes), count)
        scenes = [self.scenes[n] for n in rows]
        return Batch(self.features[torch.from_numpy(rows)].float(), read_captions(scenes, self.rng), scenes)
