"""What the page says: in every language the same things, none missing and none too many."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_moss.pipeline.cost import Cost, report_rows

ROOT = Path(__file__).resolve().parent.parent
CODE = "".join(file.read_text("utf-8") for file in sorted((ROOT / "js").glob("*.*js")))
SERVER = "".join(file.read_text("utf-8") for file in sorted((ROOT / "comfy_moss" / "nodes").glob("*.py")))
TABLES = {"options", "report", "notes", "errors"}  # of names and patterns, each read whole


def words(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["moss"]


def sentences(language: str) -> dict[str, str]:
    return {key: text for key, text in words(language).items() if key not in TABLES}


def holes(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_both_languages_say_the_same() -> None:
    english, chinese = sentences("en"), sentences("zh")
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert holes(text) == holes(chinese[key]), key
        assert text.isascii() or set(filter(lambda letter: not letter.isascii(), text)) <= set("·×"), key
        assert re.search(r"[\u4e00-\u9fff]", chinese[key]) or key == "failed.at", key


def test_the_page_has_words_for_all_it_says_and_says_all_it_has() -> None:
    said = set(re.findall(r"(?:say|locked|problem)\(\s*\"([\w.]+)\"", CODE))
    said |= set(re.findall(r"key: \"([\w.]+)\"", CODE))
    said |= set(re.findall(r"\"((?:bound|brush|lock)\.[\w.]+)\"", CODE))  # chosen between two
    said |= {f"view.{view}" for view in re.search(r"VIEWS = \[(.*?)\]", CODE)[1].replace('"', "").split(", ")}
    said |= {f"note.{key}" for key in re.findall(r"Note\(\s*\"(\w+)\"", SERVER)}
    assert said == set(sentences("en"))


def test_every_row_of_a_report_has_a_name_in_chinese() -> None:
    once = dict.fromkeys(("load", "draft", "rebuild", "frequency", "dispatch", "refine", "composite"), 1.0)
    cost = Cost("moss4", (1, 4), 9, once, 4, queue_to_latent=1.0, model="nano")
    names = words("zh")["report"]
    patterns = [re.compile(pattern) for pattern, _ in words("zh")["errors"]]
    for name, value in report_rows(cost, replace(cost, queue_to_latent=None), 30.0, 0.9):
        assert name in names or name.endswith("(reference)"), name
        plain = re.fullmatch(r"[\d. ]+|[\d.]+ (ms|MiB)|moss4|nano", value)
        assert plain or any(pattern.search(value) for pattern in patterns), value
