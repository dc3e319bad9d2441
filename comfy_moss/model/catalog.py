"""Model files in folders: which entries count, what each is by its content, and which one of several is
meant.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .. import typed
from .contents import MARKS, TEXT, identify, is_leftover, is_model_name, listing, preference
from .tensors import CheckpointError, open_tensors
from .text import QWEN, is_t5, text_width

REPOSITORIES = (  # of the hub
    "FoundationVision/Infinity", "HiDream-ai/VAREdit", "google/flan-t5-xl", "mit-han-lab/hart-0.7b-1024px",
    f"mit-han-lab/{QWEN}",
)
DEPTH = 6  # folders below a root that are searched; enough for the hub's cache layout
SHARD = re.compile(r".*-\d+-of-\d+")
log = logging.getLogger(__name__)


def model_entries(roots: Sequence[Path]) -> list[Path]:
    """Folders, model files and config.json: root by root, the root itself first, each folder once.

    What Finder, downloads and trainers leave beside models is passed over.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for root in roots:
        level = [Path(root)] if _first_visit(Path(root), seen) else []
        found += level
        for _ in range(DEPTH):
            level, above = [], level
            for folder in above:
                files, folders = entries(folder)
                new = [inner for inner in folders if _first_visit(inner, seen)]
                found += sorted([*files, *new])
                level += new
    return found


def entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Model files with config.json, and sub-folders; nothing if the folder is absent or may not be read."""
    try:
        with os.scandir(folder) as found:
            inside = sorted(
                (entry for entry in found if not is_leftover(entry.name)), key=lambda entry: entry.name
            )
            folders = [Path(entry.path) for entry in inside if entry.is_dir()]
            names = [entry for entry in inside if entry.name == "config.json" or is_model_name(entry.name)]
            return [Path(entry.path) for entry in names if not entry.is_dir()], folders
    except OSError:
        return [], []


def children(folder: Path) -> list[Path]:
    """Model files, config.json and sub-folders of one folder, by name."""
    return sorted(path for paths in entries(folder) for path in paths)


def _first_visit(folder: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is there and new; links may lead to one twice, or in circles."""
    try:
        found = folder.stat()
    except (OSError, ValueError):
        return False
    new = stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in seen
    seen.add((found.st_dev, found.st_ino))
    return new


def holds_model(path: Path) -> bool:
    """Whether a path is a model file, or a folder with an index of shards; a single shard is neither."""
    if path.is_dir():
        return any(not is_leftover(index.name) for index in path.glob("*.index.json"))
    return is_whole_name(path.name)


def is_whole_name(name: str) -> bool:
    """Whether a file may be a whole model by its name."""
    return is_model_name(name) and not SHARD.fullmatch(name.rpartition(".")[0])


def kind_of(path: Path) -> str | None:
    """What a model file or folder is, a key of `contents.MARKS` or words for a message; None = unreadable.

    Only headers are read, and those once for each file that does not change.
    """
    try:
        told = os.stat(path)
        inside = [entry.stat() for entry in os.scandir(path)] if stat.S_ISDIR(told.st_mode) else []
    except OSError:
        return None
    return _kind_of(path, tuple((file.st_size, file.st_mtime_ns) for file in (told, *inside)))


@functools.lru_cache(maxsize=4096)
def _kind_of(path: Path, stamps: tuple) -> str | None:
    try:
        return identify(open_tensors(path))
    except CheckpointError as error:
        log.debug(f"passed over: {error}")
        return None


def of_kind(kind: str, paths: Iterable[Path]) -> list[Path]:
    """Those that are of a kind by content, the best copy first."""
    models = (path for path in paths if holds_model(path))
    return sorted((path for path in models if kind_of(path) == kind), key=preference)


