"""The example workflows: nodes with place, size and values, and the links between them.

They read from left to right in five columns, 1,800 pixels wide at most.  No wire runs behind a node: the few
long ones have lanes above the nodes, and what stands below another node is reached through the gap between.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

PROMPT = "a red heart on a gradient white background"
STRIPED = "a red striped heart on a gradient white background"  # at 1M, where nano can draw its stripes
Node = tuple[str, int, int, int, int, dict[str, Any]]  # type, x, y, width, height, values of widgets
Link = tuple[str, int, str, str]  # from node, its output's number, to node, its input's name
Lanes = dict[tuple[str, str], list[tuple[int, int]]]  # (node, input) -> points that its wire runs through
X = (0, 330, 680, 1050, 1420)  # left edges of the columns
WIDTHS = (290, 310, 330, 330, 340)
RIGHT = X[4] + WIDTHS[4]
HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Graph:
    """A workflow.

    Attributes:
        thumbnail: keys of the preview or save nodes whose pictures stand for it; empty = `drawing` stands for
            it.
        titles: node titles that differ from the node's own name.
        drawing: a picture below the repository's root, where the model's own weights are not at hand.
        lanes: points that wires run through.
        models: by node the files that it needs, as the host's dialog of missing models reads them.
        app: (node, widget) of what the host's app mode shows, and the node of its result; empty = no app.
    """

    nodes: dict[str, Node]
    links: tuple[Link, ...]
    thumbnail: tuple[str, ...]
    titles: dict[str, str] = field(default_factory=dict)
    drawing: str = ""
    lanes: Lanes = field(default_factory=dict)
    models: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    app: tuple[tuple[tuple[str, str], ...], str] | None = None


def note(text: str, x: int, y: int, w: int, h: int) -> Node:
    return ("MarkdownNote", x, y, w, h, {"text": text})


def start(
    method: str = "recommended", seed: int = 0, fixed: bool = False, prompt: str = PROMPT, **draft: Any
) -> tuple[dict[str, Node], tuple[Link, ...], Lanes]:
    """Model, prompt and draft: how every workflow begins.

    Args:
        fixed: keep the seed from run to run; otherwise every run draws another picture.
        draft: other widgets of the draft.
    """
    after = "fixed" if fixed else "randomize"
    widgets = {"seed": seed, "control_after_generate": after, "cfg": 1.5, "tau": 0.5, "method": method}
    widgets |= draft
    nodes: dict[str, Node] = {
        "load": ("MoSs_LoadInfinity", X[0], 0, WIDTHS[0], 205, {}),
        "prompt": ("CLIPTextEncode", X[0], 300, WIDTHS[0], 150, {"text": prompt}),
        "draft": ("MoSs_InfinityDraft", X[1], 0, WIDTHS[1], 640, widgets),
    }
    links = (("load", 1, "prompt", "clip"), ("load", 0, "draft", "model"), ("prompt", 0, "draft", "positive"))
    return nodes, links, {("prompt", "clip"): [(305, 266), (-20, 266)]}


def chain(y: int, *keys: str) -> Lanes:
    """Ways around nodes that stand below each other in the last column, from each to the next.

    Args:
        keys: alternately a node and its input.
    """
    lanes: Lanes = {}
    for key, socket in zip(keys[::2], keys[1::2], strict=True):
        lanes[key, socket] = [(RIGHT + 22, y), (X[4] - 22, y)]
    return lanes


def moss(
    source: str = "draft", painting: str = "", **dispatch: Any
) -> tuple[dict[str, Node], tuple[Link, ...], Lanes]:
    """Frequency, dispatch, refine, composite, decode: one straight chain."""
    nodes: dict[str, Node] = {
        "frequency": ("MoSs_FrequencyMap", X[2], 0, WIDTHS[2], 600, {}),
        "dispatch": ("MoSs_TokenDispatch", X[3], 0, WIDTHS[3], 720, {"painting": painting, **dispatch}),
        "refine": ("MoSs_Refine", X[4], 0, WIDTHS[4], 150, {}),
        "composite": ("MoSs_Composite", X[4], 255, WIDTHS[4], 115, {}),
        "decode": ("VAEDecode", X[4], 460, WIDTHS[4], 50, {}),
    }
    links = (
        (source, 0, "frequency", "draft"), ("frequency", 0, "dispatch", "frequency"),
        ("dispatch", 0, "refine", "dispatch"), ("refine", 0, "composite", "residual"),
        (source, 1, "composite", "draft_latent"), ("composite", 0, "decode", "samples"),
        ("load", 2, "decode", "vae"),
    )
    lanes = {
        **chain(208, "composite", "residual"), **chain(414, "decode", "samples"),
        ("composite", "draft_latent"): [(X[1] + WIDTHS[1] + 20, -50), (X[4] - 24, -50), (X[4] - 24, 190)],
        ("decode", "vae"): [(X[0] + WIDTHS[0] + 20, -68), (X[4] - 34, -68), (X[4] - 34, 400)],
    }
    return nodes, links, lanes


def result(kind: str = "SaveImage", height: int = 310) -> tuple[dict[str, Node], tuple[Link, ...], Lanes]:
    """The picture, below the decoder."""
    widgets = {"filename_prefix": "MoSs"} if kind == "SaveImage" else {}
    node: Node = (kind, X[4], 570, WIDTHS[4], height, widgets)
    return {"save": node}, (("decode", 0, "save", "images"),), chain(527, "save", "images")


def whole(
    *parts: tuple[dict[str, Node], tuple[Link, ...], Lanes],
) -> tuple[dict[str, Node], tuple[Link, ...], Lanes]:
    """Parts of a workflow as one."""
    nodes: dict[str, Node] = {}
    lanes: Lanes = {}
    for part, _, ways in parts:
        nodes |= part
        lanes |= ways
    return nodes, tuple(link for _, links, _ in parts for link in links), lanes


APP = (
    ("prompt", "text"), ("draft", "method"), ("draft", "aspect"), ("draft", "area"), ("draft", "seed"),
    ("draft", "batch_size"),
)


def text_to_image(app: bool = False) -> Graph:
    nodes, links, lanes = whole(start(prompt=STRIPED, area="1M"), moss(), result())
    nodes["note"] = note(
        "### Text to image\n\nPress **Run**. The draft draws the first scales; then only the busiest places "
        "are redrawn, at the finest scale, in one pass.\n\n**Try**: fix the seed, drag the handle of the "
        "histogram and run again: the draft stays cached. Choose *moss2* to *moss5* as method for the "
        "paper's. Bypass (Ctrl+B) MoSs Refine to see the draft alone.", X[0], 520, WIDTHS[0], 330,
    )
    return Graph(nodes, links, ("save",), lanes=lanes, app=(APP, "save") if app else None)


BLUEPRINT = "MoSs Text to Image"
ABOUT = (
    "Draws a picture from a prompt by Mixture of Scales. The included model nano needs no download. Open it "
    "to see how: draft, frequency map, dispatch, refinement."
)
ALIASES = ("text to image", "txt2img", "t2i", "Mixture of Scales", "Infinity", "HART", "nano")


def blueprint() -> tuple[Graph, tuple[tuple[str, str, str], ...], str]:
    """What is inside the subgraph, which widgets it shows (node, widget, label), and whose picture."""
    nodes, links, lanes = whole(start(), moss(), result("PreviewImage"))
    labels = {"text": "prompt", "batch_size": "batch size"}
    shown = (*APP, ("load", "model"), ("draft", "budget"), ("draft", "seconds"))
    return Graph(nodes, links, (), lanes=lanes), tuple((k, w, labels.get(w, w)) for k, w in shown), "save"


def paper() -> Graph:
    nodes, links, lanes = whole(
        start("moss4", prompt=STRIPED, area="1M"), moss(preset="paper"), result()
    )
    nodes["note"] = note(
        "### MoSs4 as the paper has it\n\nAll but the last four scales are drafted; these four are redrawn "
        "in one pass with the printed bounds 80, 70, 30, 10. Choose *moss2*, *moss3* or *moss5* as method "
        "for the others; *automatic* in MoSs Token Dispatch takes the bounds that were found for the model "
        "instead.\n\nOn the small model nano *moss2* and *sparse3* are better: see "
        "docs/quality.md.", X[0], 520, WIDTHS[0], 330,
    )
    return Graph(nodes, links, ("save",), lanes=lanes)


MANY = "four yellow crosses on a gradient white background"


def with_lora() -> Graph:
    """The LoRA lies between loader and draft, below the loader."""
    nodes, links, lanes = whole(start(), moss(), result())
    nodes["lora"] = ("MoSs_LoadLora", X[0], 510, WIDTHS[0], 110, {})
    nodes["note"] = note(
        "### With a LoRA\n\nA LoRA is a small file that changes a model: here *nano-night* gives nano "
        "dark backgrounds, whatever the prompt says. Your own go into *models/loras*.\n\n**Try** *strength* "
        "0.5 and 0.", X[0], 685, WIDTHS[0], 240,
    )
    links = (*(link for link in links if link[2:] != ("draft", "model")), ("load", 0, "lora", "model"))
    links += (("lora", 0, "draft", "model"),)
    lanes |= {
        ("prompt", "clip"): [(303, 266), (-18, 266)],
        ("lora", "model"): [(312, 80), (312, 474), (-26, 474)],
        ("draft", "model"): [(320, 500), (320, 80)],
    }
    return Graph(nodes, links, ("save",), lanes=lanes)


def pick() -> Graph:
    nodes, links, lanes = whole(start(fixed=True, seed=10, prompt=MANY, batch_size=6), moss("pick"), result())
    wide = X[3] + WIDTHS[3] - X[0]
    nodes |= {
        "pick": ("MoSs_PickDrafts", X[0], 830, wide - 700, 250, {"picks": "2"}),
        "sheet": ("PreviewImage", X[0] + wide - 680, 830, 680, 250, {}),
        "note": note(
            "### A sheet of drafts\n\nSix drafts are drawn; only those that you pick are refined. **Run**, "
            "look at the sheet below, click the drafts that you like (or write their numbers), and run "
            "again: the drafts stay cached, because their seed is fixed.", X[0], 520, WIDTHS[0], 230,
        ),
    }
    links += (("draft", 0, "pick", "draft"), ("pick", 2, "sheet", "images"))
    edge, between = X[1] + WIDTHS[1] + 20, X[0] + wide - 690
    lanes |= {
        ("pick", "draft"): [(edge - 8, 60), (edge - 8, 770), (-22, 770)],
        ("frequency", "draft"): [(between, 790), (edge + 8, 790), (edge + 8, 60)],
        ("composite", "draft_latent"): [(between + 4, 778), (X[4] - 24, 778), (X[4] - 24, 340)],
    }
    return Graph(nodes, links, ("sheet",), {"sheet": "All drafts with their maps"}, lanes=lanes)


def inspect() -> Graph:
    nodes, links, lanes = whole(start(), moss(), result("PreviewImage", 235))
    shown = {
        "show_draft": "Draft", "show_heatmap": "Frequency", "show_overlay": "Dispatch",
        "show_drafter": "Drafter's contribution", "show_refiner": "Refiner's contribution",
    }
    for n, key in enumerate(shown):
        nodes[key] = ("PreviewImage", 278 * n, 865, 262, 225, {})
    folded = {"collapsed": True}
    nodes |= {
        "decode_draft": ("VAEDecode", X[1], 700, WIDTHS[1], 50, dict(folded)),
        "contribution": ("MoSs_ContributionMap", X[2], 700, WIDTHS[2], 180, dict(folded)),
        "report": ("MoSs_Report", X[4], 865, WIDTHS[4], 225, {}),
        "note": note(
            "### Every map on screen\n\nHover the maps to read a token: row, column, frequency, percentile, "
            "and the scale that redraws it.\n\nBelow: the draft, its frequency, which scale redraws what, "
            "and what draft and refinement added.", X[0], 520, WIDTHS[0], 240,
        ),
    }
    links += (
        ("draft", 1, "decode_draft", "samples"), ("load", 2, "decode_draft", "vae"),
        ("decode_draft", 0, "show_draft", "images"), ("decode_draft", 0, "dispatch", "image"),
        ("frequency", 1, "show_heatmap", "images"), ("dispatch", 1, "show_overlay", "images"),
        ("draft", 0, "contribution", "draft"), ("composite", 0, "contribution", "latent"),
        ("contribution", 0, "show_drafter", "images"), ("contribution", 1, "show_refiner", "images"),
        ("composite", 0, "report", "latent"),
    )
    around = [(RIGHT + 30, 300), (RIGHT + 30, 820)]
    lanes |= {
        ("decode_draft", "samples"): [(656, 60), (656, 655), (316, 655)],
        ("decode_draft", "vae"): [(306, 90), (306, 680)],
        ("show_draft", "images"): [(480, 720), (480, 812), (-22, 812)],
        ("dispatch", "image"): [(480, 730), (1030, 730), (1030, 80)],
        ("show_heatmap", "images"): [(1022, 60), (1022, 760), (270, 818)],
        ("show_overlay", "images"): [(1396, 60), (1396, 826), (548, 826)],
        ("contribution", "draft"): [(664, 40), (664, 665)],
        ("contribution", "latent"): [*around, (672, 820), (672, 700)],
        ("report", "latent"): [*around, (X[4] - 16, 820)],
        ("show_drafter", "images"): [(870, 720), (826, 805)],
        ("show_refiner", "images"): [(880, 710), (1104, 776)],
    }
    return Graph(nodes, links, ("show_draft", "show_heatmap", "show_overlay", "save"), shown, lanes=lanes)


def painted_corner(side: int = 32) -> str:
    """A painting: a disc in the upper left, as text of the node's widget."""
    bits = [(row - 8) ** 2 + (column - 8) ** 2 <= 36 for row in range(side) for column in range(side)]
    data = bytes(sum(bit << (7 - n) for n, bit in enumerate(bits[i : i + 8])) for i in range(0, len(bits), 8))
    return f"{side}x{side}:{base64.b64encode(data).decode()}"


