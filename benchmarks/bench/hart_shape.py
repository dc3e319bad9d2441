"""HART to measure: random weights in the released shape.  Facts: docs/hart.md, sections 1 and 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comfy_moss.model.backbone import HART, Backbone, PositionedText
from comfy_moss.model.hart import HartConfig, HartTransformer
from comfy_moss.model.hart_backbone import HartBackbone
from comfy_moss.model.hart_checkpoint import is_large
from comfy_moss.model.library import HART_CFG
from comfy_moss.model.quantize import Quantizer
from comfy_moss.model.sampling import Guidance, Ramp, Sampling
from comfy_moss.model.schedule import Schedule, square_schedule
from comfy_moss.model.text import PromptEncoder, empty_qwen, with_positions
from comfy_moss.model.vae import Tokenizer, VAEConfig
from comfy_moss.pipeline.draft import Recipe

from .random_weights import PROMPT_TOKENS, SEED, fill_at_random, random_prompt

SYSTEM_TOKENS = 139  # of the released system prompt
QWEN = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}  # fmt: skip


@dataclass(frozen=True)
class HartShape:
    """Sizes of a HART model and all that belongs to it; see `shapes.Kind`."""

    transformer: HartConfig
    codec: VAEConfig
    text: dict[str, object]
    published = HART
    guidance = Guidance(Ramp(HART_CFG))
    sampling = Sampling(1.0, 0, 0.0)

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        if height_over_width != 1 or pixels != "1M":
            raise ValueError("this shape draws 1024 x 1024 pictures only; leave --aspect at 1:1 and --pixels at 1M")
        return square_schedule(self.transformer.sides)

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        return random_hart(self.transformer, self.codec, device, dtype, name)

    def build_text(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        model = with_positions(fill_at_random(empty_qwen(self.text).to(dtype), device, SEED), device)
        vocabulary = int(self.text["vocab_size"]) - 1
        system = (random_prompt(vocabulary) * SYSTEM_TOKENS)[:SYSTEM_TOKENS]
        encoder = PromptEncoder(model, lambda _prompt: [], system, vocabulary, self.transformer.text_length)
        ids = random_prompt(vocabulary)[: self.transformer.text_length]
        return lambda: encoder.features(ids)

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        width, sides = 2 * head_dim, (1, 2, 3, 4, 6, 8)
        config = HartConfig(2, width, 2, 2 * width, 64, 8, 16, 6, sides, 32, 1)
        model = random_hart(config, VAEConfig(32, (1, 1), 1, 1, 8), torch.device("cpu"), torch.float32, "limits")
        model = replace(model, smooth=False, residual=False)  # single codes are equal or not, which rounding cannot blur
        generator = torch.Generator().manual_seed(1)
        positions = torch.arange(config.text_length).clamp_max(PROMPT_TOKENS).float()
        features = torch.randn(config.text_length, config.text_width, generator=generator)
        text = PositionedText(features, positions)
        return model, Recipe((text,), None, (7,), square_schedule(sides), self.guidance, self.sampling)


def random_hart(
    transformer: HartConfig, codec: VAEConfig, device: torch.device, dtype: torch.dtype, name: str
) -> HartBackbone:
    """A HART model of these sizes with random weights, the same ones for every call on one kind of device."""
    with torch.device("meta"):
        model = HartTransformer(transformer)
        vae = Tokenizer(codec, Quantizer(transformer.codes, transformer.channels)).to(dtype)
    vae.quantize.float()
    for parameter_name, parameter in model.named_parameters():
        if is_large(parameter_name):
            parameter.data = parameter.data.to(dtype)
    return HartBackbone(fill_at_random(model, device, SEED), fill_at_random(vae, device, SEED + 1), name)


HART_07B = HartShape(
    HartConfig(
        depth=24, width=1536, heads=24, hidden=4096, codes=4096, channels=32, text_width=1536, text_length=300,
        sides=(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), diffusion_width=1024, diffusion_depth=6,
    ),
    VAEConfig(160, (1, 1, 2, 2, 4), 2, 3, 32),
    QWEN,
)  # fmt: skip
