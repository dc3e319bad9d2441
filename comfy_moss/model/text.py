"""Text features of prompts: a T5 encoder and its tokenizer from a local directory.  Nothing is ever downloaded.

The tokenizer is read from its own file (`tokenizer.json`, or `spiece.model` through sentencepiece), so the tokens do not
depend on the version of transformers.  Facts: docs/infinity.md, section 3.

HART reads a Qwen2 decoder's features, with a fixed system prompt before every prompt.  Every prompt fills the same number of
slots; what is left over is padding that the model reads, too.  Facts: docs/hart.md, section 2.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import PositionedText
from .contents import count_of
from .tensors import CheckpointError, Tensors, fill_module, open_tensors, reading
from .tokenizer import DAMAGED, QWEN, Tokenizer, check_ids, load_padded_tokenizer, load_tokenizer

MISFIT = "does not fit the weights beside it; download the folder as a whole"
T5_POSITIONS = (("relative_attention_num_buckets", 32), ("relative_attention_max_distance", 128))
T5_SIZES = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "layer_norm_epsilon", "feed_forward_proj",
    *dict(T5_POSITIONS),
)
MAX_TOKENS = 512  # what Infinity was trained with, end token included
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEncoder:
    """A T5 encoder with its tokenizer.

    Attributes:
        model: transformers' T5EncoderModel.
        tokenize: prompt -> token ids, the end token last, nothing cut off.
        width: Ct, numbers per token.
    """

    model: nn.Module
    tokenize: Tokenizer
    width: int

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> TextEncoder:
        """Load a directory as published on the hub: config.json, weights, tokenizer.json or spiece.model.

        Raises:
            CheckpointError: something is missing or damaged; the message says what.
        """
        path = Path(path)
        config = _read_config(path)
        end = config.get("eos_token_id")
        tokenize = load_tokenizer(path, end if is_count(end) else 1)
        return cls(_load_model(path, config, device, dtype), tokenize, config["d_model"])

    def encode(self, prompts: Sequence[str], max_tokens: int = MAX_TOKENS) -> list[Tensor]:
        """Features of each prompt, (L_i, Ct) float32 on the CPU; the last row is the end token's.

        Prompts are encoded one by one, so no result depends on its neighbours.  An empty prompt gives one row.

        Raises:
            ValueError: a prompt has more than `max_tokens` tokens (end token included), or the features are not finite.
        """
        features = {prompt: self.features(self.ids(prompt, max_tokens)) for prompt in dict.fromkeys(prompts)}
        return [features[prompt] for prompt in prompts]

    def ids(self, prompt: str, max_tokens: int = MAX_TOKENS) -> list[int]:
        """Token ids of a prompt, the end token last.

        Raises:
            ValueError: more than `max_tokens`.
        """
        ids = self.tokenize(prompt)
        if len(ids) > max_tokens:
            raise ValueError(
                f"the prompt is too long: it has {len(ids)} tokens and the model reads at most {max_tokens}; "
                f"shorten it (it begins {prompt[:40]!r})"
            )
        return ids

    @torch.no_grad()
    def features(self, ids: list[int]) -> Tensor:
        """Features (L, Ct) float32 on the CPU of L token ids.

        Raises:
            ValueError: they are not finite.
        """
        device = next(self.model.parameters()).device
        check_ids(ids, self.model.config.vocab_size)
        rows = self.model(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0].float().cpu()
        if not torch.isfinite(rows).all():
            raise ValueError("the text encoder returned values that are not numbers; load it in bfloat16 or float32")
        return rows


def text_width(path: Path) -> int:
    """Ct of the T5 encoder in a directory, from its config.json.

    Raises:
        CheckpointError: no config.json of a T5 model there.
    """
    return _read_config(Path(path))["d_model"]


def is_t5(path: Path) -> bool:
    """Whether a directory has the files of a T5 encoder."""
    try:
        return text_width(path) > 0
    except CheckpointError:
        return False


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no text encoder directory: config.json is missing; download flan-t5-xl as a whole")
    with reading(file, DAMAGED):
        config = dict(json.loads(file.read_text(encoding="utf-8-sig")))
    if config.get("model_type") != "t5" or not is_count(config.get("d_model")):
        raise CheckpointError(f"{path} holds {kind_of(config)}, not a T5 text encoder; choose flan-t5-xl")
    return config


def is_count(value: object) -> bool:
    """Whether a value of config.json is a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**24