def paint() -> Graph:
    nodes, links, lanes = whole(start(fixed=True), moss(painting=painted_corner()), result("PreviewImage"))
    nodes |= {
        "show_overlay": ("PreviewImage", X[2], 690, WIDTHS[2], 360, {}),
        "note": note(
            "### Paint where detail goes\n\nTake the brush of MoSs Token Dispatch and paint over the map: "
            "painted cells are redrawn first, at the finest scale. The number of tokens stays the same. The "
            "seed is fixed, so that the map stays the one that you paint on.\n\nA mask from any other node "
            "can be wired to *mask* as well.", X[0], 520, WIDTHS[0], 290,
        ),
    }
    links += (("dispatch", 1, "show_overlay", "images"),)
    right = X[3] + WIDTHS[3] + 14
    around = [(right, 130), (right, 1075), (X[2] - 20, 1075), (X[2] - 20, 760)]
    lanes["show_overlay", "images"] = around
    titles = {"show_overlay": "Dispatch", "save": "Result"}
    return Graph(nodes, links, ("show_overlay", "save"), titles, lanes=lanes)


def two_passes() -> Graph:
    nodes, links, lanes = whole(start("sparse4"), moss())
    lower = 580  # pixels: the second pass below the first
    for key in ("frequency", "dispatch"):
        nodes[key] = (*nodes[key][:4], 480, nodes[key][5])
    first = ("frequency", "dispatch", "refine", "composite")
    copies = {key: node for key, node in nodes.items() if key in first}
    nodes |= {f"{key}2": (node[0], node[1], node[2] + lower, *node[3:]) for key, node in copies.items()}
    nodes |= {
        "decode2": ("VAEDecode", X[4], 1045, WIDTHS[4], 50, {"collapsed": True}),
        "between": ("PreviewImage", X[1], 720, WIDTHS[1], 340, {}),
        "save": ("SaveImage", X[0], 790, WIDTHS[0], 270, {"filename_prefix": "MoSs"}),
        "note": note(
            "### Two refine passes: sparse4\n\nSix scales are drafted. The first pass redraws the busiest "
            "70 % of the next scale, 16 x 16. Its result is a draft again, with a new map: the second goes "
            "to the finest scale for the busiest 45 %, without guidance. On the command line: "
            "`--method sparse4`.", X[0], 500, WIDTHS[0], 240,
        ),
    }
    links += (
        ("composite", 1, "frequency2", "draft"), ("frequency2", 0, "dispatch2", "frequency"),
        ("dispatch2", 0, "refine2", "dispatch"), ("refine2", 0, "composite2", "residual"),
        ("composite", 0, "composite2", "draft_latent"), ("decode", 0, "between", "images"),
        ("composite2", 0, "decode2", "samples"), ("load", 2, "decode2", "vae"),
        ("decode2", 0, "save", "images"),
    )
    gap, right = X[2] - 20, X[4] - 24
    lanes |= {
        ("composite2", "residual"): [(x, y + lower) for x, y in lanes["composite", "residual"]],
        ("decode2", "samples"): [(RIGHT + 22, 1002), (X[4] - 22, 1002)],
        ("frequency2", "draft"): [(RIGHT + 12, 310), (RIGHT + 12, 526), (gap, 526), (gap, 590)],
        ("composite2", "draft_latent"): [(RIGHT + 18, 290), (RIGHT + 18, 534), (right, 534), (right, 870)],
        ("between", "images"): [
            (RIGHT + 24, 490), (RIGHT + 24, 542), (gap - 10, 542), (gap - 10, 665), (318, 665),
        ],
        ("decode2", "vae"): [(X[0] + WIDTHS[0] + 20, -68), (X[4] - 34, -68), (X[4] - 34, 1020)],
        ("save", "images"): [(RIGHT + 12, 1085), (-22, 1085), (-22, 815)],
    }
    titles = {
        "frequency": "MoSs Frequency Map: first pass", "dispatch": "MoSs Token Dispatch: 16 x 16",
        "frequency2": "MoSs Frequency Map: second pass", "dispatch2": "MoSs Token Dispatch: 32 x 32",
        "between": "After the first pass", "save": "Result",
    }
    return Graph(nodes, links, ("between", "save"), titles, lanes=lanes)


