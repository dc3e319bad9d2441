"""Which models there are, which files belong together, and where they lie on this machine.

Facts: Infinity specification, section 1; HART specification, sections 1 and 2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .backbone import HART, NANO, PAPER, Backbone, PromptReader, Published
from .checkpoint import RELEASED_VAES, load_infinity, open_transformer
from .hart_backbone import HartBackbone
from .hart_checkpoint import AVERAGED, is_hart, load_hart, open_hart, read_settings, weights_file
from .sampling import Sampling
from .schedule import Schedule, make_schedule, square_schedule
from .tensors import CODEC, MODEL_SUFFIXES, TRANSFORMER, CheckpointError, identify, listing, open_tensors
from .text import SYSTEM_FILE, PromptEncoder, TextEncoder, find_system_prompt, is_t5, read_qwen_config, read_system_prompt

HART_NAME = "hart-0.7b"
HART_TEXT = "Qwen2-VL-1.5B-Instruct"
HART_EXPECTED = ("llm/ema_model.bin", "tokenizer", f"{HART_TEXT} and {SYSTEM_FILE}")
HART_CFG = 5.5  # the authors' 4.5, which leaves the prompt's own 1 out
HART_AREAS = {16: "0.06M", 32: "0.25M", 64: "1M"}  # last side -> name of the image area


@dataclass(frozen=True)
class ModelFiles:
    """A complete Infinity model; another family overrides what differs."""

    name: str
    transformer: Path
    vae: Path
    text: Path
    area: str  # that it was made for, a key of `schedule.PRESETS`
    cfg: float  # guidance that its authors use
    tau: float  # temperature

    @property
    def published(self) -> Published:
        """Settings of the methods for this model."""
        return NANO if self.name == "nano" else PAPER

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.transformer, self.vae, self.text)

    def schedule(self, height_over_width: float, area: str) -> Schedule:
        """The scales of a picture.

        Raises:
            ValueError: the model cannot draw this shape or area.
        """
        return make_schedule(height_over_width, area)

    def sampling(self, tau: float | tuple[float, ...]) -> Sampling:
        """How tokens are drawn, at this temperature."""
        return Sampling(tau)

    def load_text(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> PromptReader:
        """What reads the prompts.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return TextEncoder.load(self.text, device, dtype)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
        """The model itself; dtype is that of its large matrices and of the codec.

        Raises:
            CheckpointError: a file is missing or damaged, or the files do not belong together.
        """
        return replace(load_infinity(self.transformer, self.vae, self.text, device, dtype), published=self.published)


@dataclass(frozen=True)
class HartFiles(ModelFiles):
    """A complete HART model."""

    folder: Path  # the released one, where the system prompt lies
    sides: tuple[int, ...]  # of the scales, coarsest first
    slots: int  # of text

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
        backbone, width = load_hart(self.transformer, self.vae, device, dtype), read_qwen_config(self.text)["hidden_size"]
        if width + 1 != backbone.text_width:
            raise CheckpointError(
                f"{self.folder} reads text features of {backbone.text_width - 1} numbers, but {self.text} makes {width}; "
                f"use {HART_TEXT}"
            )
        return backbone


def hart_folders(entries: Sequence[Path]) -> list[Path]:
    """Folders among `library.model_entries` that hold a HART model."""
    return [entry for entry in entries if entry.is_dir() and is_hart(entry)]


def find_hart(folder: Path, entries: Sequence[Path], text: Path | None = None, name: str = "") -> HartFiles:
    """The files of a HART model.

    Args:
        folder: with llm/ and tokenizer/.
        entries: where the text model is looked for when it is not `text` and not in the folder.

    Raises:
        CheckpointError: something is missing or of another kind; the message says what.
    """
    text = text or _hart_text(folder, entries)
    if text is None:
        raise CheckpointError(f"for {folder} its text model (the folder {HART_TEXT}) was not found; put it there, or choose it")
    read_qwen_config(text)
    find_system_prompt(folder)
    transformer = weights_file(folder / "llm")
    config = open_hart(open_tensors(transformer), read_settings(transformer.parent))[1]
    area = HART_AREAS.get(config.sides[-1], "1M")
    files = (name or str(folder), transformer, folder / "tokenizer", text)
    return HartFiles(*files, area, HART_CFG, 1.0, folder, config.sides, config.text_length)


