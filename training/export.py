"""Write the shipped files from a training state: python -m training.export --state DIR [--to comfy_moss/assets/nano]."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .nano import write_assets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path("comfy_moss/assets/nano"))
    args = parser.parse_args()
    vae = torch.load(args.state / "vae.pt", weights_only=True)["ema"]
    ema = torch.load(args.state / "transformer.pt", weights_only=True)["ema"]
    parts = {part: {n.removeprefix(part + "."): v for n, v in ema.items() if n.startswith(part + ".")} for part in ("transformer", "text")}
    write_assets(args.to, parts["transformer"], parts["text"], vae)


if __name__ == "__main__":
    main()
