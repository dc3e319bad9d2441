"""Text features of prompts: a text model and its tokenizer from a local directory.  Nothing is downloaded.

Infinity reads a T5 encoder's features (docs/infinity.md, section 3), HART a Qwen2 decoder's, with a fixed
system prompt before every prompt (docs/hart.md, section 2).  There every prompt has the same number of
tokens: what is left over is padding that the model reads, too.

The modules are transformers'; their weights are read by `tensors`, which refuses what is missing, misshapen
or not finite in a sentence, and never runs a pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import PositionedText, Text
from .contents import count_of
from .loading import load_module
from .quantized_weights import dequantized
from .tensors import CheckpointError, Tensors, open_tensors, reading

MISFIT = "does not fit the weights beside it; download the folder as a whole"
T5_POSITIONS = (("relative_attention_num_buckets", 32), ("relative_attention_max_distance", 128))
T5_SIZES = "vocab_size d_model d_kv d_ff num_layers num_heads layer_norm_epsilon feed_forward_proj".split()
QWEN_SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "rms_norm_eps max_position_embeddings hidden_act tie_word_embeddings"
).split()
ROPE_THETA = 1e6  # base of Qwen2's rotary positions
NORMS = ("T5LayerNorm", "FusedRMSNorm", "Qwen2RMSNorm")  # transformers' names of an RMSNorm
MAX_TOKENS = 512  # what Infinity was trained with, end token included
HART_TOKENS = 300  # of a prompt, in the released model
SYSTEM_FILE = "system_prompt.txt"
SYSTEM_SHA256 = "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"
log = logging.getLogger(__name__)


class _Reader:
    """What both text encoders do alike."""

    model: nn.Module

    def encode(self, prompts: Sequence[str]) -> list[Text]:
        """Features of each prompt, float32 on the CPU; see `features`.

        Prompts are encoded one by one, so no result depends on its neighbours.

        Raises:
            ValueError: a prompt is too long, or the features are not finite.
        """
        found = {prompt: self.features(self.ids(prompt)) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    def _hidden(
        self, ids: Tensor, what: str, device: torch.device | None = None, **options: Any
    ) -> Tensor:
        """Last hidden states (L, Ct) float32 on the CPU of token ids (L,).

        Args:
            device: to compute on; None = where the weights are.
        """
        device = device or next(self.model.parameters()).device
        tensors = {name: value.to(device) for name, value in options.items() if isinstance(value, Tensor)}
        output = self.model(input_ids=ids[None].to(device), **options | tensors)
        rows = output.last_hidden_state[0].float().cpu()
        if not torch.isfinite(rows).all():
            advice = "load it in bfloat16 or float32"
            raise ValueError(f"the {what} returned values that are not numbers; {advice}")
        return rows


@dataclass(frozen=True)
class TextEncoder(_Reader):
    """A T5 encoder with its tokenizer.

    Attributes:
        model: transformers' T5EncoderModel.
        tokenize: prompt -> token ids, the end token last, nothing cut off.
        width: Ct, numbers per token.
        max_tokens: that a prompt may have, the end token included.
    """

    model: nn.Module
    tokenize: Split
    width: int
    max_tokens: int = MAX_TOKENS

    @classmethod
    def load(
        cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        tokenizer: Path | None = None, operations: Any = nn,
    ) -> TextEncoder:
        """Load a directory as published on the hub: config.json, weights, tokenizer.json or spiece.model; or
        the encoder alone as one file, which says its own sizes.

        Args:
            tokenizer: directory of a T5 tokenizer, for a file that has none beside it; all T5 split alike.
            operations: classes of its layers, see `layers`.

        Raises:
            CheckpointError: something is missing or damaged; the message says what.
        """
        path = Path(path)
        config = _read_t5_config(path)
        end = config.get("eos_token_id")
        words = _tokenizer_of(path, tokenizer) if path.is_file() else path
        tokenize = load_tokenizer(words, end if is_count(end) else 1)
        return cls(_load_t5(path, config, device, dtype, operations), tokenize, config["d_model"])

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt, the end token last.

        Raises:
            ValueError: more than `max_tokens`.
        """
        ids = self.tokenize(prompt)
        if len(ids) > self.max_tokens:
            raise ValueError(
                f"the prompt is too long: it has {len(ids)} tokens and the model reads at most "
                f"{self.max_tokens}; shorten it (it begins {prompt[:40]!r})"
            )
        return ids

    @torch.no_grad()
    def features(self, ids: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Features (L, Ct) of L token ids; the last row is the end token's.  An empty prompt has one row."""
        check_ids(ids, self.model.config.vocab_size)
        return self._hidden(torch.tensor(ids), "text encoder", device)


@dataclass(frozen=True)
class PromptEncoder(_Reader):
    """A Qwen2 decoder with its tokenizer, seen as a text encoder.

    Attributes:
        model: transformers' Qwen2Model.
        tokenize: prompt -> token ids.
        system: ids of the system prompt; empty = none.
        pad: id of padding.
        length: T, tokens of every prompt.
        side: where padding goes, "right" or "left".
    """

    model: nn.Module
    tokenize: Split
    system: Sequence[int]
    pad: int
    length: int = HART_TOKENS
    side: str = "right"

    @classmethod
    def load(
        cls,
        path: Path,
        system_prompt: str,
        length: int = HART_TOKENS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        operations: Any = nn,
    ) -> PromptEncoder:
        """Load a directory as published on the hub: config.json, weights, tokenizer.json.

        Args:
            operations: classes of its layers, see `layers`.

        Raises:
            CheckpointError: something is missing or damaged; the message says what.
        """
        path = Path(path)
        config, tokenize = read_qwen_config(path), load_tokenizer(path, padded=True)
        model = qwen_from_state(open_tensors(path), config, device, dtype, operations)
        system = tokenize(system_prompt) if system_prompt else ()
        return cls(model, tokenize, system, tokenize.pad, length, tokenize.side)

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.model.config.hidden_size

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt; what is beyond T tokens is cut off, as it was in training."""
        ids = self.tokenize(prompt)
        if len(ids) > self.length:
            found = f"The prompt has {len(ids)} tokens and the model reads {self.length}"
            log.warning(f"{found}; the end is cut off.")
        return list(ids[: self.length])

    @torch.no_grad()
    def features(self, ids: Sequence[int], device: torch.device | None = None) -> PositionedText:
        """Features (T, width) of at most T token ids; padding repeats the last token's position."""
        check_ids([*self.system, *ids, self.pad], self.model.config.vocab_size)
        padding = [self.pad] * (self.length - len(ids))
        prompt = torch.tensor([*ids, *padding] if self.side == "right" else [*padding, *ids])
        tokens = torch.cat([torch.tensor(self.system, dtype=torch.long), prompt])
        real = prompt != self.pad
        mask = torch.cat([torch.ones(len(self.system), dtype=torch.bool), real])[None].long()
        options = {"attention_mask": mask, "position_ids": torch.arange(len(tokens))[None]}  # padding counts
        rows = self._hidden(tokens, "text model", device, **options, use_cache=False)[len(self.system) :]
        return PositionedText(rows, (real.cumsum(0) - 1).float())


# --- what config.json says ----------------------------------------------------------------------------------


def is_count(value: object) -> bool:
    """Whether a value of config.json is a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**24


def kind_of(config: Mapping[str, Any]) -> str:
    """What a config.json says that it belongs to, in words for a message."""
    kind = config.get("model_type")
    return f"a {kind[:40]} model" if isinstance(kind, str) and kind else "a nameless model"


def text_width(path: Path) -> int:
    """Ct of the T5 encoder in a directory, from its config.json.

    Raises:
        CheckpointError: no config.json of a T5 model there.
    """
    return _read_t5_config(Path(path))["d_model"]


def is_t5(path: Path) -> bool:
    """Whether a directory has the files of a T5 encoder."""
    try:
        return text_width(path) > 0
    except CheckpointError:
        return False


def _read_config(path: Path, what: str, belongs: str) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no {what}: config.json is missing; download {belongs} as a whole")
    with reading(file, DAMAGED):
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))


def _tokenizer_of(file: Path, tokenizer: Path | None) -> Path:
    """Where the tokenizer of an encoder in a single file lies: beside it, or the one that is given."""
    found = any((file.parent / name).is_file() for name in ("tokenizer.json", "spiece.model"))
    if not found and tokenizer is None:
        raise CheckpointError(
            f"{file.name} has no tokenizer: put tokenizer.json or spiece.model of flan-t5-xl beside it in "
            f"{file.parent}"
        )
    return file.parent if found or tokenizer is None else tokenizer


def _t5_sizes(tensors: Tensors) -> dict[str, Any]:
    """What config.json would say of a T5 encoder in a single file, by the shapes of its tensors.

    Raises:
        CheckpointError: it is no such encoder.
    """
    shapes, block = tensors.shapes, "encoder.block.0.layer"
    table = shapes.get("shared.weight") or shapes.get("encoder.embed_tokens.weight")
    bias = shapes.get(f"{block}.0.SelfAttention.relative_attention_bias.weight")
    q, gated = shapes.get(f"{block}.0.SelfAttention.q.weight"), f"{block}.1.DenseReluDense.wi_0.weight"
    feed = shapes.get(gated) or shapes.get(f"{block}.1.DenseReluDense.wi.weight")
    if not (table and bias and q and feed):
        raise CheckpointError(f"{tensors.path} is no T5 encoder; choose flan-t5-xl")
    return {
        "model_type": "t5", "vocab_size": table[0], "d_model": table[1], "num_heads": bias[1],
        "d_kv": q[0] // bias[1], "d_ff": feed[0], "relative_attention_num_buckets": bias[0],
        "num_layers": count_of(shapes, r"encoder\.block\.(\d+)\."),
        "feed_forward_proj": "gated-gelu" if gated in shapes else "relu",
    }


def _read_t5_config(path: Path) -> dict[str, Any]:
    if path.is_file():
        return _t5_sizes(open_tensors(path))
    config = _read_config(path, "text encoder directory", "flan-t5-xl")
    if config.get("model_type") != "t5" or not is_count(config.get("d_model")):
        raise CheckpointError(f"{path} holds {kind_of(config)}, not a T5 text encoder; choose flan-t5-xl")
    return config


def read_qwen_config(path: Path) -> dict[str, Any]:
    """Sizes of the text decoder in a directory, from its config.json.

    Raises:
        CheckpointError: no config.json of a Qwen2 model there.
    """
    config = _read_config(path, "text model", QWEN)
    with reading(path / "config.json", DAMAGED):
        sizes = dict(config.get("text_config") or config)
    if config.get("model_type") not in ("qwen2", "qwen2_vl") or not is_count(sizes.get("hidden_size")):
        raise CheckpointError(f"{path} holds {kind_of(config)}, not Qwen2; choose {QWEN}")
    return sizes


# --- modules and their weights ------------------------------------------------------------------------------


def _transformers() -> ModuleType:
    """The package, which is slow to import, so only here."""
    try:
        import transformers
    except ImportError as error:
        message = "the text encoder needs the Python package transformers; install it with pip"
        raise CheckpointError(message) from error
    return transformers


def with_operations(model: nn.Module, operations: Any) -> nn.Module:
    """Swap the layers of one of transformers' models, built on the meta device, for those of other classes.
    Its norms are RMSNorms under a name of its own.
    """
    if operations is nn:
        return model
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
                setattr(parent, name, operations.Linear(*sizes, bias=bias))
            elif type(layer) is nn.Embedding:
                setattr(parent, name, operations.Embedding(layer.num_embeddings, layer.embedding_dim))
            elif type(layer).__name__ in NORMS:
                setattr(parent, name, operations.RMSNorm(len(layer.weight), eps=layer.variance_epsilon))
    return model


def _load_t5(
    path: Path, config: dict[str, Any], device: torch.device | str, dtype: torch.dtype, operations: Any
) -> nn.Module:
    transformers, tensors = _transformers(), dequantized(open_tensors(path))
    with reading(path / "config.json", MISFIT):
        if config["num_layers"] != count_of(tensors, r"encoder\.block\.(\d+)\."):
            raise ValueError("another number of layers")  # before so many are built
        buckets, farthest = (config.get(name, default) for name, default in T5_POSITIONS)
        if not 4 <= buckets < 4 * farthest:
            raise ValueError("positions without an order")
        if not isinstance(config.get("layer_norm_epsilon", 0.0), float):
            raise ValueError("an epsilon that is no number")  # which transformers before 5 takes as it is
        names = (*T5_SIZES, *dict(T5_POSITIONS))
        sizes = transformers.T5Config(**{name: config[name] for name in names if name in config})
        build = transformers.T5EncoderModel  # found here, since torch 2.6 breaks its own imports below
        with torch.device("meta"):
            encoder = _encoder_only(tensors, build(sizes))

    def make(operations: Any) -> nn.Module:
        return with_operations(build(sizes), operations)

    model = load_module(make, encoder, lambda name: _t5_dtype(name, dtype), device, operations)
    model.set_input_embeddings(model.shared)  # one table, not two
    return model


def _encoder_only(tensors: Tensors, model: nn.Module) -> Tensors:
    """The encoder's part of a file that may hold a decoder too; its word table has one of two names."""
    twins = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}
    names = {name: name if name in tensors.shapes else twins.get(name, name) for name in model.state_dict()}
    return tensors.renamed({new: old for new, old in names.items() if old in tensors.shapes})


