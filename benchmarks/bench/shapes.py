"""Models to measure: the embedded one, and random weights in the shapes of the released ones, made on the device itself.

The values of the weights do not change what a picture costs: token counts are fixed by the method, and nothing branches on
a value.  Facts: docs/infinity.md, sections 1 and 7.2; docs/hart.md, sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from comfy_moss.model.backbone import PAPER, Backbone, Published
from comfy_moss.model.infinity import InfinityConfig, InfinityTransformer
from comfy_moss.model.infinity_backbone import InfinityBackbone
from comfy_moss.model.library import find_model
from comfy_moss.model.sampling import Guidance, Sampling
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.model.text import TextEncoder
from comfy_moss.model.vae import VAE, VAEConfig
from comfy_moss.pipeline.draft import Recipe

from .hart_shape import HART_07B
from .random_weights import PROMPT_TOKENS, SEED, fill_at_random, random_prompt

__all__ = [
    "NANO", "PROMPT_TOKENS", "SHAPES", "Kind", "Shape", "TextShape", "build_backbone", "build_text", "kind_of", "random_backbone",
]  # fmt: skip

NANO = "nano"  # the embedded model, with its own weights
PROMPT = "a green circle on a plain grey background"  # for the embedded model
SMALL = make_schedule(1.5, "0.06M")
SMALL_TEXT = 64  # numbers in a row of text features


class Kind(Protocol):
    """Sizes of a model of some family, and how it is drawn with."""

    published: Published  # settings of the methods as printed for this family
    guidance: Guidance  # to draw with
    sampling: Sampling

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        """The scales of a picture; raises ValueError where there are none of this shape."""

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        """A model with random weights; dtype is that of the large matrices and of the codec."""

    def build_text(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        """A call that encodes one prompt: features (L, Ct) float32 on the CPU."""

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        """Two layers of two heads, float32, on the CPU, and a recipe for it: for the checks before a measurement."""


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
    """Sizes of an Infinity model and all that belongs to it; filled at random."""

    transformer: InfinityConfig
    codec: VAEConfig
    text: TextShape = FLAN_T5_XL
    published = PAPER
    guidance = Guidance()
    sampling = Sampling()

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        return make_schedule(height_over_width, pixels)

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        return random_backbone(self.transformer, self.codec, device, dtype, name)

    def build_text(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        from transformers import T5Config, T5EncoderModel  # slow to import, so only here

        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**vars(self.text), feed_forward_proj="gated-gelu"))
        model = fill_at_random(model.to(dtype), device, SEED)
        model.set_input_embeddings(model.shared)  # one table, not two
        ids = random_prompt(self.text.vocab_size)
        encoder = TextEncoder(model, lambda _prompt: ids, self.text.d_model)
        return lambda: encoder.features(ids)

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        width = 2 * head_dim
        config = InfinityConfig(2, width, 2, 2 * width, 8, SMALL_TEXT, 2, 32, 15)
        model = random_backbone(config, VAEConfig(32, (1, 1), 1, 1, 8), torch.device("cpu"), torch.float32, "limits")
        text = torch.randn(9, SMALL_TEXT, generator=torch.Generator().manual_seed(1))
        return model, Recipe((text,), None, (7,), SMALL)


SHAPES: dict[str, Kind] = {
    "125m": Shape(InfinityConfig(12, 768, 8, 3072, 16, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 16)),
    "2b": Shape(InfinityConfig(32, 2048, 16, 8192, 32, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 32)),
    "8b": Shape(InfinityConfig(40, 3584, 28, 14336, 56, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4), 2, 3, 14)),
    "hart-0.7b": HART_07B,
}


def kind_of(shape: str) -> Kind:
    """The sizes of that name; for the embedded model those of another Infinity model, which share all but the weights."""
    return SHAPES.get(shape, SHAPES["125m"])


def build_text(shape: str, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A call that encodes one prompt, as `PromptReader.encode` does: features (L, Ct) float32 on the CPU.

    Raises:
        CheckpointError: transformers is not installed.
    """
    if shape == NANO:
        encoder = find_model(NANO, ()).load_text(device, dtype)
        return lambda: encoder.encode([PROMPT])[0]
    return SHAPES[shape].build_text(device, dtype)


def build_backbone(shape: str, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Transformer and codec of a shape; dtype is that of the transformer's blocks and of the codec, as everywhere."""
    return find_model(NANO, ()).load(device, dtype) if shape == NANO else SHAPES[shape].build(device, dtype, f"random {shape}")


def random_backbone(
    transformer: InfinityConfig, codec: VAEConfig, device: torch.device, dtype: torch.dtype, name: str
) -> InfinityBackbone:
    """An Infinity model of these sizes with random weights, the same ones for every call on one kind of device."""
    with torch.device("meta"):
        model, vae = InfinityTransformer(transformer), VAE(codec)
    model.blocks.to(dtype)
    return InfinityBackbone(fill_at_random(model, device, SEED), fill_at_random(vae.to(dtype), device, SEED + 1), name)
