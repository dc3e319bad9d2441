"""Make a training state from the shipped files: python -m training.restore --state DIR.

Then train with --resume.  Half precision and a fresh optimiser cost a few minutes of training, no more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from comfy_moss.model.checkpoint import open_transformer, vae_from_state
from comfy_moss.model.tensors import open_tensors
from comfy_moss.model.text import TextEncoder

from .forward import Nano
from .workers import save_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--assets", type=Path, default=Path("comfy_moss/assets/nano"))
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="training time these weights had; --minutes counts it"
    )
    args = parser.parse_args()
    nano, codec = shipped(args.assets)
    save(args.state / "vae.pt", codec, args.seconds)
    save(args.state / "transformer.pt", nano.state_dict(), args.seconds)


def shipped(assets: Path) -> tuple[Nano, dict[str, Tensor]]:
    """The shipped transformer and text encoder in float32, and the weights of the codec."""
    weights, _ = open_transformer(open_tensors(assets / "transformer.safetensors"))
    nano = Nano()
    nano.transformer.load_state_dict({name: weights[name].float() for name in weights})
    text = TextEncoder.load(assets / "text").model.state_dict()
    nano.text.load_state_dict(text, strict=False)  # tied names differ
    return nano, vae_from_state(open_tensors(assets / "vae.safetensors")).state_dict()


def save(path: Path, weights: dict[str, Tensor], seconds: float) -> None:
    average = {name: value.clone() for name, value in weights.items()}
    save_state(path, model=weights, ema=average, hints=None, optimizer=None, step=0, seconds=seconds)


if __name__ == "__main__":
    main()