def _t5_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """T5's second feed-forward matrix overflows in float16 and stays in float32, as transformers does it."""
    return torch.float32 if dtype == torch.float16 and name.endswith(".wo.weight") else dtype


def qwen_from_state(
    state: Tensors, config: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype,
    operations: Any = nn,
) -> nn.Module:
    """The text decoder alone, with positions that count along the text, whatever else the file holds.

    Raises:
        CheckpointError: transformers is not installed, or tensors are missing.
    """
    table = next((name for name in state if name.endswith("embed_tokens.weight")), "")
    prefix = table.removesuffix("embed_tokens.weight")
    with reading(state.path / "config.json", MISFIT):
        if config["num_hidden_layers"] != count_of(state, rf"{re.escape(prefix)}layers\.(\d+)\."):
            raise ValueError("another number of layers")  # before so many are built
        names = empty_qwen(config).state_dict()
    state = dequantized(state)
    tensors = state.renamed({n: prefix + n for n in names if prefix + n in state.shapes})

    def make(operations: Any) -> nn.Module:
        return with_operations(empty_qwen(config), operations)

    model = load_module(make, tensors, lambda name: dtype, device, operations)
    with reading(state.path / "config.json", MISFIT):
        return with_positions(model, device)


def empty_qwen(config: Mapping[str, Any]) -> nn.Module:
    """The text decoder on the meta device.

    Raises:
        CheckpointError: transformers is not installed.
    """
    transformers = _transformers()
    sizes = transformers.Qwen2Config(**{name: config[name] for name in QWEN_SIZES if name in config})
    sizes.rope_theta = float(config.get("rope_theta") or ROPE_THETA)  # before transformers 5
    sizes.rope_parameters = {"rope_type": "default", "rope_theta": sizes.rope_theta}  # from then on
    build = transformers.Qwen2Model  # imported outside, as T5's
    with torch.device("meta"):
        return build(sizes)


