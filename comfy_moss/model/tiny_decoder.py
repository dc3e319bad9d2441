"""A tiny decoder: what a sum of codes looks like, in a fraction of the codec's time, for previews and drafts.

After TAESD (github.com/madebyollin/taesd): convolutions, ReLU and residual blocks, no norms and no attention,
taught to give what the codec's own decoder gives.  Layers are numbered as in its files, which is how ComfyUI
names them in models/vae_approx; sizes are read from the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .loading import load_module
from .tensors import CheckpointError, open_tensors

BLOCKS = 3  # residual blocks of a level; the finest has one
WIDTH = 64  # channels, in TAESD everywhere
FOLDER = "vae_approx"  # in the host's models folder
ENDINGS = (".safetensors", ".pth")
ASSETS = Path(__file__).resolve().parent.parent / "assets"


class Clamp(nn.Module):
    """Softly to within +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three convolutions around which the input is led."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


class TinyDecoder(nn.Sequential):
    """Sum of codes (B, c, h, w) -> image (B, 3, h * stride, w * stride), about [0, 1].

    Args:
        channels: c.
        widths: channels of each level, coarsest first; every level doubles the resolution of the one before.
        blocks: residual blocks of each level.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        layers = [Clamp(), nn.Conv2d(channels, widths[0], 3, padding=1), nn.ReLU()]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers.append(nn.Upsample(scale_factor=2))
                layers.append(nn.Conv2d(widths[level - 1], width, 3, padding=1, bias=False))
            layers += [Block(width) for _ in range(count)]
        super().__init__(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))

    @classmethod
    def of_stride(cls, channels: int, stride: int, widths: Sequence[int] = ()) -> TinyDecoder:
        """A fresh one for a codec; widths default to TAESD's."""
        levels = stride.bit_length()
        return cls(channels, widths or (WIDTH,) * levels, (*(BLOCKS,) * (levels - 1), 1))

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Iterable[int]]) -> TinyDecoder:
        """One of the sizes that {parameter name: shape} tell.

        Raises:
            KeyError, ValueError: these are no tiny decoder's.
        """
        size = {name: tuple(shape) for name, shape in shapes.items()}
        last = max(int(name.partition(".")[0]) for name in size)
        plain = sorted(int(found[1]) for name in size if (found := re.fullmatch(r"(\d+)\.weight", name)))
        starts = plain[:-1]  # the first convolution of each level
        if plain[0] != 1 or plain[-1] != last or size[f"{last}.weight"][0] != 3:
            raise ValueError("no convolution to three colours at the end")
        blocks = [_blocks_between(size, a, b) for a, b in zip(starts, plain[1:], strict=True)]
        return cls(size["1.weight"][1], [size[f"{n}.weight"][0] for n in starts], blocks)

    @property
    def stride(self) -> int:
        """Pixels per cell of the code map."""
        return 2 ** sum(isinstance(layer, nn.Upsample) for layer in self)

    @property
    def channels(self) -> int:
        """c."""
        return self[1].in_channels

    def decode(self, codes: Tensor) -> Tensor:
        """Summed codes (B, c, h, w) -> image (B, 3, h * stride, w * stride) in [-1, 1]."""
        return (2 * self(codes.to(self[1].weight)) - 1).clamp(-1, 1)


def _blocks_between(size: Mapping[str, tuple[int, ...]], first: int, last: int) -> int:
    """Residual blocks between two plain convolutions."""
    return sum(f"{n}.conv.0.weight" in size for n in range(first + 1, last))


def tiny_decoder_name(vae: Path) -> str:
    """What the tiny decoder of a codec's file or folder is called, without the ending: as the host names
    them.
    """
    if ASSETS in vae.resolve().parents:
        return f"tae{vae.resolve().parent.name}_decoder"
    return "taehart_decoder" if vae.name == "tokenizer" else f"tae{vae.stem}_decoder"


def find_tiny_decoder(vae: Path, folders: Iterable[Path]) -> Path | None:
    """The tiny decoder of a codec: in one of the folders (models/vae_approx), or beside the codec."""
    name = tiny_decoder_name(vae)
    places = [folder / f"{name}{ending}" for folder in (*folders, vae.parent) for ending in ENDINGS]
    return next((path for path in places if path.is_file()), None)


def load_tiny_decoder(path: Path, channels: int, stride: int) -> TinyDecoder:
    """Read a tiny decoder in float32, on the CPU.

    Args:
        channels, stride: of the codec that it stands in for.

    Raises:
        CheckpointError: not such a file, or made for another codec.
    """
    tensors = open_tensors(path)
    model = load_module(
        lambda _: TinyDecoder.from_shapes(tensors.shapes), tensors, lambda _: torch.float32, "cpu"
    )
    if (model.channels, model.stride) != (channels, stride):
        raise CheckpointError(
            f"{path} decodes {model.channels} channels at {model.stride} pixels a cell, this model has "
            f"{channels} at {stride}; make one for it with training/tiny_decoder.py, or remove the file"
        )
    return model
