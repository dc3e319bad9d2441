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

from .contents import MARKS, identify, listing
from .tensors import CheckpointError, is_leftover, is_model_name, open_tensors, preference

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
    return is_model_name(path.name) and not SHARD.fullmatch(path.stem)


def kind_of(path: Path) -> str | None:
    """What a model file or folder is, a key of `contents.MARKS` or words for a message; None = unreadable.

    Only headers are read, and those once for each file that does not change.
    """
    try:
        stamps = tuple((entry.stat().st_size, entry.stat().st_mtime_ns) for entry in _read(path))
    except OSError:
        return None
    return _kind_of(path, stamps)


def _read(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]


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
