"""Infinity's fine-tunes in a real ComfyUI: tiny random models, with the host's own nodes around them."""

from __future__ import annotations

from collections.abc import Iterator

import graphs
import numpy as np
import pytest
from hosting import Host, checkout
from PIL import Image
from tune_builders import EDIT, ENLARGE, write_tunes

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(checkout() is None, reason="NO COMFYUI CHECKOUT; set COMFYUI_PATH to one"),
]


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Host() as host:
        write_tunes(host.base / "models" / "infinity")
        for name, size in (("wide.png", (96, 64)), ("small.png", (256, 256))):
            pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(host.base / "input" / name)
        yield host


def begin(model: str, vae: str, picture: str) -> graphs.Graph:
    return {
        "load": graphs.node(
            "MoSs_LoadInfinity", model=model, vae=vae, text_encoder="automatic", precision="fp32"
        ),
        "text": graphs.node("CLIPTextEncode", clip=["load", 1], text="a red cat"),
        "picture": graphs.node("LoadImage", image=picture),
    }


def matched(size: str, colours: str) -> graphs.Graph:
    return {
        "matched": graphs.node(
            "MoSs_MatchPicture", image=["moss_picture", 0], reference=["picture", 0], size=size,
            colours=colours,
        ),
        "save_matched": graphs.node("SaveImage", images=["matched", 0], filename_prefix="matched"),
        "report": graphs.node("MoSs_Report", latent=["composite", 0]),
        "told": graphs.node("PreviewAny", source=["report", 0]),
    }


def sizes(host: Host, result: dict, node: str) -> list[tuple[int, int]]:
    found = []
    for one in result["outputs"][node]["images"]:
        with Image.open(host.base / "output" / one["filename"]) as image:
            found.append(image.size)
    return found


def edit(seed: int = 0) -> graphs.Graph:
    draft = graphs.node(
        "MoSs_InstructEdit", model=["load", 0], image=["picture", 0], positive=["text", 0], refine_scales=2,
        seed=seed, cfg=0, tau=0, area="model's own", preview=False,
    )
    more = matched("the reference's, without padding", "as they are")
    return {**begin(EDIT, "plain_vae.safetensors", "wide.png"), "draft": draft, **graphs.moss(), **more}


def test_an_edit_has_its_sources_size_and_says_what_drew_it(host: Host) -> None:
    result = host.run(edit())

    assert sizes(host, result, "save_matched") == [(96, 64)]
    assert "taken for VAREdit by its name" in str(result["outputs"])


def test_another_seed_of_an_edit_runs(host: Host) -> None:
    assert sizes(host, host.run(edit(seed=1)), "save_matched") == [(96, 64)]


def test_an_enlargement_is_four_times_as_large(host: Host) -> None:
    draft = graphs.node(
        "MoSs_Enlarge", model=["load", 0], image=["picture", 0], positive=["text", 0], refine_scales=5,
        seed=0, tau=0, preview=False,
    )
    more = matched("as it is", "the reference's")
    graph = {**begin(ENLARGE, "small_vae.safetensors", "small.png"), "draft": draft, **graphs.moss(), **more}

    assert sizes(host, host.run(graph), "save_matched") == [(1024, 1024)]
