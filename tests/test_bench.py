"""The benchmark: what it measures, what it derives from that, and when it refuses to."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from builders import TINY, tiny_backbone
from torch.overrides import TorchFunctionMode

from comfy_moss import cli, ops
from comfy_moss.benchmarks import RESULTS, bench, limits, machine, pages, quality, shapes
from comfy_moss.benchmarks.bench import Variant, ablation
from comfy_moss.benchmarks.studio import parse_methods
from comfy_moss.model.backbone import PAPER, TokenWork
from comfy_moss.model.infinity import InfinityBackbone, InfinityTransformer
from comfy_moss.model.layers import join_biases
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.model.vae import VAE, VAEConfig
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import Method, Plan, parse_method

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SCHEDULE = make_schedule(1.5, "0.06M")
SMALL = Schedule(1.0, ((1, 1), (1, 2), (2, 2)), (2, 2))
TINY_SHAPE = shapes.Shape(TINY, VAEConfig(32, (1, 1), 1, 1, 8), shapes.TextShape(32, 64, 1, 2, 16, 50))


def _methods(text: str) -> list[Method]:
    return list(parse_methods(text).values())


def _option(name: str) -> object:
    """What `bench` takes for an option when nothing is said."""
    return vars(cli._parser().parse_args(["bench"]))[name]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shortest measurement: a tiny model in the place of the 125m shape, and ceilings of a moment."""
    monkeypatch.setitem(shapes.SHAPES, "125m", TINY_SHAPE)
    monkeypatch.setattr(machine, "measure_ceilings", partial(machine.measure_ceilings, side=32, copied=2**12))
    return ["bench", "--shape", "125m", "--pixels", "0.06M", "--device", "cpu", "--runs", "2"]


# --- models -------------------------------------------------------------------------------------------------


def _unfilled(shape: str) -> InfinityBackbone:
    """A released shape on the meta device."""
    with torch.device("meta"):
        return InfinityBackbone(
            InfinityTransformer(shapes.SHAPES[shape].transformer), VAE(shapes.SHAPES[shape].codec)
        )


@pytest.mark.parametrize(
    ("shape", "transformer", "codec"),
    [("125m", 125_148_800, 110.0e6), ("2b", 2_204_564_032, 110.1e6), ("8b", 8_375_791_824, 81.6e6)],
)
def test_the_shapes_have_as_many_parameters_as_the_released_models(
    shape: str, transformer: int, codec: float
) -> None:
    model = _unfilled(shape)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.transformer, model.vae)]
    assert counts[0] == transformer
    assert counts[1] == pytest.approx(codec, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "linear", "attention"),
    [
        ("dense", 79.08, 35.91), ("draft-2", 30.97, 5.55), ("moss2", 43.00, 10.35), ("moss4", 23.38, 3.37),
        ("moss5", 14.35, 1.28),
    ],
)
def test_the_2b_shape_takes_as_many_operations_as_counted_by_hand(
    method: str, linear: float, attention: float
) -> None:
    model = _unfilled("2b")
    passes = list(parse_methods(method).values())[-1].forward_passes(
        make_schedule(1.0, "1M"), True, depth=model.depth
    )
    flops = sum(map(bench.Roofline(model.work, model.depth, 2).flops, passes))
    assert flops == pytest.approx((linear + attention) * 1e12, abs=0.02e12)


def test_random_weights_are_the_same_each_time_and_only_the_blocks_and_the_codec_are_rounded() -> None:
    first, second = (
        shapes.random_backbone(TINY, TINY_SHAPE.codec, CPU, dtype, "x")
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(first.transformer.word_embed.weight, second.transformer.word_embed.weight)
    kinds = {name: p.dtype for name, p in second.transformer.named_parameters()}
    assert {kinds[n] for n in kinds if n.startswith("blocks.")} == {torch.bfloat16}
    assert {kinds[n] for n in kinds if not n.startswith("blocks.")} == {torch.float32}
    assert {p.dtype for p in second.vae.parameters()} == {torch.bfloat16}
    assert all(p.float().std() > 0 for p in first.transformer.parameters() if p.numel() > 2)


def test_a_random_prompt_is_encoded_like_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "125m", TINY_SHAPE)
    features = shapes.build_text("125m", CPU, torch.float32)()
    assert features.shape == (shapes.PROMPT_TOKENS, 32) and features.isfinite().all()
    assert not torch.allclose(features[0], features[1])