def kind_of(config: Mapping[str, Any]) -> str:
    """What a config.json says that it belongs to, in words for a message."""
    kind = config.get("model_type")
    return f"a {kind[:40]} model" if isinstance(kind, str) and kind else "a nameless model"


def _load_model(path: Path, config: dict[str, Any], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    try:
        from transformers import T5Config, T5EncoderModel  # slow to import, so only here
    except ImportError as error:
        raise CheckpointError("the text encoder needs the Python package transformers; install it with pip") from error
    tensors = open_tensors(path)
    with reading(path / "config.json", MISFIT):
        if config["num_layers"] != count_of(tensors, r"encoder\.block\.(\d+)\."):
            raise ValueError("another number of layers")  # before so many are built
        buckets, farthest = (config.get(name, default) for name, default in T5_POSITIONS)
        if not 4 <= buckets < 4 * farthest:
            raise ValueError("positions without an order")
        with torch.device("meta"):
            model = T5EncoderModel(T5Config(**{name: config[name] for name in T5_SIZES if name in config}))
    fill_module(model, _encoder_only(tensors, model), lambda name: _dtype_of(name, dtype), device)
    model.set_input_embeddings(model.shared)  # one table, not two
    return model


def _encoder_only(tensors: Tensors, model: nn.Module) -> Tensors:
    """The encoder's part of a file that may hold a decoder too; the word table goes by either of two names."""
    twins = {"shared.weight": "encoder.embed_tokens.weight", "encoder.embed_tokens.weight": "shared.weight"}
    names = {name: name if name in tensors.shapes else twins.get(name, name) for name in model.state_dict()}
    return tensors.renamed({new: old for new, old in names.items() if old in tensors.shapes})


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """T5's second feed-forward matrix overflows in float16 and stays in float32, as transformers does it."""
    return torch.float32 if dtype == torch.float16 and name.endswith(".wo.weight") else dtype


SLOTS = 300  # of a prompt, in the released model
SYSTEM_FILE = "system_prompt.txt"
SYSTEM_SHA256 = "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"
THETA = 1e6  # base of the rotary positions
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "rms_norm_eps", "max_position_embeddings", "hidden_act", "tie_word_embeddings",
)  # fmt: skip