def with_positions(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Give the decoder its table of rotary positions, which is no weight, so that no file has it."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    model.rotary_emb = Qwen2RotaryEmbedding(model.config).to(device)
    return model


# --- HART's system prompt -----------------------------------------------------------------------------------


def find_system_prompt(folder: Path) -> Path:
    """The file of the system prompt, which the user has to place beside the weights.

    Raises:
        CheckpointError: it is not there.
    """
    file = folder / SYSTEM_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} lacks {SYSTEM_FILE}: copy HART's system prompt (705 bytes of text, in its authors' "
            "repository) there, or an empty file to go without"
        )
    return file


def read_system_prompt(folder: Path) -> str:
    """The system prompt; an empty file means none.

    Raises:
        CheckpointError: it is not there, or no text.
    """
    file = find_system_prompt(folder)
    data = file.read_bytes()
    if data and hashlib.sha256(data).hexdigest() != SYSTEM_SHA256:
        log.warning(
            f"{file} is not the system prompt that HART was trained with; "
            "pictures will differ from the released ones."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is no text; copy HART's system prompt there") from error


# --- tokenizers ---------------------------------------------------------------------------------------------

# Tokenizers of text encoders: prompt -> token ids, from their own files, whatever version transformers has.
#
# Facts: docs/infinity.md, section 3; docs/hart.md, section 2.

DAMAGED = "is damaged; download it again"
QWEN = "Qwen2-VL-1.5B-Instruct"
PAD = "<|endoftext|>"
Split = Callable[[str], list[int]]  # prompt -> token ids, nothing cut off or added


@dataclass(frozen=True)
class Tokenizer:
    """Prompt -> token ids, nothing cut off and no padding.

    Attributes:
        file: where it was read from, for messages.
        end: ids that every prompt gets behind its own.
        pad: id of padding; None = was not asked for.
        side: where padding goes, "right" or "left".
    """

    file: Path
    split: Split
    end: tuple[int, ...] = ()
    pad: int | None = None
    side: str = "right"

    def __call__(self, prompt: str) -> list[int]:
        with reading(self.file, DAMAGED):  # some faults of a file show only when it meets a word
            return [*self.split(prompt), *self.end]


def load_tokenizer(path: Path, end: int = 1, padded: bool = False) -> Tokenizer:
    """The tokenizer of a directory.

    Args:
        end: id of the end token, which every prompt gets.
        padded: for prompts that are padded instead: no end token, but what the folder says about padding.

    Raises:
        CheckpointError: its file or the package that reads it is missing, or a file is damaged.
    """
    readers = {"tokenizer.json": _fast} | ({} if padded else {"spiece.model": _sentencepiece})
    name = next((name for name in readers if (path / name).is_file()), None)
    if name is None:
        missing = f"{' and '.join(readers)} {'are' if len(readers) > 1 else 'is'} missing"
        advice = f"{QWEN} as a whole" if padded else "one of them"
        raise CheckpointError(f"{path} has no tokenizer: {missing}; download {advice}")
    file = path / name
    with reading(file, DAMAGED):
        split = readers[name](file)
    return Tokenizer(file, split, (), *_padding(file)) if padded else Tokenizer(file, split, (end,))


def check_ids(ids: Sequence[int], vocabulary: int) -> None:
    """Refuse tokens that the model has no row for.

    Raises:
        CheckpointError: the tokenizer is of another model.
    """
    if not all(0 <= token < vocabulary for token in ids):
        raise CheckpointError(
            f"the tokenizer makes token {max(ids)} and the text encoder knows {vocabulary}; "
            "download its folder as a whole"
        )


def _fast(file: Path) -> Split:
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return lambda prompt: fast.encode(prompt, add_special_tokens=False).ids


def _sentencepiece(file: Path) -> Split:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file)).encode


def _padding(file: Path) -> tuple[int, str]:
    """Id of padding, and the side where it goes."""
    from tokenizers import Tokenizer as Fast

    told = file.with_name("tokenizer_config.json")
    with reading(file, f"or {told.name} beside it is damaged; download both again"):
        settings = json.loads(told.read_text(encoding="utf-8-sig")) if told.is_file() else {}
        word = settings.get("pad_token") or PAD
        pad = Fast.from_file(str(file)).token_to_id(word["content"] if isinstance(word, dict) else word)
        side = "left" if settings.get("padding_side") == "left" else "right"
    if pad is None:
        raise CheckpointError(f"{file} does not know its padding token; download {QWEN} again")
    return pad, side
