"""What the page says: in every language the same things, none missing and none too many."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_moss.pipeline.cost import Cost, report_rows

ROOT = Path(__file__).resolve().parent.parent
CODE = "".join(file.read_text("utf-8") for file in sorted((ROOT / "js").glob("*.*js")))
SERVER = "".join(file.read_text("utf-8") for file in sorted((ROOT / "comfy_moss" / "nodes").glob("*.py")))
TABLES = {"options", "report", "sentences"}  # of names and templates, each read whole
PACK = ROOT / "comfy_moss"
ELSEWHERE = {"cli.py", "editing.py", "request.py", "doctor.py"}  # files whose errors no node meets
COMMANDS = {  # functions likewise: they read methods that are written out, or write files
    "parse_plan", "_parse_pass", "_settings", "_other", "_skipping", "_bounds", "read_recipe",
    "check_writable", "write_files", "write_safetensors", "convert",
}
TOLD_OTHERWISE = {  # caught on the way and told in another sentence
    "{} numbers {} things up to {}", "{} is {}", "scales {} or {} text tokens", "impossible levels",
    "another number of layers", "positions without an order", "an epsilon that is no number",
    "a shard lies outside of the directory", "no convolution to three colours at the end",
    "{} is no name of a file or folder", "{}",
}
JOINED = {  # put together from a beginning and a sentence that stands in the table
    "{} {}", "values {}", "{} {}; write {}", "{}, got {}", "scales {} are not scales of this draft; {}",
}


def words(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "main.json").read_text("utf-8"))["moss"]


def sentences(language: str) -> dict[str, str]:
    return {key: text for key, text in words(language).items() if key not in TABLES}


def holes(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def template(node: ast.expr) -> str | None:
    """A text of the code with {} for what is put in; None = it is not written out."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """What nodes of this pack can reach."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if getattr(child, "name", None) not in COMMANDS:
            yield from nodes_of(child)


def code() -> Iterator[ast.AST]:
    for file in sorted(PACK.rglob("*.py")):
        if file.name not in ELSEWHERE:
            yield from nodes_of(ast.parse(file.read_text("utf-8")))


def raised() -> set[str]:
    """Sentences of all errors that nodes can meet."""
    calls = [node.exc for node in code() if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {text for call in calls if call.args and (text := template(call.args[0])) is not None}


def plain(text: str) -> str:
    return re.sub(r"\{\w+\}", "{}", text)


def test_every_error_of_a_node_is_said_in_chinese() -> None:
    known = {plain(text) for text in words("zh")["sentences"]}
    assert sorted(raised() - known - TOLD_OTHERWISE - JOINED) == []


def test_no_sentence_is_translated_that_nobody_says() -> None:
    said = " ".join(text for node in code() if isinstance(node, ast.expr) and (text := template(node)))
    for text in words("zh")["sentences"]:
        for part in re.split(r"\{\w+\}|[,;] ", text):
            assert part.strip() in said, f"{text}: nobody says {part!r}"


def test_translations_keep_what_is_put_in() -> None:
    for text, said in words("zh")["sentences"].items():
        assert holes(said) <= holes(text), text


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
    said |= {f"note.{key}" for key in re.findall(r"\"(chosen[.\w]*)\"", SERVER)}  # between two
    assert said == set(sentences("en"))


def test_every_row_of_a_report_has_a_name_in_chinese() -> None:
    once = dict.fromkeys(("load", "draft", "rebuild", "frequency", "dispatch", "refine", "composite"), 1.0)
    cost = Cost("moss4", (1, 4), 9, once, 4, queue_to_latent=1.0, model="nano")
    names = words("zh")["report"]
    patterns = [
        re.compile(re.sub(r"\\\{\w+\\\}", ".*", re.escape(template))) for template in words("zh")["sentences"]
    ]
    for name, value in report_rows(cost, replace(cost, queue_to_latent=None), 30.0, 0.9):
        assert name in names or name.endswith("(reference)"), name
        plain = re.fullmatch(r"[\d. ]+|[\d.]+ (ms|MiB)|moss4|nano", value)
        assert plain or any(pattern.search(value) for pattern in patterns), value