@dataclass(frozen=True)
class PromptEncoder:
    """A Qwen2 decoder with its tokenizer, seen as a text encoder.

    Attributes:
        model: transformers' Qwen2Model.
        tokenize: prompt -> token ids.
        system: ids of the system prompt; empty = none.
        pad: id of padding.
        slots: T, of every prompt.
        side: where padding goes, "right" or "left".
    """

    model: nn.Module
    tokenize: Tokenizer
    system: Sequence[int]
    pad: int
    slots: int = SLOTS
    side: str = "right"

    @classmethod
    def load(
        cls,
        path: Path,
        system_prompt: str,
        slots: int = SLOTS,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PromptEncoder:
        """Load a directory as published on the hub: config.json, weights, tokenizer.json.

        Raises:
            CheckpointError: something is missing or damaged; the message says what.
        """
        path = Path(path)
        config, (tokenize, pad, side) = read_qwen_config(path), load_padded_tokenizer(path)
        model = qwen_from_state(open_tensors(path), config, device, dtype)
        return cls(model, tokenize, tokenize(system_prompt) if system_prompt else (), pad, slots, side)

    @property
    def width(self) -> int:
        """Numbers per token."""
        return self.model.config.hidden_size

    def encode(self, prompts: Sequence[str]) -> list[PositionedText]:
        """Features of each prompt, (T, width) float32 on the CPU, and positions.

        Raises:
            ValueError: the features are not finite.
        """
        features = {prompt: self.features(self.ids(prompt)) for prompt in dict.fromkeys(prompts)}
        return [features[prompt] for prompt in prompts]

    def ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt; what is beyond T tokens is cut off, as it was in training."""
        ids = self.tokenize(prompt)
        if len(ids) > self.slots:
            log.warning(f"The prompt has {len(ids)} tokens and the model reads {self.slots}; the end is cut off.")
        return list(ids[: self.slots])

    @torch.no_grad()
    def features(self, ids: Sequence[int]) -> PositionedText:
        """Features (T, width) float32 on the CPU of at most T token ids; padding repeats the last token's position.

        Raises:
            ValueError: they are not finite.
        """
        device = next(self.model.parameters()).device
        padding = [self.pad] * (self.slots - len(ids))
        prompt = torch.tensor([*ids, *padding] if self.side == "right" else [*padding, *ids])
        real = prompt != self.pad
        check_ids([*self.system, *ids, self.pad], self.model.config.vocab_size)
        tokens = torch.cat([torch.tensor(self.system, dtype=torch.long), prompt])[None].to(device)
        mask = torch.cat([torch.ones(len(self.system), dtype=torch.bool), real])[None].to(device)
        places = torch.arange(tokens.shape[1], device=device)[None]  # padding counts
        hidden = self.model(input_ids=tokens, attention_mask=mask.long(), position_ids=places, use_cache=False).last_hidden_state
        rows = hidden[0, len(self.system) :].float().cpu()
        if not torch.isfinite(rows).all():
            raise ValueError("the text model returned values that are not numbers; load it in bfloat16 or float32")
        return PositionedText(rows, (real.cumsum(0) - 1).float())


def find_system_prompt(folder: Path) -> Path:
    """The file of the system prompt, which the user has to place beside the weights.

    Raises:
        CheckpointError: it is not there.
    """
    file = folder / SYSTEM_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} lacks {SYSTEM_FILE}: copy HART's system prompt (705 bytes of text, in its authors' repository) there, or "
            "an empty file to go without"
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
        log.warning(f"{file} is not the system prompt that HART was trained with; pictures will differ from the released ones.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is no text; copy HART's system prompt there") from error


def read_qwen_config(path: Path) -> dict[str, Any]:
    """Sizes of the text decoder in a directory, from its config.json.

    Raises:
        CheckpointError: no config.json of a Qwen2 model there.
    """
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no text model: config.json is missing; download {QWEN} as a whole")
    with reading(file, DAMAGED):
        config = dict(json.loads(file.read_text(encoding="utf-8-sig")))
        sizes = dict(config.get("text_config") or config)
    if config.get("model_type") not in ("qwen2", "qwen2_vl") or not is_count(sizes.get("hidden_size")):
        raise CheckpointError(f"{path} holds {kind_of(config)}, not Qwen2; choose {QWEN}")
    return sizes


def qwen_from_state(state: Tensors, config: Mapping[str, Any], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """The text decoder alone, with positions that count along the text, whatever else the file holds.

    Raises:
        CheckpointError: transformers is not installed, or tensors are missing.
    """
    table = next((name for name in state if name.endswith("embed_tokens.weight")), "")
    prefix = table.removesuffix("embed_tokens.weight")
    with reading(state.path / "config.json", MISFIT):
        if config["num_hidden_layers"] != count_of(state, rf"{re.escape(prefix)}layers\.(\d+)\."):
            raise ValueError("another number of layers")  # before so many are built
        model = empty_qwen(config)
    tensors = state.renamed({n: prefix + n for n in model.state_dict() if prefix + n in state.shapes})
    fill_module(model, tensors, lambda name: dtype, device)
    with reading(state.path / "config.json", MISFIT):
        return with_positions(model, device)


def empty_qwen(config: Mapping[str, Any]) -> nn.Module:
    """The text decoder on the meta device.

    Raises:
        CheckpointError: transformers is not installed.
    """
    try:
        from transformers import Qwen2Config, Qwen2Model  # slow to import, so only here
    except ImportError as error:
        raise CheckpointError("the text encoder needs the Python package transformers; install it with pip") from error
    sizes = Qwen2Config(**{name: config[name] for name in SIZES if name in config})
    sizes.rope_theta = float(config.get("rope_theta") or THETA)  # before transformers 5
    sizes.rope_parameters = {"rope_type": "default", "rope_theta": sizes.rope_theta}  # from then on
    with torch.device("meta"):
        return Qwen2Model(sizes)


def with_positions(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Give the decoder its table of rotary positions, which is no weight, so that no file has it."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    model.rotary_emb = Qwen2RotaryEmbedding(model.config).to(device)
    return model
