"""Models to measure: the embedded one, and random weights in the shapes of the released ones, made on the device itself.

The values of the weights do not change what a picture costs: token counts are fixed by the method, and nothing branches on
a value.  Facts: Infinity specification, sections 1 and 7.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..model.checkpoint import load_infinity
from ..model.infinity import InfinityConfig, InfinityTransformer
from ..model.infinity_backbone import InfinityBackbone
from ..model.library import find_model
from ..model.text import TextEncoder
from ..model.vae import VAE, VAEConfig

PROMPT = "a green circle on a plain grey background"  # for the embedded model
PROMPT_TOKENS = 20  # of a random prompt: a sentence, end token included
SEED = 0


@dataclass(frozen=True)
class TextShape:
    """Sizes of a T5 encoder with gated GELU, as transformers' T5Config names them."""

    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    d_kv: int = 64
    vocab_size: int = 32128


FLAN_T5_XL = TextShape(d_model=2048, d_ff=5120, num_layers=24, num_heads=32)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and all that belongs to it."""

    transformer: InfinityConfig
    codec: VAEConfig
    text: TextShape = FLAN_T5_XL


SHAPES = {
    "125m": Shape(InfinityConfig(12, 768, 8, 3072, 16, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 16)),
    "2b": Shape(InfinityConfig(32, 2048, 16, 8192, 32, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 32)),
    "8b": Shape(InfinityConfig(40, 3584, 28, 14336, 56, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4), 2, 3, 14)),
}
NANO = "nano"  # the embedded model, with its own weights


def build_text(shape: str, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A call that encodes one prompt, as `TextEncoder.encode` does: features (L, Ct) float32 on the CPU.

    Raises:
        CheckpointError: transformers is not installed.
    """
    if shape == NANO:
        encoder = TextEncoder.load(find_model(NANO, ()).text, device, dtype)
        return lambda: encoder.encode([PROMPT])[0]
    from transformers import T5Config, T5EncoderModel  # slow to import, so only here

    sizes = SHAPES[shape].text
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**vars(sizes), feed_forward_proj="gated-gelu"))
    model = fill_at_random(model.to(dtype), device, SEED)
    model.set_input_embeddings(model.shared)  # one table, not two
    ids = torch.randint(sizes.vocab_size, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(SEED)).tolist()
    encoder = TextEncoder(model, lambda _prompt: ids, sizes.d_model)
    return lambda: encoder.features(ids)


def build_backbone(shape: str, device: torch.device, dtype: torch.dtype) -> InfinityBackbone:
    """Transformer and codec of a shape; dtype is that of the transformer's blocks and of the codec, as everywhere."""
    if shape == NANO:
        files = find_model(NANO, ())
        return load_infinity(files.transformer, files.vae, None, device, dtype)
    sizes = SHAPES[shape]
    return random_backbone(sizes.transformer, sizes.codec, device, dtype, f"random {shape}")


def random_backbone(
    transformer: InfinityConfig, codec: VAEConfig, device: torch.device, dtype: torch.dtype, name: str
) -> InfinityBackbone:
    """A model of these sizes with random weights, the same ones for every call on one kind of device."""
    with torch.device("meta"):
        model, vae = InfinityTransformer(transformer), VAE(codec)
    model.blocks.to(dtype)
    return InfinityBackbone(fill_at_random(model, device, SEED), fill_at_random(vae.to(dtype), device, SEED + 1), name)


def fill_at_random(model: nn.Module, device: torch.device, seed: int) -> nn.Module:
    """Make the parameters of a model from the meta device on a real one, and fill them so that signals keep their size."""
    model.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and name.endswith("weight")
        spread = 1 / math.sqrt(parameter[0].numel()) if matrix else 0.3
        parameter.normal_(_centre(name, parameter), spread, generator=generator)
    return model


def _centre(name: str, parameter: Tensor) -> float:
    """Norms multiply by about 1; heads attend about as sharply as trained ones, not evenly to everything."""
    if name.endswith("scale_mul_1H11"):
        return 3.0
    return float(parameter.dim() == 1 and name.endswith("weight"))
