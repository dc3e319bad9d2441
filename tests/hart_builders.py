"""Tiny HART models with random weights in which every term of the architecture matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from builders import WORDS, randomise
from safetensors.torch import save_file
from torch import Tensor

from comfy_moss.model.backbone import PositionedText
from comfy_moss.model.hart import HartBackbone, HartConfig, HartTransformer
from comfy_moss.model.quantize import Quantizer
from comfy_moss.model.schedule import square_schedule
from comfy_moss.model.vae import Tokenizer, VAEConfig

TINY = HartConfig(
    depth=2, width=32, heads=2, hidden=64, codes=48, channels=8, text_width=16, text_length=6,
    sides=(1, 2, 3, 4, 6, 8), diffusion_width=16, diffusion_depth=1, diffusion_steps=4,
)
SCHEDULE = square_schedule(TINY.sides)


def tiny_hart(seed: int = 0, **sizes: Any) -> HartTransformer:
    """Two narrow blocks; `sizes` are fields of HartConfig."""
    model = HartTransformer(HartConfig(**{**TINY.__dict__, **sizes}))
    randomise(model, seed)
    for parameter in model.head_nm["ada_lin"].parameters():
        parameter.data *= 0.2  # so that tokens differ by what they are more than all of them by the prompt
    return model


def tiny_tokenizer(codes: int = TINY.codes, channels: int = TINY.channels, seed: int = 1) -> Tokenizer:
    """A codec of stride 2, and its quantiser."""
    model = Tokenizer(VAEConfig(32, (1, 1), 1, 1, channels), Quantizer(codes, channels))
    randomise(model, seed)
    model.quantize.embedding.weight.data *= 3  # codes of unit size, about
    return model


def tiny_hart_backbone(seed: int = 0, **sizes: Any) -> HartBackbone:
    """Transformer and tokenizer that fit each other."""
    transformer = tiny_hart(seed, **sizes)
    config = transformer.config
    return HartBackbone(
        transformer, tiny_tokenizer(config.codes, config.channels, seed + 1), f"tiny-hart-{seed}"
    )


def prompt(number: int, tokens: int = 4, config: HartConfig = TINY) -> PositionedText:
    """Features of a prompt: its tokens, and behind them padding whose positions stand still."""
    generator = torch.Generator().manual_seed(100 + number)
    features = torch.randn(config.text_length, config.text_width, generator=generator)
    return PositionedText(features, torch.arange(config.text_length).clamp_max(tokens - 1).float())


def released_hart_state(transformer: HartTransformer) -> dict[str, Tensor]:
    """The weights under the names of released files, with the buffers that drawing ignores."""
    config = transformer.config
    counts = [config.text_length, *(side * side for side in config.sides[1:])]
    levels = torch.arange(len(config.sides)).repeat_interleave(torch.tensor(counts))
    state = {"lvl_1L": levels[None], "attn_bias_for_masking": torch.zeros(1, 1, len(levels), len(levels))}
    state |= {f"blocks.{n}.attn.zero_k_bias": torch.zeros(config.width) for n in range(config.depth)}
    return state | {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


def released_tokenizer_state(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The weights as released: without the codec's inner name levels, and with a discriminator that drawing
    ignores.
    """
    state = {"disc.conv.weight": torch.ones(2, 2)}
    for name, tensor in tokenizer.state_dict().items():
        plain = name.replace(".conv.conv.", ".conv.") if ".conv.conv." in name else name
        if plain == name and "sample" not in name and name.startswith(("encoder.", "decoder.")):
            plain = (
                name.replace(".conv.", ".").replace("norm1.norm.", "norm1.").replace("norm2.norm.", "norm2.")
            )
            plain = plain.replace("norm_out.norm.", "norm_out.")
        state[f"vae.{plain}"] = tensor.clone()
    return state


def tiny_qwen_dir(path: Path, width: int = TINY.text_width, seed: int = 2) -> Path:
    """A Qwen2 decoder of one layer and a tokenizer of one token a word, padding `<|endoftext|>`, as published
    on the hub.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers
    from transformers import Qwen2Config, Qwen2Model

    vocab = {word: number for number, word in enumerate([*WORDS, "<unk>", "<|endoftext|>"])}
    tokenizer = Fast(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = Qwen2Config(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )
    model = Qwen2Model(config)
    randomise(model, seed)
    save_file(
        {f"model.{name}": tensor for name, tensor in model.state_dict().items()}, path / "model.safetensors"
    )
    settings = {"model_type": "qwen2", "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    sizes = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    )
    settings |= {name: getattr(config, name) for name in sizes}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": "<|endoftext|>", "padding_side": "right"})
    )
    return path


def hart_settings(config: HartConfig) -> dict[str, Any]:
    """config.json of llm/, with the fields that matter."""
    return {
        "model_type": "hart_transformer_t2i", "patch_nums": list(config.sides), "num_heads": config.heads,
        "context_token": config.text_length, "num_sampling_steps": str(config.diffusion_steps),
        "norm_eps": config.eps,
    }


def write_hart_model(path: Path, seed: int = 0, text: bool = True) -> Path:
    """A complete tiny model in the released layout, with a system prompt, and the text model in text/."""
    transformer, tokenizer = tiny_hart(seed), tiny_tokenizer(seed=seed + 1)
    for name in ("llm", "tokenizer"):
        (path / name).mkdir(parents=True, exist_ok=True)
    (path / "llm" / "config.json").write_text(json.dumps(hart_settings(transformer.config)))
    torch.save(released_hart_state(transformer), path / "llm" / "ema_model.bin")
    (path / "tokenizer" / "config.json").write_text(json.dumps({"model_type": "hart_autoencoder_with_disc"}))
    torch.save(released_tokenizer_state(tokenizer), path / "tokenizer" / "pytorch_model.bin")
    (path / "system_prompt.txt").write_text("the photo of a star\n")
    if text:
        tiny_qwen_dir(path / "text")
    return path
