"""HART checkpoints: sizes from names, shapes and config.json, building, loading.

Accepted: the released PyTorch files and what `convert` makes of them.  Everything that can be refused is
refused before memory is taken.  Facts: docs/hart.md, sections 1 and 9.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .catalog import children, holds_model
from .contents import HART_TOKENIZER, HART_TRANSFORMER, count_of, identify, listing
from .hart import HartBackbone, HartConfig, HartTransformer
from .layers import TORCH_LAYERS, Layers
from .loading import load_module
from .quantize import Quantizer
from .quantized_weights import dequantized, quantized_layers
from .tensors import (
    CheckpointError,
    Tensors,
    only_model,
    open_tensors,
    reading,
    weights_id,
)
from .vae import Tokenizer, VAEConfig, plain_names

PARTS = ("llm", "tokenizer")  # folders in the released one
AVERAGED = ("ema_model.safetensors", "ema_model.bin")  # the weights that pictures are drawn with, best first
HEAD_DIM = 64  # where nothing says how many heads there are
SIDE, SLOTS = 512, 4096  # more than any model has
STEPS = 8  # of the residual diffusion, where nothing says how many
# constants, and what only training needs
UNUSED = re.compile(r"(.+\.)?(zero_k_bias|lvl_1L|attn_bias_for_masking)")
UNKNOWN = re.compile(
    r"blocks\.\d+\.(ada_lin|scale_shift_table|cross_attn).*|pos_1LC|pos_start|lvl_embed\.weight"
)
CODEC_UNUSED = re.compile(r"decoder2\..+|post_quant_conv2\..+|quantize\.ema_.+")
Settings = Mapping[str, Any]  # what config.json says
log = logging.getLogger(__name__)


def is_hart(folder: Path) -> bool:
    """Whether a folder has the layout of the released one."""
    return all((folder / part).is_dir() for part in PARTS)


def hart_folder(path: Path) -> Path | None:
    """The HART model that a path means: its folder, one of the two folders in it, or a file in those."""
    inner = [folder.parent for folder in (path, path.absolute().parent) if folder.name in PARTS]
    return next((folder for folder in (path, *inner) if is_hart(folder)), None)


def weights_file(folder: Path) -> Path:
    """The file in llm/ to draw with: the averaged weights, or the others if there are no such.

    Raises:
        CheckpointError: there is none, or none of a HART transformer.
    """
    if found := next((folder / name for name in AVERAGED if (folder / name).is_file()), None):
        return found
    others = [path for path in children(folder) if path.is_file() and holds_model(path)]
    if not others:
        raise CheckpointError(f"{folder} holds no weights; download {AVERAGED[-1]} into it")
    chosen = only_model(folder, others, HART_TRANSFORMER)
    log.warning(f"{folder} lacks {AVERAGED[-1]}, the averaged weights; {chosen.name} draws worse pictures.")
    return chosen


def read_settings(folder: Path) -> dict[str, Any]:
    """config.json of a folder; nothing if there is none.

    Raises:
        CheckpointError: it is no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    with reading(file, "is damaged; download it again"):
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))


def open_hart(state: Tensors, settings: Settings) -> tuple[Tensors, HartConfig]:
    """Tensors under the names of HartTransformer, and its sizes.

    Args:
        settings: of its config.json; what is silent there is told by shapes and by the table of levels in the
            file.

    Raises:
        CheckpointError: not such a transformer, a variant that is not known here, or a config.json of another
            model.
    """
    if (found := identify(state)) != HART_TRANSFORMER:
        raise CheckpointError(
            f"{state.path} seems to be {found}, not {HART_TRANSFORMER}; choose another file"
        )
    if variant := [name for name in state if UNKNOWN.fullmatch(name)]:
        raise CheckpointError(
            f"{state.path} is of a variant of HART that is not known here: it has {listing(variant)}"
        )
    tensors = state.renamed({name: name for name in state if not UNUSED.fullmatch(name)})
    with reading(state.path, "and the config.json beside it do not fit together; get both from one place"):
        return tensors, _config(state, settings)


