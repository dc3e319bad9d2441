"""The embedded model: its sizes, its tiny T5 and tokenizer, how its weights start, and its shipped files."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from comfy_moss.benchmarks.world import VOCABULARY
from comfy_moss.model.infinity import InfinityConfig, InfinityTransformer
from comfy_moss.model.schedule import make_schedule

SIDES = {"0.25M": 256, "1M": 512}  # preset -> pixels a side, at a stride of 8: 10 scales, and 13
SCHEDULES = {area: make_schedule(1.0, area) for area in SIDES}
SCHEDULE = SCHEDULES["0.25M"]
BLOCKS_PER_CHUNK = 3
CONFIG = InfinityConfig(
    depth=6, width=192, heads=6, hidden=768, bits=16, text_width=128, text_heads=1, text_length=64, levels=30
)
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as T5 has them


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the shapes world, lower-cased, </s> at the end; other words become <unk>."""
    vocabulary = {word: n for n, word in enumerate((*SPECIAL, *VOCABULARY))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONFIG.text_length,
    )


@torch.no_grad()
def look_around(model: T5EncoderModel) -> None:
    """Start the heads off: they look at the word before, two words back, at all before, and at all after.

    From T5's own start the encoder never learned the order of the words, and so nothing that depends on it.
    """
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads)
    half = len(bias) // 2
    bias.zero_()
    bias[1, 0] = bias[2, 1] = 4.0
    bias[1:half, 2] = bias[half + 1 :, 3] = 4.0


def make_text_model() -> T5EncoderModel:
    """Two layers of T5 v1.1, the kind of flan-t5-xl, at width 128."""
    config = T5Config(
        vocab_size=len(SPECIAL) + len(VOCABULARY),
        d_model=CONFIG.text_width,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        tie_word_embeddings=False,
    )
    model = T5EncoderModel(config)
    look_around(model)
    return model


@torch.no_grad()
def make_transformer() -> InfinityTransformer:
    """Fresh weights: small residual branches, half-open gates, modulation and head near zero."""
    model = InfinityTransformer(CONFIG)
    nn.init.normal_(model.cfg_uncond, std=0.3)
    nn.init.normal_(model.pos_start, std=0.04)
    nn.init.normal_(model.lvl_embed.weight, std=0.3)
    nn.init.normal_(model.text_proj_for_sos["ca"].mat_q, std=0.1)
    for ada in (model.shared_ada_lin, model.head_nm["ada_lin"]):
        nn.init.zeros_(ada[1].weight)
        nn.init.zeros_(ada[1].bias)
    nn.init.normal_(model.head.weight, std=0.01)
    nn.init.zeros_(model.head.bias)
    for block in model.blocks:
        nn.init.normal_(block.ada_gss, std=0.3 / math.sqrt(CONFIG.width))
        block.ada_gss[:, :, :2] = 0.5
        for layer in (block.sa.proj, block.ca.proj, block.ffn.fc2):
            layer.weight.mul_(1 / math.sqrt(2 * CONFIG.depth))
    return model


def released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter names as in the released files: blocks grouped into chunks."""

    def rename(name: str) -> str:
        if not name.startswith("blocks."):
            return name
        _, number, rest = name.split(".", 2)
        chunk, module = divmod(int(number), BLOCKS_PER_CHUNK)
        return f"block_chunks.{chunk}.module.{module}.{rest}"

    return {rename(name): value for name, value in state.items()}


def write_assets(
    folder: Path, transformer: dict[str, Tensor], text: dict[str, Tensor], vae: dict[str, Tensor]
) -> None:
    """Write the shipped files: two safetensors in half precision and the text encoder's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_half(released_names(transformer), torch.bfloat16), folder / "transformer.safetensors")
    save_file(_half(vae, torch.float16), folder / "vae.safetensors")
    model = make_text_model()
    model.load_state_dict(text)
    model.to(torch.float16).save_pretrained(folder / "text")
    make_tokenizer().save_pretrained(folder / "text")
    for file in folder.rglob("*.*"):
        file.chmod(0o644)  # safetensors writes files that only their owner can read


def _half(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype).contiguous() for name, value in state.items()}
