"""The example workflows fit the nodes as they are, in both formats; in a real ComfyUI they run."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from fakehost import FakeHost, installed
from hart_builders import write_hart_model
from hosting import Host, checkout, write_painted
from PIL import Image

from comfy_moss import cli
from comfy_moss.pipeline.dispatch import read_painting
from comfy_moss.pipeline.plan import generate, parse_method

FOLDER = Path(__file__).resolve().parent.parent / "workflows"
NAMES = sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json"))
TUNES = ("12 Edit by instruction (VAREdit)", "13 Enlarge by four (NSARM)")
RELEASED = ("09 Infinity-2B", "10 Infinity-8B", "11 HART-0.7B", *TUNES)  # need weights that are not here
FIRST = "01 Text to image"
WIDEST = 1800  # pixels of a workflow
TITLE = 30  # pixels above a node
FOLDED = 130  # pixels, width of a folded node
LEAST = 0.58  # of a node's size, at which the classic canvas still draws its text
SCREEN, CHROME = (1366, 768), (80, 110)  # pixels of a small screen, and of what the page has around the graph
FIXED = ("03 Pick from a sheet of drafts", "05 Paint where detail goes")  # their notes say why
DRAFTS = ("MoSs_InfinityDraft", "MoSs_ImageToDraft", "MoSs_InstructEdit", "MoSs_Enlarge")
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


def test_there_are_nineteen_workflows_each_with_its_twin_and_a_thumbnail() -> None:
    assert len(NAMES) == 19 == len(list((FOLDER / "api").glob("*.json"))) and NAMES[0] == FIRST
    for name in NAMES:
        with Image.open(FOLDER / f"{name}.jpg") as image:
            assert image.format == "JPEG" and image.width >= 300


@pytest.mark.parametrize("name", NAMES)
def test_every_node_widget_and_link_of_ours_exists(name: str, schemas: dict[str, Any]) -> None:
    ui, _ = read(name)
    nodes = {node["id"]: node for node in ui["nodes"]}
    ours = [node for node in nodes.values() if node["type"].startswith("MoSs_")]
    assert len(ours) >= 6
    assert all(node["title"].startswith("MoSs") for node in ours if "title" in node)
    for node in ours:
        schema = schemas[node["type"]]
        assert len(node.get("widgets_values", [])) == len(widgets(schema)), node["type"]
        assert {socket["name"] for socket in node["inputs"]} == {socket.id for socket in schema.inputs}
    for _, source, output, target, slot, kind in ui["links"]:
        assert nodes[source]["outputs"][output]["type"] == kind
        assert kind in nodes[target]["inputs"][slot]["type"].split(",")


def test_no_dispatch_holds_numbers_that_a_page_left_in_it() -> None:
    """Nothing that is shipped has bounds of its own: chosen methods, budgets and areas would be ignored."""
    files = [*FOLDER.glob("*.json"), *(FOLDER.parent / "subgraphs").glob("*.json")]
    graphs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    graphs += [inner for graph in graphs for inner in (graph.get("definitions") or {}).get("subgraphs", ())]
    nodes = [node for graph in graphs for node in graph["nodes"] if node["type"] == "MoSs_TokenDispatch"]
    assert len(nodes) > len(NAMES)
    for node in nodes:
        preset, values, _, scales = node["widgets_values"]
        assert preset in ("method", "automatic", "paper") and (values, scales) == ("80, 70, 30, 10", "all")


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_says_the_same(name: str, schemas: dict[str, Any]) -> None:
    ui, api = read(name)
    drawn = {str(node["id"]): node for node in ui["nodes"] if node["type"] != "MarkdownNote"}
    assert {key: node["class_type"] for key, node in api.items()} == {
        key: node["type"] for key, node in drawn.items()
    }
    for key, node in api.items():
        if schema := schemas.get(node["class_type"]):
            stored = dict(zip(widgets(schema), drawn[key].get("widgets_values", []), strict=True))
            linked = {name for name, value in node["inputs"].items() if isinstance(value, list)}
            stored = {n: v for n, v in stored.items() if n not in {"control_after_generate", *linked}}
            assert {
                name: value for name, value in node["inputs"].items() if not isinstance(value, list)
            } == stored
            required = {socket.id for socket in schema.inputs if not socket.settings.get("optional")}
            assert required <= node["inputs"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_fits_a_small_screen_and_no_node_lies_on_another(name: str) -> None:
    nodes = [node for node in read(name)[0]["nodes"] if not node["flags"].get("collapsed")]
    boxes = [(*node["pos"], *node["size"]) for node in nodes]
    assert max(x + w for x, _, w, _ in boxes) - min(x for x, *_ in boxes) <= WIDEST
    for a, b in itertools.combinations(boxes, 2):
        beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
        assert beside or a[1] + a[3] <= b[1] - TITLE or b[1] + b[3] <= a[1] - TITLE, (a, b)


def box(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title; of a folded node, whose width the page chooses, the least."""
    (x, y), (w, h) = node["pos"], node["size"]
    return (x, y - TITLE, x + FOLDED, y) if node["flags"].get("collapsed") else (x, y - TITLE, x + w, y + h)


