"""Score the embedded model with the detector: python -m training.score [--per-task 25] [--methods dense moss4] [--sheet PNG].

Also scores the codec alone (renders encoded to bits and decoded again), which bounds what any method can reach.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comfy_moss.evaluation.suite import Case, prompts, score_images
from comfy_moss.evaluation.world import render
from comfy_moss.model.bsq import quantize_scales
from comfy_moss.model.checkpoint import load_infinity
from comfy_moss.model.guidance import Guidance
from comfy_moss.model.infinity_backbone import InfinityBackbone
from comfy_moss.model.library import find_model
from comfy_moss.model.sampling import Sampling
from comfy_moss.model.text import TextEncoder
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.generate import generate, parse_method

from .nano import SCHEDULE
from .train_vae import to_float

BATCH = 10


def to_uint8(images: Tensor) -> list[np.ndarray]:
    """(B, 3, H, W) in [-1, 1] -> B arrays (H, W, 3) uint8."""
    return list(((images.clamp(-1, 1) + 1) / 2 * 255).byte().permute(0, 2, 3, 1).cpu().numpy())


@torch.inference_mode()
def reconstructions(backbone: InfinityBackbone, cases: list[Case]) -> list[np.ndarray]:
    """Renders of the cases after the codec."""
    images = []
    for n, case in enumerate(cases):
        pixels = torch.from_numpy(render(case.scene, np.random.default_rng(n))).permute(2, 0, 1)[None]
        _, total = quantize_scales(backbone.vae.encode(to_float(pixels)), SCHEDULE.grids)
        images += to_uint8(backbone.decode(total))
    return images


def draw(backbone: InfinityBackbone, text: list[Tensor], method: str, guidance: Guidance, sampling: Sampling) -> list[np.ndarray]:
    """Pictures of the prompts, seed = place in the list."""
    images = []
    for start in range(0, len(text), BATCH):
        part = tuple(text[start : start + BATCH])
        recipe = Recipe(part, None, tuple(range(start, start + len(part))), SCHEDULE, guidance, sampling)
        images += to_uint8(generate(backbone, recipe, parse_method(method)).image)
    return images


def save_sheet(path: Path, images: list[np.ndarray], columns: int = 10) -> None:
    """All pictures on one sheet."""
    blank = [np.full_like(images[0], 255)] * (-len(images) % columns)
    rows = [np.hstack((images + blank)[n : n + columns]) for n in range(0, len(images), columns)]
    Image.fromarray(np.vstack(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--methods", nargs="+", default=["dense", "draft", "moss4"])
    parser.add_argument("--per-task", type=int, default=25)
    parser.add_argument("--tasks", nargs="+", help="only these tasks")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--tau", type=float)
    parser.add_argument("--sheet", type=Path, help="also save the pictures, one sheet a method: NAME_method.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = find_model(args.model, [])
    backbone = load_infinity(files.transformer, files.vae, files.text)
    cases = [c for c in prompts(args.per_task, args.seed) if not args.tasks or c.task in args.tasks]
    text = TextEncoder.load(files.text).encode([c.prompt for c in cases])
    guidance, sampling = Guidance(args.cfg or files.cfg), Sampling(args.tau or files.tau)
    result = {"codec alone": score_images(cases, reconstructions(backbone, cases))}
    for method in args.methods:
        images = draw(backbone, text, method, guidance, sampling)
        result[method] = score_images(cases, images)
        if args.sheet:
            save_sheet(args.sheet.with_name(f"{args.sheet.stem}_{method}.png"), images)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
