"""Reading the prompts files of the benchmarks.  None are bundled: the user has the benchmark's own files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SAFE = re.compile(r"\w[\w .-]*")  # becomes the name of a file


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark.

    Attributes:
        text: what to draw.
        name: what its pictures are called by.
        record: the benchmark's own entry, where the scorer wants it back.
        folder: of its pictures; "" = none of their own.
    """

    text: str
    name: str
    record: dict[str, Any] = field(default_factory=dict)
    folder: str = ""


@dataclass(frozen=True)
class Prompts:
    """What was read; sha256 is of the file, or of the names and contents of a folder's files."""

    items: tuple[Prompt, ...]
    sha256: str


def read_geneval(path: Path) -> Prompts:
    """GenEval's evaluation_metadata.jsonl: a JSON object a line, with "prompt"; named by place, 00000 and so
    on."""
    hint = 'GenEval\'s evaluation_metadata.jsonl holds a JSON object with a "prompt" in every line'
    data = path.read_bytes()
    lines = [line for line in _text(data, path).split("\n") if line.strip()]  # splitlines would cut at U+2028
    records = [_json(line, f"{path}, line {n}", hint) for n, line in enumerate(lines, 1)]
    items = [Prompt(_prompt(r, path, n, hint), f"{n:05d}", r) for n, r in enumerate(records)]
    return _checked(items, path, hint, data)


def read_dpg(path: Path) -> Prompts:
    """DPG-Bench's folder prompts: ID.txt, each one prompt; named by its ID."""
    hint = "DPG-Bench's prompts are a folder of text files, one prompt each"
    if not path.is_dir():
        path.stat()  # says so where it is not there at all
        raise ValueError(f"{path} is no folder; {hint}")
    files = {file.stem: file.read_bytes() for file in sorted(path.glob("*.txt"))}
    texts = {name: _text(data, path / f"{name}.txt") for name, data in files.items()}
    items = [Prompt(_prompt({"prompt": text}, path, name, hint), name) for name, text in texts.items()]
    return _checked(
        items, path, hint, *(part for name, data in files.items() for part in (name.encode(), data))
    )


def read_hpsv2(path: Path) -> Prompts:
    """HPSv2's prompts by style: a JSON object {style: [prompts]}, or STYLE.json with a list, or a folder of
    such files.

    A folder a style; named by place in the list, 00000 and so on.
    """
    hint = "HPSv2's prompts are a JSON object of lists by style, or STYLE.json with a list, or a folder"
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    contents = {file: file.read_bytes() for file in files}
    styles: dict[str, Any] = {}
    for file, data in contents.items():
        value = _json(_text(data, file), file, hint)
        styles |= value if isinstance(value, dict) else {file.stem: value}
    items = []
    for style, texts in styles.items():
        if not isinstance(texts, list):
            raise ValueError(f"{path}: {style} is no list of prompts; {hint}")
        found = [_prompt({"prompt": text}, path, f"{n} of {style}", hint) for n, text in enumerate(texts)]
        items += [Prompt(text, f"{n:05d}", folder=style) for n, text in enumerate(found)]
    parts = (part for file, data in contents.items() for part in (file.name.encode(), data))
    return _checked(items, path, hint, *parts)


def read_imagereward(path: Path) -> Prompts:
    """ImageReward's benchmark-prompts.json: a JSON list of objects with "id" and "prompt"; named by id."""
    hint = 'ImageReward\'s benchmark-prompts.json holds a list of objects with "id" and "prompt"'
    data = path.read_bytes()
    records = _json(_text(data, path), path, hint)
    if not isinstance(records, list):
        raise ValueError(f"{path} holds no list; {hint}")
    items = []
    for n, record in enumerate(records):
        text = _prompt(record, path, n, hint)
        if not isinstance(record.get("id"), (str, int)):
            raise ValueError(f"{path}: prompt {n} has no id; {hint}")
        items.append(Prompt(text, str(record["id"]), record))
    return _checked(items, path, hint, data)


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} holds bytes that are not text; save it in UTF-8") from None


def _json(text: str, place: object, hint: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error.msg}); {hint}") from None


def _prompt(record: Any, path: Path, place: object, hint: str) -> str:
    text = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{path}: entry {place} has no prompt; {hint}")
    return text.strip()


def _checked(items: Iterable[Prompt], path: Path, hint: str, *contents: bytes) -> Prompts:
    """Refuse an empty list, and names that cannot be those of files or that two prompts share."""
    items, seen = tuple(items), set()
    if not items:
        raise ValueError(f"{path} holds no prompts; {hint}")
    for item in items:
        for part in filter(None, (item.folder, item.name)):
            if not _SAFE.fullmatch(part):
                raise ValueError(
                    f"{path}: {part!r} cannot be the name of a file; use letters, digits, dots, - and _"
                )
        key = f"{item.folder}/{item.name}".lower()
        if key in seen:
            raise ValueError(f"{path}: two prompts are called {item.name!r}; give each a name of its own")
        seen.add(key)
    digest = contents[0] if len(contents) == 1 else b"\0".join(contents)
    return Prompts(items, hashlib.sha256(digest).hexdigest())