def socket(node: dict[str, Any], n: int, output: bool) -> tuple[float, float]:
    """Where a wire meets a node."""
    left, top, right, bottom = box(node)
    if node["flags"].get("collapsed"):
        return (right if output else left), (top + bottom) / 2
    return (right if output else left), node["pos"][1] + (n + 0.7) * 20


def curve(points: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Places along a wire: it leaves nodes sideways, as the classic canvas draws it."""
    for n, (a, b) in enumerate(itertools.pairwise(points)):
        bend = 0.25 * math.dist(a, b)
        first = (a[0] + bend * (n == 0), a[1])
        last = (b[0] - bend * (n == len(points) - 2), b[1])
        for t in (step / 40 for step in range(41)):
            weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
            yield tuple(
                sum(w * p[axis] for w, p in zip(weights, (a, first, last, b), strict=True)) for axis in (0, 1)
            )


def wires(ui: dict[str, Any]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Every wire with its name and the points that it runs through."""
    nodes = {node["id"]: node for node in ui["nodes"]}
    reroutes = {reroute["id"]: reroute for reroute in ui["extra"].get("reroutes", [])}
    last = {one["id"]: one["parentId"] for one in ui["extra"].get("linkExtensions", [])}
    for key, source, output, target, slot, _ in ui["links"]:
        points, at = [socket(nodes[target], slot, False)], last.get(key)
        while at is not None:
            points.append(tuple(reroutes[at]["pos"]))
            at = reroutes[at].get("parentId")
        points.append(socket(nodes[source], output, True))
        into = nodes[target]["inputs"][slot]["name"]
        yield f"{nodes[source]['type']} to {into} of {nodes[target]['type']}", points[::-1]


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_runs_behind_a_node(name: str) -> None:
    ui = read(name)[0]
    boxes = {node["id"]: (node["type"], box(node)) for node in ui["nodes"]}
    for wire, points in wires(ui):
        for x, y in curve(points):
            for kind, (left, top, right, bottom) in boxes.values():
                assert not (left + 6 < x < right - 6 and top + 2 < y < bottom - 2), f"{wire} behind {kind}"


@pytest.mark.parametrize("name", NAMES)
def test_a_template_opens_at_a_size_at_which_its_text_is_drawn(name: str) -> None:
    """The classic canvas draws text down to about six tenths of its size."""
    boxes = [box(node) for node in read(name)[0]["nodes"]]
    sides = [max(b[n + 2] for b in boxes) - min(b[n] for b in boxes) for n in (0, 1)]
    zoom = min((all_ - page) / side for all_, page, side in zip(SCREEN, CHROME, sides, strict=True))
    assert zoom >= LEAST, f"{zoom:.2f}: {sides[0]:.0f} x {sides[1]:.0f}"


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_template_draws_something_new(name: str) -> None:
    """Where the seed is fixed, the note says why."""
    nodes = read(name)[0]["nodes"]
    drafts = [node for node in nodes if node["type"] in DRAFTS]
    note = next(node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    assert all("randomize" in node["widgets_values"] for node in drafts) != (name in FIXED)
    assert ("seed is fixed" in note) == (name in FIXED)
    numbers = [node["widgets_values"] for node in nodes if node["type"] == "PrimitiveInt"]
    assert all(values == [5, "increment"] for values in numbers)  # the host's random ones may be below 0


def test_the_numbers_of_the_model_stand_in_every_template() -> None:
    numbers = {"nano (embedded)": (1.5, 0.5), "infinity_2b_reg.pth": (3, 0.5), "infinity_8b_weights": (3, 1)}
    for name in NAMES:
        graph = read(name)[1].values()
        model = next(node["inputs"]["model"] for node in graph if node["class_type"].startswith("MoSs_Load"))
        drafts = [node["inputs"] for node in graph if node["class_type"] == "MoSs_InfinityDraft"]
        found = {(draft["cfg"], draft["tau"]) for draft in drafts}
        loaded = name in TUNES or "Inpaint" in name  # a picture, instead of a draft from text
        assert found == (set() if loaded else {numbers.get(model, (5.5, 1))})


@pytest.mark.parametrize("name", RELEASED)
def test_a_template_for_released_weights_names_files_folders_and_addresses(name: str) -> None:
    loader = next(node for node in read(name)[0]["nodes"] if node["type"].startswith("MoSs_Load"))
    models = loader["properties"]["models"]
    assert models and {model["name"] for model in models} <= set(loader["widgets_values"])
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
        assert model["directory"] in ("diffusion_models", "vae", "hart", "infinity")


def test_the_app_shows_the_prompt_the_method_and_the_picture() -> None:
    extra = read("02 Text to image (app)")[0]["extra"]
    assert extra["linearMode"] is True and len(extra["linearData"]["outputs"]) == 1
    assert {widget for _, widget in extra["linearData"]["inputs"]} >= {"text", "method", "aspect", "seed"}


@pytest.mark.parametrize("name", NAMES)
def test_values_of_menus_and_ranges_are_still_allowed(name: str, schemas: dict[str, Any]) -> None:
    for node in read(name)[1].values():
        for socket in schemas[node["class_type"]].inputs if node["class_type"] in schemas else ():
            if socket.widget and "options" in socket.settings and socket.id not in ("model", "vae"):
                assert node["inputs"][socket.id] in socket.settings["options"]
            elif "min" in socket.settings and not isinstance(node["inputs"][socket.id], list):
                assert socket.settings["min"] <= node["inputs"][socket.id] <= socket.settings["max"]


@pytest.fixture(scope="module")
def real() -> Iterator[Host]:
    with Host() as host:
        write_hart_model(host.base / "models" / "hart" / "hart-0.7b-1024px")
        write_painted(host.base / "input" / "example.png")
        yield host


@pytest.mark.host
@NEEDS_HOST
@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*RELEASED[:2], *TUNES)])
def test_a_real_host_runs_it_and_lists_it_as_a_template(name: str, real: Host) -> None:
    ui, api = read(name)
    result = real.run(api, extra_data={"extra_pnginfo": {"workflow": ui}})
    assert result["status"]["status_str"] == "success", result["status"]
    assert name in real.get("/workflow_templates")["ComfyUI-MoSs"]
    place = f"/api/workflow_templates/ComfyUI-MoSs/{quote(name)}"
    assert real.get(f"{place}.jpg")[:2] == b"\xff\xd8" and real.get(f"{place}.json") == ui


