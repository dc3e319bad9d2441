"""LoRAs in a real ComfyUI: the host's own patching of weights acts exactly, adds up and goes away again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import graphs
import numpy as np
import pytest
import torch
from graphs import Graph, node
from hosting import Host, checkout
from lora_builders import Halves, halves, kohya, peft
from PIL import Image
from safetensors.torch import save_file

from comfy_moss import cli
from comfy_moss.model.library import find_model
from comfy_moss.model.lora import shapes_of

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None, reason="NO COMFYUI CHECKOUT: NO LORA WAS LOADED; set COMFYUI_PATH to one"
    ),
]
LAYERS = ("blocks.0.sa.mat_qkv", "blocks.2.ffn.fc2", "blocks.3.ca.proj", "blocks.4.ca.mat_kv", "word_embed")


@pytest.fixture(scope="module")
def pairs() -> Halves:
    return halves(shapes_of(find_model("nano", []).load()), LAYERS, size=0.2)


@pytest.fixture(scope="module")
def host(pairs: Halves) -> Iterator[Host]:
    with Host() as host:
        folder = host.base / "models" / "loras"
        folder.mkdir(parents=True, exist_ok=True)
        kohya(folder / "style.safetensors", pairs)
        few = dict(list(pairs.items())[:2])
        peft(folder / "other.safetensors", few, whole=True)
        kohya(folder / "zeros.safetensors", {k: (a, torch.zeros_like(b)) for k, (a, b) in pairs.items()})
        yield host


def drawn(host: Host, *loras: tuple[str, float], seed: int = 3) -> np.ndarray:
    """The picture that the host draws with these, one after the other."""
    graph: Graph = {**graphs.draft(seed=seed, area="0.06M"), **graphs.moss()}
    source = ["load", 0]
    for n, (name, strength) in enumerate(loras):
        file = f"{name}.safetensors"
        graph[f"lora_{n}"] = node("MoSs_LoadLora", model=source, lora=file, strength=strength)
        source = [f"lora_{n}", 0]
    graph["draft"]["inputs"]["model"] = source
    result = host.run(graph)
    assert result["status"]["status_str"] == "success", result["status"]
    (entry,) = result["outputs"]["save_moss"]["images"]
    return np.asarray(Image.open(host.base / "output" / entry["filename"]).convert("RGB")).astype(int)


def typed(host: Host, path: Path, *loras: tuple[str, float], seed: int = 3) -> np.ndarray:
    """The command line's."""
    folder = host.base / "models" / "loras"
    options = [f"--lora={folder / name}.safetensors:{strength}" for name, strength in loras]
    order = ["generate", graphs.PROMPT, f"--seed={seed}", "--pixels=0.06M"]
    assert cli.main([*order, "--method=moss4", "-o", str(path), *options]) == 0
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_loras_act_exactly_add_up_and_leave_nothing_behind(host: Host, tmp_path: Path) -> None:
    plain = drawn(host)
    kinds = [
        [("zeros", 1.0)], [("style", 0.6)], [("style", 0.6), ("other", -0.5)], [("style", 0.0)],
        [("other", 1.0)],
    ]
    seen = [drawn(host, *loras) for loras in kinds]
    for loras, picture in zip(kinds, seen, strict=True):
        assert abs(picture - typed(host, tmp_path / "a.png", *loras)).max() <= 1, loras
    assert (seen[0] == plain).all() and (seen[3] == plain).all()
    assert all(abs(picture - plain).max() > 1 for n, picture in enumerate(seen) if n not in (0, 3))
    assert (drawn(host, seed=4) == typed(host, tmp_path / "a.png", seed=4)).all()  # drawn anew, unpatched
    assert "lora key not loaded" not in host.log and "NOT LOADED" not in host.log


def test_a_lora_of_another_model_is_a_sentence(host: Host) -> None:
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    halves = {f"{stem}.lora_{half}.weight": torch.zeros(2, 2) for half in ("down", "up")}
    save_file(halves, host.base / "models" / "loras" / "sd.safetensors")
    graph = graphs.draft(area="0.06M")
    graph["lora"] = node("MoSs_LoadLora", model=["load", 0], lora="sd.safetensors", strength=1.0)
    graph["draft"]["inputs"]["model"] = ["lora", 0]
    graph |= graphs.saved("draft", ["draft", 1])
    (error,) = [data for kind, data in host.run(graph)["events"] if kind == "execution_error"]
    assert "sd.safetensors holds no LoRA for this model" in error["exception_message"]
