"""Compare this implementation with reference numbers of the original ones: `python -m comfy_moss verify DIR`.

A golden directory has a manifest.json that lists cases; each case is a safetensors file of inputs and
expected tensors.  Tolerances are those the manifest states.  A manifest that lists `files` instead of `cases`
is HART's, see verify_hart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .comparison import Check, Comparison, check_kinds, run_case
from .verify_hart import verify_files
from .verify_infinity import codec, generate, rope, sampler
from .verify_tunes import colours, edit, edit_positions, enlarge

KINDS: dict[str, Callable[[dict, Comparison, Path], None]] = {
    "generate": generate,
    "fastvar_generate": generate,
    "vae_codec": codec,
    "rope": rope,
    "sampler": sampler,
    "edit_generate": edit,
    "edit_rope": edit_positions,
    "nsarm_generate": enlarge,
    "nsarm_colour": colours,
}


def verify(folder: Path) -> Iterator[Check]:
    """Run every case of a golden directory; yields one Check a quantity.

    Raises:
        ValueError: no manifest, an unknown kind of case, a changed file, or expected tensors that nothing was
            compared with.
    """
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{folder} holds no manifest.json; name a directory of reference numbers")
    listed = json.loads(manifest.read_text())
    if "files" in listed:
        yield from verify_files(folder, listed)
        return
    cases = listed["cases"]
    check_kinds(folder, {case["kind"] for case in cases.values()}, KINDS)
    for name, case in cases.items():
        run = KINDS.get(case["kind"])
        run = run and partial(run, case, folder=folder)
        yield from run_case(folder / case["file"], name, case, Comparison, run)
