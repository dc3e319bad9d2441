"""The pack inside a real ComfyUI, on the CPU."""

from __future__ import annotations

import io
import os
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import graphs
import numpy as np
import pytest
from graphs import Graph
from hosting import Host, checkout
from PIL import Image

from comfy_moss import cli

OLD = Path(os.environ.get("COMFYUI_OLD_PATH") or Path.home() / "comfy-old" / "ComfyUI")
ASPECTS = (
    "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "5:2", "3:1", "4:5", "3:4", "2:3", "9:16", "1:2", "2:5", "1:3",
)
BEHIND = {"dispatch", "refine", "composite", "moss_picture", "save_moss"}  # what new bounds change
QUICK = {"area": "0.06M"}

# Reports the caches and drafts that are alive, query lengths of the attention since the last report, and what
# we asked of the disk.  An empty list of nodes keeps the host from complaining.
PROBE = """
import gc
import pathlib
import sys
import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
queries, looked = [], []
attention, is_dir = torch.nn.functional.scaled_dot_product_attention, pathlib.Path.is_dir

def counted(q, *args, **options):
    queries.append(q.shape[-2])
    return attention(q, *args, **options)

def watched(path, *args, **options):
    if "ComfyUI-MoSs" in sys._getframe(1).f_code.co_filename:
        looked.append(str(path))
    return is_dir(path, *args, **options)

torch.nn.functional.scaled_dot_product_attention = counted
pathlib.Path.is_dir = watched

@PromptServer.instance.routes.get("/moss_partially_unload")
async def partially_unload(request):
    mm = comfy.model_management
    return web.json_response([loaded.model_unload(memory_to_free=1) for loaded in mm.current_loaded_models])

@PromptServer.instance.routes.get("/moss_probe")
async def probe(request):
    gc.collect()
    alive = [x for x in gc.get_objects() if "comfy_moss" in str(type(x).__module__)]
    caches = [x for x in alive if type(x).__name__ == "KVCache"]
    drafts = [x for x in alive if type(x).__name__ == "Draft"]
    said = {"queries": sorted(set(queries)), "looked": list(looked)}
    queries.clear()
    looked.clear()
    counted = {"caches": len(caches), "bytes": sum(c.nbytes for c in caches), "drafts": len(drafts)}
    return web.json_response({**counted, **said})
"""

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None,
        reason="NO COMFYUI CHECKOUT: NOTHING WAS TESTED IN A REAL HOST; set COMFYUI_PATH to one",
    ),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(packs={"probe": PROBE}) as host:
        yield host


def moss(seed: int, **settings: Any) -> Graph:
    """The paper's method at the smallest area; settings of `graphs.moss`."""
    return {**graphs.draft(seed=seed, **QUICK), **graphs.moss(**settings)}


def other(colour: int) -> Graph:
    """A graph that has nothing to do with us."""
    image = graphs.node("EmptyImage", width=16, height=16, batch_size=1, color=colour)
    return {"image": image, "show": graphs.node("PreviewImage", images=["image", 0])}


def ran(result: dict[str, Any]) -> set[str]:
    """Nodes that were executed."""
    return {data["node"] for kind, data in result["events"] if kind == "executing"} - {None}


def cached(result: dict[str, Any]) -> set[str]:
    return {node for kind, data in result["events"] if kind == "execution_cached" for node in data["nodes"]}


def event(result: dict[str, Any], wanted: str) -> dict[str, Any]:
    """The data of the only event of a kind."""
    (data,) = (data for kind, data in result["events"] if kind == wanted)
    return data


def saved(host: Host, result: dict[str, Any], name: str) -> list[np.ndarray]:
    """The pictures (H, W, 3) that save_<name> wrote."""
    assert result["status"]["status_str"] == "success", result["status"]
    files = [
        host.base / "output" / entry["filename"] for entry in result["outputs"][f"save_{name}"]["images"]
    ]
    return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files]


