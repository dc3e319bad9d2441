"""Values as people type them, on the command line and in widgets: understood, or refused in a sentence.

What could mean two things is refused, never guessed.  Full-width and other compatible characters count as
their plain twins.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from urllib.parse import unquote, urlparse

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
BETWEEN = re.compile(r"\s*[,;|/]\s*|\s+")
SIDES = re.compile(r"([^:x*/]+?)\s*(?::|x|\*|/|\bby\b|\bto\b)\s*([^:x*/]+)", re.IGNORECASE)
TWINS = str.maketrans("、∶×✕⁄−–“”’‘", ",:xx/--\"\"''")
QUOTES = "\"'`"
PERCENTAGES = "80, 70, 30, 10"


def plain(text: str) -> str:
    """Without quotes and spaces around it, and in plain characters."""
    return unicodedata.normalize("NFKC", str(text)).translate(TWINS).strip().strip(QUOTES).strip()


def quoted(text: str) -> str:
    """A value as a message shows it, cut where it is long."""
    return repr(text if len(text) <= 60 else f"{text[:56]}...")


def numbers(text: str, example: str = "3, or one a scale: 3, 2.5, 2") -> tuple[float, ...]:
    """ "80, 70", "80 70", "[80; 70]", "80%,70%" -> (80.0, 70.0).

    Raises:
        ValueError: something else, not finite, or commas and semicolons mixed.
    """
    told = plain(text).strip("[](){}<>").replace("%", "").strip()
    told = re.sub(r"[,;]$", "", told)
    if "," in told and ";" in told:
        raise ValueError(
            f"{quoted(text)} mixes commas and semicolons; write decimals with a point, and commas between "
            "numbers"
        )
    parts = BETWEEN.split(told)
    if not all(NUMBER.fullmatch(part) and math.isfinite(float(part)) for part in parts):
        what = "is not a number" if len(parts) == 1 and parts[0] else "are not numbers"
        raise ValueError(f"{quoted(text)} {what}; write {example}")
    return tuple(map(float, parts))


def percentages(text: str) -> tuple[float, ...]:
    """Numbers in percent.

    Raises:
        ValueError: see `numbers`; or they look like fractions of 1.
    """
    values = numbers(text, f"percentages, such as {PERCENTAGES}")
    if "%" not in plain(text) and max(values) <= 1 and any(0 < value < 1 for value in values):
        raise ValueError(
            f"{quoted(text)} looks like fractions; write percentages, such as {PERCENTAGES}, or 0.5% for "
            "small ones"
        )
    return values


def integer(text: str, what: str = "number") -> int:
    """A whole number: "42", "42.0", "1e9".

    Raises:
        ValueError: something else.
    """
    told = plain(text)
    if NUMBER.fullmatch(told) and math.isfinite(float(told)) and (value := Fraction(told)).denominator == 1:
        return int(value)
    raise ValueError(f"the {what} {quoted(text)} is no whole number; write one, such as 42")


def sides(text: str) -> tuple[float, float]:
    """Width and height: "16:9", "16x9", "16/9", "1920 x 1080", "2.39:1"; "1" is a square.

    Raises:
        ValueError: something else; a single number does not say which side is the longer one.
    """
    told = plain(text)
    if NUMBER.fullmatch(told) and float(told) == 1:
        return 1.0, 1.0
    if NUMBER.fullmatch(told):
        raise ValueError(
            f"aspect {quoted(text)} does not say which side is longer; write width:height, for example 3:2 "
            "or 2:3"
        )
    match = SIDES.fullmatch(told)
    if not (match and all(NUMBER.fullmatch(part.strip()) for part in match.groups())):
        raise ValueError(
            f"aspect {quoted(text)} is not a ratio; write width:height, for example 1:1, 16:9 or 2:3"
        )
    return float(match[1]), float(match[2])


def word(text: str, choices: Sequence[str], what: str) -> str:
    """The choice that is meant, whatever its case, spaces, hyphens and underscores.

    Raises:
        ValueError: none of them.
    """
    told = _letters(text)
    for choice in choices:
        if _letters(choice) == told:
            return choice
    raise ValueError(f"the {what} {quoted(text)} is unknown; choose one of {', '.join(choices)}")


def area(text: str, choices: Sequence[str]) -> str:
    """An image area: "1M", "1 m", "1.0M", "0.6MP" of 1M, 0.60M and their like.

    Raises:
        ValueError: none of them; sides in pixels depend on the model and are no area.
    """
    told = re.fullmatch(r"([\d.]+)\s*m(?:p|pix(?:els?)?)?", plain(text).casefold())
    for choice in choices:
        if told and NUMBER.fullmatch(told[1]) and float(told[1]) == float(choice.rstrip("M")):
            return choice
    return word(text, choices, "image area")


def precision(text: str) -> str:
    """A precision by any of its names.

    Raises:
        ValueError: none of them.
    """
    names = {"float32": "fp32", "f32": "fp32", "bfloat16": "bf16", "half": "fp16", "float16": "fp16"}
    return word(names.get(_letters(text), text), ("auto", "fp32", "bf16"), "precision")


def _letters(text: str) -> str:
    return re.sub(r"[\s_-]+", "", plain(text)).casefold()


def path(text: str) -> Path:
    """A file or folder: quotes, `~`, variables of the environment and `file:` addresses are understood.

    Raises:
        ValueError: no name at all, or one with a zero byte.
    """
    told = str(text).strip().strip(QUOTES).strip()
    if told.lower().startswith("file:"):
        told = unquote(urlparse(told).path)
    told = os.path.expandvars(os.path.expanduser(told))
    if not told or "\0" in told:
        raise ValueError(f"{quoted(text)} is no name of a file or folder")
    return Path(told)
