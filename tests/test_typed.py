"""Values as people type them: every notation is understood or refused, and none is taken for something
else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_moss import typed


@pytest.mark.parametrize(
    "text",
    [
        "80,70,30,10",
        "80, 70, 30, 10",
        "80 70 30 10",
        "80;70;30;10",
        "80%, 70%, 30%, 10%",
        "[80, 70, 30, 10]",
        "(80,70,30,10)",
        "80,70,30,10,",
        "'80,70,30,10'",
        "80，70，30，10",
        "80、70、30、10",
        "８０,７０,３０,１０",
        "80/70/30/10",
        "80|70|30|10",
        " 80.0 ,70. ,3e1, +10 ",
        "80\u00a070\u00a030\u00a010",
        "80％,70％,30％,10％",
        "80\t70\n30 10",
        "“80, 70, 30, 10”",
    ],
)
def test_notations_of_a_list_are_understood(text: str) -> None:
    assert typed.percentages(text) == (80, 70, 30, 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "ten",
        "80,,70",
        ",80",
        "nan",
        "inf",
        "1e999",
        "80,5;70,2",
        "0x50",
        "8_0",
        "80-70",
        "80,seventy",
        "80..70",
        "--80",
        "1O0",
    ],
)
def test_what_is_no_list_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="(not a number|not numbers|mixes commas).*write"):
        typed.percentages(text)


@pytest.mark.parametrize("text", ["0.8,0.7,0.3,0.1", ".5", "1, 0.5", "0.8 0.7", "0.8;0.7"])
def test_fractions_are_not_taken_for_percentages(text: str) -> None:
    with pytest.raises(ValueError, match="looks like fractions; write percentages"):
        typed.percentages(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [("0.5%", (0.5,)), ("80, 0.5", (80, 0.5)), ("1", (1,)), ("0,0", (0, 0)), ("100", (100,))],
)
def test_small_percentages_stay_what_they_are(text: str, values: tuple) -> None:
    assert typed.percentages(text) == values


@pytest.mark.parametrize(
    "text",
    [
        "16:9",
        "16x9",
        "16X9",
        "16×9",
        "16/9",
        "16 : 9",
        "16∶9",
        "16：9",
        "１６：９",
        "1920x1080",
        "1920 x 1080",
        "1920*1080",
        "16 by 9",
        '"16:9"',
        "16.0:9",
        "16 to 9",
    ],
)
def test_notations_of_a_ratio_are_understood(text: str) -> None:
    width, height = typed.sides(text)
    assert width / height == pytest.approx(16 / 9)


@pytest.mark.parametrize(
    "text",
    ["wide", "", ":", "16:", ":9", "16:9:4", "16,9", "1,5:1", "16-9", "a:b", "nan:1", "inf:1", "16:9px"],
)
def test_what_is_no_ratio_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a ratio; write width:height"):
        typed.sides(text)


@pytest.mark.parametrize("text", ["1.5", "1.78", "2", "0.5", "2.39"])
def test_a_single_number_does_not_say_which_side_is_longer(text: str) -> None:
    with pytest.raises(ValueError, match="does not say which side is longer; write width:height"):
        typed.sides(text)


def test_one_is_a_square() -> None:
    assert typed.sides("1") == typed.sides("1.0") == (1, 1)


@pytest.mark.parametrize(
    "text", ["moss4", "MoSs4", "MOSS-4", "moss_4", " Moss 4 ", "'moss4'", "ｍｏｓｓ４", "Moss–4"]
)
def test_a_word_is_known_in_any_dress(text: str) -> None:
    assert typed.word(text, ("dense", "moss", "moss4"), "method") == "moss4"


def test_an_unknown_word_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="the method 'mass4' is unknown; choose one of dense, moss4"):
        typed.word("mass4", ("dense", "moss4"), "method")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" 42 ", 42),
        ("42.0", 42),
        ("1e9", 10**9),
        ("-1", -1),
        ("４２", 42),
        (str(2**64 - 1), 2**64 - 1),
    ],
)
def test_whole_numbers(text: str, value: int) -> None:
    assert typed.integer(text) == value


@pytest.mark.parametrize(
    "text", ["", "4.5", "0x2a", "1_000", "1,000", "random", "nan", "inf", "1e999", "4 2"]
)
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the seed .* is no whole number"):
        typed.integer(text, "seed")


def test_paths_in_quotes_with_home_variables_and_as_addresses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELF", str(tmp_path / "shelf"))
    wanted = tmp_path / "shelf" / "a b.png"
    address = f"file://{tmp_path}/shelf/a%20b.png"
    for text in (
        "~/shelf/a b.png",
        "$SHELF/a b.png",
        "${SHELF}/a b.png",
        f'"{wanted}"',
        f"'{wanted}' ",
        address,
    ):
        assert typed.path(text) == wanted
    for text in ("", " ", "a\0b"):
        with pytest.raises(ValueError, match="is no name of a file or folder"):
            typed.path(text)