TEXTURED = "a dotted yellow circle"


def compare() -> Graph:
    nodes, links, lanes = whole(start(seed=5, prompt=TEXTURED), moss())
    nodes.pop("decode")
    folded = {"collapsed": True}
    own = {"method": "custom", "cfg": 1.5, "tau": 0.5, "control_after_generate": "randomize"}
    skip, fastvar = (own | {"refine_scales": k} for k in (2, 4))
    nodes |= {
        "seed": (  # a random one may be below 0, which is no seed
            "PrimitiveInt", X[0], 500, WIDTHS[0], 90, {"value": 5, "control_after_generate": "increment"},
        ),
        "skip": ("MoSs_InfinityDraft", X[1], 730, WIDTHS[1], 640, skip | folded),
        "long": ("MoSs_InfinityDraft", X[1], 790, WIDTHS[1], 640, fastvar | folded),
        "fastvar": ("MoSs_FastVARRefine", X[2], 790, WIDTHS[2], 80, {"preview": False} | folded),
        "dispatch3": ("MoSs_TokenDispatch", X[3], 790, WIDTHS[3], 720, {"preset": "automatic"} | folded),
        "refine3": ("MoSs_Refine", X[4], 460, WIDTHS[4], 150, dict(folded)),
        "composite3": ("MoSs_Composite", X[4], 535, WIDTHS[4], 120, dict(folded)),
        "dense": ("MoSs_DenseRefine", X[4], 640, WIDTHS[4], 80, {"preview": False}),
        "compare": ("MoSs_Compare", X[4], 800, WIDTHS[4], 290, {}),
        "sheet": ("PreviewImage", X[0], 864, X[3] + WIDTHS[3] - X[0], 226, {}),
        "note": note(
            "### Who wins at equal time?\n\nFour ways that take about a fifth of the plain model's time, "
            "from one seed: **sparse3** (the default), **moss3** (the paper's kind of pass), **skipping** "
            "two scales and **FastVAR**, against **dense**. The node below says who comes closest.\n\nOne "
            "picture proves little: docs/quality.md compares them on 240 prompts.",
            X[0], 630, WIDTHS[0], 195,
        ),
    }
    drafts = ("draft", "skip", "long")
    links = tuple(link for link in links if link[2] != "decode" and link[0] != "decode") + (
        *(("seed", 0, draft, "seed") for draft in drafts),
        *(("load", 0, draft, "model") for draft in drafts[1:]),
        *(("prompt", 0, draft, "positive") for draft in drafts[1:]),
        ("long", 0, "fastvar", "draft"), ("frequency", 0, "dispatch3", "frequency"),
        ("dispatch3", 0, "refine3", "dispatch"), ("refine3", 0, "composite3", "residual"),
        ("draft", 0, "dense", "draft"), ("load", 2, "compare", "vae"), ("dense", 0, "compare", "reference"),
        ("composite", 0, "compare", "latent_1"), ("composite3", 0, "compare", "latent_2"),
        ("skip", 1, "compare", "latent_3"), ("fastvar", 0, "compare", "latent_4"),
        ("compare", 0, "sheet", "images"),
    )
    lanes = {way: points for way, points in lanes.items() if way[0] != "decode"}
    into = [(RIGHT + 22, 745), (X[4] - 22, 745)]
    lanes |= {("compare", socket): into for socket in ("reference", "latent_1")}
    lanes["compare", "latent_2"] = [(RIGHT + 22, 540), *into]
    for n, column in ((3, 1), (4, 2)):
        lanes["compare", f"latent_{n}"] = [(X[column] + 250, 782 + 8 * n), (X[4] - 30, 782 + 8 * n)]
    gap = X[0] + WIDTHS[0] + 16
    lanes |= {
        ("skip", "model"): [(gap, 60), (gap, 700)], ("long", "model"): [(gap, 60), (gap, 760)],
        ("compare", "vae"): [(gap + 4, -68), (X[4] - 34, -68), (X[4] - 34, 780)],
        ("dense", "draft"): [(X[1] + WIDTHS[1] + 28, -38), (X[4] - 18, -38), (X[4] - 18, 600)],
        ("dispatch3", "frequency"): [(X[3] - 20, 50), (X[3] - 20, 750)],
        ("refine3", "dispatch"): [(X[4] - 12, 760), (X[4] - 12, 460)],
        ("composite3", "residual"): [(RIGHT + 12, 490), (X[4] - 12, 490)],
        ("sheet", "images"): [(RIGHT + 12, 1115), (-22, 1115), (-22, 885)],
    }
    titles = {
        "skip": "MoSs Draft: all but 2 scales", "long": "MoSs Draft for FastVAR", "sheet": "Side by side",
        "dispatch3": "MoSs Token Dispatch: moss3", "refine3": "MoSs Refine: moss3",
        "composite3": "MoSs Composite: moss3", "seed": "Seed of all drafts",
    }
    return Graph(nodes, links, ("sheet",), titles, lanes=lanes)


