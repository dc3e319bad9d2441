"""Tokenizers of text encoders: prompt -> token ids, from their own files, whatever version transformers has.

Facts: docs/infinity.md, section 3; docs/hart.md, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .tensors import CheckpointError, reading

DAMAGED = "is damaged; download it again"
QWEN = "Qwen2-VL-1.5B-Instruct"
PAD = "<|endoftext|>"
Tokenizer = Callable[[str], list[int]]  # prompt -> token ids, without padding


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
        with reading(file, DAMAGED):
            split = reader(file)
        return lambda prompt: _tokens(file, split, prompt) + [end]
    missing = "tokenizer.json and spiece.model are missing"
    raise CheckpointError(f"{path} has no tokenizer: {missing}; download one of them")


def _tokens(file: Path, split: Tokenizer, prompt: str) -> list[int]:
    """Some faults of a tokenizer's file show only when it meets a word."""
    with reading(file, DAMAGED):
        return list(split(prompt))


def _fast_tokenizer(file: Path) -> Tokenizer:
    fast = _open_fast(file)
    return lambda prompt: fast.encode(prompt, add_special_tokens=False).ids


def _open_fast(file: Path) -> Any:
    """tokenizers.Tokenizer, which neither cuts off nor pads."""
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_file(str(file))
    fast.no_truncation()
    fast.no_padding()
    return fast


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


def _sentencepiece(file: Path) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file)).encode


def load_padded_tokenizer(path: Path) -> tuple[Tokenizer, int, str]:
    """The tokenizer of a directory, the id of its padding, and the side where padding goes.

    Raises:
        CheckpointError: its file is missing or damaged.
    """
    file, told = path / "tokenizer.json", path / "tokenizer_config.json"
    if not file.is_file():
        raise CheckpointError(f"{path} has no tokenizer: tokenizer.json is missing; download {QWEN} as a whole")
    with reading(file, f"or {told.name} beside it is damaged; download both again"):
        fast = _open_fast(file)
        settings = json.loads(told.read_text(encoding="utf-8-sig")) if told.is_file() else {}
        word = settings.get("pad_token") or PAD
        pad = fast.token_to_id(word["content"] if isinstance(word, dict) else word)
        side = "left" if settings.get("padding_side") == "left" else "right"
    if pad is None:
        raise CheckpointError(f"{file} does not know its padding token; download {QWEN} again")

    def split(text: str) -> list[int]:
        return fast.encode(text, add_special_tokens=False).ids

    return lambda prompt: _tokens(file, split, prompt), pad, side
