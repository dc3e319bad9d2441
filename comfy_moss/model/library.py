"""Which models there are, which files belong together, and where they lie on this machine.

Facts: docs/infinity.md, section 1; docs/hart.md, sections 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import typed
from . import catalog
from .backbone import HART, NANO, PAPER, Backbone, PromptReader, Published
from .catalog import default_roots as default_roots
from .checkpoint import RELEASED_VAES, fits_bits, load_infinity, open_transformer
from .contents import CODEC, TRANSFORMER, listing
from .family import INFINITY, NSARM, PLAIN, VAREDIT, Family, family_of
from .found import found_plans
from .hart import HartBackbone
from .hart_checkpoint import (
    AVERAGED,
    PARTS,
    hart_folder,
    is_hart,
    load_hart,
    open_hart,
    read_settings,
    weights_file,
)
from .layers import TORCH_LAYERS, Layers
from .sampling import Guidance, PerScale, Ramp, Sampling
from .schedule import Schedule, make_schedule, square_schedule
from .tensors import CheckpointError, open_tensors
from .text import (
    QWEN,
    SYSTEM_FILE,
    PromptEncoder,
    TextEncoder,
    find_system_prompt,
    read_qwen_config,
    read_system_prompt,
)

HART_NAME = "hart-0.7b"
HART_EXPECTED = ("llm/ema_model.bin", "tokenizer", f"{QWEN} and {SYSTEM_FILE}")
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
    family: Family = field(default=PLAIN, kw_only=True)

    @property
    def pictured(self) -> bool:
        """Whether it draws from a picture, not from words alone."""
        return self.family.name != INFINITY

    @property
    def fits_float16(self) -> bool:
        """Whether its blocks may compute in float16, which holds no number beyond 65504 (docs/precision.md).
        """
        return True

    @property
    def told(self) -> str:
        """The model and what its file is taken for, in words for a report."""
        name = Path(self.name).name
        return name if name == "nano" else f"{name}, taken for {self.family.name} {self.family.reason}"

    @property
    def published(self) -> Published:
        """Settings of the methods for this model."""
        if self.name != "nano":
            return PAPER
        found = (one for one in found_plans() if one.model == self.name)
        chosen = {one.name: one.text for one in found if one.name.startswith("plan")}
        return replace(NANO, plans={**NANO.plans, **chosen})

    @property
    def squares_only(self) -> bool:
        """Whether it was trained on square pictures alone."""
        return self.name == "nano"

    @property
    def areas(self) -> tuple[str, ...]:
        """What it was trained on, keys of `schedule.PRESETS`."""
        return NANO_AREAS if self.name == "nano" else (self.area,)

    def learned(self, height_over_width: float, area: str) -> bool:
        """Whether it was trained on such pictures."""
        return area in self.areas and (height_over_width == 1 or not self.squares_only)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is read, files and folders."""
        return (self.transformer, self.vae, self.text)

    @property
    def stamp(self) -> str:
        """Changes with the size or the time of any file that is read, those in folders included.

        Raises:
            OSError: a file is gone.
        """
        files = [
            file for path in self.paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])
        ]
        return repr([(str(file), (told := file.stat()).st_size, told.st_mtime_ns) for file in files])

    def ratio_for(self, height_over_width: float) -> float:
        """The ratio h/w that a picture of some ratio is drawn in."""
        return height_over_width

    def schedule(self, height_over_width: float, area: str) -> Schedule:
        """The scales of a picture.

        Raises:
            ValueError: the model cannot draw this shape or area.
        """
        return make_schedule(height_over_width, area)

    def guidance(self, cfg: PerScale) -> Guidance:
        """Guidance as this family understands one number: the same at all scales."""
        return Guidance(cfg)

    def sampling(self, tau: PerScale) -> Sampling:
        """How tokens are drawn, at this temperature."""
        return Sampling(tau)

    def load_text(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        tokenizer: Path | None = None, operations: Any = nn,
    ) -> PromptReader:
        """What reads the prompts.

        Args:
            tokenizer: directory of one, for encoders in a file that has none beside it.
            operations: classes of its layers, see `layers`.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return TextEncoder.load(self.text, device, dtype, tokenizer, operations)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        layers: Layers = TORCH_LAYERS,
    ) -> Backbone:
        """The model itself; dtype is that of its large matrices and of the codec, unless `layers` says
        otherwise.

        Raises:
            CheckpointError: a file is missing or damaged, or the files do not belong together.
        """
        files = (self.transformer, self.vae, self.text)
        backbone = load_infinity(*files, device, dtype, self.family.name, layers)
        return replace(backbone, published=self.published)


@dataclass(frozen=True)
class HartFiles(ModelFiles):
    """A complete HART model."""

    folder: Path  # the released one, where the system prompt lies
    sides: tuple[int, ...]  # of the scales, coarsest first
    text_tokens: int  # of every prompt

    @property
    def fits_float16(self) -> bool:
        return False

    @property
    def told(self) -> str:
        return Path(self.name).name

    @property
    def published(self) -> Published:
        return HART

    @property
    def paths(self) -> tuple[Path, ...]:
        return (*super().paths, self.transformer.parent, self.folder / SYSTEM_FILE)

    def ratio_for(self, height_over_width: float) -> float:
        return 1.0

    def schedule(self, height_over_width: float, area: str) -> Schedule:
        side = 16 * self.sides[-1]
        if height_over_width != 1 or area != self.area:
            raise ValueError(
                f"this model draws {side} x {side} pictures only; choose 1:1 and the model's own area "
                f"({self.area})"
            )
        return square_schedule(self.sides)

    def guidance(self, cfg: PerScale) -> Guidance:
        """One number grows along the scales, a list is taken as it stands."""
        return Guidance(cfg if isinstance(cfg, tuple) else Ramp(cfg))

    def sampling(self, tau: PerScale) -> Sampling:
        return Sampling(tau, top_k=0, top_p=0.0)

    def load_text(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        tokenizer: Path | None = None, operations: Any = nn,
    ) -> PromptEncoder:
        prompt = read_system_prompt(self.folder)
        return PromptEncoder.load(self.text, prompt, self.text_tokens, device, dtype, operations)

    def load(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
        layers: Layers = TORCH_LAYERS,
    ) -> HartBackbone:
        backbone = load_hart(self.transformer, self.vae, device, dtype, layers)
        width = read_qwen_config(self.text)["hidden_size"]
        if width != backbone.text_width:
            raise CheckpointError(
                f"{self.folder} reads text features of {backbone.text_width} numbers, but {self.text} makes "
                f"{width}; use {QWEN}"
            )
        return backbone


def hart_folders(entries: Sequence[Path]) -> list[Path]:
    """Folders among `catalog.model_entries` that hold a HART model."""
    outer = {entry.parent for entry in entries if entry.name in PARTS}
    return [entry for entry in entries if entry in outer and is_hart(entry)]


def find_hart(folder: Path, entries: Sequence[Path], text: Path | None = None, name: str = "") -> HartFiles:
    """The files of a HART model.

    Args:
        folder: with llm/ and tokenizer/.
        entries: where the text model is looked for when it is not `text` and not in the folder.

    Raises:
        CheckpointError: something is missing or of another kind; the message says what.
    """
    transformer = weights_file(folder / "llm")
    config = open_hart(open_tensors(transformer), read_settings(transformer.parent))[1]
    text = text or _hart_text(folder, entries, config.text_width)
    if text is None:
        raise CheckpointError(
            f"for {folder} its text model (the folder {QWEN}) was not found; put it there, or choose it"
        )
    read_qwen_config(text)
    find_system_prompt(folder)
    area = HART_AREAS.get(config.sides[-1], "1M")
    files = (name or str(folder), transformer, folder / "tokenizer", text)
    return HartFiles(*files, area, HART_CFG, 1.0, folder, config.sides, config.text_length)


def locate_hart(entries: Sequence[Path]) -> tuple[Path | None, Path | None, Path | None]:
    """Where the parts named in HART_EXPECTED are, for a survey; the text model does not count without its
    system prompt.
    """
    if not (folders := hart_folders(entries)):
        return None, None, None
    folder = folders[0]
    averaged = next((folder / "llm" / name for name in AVERAGED if (folder / "llm" / name).is_file()), None)
    text = _hart_text(folder, entries) if (folder / SYSTEM_FILE).is_file() else None
    return averaged, folder / "tokenizer", text


def _hart_text(folder: Path, entries: Sequence[Path], width: int | None = None) -> Path | None:
    """In the model's folder or beside it, or else anywhere; of several the one whose features have that
    width.
    """
    places = (folder / "text", folder / QWEN, folder.parent / QWEN, *catalog.text_models(entries))
    found = [path for path in dict.fromkeys(places) if (path / "config.json").is_file()]

    def fits(path: Path) -> bool:
        return catalog.is_whole(path) and width in (None, read_qwen_config(path)["hidden_size"])

    return catalog.best(found, fits, "the text model")


TEXT_ENCODER = "flan-t5-xl"
NANO_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "nano"


@dataclass(frozen=True)
class Release:
    """A published model: its files and the settings it was made for, see `ModelFiles`."""

    transformer: str  # file, or directory of shards
    vae: str
    width: int  # C, by which an unnamed copy is recognised
    area: str
    cfg: float
    tau: float
    family: str = INFINITY
    hub: str = "FoundationVision/Infinity"

    def files(
        self, name: str, transformer: Path, vae: Path, text: Path, family: Family | None = None
    ) -> ModelFiles:
        family = family or Family(self.family, "by its name", self.area)
        return ModelFiles(name, transformer, vae, text, self.area, self.cfg, self.tau, family=family)


VAE56 = "infinity_vae_d56_f8_14_patchify.pth"
VAREDIT_HUB = "HiDream-ai/VAREdit"
RELEASES = {
    "125m": Release("infinity_125M_256x256.pth", "infinity_vae_d16.pth", 768, "0.06M", 4.0, 0.5),
    "2b": Release("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", 2048, "1M", 3.0, 0.5),
    "8b": Release("infinity_8b_weights", VAE56, 3584, "1M", 3.0, 1.0),
    "8b-512": Release("infinity_8b_512x512_weights", VAE56, 3584, "0.25M", 3.0, 1.0),
    "varedit-8b-1024": Release("8B-1024.pth", VAE56, 3584, "1M", 3.0, 0.1, VAREDIT, VAREDIT_HUB),
    "varedit-8b-512": Release("8B-512.pth", VAE56, 3584, "0.25M", 3.0, 0.1, VAREDIT, VAREDIT_HUB),
    "varedit-2b-512": Release(
        "2B-512.pth", "infinity_vae_d32reg.pth", 2048, "0.25M", 3.0, 0.1, VAREDIT, VAREDIT_HUB
    ),
    "nsarm": Release("NSARM.pth", VAE56, 3584, "1M", 1.0, 0.5, NSARM, "the links of Xiangtaokong/NSARM"),
}
EMBEDDED = Release("transformer.safetensors", "vae.safetensors", 0, "0.25M", 1.5, 0.5)
# settings for models of one's own
UNKNOWN = Release("transformer.safetensors", "vae.safetensors", 0, "1M", 3.0, 0.5)
NAMES = ("nano", *RELEASES, HART_NAME)
NANO_AREAS = ("0.25M", "1M")  # both with the same weights
NANO_PIXELS, PIXELS = 8, 16  # a side of a token of the last scale, of nano and of the released models


def facts() -> dict[str, dict[str, Any]]:
    """What a known model uses unless somebody says otherwise, by the name of its file without the ending."""

    def told(
        area: str, cfg: float, tau: float, pixels: int = PIXELS, areas: Sequence[str] = (),
        squares: bool = False,
    ) -> dict:
        areas = areas or (area,)
        return {
            "area": area, "areas": areas, "cfg": cfg, "tau": tau, "pixels": pixels, "squares": squares,
        }

    released = {r.transformer.removesuffix(".pth"): told(r.area, r.cfg, r.tau) for r in RELEASES.values()}
    nano = told(EMBEDDED.area, EMBEDDED.cfg, EMBEDDED.tau, NANO_PIXELS, NANO_AREAS, True)
    return released | {"nano": nano, "ema_model": told("1M", HART_CFG, 1.0, squares=True)}


@dataclass(frozen=True)
class ModelStatus:
    """What was found of a model; None = not found."""

    name: str
    # released names of transformer, VAE and text encoder, which belong together
    expected: tuple[str, str, str]
    transformer: Path | None
    vae: Path | None
    text: Path | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Released names of what was not found."""
        found = (self.transformer, self.vae, self.text)
        return tuple(name for name, path in zip(self.expected, found, strict=True) if path is None)