HART = "hart-0.7b-1024px"  # folder in models/hart
LIGHTHOUSE = "a lighthouse on a cliff at dusk, oil painting"


def released(
    title: str, words: str, loader: str, values: dict[str, str], models: list[dict[str, str]], cfg: float,
    tau: float, drawing: str = "icon.png",
) -> Graph:
    """Text to image with weights that are not included; the host's dialog says what is missing."""
    beginning, links, lanes = start(prompt=LIGHTHOUSE, cfg=cfg, tau=tau)
    beginning["load"] = (loader, X[0], 0, WIDTHS[0], 230, values)
    beginning["prompt"] = (*beginning["prompt"][:2], 350, *beginning["prompt"][3:])
    lanes["prompt", "clip"] = [(305, 300), (-20, 300)]
    nodes, links, lanes = whole((beginning, links, lanes), moss(), result())
    nodes["note"] = note(f"### {title}\n\n{words}", X[0], 570, WIDTHS[0], 330)
    return Graph(nodes, links, (), drawing=drawing, lanes=lanes, models={"load": models})


def file(repository: str, path: str, folder: str, name: str = "") -> dict[str, str]:
    """A file as the host's dialog of missing models reads it."""
    address = f"{HUB}{repository}/resolve/main/{path}"
    return {"name": name or path.rpartition("/")[2], "url": address, "directory": folder}


