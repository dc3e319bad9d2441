"""The host's own layers under our models, in a real ComfyUI: see layers_in_host.py, which runs there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hosting import checkout, interpreter

SCRIPT = Path(__file__).with_name("layers_in_host.py")
MEMORY = ("plain", "some room", "low", "no room")
PASSES = 7  # through the blocks: MoSs4's draft of six scales of ten, and its refine pass

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(checkout() is None, reason="no ComfyUI checkout; set COMFYUI_PATH to one"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [interpreter(checkout()), str(SCRIPT), str(checkout())]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("memory", MEMORY)
def test_pictures_are_the_same_bit_for_bit_however_many_weights_the_host_leaves_behind(
    found: dict[str, Any], memory: str
) -> None:
    picture, text = found["treated"][memory], found["treated"][f"text, {memory}"]
    assert picture["result"] == text["result"] == 0
    assert (picture["left"] > 0) == (text["left"] > 0) == (memory != "plain")


def test_the_less_room_the_more_is_left_behind(found: dict[str, Any]) -> None:
    left = [found["treated"][memory]["left_bytes"] for memory in MEMORY]
    assert left == sorted(left) and len(set(left)) == len(MEMORY)


@pytest.mark.parametrize("memory", MEMORY)
def test_a_weight_is_brought_once_a_pass_and_no_oftener(found: dict[str, Any], memory: str) -> None:
    picture = found["treated"][memory]
    assert picture["left"] <= picture["brought"] <= PASSES * picture["left"] or memory == "plain"
    assert picture["cast_bytes"] <= PASSES * picture["left_bytes"]


@pytest.mark.parametrize("memory", ["plain", "no room"])
@pytest.mark.parametrize("patch", ["zeros", "product", "difference"])
def test_the_hosts_own_patches_act_exactly(found: dict[str, Any], patch: str, memory: str) -> None:
    one = found["patched"][f"{patch}, {memory}"]
    assert one["result"] == 0 and (one["effect"] > 1) == (patch != "zeros")


def test_without_its_patches_a_model_is_what_it_was(found: dict[str, Any]) -> None:
    assert found["patched"]["unpatched"]["result"] == 0


def test_layers_that_are_built_without_weights_load_and_draw_alike(found: dict[str, Any]) -> None:
    assert found["lazily_built"]["picture"]["result"] == found["lazily_built"]["text"]["result"] == 0


@pytest.mark.parametrize("memory", MEMORY)
def test_the_hosts_option_for_fp8_stores_matrices_so_and_nothing_else(
    found: dict[str, Any], memory: str
) -> None:
    assert found["in_fp8"]["types"] == {"torch.float8_e4m3fn": 6 * 7, "torch.float32": 6 * 11}
    assert found["in_fp8"][memory]["result"] == 0  # the same as rounding the weights beforehand


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_weights_in_8_bits_stay_so_and_draw_what_they_stand_for(found: dict[str, Any], kind: str) -> None:
    """fp8 computes with the weights multiplied out; int8 rounds what goes into a layer as well."""
    part = found["in_8_bits"]
    assert part[f"{kind}, layers"] == {"QuantizedTensor": 6 * 7} and not part[f"{kind}, graphs"]
    plain, no_room = part[f"{kind}, plain"], part[f"{kind}, no room"]
    assert plain["mean"] == no_room["mean"] and no_room["left"] > 0
    assert plain["result"] == 0 if kind == "fp8" else 0 < plain["mean"] < 4


@pytest.mark.parametrize(("kind", "rounding"), [("fp8", 1 / 3), ("int8", 1 / 6)])
def test_a_lora_changes_weights_in_8_bits_to_within_their_rounding(
    found: dict[str, Any], kind: str, rounding: float
) -> None:
    """In shares of the change itself: what the host's rounding of the changed weights leaves."""
    lora = found["in_8_bits"][f"{kind}, LoRA"]
    assert 0 < lora["rounding"] <= rounding and lora["effect"] > 1
    assert lora["off"] == 0 or kind == "int8"  # added to the weights multiplied out


@pytest.mark.parametrize("family", ["patchify", "varedit", "nsarm", "hart"])
def test_every_family_draws_without_room_for_a_single_layer(found: dict[str, Any], family: str) -> None:
    assert found["families"][family]["result"] == 0 < found["families"][family]["left"]
