"""Tokenizers of text encoders: prompt -> token ids, from their own files, whatever version transformers has.

Facts: docs/infinity.md, section 3; docs/hart.md, section 2.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .tensors import CheckpointError, reading

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
