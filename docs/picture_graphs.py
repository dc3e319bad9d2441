"""The example workflows that start from a picture: redraw, inpaint, outpaint, change by words, refine."""

from __future__ import annotations

from typing import Any

from workflow_graphs import RIGHT, WIDTHS, Graph, Lanes, Link, Node, X, moss, note, result, whole

SHOWN, WANTED = "a blue star on a plain white background", "a red star on a plain white background"
Part = tuple[dict[str, Node], tuple[Link, ...], Lanes]
ROW = 680  # pixels: where the folded nodes are that make the picture, and how far below the next ones
STEP = 60
GAPS = (310, 322, 655)  # pixels across: two ways left of the second column, one right of it
YOURS = "\n\nA picture is drawn below so that this runs at once: wire **Load Image** to *image* for your own."


def begin(**widgets: Any) -> Part:
    """Model, prompt, and a picture as a draft."""
    settings = {"control_after_generate": "randomize", **widgets}
    nodes: dict[str, Node] = {
        "load": ("MoSs_LoadInfinity", X[0], 0, WIDTHS[0], 205, {}),
        "wanted": ("CLIPTextEncode", X[0], 300, WIDTHS[0], 100, {"text": WANTED}),
        "start": ("MoSs_ImageToDraft", X[1], 0, WIDTHS[1], 560, settings),
    }
    links = (("load", 1, "wanted", "clip"), ("load", 0, "start", "model"), ("wanted", 0, "start", "positive"))
    return nodes, links, {("wanted", "clip"): [(305, 266), (-20, 266)]}


def picture(prompt: str) -> Part:
    """The picture to start from, by two folded nodes."""
    draft = {
        "refine_scales": 0, "method": "custom", "control_after_generate": "randomize", "cfg": 1.5,
        "tau": 0.5, "collapsed": True,
    }
    nodes: dict[str, Node] = {
        "shown": ("CLIPTextEncode", X[0], 475, WIDTHS[0], 100, {"text": prompt}),
        "made": ("MoSs_InfinityDraft", X[1], ROW, WIDTHS[1], 640, draft),
        "picture": ("VAEDecode", X[1], ROW + STEP, WIDTHS[2], 50, {"collapsed": True}),
    }
    links = (
        ("load", 1, "shown", "clip"), ("load", 0, "made", "model"), ("shown", 0, "made", "positive"),
        ("made", 1, "picture", "samples"), ("load", 2, "picture", "vae"),
    )
    lanes: Lanes = {
        ("shown", "clip"): [(305, 266), (-20, 266), (-20, 465)],
        ("made", "model"): [(GAPS[0], 80), (GAPS[0], ROW - 25)],
        ("made", "positive"): [(GAPS[0] + 5, 520), (GAPS[0] + 5, ROW - 25)],
        ("picture", "samples"): [(GAPS[2] - 30, ROW), (GAPS[1], ROW + 20)],
        ("picture", "vae"): [(GAPS[0] - 5, 90), (GAPS[0] - 5, ROW + STEP - 25)],
    }
    return nodes, links, lanes


def back(left: int, top: int = 590) -> list[tuple[int, int]]:
    """The way from the folded nodes to the left side of the node above them."""
    return [(GAPS[2], ROW + STEP - 25), (GAPS[2], top), (left, top), (left, 110)]


def graph(*parts: Part, text: str, thumbnail: tuple[str, ...] = ("save",), **titles: str) -> Graph:
    nodes, links, lanes = whole(*parts)
    nodes.setdefault("note", note(text, X[0], 650, WIDTHS[0], 330))
    named = {"shown": "What the picture shows", "wanted": "What is wanted", **titles}
    return Graph(nodes, links, thumbnail, {k: v for k, v in named.items() if k in nodes}, lanes=lanes)


USES_PICTURE: Part = ({}, (("picture", 0, "start", "image"),), {("start", "image"): back(GAPS[1])})


def redraw() -> Graph:
    text = (
        "### Redraw a picture\n\nThree coarse scales are taken from the picture, the others are "
        "drawn after the prompt.\n\n**Try** *strength*: 0 is text to picture; more scales keep more."
        + YOURS
    )
    return graph(begin(strength=3), picture(SHOWN), USES_PICTURE, moss("start"), result(), text=text)


