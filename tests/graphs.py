"""Graphs in the API's format, for the tests with a real ComfyUI.  Nodes are named instead of numbered."""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]

PROMPT = "a red heart on a gradient white background"
TILED = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node; an input is a value or the [name, output] that it is wired to."""
    return {"class_type": kind, "inputs": inputs}


def draft(prompt: str = PROMPT, **widgets: Any) -> Graph:
    """load, text and draft; `widgets` of the draft that differ from a fresh node's."""
    settings = {
        "aspect": "1:1", "area": "model's own", "refine_scales": 4, "seed": 0, "cfg": 0, "tau": 0,
        "batch_size": 1,
        "preview": False,
    }
    return {
        "load": node(
            "MoSs_LoadInfinity", model="nano (embedded)", vae="automatic", text_encoder="automatic",
            precision="auto",
        ),
        "text": node("CLIPTextEncode", clip=["load", 1], text=prompt),
        "draft": node(
            "MoSs_InfinityDraft", model=["load", 0], positive=["text", 0], **{**settings, **widgets}
        ),
    }


def saved(name: str, latent: list[Any], tiled: bool = False) -> Graph:
    """Decode a latent to <name>_picture and save it by save_<name>."""
    inputs = {"samples": latent, "vae": ["load", 2]}
    return {
        f"{name}_picture": node("VAEDecodeTiled", **inputs, **TILED)
        if tiled
        else node("VAEDecode", **inputs),
        f"save_{name}": node("SaveImage", images=[f"{name}_picture", 0], filename_prefix=name),
    }


def moss(preset: str = "automatic", values: str = "80, 70, 30, 10", strength: float = 1.0) -> Graph:
    """frequency, dispatch, refine, composite and the saved picture of a graph that has a draft."""
    return {
        "frequency": node("MoSs_FrequencyMap", draft=["draft", 0], window=3),
        "dispatch": node(
            "MoSs_TokenDispatch", frequency=["frequency", 0], preset=preset, values=values, painting=""
        ),
        "refine": node(
            "MoSs_Refine", draft=["draft", 0], dispatch=["dispatch", 0], cross_scale_attention=True,
            guidance=True,
            backend="auto",
        ),
        "composite": node("MoSs_Composite", draft=["draft", 0], residual=["refine", 0], strength=strength),
        **saved("moss", ["composite", 0]),
    }


def rival(name: str, tiled: bool = False) -> Graph:
    """"dense" or "fastvar" and its saved picture, of a graph that has a draft."""
    kind = {"dense": "MoSs_DenseRefine", "fastvar": "MoSs_FastVARRefine"}[name]
    return {name: node(kind, draft=["draft", 0], preview=False), **saved(name, [name, 0], tiled)}


def whole(**widgets: Any) -> Graph:
    """All ten nodes: the paper's method, its rivals, the draft itself, contribution map and report."""
    pictures = {"image": ["moss_picture", 0], "reference_image": ["dense_picture", 0]}
    return {
        **draft(**widgets), **moss(), **rival("dense"), **rival("fastvar"), **saved("draft", ["draft", 1]),
        **saved("tiled", ["dense", 0], tiled=True),
        "contribution": node("MoSs_ContributionMap", draft=["draft", 0], latent=["composite", 0]),
        "report": node("MoSs_Report", latent=["composite", 0], reference=["dense", 0], **pictures),
        **{
            f"show_{name}_{output}": node("PreviewImage", images=[name, output])
            for name, output in (("frequency", 1), ("dispatch", 1), ("contribution", 0), ("contribution", 1))
        },
    }
