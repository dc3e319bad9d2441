"""Reports: what people read, and what programs read."""

from __future__ import annotations

import json
import math
import re

import pytest

from comfy_moss.pipeline.cost import Cost, report, report_data

MOSS = Cost("moss2", (1, 4, 16, 9, 7), 3 * 2**20, {"draft": 0.2, "frequency": 0.0, "refine": 0.05}, 16)
DENSE = Cost("dense", (1, 4, 16, 36, 64), 12 * 2**20, {"draft": 0.2, "dense": 0.425})


def _lines(text: str) -> dict[str, str]:
    """Name -> value."""
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines())


def test_a_picture_is_reported_with_its_tokens_memory_and_time() -> None:
    lines = _lines(report(MOSS))
    assert lines["method"] == "moss2"
    assert lines["drawn in order"].startswith("21 tokens")
    assert lines["refined"].startswith("16 tokens")
    assert lines["tokens per scale"].split() == ["1", "4", "16", "9", "7"]
    assert lines["KV cache"] == "3.00 MiB"
    assert (lines["draft"], lines["refine"], lines["total"]) == ("200.0 ms", "50.0 ms", "250.0 ms")


def test_stages_are_in_the_order_they_ran_and_those_that_did_not_run_are_missing() -> None:
    assert [name for name in _lines(report(MOSS)) if name in ("draft", "frequency", "refine", "total")] == [
        "draft", "refine", "total",
    ]


@pytest.mark.parametrize(("cost", "reference", "factor"), [(MOSS, DENSE, "2.50"), (DENSE, MOSS, "0.40")])
def test_the_speed_is_one_total_over_the_other(cost: Cost, reference: Cost, factor: str) -> None:
    text = report(cost, reference)
    lines = _lines(text)
    assert lines[f"{reference.label} (reference)"].startswith(f"{1000 * reference.total_seconds:.1f} ms")
    assert f"{factor} times as fast" in lines["speed"]
    assert report_data(cost, reference)["times_as_fast"] == pytest.approx(float(factor))


def test_without_a_reference_nothing_is_compared() -> None:
    assert "fast" not in report(MOSS) and "reference" not in report(MOSS)
    assert not {"reference", "times_as_fast", "psnr", "ssim"} & set(report_data(MOSS))


def test_a_total_of_zero_gives_no_speed() -> None:
    still = Cost("dense", (1,), 0, {})
    for pair in ((MOSS, still), (still, MOSS), (still, still)):
        assert "fast" not in report(*pair) and "times_as_fast" not in report_data(*pair)


def test_likeness_is_told_with_what_it_refers_to() -> None:
    lines = _lines(report(MOSS, psnr=31.236, ssim=-0.01))
    assert lines["PSNR"] == "31.24 dB against the reference picture"
    assert lines["SSIM"] == "-0.0100 against the reference picture"
    assert {"PSNR", "SSIM"}.isdisjoint(_lines(report(MOSS, DENSE)))
    assert _lines(report(MOSS, ssim=0.0))["SSIM"].startswith("0.0000")


def test_the_numbers_are_those_of_the_text() -> None:
    data = json.loads(json.dumps(report_data(MOSS, DENSE, 31.2, 0.9), allow_nan=False))
    assert data["method"] == "moss2" and data["reference"]["method"] == "dense"
    assert data["tokens"] == {"in_order": 21, "refined": 16, "per_scale": [1, 4, 16, 9, 7]}
    assert data["reference"]["tokens"]["in_order"] == 121
    assert (data["kv_bytes"], data["kv_mib"]) == (3 * 2**20, 3)
    assert data["seconds"] == MOSS.seconds and data["total_seconds"] == MOSS.total_seconds
    assert (data["psnr"], data["ssim"]) == (31.2, 0.9)


def test_equal_pictures_fit_into_json() -> None:
    assert json.dumps(report_data(MOSS, psnr=math.inf, ssim=1.0), allow_nan=False)
    assert report_data(MOSS, psnr=math.inf)["psnr"] is None
    assert "inf dB" in report(MOSS, psnr=math.inf)


def test_columns_line_up() -> None:
    lines = report(MOSS, DENSE, 30.0, 0.9).splitlines()
    starts = {re.search(r"\s{2,}", line).end() for line in lines}
    assert len(starts) == 1