def find_model(name_or_path: str, roots: Sequence[Path]) -> ModelFiles:
    """The files of a model.

    Args:
        name_or_path: "nano" (embedded), "125m", "2b", "8b", "8b-512", "hart-0.7b" (found by their released
            names, as released or converted to safetensors, anywhere below the roots), a directory with a
            transformer, its VAE and a text encoder, or with a HART model, or the file of a transformer, whose
            other parts are looked for.

    Raises:
        CheckpointError: unknown name, or a file is missing; the message lists the released names of what is
            missing.
    """
    name = _known_name(name_or_path)
    if name == "nano":
        return _of_directory(name, NANO_FOLDER, (), EMBEDDED)
    if name in RELEASES:
        return _released(name, roots)
    if name == HART_NAME:
        return _hart(roots)
    try:
        return _at(typed.path(name_or_path), roots)
    except (ValueError, OSError) as error:
        raise error if isinstance(error, CheckpointError) else _unknown(name_or_path) from error


def _known_name(text: str) -> str | None:
    """One of NAMES, however it is written: "2B", "Infinity-2B", "infinity_8b_512", "HART"."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("infinity").removesuffix("reg")
    aliases = {re.sub(r"[^a-z0-9]", "", name): name for name in NAMES} | {
        "hart": HART_NAME, "nanoembedded": "nano",
    }
    return aliases.get(letters) if not re.search(r"[/\\]", text) else None


def _at(path: Path, roots: Sequence[Path]) -> ModelFiles:
    """A model by its place."""
    if folder := hart_folder(path):
        return find_hart(folder, catalog.model_entries([folder.parent, *roots]))
    if path.is_file() or (path.is_dir() and catalog.holds_model(path)):
        return assemble(path, None, None, roots)
    if not path.is_dir():
        raise _unknown(str(path))
    inside = catalog.model_entries([path])
    if not any(map(catalog.holds_model, catalog.children(path))) and (folders := hart_folders(inside)):
        return find_hart(folders[0], catalog.model_entries([path, *roots]))
    return _of_directory(str(path), path, roots)


def _unknown(name: str) -> CheckpointError:
    return CheckpointError(
        f"there is no model {name[:200]!r}; choose {', '.join(NAMES)} or a directory that holds a model"
    )


def assemble(
    transformer: Path, vae: Path | None, text: Path | None, roots: Sequence[Path], family: str | None = None
) -> ModelFiles:
    """A model from a transformer of one's choice; what is None is looked for beside it, then below the roots.

    Args:
        family: a key of `family.BACKBONES`; None = what the file is taken for.

    Raises:
        CheckpointError: no Infinity transformer, one that contradicts the family, or no VAE or text encoder
            that belongs to it was found.
    """
    config = open_transformer(open_tensors(transformer))[1]
    beside, entries = (
        catalog.children(transformer.parent), catalog.model_entries([transformer.parent, *roots]),
    )
    belongs = RELEASED_VAES.get(config.bits, EMBEDDED.vae)
    vaes = [
        *catalog.all_named(belongs, entries), *catalog.all_named(EMBEDDED.vae, beside),
    ] or catalog.of_kind(CODEC, beside)
    vae = vae or catalog.best(vaes, lambda path: fits_bits(path, config.bits), "the VAE")
    texts = [*catalog.texts_in(beside, transformer.parent), *catalog.text_models(entries, TEXT_ENCODER)]
    texts += catalog.text_files(entries, TEXT_ENCODER)
    text = text or catalog.text_for(config.text_width, texts)
    if missing := _absent(
        {
            f"its VAE ({belongs}, into models/vae)": vae,
            f"its text encoder (the folder {TEXT_ENCODER}, into models/text_encoders)": text,
        }
    ):
        message = f"for {transformer.name} {missing} was not found; put it there, or choose it"
        raise CheckpointError(message + catalog.instead(beside))
    release, found = _settings(transformer, family)
    return release.files(transformer.name, transformer, vae, text, found)


def survey(roots: Sequence[Path]) -> list[ModelStatus]:
    """What there is of every known model, nano first, then of other models below the roots in folders of
    their own.
    """
    entries = catalog.model_entries(roots)
    folders = {NANO_FOLDER: "nano"} | {
        e.parent: str(e.parent) for e in entries if e.name == EMBEDDED.transformer
    }
    own = (EMBEDDED.transformer, EMBEDDED.vae, "text")
    statuses = [
        ModelStatus(name, own, *(path if path.exists() else None for path in map(folder.joinpath, own)))
        for folder, name in folders.items()
    ]
    hart = ModelStatus(HART_NAME, HART_EXPECTED, *locate_hart(entries))
    return [statuses[0], *(_status(name, entries) for name in RELEASES), hart, *statuses[1:]]


def _released(name: str, roots: Sequence[Path]) -> ModelFiles:
    status = _status(name, catalog.model_entries(roots))
    if status.missing:
        raise CheckpointError(
            f"the model {name} is incomplete: {listing(status.missing)} not found below {_listed(roots)}; "
            f"download from {RELEASES[name].hub} and google/{TEXT_ENCODER}"
        )
    return RELEASES[name].files(name, status.transformer, status.vae, status.text)


def _hart(roots: Sequence[Path]) -> ModelFiles:
    entries = catalog.model_entries(roots)
    # a root may be the model, or its llm
    inside = [folder for root in roots if (folder := hart_folder(Path(root)))]
    if not (folders := [*inside, *hart_folders(entries)]):
        raise CheckpointError(
            f"the model {HART_NAME} (a folder with llm and tokenizer in it) was not found below "
            f"{_listed(roots)}; download mit-han-lab/hart-0.7b-1024px and mit-han-lab/{QWEN}"
        )
    return find_hart(folders[0], entries, name=HART_NAME)


def _absent(found: Mapping[str, Path | None]) -> str:
    return listing([part for part, path in found.items() if path is None])


def _listed(roots: Sequence[Path]) -> str:
    return ", ".join(map(str, roots)) or "no folder at all"


def _status(name: str, entries: Sequence[Path]) -> ModelStatus:
    release = RELEASES[name]
    expected = (release.transformer, release.vae, TEXT_ENCODER)
    text = catalog.text_for(None, catalog.text_models(entries, TEXT_ENCODER))
    return ModelStatus(name, expected, *(catalog.named(file, entries) for file in expected[:2]), text)


def _of_directory(
    name: str, folder: Path, roots: Sequence[Path], release: Release | None = None
) -> ModelFiles:
    """A model in a directory of its own: fixed or released names first, then whatever the contents say, here
    or deeper.
    """
    beside = catalog.children(folder)
    inside = beside if any(map(catalog.holds_model, beside)) else catalog.model_entries([folder])[1:]
    transformers = _in_role(
        TRANSFORMER, [EMBEDDED.transformer, *(r.transformer for r in RELEASES.values())], inside
    )
    vaes = _in_role(CODEC, [EMBEDDED.vae, *(r.vae for r in RELEASES.values())], inside)
    texts = [
        *catalog.texts_in(inside, folder),
        *catalog.text_models(catalog.model_entries([folder, *roots]), TEXT_ENCODER),
    ]
    transformer = catalog.best(
        transformers, lambda path: any(_fit(path, vae) for vae in vaes), "the transformer"
    )
    vae = catalog.best(vaes, lambda path: _fit(transformer, path), "the VAE")
    text = catalog.text_for(_width(transformer) if len(texts) > 1 else None, texts)
    if transformer and not vae:
        return assemble(transformer, None, text, roots)
    if missing := _absent(
        {"transformer.safetensors": transformer, "vae.safetensors": vae, "text (the text encoder)": text}
    ):
        message = f"the model folder {folder} lacks {missing}; put it there, or give another folder"
        raise CheckpointError(message + catalog.instead(inside))
    release, found = (release, PLAIN) if release else _settings(transformer)
    return release.files(name, transformer, vae, text, found)


def _in_role(kind: str, names: Sequence[str], inside: Sequence[Path]) -> list[Path]:
    """Those of the names, best first, or else those of the kind."""
    return next(
        (found for name in names if (found := catalog.all_named(name, inside))), None
    ) or catalog.of_kind(kind, inside)


def _fit(transformer: Path | None, vae: Path) -> bool:
    return transformer is not None and fits_bits(vae, open_transformer(open_tensors(transformer))[1].bits)


def _width(transformer: Path | None) -> int | None:
    """Ct that a transformer reads, if it can be read."""
    try:
        return transformer and open_transformer(open_tensors(transformer))[1].text_width
    except CheckpointError:
        return None


def _settings(transformer: Path, family: str | None = None) -> tuple[Release, Family]:
    """Settings of the release that a transformer is, by its name or else its width, and its family."""
    stem = transformer.name.removesuffix(".safetensors").removesuffix(".pth")
    by_name = [release for release in RELEASES.values() if release.transformer.removesuffix(".pth") == stem]
    if by_name and family is None and by_name[0].family == INFINITY:
        return by_name[0], PLAIN
    tensors = open_tensors(transformer)
    found = family_of(tensors, family)
    kin = [release for release in RELEASES.values() if release.family == found.name]
    width = open_transformer(tensors)[1].width
    fitting = [release for release in kin if release.width == width and found.area in (None, release.area)]
    other = UNKNOWN if found.name == INFINITY else kin[0]
    release = next((one for one in [*by_name, *fitting] if one in kin), other)
    return replace(release, area=found.area or release.area), found