def difference(a: np.ndarray, b: np.ndarray) -> int:
    """The largest, in steps of 1/255."""
    assert a.shape == b.shape
    return int(abs(a - b).max())


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[np.ndarray]]:
    """A function that draws with the command line."""
    folder = tmp_path_factory.mktemp("typed")

    def draw(*options: str) -> list[np.ndarray]:
        for file in folder.iterdir():
            file.unlink()
        method = ("--method=moss4", *options)  # the last one counts
        assert cli.main(["generate", graphs.PROMPT, "-o", str(folder / "a.png"), *method]) == 0
        return [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in sorted(folder.iterdir())]

    return draw


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


def complaints(log: str) -> list[str]:
    """Lines of a host's log that speak of us, or of errors, except those that a good start has."""
    good = ("MoSs 0.", "MoSs: attention and RoPE of nano", " seconds: ")
    bad = ("moss", "Traceback", "IMPORT FAILED", "Exception", "[ERROR]")
    lines = [line for line in log.splitlines() if any(word.lower() in line.lower() for word in bad)]
    return [line for line in lines if "FAILED" in line or not any(word in line for word in good)]


# --- loading ------------------------------------------------------------------------------------------------


def test_the_pack_loads_without_complaints_and_says_what_computes_it(host: Host) -> None:
    start = host.log.partition("To see the GUI")[0]
    assert complaints(start) == []
    # nothing is probed before a model is loaded
    assert start.count("19 nodes") == 1 and "attention and RoPE" not in start


def test_all_nodes_are_there_and_explain_themselves(host: Host) -> None:
    ours = {name: node for name, node in host.get("/object_info").items() if name.startswith("MoSs_")}
    assert len(ours) == 19
    for name, node in ours.items():
        inputs = node["input"].get("required", {}) | node["input"].get("optional", {})
        assert node["category"] == "MoSs" and node["description"] and "ComfyUI-MoSs" in node["python_module"]
        assert [
            key for key, (_, *options) in inputs.items() if not (options and options[0].get("tooltip"))
        ] == [], name
        assert len(node["output_tooltips"]) == len(node["output"]) and all(node["output_tooltips"]), name


# --- pictures -----------------------------------------------------------------------------------------------


def test_the_whole_graph_draws_the_command_lines_pictures(host: Host, typed: Callable) -> None:
    before = len(host.log)
    result = host.run(graphs.whole(seed=3))
    for name, method in (("moss", "moss4"), ("dense", "dense"), ("fastvar", "fastvar"), ("draft", "draft")):
        (picture,), (expected,) = saved(host, result, name), typed("--seed=3", f"--method={method}")
        assert difference(picture, expected) <= 1, name
    assert difference(saved(host, result, "tiled")[0], saved(host, result, "dense")[0]) <= 1
    assert (
        "PSNR" in result["outputs"]["report"]["text"][0] and "moss4" in result["outputs"]["report"]["text"][0]
    )
    assert complaints(host.log[before:]) == [] and "[WARNING]" not in host.log[before:]
    assert host.log.count("MoSs: attention and RoPE of nano: torch: ") >= 1


def test_a_batch_is_its_single_pictures_with_seeds_counting_up(host: Host, typed: Callable) -> None:
    graph = {**graphs.draft(seed=7, batch_size=3, aspect="16:9", cfg=2.5, **QUICK), **graphs.moss()}
    pictures = saved(host, host.run(graph), "moss")
    options = ("--aspect=16:9", "--cfg=2.5", "--pixels=0.06M")
    assert len(pictures) == 3
    for seed, picture in enumerate(pictures, 7):
        assert difference(picture, typed(f"--seed={seed}", *options)[0]) <= 1
    assert difference(pictures[0], pictures[1]) > 50


