"""HART in the benchmark: the same measurement, with its own shape, methods and checks."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hart_builders import TINY

from comfy_moss import cli
from comfy_moss.benchmarks import bench, limits, machine, shapes
from comfy_moss.benchmarks.shapes import HART_07B, QWEN, HartShape
from comfy_moss.benchmarks.studio import parse_methods
from comfy_moss.model.backbone import TokenWork
from comfy_moss.model.vae import VAEConfig
from comfy_moss.ops import TORCH

CPU = torch.device("cpu")
SMALL_QWEN = QWEN | {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
SMALL_QWEN |= {"num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE = HartShape(TINY, VAEConfig(32, (1, 1), 1, 1, 8), SMALL_QWEN)


def test_bench_measures_it_by_the_papers_methods_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(shapes.SHAPES, "hart-0.7b", SHAPE)
    monkeypatch.setattr(machine, "measure_ceilings", partial(machine.measure_ceilings, side=32, copied=2**12))
    file = tmp_path / "result.json"

    options = ["--device", "cpu", "--runs", "1", "--warmup", "0", "--json", str(file)]
    assert cli.main(["bench", "--shape", "hart-0.7b", *options]) == 0

    result = json.loads(file.read_text())
    rows = {row["label"]: row for row in result["methods"]}
    assert list(rows) == ["dense", "fastvar", "draft-2", "moss2"]
    assert rows["moss2"]["tokens_per_scale"] == [1, 4, 9, 16, 9, 35] and rows["fastvar"]["tokens_per_scale"][
        -2:
    ] == [18, 16]
    assert all(limit["passed"] for limit in result["limits"])
    assert "--methods dense,fastvar,moss2 " in result["command"] and result["setting"]["width"] == 16


def test_the_operations_of_the_released_shape_are_those_of_the_specification():
    """Section 11: linear and attention of both rows, 300 text tokens among them."""
    config, schedule = HART_07B.transformer, HART_07B.schedule(1.0, "1M")
    linear = config.depth * (4 * config.width**2 + 3 * config.width * config.hidden)
    counted = bench.Roofline(TokenWork(linear, 2 * config.width * config.depth, 299), config.depth, 2)
    flops = {
        name: sum(map(counted.flops, method.forward_passes(schedule, True, 299, config.depth)))
        for name, method in parse_methods("dense,fastvar,moss2", HART_07B.published).items()
    }
    assert flops["dense"] == pytest.approx(2 * (13.25 + 8.83) * 1e12, rel=1e-3)
    assert flops["dense"] / flops["moss2"] == pytest.approx(1.84, abs=0.005)
    assert flops["draft-2"] < flops["fastvar"] < flops["dense"]


def test_only_its_own_size_can_be_measured():
    for option in (["--aspect", "16:9"], ["--pixels", "0.25M"]):
        assert cli.main(["bench", "--shape", "hart-0.7b", "--device", "cpu", *option]) == 2


def test_bounds_that_the_paper_lacks_are_refused(capsys: pytest.CaptureFixture):
    assert cli.main(["bench", "--shape", "hart-0.7b", "--device", "cpu", "--methods", "moss4"]) == 2
    assert "no bounds of moss4 for this model; choose moss2" in capsys.readouterr().err


def test_its_limits_can_fail():
    def deaf(q: torch.Tensor, segments: tuple, visible: object = None, scale: float = 1.0) -> torch.Tensor:
        return TORCH.cross_scale_attention(q, segments, visible, 1.0)  # another sharpness

    broken = replace(TORCH, name="broken", cross_scale_attention=deaf)
    found = limits.check_limits(16, CPU, torch.float32, broken, shape="hart-0.7b")
    assert {
        limit.passed for limit in limits.check_limits(16, CPU, torch.float32, TORCH, shape="hart-0.7b")
    } == {True}
    assert not all(limit.passed for limit in found)
