"""The example workflows fit the nodes as they are, in both formats; in a real ComfyUI they run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakehost import FakeHost, installed
from hart_builders import write_hart_model
from hosting import Host, checkout
from PIL import Image

from comfy_moss import cli
from comfy_moss.pipeline.dispatch import read_painting
from comfy_moss.pipeline.plan import generate, parse_method

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NEEDS_HOST = pytest.mark.skipif(
    checkout() is None, reason="NO COMFYUI CHECKOUT: NO WORKFLOW WAS RUN; set COMFYUI_PATH to one"
)


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow in the editor's format and in the API's."""
    return tuple(
        json.loads((FOLDER / f"{path}.json").read_text(encoding="utf-8")) for path in (name, f"api/{name}")
    )


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
            names += (
                [socket.id, "control_after_generate"]
                if socket.settings.get("control_after_generate")
                else [socket.id]
            )
    return names


def test_there_are_six_workflows_each_with_its_twin_and_a_thumbnail() -> None:
    assert len(NAMES) == 6 == len(list((FOLDER / "api").glob("*.json")))
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
    assert {key: node["class_type"] for key, node in api.items()} == {
        key: node["type"] for key, node in drawn.items()
    }
    for key, node in api.items():
        if schema := schemas.get(node["class_type"]):
            stored = dict(zip(widgets(schema), drawn[key]["widgets_values"], strict=True))
            stored.pop("control_after_generate", None)
            assert {
                name: value for name, value in node["inputs"].items() if not isinstance(value, list)
            } == stored
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


# --- workflows that people saved ----------------------------------------------------------------------------

SAVED = sorted((Path(__file__).resolve().parent / "workflows_0_1").glob("*.json"))


class Runner:
    """Runs a graph in the API's format node by node, ours and the three of the host's that it holds."""

    def __init__(self, host: FakeHost, graph: dict[str, Any]) -> None:
        self.host, self.graph, self.done = host, graph, {}

    def result(self, name: str) -> tuple[Any, ...]:
        if name not in self.done:
            node = self.graph[name]
            self.done[name] = self._run(
                name, node["class_type"], {k: self._value(v) for k, v in node["inputs"].items()}
            )
        return self.done[name]

    def _value(self, value: Any) -> Any:
        return self.result(value[0])[value[1]] if isinstance(value, list) else value

    def _run(self, name: str, kind: str, inputs: dict[str, Any]) -> tuple[Any, ...]:
        if kind == "CLIPTextEncode":
            return (inputs["clip"].encode(inputs["text"]),)
        if kind == "VAEDecode":
            return (inputs["vae"].decode(inputs["samples"]["samples"]),)
        return self.host.run(kind, (self.graph, name), **inputs).result

    def latent(self, kind: str) -> dict[str, Any]:
        """Of the one node of that kind."""
        (name,) = (name for name, node in self.graph.items() if node["class_type"] == kind)
        return self.result(name)[0]


@pytest.mark.parametrize(
    "path", [path for path in SAVED if "hart" not in path.name], ids=lambda path: path.stem
)
def test_a_workflow_saved_with_0_1_draws_the_same_picture(path: Path, tmp_path: Path) -> None:
    """Its picture was that of moss4 with nano's bounds; see the paper's names in the command line."""
    with installed(tmp_path) as host:
        runner = Runner(host.start(), json.loads(path.read_text(encoding="utf-8")))
        latent, drafted = runner.latent("MoSs_Composite"), runner.latent("MoSs_InfinityDraft")
        dispatch = runner.latent("MoSs_TokenDispatch")
        painted = read_painting(
            next(n["inputs"]["painting"] for n in runner.graph.values() if "painting" in n["inputs"])
        )
        moss4 = parse_method("moss4", published=drafted.model.backbone.published)
        expected = generate(drafted.model.backbone, drafted.draft.recipe, moss4, painted=painted)
        assert torch.equal(latent["samples"], expected.total)
        assert latent["moss_cost"].label == "moss4" and dispatch.step.scales == (-4, -3, -2, -1)
        if any(node["class_type"] == "MoSs_FastVARRefine" for node in runner.graph.values()):
            for kind, name in (("MoSs_FastVARRefine", "fastvar"), ("MoSs_DenseRefine", "dense")):
                rival = generate(drafted.model.backbone, drafted.draft.recipe, parse_method(name))
                assert torch.equal(runner.latent(kind)["samples"], rival.total)


def test_all_five_workflows_of_0_1_are_kept_and_hold_nothing_that_is_gone(schemas: dict[str, Any]) -> None:
    assert len(SAVED) == 5
    for path in SAVED:
        for node in json.loads(path.read_text(encoding="utf-8")).values():
            if node["class_type"].startswith("MoSs_"):
                assert node["inputs"].keys() <= {socket.id for socket in schemas[node["class_type"]].inputs}