def test_a_cache_in_8_bits_is_the_command_lines(host: Host, typed: Callable) -> None:
    graph = {**moss(3), **graphs.rival("dense")}
    graph["load"]["inputs"]["kv_cache"] = "8 bits"
    result = host.run(graph)
    for name, method in (("moss", "moss4"), ("dense", "dense")):
        (expected,) = typed("--seed=3", "--pixels=0.06M", f"--method={method}", "--kv-cache=int8")
        assert difference(saved(host, result, name)[0], expected) <= 1


def test_a_negative_prompt_is_the_command_lines(host: Host, typed: Callable) -> None:
    graph = moss(8)
    graph["denied"] = graphs.node("CLIPTextEncode", clip=["load", 1], text="a red square")
    graph["draft"]["inputs"]["negative"] = ["denied", 0]
    (picture,) = saved(host, host.run(graph), "moss")
    assert difference(picture, typed("--seed=8", "--pixels=0.06M", "--negative=a red square")[0]) <= 1
    assert difference(picture, typed("--seed=8", "--pixels=0.06M")[0]) > 1


@pytest.mark.parametrize("aspect", ASPECTS)
def test_every_aspect_ratio_is_drawn(host: Host, aspect: str) -> None:
    graph = {**graphs.draft(seed=1, aspect=aspect, **QUICK), **graphs.moss(), **graphs.rival("fastvar")}
    result = host.run(graph)
    width, height = map(int, aspect.split(":"))
    for name in ("moss", "fastvar"):
        (picture,) = saved(host, result, name)
        assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.1)


def test_the_hosts_own_nodes_for_clip_and_vae_work(host: Host) -> None:
    graph = moss(9)
    plain = saved(host, host.run(graph), "moss")[0]
    graph["layer"] = graphs.node("CLIPSetLastLayer", clip=["load", 1], stop_at_clip_layer=-2)
    graph["text"]["inputs"]["clip"] = ["layer", 0]
    graph["encoded"] = graphs.node("VAEEncode", pixels=["moss_picture", 0], vae=["load", 2])
    result = host.run({**graph, **graphs.saved("again", ["encoded", 0])})
    assert difference(saved(host, result, "moss")[0], plain) == 0  # options of CLIP mean nothing here
    again = saved(host, result, "again")[0]
    assert again.shape == plain.shape and abs(again - plain).mean() < 20


# --- running ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"preset": "custom bounds", "values": "60, 40, 20, 5"}, BEHIND),
        ({"strength": 0.5}, BEHIND - {"dispatch", "refine"}),
    ],
    ids=["bounds", "strength"],
)
def test_what_changes_behind_the_draft_does_not_draw_it_again(
    host: Host, change: dict, again: set[str]
) -> None:
    host.run(moss(20))
    result = host.run(moss(20, **change))
    assert ran(result) == again
    assert cached(result) == moss(20).keys() - again >= {"load", "text", "draft", "frequency"}


@pytest.mark.parametrize(
    ("method", "pictures"), [("auto", 6), ("latent2rgb", 6), ("taesd", 6), ("none", 0), ("default", 0)]
)
def test_live_previews_come_from_the_draft_while_it_is_drawn_where_they_are_wanted(
    host: Host, method: str, pictures: int
) -> None:
    graph = {**graphs.draft(seed=21 + len(method), preview=True), **graphs.saved("draft", ["draft", 1])}
    result = host.run(graph, extra_data={"preview_method": method})
    steps = [
        data["value"] for kind, data in result["events"] if kind == "progress" and data["node"] == "draft"
    ]
    # without pictures the host leaves out quick steps
    assert steps == [1, 2, 3, 4, 5, 6] or (not pictures and steps[-1] == 6)
    shown = [data for kind, data in result["events"] if kind == 4]  # previews with metadata
    assert len(shown) == pictures and all(b'"draft"' in data and b"\xff\xd8\xff" in data for data in shown)
    for data in shown:
        # the picture's own
        assert Image.open(io.BytesIO(data[data.index(b"\xff\xd8\xff") :])).size == (256, 256)
    again = host.run({**graph, **other(pictures)}, extra_data={"preview_method": method})
    (said,) = [
        data["output"] for kind, data in again["events"] if kind == "executed" and data["node"] == "draft"
    ]
    assert "draft" in cached(again)  # and what the page shows of it is
    assert [picture["type"] for picture in (said or {}).get("images", [])] == ["temp"] * bool(pictures)