def inpaint() -> Graph:
    nodes, _, _ = result()
    kind, x, y, width, height, widgets = nodes["save"]
    loaded: Part = (
        {
            "picture": ("LoadImage", X[0], 475, WIDTHS[0], 330, {"image": "example.png"}),
            "keep": ("ImageCompositeMasked", X[4], 590, WIDTHS[4], 150, {"collapsed": True}),
            "save": (kind, x, y + 80, width, height, widgets),
        },
        (
            ("picture", 0, "start", "image"), ("picture", 1, "start", "mask"),
            ("start", 2, "keep", "destination"), ("decode", 0, "keep", "source"),
            ("start", 3, "keep", "mask"), ("keep", 0, "save", "images"),
        ),
        {
            ("keep", "destination"): [(GAPS[2], 70), (GAPS[2], 800), (X[4] - 24, 800), (X[4] - 24, 600)],
            ("keep", "source"): [(RIGHT + 22, 535), (X[4] - 18, 535)],
            ("keep", "mask"): [(GAPS[2] + 8, 90), (GAPS[2] + 8, 790), (X[4] - 30, 790), (X[4] - 30, 590)],
            ("save", "images"): [(RIGHT + 22, 605), (X[4] - 12, 605)],
        },
    )
    text = (
        "### Inpaint by painting\n\nRight click on *Load Image*, choose *Open in MaskEditor*, paint "
        "what is to be redrawn, save, and run.\n\nAll else keeps the picture's codes, and only "
        "painted tokens are redrawn. At the end the original pixels are laid back."
    )
    about: Part = ({"note": note(text, X[1], 650, WIDTHS[1], 260)}, (), {})
    return graph(begin(strength=0), loaded, moss("start"), about, text=text)


def outpaint() -> Graph:
    sides = {"left": 128, "right": 128, "feathering": 0}
    across = [(X[3] - 14, 700), (X[3] - 14, 662), (GAPS[2], 640), (GAPS[2], 590)]
    pad: Part = (
        {"pad": ("ImagePadForOutpaint", X[2], 720, WIDTHS[2], 180, sides)},
        (("picture", 0, "pad", "image"), ("pad", 0, "start", "image"), ("pad", 1, "start", "mask")),
        {
            ("start", "image"): [*across, (GAPS[1], 590), (GAPS[1], 110)],
            ("start", "mask"): [*across, (GAPS[1] - 6, 590), (GAPS[1] - 6, 150)],
        },
    )
    text = (
        "### Outpaint\n\n*Pad Image for Outpainting* makes the canvas larger and masks what is new; "
        "the rest keeps the picture's codes. The canvas is drawn at the nearest ratio that the model "
        "knows."
        + YOURS
    )
    return graph(begin(strength=0), picture(WANTED), pad, moss("start"), result(), text=text)


def change_by_words() -> Graph:
    nodes, links, lanes = begin()
    settings = {"control_after_generate": "randomize", "strength": 13, "collapsed": True}
    nodes["start"] = ("MoSs_ImageToDraft", X[1], ROW + 2 * STEP, WIDTHS[1], 560, settings)
    below = ROW + 2 * STEP - 25
    edit: Part = (
        {
            "edit": ("MoSs_EditDraft", X[1], 0, WIDTHS[1], 480, {}),
            "change": ("PreviewImage", X[2], 720, WIDTHS[2], 340, {}),
        },
        (
            ("picture", 0, "start", "image"), ("start", 0, "edit", "draft"),
            ("wanted", 0, "edit", "positive"), ("shown", 0, "edit", "source"),
            ("edit", 2, "change", "images"),
        ),
        {
            ("start", "model"): [(GAPS[0], 80), (GAPS[0], below)],
            ("start", "positive"): [(GAPS[0] + 5, 520), (GAPS[0] + 5, below)],
            ("start", "image"): [(GAPS[2] - 30, ROW + STEP), (GAPS[1], ROW + STEP + 20)],
            ("edit", "draft"): [(GAPS[2], below), (GAPS[2], 590), (GAPS[1], 590), (GAPS[1], 60)],
            ("change", "images"): [(GAPS[2] + 10, 60), (GAPS[2] + 10, 690)],
        },
    )
    text = (
        "### Change by words\n\nThe model is asked with both prompts. Where they disagree the draft "
        "changes; the map says where. Only these places are redrawn at the finest "
        "scale.\n\n**Try** *preserve* 0, which changes the background too."
        + YOURS
    )
    links = (*links[:2], ("shown", 0, "start", "positive"))
    return graph(
        (nodes, links, lanes), picture(SHOWN), edit, moss("edit"), result(), text=text,
        thumbnail=("change", "save"), change="Where it changed",
    )


def refine_any() -> Graph:
    text = (
        "### Refine any picture\n\nAll drafted scales are the picture's. The busiest fine tokens are "
        "redrawn, after a prompt that says what it shows; everywhere else its own codes "
        "stay.\n\nMeant for pictures of other models."
        + YOURS
    )
    return graph(begin(strength=13), picture(WANTED), USES_PICTURE, moss("start"), result(), text=text)


GRAPHS = {
    "14 Redraw a picture": redraw(), "15 Inpaint by painting": inpaint(), "16 Outpaint": outpaint(),
    "17 Change by words": change_by_words(), "18 Refine any picture": refine_any(),
}
