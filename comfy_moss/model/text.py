"""Text features of prompts: a T5 encoder and its tokenizer from a local directory.  Nothing is ever downloaded.

The tokenizer is read from its own file (`tokenizer.json`, or `spiece.model` through sentencepiece), so the tokens do not
depend on the version of transformers.  Facts: Infinity specification, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .tensors import CheckpointError, Tensors, fill_module, open_tensors

MAX_TOKENS = 512  # what Infinity was trained with, end token included
Tokenizer = Callable[[str], list[int]]  # prompt -> token ids, without padding


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
        tokenize = load_tokenizer(path, config.get("eos_token_id", 1))
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


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no text encoder directory: config.json is missing; download flan-t5-xl as a whole")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, width = config.get("model_type"), config.get("d_model")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged; download it again") from error
    if kind != "t5" or not isinstance(width, int):
        raise CheckpointError(f"{path} holds a {kind or 'nameless'} model, not a T5 text encoder; choose flan-t5-xl")
    return config


def load_tokenizer(path: Path, end: int = 1) -> Tokenizer:
    """The tokenizer of a directory.

    Args:
        end: id of the end token, which every prompt gets.

    Raises:
        CheckpointError: its file or the package that reads it is missing, or the file is damaged.
    """
    for name, reader in (("tokenizer.json", _fast_tokenizer), ("spiece.model", _sentencepiece)):
        file = path / name
        if not file.is_file():
            continue
        try:
            split = reader(file)
        except ImportError as error:
            raise CheckpointError(f"reading {file} needs the Python package {error.name}; install it with pip") from error
        except Exception as error:  # both readers raise plain Exceptions
            raise CheckpointError(f"{file} is damaged; download it again") from error
        return lambda prompt: split(prompt) + [end]
    raise CheckpointError(f"{path} has no tokenizer: tokenizer.json and spiece.model are missing; download one of them")


def _fast_tokenizer(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return lambda prompt: fast.encode(prompt, add_special_tokens=False).ids


def _sentencepiece(file: Path) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file)).encode


def _load_model(path: Path, config: dict[str, Any], device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    try:
        from transformers import T5Config, T5EncoderModel  # slow to import, so only here
    except ImportError as error:
        raise CheckpointError("the text encoder needs the Python package transformers; install it with pip") from error
    with torch.device("meta"):
        model = T5EncoderModel(T5Config.from_dict(config))
    fill_module(model, _encoder_only(open_tensors(path), model), lambda name: _dtype_of(name, dtype), device)
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
