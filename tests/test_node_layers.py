"""What a model is stored and computed in as a node, and who moves its weights, as the host's services answer.
In a stand-in for ComfyUI; its own layers are for test_host_layers.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fakehost import FakeHost, installed
from torch import nn

from comfy_moss.model.library import find_model

FP8, BF16, FP16, FP32 = torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        yield host.start()


@pytest.fixture
def management(host: FakeHost) -> ModuleType:
    return sys.modules["comfy.model_management"]


@pytest.fixture
def precision_of(host: FakeHost) -> Callable[..., Any]:
    return sys.modules["comfy_moss.nodes.layers"].precision_of


@pytest.mark.parametrize(
    ("stored", "cast", "codec", "expected"),
    [
        (FP32, None, FP32, (FP32, None, FP32)),
        (BF16, None, BF16, (BF16, None, BF16)),
        (FP16, None, FP32, (FP16, None, FP32)),
        (FP8, BF16, BF16, (BF16, FP8, BF16)),  # --fp8_e4m3fn-unet
        (BF16, FP32, FP32, (FP32, BF16, FP32)),  # a card that stores in bf16 and computes in fp32
    ],
)
def test_auto_is_what_the_host_answers(
    precision_of: Callable, management: ModuleType, monkeypatch: pytest.MonkeyPatch, stored, cast, codec,
    expected,
) -> None:
    asked = []
    answers = {
        "unet_dtype": lambda *question: (asked.append(question), stored)[1],
        "unet_manual_cast": lambda *question: cast, "vae_dtype": lambda *question: codec,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(management, name, answer)
    dtype, layers = precision_of("auto", find_model("nano", []))
    assert (dtype, layers.stored, layers.codec) == expected
    ((_, parameters, known),) = asked
    assert parameters > 3_000_000 and known == [BF16, FP16, FP32]


def test_a_model_that_float16_may_not_hold_is_not_offered_it(
    precision_of: Callable, management: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = []
    monkeypatch.setattr(management, "unet_dtype", lambda _, __, types: (known.extend(types), FP32)[1])
    files = SimpleNamespace(fits_float16=False, transformer=find_model("nano", []).transformer)
    precision_of("auto", files)
    assert known == [BF16, FP32]


@pytest.mark.parametrize(
    ("name", "expected"), [("bf16", (BF16, None)), ("fp32", (FP32, None)), ("fp16", (FP16, FP32))]
)
def test_what_the_artist_chooses_is_asked_of_nobody(precision_of: Callable, name: str, expected) -> None:
    dtype, layers = precision_of(name, None)
    assert (dtype, layers.codec) == expected and layers.stored is None


@pytest.mark.parametrize(
    ("state", "memory", "kind", "roomy"),
    [
        ("NORMAL_VRAM", 2**20, nn.Linear(64, 64), True), ("LOW_VRAM", 2**20, nn.Linear(64, 64), False),
        ("NORMAL_VRAM", 2**15, nn.Linear(64, 64), False),
        ("NORMAL_VRAM", 2**20, nn.Linear(64, 64).to(FP8), False),
    ],
    ids=["room", "scarce by choice", "too large", "in 8 bits"],
)
def test_weights_stay_still_only_where_there_is_room(
    host: FakeHost, management: ModuleType, monkeypatch: pytest.MonkeyPatch, state, memory, kind, roomy
) -> None:
    monkeypatch.setattr(management, "vram_state", SimpleNamespace(name=state), raising=False)
    monkeypatch.setattr(management, "get_total_memory", lambda device: memory)
    assert sys.modules["comfy_moss.nodes.host"].is_roomy(kind, torch.device("cpu")) is roomy


def test_the_handle_is_the_hosts_plain_one_where_weights_must_stay_still(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    patchers = sys.modules["comfy.model_patcher"]
    monkeypatch.setattr(patchers, "CoreModelPatcher", lambda *args, **options: "dynamic", raising=False)
    manage, cpu = sys.modules["comfy_moss.nodes.host"].manage, torch.device("cpu")
    assert manage(nn.Linear(2, 2), cpu, cpu) == "dynamic"
    assert isinstance(manage(nn.Linear(2, 2), cpu, cpu, still=True), patchers.ModelPatcher)
