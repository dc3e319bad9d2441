"""How a state draws held-out prompts: python -m training.score --state DIR [--area 1M] [--per-task 10].

Every prompt is drawn once, densely, with the average of the weights, and looked at after the last scale and
after earlier ones: dense must beat its own drafts before the methods can be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from comfy_moss.benchmarks.detector import detect, judge, shows_texture
from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.suite import TASKS, Case, prompts
from comfy_moss.images import to_bytes, to_image
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.library import find_model
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.vae import VAE
from comfy_moss.pipeline.draft import Recipe, draw_draft

from .forward import Nano, look
from .nano import SCHEDULES, SIDES
from .train_vae import CONFIG, to_float

SKIPPED = (0, 1, 2, 3)  # scales left out at the end
MEASURED = 12  # of the prompts: how well the true pictures' bits are foretold, which takes a drawing's time
Looks = dict[int, tuple[bool, bool | None]]  # by skipped scales: whether the task and all textures are shown


def load(state: Path) -> tuple[Nano, InfinityBackbone]:
    """The average of a state's weights."""
    nano, vae = Nano().eval(), VAE(CONFIG)
    nano.load_state_dict(torch.load(state / "transformer.pt", weights_only=True)["ema"])
    vae.load_state_dict(torch.load(state / "vae.pt", weights_only=True)["ema"])
    return nano, InfinityBackbone(nano.transformer, vae)


@torch.inference_mode()
def draw(
    nano: Nano, backbone: InfinityBackbone, cases: list[Case], area: str
) -> Iterator[tuple[Case, list[np.ndarray]]]:
    """Each case with its pictures, uint8 (H, W, 3): dense, then without the last scales."""
    files, schedule = find_model("nano", []), SCHEDULES[area]
    for n, case in enumerate(cases):
        tokens = nano.tokenizer(case.prompt, return_tensors="pt")
        text = nano.text(input_ids=tokens.input_ids).last_hidden_state[0]
        recipe = Recipe((text,), None, (n,), schedule, Guidance(files.cfg), files.sampling(files.tau))
        totals: list[Tensor] = []
        draw_draft(backbone, recipe, len(schedule), on_scale=lambda *seen, kept=totals: kept.append(seen[-1]))
        yield case, [to_bytes(to_image(backbone.decode(totals[-1 - k])))[0].numpy() for k in SKIPPED]


@torch.inference_mode()
def bits_a_bit(nano: Nano, backbone: InfinityBackbone, cases: list[Case], area: str) -> list[float]:
    """Cross-entropy by scale of the cases' true pictures, with up to FLIPS of the bits flipped in what it
    sees.
    """
    torch.manual_seed(0)
    losses = []
    for n, case in enumerate(cases):
        picture = render(case.scene, np.random.default_rng(n), SIDES[area], SIDES[area])
        features = backbone.vae.encode(to_float(torch.from_numpy(picture).permute(2, 0, 1)[None]))
        losses.append(look(nano, features, [case.prompt], len(SCHEDULES[area])).losses / math.log(2))
    return [round(loss, 3) for loss in torch.stack(losses).mean(0).tolist()]


def report(looks: list[tuple[Case, Looks]]) -> dict[str, dict[str, float]]:
    """By number of skipped scales: score, textures shown, both together, and the score of every task."""
    rows = {}
    for k in SKIPPED:
        hits = [seen[k][0] for _, seen in looks]
        shown = [seen[k][1] for _, seen in looks]
        row = {
            "score": np.mean(hits),
            "textures shown": np.mean([s for s in shown if s is not None]),
            "with textures": np.mean([hit and s is not False for hit, s in zip(hits, shown, strict=True)]),
        }
        for task in TASKS:
            row[task] = np.mean([seen[k][0] for case, seen in looks if case.task == task])
        name = f"without the last {k}" if k else "dense"
        rows[name] = {key: round(float(value), 3) for key, value in row.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--area", choices=[*SIDES], default="1M")
    parser.add_argument("--per-task", type=int, default=10)
    parser.add_argument("--seed", type=int, default=4242, help="of the prompts")
    parser.add_argument(
        "--pictures", type=Path, help="a PNG file for the first pictures of each task, dense beside drafts"
    )
    args = parser.parse_args()
    nano, backbone = load(args.state)
    looks, rows = [], []
    cases = prompts(args.per_task, args.seed)
    for case, pictures in tqdm(draw(nano, backbone, cases, args.area), total=len(cases)):
        seen = {}
        for k, picture in zip(SKIPPED, pictures, strict=True):
            found = detect(picture)
            task = judge(case.task, case.scene, found, SIDES[args.area])
            seen[k] = task, shows_texture(case.scene, found, picture)
        looks.append((case, seen))
        if len(looks) % args.per_task == 1:
            rows.append(np.concatenate(pictures, axis=1))
    told = {"bits a bit": bits_a_bit(nano, backbone, cases[:: max(1, len(cases) // MEASURED)], args.area)}
    sys.stdout.write(json.dumps(report(looks) | told, indent=1) + "\n")
    if args.pictures:
        Image.fromarray(np.concatenate(rows)).save(args.pictures, "PNG")


if __name__ == "__main__":
    main()
