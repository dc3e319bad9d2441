"""Write the shipped files from a training state: python -m training.export --state DIR [--to FOLDER]."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from .nano import write_assets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path("comfy_moss/assets/nano"))
    args = parser.parse_args()
    vae = torch.load(args.state / "vae.pt", weights_only=True)["ema"]
    ema = torch.load(args.state / "transformer.pt", weights_only=True)["ema"]
    write_assets(args.to, _part(ema, "transformer."), _part(ema, "text."), vae)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


if __name__ == "__main__":
    main()
