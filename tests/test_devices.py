"""Which device and precision are taken when nothing is said."""

from __future__ import annotations

import pytest
import torch

from comfy_moss.request import choose_device


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.float32),  # measured: slower than float32 there
        ({}, torch.float32),
    ],
)
def test_a_processor_gets_bfloat16_where_it_is_faster(
    capabilities: dict, dtype: torch.dtype, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_device("cpu", "auto") == (torch.device("cpu"), dtype)
    assert choose_device("cpu", "fp32")[1] == torch.float32


def test_older_versions_of_torch_which_cannot_tell_stay_with_float32(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_device("cpu", "auto")[1] == torch.float32
