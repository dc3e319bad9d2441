"""Time the decoder as it is and in other ways, at one megapixel: memory format, precision, tiles.

    python benchmarks/decoder.py            # on the GPU if there is one, in bfloat16; else on the CPU, in float32
    python benchmarks/decoder.py --cells 32 # a picture of 512 x 512 pixels

All ways run in turn, in every round anew.  PSNR is that against float32 decoded at once, on random weights and smooth codes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path.remove(str(ROOT))  # the folder kernels/ must not pass for the package of that name

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from comfy_moss.benchmarks.bench.machine import hardware, versions  # noqa: E402
from comfy_moss.benchmarks.bench.measure import run_rounds  # noqa: E402
from comfy_moss.benchmarks.bench.random_weights import fill_at_random  # noqa: E402
from comfy_moss.benchmarks.bench.shapes import SHAPES  # noqa: E402
from comfy_moss.model.quantize import resample  # noqa: E402
from comfy_moss.model.vae import VAE, decode_in_tiles  # noqa: E402

CELL = 16  # pixels, of the codecs of the 125M and 2B models


def ways(vae: VAE, codes: Tensor) -> dict[str, partial]:
    last = codes.contiguous(memory_format=torch.channels_last)
    return {
        "contiguous": partial(vae.decode, codes),
        "channels last": partial(vae.decode, last),
        "channels last, tiles of 32 cells": partial(decode_in_tiles, vae.decode, last),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=64, help="side of the code map (default: 64, that is 1024 pixels)")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        vae = VAE(SHAPES["2b"].codec)
    vae = fill_at_random(vae, device, 0)
    smooth = torch.randn(1, vae.config.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = resample(smooth, (args.cells, args.cells)).to(device)
    exact = vae.decode(codes)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    calls = ways(vae.to(dtype), codes.to(dtype))
    samples = run_rounds(device, {name: partial(_error, call, exact) for name, call in calls.items()}, args.runs, 1, _say)
    facts = {**hardware(device), **versions(), "pixels": args.cells * CELL, "dtype": str(dtype)}
    sys.stdout.write(", ".join(f"{name}: {value}" for name, value in facts.items()) + "\n")
    for name, rows in samples.items():
        seconds = statistics.median(row.seconds for row in rows)
        memory = f", peak {rows[0].peak_bytes / 2**30:.2f} GiB" if rows[0].peak_bytes else ""
        sys.stdout.write(f"{name:<34} {1000 * seconds:9.1f} ms{memory}, {rows[0].result:.1f} dB\n")


def _error(call: partial, exact: Tensor) -> float:
    """PSNR in dB of pictures in [-1, 1]."""
    return (10 * (4 / (call().float() - exact).square().mean()).log10()).item()


def _say(text: str) -> None:
    sys.stderr.write(f"  {text}\n")


if __name__ == "__main__":
    main()
