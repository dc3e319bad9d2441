"""The door to the kernels: how a model uses them, which ones it gets, and the benchmark that compares them.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_backbone
from torch import Tensor

from comfy_moss import ops
from comfy_moss.kernels import reference, vendor
from comfy_moss.model.backbone import Pass, Step
from comfy_moss.model.cache import KVCache
from comfy_moss.model.rope import rotation
from comfy_moss.model.schedule import Positions, make_schedule
from comfy_moss.ops import TORCH, Kernels, choose
from comfy_moss.pipeline.draft import Recipe, draw_draft

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = [field.name for field in fields(Kernels) if field.name != "name"]
SCHEDULE = make_schedule(1.0, "0.06M")
PRODUCTS = ("cross_scale_attention", "cross_scale_attention by scale", "linear_gelu")


# --- in the model -------------------------------------------------------------------------------------------


class Kept:
    """A cache that only joins, as training's."""

    rows, overwritten, int8 = 2, False, False

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def room(self, layer: int, tokens: int) -> None:
        return None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        held = self.held.get(layer)
        self.held[layer] = (
            (k, v)
            if held is None
            else tuple(torch.cat(pair, dim=2) for pair in zip(held, (k, v), strict=True))
        )
        return self.held[layer]

    def view(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.held[layer]


@pytest.mark.parametrize(
    "visible", [None, torch.arange(16, dtype=torch.int32) // 9], ids=["all", "own scale"]
)
def test_a_pass_sees_the_same_tokens_whether_and_wherever_it_stores_its_own(visible):
    """Keys and values appended, written in place and seen as one segment with the earlier ones, or not kept
    at all.
    """
    model = tiny_backbone()
    condition = model.transformer.condition([torch.randn(5, 32)], None, guided=True)
    first, second = (Positions.of_scale(SCHEDULE, n) for n in (1, 2))
    caches = Kept(), *(KVCache([40] * model.depth, 2, 2, 16, torch.float32, "cpu") for _ in range(2))
    hidden = []
    for cache, store in zip(caches, (True, True, False), strict=True):
        for positions, seen, kept in ((first, None, True), (second, visible, store)):
            codes = torch.full((1, len(positions), 8), 0.1)
            x = model.transformer.embed(codes, positions.scale, condition, len(SCHEDULE))
            step = Step(positions, SCHEDULE, condition, cache=cache, store=kept, visible=seen)
            out = model.transformer(x, Pass(step, *rotation(positions, SCHEDULE, 16)))
        hidden.append(out)

    assert all(torch.equal(a, b) for a, b in zip(caches[0].view(1), caches[1].view(1), strict=True))
    assert caches[1].lengths == [20, 20] and caches[2].lengths == [4, 4]
    assert torch.equal(hidden[0], hidden[1]) and torch.equal(hidden[1], hidden[2])


def test_scales_stand_for_the_mask_between_them_and_segments_for_the_joined_tokens():
    q, k, v = torch.randn(3, 2, 2, 6, 16)
    past, new = (k[:, :, :2], v[:, :, :2]), (k[:, :, 2:], v[:, :, 2:])
    scales = torch.tensor([0, 0, 1, 1], dtype=torch.int32)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))[None].bool()

    by_scale, by_mask, unmasked, joined, joined_by_scale = (
        TORCH.cross_scale_attention(q[:, :, :4], segments, visible)
        for segments, visible in [
            ((past, new), scales), ((past, new), blocks), ((past, new), None), (((k, v),), None),
            (((k, v),), scales),
        ]
    )

    assert (
        torch.equal(by_scale, by_mask)
        and torch.equal(by_scale, joined_by_scale)
        and torch.equal(unmasked, joined)
    )
    assert not torch.allclose(by_scale, unmasked)


def test_a_backbone_computes_with_the_kernels_it_is_given():
    calls = []

    def listening(name: str) -> Callable:
        return lambda *args: (calls.append(name), getattr(TORCH, name)(*args))[1]

    spy = Kernels("spy", *(listening(name) for name in OPERATIONS))
    model = replace(tiny_backbone(), kernels=spy)
    draw_draft(model, Recipe((torch.ones(3, 32),), None, (0,), SCHEDULE), 2)

    layers, alone = 2 * model.depth, 2  # of two passes; the first norm and the last update have no neighbour
    counts = {"cosine_rope2d": layers, "cross_scale_attention": layers, "linear_gelu": layers}
    counts |= {"add_norm": 3 * layers - alone, "modulated_norm": alone, "gated_add": alone}
    assert {name: calls.count(name) for name in OPERATIONS} == dict.fromkeys(OPERATIONS, 0) | counts


