"""Train a tiny decoder for a codec: previews and drafts in a fraction of the codec's time.

    python -m training.tiny_decoder --minutes 30          # nano's, from rendered shapes
    python -m training.tiny_decoder --minutes 240 --vae models/infinity_vae_d32reg.pth --pictures FOLDER
    python -m training.tiny_decoder --minutes 240 --vae models/hart-0.7b-1024px/tokenizer --pictures FOLDER

After TAESD's recipe: a small network without norms learns to give what the codec's own decoder gives.  Half
of the sums of codes that it sees lack the last scales, as drafts do.  The loss is L1, half the L1 of the
gradients and 0.2 L2; there is no adversary, so textures come out softer than TAESD's.  Runs until
`--minutes` are over, earlier runs with the same `--state` included, and writes the file at the end of every
run.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from comfy_moss.benchmarks.rendering import render
from comfy_moss.benchmarks.world import sample_scene
from comfy_moss.model.checkpoint import vae_from_state
from comfy_moss.model.hart_checkpoint import read_settings, tokenizer_from_state
from comfy_moss.model.library import NANO_FOLDER
from comfy_moss.model.quantize import bits_to_codes, quantize_scales, resample
from comfy_moss.model.schedule import make_schedule
from comfy_moss.model.tensors import open_tensors, write_safetensors
from comfy_moss.model.tiny_decoder import TinyDecoder, tiny_decoder_name
from comfy_moss.model.vae import VAE, Tokenizer

from .train_vae import reconstruction_loss, to_float
from .workers import move_average, save_state

PEAK_LR = 1e-3
POOL, EVERY = 192, 3  # pairs of codes and picture in memory; steps after which one of them is replaced
CROPS, CROP = 8, 16  # crops a step, and the side of each in cells
NANO_WIDTHS = (32, 32, 24, 16)
PATCHIFIED = 14  # channels of the codec whose tokens cover 2 x 2 cells
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
Pair = tuple[Tensor, Tensor]  # sum of codes (1, c, h, w) and its picture (1, 3, H, W) uint8
log = logging.getLogger("tiny_decoder")


def open_codec(path: Path) -> VAE | Tokenizer:
    """Infinity's codec from a file, or HART's from its folder."""
    tensors = open_tensors(path)
    if any(name.startswith("quantize.embedding") for name in tensors):
        return tokenizer_from_state(tensors, read_settings(path if path.is_dir() else path.parent))
    return vae_from_state(tensors)


def rendered(rng: np.random.Generator, side: int) -> Iterator[Tensor]:
    """Pictures of the shapes world, (1, 3, side, side) in [-1, 1]."""
    while True:
        picture = render(sample_scene(rng, plain_texture=0.25), rng)
        yield to_float(torch.from_numpy(picture).permute(2, 0, 1)[None])


def from_folder(folder: Path, rng: np.random.Generator, side: int) -> Iterator[Tensor]:
    """Square crops of the pictures below a folder, (1, 3, side, side) in [-1, 1].

    Raises:
        ValueError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not files:
        raise ValueError(f"no pictures ({', '.join(IMAGES)}) below {folder}; give another folder")
    while True:
        with Image.open(files[rng.integers(len(files))]) as image:
            image = image.convert("RGB")
        scale = side / min(image.size) * (1 if min(image.size) < 2 * side else rng.uniform(1, 2))
        image = image.resize([max(side, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
        left, top = (int(rng.integers(n - side + 1)) for n in image.size)
        picture = np.asarray(image.crop((left, top, left + side, top + side)))
        yield to_float(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])


def sums_of_codes(codec: VAE | Tokenizer, image: Tensor) -> list[Tensor]:
    """The sum of codes (1, c, h, w) after each scale of a square picture (1, 3, H, H)."""
    features = codec.encode(image)
    cells = features.shape[-1]
    if isinstance(codec, Tokenizer):
        sides = [side for side, _ in make_schedule().grids if side < cells] + [cells]
        return codec.quantize.quantize(features, sides)[1]
    factor = 2 if codec.config.channels == PATCHIFIED else 1
    sides = [factor * side for side, _ in make_schedule().grids if factor * side < cells] + [cells]
    bits, _ = quantize_scales(features, [(side, side) for side in sides])
    codes = (resample(bits_to_codes(bit, codec.config.channels), (cells, cells)) for bit in bits)
    return list(torch.stack(list(codes)).cumsum(0))


@torch.no_grad()
def pair(codec: VAE | Tokenizer, image: Tensor, rng: np.random.Generator) -> Pair:
    """Codes of a picture, half of the time without the last one to six scales, and what the codec shows of
    them.
    """
    sums = sums_of_codes(codec, image)
    left_out = int(rng.integers(1, min(7, len(sums)))) if rng.random() < 0.5 else 0
    codes = sums[len(sums) - 1 - left_out]
    return codes, ((codec.decode(codes) + 1) * 127.5).round().to(torch.uint8)


def crops(pool: list[Pair], stride: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(CROPS, c, CROP, CROP) codes; their pictures as float in [-1, 1]; and which pixels count, bool."""
    parts = []
    for n in rng.integers(len(pool), size=CROPS):
        codes, picture = pool[n]
        cells = codes.shape[-1]
        side = min(CROP, cells)
        y, x = (int(rng.integers(cells - side + 1)) for _ in range(2))
        place = (..., *(slice(at * stride, (at + side) * stride) for at in (y, x)))
        counts = complete(y, side, cells)[:, None] & complete(x, side, cells)
        counts = counts.repeat_interleave(stride, 0).repeat_interleave(stride, 1)[None, None]
        parts.append((codes[..., y : y + side, x : x + side], to_float(picture[place]), counts))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def complete(first: int, side: int, cells: int) -> Tensor:
    """Which of the cells first..first+side-1 of a crop, bool (side,), have all that the decoder would see
    around them: all but the outermost, unless it is the picture's own border.
    """
    known = torch.ones(side, dtype=torch.bool)
    known[0], known[-1] = first == 0, first + side == cells
    return known


@torch.no_grad()
def psnr(model: TinyDecoder, pairs: list[Pair]) -> float:
    """Against the codec's own decoder, in dB: mean over pictures."""
    found = [F.mse_loss(model.decode(codes), to_float(picture)).item() / 4 for codes, picture in pairs]
    return float(np.mean([-10 * math.log10(max(mse, 1e-10)) for mse in found]))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vae = args.vae or NANO_FOLDER / "vae.safetensors"
    codec, rng = open_codec(vae), np.random.default_rng(time.time_ns())
    stride = codec.config.stride
    model = TinyDecoder.of_stride(codec.config.channels, stride, args.widths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=1e-4)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    step, before = 0, 0.0
    if args.state.exists():
        kept = torch.load(args.state, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        average, step, before = kept["average"], kept["step"], kept["seconds"]

    def images(seed: np.random.Generator) -> Iterator[Tensor]:
        return from_folder(args.pictures, seed, args.side) if args.pictures else rendered(seed, args.side)

    fixed = np.random.default_rng(7)
    held_out = [pair(codec, image, fixed) for image, _ in zip(images(fixed), range(8), strict=False)]
    source = images(rng)
    start, logged = time.process_time(), 0.0
    pool = [pair(codec, next(source), rng) for _ in range(args.pool)]
    until = min(60 * args.minutes, before + 60 * args.chunk)
    while (seconds := before + time.process_time() - start) < until:
        if step % EVERY == 0:
            pool[rng.integers(len(pool))] = pair(codec, next(source), rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(seconds / (60 * args.minutes), step)
        loss = train_step(model, *crops(pool, stride, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        move_average(average, model, min(0.998, step / (step + 20)))
        if seconds - logged > 60:
            logged = seconds
            log.info(f"{seconds:.0f}s step {step} loss {loss.item():.4f} {psnr(model, held_out):.2f} dB")
    save_state(
        args.state, model=model.state_dict(), optimizer=optimizer.state_dict(), average=average, step=step,
        seconds=seconds,
    )
    model.load_state_dict(average)
    log.info(f"{seconds:.0f}s step {step}, average of weights: {psnr(model, held_out):.2f} dB")
    target = args.to / f"{tiny_decoder_name(vae)}.safetensors"
    write_safetensors(average, target, torch.float16)
    log.info(f"wrote {target} ({target.stat().st_size} bytes)")


def train_step(
    model: Callable[[Tensor], Tensor], codes: Tensor, pictures: Tensor, counts: Tensor
) -> Tensor:
    """The loss of one batch, of the pixels that count; neither side is clamped."""
    return reconstruction_loss(pictures, torch.where(counts, 2 * model(codes) - 1, pictures))


def learning_rate(done: float, step: int) -> float:
    """A short warm-up, then a cosine down to 2 %."""
    return PEAK_LR * min(1, step / 100) * (0.98 * 0.5 * (1 + math.cos(math.pi * min(1, done))) + 0.02)


def main() -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    add = parser.add_argument
    add("--vae", type=Path, help="codec: Infinity's file or HART's folder tokenizer (default: nano's)")
    add("--pictures", type=Path, help="folder of pictures, searched through (default: rendered shapes)")
    add("--minutes", type=float, required=True, help="processor time in all")
    add("--chunk", type=float, default=math.inf, help="minutes after which this run stops, to be continued")
    add("--state", type=Path, default=Path("out/tiny_decoder.pt"), help="resumable state")
    add("--side", type=int, default=256, help="pixels along a picture (default: 256)")
    add("--pool", type=int, default=POOL, help=f"pictures in memory (default: {POOL})")
    add("--widths", type=int, nargs="+", help="channels of each level, coarsest first (default: 64)")
    add("--to", type=Path, help="folder to write (default: models/vae_approx; nano's own folder)")
    args = parser.parse_args()
    if args.vae and not args.pictures:
        parser.error("a codec other than nano's needs --pictures, a folder of pictures")
    args.widths = args.widths or (() if args.vae else NANO_WIDTHS)
    args.to = args.to or (Path("models/vae_approx") if args.vae else NANO_FOLDER)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args)


if __name__ == "__main__":
    main()
