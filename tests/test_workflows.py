"""The example workflows fit the nodes as they are, in both formats; in a real ComfyUI they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakehost import FakeHost, installed
from hart_builders import write_hart_model
from hosting import Host, checkout
from PIL import Image

from comfy_moss import cli

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NEEDS_HOST = pytest.mark.skipif(checkout() is None, reason="NO COMFYUI CHECKOUT: NO WORKFLOW WAS RUN; set COMFYUI_PATH to one")


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow in the editor's format and in the API's."""
    return tuple(json.loads((FOLDER / f"{path}.json").read_text(encoding="utf-8")) for path in (name, f"api/{name}"))


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Schema of every node of ours."""
    with installed(tmp_path_factory.mktemp("host")) as host:
        write_hart_model(host.models / "hart" / "hart-0.7b-1024px", text=False)
        started: FakeHost = host.start()
        yield {name: node.define_schema() for name, node in started.nodes.items()}


def widgets(schema: Any) -> list[str]:
    """Names of the values that the editor stores for a node, in order."""
    names = []
    for socket in schema.inputs:
        if socket.widget:
            names += [socket.id, "control_after_generate"] if socket.settings.get("control_after_generate") else [socket.id]
    return names


def test_there_are_five_workflows_each_with_its_twin_and_a_thumbnail() -> None:
    assert len(NAMES) == 5 == len(list((FOLDER / "api").glob("*.json")))
    for name in NAMES:
        with Image.open(FOLDER / f"{name}.jpg") as image:
            assert image.format == "JPEG" and image.width >= 300


@pytest.mark.parametrize("name", NAMES)
def test_every_node_widget_and_link_of_ours_exists(name: str, schemas: dict[str, Any]) -> None:
    ui, _ = read(name)
    nodes = {node["id"]: node for node in ui["nodes"]}
    ours = [node for node in nodes.values() if node["type"].startswith("MoSs_")]
    assert len(ours) >= 6
    for node in ours:
        schema = schemas[node["type"]]
        assert len(node["widgets_values"]) == len(widgets(schema)), node["type"]
        assert {socket["name"] for socket in node["inputs"]} == {socket.id for socket in schema.inputs}
    for _, source, output, target, slot, kind in ui["links"]:
        assert nodes[source]["outputs"][output]["type"] == kind == nodes[target]["inputs"][slot]["type"]


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_says_the_same(name: str, schemas: dict[str, Any]) -> None:
    ui, api = read(name)
    drawn = {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["class_type"] for key, node in api.items()} == {key: node["type"] for key, node in drawn.items()}
    for key, node in api.items():
        if schema := schemas.get(node["class_type"]):
            stored = dict(zip(widgets(schema), drawn[key]["widgets_values"], strict=True))
            stored.pop("control_after_generate", None)
            assert {name: value for name, value in node["inputs"].items() if not isinstance(value, list)} == stored
            required = {socket.id for socket in schema.inputs if not socket.settings.get("optional")}
            assert required <= node["inputs"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_values_of_menus_and_ranges_are_still_allowed(name: str, schemas: dict[str, Any]) -> None:
    for node in read(name)[1].values():
        for socket in schemas[node["class_type"]].inputs if node["class_type"] in schemas else ():
            if socket.widget and "options" in socket.settings:
                assert node["inputs"][socket.id] in socket.settings["options"]
            elif "min" in socket.settings:
                assert socket.settings["min"] <= node["inputs"][socket.id] <= socket.settings["max"]


@pytest.fixture(scope="module")
def real() -> Iterator[Host]:
    with Host() as host:
        write_hart_model(host.base / "models" / "hart" / "hart-0.7b-1024px")
        yield host


@pytest.mark.host
@NEEDS_HOST
@pytest.mark.parametrize("name", NAMES)
def test_a_real_host_runs_it_and_lists_it_as_a_template(name: str, real: Host) -> None:
    ui, api = read(name)
    result = real.run(api, extra_data={"extra_pnginfo": {"workflow": ui}})
    assert result["status"]["status_str"] == "success", result["status"]
    assert name in real.get("/workflow_templates")["ComfyUI-MoSs"]
    assert real.get(f"/api/workflow_templates/ComfyUI-MoSs/{name}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.host
@NEEDS_HOST
def test_text_to_image_gives_the_command_lines_picture(real: Host, tmp_path: Path) -> None:
    _, api = read("moss4_text_to_image")
    prompt = next(node["inputs"]["text"] for node in api.values() if node["class_type"] == "CLIPTextEncode")
    save = next(key for key, node in api.items() if node["class_type"] == "SaveImage")
    real.post("/free", {"unload_models": True, "free_memory": True})
    file = real.run(api)["outputs"][save]["images"][0]["filename"]
    assert cli.main(["generate", prompt, "-o", str(tmp_path / "a.png")]) == 0
    files = (real.base / "output" / file, tmp_path / "a.png")
    drawn, typed = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in files)
    assert abs(drawn - typed).max() <= 1
