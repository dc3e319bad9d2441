"""Tiny models with random weights in which every term of the architecture matters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
from fakehost import FakeHost, installed
from safetensors.torch import save_file
from torch import Tensor, nn

from comfy_moss.model.infinity import InfinityBackbone, InfinityConfig, InfinityTransformer
from comfy_moss.model.layers import join_biases
from comfy_moss.model.vae import VAE, VAEConfig

TINY = InfinityConfig(
    depth=2, width=32, heads=2, hidden=64, bits=8, text_width=32, text_heads=2, text_length=32, levels=15
)
TINY_FILE = "tiny/transformer.safetensors"  # what the loader's menu calls the model of `with_tiny`
WORDS = (
    "a an the of and red green blue yellow circle square star cat dog left right above two three photo"
).split()


def randomise(module: nn.Module, seed: int) -> None:
    """Fill every parameter: matrices keep the signal's size, vectors stay near what an untrained model has,
    but not on it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() in (2, 4) and name.endswith("weight") and "lvl_embed" not in name:
            noise = noise / math.sqrt(parameter[0].numel())
        elif "norm" in name and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise = 0.3 * noise
        parameter.data = noise
    module.requires_grad_(False).eval()


def tiny_transformer(seed: int = 0, **sizes: int) -> InfinityTransformer:
    """A transformer of two narrow blocks; `sizes` are fields of InfinityConfig."""
    model = InfinityTransformer(InfinityConfig(**{**TINY.__dict__, **sizes}))
    randomise(model, seed)
    for block in model.blocks:
        block.sa.scale_mul_1H11.data += math.log(4.0)
        block.sa.scale_mul_1H11.data[0, 0] = 5.0  # above ln 100, so the clamp acts
    model.head.weight.data *= 3  # logits of trained size
    return model


def tiny_vae(
    channels: int = 8, width: int = 32, mult: tuple[int, ...] = (1, 1), blocks: int = 1, seed: int = 1
) -> VAE:
    """A codec of stride 2^(len(mult) - 1); `width` must be a multiple of 32 (or of 24)."""
    model = VAE(
        VAEConfig(width=width, mult=mult, encoder_blocks=blocks, decoder_blocks=blocks, channels=channels)
    )
    randomise(model, seed)
    return model


def tiny_backbone(seed: int = 0, patchify: bool = False, **sizes: int) -> InfinityBackbone:
    """Transformer and codec that fit each other; with patchify a token covers 2 x 2 cells of the code map."""
    transformer = tiny_transformer(seed, **sizes)
    channels = transformer.config.bits // (4 if patchify else 1)
    return InfinityBackbone(transformer, tiny_vae(channels, seed=seed + 1), f"tiny-{seed}")


def released_state(transformer: InfinityTransformer, chunks: int = 2) -> dict[str, Tensor]:
    """The weights under the names of released files: blocks in chunks, and the buffers that inference
    ignores.
    """
    per_chunk = math.ceil(transformer.config.depth / chunks)
    width = transformer.config.width
    state = {"text_proj_for_sos.ca.zero_k_bias": torch.zeros(width)}
    for name, tensor in transformer.state_dict().items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            name = f"block_chunks.{int(number) // per_chunk}.module.{int(number) % per_chunk}.{rest}"
        state[name] = tensor.clone()
        if name.endswith((".sa.v_bias", ".ca.v_bias")) and name.startswith("block"):
            state[name.replace("v_bias", "zero_k_bias")] = torch.zeros(width)
    return state


def released_vae_state(vae: VAE) -> dict[str, Tensor]:
    """The codec's weights as released: flat, with an extra buffer that inference ignores."""
    mask = 2 ** torch.arange(vae.config.channels)
    return {**{name: tensor.clone() for name, tensor in vae.state_dict().items()}, "quantizer.lfq.mask": mask}


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal weights, be the parts of their biases joined or not."""
    states = []
    for one in (deepcopy(model), deepcopy(other)):
        join_biases(one)
        states.append(one.state_dict())
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def tiny_text_dir(path: Path, width: int = 32, seed: int = 2) -> Path:
    """A T5 encoder of one layer and a tokenizer of one token a word (</s> appended; pad 0, eos 1, unk 2) in
    `path`.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocab = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    config = T5Config(
        vocab_size=len(vocab), d_model=width, d_kv=8, num_heads=2, d_ff=2 * width, num_layers=1,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    randomise(model, seed)
    model.save_pretrained(path)
    return path


def write_weights(path: Path, seed: int = 0) -> Path:
    """transformer.safetensors and vae.safetensors of a tiny model, named as released."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(released_state(tiny_transformer(seed)), path / "transformer.safetensors")
    save_file(released_vae_state(tiny_vae(seed=seed + 1)), path / "vae.safetensors")
    return path


def write_model(path: Path, seed: int = 0) -> Path:
    """A complete tiny model in a directory: `write_weights`, and text/."""
    write_weights(path, seed)
    tiny_text_dir(path / "text", TINY.text_width)
    return path


@contextmanager
def with_tiny(folder: Path) -> Iterator[FakeHost]:
    """A started stand-in with a tiny model, TINY_FILE, in its models folder."""
    with installed(folder) as host:
        write_model(host.models / "infinity" / "tiny")
        yield host.start()