def test_a_cache_hands_out_its_places_in_order_until_it_is_full():
    cache = KVCache([5], 1, 2, 4, torch.float32, "cpu")
    for start, end in ((0, 2), (2, 5)):
        k, v = cache.room(0, end - start)
        cache.append(0, k.fill_(start), v.fill_(-start))

    assert cache.lengths == [5]
    k, v = cache.view(0)
    assert k[0, 1, :, 3].tolist() == [0, 0, 2, 2, 2] and torch.equal(v, -k)
    with pytest.raises(ValueError, match="layer 0 holds 5 tokens, 6 were needed"):
        cache.room(0, 1)


# --- which kernels ------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that an NVIDIA card is there."""

    def put(capability: tuple[int, int] = (9, 0), hip: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        monkeypatch.setattr(torch.version, "hip", hip)

    return put


def test_torch_is_taken_where_it_is_asked_for_or_nothing_else_runs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose("torch", "cuda") == (TORCH, "torch: as asked")
    assert choose("auto", "cpu") == (TORCH, "torch: no CUDA device")
    with pytest.raises(ValueError, match="cannot run here: no CUDA device; choose 'auto' or 'torch'"):
        choose("triton", torch.device("cpu"))


def test_a_model_kept_on_the_cpu_beside_a_card_runs_in_torch(card):
    card()

    assert choose("auto", "cpu") == (TORCH, "torch: the model is on cpu, not on CUDA")


@pytest.mark.parametrize(("capability", "hip"), [((7, 5), None), ((9, 0), "6.2")])
def test_cards_the_kernels_were_not_written_for_run_in_torch(card, capability, hip):
    card(capability, hip)

    kernels, reason = choose("auto", "cuda")

    assert kernels is TORCH and "NVIDIA H200 is no NVIDIA card of the RTX 30 series" in reason


def test_a_missing_triton_is_told(card, monkeypatch):
    card()
    monkeypatch.setitem(sys.modules, "triton", None)

    assert choose("auto", "cuda") == (TORCH, "torch: triton is not installed")
    with pytest.raises(ValueError, match="triton is not installed"):
        choose("triton", "cuda")


def test_a_triton_that_fails_at_the_first_kernel_is_told_in_one_line(card, monkeypatch):
    def broken(*_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    card()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(size))
    monkeypatch.setattr(ops, "triton_kernels", lambda: replace(TORCH, cross_scale_attention=broken))

    reason = "triton is installed but does not work (RuntimeError: Failed to find C compiler.)"
    assert choose("auto", "cuda:0") == (TORCH, f"torch: {reason}")


def test_a_triton_whose_products_are_wrong_is_told(card, monkeypatch):
    ones = torch.ones
    card()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(size))
    wrong = replace(TORCH, cross_scale_attention=lambda q, *_: 2 * q)
    monkeypatch.setattr(ops, "triton_kernels", lambda: wrong)

    assert choose("auto", "cuda:0") == (TORCH, "torch: triton is installed but computes wrong numbers")


def test_where_triton_works_auto_takes_it_but_leaves_attention_to_the_rule(card, monkeypatch):
    card()
    kernels = replace(TORCH, name="triton", cross_scale_attention=lambda *args: "triton's")
    monkeypatch.setattr(ops, "_obstacle", lambda device: None)
    monkeypatch.setattr(ops, "_gelu_works", lambda device: True)
    monkeypatch.setattr(ops, "_merging_works", lambda kernels, device: False)
    monkeypatch.setattr(ops, "triton_kernels", lambda: kernels)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7.1"))
    kernels = replace(kernels, linear_gelu=vendor.linear_gelu)

    assert choose("triton", "cuda") == (kernels, "triton 3.7.1 on NVIDIA H200")
    auto, reason = choose("auto", "cuda")

    assert reason == "triton 3.7.1 on NVIDIA H200"
    assert replace(auto, name="triton", cross_scale_attention=kernels.cross_scale_attention) == kernels
    x = torch.ones(1, 1, 600, 8, dtype=torch.float16)
    assert auto.cross_scale_attention(x[:, :, :5], ((x, x), (x, x))) == "triton's"
    assert torch.equal(auto.cross_scale_attention(x[:, :, :5], ((x, x),)), x[:, :, :5])


