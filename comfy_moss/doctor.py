"""Doctor: what is installed, which model files lie where, what each is, what fits together and what is
missing.

The text is for bug reports.  Folders are numbered, files are told by their place inside of them; where the
folders lie on this machine is left out unless asked for.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__
from .model.catalog import holds_model, is_whole, kind_of, model_entries
from .model.checkpoint import RELEASED_VAES, open_transformer, open_vae
from .model.contents import CODEC, HART_TRANSFORMER, TRANSFORMER, reads_safely
from .model.family import family_of, refuse_others
from .model.hart_checkpoint import PARTS, is_hart
from .model.library import RELEASES, TEXT_ENCODER, find_hart, survey
from .model.tensors import CheckpointError, open_tensors
from .model.text import is_t5, read_qwen_config, text_width
from .ops import choose

PACKAGES = (
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "sentencepiece",
    "numpy",
    "pillow",
    "einops",
)


@dataclass(frozen=True)
class Finding:
    """A file or folder that matters."""

    path: Path
    words: str  # what it is
    kind: str = ""  # a key of `contents.MARKS`, "text", "hart", or nothing
    size: int = 0  # bits a token of a transformer, channels of a codec, numbers of a text encoder
    text_width: int = 0  # that a transformer reads


def report(roots: Sequence[Path], paths: bool = False) -> str:
    """The whole text.

    Args:
        roots: folders to look into.
        paths: say where they are.
    """
    lines = [*_installed(), ""]
    findings: list[Finding] = []
    for number, root in enumerate(roots, 1):
        where = f": {root.absolute()}" if paths else ""
        found = list(_findings(root))
        lines.append(f"Folder {number}{where} ({'nothing found' if not found else f'{len(found)} found'})")
        lines += [f"  {_place(finding.path, root)}: {finding.words}" for finding in found]
        findings += found
    lines += ["", "What fits together", *(f"  {line}" for line in _pairs(findings, roots))]
    lines += ["", "Released models", *(f"  {line}" for line in _releases(roots))]
    text = "\n".join(lines)
    return text if paths else _without_paths(text, roots)


def _installed() -> Iterator[str]:
    yield f"MoSs {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield f"torch {torch.__version__}, " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    read = "read" if reads_safely() else "refused, this torch is older than 2.6"
    yield f"PyTorch files (.pth, .bin): {read}"
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "unknown processor"
    yield f"Device: {device} ({name}, {torch.get_num_threads()} threads)"
    yield f"Attention and RoPE: {choose('auto', device)[1]}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _findings(root: Path) -> Iterator[Finding]:
    """Models, their parts, and files that look like such and are not; parts inside of others are not told
    again.
    """
    entries = model_entries([root])
    texts = {entry.parent for entry in entries if entry.name == "config.json"}
    harts = {entry for entry in entries if entry.name in PARTS and is_hart(entry.parent)}
    told = {*texts, *harts}
    for entry in entries:
        if entry in texts and not entry.parent == root / "llm" and entry not in harts:
            yield _text(entry)
        elif entry.is_dir() and is_hart(entry):
            yield _hart(entry, root)
        elif holds_model(entry) and entry.parent not in told:
            told.add(entry)
            yield _model(entry)


def _text(folder: Path) -> Finding:
    state = "whole" if is_whole(folder) else "without weights or tokenizer: download the folder as a whole"
    if not is_t5(folder):
        try:
            width = read_qwen_config(folder)["hidden_size"]
        except CheckpointError as error:
            return Finding(folder, f"no text encoder of use here: {_told(error, folder)}")
        return Finding(folder, f"a Qwen2 text model of {width} numbers a token (for HART), {state}")
    width = text_width(folder)
    return Finding(folder, f"a T5 text encoder of {width} numbers a token, {state}", "text", width)


def _hart(folder: Path, root: Path) -> Finding:
    try:
        files = find_hart(folder, model_entries([root]))
    except (CheckpointError, OSError) as error:
        return Finding(folder, f"a HART model, not ready: {_told(error, folder)}")
    return Finding(
        folder, f"a HART model, ready, {16 * files.sides[-1]} pixels, text model {files.text.name}", "hart"
    )


def _model(path: Path) -> Finding:
    """A file, or a folder of shards, by its content."""
    try:
        tensors = open_tensors(path)
        refuse_others(tensors)
        size = sum(os.path.getsize(file) for file in tensors.files) / 2**20
        kind = kind_of(path) or ""
        if kind == TRANSFORMER:
            config = open_transformer(tensors)[1]
            words = f"{config.depth} blocks, {config.width} wide, {config.bits} bits a token, {size:.0f} MiB"
            family = family_of(tensors)
            words += f", taken for {family.name} {family.reason}"
            return Finding(path, f"{kind}, {words}", kind, config.bits, config.text_width)
        if kind == CODEC:
            channels = open_vae(tensors)[1].channels
            return Finding(path, f"{kind} of {channels} channels, {size:.0f} MiB", kind, channels)
    except (CheckpointError, OSError) as error:
        return Finding(path, _told(error, path))
    return Finding(path, f"{kind}, {size:.0f} MiB", kind if kind == HART_TRANSFORMER else "")


def _told(error: Exception, path: Path) -> str:
    """A sentence without the name it begins with."""
    text = str(error)
    for name in (str(path), path.name):
        text = text.removeprefix(f"{name} ")
    return text


def _pairs(findings: Sequence[Finding], roots: Sequence[Path]) -> Iterator[str]:
    """For every transformer what serves it, or what it lacks and where that goes."""
    transformers = [finding for finding in findings if finding.kind == TRANSFORMER]
    if not transformers:
        yield "no Infinity transformer was found; put one into models/infinity"
    for one in transformers:
        vaes = [f for f in findings if f.kind == CODEC and one.size in (f.size, 4 * f.size)]
        texts = [f for f in findings if f.kind == "text" and f.size == one.text_width]
        vae = RELEASED_VAES.get(one.size, f"a VAE of {one.size} channels")
        lacks = [f"its VAE ({vae}, into models/vae)"] * (not vaes)
        lacks += [f"its text encoder (the folder {TEXT_ENCODER}, into models/text_encoders)"] * (not texts)
        serves = ", ".join(_short(f.path, roots) for f in (*vaes, *texts))
        state = f"lacks {' and '.join(lacks)}" if lacks else "complete"
        yield f"{_short(one.path, roots)}: {state}{f'; fitting: {serves}' if serves else ''}"


def _releases(roots: Sequence[Path]) -> Iterator[str]:
    for status in survey(roots):
        if status.name in RELEASES or not status.missing:
            missing = f"missing {', '.join(status.missing)}" if status.missing else "complete"
            yield f"{_short(Path(status.name), roots)}: {missing}"


def _place(path: Path, root: Path) -> str:
    return "the folder itself" if path == root else path.relative_to(root).as_posix() + "/" * path.is_dir()


def _short(path: Path, roots: Sequence[Path]) -> str:
    """A path by its place inside of a root."""
    root = next((root for root in roots if path.is_relative_to(root)), None)
    return path.as_posix() if root is None else _place(path, root)


def _without_paths(text: str, roots: Sequence[Path]) -> str:
    """Sentences of other modules name files in full; here the roots and the home folder become words."""
    for number, root in sorted(enumerate(roots, 1), key=lambda pair: -len(str(pair[1].absolute()))):
        for place in {str(root.absolute()), str(root)} - {"", "."}:
            text = text.replace(place + os.sep, "").replace(place, f"folder {number}")
    return text.replace(str(Path.home()), "~")
