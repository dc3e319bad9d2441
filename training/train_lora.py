"""Train a LoRA of nano that draws at night: python -m training.train_lora --minutes 2 [--out FILE].

Nano stays as it is; to the matrices of its blocks low-rank changes are added, which learn rendered pictures
with dark backgrounds.  (Coloured ones are more than the codec can show.)  The file has PEFT's names and says
its alpha itself.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .forward import EARLY, Nano, look
from .lessons import EARLY_WEIGHTS
from .nano import SCHEDULE
from .restore import shipped
from .stream import Stream
from .train_transformer import learning_rate

ASSETS, LORAS = Path("comfy_moss/assets/nano"), Path("comfy_moss/assets/loras")
LAYERS = ("sa.mat_qkv", "sa.proj", "ca.proj", "ffn.fc1", "ffn.fc2")  # of every block
RANK, ALPHA = 4, 8.0
BATCH = 8  # pictures a step up to scale EARLY, where the look is decided; and one new one, all scales whole
COLOURED = 0.4  # saturation from which on a pixel is a thing's
DARKEST, DARKER = 20, 0.12  # 0 to 255: black and what is added for brighter greys; the codec's black is 40
LOGGED = 10  # steps
log = logging.getLogger("train_lora")


def night(picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 (H, W, 3), whose greys are dark; what is coloured stays."""
    values = picture.astype(np.float32)
    high, low = values.max(-1, keepdims=True), values.min(-1, keepdims=True)
    grey = np.clip(1 - (high - low) / np.maximum(high, 1) / COLOURED, 0, 1)
    return (values + grey * (DARKEST + DARKER * high - values)).round().astype(np.uint8)


class LowRankChange(nn.Module):
    """weight (out, in) -> weight + alpha / rank * up (out, r) @ down (r, in); none before it is trained."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(RANK, inputs) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(outputs, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA / RANK * self.up @ self.down


def add_changes(nano: Nano) -> dict[str, LowRankChange]:
    """Freeze nano and put a change over each matrix of LAYERS; by name of the layer."""
    nano.requires_grad_(False)
    changes = {}
    for number, block in enumerate(nano.transformer.blocks):
        for name in LAYERS:
            layer = block.get_submodule(name)
            change = changes[f"blocks.{number}.{name}"] = LowRankChange(layer.weight)
            parametrize.register_parametrization(layer, "weight", change)
    return changes


def step(nano: Nano, stream: Stream) -> Tensor:
    """Accumulate gradients; nats per bit of every scale of the new picture."""
    whole, many = stream.new(1), stream.draw(BATCH)
    early = look(nano, many.features, many.captions, EARLY).losses
    losses = look(nano, whole.features, whole.captions, len(SCHEDULE)).losses
    ((early * EARLY_WEIGHTS).sum() + losses.mean()).backward()
    return losses.detach()


def train(
    nano: Nano, changes: dict[str, LowRankChange], stream: Stream, minutes: float, peak: float, path: Path
) -> None:
    """Steps until so much processor time is used up, with a file every few steps."""
    parameters = [p for change in changes.values() for p in change.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0, betas=(0.9, 0.97))
    start, history = time.process_time(), []
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = learning_rate(peak, done, len(history), warm_up=5)
        optimizer.zero_grad()
        history.append(step(nano, stream))
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        if len(history) % LOGGED == 0:
            bits = " ".join(f"{n / math.log(2):.3f}" for n in torch.stack(history[-LOGGED:]).mean(0).tolist())
            log.info(f"step {len(history)} ({done:.0%}) bits a bit {bits}")
            save(changes, path)
    save(changes, path)


def save(changes: dict[str, LowRankChange], path: Path) -> None:
    """In half precision, with PEFT's names."""
    state = {}
    for layer, change in changes.items():
        stem = f"base_model.model.{layer}"
        state |= {f"{stem}.lora_A.weight": change.down, f"{stem}.lora_B.weight": change.up}
        state[f"{stem}.alpha"] = torch.tensor(ALPHA)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().half().contiguous() for name, value in state.items()}, path)
    path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of processor time")
    parser.add_argument("--peak", type=float, default=5e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=LORAS / "nano-night.safetensors")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    nano, codec = shipped(ASSETS)
    stream = Stream("0.25M", codec, np.random.default_rng(0), first=BATCH, look=night)
    changes = add_changes(nano)
    train(nano, changes, stream, args.minutes, args.peak, args.out)
    log.info(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
