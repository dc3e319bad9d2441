"""Train nano's codec: python -m training.train_vae --minutes 40 --state DIR [--resume].

First 128-pixel crops, then whole pictures.  Straight-through over the whole multi-scale quantiser; some
steps see codes with the last scales missing or with flipped bits, so that the decoder copes with drafts and
with sampled errors.
"""

from __future__ import annotations

import argparse
import logging
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.world import sample_scene
from comfy_moss.model.quantize import bits_to_codes, quantize_scales, resample
from comfy_moss.model.schedule import make_schedule
from comfy_moss.model.vae import VAE, VAEConfig

from .workers import average_gradients, launch, move_average, same_everywhere, save_state

CONFIG = VAEConfig(width=48, mult=(1, 1, 2, 2), encoder_blocks=1, decoder_blocks=1, channels=16)
PEAK_LR = 1.5e-3
CROP_PART = 0.5  # of the time is spent on crops
CROPS, CROP = 4, 128  # crops a worker and step, their size in pixels
log = logging.getLogger("train_vae")


def pictures(first_seed: int, count: int) -> Tensor:
    """(count, 3, 256, 256) uint8 renders of the shapes world, most things textured: that is the hard part."""
    out = torch.empty(count, 3, 256, 256, dtype=torch.uint8)
    for n in range(count):
        rng = np.random.default_rng(first_seed + n)
        out[n] = torch.from_numpy(render(sample_scene(rng, plain_texture=0.25), rng)).permute(2, 0, 1)
    return out


def to_float(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]."""
    return images.float() / 127.5 - 1


def draw_batch(pool: Tensor, crops: bool, rng: np.random.Generator) -> Tensor:
    """Crops of several pictures, or one whole picture: the same number of pixels."""
    if not crops:
        return to_float(pool[rng.integers(len(pool))][None])
    ys, xs = rng.integers(0, 256 - CROP, (2, CROPS)) // 2 * 2
    rows = rng.integers(0, len(pool), CROPS)
    return to_float(
        torch.stack([pool[n, :, y : y + CROP, x : x + CROP] for n, y, x in zip(rows, ys, xs, strict=True)])
    )


def grids_of(size: int) -> tuple[tuple[int, int], ...]:
    return make_schedule(1.0, "0.25M" if size == 32 else "0.06M").grids


def disturbed_sum(bits: list[Tensor], grids: tuple, step: int, rng: np.random.Generator) -> Tensor:
    """Sum of the codes; one step in four lacks the last scales, one in four has 4 % of the bits flipped."""
    count = rng.integers(5, len(grids)) if step % 4 == 1 else len(grids)
    total = 0
    for bit in bits[:count]:
        flipped = bit ^ (torch.rand(bit.shape) < 0.04) if step % 4 == 3 else bit
        total = total + resample(bits_to_codes(flipped, CONFIG.channels), grids[-1])
    return total


def reconstruction_loss(image: Tensor, output: Tensor) -> Tensor:
    """L1 + half the L1 of the gradients (edges, textures) + 0.2 L2."""
    error = output - image
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges + 0.2 * error.square().mean()


@torch.no_grad()
def validate(vae: VAE, images: Tensor) -> dict[str, float]:
    """PSNR in dB with all scales and with the first five, and how the latent fits the quantiser's step."""
    grids = grids_of(32)
    scores = {"psnr": 0.0, "psnr5": 0.0, "fit": 0.0}
    for image in images.split(1):
        features = vae.encode(to_float(image))
        bits, total = quantize_scales(features, grids)
        draft = sum(resample(bits_to_codes(b, CONFIG.channels), (32, 32)) for b in bits[:5])
        for name, codes in (("psnr", total), ("psnr5", draft)):
            mse = (vae.decode(codes) - to_float(image)).square().mean() / 4
            scores[name] += -10 * math.log10(mse.item()) / len(images)
        amplitude = (features * total).sum() / total.square().sum()  # the best one; aim 1
        scores["fit"] += amplitude.item() / len(images)
    return scores


def learning_rate(done: float, step: int) -> float:
    return PEAK_LR * min(1, step / 50) * (0.97 * 0.5 * (1 + math.cos(math.pi * done)) + 0.03)


def train_step(vae: VAE, image: Tensor, step: int, rng: np.random.Generator) -> Tensor:
    features = vae.encode(image)
    grids = grids_of(features.shape[-1])
    with torch.no_grad():
        bits, total = quantize_scales(features, grids)
        target = disturbed_sum(bits, grids, step, rng) if step > 150 else total
    straight = features + min(1.0, step / 100) * (target - features).detach()
    commitment = F.mse_loss(features, total)
    return reconstruction_loss(image, vae.decoder(straight)) + 0.15 * commitment


def work(rank: int, workers: int, args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    vae = VAE(CONFIG)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = {name: value.clone() for name, value in vae.state_dict().items()}
    step, before = 0, 0.0
    path = args.state / "vae.pt"
    if args.resume:
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state["model"])
        if state["optimizer"]:
            optimizer.load_state_dict(state["optimizer"])
        ema, step, before = state["ema"], state["step"], state["seconds"]
    rng = np.random.default_rng(rank + 1000 * step)
    torch.manual_seed(rank + 1000 * step)
    pool, held_out = pictures(10_000_000 * (rank + 1), args.pictures // workers), pictures(5, 12)
    start, logged, running = time.time() - before, time.time(), 0.0
    while (done := same_everywhere((time.time() - start) / (60 * args.minutes))) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, step)
        loss = train_step(vae, draw_batch(pool, done < CROP_PART, rng), step, rng)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        move_average(ema, vae, min(0.995, step / (step + 20)))
        running = loss.item() if step == 1 else 0.97 * running + 0.03 * loss.item()
        if rank == 0 and time.time() - logged > 90:
            logged = time.time()
            scores = {name: round(value, 2) for name, value in validate(vae, held_out[:6]).items()}
            log.info(
                f"{logged - start:.0f}s step {step} lr {learning_rate(done, step):.1e} "
                f"loss {running:.4f} {scores}"
            )
            seconds = logged - start
            save_state(
                path,
                model=vae.state_dict(),
                optimizer=optimizer.state_dict(),
                ema=ema,
                step=step,
                seconds=seconds,
            )
    if rank == 0:
        vae.load_state_dict(ema)
        log.info(f"done, average of weights: {validate(vae, held_out)}")
        seconds = time.time() - start
        save_state(
            path,
            model=vae.state_dict(),
            optimizer=optimizer.state_dict(),
            ema=ema,
            step=step,
            seconds=seconds,
        )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=4000, help="size of the rendered pool")
    launch(work, options)