def locate_hart(entries: Sequence[Path]) -> tuple[Path | None, Path | None, Path | None]:
    """Where the parts named in HART_EXPECTED are, for a survey; the text model does not count without its system prompt."""
    if not (folders := hart_folders(entries)):
        return None, None, None
    folder = folders[0]
    averaged = next((folder / "llm" / name for name in AVERAGED if (folder / "llm" / name).is_file()), None)
    text = _hart_text(folder, entries) if (folder / SYSTEM_FILE).is_file() else None
    return averaged, folder / "tokenizer", text


def _hart_text(folder: Path, entries: Sequence[Path]) -> Path | None:
    """In the model's folder or beside it, or else anywhere."""
    places = (folder / "text", folder / HART_TEXT, folder.parent / HART_TEXT, *text_models(entries))
    return next((path for path in places if (path / "config.json").is_file()), None)


TEXT_ENCODER = "flan-t5-xl"
NANO_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"
DEPTH = 6  # folders below a root that are searched; enough for the hub's cache layout


@dataclass(frozen=True)
class Release:
    """A published model: its files and the settings it was made for, see `ModelFiles`."""

    transformer: str  # file, or directory of shards
    vae: str
    width: int  # C, by which an unnamed copy is recognised
    area: str
    cfg: float
    tau: float

    def files(self, name: str, transformer: Path, vae: Path, text: Path) -> ModelFiles:
        return ModelFiles(name, transformer, vae, text, self.area, self.cfg, self.tau)


VAE56 = "infinity_vae_d56_f8_14_patchify.pth"
RELEASES = {
    "125m": Release("infinity_125M_256x256.pth", "infinity_vae_d16.pth", 768, "0.06M", 4.0, 0.5),
    "2b": Release("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", 2048, "1M", 3.0, 0.5),
    "8b": Release("infinity_8b_weights", VAE56, 3584, "1M", 3.0, 1.0),
    "8b-512": Release("infinity_8b_512x512_weights", VAE56, 3584, "0.25M", 3.0, 1.0),
}
EMBEDDED = Release("transformer.safetensors", "vae.safetensors", 0, "0.25M", 1.5, 0.5)
UNKNOWN = Release("transformer.safetensors", "vae.safetensors", 0, "1M", 3.0, 0.5)  # settings for models of one's own
NAMES = ("nano", *RELEASES, HART_NAME)


