"""Memory in a real ComfyUI: it runs out at every stage, and the host goes on."""

from __future__ import annotations

from collections.abc import Iterator

import graphs
import pytest
from hosting import Host, checkout

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        checkout() is None, reason="NO COMFYUI CHECKOUT: NO HOST RAN OUT OF MEMORY; set COMFYUI_PATH to one"
    ),
]

# Lets a function of ours run out of memory, once it was called so often; or lets it be.
BREAKER = """
import gc
import sys
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
undo = []

@PromptServer.instance.routes.get("/moss_break")
async def broken(request):
    module, path, after = (request.query[name] for name in ("module", "path", "after"))
    (holder,) = [m for name, m in sys.modules.items() if name.endswith("comfy_moss." + module)]
    *inside, name = path.split(".")
    for part in inside:
        holder = getattr(holder, part)
    real, calls = getattr(holder, name), [int(after)]

    def run(*args, **options):
        calls[0] -= 1
        if calls[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(*args, **options)

    setattr(holder, name, run)
    undo.append(lambda: setattr(holder, name, real))
    return web.json_response({})

@PromptServer.instance.routes.get("/moss_mend")
async def mended(request):
    while undo:
        undo.pop()()
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x).__name__ == "KVCache"]
    return web.json_response({"caches": len(alive), "bytes": sum(x.nbytes for x in alive)})
"""

STAGES = {  # what runs out, after how many calls, the node that says so, and whether the draft is kept
    "text": ("model.text", "TextEncoder.features", 0, "text", False),
    "draft": ("model.infinity", "InfinityTransformer.forward", 1, "draft", False),
    "frequency": ("nodes.maps", "frequency_map", 0, "frequency", True),
    "dispatch": ("nodes.maps", "dispatch_tokens", 0, "dispatch", True),
    "refine": ("nodes.sample", "draw_pass", 0, "refine", True),
    "composite": ("nodes.sample", "composite", 0, "composite", True),
    "decode": ("model.vae", "VAE.decode", 0, "moss_picture", True),
}


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host(packs={"breaker": BREAKER}) as host:
        yield host


def graph(seed: int) -> graphs.Graph:
    return {**graphs.draft(f"a red heart, take {seed}", seed=seed, area="0.06M"), **graphs.moss()}


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_runs_out_is_a_sentence_and_the_next_prompt_runs(host: Host, stage: str) -> None:
    module, path, after, node, kept = STAGES[stage]
    seed = list(STAGES).index(stage)
    host.get(f"/moss_break?module={module}&path={path}&after={after}")
    failed = host.run(graph(seed))
    left = host.get("/moss_mend")

    (error,) = [data for kind, data in failed["events"] if kind == "execution_error"]
    assert error["node_id"] == node and "too little memory" in error["exception_message"]
    assert len(error["exception_message"].strip().splitlines()) == 1
    assert left == {"caches": 0, "bytes": 0}
    again = host.run(graph(seed))
    assert again["status"]["status_str"] == "success"
    cached = {name for kind, data in again["events"] if kind == "execution_cached" for name in data["nodes"]}
    assert ("draft" in cached) == kept