INFINITY = "FoundationVision/Infinity"
NEEDS_T5 = (
    "The text encoder is flan-t5-xl: its whole folder from google/flan-t5-xl, or its encoder as a single "
    "file (fp16 or fp8), into *models/text_encoders*."
)


def infinity_2b() -> Graph:
    names = {"model": "infinity_2b_reg.pth", "vae": "infinity_vae_d32reg.pth"}
    files = [file(INFINITY, names["model"], "diffusion_models"), file(INFINITY, names["vae"], "vae")]
    words = (
        "1024 x 1024 in 13 scales. Put infinity_2b_reg.pth into *models/diffusion_models* and "
        f"infinity_vae_d32reg.pth into *models/vae*. {NEEDS_T5}\n\nPress R afterwards. *recommended* is the "
        "paper's MoSs4 here; smaller areas than 1M look bad with this model."
    )
    return released("Infinity-2B", words, "MoSs_LoadInfinity", names, files, 3.0, 0.5)


def infinity_8b() -> Graph:
    names = {"model": "infinity_8b_weights", "vae": "infinity_vae_d56_f8_14_patchify.pth"}
    files = [file(INFINITY, names["vae"], "vae")]
    words = (
        "1024 x 1024 in 13 scales. Put the folder infinity_8b_weights of FoundationVision/Infinity into "
        "*models/diffusion_models* and infinity_vae_d56_f8_14_patchify.pth into *models/vae*. "
        f"{NEEDS_T5}\n\nPress R afterwards. *recommended* is the paper's MoSs4 here."
    )
    return released("Infinity-8B", words, "MoSs_LoadInfinity", names, files, 3.0, 1.0)


