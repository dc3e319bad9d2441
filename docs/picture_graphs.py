"""The example workflows that start from a picture: redraw, inpaint, outpaint, change by words, refine."""

from __future__ import annotations

from typing import Any

from workflow_graphs import WIDTHS, Graph, Lanes, Link, Node, X, moss, note, result, whole

SHOWN, WANTED = "a blue star on a plain white background", "a red star on a plain white background"
Part = tuple[dict[str, Node], tuple[Link, ...], Lanes]
BELOW = 800  # pixels: top of the row where the picture is made
YOURS = "\n\nA picture is drawn below so that this runs at once: wire **Load Image** to *image* for your own."


def begin(x: int = X[1], y: int = 0, **widgets: Any) -> Part:
    """Model, prompt, and a picture as a draft."""
    settings = {"control_after_generate": "randomize", **widgets}
    nodes: dict[str, Node] = {
        "load": ("MoSs_LoadInfinity", X[0], 0, WIDTHS[0], 170, {}),
        "wanted": ("CLIPTextEncode", X[0], 300, WIDTHS[0], 150, {"text": WANTED}),
        "start": ("MoSs_ImageToDraft", x, y, WIDTHS[1], 560, settings),
    }
    links = (("load", 1, "wanted", "clip"), ("load", 0, "start", "model"), ("wanted", 0, "start", "positive"))
    return nodes, links, {("wanted", "clip"): [(305, 250), (-20, 250)]}


def picture(prompt: str, x: int = X[1], decoded: tuple[int, int] = (X[2], BELOW)) -> Part:
    """The picture to start from."""
    draft = {
        "refine_scales": 0, "method": "custom", "control_after_generate": "randomize", "cfg": 1.5,
        "tau": 0.5,
    }
    nodes: dict[str, Node] = {
        "shown": ("CLIPTextEncode", X[0], 960, WIDTHS[0], 150, {"text": prompt}),
        "made": ("MoSs_InfinityDraft", x, BELOW, WIDTHS[1], 640, draft),
        "picture": ("VAEDecode", *decoded, WIDTHS[2], 50, {}),
    }
    links = (
        ("load", 1, "shown", "clip"), ("load", 0, "made", "model"), ("shown", 0, "made", "positive"),
        ("made", 1, "picture", "samples"), ("load", 2, "picture", "vae"),
    )
    return nodes, links, {}


def graph(*parts: Part, text: str, thumbnail: tuple[str, ...] = ("save",), **titles: str) -> Graph:
    nodes, links, lanes = whole(*parts)
    nodes["note"] = note(text, X[0], 520, WIDTHS[0], 370)
    named = {"shown": "What the picture shows", "wanted": "What is wanted", **titles}
    return Graph(nodes, links, thumbnail, {k: v for k, v in named.items() if k in nodes}, lanes=lanes)


USES_PICTURE: Part = ({}, (("picture", 0, "start", "image"),), {})


def redraw() -> Graph:
    text = (
        "### Redraw a picture\n\nThree coarse scales are taken from the picture, the others are "
        "drawn after the prompt.\n\n**Try** *strength*: 0 is text to picture; more scales keep more."
        + YOURS
    )
    return graph(begin(strength=3), picture(SHOWN), USES_PICTURE, moss("start"), result(), text=text)


def inpaint() -> Graph:
    nodes, links, lanes = result()
    loaded: Part = (
        {
            "picture": ("LoadImage", X[1], BELOW, WIDTHS[1], 400, {"image": "example.png"}),
            "keep": ("ImageCompositeMasked", X[3], BELOW, WIDTHS[3], 150, {}),
        },
        (
            ("picture", 1, "start", "mask"), ("start", 2, "keep", "destination"),
            ("decode", 0, "keep", "source"), ("start", 3, "keep", "mask"), ("keep", 0, "save", "images"),
        ),
        {},
    )
    text = (
        "### Inpaint by painting\n\nRight click on *Load Image*, choose *Open in MaskEditor*, paint "
        "what is to be redrawn, save, and run.\n\nAll else keeps the picture's codes, and only "
        "painted tokens are redrawn. At the end the original pixels are laid back."
    )
    return graph(begin(strength=0), loaded, USES_PICTURE, moss("start"), (nodes, (), {}), text=text)


def outpaint() -> Graph:
    sides = {"left": 128, "right": 128, "feathering": 0}
    pad: Part = (
        {"pad": ("ImagePadForOutpaint", X[2], BELOW + 180, WIDTHS[2], 180, sides)},
        (("picture", 0, "pad", "image"), ("pad", 0, "start", "image"), ("pad", 1, "start", "mask")), {},
    )
    text = (
        "### Outpaint\n\n*Pad Image for Outpainting* makes the canvas larger and masks what is new; "
        "the rest keeps the picture's codes. The canvas is drawn at the nearest ratio that the model "
        "knows."
        + YOURS
    )
    return graph(begin(strength=0), picture(WANTED), pad, moss("start"), result(), text=text)


def change_by_words() -> Graph:
    edit: Part = (
        {
            "edit": ("MoSs_EditDraft", X[1], 0, WIDTHS[1], 480, {}),
            "change": ("PreviewImage", X[3], BELOW + 180, WIDTHS[3], 340, {}),
        },
        (
            ("start", 0, "edit", "draft"), ("wanted", 0, "edit", "positive"), ("shown", 0, "edit", "source"),
            ("edit", 2, "change", "images"),
        ),
        {},
    )
    nodes, links, lanes = begin(y=BELOW, strength=13)
    links = (*links[:2], ("shown", 0, "start", "positive"))
    text = (
        "### Change by words\n\nThe model is asked with both prompts. Where they disagree the draft "
        "changes; the map below says where. Only these places are redrawn at the finest "
        "scale.\n\n**Try** *preserve* 0, which changes the background too."
        + YOURS
    )
    made = picture(SHOWN, X[2], (X[3], BELOW))
    return graph(
        (nodes, links, lanes), made, USES_PICTURE, edit, moss("edit"), result(), text=text,
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
