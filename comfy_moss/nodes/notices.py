"""What an artist asked for and this family of models does not have: said in the page and the log, never
dropped silently.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any

# (word:1.2), ((word)), [word:0.5], <lora:name:1>, embedding:name, BREAK
SYNTAX = re.compile(
    r"\([^()]+:\s*\d*\.?\d+\s*\)|\(\([^()]+\)\)|\[[^\[\]]+:\s*[\d.]+\s*\]"
    r"|<lora:[^<>]+>|\bembedding:[^\s,]+|\bBREAK\b"
)
UNSUPPORTED = {  # what other nodes write into a conditioning, and what it asks for
    "area": "Set Area",
    "mask": "Set Mask",
    "start_percent": "Set Timestep Range",
    "end_percent": "Set Timestep Range",
    "control": "a ControlNet",
    "gligen": "GLIGEN",
    "hooks": "hooks",
    "unclip_conditioning": "unCLIP",
    "reference_latents": "a reference picture",
    "guidance": "a guidance of its own",
    "concat_latent_image": "an inpainting picture",
}
log = logging.getLogger(__name__)


def warn(text: str) -> None:
    """Tell the artist, in the page and in the log, and go on."""
    log.warning(text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync("moss.warning", {"text": text})


def warn_of_unsupported(settings: Mapping[str, Any], name: str) -> None:
    """Say what a conditioning asks for that this family of models does not have: the picture is the same
    without it.
    """
    asked = dict.fromkeys(what for key, what in UNSUPPORTED.items() if settings.get(key) is not None)
    if settings.get("strength", 1.0) != 1.0:
        asked["a strength other than 1"] = None
    if asked:
        warn(f"This model cannot follow {', '.join(asked)} of the {name} conditioning; it is drawn without.")


def warn_of_weights(text: str) -> None:
    """Say that `(word:1.2)` and its like are read as plain text."""
    if found := SYNTAX.search(text):
        warn(f"This model has no prompt weights: {found[0]!r} is read as plain text.")