def hart() -> Graph:
    weights = f"{HART}/llm/ema_model.bin"
    files = [file(f"mit-han-lab/{HART}", "llm/ema_model.bin", "hart", weights)]
    words = (
        "1024 x 1024 in 14 scales. Twelve are drafted, 48 x 48 and 64 x 64 refined in one pass, with the "
        "paper's bounds 80 and 55; only the finest tokens go through the residual diffusion.\n\nNeeds the "
        "whole folder hart-0.7b-1024px of mit-han-lab (with system_prompt.txt of its authors in it) in "
        "*models/hart* or *models/diffusion_models*, and the folder Qwen2-VL-1.5B-Instruct beside it or in "
        "*models/text_encoders*."
    )
    picture = "js/docs/MoSs_LoadHART/picture.png"
    return released("HART-0.7B", words, "MoSs_LoadHART", {"model": weights}, files, 5.5, 1.0, picture)


def matched(
    widgets: dict[str, str], source: tuple[str, int], y: int
) -> tuple[dict[str, Node], tuple[Link, ...], Lanes]:
    """What was drawn, matched with the picture that it was made from, and saved.

    Args:
        y: of the output that gives that picture.
    """
    nodes: dict[str, Node] = {
        "match": ("MoSs_MatchPicture", X[4], 570, WIDTHS[4], 110, widgets),
        "save": ("SaveImage", X[4], 760, WIDTHS[4], 340, {"filename_prefix": "MoSs"}),
    }
    links = (
        ("decode", 0, "match", "image"), (*source, "match", "reference"), ("match", 0, "save", "images"),
    )
    way = [(X[0] + WIDTHS[0] + 12, y - 20), (X[0] + WIDTHS[0] + 12, -86), (X[4] - 44, -86), (X[4] - 44, 610)]
    lanes = {**chain(527, "match", "image"), **chain(717, "save", "images"), ("match", "reference"): way}
    return nodes, links, lanes


