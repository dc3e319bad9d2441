"""Infinity checkpoints: names, pairing, building, converting.

Accepted: released .pth files, training checkpoints, safetensors, sharded directories.  Everything that can be
refused is refused from names and shapes, before memory is taken.  Facts: docs/infinity.md, sections 1, 1.1,
1.2, 7.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .contents import CODEC, TRANSFORMER, identify
from .family import BACKBONES, INFINITY, MAPS, family_of, map_heads, refuse_others
from .infinity import InfinityBackbone, InfinityConfig, InfinityTransformer
from .layers import TORCH_LAYERS, Layers
from .loading import load_module
from .nsarm import EnlargeTransformer, MapConfig
from .quantized_weights import dequantized, quantized_layers
from .tensors import CheckpointError, Tensors, open_tensors, weights_id
from .text import text_width
from .vae import VAE, VAEConfig, plain_names

RELEASED_VAES = {
    16: "infinity_vae_d16.pth", 32: "infinity_vae_d32reg.pth", 56: "infinity_vae_d56_f8_14_patchify.pth",
}
CAME_WITH_IT = "the VAE that came with the model"
OTHER_VAE = "infinity_vae_d32"  # same shapes as the 2B model's VAE, other weights: only the name tells
IGNORED = {
    "zero_k_bias", "lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen",
}
ATTENTION = re.compile(r"(?:^|[._])(?:attn|attention|attentions|to_q)(?:[._]|$)")
CODEBOOK = re.compile(r"(?:quantize|quantizer|vq|codebook)\.(?:embed|codebook|weight|_codebook|quant_resi)")
CHUNKED = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.(.+)")


def _expect(tensors: Tensors, kind: str) -> None:
    refuse_others(tensors)
    if (found := identify(tensors)) != kind:
        raise CheckpointError(f"{tensors.path} seems to be {found}, not {kind}; choose another file")


def _incomplete(path: Path, kind: str, error: Exception) -> CheckpointError:
    what = (
        f"lacks the tensor {error}"
        if isinstance(error, KeyError)
        else "its tensors have no sizes that fit together"
    )
    return CheckpointError(
        f"{path} seems to be {kind}, but {what}; it is a part of a model, or of one that is not known here"
    )


def open_transformer(state: Tensors) -> tuple[Tensors, InfinityConfig]:
    """Tensors under the names of InfinityTransformer, and its sizes; reads no values.

    Blocks are numbered through chunks of any size; buffers that inference does not use are left out.

    Raises:
        CheckpointError: not an Infinity transformer.
    """
    _expect(state, TRANSFORMER)
    kept = [name for name in state if name.rpartition(".")[2] not in IGNORED]
    tensors = state.renamed(dict(zip(_numbered(kept, state.path), kept, strict=True)))
    for name, shape in tensors.shapes.items():
        if name.endswith(".sa.scale_mul_1H11") and len(shape) == 4:
            tensors.shapes[name] = (1, max(shape), 1, 1)  # some files have (1, 1, H, 1)
    try:
        return tensors, InfinityConfig.from_shapes(tensors.shapes)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise _incomplete(state.path, TRANSFORMER, error) from error


def _numbered(names: list[str], path: Path) -> list[str]:
    """`block_chunks.{i}.module.{j}.` -> `blocks.{n}.`"""
    parts = [CHUNKED.fullmatch(name) for name in names]
    sizes: dict[int, int] = {}
    for part in filter(None, parts):
        sizes[int(part[1])] = max(sizes.get(int(part[1]), 0), int(part[2]) + 1)
    if len(sizes) <= max(sizes, default=-1):
        raise CheckpointError(f"{path} lacks one of its chunks of blocks; get the whole file")
    first = {chunk: sum(sizes[c] for c in range(chunk)) for chunk in sizes}
    return [
        f"blocks.{first[int(part[1])] + int(part[2])}.{part[3]}" if part else name
        for name, part in zip(names, parts, strict=True)
    ]


def open_vae(
    state: Tensors, model: str = "Infinity", belongs: str = CAME_WITH_IT
) -> tuple[Tensors, VAEConfig]:
    """Tensors under the names of VAE (encoder and decoder only), and its sizes; reads no values.

    Both namings of files are understood: `X.conv.weight`, `X.norm.weight` and plain `X.weight`.

    Args:
        model, belongs: which model needs it, and what that model's codec is called, for messages.

    Raises:
        CheckpointError: not such a codec.
    """
    _expect(state, CODEC)
    if reason := _foreign(state.shapes):
        raise CheckpointError(
            f"{state.path.name} is a VAE that does not belong to {model}: {reason}; use {belongs}"
        )
    tensors = state.renamed(plain_names(name for name in state if name.startswith(("encoder.", "decoder."))))
    try:
        return tensors, VAEConfig.from_shapes(tensors.shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise _incomplete(state.path, CODEC, error) from error


def _foreign(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What marks a codec that is none of Infinity's: those are plain convolutions with bits in between."""
    plain = {held: shapes[name] for name, held in ((n, n.replace(".conv.weight", ".weight")) for n in shapes)}
    if attention := next(
        (n for n in shapes if n.startswith(("encoder.", "decoder.")) and ATTENTION.search(n)), None
    ):
        return f"it has attention ({attention})"
    if codebook := next((n for n in shapes if CODEBOOK.match(n)), None):
        return f"it has a codebook ({codebook})"
    if any(len(shape) == 5 for shape in shapes.values()):
        return "it codes videos"
    if not {"encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"} <= plain.keys():
        return "its layers have other names"
    rows, channels = (
        plain.get(name, (0, 0)) for name in ("encoder.conv_out.weight", "decoder.conv_in.weight")
    )
    if rows[0] != channels[1]:
        reads = f"its decoder reads {channels[1]}, a mean and a variance for each"
        return f"its encoder makes {rows[0]} numbers where {reads}"
    return None