@dataclass(frozen=True)
class ModelStatus:
    """What was found of a model; None = not found."""

    name: str
    expected: tuple[str, str, str]  # released names of transformer, VAE and text encoder, which belong together
    transformer: Path | None
    vae: Path | None
    text: Path | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Released names of what was not found."""
        found = (self.transformer, self.vae, self.text)
        return tuple(name for name, path in zip(self.expected, found, strict=True) if path is None)


def default_roots() -> tuple[Path, ...]:
    """Where models are looked for: MOSS_MODELS (several separated like PATH), ./models, ~/ComfyUI/models."""
    named = [Path(entry).expanduser() for entry in os.environ.get("MOSS_MODELS", "").split(os.pathsep) if entry]
    return (*named, Path("models"), Path.home() / "ComfyUI" / "models")


def find_model(name_or_path: str, roots: Sequence[Path]) -> ModelFiles:
    """The files of a model.

    Args:
        name_or_path: "nano" (embedded), "125m", "2b", "8b", "8b-512", "hart-0.7b" (found by their released names, as
            released or converted to safetensors, anywhere below the roots), or a directory with a transformer, its VAE
            and a text encoder, or with a HART model.

    Raises:
        CheckpointError: unknown name, or a file is missing; the message lists the released names of what is missing.
    """
    name = name_or_path.lower()
    if name == "nano":
        return _of_directory(name, NANO_FOLDER, (), EMBEDDED)
    if name in RELEASES:
        return _released(name, roots)
    if name == HART_NAME:
        return _hart(roots)
    if is_hart(Path(name_or_path)):
        return find_hart(Path(name_or_path), model_entries(roots))
    if Path(name_or_path).is_dir():
        return _of_directory(name_or_path, Path(name_or_path), roots)
    raise CheckpointError(f"there is no model {name_or_path!r}; choose {', '.join(NAMES)} or a directory that holds a model")


def assemble(transformer: Path, vae: Path | None, text: Path | None, roots: Sequence[Path]) -> ModelFiles:
    """A model from a transformer of one's choice; what is None is looked for beside it, then below the roots.

    Raises:
        CheckpointError: no Infinity transformer, or no VAE or text encoder that belongs to it was found.
    """
    config = open_transformer(open_tensors(transformer))[1]
    beside, entries = _children(transformer.parent), model_entries([transformer.parent, *roots])
    belongs = RELEASED_VAES.get(config.bits, EMBEDDED.vae)
    vae = vae or _named(belongs, entries) or _named(EMBEDDED.vae, beside)
    text = text or _text_in(beside, transformer.parent) or _t5(entries)
    if missing := _absent({f"its VAE ({belongs})": vae, f"its text encoder (the folder {TEXT_ENCODER})": text}):
        raise CheckpointError(f"for {transformer.name} {missing} was not found; put it in the models folder, or choose it")
    return _settings(transformer).files(transformer.name, transformer, vae, text)


def parts(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """What lies below the roots and may be a "transformer", a "vae" or a "text" encoder, told by names alone, nothing opened."""
    entries = model_entries(roots)
    text = [e.parent for e in entries if e.name == "config.json"]
    models = [e for e in entries if _is_model(e) and e.parent not in text and e not in text]
    vaes = [e for e in models if "vae" in e.name.lower()]
    return {"transformer": [e for e in models if e not in vaes], "vae": vaes, "text": text}


def survey(roots: Sequence[Path]) -> list[ModelStatus]:
    """What there is of every known model, nano first, then of other models below the roots in folders of their own."""
    entries = model_entries(roots)
    folders = {NANO_FOLDER: "nano"} | {e.parent: str(e.parent) for e in entries if e.name == EMBEDDED.transformer}
    own = (EMBEDDED.transformer, EMBEDDED.vae, "text")
    statuses = [
        ModelStatus(name, own, *(path if path.exists() else None for path in map(folder.joinpath, own)))
        for folder, name in folders.items()
    ]
    hart = ModelStatus(HART_NAME, HART_EXPECTED, *locate_hart(entries))
    return [statuses[0], *(_status(name, entries) for name in RELEASES), hart, *statuses[1:]]


def _released(name: str, roots: Sequence[Path]) -> ModelFiles:
    status = _status(name, model_entries(roots))
    if status.missing:
            raise CheckpointError(
            f"the model {name} is incomplete: {listing(status.missing)} not found below {_listed(roots)}; "
            f"download from FoundationVision/Infinity and google/{TEXT_ENCODER}"
        )
    return RELEASES[name].files(name, status.transformer, status.vae, status.text)


def _hart(roots: Sequence[Path]) -> ModelFiles:
    entries = model_entries(roots)
    if not (folders := hart_folders(entries)):
            raise CheckpointError(
            f"the model {HART_NAME} (a folder with llm and tokenizer in it) was not found below {_listed(roots)}; "
            f"download mit-han-lab/hart-0.7b-1024px and mit-han-lab/{HART_TEXT}"
        )
    return find_hart(folders[0], entries, name=HART_NAME)


def _absent(found: Mapping[str, Path | None]) -> str:
    return listing([part for part, path in found.items() if path is None])


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots)) or "no folder at all"


def _status(name: str, entries: Sequence[Path]) -> ModelStatus:
    release = RELEASES[name]
    expected = (release.transformer, release.vae, TEXT_ENCODER)
    return ModelStatus(name, expected, *(_named(file, entries) for file in expected[:2]), _t5(entries))


def _t5(entries: Sequence[Path]) -> Path | None:
    return next(iter(text_models(entries, TEXT_ENCODER)), None)


def _named(released: str, entries: Sequence[Path]) -> Path | None:
    """An entry with the released name, or converted to safetensors (preferred)."""
    stem = released.removesuffix(".pth")
    return next((e for n in (f"{stem}.safetensors", released) for e in entries if e.name == n), None)


def text_models(entries: Sequence[Path], name: str = HART_TEXT) -> list[Path]:
    """Folders of that name, or inside of one as in the hub's cache, that have a config.json."""
    return [e.parent for e in entries if e.name == "config.json" and name in "/".join(e.parts[-4:-1])]