def pictured(
    title: str, words: str, values: dict[str, str], models: list[dict[str, str]], prompt: str,
    node: tuple[str, dict[str, Any]], match: dict[str, str], scaled: int = 0,
) -> Graph:
    """A picture changed by a fine-tune of Infinity, whose weights are not included.

    Args:
        scaled: to how many pixels a side the picture is brought first; 0 = as it is.
    """
    kind, widgets = node
    seeded = {"seed": 0, "control_after_generate": "randomize", **widgets}
    nodes: dict[str, Node] = {
        "load": ("MoSs_LoadInfinity", X[0], 0, WIDTHS[0], 230, values),
        "prompt": ("CLIPTextEncode", X[0], 350, WIDTHS[0], 120, {"text": prompt}),
        "picture": ("LoadImage", X[0], 530, WIDTHS[0], 330, {"image": "example.png"}),
        "draft": (kind, X[1], 0, WIDTHS[1], 560, seeded),
        "note": note(f"### {title}\n\n{words}", X[1], 640, WIDTHS[1], 380),
    }
    source = "scale" if scaled else "picture"
    links: tuple[Link, ...] = (
        ("load", 1, "prompt", "clip"), ("load", 0, "draft", "model"), ("prompt", 0, "draft", "positive"),
        (source, 0, "draft", "image"),
    )
    lanes: Lanes = {("prompt", "clip"): [(305, 300), (-20, 300)]}
    if scaled:
        size = {"upscale_method": "bicubic", "width": scaled, "height": scaled, "crop": "center"}
        nodes["scale"] = ("ImageScale", X[0], 930, WIDTHS[0], 150, size)
        links += (("picture", 0, "scale", "image"),)
        lanes["scale", "image"] = [(305, 895), (-20, 895)]
        lanes["draft", "image"] = [(X[0] + WIDTHS[0] + 24, 900), (X[0] + WIDTHS[0] + 24, 90)]
    ending = matched(match, (source, 0), 950 if scaled else 550)
    nodes, links, lanes = whole((nodes, links, lanes), moss(), ending)
    drawing = f"js/docs/{kind}/picture.png"
    return Graph(nodes, links, (), drawing=drawing, lanes=lanes, models={"load": models})