def _number(settings: Settings, name: str, default: int, most: int) -> int:
    """A number from 1 on that config.json tells.

    Raises:
        ValueError: it is none, or larger than any that makes sense.
    """
    number = int(settings.get(name) or default)
    if not 1 <= number <= most:
        raise ValueError(f"{name} is {number}")
    return number


def _config(state: Tensors, settings: Settings) -> HartConfig:
    shapes = state.shapes
    length, sides = _sequence(state, settings)
    width = shapes["word_embed.weight"][0]
    scales = shapes.get("blocks.0.attn.scale_mul_1H11")
    heads = _number(settings, "num_heads", max(scales) if scales else max(1, width // HEAD_DIM), width)
    if width % heads:
        raise CheckpointError(
            f"{state.path} is {width} numbers wide, which {heads} heads cannot share; put its own "
            "config.json beside it"
        )
    return HartConfig(
        depth=count_of(shapes, r"blocks\.(\d+)\."),
        width=width,
        heads=heads,
        hidden=shapes["blocks.0.ffn.gate_proj.weight"][0],
        codes=shapes["head.weight"][0],
        channels=shapes["word_embed.weight"][1],
        text_width=shapes["context_embed.weight"][1],
        text_length=length,
        sides=sides,
        diffusion_width=shapes["diffloss.net.input_proj.weight"][0],
        diffusion_depth=count_of(shapes, r"diffloss\.net\.res_blocks\.(\d+)\."),
        diffusion_steps=_number(settings, "num_sampling_steps", STEPS, 1000),
        eps=float(settings.get("norm_eps") or 1e-6),
        context_norm="context_norm.weight" in shapes,
        cosine=scales is not None,
    )


def _sequence(state: Tensors, settings: Settings) -> tuple[int, tuple[int, ...]]:
    """Slots of text and sides of the scales: from config.json, or else from the level of every position in
    the file.
    """
    told = settings.get("patch_nums")
    sides = tuple(int(n) for n in (told.split("_") if isinstance(told, str) else told)) if told else None
    length = int(settings["context_token"]) if settings.get("context_token") else None
    if not (sides or (1,))[-1] <= SIDE or not (length or 1) <= SLOTS:
        raise ValueError(f"scales {sides} or {length} text tokens")
    if "lvl_1L" in state.shapes and not (levels := state["lvl_1L"]).is_meta:
        if levels.min() < 0 or levels.max() > SIDE:
            raise ValueError("impossible levels")
        counts = torch.bincount(levels.flatten().long()).tolist()
        found = counts[0], (1, *(round(n**0.5) for n in counts[1:]))
        if (length or found[0], sides or found[1]) != found:
            raise CheckpointError(
                f"{state.path} was made for {found[0]} text tokens and scales {found[1]}, its config.json "
                f"says {length or found[0]} and {sides or found[1]}; put its own config.json beside it"
            )
        return found
    if (
        not (sides and length)
        or min(*sides, length) < 1
        or sides[0] != 1
        or list(sides) != sorted(set(sides))
    ):
        raise CheckpointError(
            f"the config.json beside {state.path} does not say patch_nums and context_token; download it "
            "again"
        )
    return length, sides


def open_tokenizer(state: Tensors) -> tuple[Tensors, VAEConfig]:
    """Tensors under the names of Tokenizer (no discriminator), and its sizes; reads no values.

    Raises:
        CheckpointError: not such a tokenizer.
    """
    if (found := identify(state)) != HART_TOKENIZER:
        raise CheckpointError(f"{state.path} seems to be {found}, not {HART_TOKENIZER}; choose another file")
    used = [name.removeprefix("vae.") for name in state if name.startswith("vae.")]
    used = [name for name in used if not CODEC_UNUSED.fullmatch(name)]
    codec = [name for name in used if name.startswith(("encoder.", "decoder."))]
    names = {name: name for name in used if name not in codec} | plain_names(codec)
    tensors = state.renamed({name: f"vae.{held}" for name, held in names.items()})
    with reading(state.path, f"seems to be {HART_TOKENIZER}, but only a part of one; get the whole file"):
        return tensors, VAEConfig.from_shapes(tensors.shapes)


def hart_from_state(
    state: Mapping[str, Tensor],
    settings: Settings,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    layers: Layers = TORCH_LAYERS,
) -> HartTransformer:
    """Build the transformer.

    Args:
        dtype: of the matrices in blocks and residual diffusion; everything else is float32.
        layers: how its weights are stored, and classes of its layers.

    Raises:
        CheckpointError: see `open_hart` and `tensors.load_module`.
    """
    tensors, config = open_hart(Tensors.of(state), settings)

    def dtype_of(name: str) -> torch.dtype:
        return layers.dtype_of(name, tensors.shapes[name], dtype) if is_large(name) else torch.float32

    operations = layers.pick(layers.stored or dtype, dtype, bool(quantized_layers(tensors)))
    return load_module(partial(HartTransformer, config), tensors, dtype_of, device, operations)


def is_large(name: str) -> bool:
    """Whether a parameter is one of the matrices, or their biases, that may be in a lower precision."""
    return name.startswith(("blocks.", "diffloss.")) and not any(
        part in name for part in ("ln_wo_grad", "in_ln")
    )


def tokenizer_from_state(
    state: Mapping[str, Tensor],
    settings: Settings,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    layers: Layers = TORCH_LAYERS,
) -> Tokenizer:
    """Build the tokenizer; the quantiser is float32, the codec `layers.codec` or `dtype`.  Errors: see
    `open_tokenizer`, `load_module`.
    """
    tensors, config = open_tokenizer(Tensors.of(state))
    dtype = layers.codec or dtype

    def make(operations: Any) -> Tokenizer:
        return Tokenizer(config, _quantizer(tensors.shapes, settings), operations)

    def dtype_of(name: str) -> torch.dtype:
        return torch.float32 if name.startswith("quantize.") else dtype

    return load_module(make, dequantized(tensors), dtype_of, device, layers.pick(dtype, dtype, False))


def _quantizer(shapes: Mapping[str, tuple[int, ...]], settings: Settings) -> Quantizer:
    codes, channels = shapes["quantize.embedding.weight"]
    convolutions = count_of(shapes, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    strength = abs(float(settings.get("quant_resi") or 0.5))
    return Quantizer(codes, channels, convolutions, strength, bool(settings.get("using_znorm")))


def load_hart(
    transformer: Path, tokenizer: Path, device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32, layers: Layers = TORCH_LAYERS,
) -> HartBackbone:
    """Load a transformer (a file with config.json beside it) and its tokenizer (a file or folder).

    Args:
        dtype: of the large matrices and of the codec.
        layers: how weights are stored, and classes of the layers.

    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or the two do not belong together.
    """
    weights, codec = open_tensors(transformer), open_tensors(tokenizer)
    settings = read_settings(transformer.parent)
    codec_settings = read_settings(tokenizer if tokenizer.is_dir() else tokenizer.parent)
    named, config = open_hart(weights, settings)
    codec_named, _ = open_tokenizer(codec)
    book = codec_named.shapes.get("quantize.embedding.weight")
    if book != (config.codes, config.channels):
        raise CheckpointError(
            f"{tokenizer} holds a codebook of size {book} and {transformer.name} draws from "
            f"{(config.codes, config.channels)}; use the tokenizer that came with the model"
        )
    return HartBackbone(
        hart_from_state(weights, settings, device, dtype, layers),
        tokenizer_from_state(codec, codec_settings, device, dtype, layers),
        weights_id(named, codec_named),
    )