# --- methods ------------------------------------------------------------------------------------------------


def test_dense_and_every_honest_rival_stand_beside_the_methods_asked_for() -> None:
    labels = list(parse_methods("moss4, fastvar,moss2,draft-1"))
    assert labels == ["dense", "fastvar", "draft-1", "draft-2", "moss2", "draft-4", "moss4"]


def test_by_default_all_methods_of_the_paper_are_measured() -> None:
    labels = set(parse_methods(bench.default_methods(PAPER)))
    assert labels == {
        "dense", "fastvar", *(f"{name}{k}" for k in (2, 3, 4, 5) for name in ("draft-", "moss")),
    }


TRITON = replace(ops.TORCH, name="triton")


@pytest.mark.parametrize(
    ("kernels", "guided", "labels"),
    [
        (ops.TORCH, False, ["SA", "CSSA"]),
        (TRITON, False, ["SA", "CSSA", "CSSA + kernels"]),
        (ops.TORCH, True, ["SA", "CSSA", "CSSA, no guidance in refine"]),
        (TRITON, True, ["SA", "CSSA", "CSSA + kernels", "CSSA + kernels, no guidance in refine"]),
    ],
)
def test_the_ablation_changes_one_thing_a_row(kernels: ops.Kernels, guided: bool, labels: list[str]) -> None:
    rows = ablation(_methods("moss2,moss4,moss5"), kernels, guided)
    assert [row.label.removeprefix("moss4, ") for row in rows] == labels
    steps = [row.method.passes[0] for row in rows]
    assert [step.cross_scale for step in steps] == [False] + [True] * (len(rows) - 1)
    assert [step.guided for step in steps] == [
        not row.label.endswith("no guidance in refine") for row in rows
    ]
    assert [row.kernels.name for row in rows] == [
        "triton" if "kernels" in row.label else "torch" for row in rows
    ]
    assert len({row.run for row in rows}) == len(rows)


def test_the_ablation_takes_what_there_is() -> None:
    assert ablation(_methods("fastvar"), ops.TORCH, False) == ()
    assert ablation(_methods("moss2,moss3"), ops.TORCH, False)[0].label == "moss3, SA"


def test_variants_that_run_the_same_are_measured_once() -> None:
    main = Variant("moss4", parse_method("moss4"), ops.TORCH)
    runs = [row.run for row in ablation([main.method], ops.TORCH, True)]
    assert runs.count(main.run) == 1


# --- work ---------------------------------------------------------------------------------------------------


class Multiplications(TorchFunctionMode):
    """Counts multiply-adds of matrices and of self-attention while InfinityTransformer.forward runs."""

    total, text = 0, 9  # tokens of the prompt; no self-attention here sees as few

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            self.total += args[0].shape[:-1].numel() * args[1].numel()
        elif func is F.scaled_dot_product_attention and args[1].shape[2] != self.text:
            self.total += 2 * args[0].numel() * args[1].shape[2]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("method", _methods("fastvar,moss2,moss4"), ids=lambda method: method.label)
