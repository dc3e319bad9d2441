"""Does the model tell two things apart?  python -m training.binding --state DIR [--part 2] [--pictures 48]
[--trained].

Prints bits a bit of every early scale of pictures of two different things, under their own caption and with
the colours or the shapes of the two things swapped in it, and how alike the left and the right half of the
2 x 2 scale are inside.  Where a swap costs nothing, the caption's words do not reach their things.  With
--trained the pictures are such as the model was trained on, not held-out ones: where they cost much less,
the model knows its pictures by heart and needs more of them.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from comfy_moss.benchmarks.suite import held_out
from comfy_moss.benchmarks.world import Scene, canonical_caption

from .forward import EARLY, Nano, look
from .pool import encoded_part


def swap(scene: Scene, attribute: str) -> Scene:
    """The scene with "color" or "shape" of its two things exchanged."""
    one, other = (group.thing for group in scene.groups)
    things = [
        replace(thing, **{attribute: getattr(twin, attribute)})
        for thing, twin in ((one, other), (other, one))
    ]
    return replace(
        scene,
        groups=tuple(replace(group, thing=thing) for group, thing in zip(scene.groups, things, strict=True)),
    )


@torch.inference_mode()
def costs(nano: Nano, scenes: list[Scene], features: Tensor) -> dict[str, list[float]]:
    """Bits a bit by early scale under each kind of caption; and how alike left and right are (cosine)."""
    kinds = {"own caption": scenes}
    kinds |= {f"{name}s swapped": [swap(scene, name) for scene in scenes] for name in ("color", "shape")}
    rows = {}
    for name, described in kinds.items():
        seen = look(nano, features, [canonical_caption(scene) for scene in described], EARLY, flips=0.0)
        rows[name] = (seen.losses / math.log(2)).tolist()
        if name == "own caption":
            left, right = seen.inner[0][:, 1], seen.inner[0][:, 2]  # of the upper row of the 2 x 2 scale
            rows["left and right alike"] = [torch.cosine_similarity(left, right).mean().item()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--part", type=int, default=2, help="of the pool, one of pairs")
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument(
        "--trained", action="store_true", help="pictures of the training instead of held-out ones"
    )
    args = parser.parse_args()
    nano = Nano().eval()
    nano.load_state_dict(torch.load(args.state / "transformer.pt", weights_only=True)["ema"])
    vae = torch.load(args.state / "vae.pt", weights_only=True)["ema"]
    scenes, features = encoded_part(args.state, args.part, vae)
    chosen = [
        n for n, scene in enumerate(scenes) if held_out(scene) != args.trained and len(scene.groups) == 2
    ]
    chosen = chosen[: args.pictures]
    for name, row in costs(nano, [scenes[n] for n in chosen], features[chosen].float()).items():
        sys.stdout.write(f"{name:22}" + " ".join(f"{value:.3f}" for value in row) + "\n")


if __name__ == "__main__":
    main()
