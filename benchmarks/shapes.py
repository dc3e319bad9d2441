"""Models to measure: the embedded one, and random weights in the shapes of the released ones.

The values of the weights do not change what a picture costs: token counts are fixed by the method, and
nothing branches on a value.  Facts: docs/infinity.md, sections 1 and 7.2; docs/hart.md, sections 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from comfy_moss.model.backbone import HART, PAPER, Backbone, PicturedText, PositionedText, Published, Text
from comfy_moss.model.hart import HartBackbone, HartConfig, HartTransformer
from comfy_moss.model.hart_checkpoint import is_large
from comfy_moss.model.infinity import InfinityBackbone, InfinityConfig, InfinityTransformer
from comfy_moss.model.layers import join_biases
from comfy_moss.model.library import HART_CFG, find_model
from comfy_moss.model.nsarm import HEADS, SIDE, EnlargeBackbone, EnlargeTransformer, MapConfig
from comfy_moss.model.quantize import Quantizer
from comfy_moss.model.sampling import Guidance, Ramp, Sampling
from comfy_moss.model.schedule import Grid, Schedule, make_schedule, square_schedule
from comfy_moss.model.text import PromptEncoder, TextEncoder, empty_qwen, with_positions
from comfy_moss.model.vae import VAE, Tokenizer, VAEConfig
from comfy_moss.model.varedit import EditBackbone
from comfy_moss.pipeline.draft import Recipe

NANO = "nano"  # the embedded model, with its own weights
PROMPT = "a green circle on a plain grey background"  # for the embedded model
PROMPT_TOKENS = 20  # of a random prompt: a sentence, end token included
SEED = 0
SMALL = make_schedule(1.5, "0.06M")
SMALL_TEXT = 64  # numbers in a row of text features
SMALL_CODEC = VAEConfig(32, (1, 1), 1, 1, 8)
RELEASED_MAPS = MapConfig(14, (64, 128), tuple(HEADS), (4, 6, 8, 10, 12, 14, 16), tuple(HEADS.values()))
SMALL_MAPS = MapConfig(8, (8, 8), (16,) * 7, (1,) * 7, (2,) * 7)
CPU = torch.device("cpu")


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

    def prompt(self, text: Text, backbone: Backbone, schedule: Schedule) -> Text:
        """All that a picture is drawn from: the text, and a random picture beside it where one is needed."""

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        """Two layers of two heads, float32, on the CPU, and a recipe for it: for the checks before a
        measurement."""


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
SMALL_T5 = TextShape(d_model=256, d_ff=512, num_layers=2, num_heads=4)


@dataclass(frozen=True)
class Shape:
    """Sizes of an Infinity model and all that belongs to it; filled at random."""

    transformer: InfinityConfig
    codec: VAEConfig
    text: TextShape = FLAN_T5_XL
    published = PAPER
    guidance = Guidance()
    sampling = Sampling()
    small_schedule = SMALL
    small_codec = SMALL_CODEC

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        return make_schedule(height_over_width, pixels)

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        return random_backbone(self.transformer, self.codec, device, dtype, name)

    def build_text(self, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
        from transformers import T5Config, T5EncoderModel  # slow to import

        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**vars(self.text), feed_forward_proj="gated-gelu"))
        model = fill_at_random(model.to(dtype), device, SEED)
        model.set_input_embeddings(model.shared)  # one table, not two
        ids = random_prompt(self.text.vocab_size)
        encoder = TextEncoder(model, lambda _prompt: ids, self.text.d_model)
        return lambda: encoder.features(ids)

    def prompt(self, text: Text, backbone: Backbone, schedule: Schedule) -> Text:
        return text

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        width, schedule = 2 * head_dim, self.small_schedule
        config = InfinityConfig(2, width, 2, 2 * width, 8, SMALL_TEXT, 2, 32, 15)
        shape = replace(self, transformer=config, codec=self.small_codec)
        model = shape.build(CPU, torch.float32, "limits")
        text = torch.randn(9, SMALL_TEXT, generator=torch.Generator().manual_seed(1))
        text = self.prompt(text, model, schedule)
        return model, Recipe((text,), None, (7,), schedule, self.guidance, self.sampling)


@dataclass(frozen=True)
class EditShape(Shape):
    """The same sizes, for changing a picture as an instruction says; see docs/fine-tunes.md, section 1."""

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        plain = super().build(device, dtype, name)
        return EditBackbone(plain.transformer, plain.vae, name)

    def prompt(self, text: Text, backbone: Backbone, schedule: Schedule) -> Text:
        return PicturedText(text, _random_features(backbone, backbone.map_grid(schedule.grids[-1])))


@dataclass(frozen=True)
class EnlargeShape(Shape):
    """The same, for enlarging a picture; see docs/fine-tunes.md, section 2."""

    maps: MapConfig = RELEASED_MAPS
    guidance = Guidance(1.0)
    sampling = Sampling(0.5)
    small_schedule = make_schedule(1.0, "0.25M")  # one with scales that are not given
    small_codec = VAEConfig(32, (1, 1), 1, 1, 2)  # a token is 2 x 2 cells, as the maps have them

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        if height_over_width != 1 or pixels not in ("0.25M", "1M"):
            raise ValueError(
                "this shape draws squares only; leave --aspect at 1:1, and --pixels at 1M or 0.25M"
            )
        return make_schedule(height_over_width, pixels)

    def build(self, device: torch.device, dtype: torch.dtype, name: str) -> Backbone:
        maps = replace(self.maps, channels=self.codec.channels)
        with torch.device("meta"):
            model, vae = EnlargeTransformer(self.transformer, maps), VAE(self.codec).to(dtype)
        model.blocks.to(dtype)
        parts = fill_at_random(model, device, SEED), fill_at_random(vae, device, SEED + 1)
        return EnlargeBackbone(*parts, name)

    def prompt(self, text: Text, backbone: Backbone, schedule: Schedule) -> Text:
        return PicturedText(text, _random_features(backbone, (SIDE, SIDE)))

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        return super(EnlargeShape, replace(self, maps=SMALL_MAPS)).small(head_dim)


def _random_features(backbone: Backbone, grid: Grid) -> Tensor:
    """(c, h, w) of a picture's size."""
    return torch.randn(backbone.channels, *grid, generator=torch.Generator().manual_seed(SEED))


