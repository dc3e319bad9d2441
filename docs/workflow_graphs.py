"""The example workflows: nodes with place, size and values, and the links between them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

PROMPT = "a red heart on a gradient white background"
Node = tuple[str, int, int, int, int, dict[str, Any]]  # type, x, y, width, height, values of widgets
Link = tuple[str, int, str, str]  # from node, its output's number, to node, its input's name


@dataclass(frozen=True)
class Graph:
    """A workflow.

    Attributes:
        thumbnail: keys of the preview or save nodes whose pictures stand for it; empty = `drawing` stands for
            it.
        titles: node titles that differ from the node's own name.
        drawing: a picture below the repository's root, where the model's own weights are not at hand.
    """

    nodes: dict[str, Node]
    links: tuple[Link, ...]
    thumbnail: tuple[str, ...]
    titles: dict[str, str] = field(default_factory=dict)
    drawing: str = ""


def note(text: str, x: int, y: int, w: int, h: int) -> Node:
    return ("MarkdownNote", x, y, w, h, {"text": text})


def start(refine_scales: int = 4, seed: int = 0) -> tuple[dict[str, Node], tuple[Link, ...]]:
    """Model, prompt and draft: how every workflow begins."""
    draft = {"refine_scales": refine_scales, "seed": seed, "control_after_generate": "fixed"}
    nodes: dict[str, Node] = {
        "load": ("MoSs_LoadInfinity", 0, 0, 320, 180, {}),
        "prompt": ("CLIPTextEncode", 0, 240, 320, 140, {"text": PROMPT}),
        "draft": ("MoSs_InfinityDraft", 370, 0, 320, 620, draft),
    }
    links = (("load", 1, "prompt", "clip"), ("load", 0, "draft", "model"), ("prompt", 0, "draft", "positive"))
    return nodes, links


def moss(x: int, painting: str = "") -> tuple[dict[str, Node], tuple[Link, ...]]:
    """Frequency, dispatch, refine, composite, decode."""
    nodes: dict[str, Node] = {
        "frequency": ("MoSs_FrequencyMap", x, 0, 340, 620, {}),
        "dispatch": ("MoSs_TokenDispatch", x + 390, 0, 340, 660, {"painting": painting}),
        "refine": ("MoSs_Refine", x + 780, 0, 320, 160, {}),
        "composite": ("MoSs_Composite", x + 780, 220, 320, 100, {}),
        "decode": ("VAEDecode", x + 780, 380, 320, 60, {}),
    }
    links = (
        ("draft", 0, "frequency", "draft"), ("frequency", 0, "dispatch", "frequency"),
        ("draft", 0, "refine", "draft"), ("dispatch", 0, "refine", "dispatch"),
        ("draft", 0, "composite", "draft"), ("refine", 0, "composite", "residual"),
        ("composite", 0, "decode", "samples"), ("load", 2, "decode", "vae"),
    )
    return nodes, links


def text_to_image() -> Graph:
    nodes, links = start()
    more, wires = moss(740)
    nodes |= more
    nodes |= {
        "save": ("SaveImage", 1890, 0, 400, 460, {"filename_prefix": "MoSs"}),
        "report": ("MoSs_Report", 1520, 500, 320, 330, {}),
        "note": note(
            "### Text to image by MoSs\n\nThe draft draws the first scales. The busiest places are then "
            "redrawn at the last scales, all in one pass.\n\n**Try**: drag a handle of the histogram and "
            "run again: the draft stays cached.",
            0, 430, 320, 190,
        ),
    }
    wires += (("decode", 0, "save", "images"), ("composite", 0, "report", "latent"))
    return Graph(nodes, links + wires, ("save",))


def compare() -> Graph:
    nodes, links = start()
    more, wires = moss(740)
    nodes |= more | {
        "dense": ("MoSs_DenseRefine", 1520, 500, 320, 80, {"preview": False}),
        "fastvar": ("MoSs_FastVARRefine", 1520, 620, 320, 80, {"preview": False}),
        "decode_dense": ("VAEDecode", 1890, 0, 340, 60, {}),
        "decode_skip": ("VAEDecode", 1890, 110, 340, 60, {}),
        "decode_fastvar": ("VAEDecode", 1890, 220, 340, 60, {}),
        "show_dense": ("PreviewImage", 0, 780, 320, 340, {}),
        "show_moss": ("PreviewImage", 370, 780, 320, 340, {}),
        "show_skip": ("PreviewImage", 740, 780, 340, 340, {}),
        "show_fastvar": ("PreviewImage", 1130, 780, 340, 340, {}),
        "report_moss": ("MoSs_Report", 1520, 780, 320, 370, {}),
        "report_fastvar": ("MoSs_Report", 1890, 780, 340, 370, {}),
        "note": note(
            "### One draft, four endings\n\n**Dense** draws every scale in order. **Skip** leaves the last "
            "four out. "
            "**FastVAR** prunes tokens. **MoSs** refines chosen tokens in one pass.\n\nTimes are of this "
            "run; run twice before "
            "you compare them, since the first run warms up.", 0, 430, 320, 210,
        ),
    }
    wires += (
        ("draft", 0, "dense", "draft"), ("draft", 0, "fastvar", "draft"),
        ("dense", 0, "decode_dense", "samples"), ("load", 2, "decode_dense", "vae"),
        ("decode_dense", 0, "show_dense", "images"), ("draft", 1, "decode_skip", "samples"),
        ("load", 2, "decode_skip", "vae"), ("decode_skip", 0, "show_skip", "images"),
        ("fastvar", 0, "decode_fastvar", "samples"), ("load", 2, "decode_fastvar", "vae"),
        ("decode_fastvar", 0, "show_fastvar", "images"), ("decode", 0, "show_moss", "images"),
        ("composite", 0, "report_moss", "latent"), ("dense", 0, "report_moss", "reference"),
        ("decode", 0, "report_moss", "image"), ("decode_dense", 0, "report_moss", "reference_image"),
        ("fastvar", 0, "report_fastvar", "latent"), ("dense", 0, "report_fastvar", "reference"),
        ("decode_fastvar", 0, "report_fastvar", "image"),
        ("decode_dense", 0, "report_fastvar", "reference_image"),
    )
    titles = {
        "show_dense": "Dense", "show_moss": "MoSs4", "show_skip": "Skip the last 4",
        "show_fastvar": "FastVAR", "report_moss": "MoSs4 against dense",
        "report_fastvar": "FastVAR against dense",
    }
    return Graph(nodes, links + wires, ("show_dense", "show_moss", "show_skip", "show_fastvar"), titles)


def inspect() -> Graph:
    nodes, links = start()
    more, wires = moss(740)
    nodes |= more | {
        "contribution": ("MoSs_ContributionMap", 1520, 500, 320, 200, {}),
        "decode_draft": ("VAEDecode", 370, 680, 320, 60, {}),
        "show_draft": ("PreviewImage", 370, 800, 320, 320, {}),
        "show_heatmap": ("PreviewImage", 740, 800, 340, 320, {}),
        "show_overlay": ("PreviewImage", 1130, 800, 340, 320, {}),
        "show_drafter": ("PreviewImage", 1520, 800, 320, 320, {}),
        "show_refiner": ("PreviewImage", 1890, 800, 340, 320, {}),
        "show": ("PreviewImage", 1890, 0, 340, 340, {}),
        "report": ("MoSs_Report", 1890, 400, 340, 340, {}),
        "note": note(
            "### Every map on screen\n\nHover the maps to read a token: row, column, frequency, percentile, "
            "and the scale that redraws it.\n\nBelow: the draft, its frequency, which scale redraws what, "
            "and what draft and refinement added.",
            0, 430, 320, 200,
        ),
    }
    wires += (
        ("draft", 1, "decode_draft", "samples"), ("load", 2, "decode_draft", "vae"),
        ("decode_draft", 0, "show_draft", "images"), ("decode_draft", 0, "dispatch", "image"),
        ("frequency", 1, "show_heatmap", "images"), ("dispatch", 1, "show_overlay", "images"),
        ("draft", 0, "contribution", "draft"), ("composite", 0, "contribution", "latent"),
        ("contribution", 0, "show_drafter", "images"), ("contribution", 1, "show_refiner", "images"),
        ("decode", 0, "show", "images"), ("composite", 0, "report", "latent"),
    )
    titles = {
        "show_draft": "Draft", "show_heatmap": "Frequency", "show_overlay": "Dispatch",
        "show_drafter": "Drafter's contribution", "show_refiner": "Refiner's contribution", "show": "Result",
    }
    return Graph(nodes, links + wires, ("show_draft", "show_heatmap", "show_overlay", "show"), titles)


def painted_corner(side: int = 32) -> str:
    """A painting: a disc in the upper left, as text of the node's widget."""
    bits = [(row - 8) ** 2 + (column - 8) ** 2 <= 36 for row in range(side) for column in range(side)]
    data = bytes(sum(bit << (7 - n) for n, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    return f"{side}x{side}:{base64.b64encode(data).decode()}"


def paint() -> Graph:
    nodes, links = start()
    more, wires = moss(740, painted_corner())
    nodes |= more | {
        "show": ("PreviewImage", 1890, 0, 400, 400, {}),
        "show_overlay": ("PreviewImage", 1890, 460, 400, 400, {}),
        "note": note(
            "### Paint where detail goes\n\nTake the brush of Token Dispatch and paint over the map: painted "
            "cells are redrawn "
            "first, at the finest scales. The number of tokens stays the same.\n\nA mask from any other node "
            "can be wired to "
            "*mask* as well.", 0, 430, 320, 210,
        ),
    }
    wires += (("decode", 0, "show", "images"), ("dispatch", 1, "show_overlay", "images"))
    return Graph(
        nodes, links + wires, ("show_overlay", "show"), {"show_overlay": "Dispatch", "show": "Result"}
    )


def refine_pass(
    name: str, x: int, y: int, source: tuple[str, int], dispatch: dict[str, Any], refine: dict[str, Any]
) -> tuple[dict[str, Node], tuple[Link, ...]]:
    """Frequency, dispatch, refine and composite of one pass of several."""
    made = {
        "frequency": ("MoSs_FrequencyMap", x, y, 340, 560, {}),
        "dispatch": ("MoSs_TokenDispatch", x + 390, y, 340, 620, {"preset": "custom bounds", **dispatch}),
        "refine": ("MoSs_Refine", x + 780, y, 320, 160, refine),
        "composite": ("MoSs_Composite", x + 780, y + 230, 320, 100, {}),
    }
    wires = (
        (*source, "frequency", "draft"), ("frequency", 0, "dispatch", "frequency"),
        (*source, "refine", "draft"), ("dispatch", 0, "refine", "dispatch"), (*source, "composite", "draft"),
        ("refine", 0, "composite", "residual"),
    )
    links = tuple((a if a == source[0] else a + name, n, b + name, i) for a, n, b, i in wires)
    return {key + name: node for key, node in made.items()}, links


def two_passes() -> Graph:
    nodes, links = start()
    first, wires = refine_pass("1", 740, 0, ("draft", 0), {"values": "70", "scales": "-4"}, {})
    second, more = refine_pass(
        "2", 740, 720, ("composite1", 1), {"values": "45", "scales": "-1"}, {"guidance": False}
    )
    nodes |= first | second | {
        "between": ("VAEDecode", 1520, 390, 320, 60, {}),
        "decode": ("VAEDecode", 1520, 1110, 320, 60, {}),
        "show_between": ("PreviewImage", 1890, 0, 400, 440, {}),
        "save": ("SaveImage", 1890, 720, 400, 460, {"filename_prefix": "MoSs"}),
        "report": ("MoSs_Report", 370, 720, 320, 330, {}),
        "note": note(
            "### Two refine passes\n\nSix scales are drafted. The first pass redraws the busiest 70 % of the "
            "next scale, "
            "16 x 16. "
            "Its result is a draft again, with a new map: the second pass goes straight to the finest scale "
            "for the busiest "
            "45 %, without guidance. The scales between are left out.\n\nThe same on the command line: "
            "`--plan \"draft-4; -4@70; -1@45 unguided\"`.", 0, 430, 320, 260,
        ),
    }
    wires += more + (
        ("composite1", 0, "between", "samples"), ("load", 2, "between", "vae"),
        ("between", 0, "show_between", "images"), ("composite2", 0, "decode", "samples"),
        ("load", 2, "decode", "vae"), ("decode", 0, "save", "images"),
        ("composite2", 0, "report", "latent"),
    )
    titles = {
        "frequency1": "Frequency Map, first pass", "dispatch1": "Token Dispatch: 16 x 16",
        "frequency2": "Frequency Map, second pass", "dispatch2": "Token Dispatch: 32 x 32",
        "show_between": "After the first pass",
    }
    return Graph(nodes, links + wires, ("show_between", "save"), titles)


HART = "hart-0.7b-1024px"  # folder in models/hart


def hart() -> Graph:
    """Text to image (HART, MoSs2)."""
    nodes, links = start(refine_scales=2)
    more, wires = moss(740)
    nodes |= more
    nodes |= {
        "load": ("MoSs_LoadHART", 0, 0, 320, 230, {"model": HART}),
        "prompt": (
            "CLIPTextEncode", 0, 290, 320, 140, {"text": "a lighthouse on a cliff at dusk, oil painting"},
        ),
        "save": ("SaveImage", 1890, 0, 400, 460, {"filename_prefix": "MoSs_HART"}),
        "report": ("MoSs_Report", 1520, 500, 320, 330, {}),
        "note": note(
            "### Text to image (HART, MoSs2)\n\nTwelve scales are drafted, 48 x 48 and 64 x 64 refined in "
            "one pass, with the paper's bounds 80 and 55. Only the finest tokens go through the residual "
            "diffusion.\n\nNeeds the folders hart-0.7b-1024px (with system_prompt.txt in it) and "
            "Qwen2-VL-1.5B-Instruct in models/hart.",
            0, 480, 320, 230,
        ),
    }
    wires += (("decode", 0, "save", "images"), ("composite", 0, "report", "latent"))
    return Graph(nodes, links + wires, (), drawing="js/docs/MoSs_LoadHART/picture.png")


GRAPHS = {
    "moss4_text_to_image": text_to_image(),
    "hart_moss2_text_to_image": hart(),
    "compare_methods": compare(),
    "inspect_every_map": inspect(),
    "paint_to_refine": paint(),
    "two_passes": two_passes(),
}