def model_entries(roots: Sequence[Path]) -> list[Path]:
    """Files and folders below the roots that may belong to a model: root by root, higher ones first, each folder once."""
    found: list[Path] = []
    seen: set[Path] = set()
    for root in roots:
        level = [Path(root)]
        for _ in range(DEPTH):
            children = [child for folder in level if _first_visit(folder, seen) for child in _children(folder)]
            found += children
            level = [child for child in children if child.is_dir()]
    return found


def _first_visit(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder is new; links may lead to one twice, or in circles."""
    real = folder.resolve()
    new = real not in seen
    seen.add(real)
    return new


def _children(folder: Path) -> list[Path]:
    """Sub-folders, model files and config.json of a folder, by name; nothing if it is absent or may not be read."""
    try:
        children = sorted(folder.iterdir())
        return [c for c in children if c.suffix in MODEL_SUFFIXES or c.name == "config.json" or c.is_dir()]
    except OSError:
        return []


def _of_directory(name: str, folder: Path, roots: Sequence[Path], release: Release | None = None) -> ModelFiles:
    """A model in a directory of its own: fixed or released names first, then whatever the contents say."""
    children = _children(folder)
    transformer = _role(TRANSFORMER, [EMBEDDED.transformer, *(r.transformer for r in RELEASES.values())], children)
    vae = _role(CODEC, [EMBEDDED.vae, *(r.vae for r in RELEASES.values())], children)
    text = _text_in(children, folder) or _t5(model_entries([folder, *roots]))
    parts_of = {"transformer.safetensors": transformer, "vae.safetensors": vae, "text (the text encoder)": text}
    if missing := _absent(parts_of):
        raise CheckpointError(f"the model folder {folder} lacks {missing}; put it there, or give another folder")
    return (release or _settings(transformer)).files(name, transformer, vae, text)


def _role(kind: str, names: Sequence[str], children: Sequence[Path]) -> Path | None:
    if found := next(filter(None, (_named(name, children) for name in names)), None):
        return found
    matches = [child for child in children if _is_model(child) and identify(open_tensors(child)) == kind]
    if len(matches) > 1:
        raise CheckpointError(f"{matches[0].parent} holds several files that are {kind}: {listing([m.name for m in matches])}")
    return matches[0] if matches else None


def _is_model(path: Path) -> bool:
    return any(path.glob("*.index.json")) if path.is_dir() else path.suffix in MODEL_SUFFIXES


def _text_in(children: Sequence[Path], folder: Path) -> Path | None:
    """text/, or else the first sub-folder with the files of a T5 encoder."""
    return next((child for child in (folder / "text", *children) if is_t5(child)), None)


def _settings(transformer: Path) -> Release:
    """Settings of the release that a transformer is, by its name or else its width."""
    stem = transformer.name.removesuffix(".safetensors").removesuffix(".pth")
    if by_name := [r for r in RELEASES.values() if r.transformer.removesuffix(".pth") == stem]:
        return by_name[0]
    width = open_transformer(open_tensors(transformer))[1].width
    return next((r for r in RELEASES.values() if r.width == width), UNKNOWN)