@pytest.mark.host
@NEEDS_HOST
def test_text_to_image_gives_the_command_lines_picture(real: Host, tmp_path: Path) -> None:
    _, api = read(FIRST)
    prompt = next(node["inputs"]["text"] for node in api.values() if node["class_type"] == "CLIPTextEncode")
    area = next(node["inputs"]["area"] for node in api.values() if "area" in node["inputs"])
    save = next(key for key, node in api.items() if node["class_type"] == "SaveImage")
    real.post("/free", {"unload_models": True, "free_memory": True})
    file = real.run(api)["outputs"][save]["images"][0]["filename"]
    assert cli.main(["generate", prompt, "--pixels", area, "-o", str(tmp_path / "a.png")]) == 0
    files = (real.base / "output" / file, tmp_path / "a.png")
    drawn, typed = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in files)
    assert abs(drawn - typed).max() <= 1


@pytest.mark.host
@NEEDS_HOST
def test_a_budget_at_1m_draws_the_command_lines_picture_and_tells_what_it_leaves_unused(
    real: Host, tmp_path: Path
) -> None:
    """The plan has a strength of its own, another than the node's."""
    _, api = read(FIRST)
    kinds = {node["class_type"]: key for key, node in api.items()}
    text, draft, save = (kinds[kind] for kind in ("CLIPTextEncode", "MoSs_InfinityDraft", "SaveImage"))
    denied = {"class_type": "CLIPTextEncode", "inputs": api[text]["inputs"] | {"text": "a blue star"}}
    asked = {"method": "by budget", "budget": 0.2, "cfg": 3.0, "negative": ["denied", 0]}
    api[draft]["inputs"] |= asked
    result = real.run({**api, "denied": denied})
    assert result["status"]["status_str"] == "success", result["status"]
    told = result["outputs"][draft]
    (used,), notes = told["moss_used"], [note["key"] for note in told["moss_notes"]]
    assert used["cfg"] == 1.0 and " cfg 1;" in used["plan"] and notes == ["chosen", "negative"]
    order = ["generate", api[text]["inputs"]["text"], "--pixels", "1M", "--cfg", "3", "--plan", used["plan"]]
    assert cli.main([*order, "-o", str(tmp_path / "a.png")]) == 0
    files = (real.base / "output" / result["outputs"][save]["images"][0]["filename"], tmp_path / "a.png")
    drawn, typed = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in files)
    assert drawn.shape == (512, 512, 3) and abs(drawn - typed).max() <= 1


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
        moss4 = parse_method("moss4", published=drafted.published)
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