SYSTEM_TOKENS = 139  # of the released system prompt
QWEN = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
    "num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}


@dataclass(frozen=True)
class HartShape:
    """Sizes of a HART model and all that belongs to it; see `Kind`."""

    transformer: HartConfig
    codec: VAEConfig
    text: dict[str, object]
    published = HART
    guidance = Guidance(Ramp(HART_CFG))
    sampling = Sampling(1.0, 0, 0.0)

    def schedule(self, height_over_width: float, pixels: str) -> Schedule:
        if height_over_width != 1 or pixels != "1M":
            raise ValueError(
                "this shape draws 1024 x 1024 pictures only; leave --aspect at 1:1 and --pixels at 1M"
            )
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

    def prompt(self, text: Text, backbone: Backbone, schedule: Schedule) -> Text:
        return text

    def small(self, head_dim: int) -> tuple[Backbone, Recipe]:
        width, sides = 2 * head_dim, (1, 2, 3, 4, 6, 8)
        config = HartConfig(2, width, 2, 2 * width, 64, 8, 16, 6, sides, 32, 1)
        model = random_hart(config, SMALL_CODEC, CPU, torch.float32, "limits")
        # single codes are equal or not, which rounding cannot blur
        model = replace(model, smooth=False, residual=False)
        generator = torch.Generator().manual_seed(1)
        positions = torch.arange(config.text_length).clamp_max(PROMPT_TOKENS).float()
        features = torch.randn(config.text_length, config.text_width, generator=generator)
        text = PositionedText(features, positions)
        return model, Recipe((text,), None, (7,), square_schedule(sides), self.guidance, self.sampling)