def test_the_operations_are_those_that_a_picture_multiplies(
    method: Method, guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, forward = Multiplications(), InfinityTransformer.forward

    def counting(*args):
        with counted:
            return forward(*args)

    monkeypatch.setattr(InfinityTransformer, "forward", counting)
    backbone = tiny_backbone(depth=5, hidden=80)  # FastVAR prunes in the last two of five
    text = torch.randn(Multiplications.text, 32, generator=torch.Generator().manual_seed(0))
    recipe = Recipe((text,), None, (0,), SCHEDULE, Guidance(3.0 if guided else 1.0))

    bench.generate(backbone, recipe, method)

    model = bench.Roofline(backbone.work, backbone.depth, 4)
    passes = method.forward_passes(SCHEDULE, guided, depth=backbone.depth)
    predicted = sum(map(model.flops, passes))
    assert predicted == pytest.approx(2 * counted.total, rel=1e-12)


def test_what_the_ablations_save_is_not_counted() -> None:
    settings = ({}, {"cross_scale": False}, {"guidance": False})
    # of 2 and 4 tokens: 1 and 2, behind 1 token
    plans = [Plan.moss((100.0, 50.0), **how) for how in settings]
    whole, apart, unguided = (plan.forward_passes(SMALL, guided=True)[-1] for plan in plans)
    assert (whole.tokens, whole.past, whole.attended, whole.rows) == (3, 1, 3 * (1 + 3), 2)
    assert apart == replace(whole, attended=1 * (1 + 1) + 2 * (1 + 2))
    assert unguided == replace(whole, rows=1)


def test_the_bytes_are_weights_once_a_pass_and_every_row_of_the_cache() -> None:
    # 10 keys and values a token and layer
    model = bench.Roofline(TokenWork(linear=1000.0, attention=20.0), depth=2, itemsize=2)
    first, second, last = Plan(0).forward_passes(SMALL, guided=True)
    assert model.bytes(first) == 2 * (1000 + 2 * 20 * (0 + 1))  # nothing to read, one token written
    assert model.bytes(second) == 2 * (1000 + 2 * 20 * (1 + 2))
    assert model.bytes(last) == 2 * (1000 + 2 * 20 * 3)  # the last scale is not kept


def test_each_pass_takes_the_longer_of_its_two_times() -> None:
    model = bench.Roofline(TokenWork(linear=1000.0, attention=20.0), depth=2, itemsize=2)
    spans = Plan(0).forward_passes(SMALL, guided=True)
    flops, moved = [model.flops(s) for s in spans], [model.bytes(s) for s in spans]
    # bound by bytes, by operations
    assert flops[0] / 4000 < moved[0] / 2000 and flops[2] / 4000 > moved[2] / 2000
    expected = sum(max(f / 4000, b / 2000) for f, b in zip(flops, moved, strict=True))
    assert model.seconds(spans, machine.Ceilings(4000.0, 2000.0, "")) == pytest.approx(expected)


# --- measuring ----------------------------------------------------------------------------------------------


def test_every_round_runs_every_call_once_in_another_order_and_warm_ups_are_dropped() -> None:
    ran: list[str] = []
    samples = machine.run_rounds(
        CPU, {name: partial(_note, ran, name) for name in "abcd"}, runs=6, warmup=2, say=lambda _: None
    )
    rounds = [ran[n : n + 4] for n in range(0, len(ran), 4)]
    assert len(rounds) == 8 and all(sorted(turn) == list("abcd") for turn in rounds)
    assert len(set(map(tuple, rounds))) > 2
    assert {name: len(found) for name, found in samples.items()} == dict.fromkeys("abcd", 6)
    assert all(
        sample.result == name and sample.seconds > 0 for name, found in samples.items() for sample in found
    )


def _note(ran: list[str], name: str) -> str:
    ran.append(name)
    return name


def test_a_speed_is_the_median_of_the_rounds_own_ratios() -> None:
    dense, ours = [4.0, 40.0, 6.0], [2.0, 10.0, 1.0]  # the second round ran on a busy machine
    assert machine.times_as_fast(ours, dense)["median"] == 4.0
    assert machine.times_as_fast(dense, dense) == {"median": 1.0, "iqr": 0.0}


def test_the_spread_is_the_middle_half_and_one_value_has_none() -> None:
    assert machine.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == {"median": 3.0, "iqr": 2.0}
    assert machine.spread([7.0]) == {"median": 7.0, "iqr": None}


def test_ceilings_are_the_fastest_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 2.0, 4.0, 9.0, 0.5, 0.25])  # each begins with one that does not count
    monkeypatch.setattr(machine, "timed", lambda _device, call: (next(times), call()))
    found = machine.measure_ceilings(CPU, torch.float32, side=10, copied=100, runs=2)
    assert (found.flops, found.bandwidth) == (2 * 10**3 / 2.0, 2 * 100 / 0.25)
    assert "10 x 10 matrix product in fp32" in found.how


def test_drawing_is_timed_without_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_backbone()
    decoded: list[int] = []
    monkeypatch.setattr(VAE, "decode", lambda _self, total, *_: decoded.append(1) or total)
    recipe = Recipe((torch.randn(3, 32),), None, (0,), SCHEDULE)
    variant = Variant("moss2", parse_method("moss2"), ops.TORCH)
    made = bench.calls(backbone, recipe, [variant])
    cost = made[variant.run]()
    assert decoded == [] and cost.tokens_per_scale[:5] == (1, 4, 6, 24, 54)
    made[bench.DECODE]()
    assert decoded == [1]