def refined(host: Host, graph: Graph) -> tuple[set[int], dict[str, Any]]:
    """Query lengths of the attention in a run, and its report as numbers by name."""
    graph = {**graph, "told": graphs.node("MoSs_Report", latent=["composite", 0])}
    host.get("/moss_probe")
    result = host.run(graph)
    assert result["status"]["status_str"] == "success", result["status"]
    lines = dict(line.split("  ", 1) for line in result["outputs"]["told"]["text"][0].splitlines())
    return set(host.get("/moss_probe")["queries"]), lines


@pytest.mark.parametrize("cfg", [0, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("batch", [1, 2])
def test_another_dispatch_over_a_draft_is_one_pass_of_its_tokens(host: Host, batch: int, cfg: float) -> None:
    """Behind a whole run with VAE Decode, which has other models loaded in between."""
    first = {**graphs.draft(seed=60, batch_size=batch, cfg=cfg), **graphs.moss()}
    refined(host, first)
    other_bounds = {**first, **graphs.moss("custom bounds", "60, 40, 20, 10")}
    queries, lines = refined(host, other_bounds)
    assert queries == {int(lines["refined"].split()[0])}
    assert "rebuild" not in lines and "queue to latent" in lines
    unloaded = host.get("/moss_partially_unload")  # as --lowvram does it
    assert len(unloaded) >= 2 and not any(unloaded)
    queries, lines = refined(host, {**first, **graphs.moss("custom bounds", "70, 40, 20, 10")})
    assert queries == {int(lines["refined"].split()[0])} and "rebuild" not in lines
    host.post("/free", {"unload_models": True})
    assert until(lambda: host.get("/moss_probe")["caches"] == 0)
    queries, lines = refined(host, {**first, **graphs.moss("custom bounds", "50, 40, 20, 10")})
    assert queries == {1, 4, 16, 36, 64, 144, int(lines["refined"].split()[0])} and "rebuild" in lines


@pytest.mark.gpu
@pytest.mark.parametrize("memory", ["--lowvram", "--novram"])
def test_another_dispatch_is_one_pass_however_the_host_treats_memory(memory: str) -> None:
    """Each of these takes the place of --cpu."""
    with Host(memory=memory, packs={"probe": PROBE}) as host:
        refined(host, moss(61))
        queries, lines = refined(host, moss(61, preset="custom bounds", values="60, 40, 20, 10"))
        assert queries == {int(lines["refined"].split()[0])}


def test_a_cached_graph_looks_at_no_file_however_many_there_are(host: Host) -> None:
    for name in ("checkpoints", "text_encoders", "vae", "infinity"):
        folder = host.base / "models" / name / "unrelated"
        folder.mkdir(parents=True)
        for n in range(7500):
            (folder / f"{n}.safetensors").touch()
    host.run(moss(62))
    host.get("/moss_probe")
    result = host.run(moss(62))
    assert {"load", "draft", "refine"} <= cached(result)
    assert host.get("/moss_probe")["looked"] == []


def test_a_cancelled_draft_ends_within_a_scale_and_the_next_prompt_runs(host: Host) -> None:
    graph = {
        **graphs.draft(seed=22, area="1M", refine_scales=0, batch_size=2),
        **graphs.saved("draft", ["draft", 1]),
    }

    def cancel(kind: str | int, data: Any) -> None:
        if kind == "progress" and data["value"] == 9:
            host.post("/interrupt", {})

    result = host.run(graph, on_event=cancel)
    assert event(result, "execution_interrupted")["node_id"] == "draft"
    assert max(data["value"] for kind, data in result["events"] if kind == "progress") <= 10  # of 13
    assert host.get("/moss_probe")["caches"] == 0
    saved(host, host.run(moss(22)), "moss")


@pytest.mark.parametrize(
    ("node", "inputs", "sentence"),
    [
        ("draft", {"refine_scales": 7}, "refine_scales 7 leaves nothing to draft"),
        ("dispatch", {"preset": "custom bounds", "values": "a lot"}, "values 'a lot' are not numbers"),
        ("text", {"text": "a green circle " * 700}, "the prompt is too long"),
    ],
)
def test_what_is_impossible_is_said_on_the_node_that_asked(
    host: Host, node: str, inputs: dict, sentence: str
) -> None:
    graph = moss(23)
    graph[node]["inputs"].update(inputs)
    error = event(host.run(graph), "execution_error")
    assert error["node_id"] == node and error["exception_message"].strip().startswith(sentence)
    assert "\n" not in error["exception_message"].strip()


def test_values_that_a_widget_cannot_have_are_refused_before_anything_runs(host: Host) -> None:
    graph = moss(24)
    graph["load"]["inputs"]["model"] = "gone.safetensors"
    graph["composite"]["inputs"]["strength"] = 1.5
    with pytest.raises(urllib.error.HTTPError) as refused:
        host.run(graph)
    assert refused.value.code == 400
    assert "value_not_in_list" in str(refused.value) and "value_bigger_than_max" in str(refused.value)


# --- memory -------------------------------------------------------------------------------------------------


def test_however_many_drafts_the_host_keeps_there_is_one_cache(host: Host) -> None:
    for seed in (30, 31, 32):
        saved(host, host.run(moss(seed)), "moss")
        assert host.get("/moss_probe")["caches"] == 1


def test_unloading_models_frees_the_cache_and_changes_no_picture(host: Host) -> None:
    before = saved(host, host.run(moss(33, strength=0.9)), "moss")[0]
    assert host.get("/moss_probe")["bytes"] > 0
    host.post("/free", {"unload_models": True})
    assert until(lambda: host.get("/moss_probe")["caches"] == 0)
    result = host.run({**moss(33), **graphs.rival("dense")})
    assert "draft" in cached(result) and host.get("/moss_probe")["caches"] == 1
    host.post("/free", {"unload_models": True, "free_memory": True})
    assert until(lambda: host.get("/moss_probe")["drafts"] == 0)
    result = host.run(moss(33, strength=0.9))
    assert "load" in ran(result) and difference(saved(host, result, "moss")[0], before) == 0


@pytest.mark.parametrize("mode", [["--cache-classic"], ["--cache-lru", "1"], ["--cache-none"]], ids=" ".join)
def test_the_cache_goes_when_the_host_drops_the_draft(mode: list[str]) -> None:
    with Host(*mode, packs={"probe": PROBE}) as host:
        for seed in (0, 1):
            saved(host, host.run(moss(seed)), "moss")
            assert host.get("/moss_probe")["caches"] == (0 if mode == ["--cache-none"] else 1)
        for colour in (0, 1):
            host.run(other(colour))
        assert host.get("/moss_probe").items() >= {"caches": 0, "bytes": 0, "drafts": 0}.items()


# --- an older host ------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (OLD / "main.py").is_file(),
    reason="NO OLDER COMFYUI CHECKOUT: NOTHING WAS TESTED IN ONE; set COMFYUI_OLD_PATH to one",
)
def test_an_older_host_loads_the_pack_and_draws_the_same_pictures(typed: Callable) -> None:
    with Host(comfyui=OLD) as host:
        assert len([name for name in host.get("/object_info") if name.startswith("MoSs_")]) == 16
        result = host.run(graphs.whole(seed=3))
        for name, method in (
            ("moss", "moss4"), ("dense", "dense"), ("fastvar", "fastvar"), ("draft", "draft"),
        ):
            assert (
                difference(saved(host, result, name)[0], typed("--seed=3", f"--method={method}")[0]) <= 1
            ), name
        assert complaints(host.log) == []