def transformer_from_state(
    state: Mapping[str, Tensor],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    heads: Sequence[int] | None = None,
    layers: Layers = TORCH_LAYERS,
) -> InfinityTransformer:
    """Build the transformer from tensors under released or canonical names.

    Args:
        device: where it goes; None = where the tensors are.
        dtype: of the blocks; everything around them is float32 (docs/infinity.md, section 4.1).
        heads: of NSARM's maps, where there are some; None = as the file says, or as released.
        layers: how its weights are stored, and classes of its layers.

    Raises:
        CheckpointError: see `open_transformer` and `tensors.load_module`.
    """
    tensors, config = open_transformer(Tensors.of(state))
    maps = {name.removeprefix(MAPS): tensors.shapes[name] for name in tensors if name.startswith(MAPS)}

    def make(operations: Any) -> InfinityTransformer:
        if not maps:
            return InfinityTransformer(config, operations)
        sizes = MapConfig.from_shapes(maps, heads or map_heads(tensors))
        return EnlargeTransformer(config, sizes, operations)

    def dtype_of(name: str) -> torch.dtype:
        inside = name.startswith("blocks.")
        return layers.dtype_of(name, tensors.shapes[name], dtype) if inside else torch.float32

    operations = layers.pick(layers.stored or dtype, dtype, bool(quantized_layers(tensors)))
    return load_module(make, tensors, dtype_of, device, operations)


def vae_from_state(
    state: Mapping[str, Tensor], device: torch.device | str | None = None, dtype: torch.dtype = torch.float32,
    layers: Layers = TORCH_LAYERS,
) -> VAE:
    """Build the codec, all of it in `layers.codec` or `dtype`, from tensors under either naming.  Errors: see
    `open_vae`, `load_module`.
    """
    tensors, config = open_vae(Tensors.of(state))
    dtype = layers.codec or dtype
    operations = layers.pick(dtype, dtype, False)
    return load_module(partial(VAE, config), dequantized(tensors), lambda name: dtype, device, operations)


def check_pair(bits: int, channels: int, transformer: Path, vae: Path) -> None:
    """Refuse a codec that does not fit the transformer: a token's d bits are c channels, or 4 c with spatial
    patchify.

    Raises:
        CheckpointError: they do not fit, or it is the 32-channel VAE that no released transformer uses.
    """
    other = f"a VAE of {bits}" + (f" or {bits // 4}" if bits % 4 == 0 else "") + " channels"
    belongs = RELEASED_VAES.get(bits, other)
    if bits not in (channels, 4 * channels):
        raise CheckpointError(
            f"{vae.name} ({channels} channels) does not belong to {transformer.name} ({bits} bits a token); "
            f"use {belongs}"
        )
    if bits == 32 and vae.stem == OTHER_VAE:
        raise CheckpointError(
            f"{vae.name} has the right size but belongs to no released model; with {transformer.name} use "
            f"{belongs}"
        )


def fits_bits(vae: Path, bits: int) -> bool:
    """Whether a codec serves a transformer of that many bits a token.

    Raises:
        CheckpointError: it is no such codec.
    """
    return bits in (channels := open_vae(open_tensors(vae))[1].channels, 4 * channels)


def check_text(width: int, transformer: Path, text: Path) -> None:
    """Refuse a text encoder directory whose features are not `width` numbers.

    Raises:
        CheckpointError: no text encoder, or another width.
    """
    found = text_width(text)
    if found != width:
        belongs = "flan-t5-xl" if width == 2048 else "the text encoder that came with the model"
        raise CheckpointError(
            f"{transformer.name} reads text features of {width} numbers, but {text} makes {found}; use "
            f"{belongs}"
        )


def load_infinity(
    transformer: Path,
    vae: Path,
    text: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    family: str | None = None,
    layers: Layers = TORCH_LAYERS,
) -> InfinityBackbone:
    """Load a transformer and its codec; a text encoder directory is only checked (load it with
    `text.TextEncoder`).

    Args:
        dtype: of the transformer's blocks and of the codec.
        family: a key of `family.BACKBONES`; None = what the file is taken for.
        layers: how weights are stored, and classes of the layers.

    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or the files do not belong together.
    """
    transformer, vae = Path(transformer), Path(vae)
    weights, codec = open_tensors(transformer), open_tensors(vae)
    named, config = open_transformer(weights)
    codec_named, codec_config = open_vae(
        codec, transformer.name, RELEASED_VAES.get(config.bits, CAME_WITH_IT)
    )
    check_pair(config.bits, codec_config.channels, transformer, vae)
    if text is not None:
        check_text(config.text_width, transformer, Path(text))
    kind, told = family_of(weights, family).name, weights_id(named, codec_named)
    return BACKBONES[kind](
        transformer_from_state(weights, device, dtype, layers=layers),
        vae_from_state(codec, device, dtype, layers),
        told if kind == INFINITY else f"{told}-{kind.lower()}",
    )