def instruct_edit() -> Graph:
    names = {"model": "8B-1024.pth", "vae": "infinity_vae_d56_f8_14_patchify.pth"}
    files = [
        file("HiDream-ai/VAREdit", names["model"], "infinity"), file(INFINITY, names["vae"], "vae"),
    ]
    words = (
        "Write what to change, not what the picture shows. Put 8B-1024.pth of HiDream-ai/VAREdit into "
        "*models/infinity* under its own name, by which it is known, and the VAE into *models/vae*. "
        f"{NEEDS_T5}\n\nOnly squares are drawn: other shapes are padded, and MoSs Match Picture takes the "
        "padding off. Another seed costs less than the first. Not yet tried with the released files."
    )
    match = {"size": "the reference's, without padding", "colours": "as they are"}
    return pictured(
        "VAREdit", words, names, files, "make it autumn", ("MoSs_InstructEdit", {"refine_scales": 2}), match
    )


def enlarge() -> Graph:
    names = {"model": "NSARM.pth", "vae": "infinity_vae_d56_f8_14_patchify.pth"}
    files = [file(INFINITY, names["vae"], "vae")]
    words = (
        "256 x 256 to 1024 x 1024. Describe the picture in detail. Put NSARM.pth (its parts joined, from the "
        "links of Xiangtaokong/NSARM) into *models/infinity*, and Infinity-8B's VAE into *models/vae*. "
        f"{NEEDS_T5}\n\nThe colours are the small picture's, as its authors have it. Not yet tried with the "
        "released file."
    )
    match = {"size": "as it is", "colours": "the reference's"}
    return pictured(
        "NSARM", words, names, files, "a photo of a cat, sharp", ("MoSs_Enlarge", {"refine_scales": 2}),
        match, 256,
    )


GRAPHS = {  # by purpose: the page sorts them by name
    "01 Text to image": text_to_image(),
    "02 Text to image (app)": text_to_image(app=True),
    "03 Pick from a sheet of drafts": pick(),
    "04 Compare at equal time": compare(),
    "05 Paint where detail goes": paint(),
    "06 Every map on screen": inspect(),
    "07 Two refine passes": two_passes(),
    "08 MoSs4 of the paper": paper(),
    "09 Infinity-2B": infinity_2b(),
    "10 Infinity-8B": infinity_8b(),
    "11 HART-0.7B": hart(),
    "12 Edit by instruction (VAREdit)": instruct_edit(),
    "13 Enlarge by four (NSARM)": enlarge(),
    "19 With a LoRA": with_lora(),
}