HART_07B = HartShape(
    HartConfig(
        depth=24, width=1536, heads=24, hidden=4096, codes=4096, channels=32, text_width=1536,
        text_length=300,
        sides=(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64), diffusion_width=1024, diffusion_depth=6,
    ),
    VAEConfig(160, (1, 1, 2, 2, 4), 2, 3, 32),
    QWEN,
)
INFINITY_125M = InfinityConfig(12, 768, 8, 3072, 16, 2048, 16, 512, 15)
INFINITY_SMALL = InfinityConfig(8, 256, 4, 1024, 16, 256, 8, 512, 15)
INFINITY_8B = InfinityConfig(40, 3584, 28, 14336, 56, 2048, 16, 512, 15)
CODEC_8B = VAEConfig(128, (1, 2, 4, 4), 2, 3, 14)
SHAPES: dict[str, Kind] = {
    "125m": Shape(INFINITY_125M, VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 16)),
    "2b": Shape(
        InfinityConfig(32, 2048, 16, 8192, 32, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 32)
    ),
    "8b": Shape(INFINITY_8B, CODEC_8B),
    "hart-0.7b": HART_07B,
    "varedit-8b": EditShape(INFINITY_8B, CODEC_8B),
    "nsarm-8b": EnlargeShape(INFINITY_8B, CODEC_8B),
    # of no release: of a size for a CPU
    "varedit-small": EditShape(INFINITY_SMALL, VAEConfig(32, (1, 2, 2, 2), 1, 1, 4), SMALL_T5),
    "nsarm-small": EnlargeShape(INFINITY_SMALL, VAEConfig(32, (1, 2, 2, 2), 1, 1, 4), SMALL_T5, SMALL_MAPS),
}


def kind_of(shape: str) -> Kind:
    """The sizes of that name; for the embedded model those of another Infinity model, which share all but the
    weights."""
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
    """Transformer and codec of a shape; dtype is that of the transformer's blocks and of the codec, as
    everywhere."""
    return find_model(NANO, ()).load(
        device, dtype
    ) if shape == NANO else SHAPES[shape].build(device, dtype, f"random {shape}")


def random_backbone(
    transformer: InfinityConfig, codec: VAEConfig, device: torch.device, dtype: torch.dtype, name: str
) -> InfinityBackbone:
    """An Infinity model of these sizes with random weights, the same ones for every call on one kind of
    device."""
    with torch.device("meta"):
        model, vae = InfinityTransformer(transformer), VAE(codec)
    model.blocks.to(dtype)
    return InfinityBackbone(
        fill_at_random(model, device, SEED), fill_at_random(vae.to(dtype), device, SEED + 1), name
    )


def default_pixels(shape: str) -> str:
    """The embedded model's own size, and for the released shapes the paper's one megapixel."""
    return "0.25M" if shape == NANO else "1M"


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


def fill_at_random(model: nn.Module, device: torch.device, seed: int) -> nn.Module:
    """Make the parameters of a model from the meta device on a real one, and fill them so that signals keep
    their size."""
    model.to_empty(device=device).requires_grad_(False).eval()
    if device.type == "meta":
        return model  # for arithmetic: there are no values
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and name.endswith("weight")
        spread = 1 / math.sqrt(parameter[0].numel()) if matrix else 0.3
        parameter.normal_(_centre(name, parameter), spread, generator=generator)
    join_biases(model)
    return model


def _centre(name: str, parameter: Tensor) -> float:
    """Norms multiply by about 1; heads attend about as sharply as trained ones, not evenly to everything."""
    if name.endswith("scale_mul_1H11"):
        return 3.0
    return float(parameter.dim() == 1 and name.endswith("weight"))


def random_prompt(vocabulary: int) -> list[int]:
    """Token ids below `vocabulary`."""
    return torch.randint(vocabulary, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(SEED)).tolist()