def test_the_cache_is_never_joined_to_the_new_tokens_in_half_precision(monkeypatch):
    """The rule: torch's own in float32 and on one segment; Triton's for scales; on two, merged where that
    pays.
    """
    kernels = replace(TORCH, cross_scale_attention=lambda *args: "triton")
    monkeypatch.setattr(ops, "TORCH", replace(TORCH, cross_scale_attention=lambda *args: "torch"))
    monkeypatch.setattr(ops, "merged_attention", lambda *args: "merged")
    half, one, two, scales = torch.empty(1, 1, 5, 8).half(), (None,), (None, None), torch.empty(5)
    calls = [
        (half, one, None), (half, two, None), (half, two, scales), (half, one, scales),
        (half.float(), two, None),
    ]

    def taken(merges: bool) -> list[str]:
        return [ops._faster_attention(kernels, merges)(*call) for call in calls]

    assert taken(merges=True) == ["torch", "merged", "triton", "triton", "torch"]
    assert taken(merges=False) == ["torch", "triton", "triton", "triton", "torch"]


def test_two_parts_merged_by_their_log_sum_exp_are_attention_over_both(monkeypatch):
    """Exact in float64, also where one part holds nearly all the weight; and by torch's kernel on a CPU."""
    q, k, v = torch.randn(3, 2, 3, 17, 16, dtype=torch.float64)
    k[:, :, 3] *= 40
    segments = (k[:, :, :9], v[:, :, :9]), (k[:, :, 9:], v[:, :, 9:])
    exact = TORCH.cross_scale_attention(q, segments, None, 0.7)
    parts = [reference.partial_attention(q, *segment, 0.7) for segment in segments]
    assert (reference.merge_attention(*parts) - exact).abs().max() < 1e-12

    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    called = lambda q, k, v, scale: attend(q, k, v, scale=scale)[:2]  # noqa: E731
    monkeypatch.setattr(ops.vendor, "partial_attention", called)
    merged = ops.merged_attention(q, segments, reference.merge_attention, 0.7)
    assert (merged - exact).abs().max() < 1e-12
    assert ops._merging_works(TORCH, torch.device("cpu"))


def test_a_vendor_whose_operations_mean_something_else_is_not_used(monkeypatch):
    cpu = torch.device("cpu")
    assert not ops._merging_works(TORCH, cpu)  # FlashAttention is not there
    monkeypatch.setattr(ops.vendor, "partial_attention", lambda q, k, v, scale: (v, q[..., 0].float()))
    assert not ops._merging_works(TORCH, cpu)
    assert not ops._gelu_works(cpu)  # torch's on a CPU has the other form of GELU
    monkeypatch.setattr(ops.vendor, "linear_gelu", reference.linear_gelu)
    assert ops._gelu_works(cpu)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="one of auto, torch, triton, not 'cuda'"):
        choose("cuda", "cpu")


def test_importing_and_asking_neither_loads_triton_nor_starts_cuda():
    script = (
        "import sys, torch\n"
        "before = 'triton' in sys.modules\n"
        "from comfy_moss.ops import choose\n"
        "choose('auto', 'cpu')\n"
        "assert ('triton' in sys.modules) == before and not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the benchmark ------------------------------------------------------------------------------------------


def test_the_benchmark_compares_and_times_every_operation(tmp_path):
    target = tmp_path / "kernels.json"
    command = [
        sys.executable, "-m", "benchmarks.kernels", "--device", "cpu", "--heads", "2", "--head-dim", "32",
        "--runs", "2",
    ]
    command += ["--shapes", "21x9", "0x5", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

    rows = json.loads(target.read_text())["rows"]
    assert {row["operation"] for row in rows} >= set(OPERATIONS)
    assert {(row["past"], row["tokens"]) for row in rows} == {(21, 9), (0, 5)}
    assert all(row["median_us"] > 0 and row["iqr_us"] >= 0 and row["terabytes_s"] > 0 for row in rows)
    assert all((row["teraflops"] > 0) == (row["operation"] in PRODUCTS) for row in rows)
    assert all(row["operation"] in done.stdout for row in rows)