# --- limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_limits_hold_here(dtype: torch.dtype) -> None:
    found = limits.check_limits(16, CPU, dtype, ops.TORCH)
    assert [limit for limit in found if not limit.passed] == []
    # the reference itself, and its rounding
    assert (max(limit.error for limit in found) == 0) == (dtype == torch.float32)


def _swap_rows_and_columns(qkv, log_scale, cos, sin, into=None):
    half = cos.shape[-1] // 2
    return ops.TORCH.cosine_rope2d(qkv, log_scale, cos.roll(half, -1), sin.roll(half, -1), into)


def _forget_the_oldest(q, segments, visible=None, scale=1.0):
    (k, v), *rest = segments
    return ops.TORCH.cross_scale_attention(
        q, [(k[:, :, -20:], v[:, :, -20:]), *rest] if rest else segments, visible, scale
    )


def _see_everything(q, segments, visible=None, scale=1.0):
    return ops.TORCH.cross_scale_attention(q, segments, None, scale)


def _keep_nothing(qkv, log_scale, cos, sin, into=None):
    q, k, v = ops.TORCH.cosine_rope2d(qkv, log_scale, cos, sin)
    return (q, k, v) if into is None else (q, into[0].copy_(k), into[1].zero_())


@pytest.mark.parametrize(
    "broken",
    [
        {"cosine_rope2d": _swap_rows_and_columns},
        {"cosine_rope2d": _keep_nothing},
        {"cross_scale_attention": _forget_the_oldest},
        {"cross_scale_attention": _see_everything},
        {"gated_add": lambda x, gamma, y: x - gamma * y},
        {
            "modulated_norm": lambda x, scale, shift, dtype=None: ops.TORCH.modulated_norm(
                x, scale, shift, dtype, 1.0
            )
        },
    ],
    ids=lambda broken: f"{next(iter(broken))}-{next(iter(broken.values())).__name__}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_compute_something_else_are_noticed(broken: dict, dtype: torch.dtype) -> None:
    found = limits.check_limits(16, CPU, dtype, replace(ops.TORCH, name="broken", **broken))
    assert not all(limit.passed for limit in found)


def test_kernels_that_answer_differently_each_time_break_the_exact_limits() -> None:
    noisy = replace(ops.TORCH, gated_add=lambda x, gamma, y: x + gamma * y + 0.05 * torch.randn_like(x))
    one_scale, resumed = limits.check_limits(16, CPU, torch.float32, noisy)[:2]
    assert not one_scale.passed and not resumed.passed


# --- the command --------------------------------------------------------------------------------------------


def test_a_measurement_tells_everything_a_table_needs(
    quick: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert cli.main([*quick, "--json", "--methods", "fastvar,moss2"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["label"]: row for row in result["methods"]}
    assert list(rows) == ["dense", "fastvar", "draft-2", "moss2"]
    assert (
        rows["dense"]["tokens"] == 521 and rows["draft-2"]["tokens"] == rows["moss2"]["tokens"] - 100 == 121
    )
    per_token = 2 * 2 * TINY.width * TINY.depth * 4  # two rows; keys and values; four bytes
    assert {name: row["kv_bytes"] for name, row in rows.items() if name != "fastvar"} == {
        "dense": 265 * per_token, "draft-2": 121 * per_token, "moss2": 121 * per_token,
    }
    for row in (*rows.values(), *result["ablation"]):
        assert row["drawing_s"]["median"] == pytest.approx(sum(row["rounds_s"]) / 2)
        assert row["roofline_share"] == pytest.approx(row["roofline_s"] / row["drawing_s"]["median"])
        assert row["end_to_end_s"]["median"] > row["drawing_s"]["median"] + result["text_s"]["median"]
        assert sum(row["stages_s"].values()) <= 1.5 * max(row["rounds_s"])
        assert row["peak_bytes"] is None
        ratios = [a / b for a, b in zip(rows["dense"]["rounds_s"], row["rounds_s"], strict=True)]
        assert row["times_as_fast"]["median"] == pytest.approx(sum(ratios) / 2)
    assert rows["moss2"]["stages_s"]["refine"] > 0 == rows["draft-2"]["stages_s"]["refine"]
    assert all(limit["passed"] for limit in result["limits"]) and len(result["limits"]) >= 5
    assert result["versions"]["torch"] == torch.__version__ and result["hardware"]["threads"] == 1
    join_biases(transformer := InfinityTransformer(TINY))
    assert result["setting"]["parameters"] == sum(p.numel() for p in transformer.parameters())


def test_no_speed_up_is_told_where_a_limit_does_not_hold(
    quick: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(ops.TORCH, name="broken", gated_add=lambda x, gamma, y: x - gamma * y)
    monkeypatch.setattr(bench, "choose", lambda _backend, _device: (broken, "on purpose"))
    assert cli.main([*quick, "--methods", "moss2"]) == 1
    text = capsys.readouterr().out
    assert "times as fast" not in text and "| moss2 |" in text
    assert "no speed-up is told" in text and "(broken)" in text
    assert cli.main([*quick, "--methods", "moss2", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert {row["times_as_fast"] for row in result["methods"] + result["ablation"]} == {None}


def test_results_are_written_stored_and_come_back(
    quick: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    places = {
        "--json": tmp_path / "new" / "a.json", "--markdown": tmp_path / "a.md", "--save": tmp_path / "kept",
    }
    assert (
        cli.main([*quick, "--methods", "moss2", *(str(part) for pair in places.items() for part in pair)])
        == 0
    )
    printed = capsys.readouterr().out
    assert places["--markdown"].read_text() == printed
    kept = pages.stored("bench", places["--save"])
    assert kept == [json.loads(places["--json"].read_text())]
    assert pages.performance(kept[0]) == printed


def test_the_stored_command_measures_the_same_again(
    quick: list[str], capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    unusual = [
        "--aspect", "2:3", "--precision", "bf16", "--cfg", "off", "--methods", "draft-2", "--warmup", "0",
    ]
    assert cli.main([*quick, *unusual, "--json", str(tmp_path / "a.json")]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert str(tmp_path) not in result["command"]
    arguments = shlex.split(result["command"].removeprefix("python -m comfy_moss "))
    again, first = (bench.check(cli._parser().parse_args(a)) for a in (arguments, [*quick, *unusual]))
    assert again == first and not first.guided
    one_row = 2 * TINY.width * TINY.depth * 2  # keys and values, two bytes
    assert result["methods"][0]["kv_bytes"] == SCHEDULE.tokens(0, 6) * one_row


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "nvidia-h200-2b-bf16.json"),
        ({"pixels": "0.25M"}, "nvidia-h200-2b-bf16-0.25m.json"),
        ({"aspect": "16:9", "guided": False}, "nvidia-h200-2b-bf16-16-9-unguided.json"),
        ({"backend": "torch"}, "nvidia-h200-2b-bf16-torch.json"),
        ({"shape": "nano", "pixels": "0.25M"}, "nvidia-h200-nano-bf16.json"),
    ],
)
def test_a_result_is_named_after_hardware_shape_and_precision_and_what_is_unusual(
    changes: dict, name: str
) -> None:
    setting = {
        "shape": "2b", "precision": "bf16", "pixels": "1M", "aspect": "1:1", "guided": True,
        "backend": "auto", **changes,
    }
    assert (
        pages.bench_name({"hardware": {"device": "NVIDIA H200", "capability": "9.0"}, "setting": setting})
        == name
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runs", "0"], "at least 1 run"),
        (["--warmup", "-1"], "--warmup -1"),
        (["--methods", "moss7"], "method 'moss7' is unknown"),
        (["--methods", "draft-7"], "skipping 7 scales leaves nothing"),
        (["--methods", ","], "no methods are named"),
        (["--aspect", "wide"], "'wide' is not a ratio"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--backend", "triton"], "Triton kernels cannot run here"),
        (["--graphs", "on"], "CUDA graphs need a CUDA device, not cpu"),
        (["--shape", "20b"], "invalid choice: '20b'"),
        (["--json", str(ROOT)], "cannot be written"),
        (["--markdown", str(ROOT / "README.md" / "a.md")], "cannot be written"),
        (["--save", str(ROOT / "README.md")], "cannot be written"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_measured(
    quick: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "bench", lambda *_: pytest.fail("it was measured"))
    assert cli.main([*quick, *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_the_choices_of_the_command_line_are_those_of_the_code() -> None:
    choices = {action.dest: action.choices for action in _bench_parser()._actions}
    assert set(choices["shape"]) == {shapes.NANO, *shapes.SHAPES}
    assert choices["backend"] == ops.BACKENDS
    assert {f"--{name}" for name in bench.OPTIONS} <= set(_bench_parser()._option_string_actions)


def _bench_parser() -> object:
    return cli._parser()._subparsers._group_actions[0].choices["bench"]


@pytest.mark.gpu
def test_a_gpus_memory_and_launches_are_told_and_kernels_need_fewer(
    quick: list[str], capsys: pytest.CaptureFixture
) -> None:
    asked = ["--device", "cuda", "--precision", "bf16", "--backend", "triton", "--methods", "moss2", "--json"]
    assert cli.main([*quick, *asked]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {limit["kernels"] for limit in result["limits"]} == {"torch", "triton"}
    assert all(row["peak_bytes"] > row["kv_bytes"] for row in result["methods"])
    plain, ours = (row["refine_launches"] for row in result["ablation"][1:3])
    assert 0 < ours < plain
    assert "launches in refine" in pages.performance(result) and "peak memory" in pages.performance(result)


@pytest.mark.gpu
def test_graphs_are_checked_and_measured_beside_the_kernels(
    quick: list[str], capsys: pytest.CaptureFixture
) -> None:
    asked = ["--device", "cuda", "--precision", "bf16", "--graphs", "on", "--methods", "moss2", "--json"]
    assert cli.main([*quick, *asked]) == 0
    result = json.loads(capsys.readouterr().out)
    assert any(limit["kernels"].endswith(", graphs") for limit in result["limits"])
    assert result["ablation"][-1]["label"].endswith("+ graphs, no guidance in refine")
    assert "one graph" in pages.performance(result) and "graphs" in pages.bench_name(result)


# --- the page and the script --------------------------------------------------------------------------------


def test_the_page_of_numbers_is_what_the_stored_results_make(tmp_path: Path) -> None:
    target = pages.write_performance(RESULTS, tmp_path / "page.md")
    page = pages.PERFORMANCE.read_text(encoding="utf-8")
    assert target.read_text(encoding="utf-8") == page, "run: python -m comfy_moss bench --tables"


def test_no_row_of_moss_stands_without_its_rival_in_the_stored_results() -> None:
    for result in pages.stored("bench"):
        labels = [row["label"] for row in result["methods"]]
        refined = [label.removeprefix("moss") for label in labels if label.startswith("moss")]
        assert all(f"draft-{k}" in labels for k in refined) and "dense" in labels


def test_a_file_that_is_no_result_is_named(tmp_path: Path) -> None:
    for content in ("[]", "{", '{"format": 0}'):
        (tmp_path / "odd.json").write_text(content)
        with pytest.raises(ValueError, match="odd.json is no result"):
            pages.stored("bench", tmp_path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, ""), (0.0001234, "0.123 ms"), (0.01234, "12.3 ms"), (1.2345, "1234 ms"), (12.345, "12.3 s"),
        (123.45, "123 s"),
    ],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert quality.time(seconds) == text


@pytest.mark.parametrize(("device", "shapes"), [("cuda", {"2b", "125m", "nano"}), ("cpu", {"nano"})])
def test_the_commands_of_the_script_for_a_gpu_are_understood(
    device: str, shapes: set[str], tmp_path: Path
) -> None:
    script = ROOT / "benchmarks" / "gpu.sh"
    environment = os.environ | {"PYTHON": "echo", "DEVICE": device}
    command = ["bash", script, tmp_path]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    commands = re.findall(r"^-m comfy_moss (bench .+)", ran.stdout, re.MULTILINE)
    parsed = [cli._parser().parse_args(shlex.split(command)) for command in commands]
    assert {args.shape for args in parsed} == shapes and len(parsed) == 5
    assert all(args.device == device and args.methods == _option("methods") and args.save for args in parsed)
    assert any(args.graphs == "on" for args in parsed) == (device == "cuda")
    modules = re.findall(r"^-m benchmarks\.(\w+)", ran.stdout, re.MULTILINE)
    assert modules and all((ROOT / "benchmarks" / f"{name}.py").exists() for name in modules)
