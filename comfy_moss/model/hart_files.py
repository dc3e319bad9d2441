"""HART on disk: the released folder (llm/, tokenizer/), the text model, and the system prompt beside them.

Facts: HART specification, sections 1 and 2.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .files import ModelFiles
from .hart_backbone import HartBackbone
from .hart_checkpoint import load_hart, open_hart, read_settings
from .hart_text import SYSTEM_FILE, PromptEncoder, find_system_prompt, read_config, read_system_prompt
from .published import HART, Published
from .sampling import Sampling
from .schedule import Schedule, square_schedule
from .tensors import MODEL_SUFFIXES, CheckpointError, open_tensors

NAME = "hart-0.7b"
TEXT_MODEL = "Qwen2-VL-1.5B-Instruct"
EXPECTED = ("llm/ema_model.bin", "tokenizer", f"{TEXT_MODEL} and {SYSTEM_FILE}")
AVERAGED = ("ema_model.safetensors", "ema_model.bin")  # the weights that pictures are drawn with, best first
CFG = 5.5  # the authors' 4.5, which leaves the prompt's own 1 out
AREAS = {16: "0.06M", 32: "0.25M", 64: "1M"}  # last side -> name of the image area
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HartFiles(ModelFiles):
    """A complete HART model.

    Attributes:
        folder: the released one, where the system prompt lies.
        sides: of the scales, coarsest first.
        slots: of text.
    """

    folder: Path
    sides: tuple[int, ...]
    slots: int

    @property
    def published(self) -> Published:
        return HART

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*super().paths, self.folder / SYSTEM_FILE)

    def schedule(self, height_over_width: float, area: str) -> Schedule:
        side = 16 * self.sides[-1]
        if height_over_width != 1 or area != self.area:
            raise ValueError(f"this model draws {side} x {side} pictures only; choose 1:1 and the model's own area ({self.area})")
        return square_schedule(self.sides)

    def sampling(self, tau: float | tuple[float, ...]) -> Sampling:
        return Sampling(tau, top_k=0, top_p=0.0)

    def load_text(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> PromptEncoder:
        return PromptEncoder.load(self.text, read_system_prompt(self.folder), self.slots, device, dtype)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> HartBackbone:
        backbone, width = load_hart(self.transformer, self.vae, device, dtype), read_config(self.text)["hidden_size"]
        if width + 1 != backbone.text_width:
            raise CheckpointError(
                f"{self.folder} reads text features of {backbone.text_width - 1} numbers, but {self.text} makes {width}; "
                f"use {TEXT_MODEL}"
            )
        return backbone


def is_hart(folder: Path) -> bool:
    """Whether a folder has the layout of the released one."""
    return (folder / "llm").is_dir() and (folder / "tokenizer").is_dir()


def hart_folders(entries: Sequence[Path]) -> list[Path]:
    """Folders among `library.model_entries` that hold a HART model."""
    return [entry for entry in entries if entry.is_dir() and is_hart(entry)]


def text_models(entries: Sequence[Path]) -> list[Path]:
    """Folders that may hold the text model, told by name: itself, or what the hub's cache has inside of it."""
    configs = (entry for entry in entries if entry.name == "config.json")
    return [config.parent for config in configs if TEXT_MODEL in "/".join(config.parts[-4:-1])]


def find_hart(folder: Path, entries: Sequence[Path], text: Path | None = None, name: str = "") -> HartFiles:
    """The files of a HART model.

    Args:
        folder: with llm/ and tokenizer/.
        entries: where the text model is looked for when it is not `text` and not in the folder.

    Raises:
        CheckpointError: something is missing or of another kind; the message says what.
    """
    text = text or _text_model(folder, entries)
    if text is None:
        raise CheckpointError(f"for {folder} its text model (the folder {TEXT_MODEL}) was not found; put it there, or choose it")
    read_config(text)
    find_system_prompt(folder)
    transformer = weights_file(folder / "llm")
    config = open_hart(open_tensors(transformer), read_settings(transformer.parent))[1]
    area = AREAS.get(config.sides[-1], "1M")
    return HartFiles(
        name or str(folder), transformer, folder / "tokenizer", text, area, CFG, 1.0, folder, config.sides, config.text_length
    )


def locate(entries: Sequence[Path]) -> tuple[Path | None, Path | None, Path | None]:
    """Where the parts named in EXPECTED are, for a survey; the text model does not count without its system prompt."""
    if not (folders := hart_folders(entries)):
        return None, None, None
    folder = folders[0]
    averaged = next((folder / "llm" / name for name in AVERAGED if (folder / "llm" / name).is_file()), None)
    text = _text_model(folder, entries) if (folder / SYSTEM_FILE).is_file() else None
    return averaged, folder / "tokenizer", text


def _text_model(folder: Path, entries: Sequence[Path]) -> Path | None:
    """In the model's folder or beside it, or else anywhere."""
    places = (folder / "text", folder / TEXT_MODEL, folder.parent / TEXT_MODEL, *text_models(entries))
    return next((path for path in places if (path / "config.json").is_file()), None)


def weights_file(folder: Path) -> Path:
    """The file in llm/ to draw with: the averaged weights, or the others if there are no such.

    Raises:
        CheckpointError: there is none.
    """
    if found := next((folder / name for name in AVERAGED if (folder / name).is_file()), None):
        return found
    others = [path for path in sorted(folder.glob("*")) if path.suffix in MODEL_SUFFIXES] if folder.is_dir() else []
    if not others:
        raise CheckpointError(f"{folder} holds no weights; download {AVERAGED[-1]} into it")
    log.warning(f"{folder} lacks {AVERAGED[-1]}, the averaged weights; {others[0].name} draws worse pictures.")
    return others[0]