def best(paths: Sequence[Path], fits: Callable[[Path], bool], what: str) -> Path | None:
    """The first that fits, or else the first; which one and of how many goes to the log.

    Args:
        fits: asked only where there is a choice.
    """
    if len(paths) < 2:
        return next(iter(paths), None)
    chosen = next((path for path in paths if _safely(fits, path)), paths[0])
    others = listing([str(path) for path in paths if path != chosen])
    log.info(f"{chosen} is taken as {what}, not {others}; name another to use it.")
    return chosen


def _safely(fits: Callable[[Path], bool], path: Path) -> bool:
    try:
        return fits(path)
    except (CheckpointError, OSError):
        return False


def told(path: Path) -> str:
    """A file in words for a message: its name and what it is."""
    kind = kind_of(path)
    return f"{path.name} ({kind if kind in MARKS else 'damaged' if kind is None else 'something else'})"


def named(released: str, entries: Sequence[Path]) -> Path | None:
    """An entry with the released name, or converted to safetensors (preferred)."""
    return next(iter(all_named(released, entries)), None)


def all_named(released: str, entries: Sequence[Path]) -> list[Path]:
    stem = released.removesuffix(".pth")
    return [
        entry
        for name in dict.fromkeys((f"{stem}.safetensors", released))
        for entry in entries
        if entry.name == name
    ]


def text_models(entries: Sequence[Path], name: str = QWEN) -> list[Path]:
    """Folders of that name, or inside of one as in the hub's cache, that have a config.json."""
    return [e.parent for e in entries if e.name == "config.json" and name in "/".join(e.parts[-4:-1])]


def text_files(entries: Sequence[Path], name: str) -> list[Path]:
    """Encoders in a single file whose name has that word in it."""
    named = (entry for entry in entries if name in entry.name.lower().replace("_", "-"))
    return [entry for entry in named if is_whole_name(entry.name) and kind_of(entry) == TEXT]


def texts_in(inside: Sequence[Path], folder: Path) -> list[Path]:
    """text/, and sub-folders with the files of a T5 encoder."""
    return [child for child in dict.fromkeys((folder / "text", *inside)) if is_t5(child)]


def is_whole(folder: Path) -> bool:
    """Whether the folder of a text encoder has weights and a tokenizer beside its config.json; a single file
    counts as whole.
    """
    if folder.is_file():
        return True
    inside = children(folder)
    weights = any(map(is_model_name, (path.name for path in inside)))
    return weights and any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))


def text_for(width: int | None, folders: Sequence[Path]) -> Path | None:
    """Of several text encoders one that is whole and whose features have that width."""

    def fits(path: Path) -> bool:
        return is_whole(path) and width in (None, text_width(path))

    return best(list(dict.fromkeys(folders)), fits, "the text encoder")


def instead(paths: Sequence[Path]) -> str:
    """What lies there, as a second sentence."""
    models = [told(path) for path in paths if holds_model(path)]
    return f". Beside it lie {listing(models)}" if len(models) > 1 else ""


def default_roots() -> tuple[Path, ...]:
    """Where models are looked for: MOSS_MODELS (several separated like PATH), ./models, the ComfyUI that this
    pack lies in,
    ~/ComfyUI/models, and what the hub's client has in its cache of the models known here."""
    named = [
        typed.path(entry) for entry in os.environ.get("MOSS_MODELS", "").split(os.pathsep) if entry.strip()
    ]
    pack = Path(__file__).absolute().parents[2]
    host = [pack.parents[1] / "models"] if pack.parent.name == "custom_nodes" else []
    cached = [hub / f"models--{name.replace('/', '--')}" for hub in _hub_caches() for name in REPOSITORIES]
    found = [folder for folder in (*host, *cached) if folder.is_dir()]
    return (*named, Path("models"), Path.home() / "ComfyUI" / "models", *found)


def _hub_caches() -> list[Path]:
    """Where the hub's client keeps downloads, by the variables that it reads itself."""
    told = [os.environ.get(name) for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")]
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return [typed.path(place) for place in (*filter(None, told), f"{home}/hub")]
