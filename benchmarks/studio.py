"""What the commands share: methods by name, a model ready to draw many prompts, and notes about what made a
folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comfy_moss.images import write_files
from comfy_moss.model.backbone import PAPER, Backbone, Published
from comfy_moss.model.graphs import with_graphs
from comfy_moss.ops import choose
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.pipeline.plan import Method, Plan, parse_method, parse_plan
from comfy_moss.request import Checked

CLAIM = "run.json"  # in a folder of work: what it is
DRAFTS = tuple(f"draft-{k}" for k in range(1, 6))  # what "draft" stands for in a list

# --- methods by name ----------------------------------------------------------------------------------------


def parse_methods(
    text: str, published: Published = PAPER, cfg: float | Sequence[float] | None = None
) -> dict[str, Method]:
    """Methods by name, in the order of the tables, from a list such as "dense,draft,fastvar,moss4,moss4-sa".

    `draft` stands for draft-1 to draft-5; otherwise names are those of `parse_method`.  Dense is always among
    them, being the yardstick, and beside everything that refines the draft it started from, its honest rival.

    Args:
        published: settings of the methods for the model.
        cfg: guidance of the recipe: a plan that names the same starts from the draft that names none.

    Raises:
        ValueError: a name is unknown, or the list is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError("no methods are named; list some, for example dense,draft,moss4")
    names = [one for name in names for one in (DRAFTS if name == "draft" else [name])]
    named = [parse_method(name, published=published) for name in ("dense", *names)]
    refining = [method for method in named if refines(method)]
    rivals = [Plan(m.draft, guidance=None if m.guidance == cfg else m.guidance) for m in refining]
    found = {label(method, published): method for method in (*named, *rivals)}
    return dict(sorted(found.items(), key=lambda item: _place(*item)))


def refines(method: Method) -> bool:
    return isinstance(method, Plan) and bool(method.passes)


def label(method: Method, published: Published = PAPER) -> str:
    """The name again: "draft-3", "moss4-paper-sa-unguided", a plan's own name, or the plan as text."""
    if not isinstance(method, Plan):
        return method.label
    named = {parse_plan(plan): name for name, plan in reversed(published.plans.items())}  # first of several
    simple = method.label if method.name != "moss" else _moss_label(method, published)
    same = simple and parse_method(simple, published=published) == method
    return named.get(method) or (simple if same else str(method))


def _moss_label(moss: Plan, published: Published) -> str:
    """The name of a MoSs with found or printed bounds, whole or with parts of its refine step off."""
    (step,) = moss.passes
    options = {
        "paper": step.bounds != published.best.get(moss.k), "sa": not step.cross_scale,
        "unguided": not step.guided,
    }
    known = step.bounds in (published.best.get(moss.k), published.bounds.get(moss.k))
    return "-".join([moss.label, *(name for name, on in options.items() if on)]) if known else ""


def _place(name: str, method: Method) -> tuple[int | bool, ...]:
    """Dense, then FastVAR, then by k the draft before what refines it."""
    first = {"dense": 0, "fastvar": 1}.get(method.name, 2)
    return first, method.k, refines(method), "-unguided" in name, "-sa" in name, "-paper" in name


# --- a model for many prompts -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Studio:
    """A model and the features of all prompts that it will draw.

    Attributes:
        features: by prompt, (L, Ct).
        negative: of the request's negative prompt; None = it has none.
    """

    checked: Checked
    backbone: Backbone
    features: dict[str, Tensor]
    negative: Tensor | None = None

    def recipe(self, prompts: Sequence[str], seeds: Sequence[int]) -> Recipe:
        """One batch: a picture for every pair of prompt and seed."""
        text, made = tuple(self.features[prompt] for prompt in prompts), self.checked
        negative = None if self.negative is None else (self.negative,) * len(text)
        return Recipe(text, negative, tuple(seeds), made.schedule, made.guidance, made.sampling)


@torch.inference_mode()
def load(checked: Checked, prompts: Sequence[str]) -> Studio:
    """The model of a request and the features of prompts; the text encoder is gone before the model comes.

    Raises:
        ValueError: a file is damaged, or a prompt is too long for the model.
    """
    negative, files, place = checked.request.negative.strip(), checked.files, (checked.device, checked.dtype)
    unique = list(dict.fromkeys([*prompts, *([checked.request.negative] if negative else [])]))
    features = dict(zip(unique, files.load_text(*place).encode(unique), strict=True))
    backbone = replace(files.load(*place), kernels=choose("auto", checked.device)[0])
    backbone, _ = with_graphs(backbone, checked.device)
    return Studio(checked, backbone, features, features[checked.request.negative] if negative else None)


# --- notes --------------------------------------------------------------------------------------------------


def read_note(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where it holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def difference(old: Mapping[str, Any], new: Mapping[str, Any], ignored: Collection[str] = ()) -> str | None:
    """The first entry in which an old note differs from what is wanted now, in words; None where they
    agree."""
    for name, value in json.loads(json.dumps(new)).items():
        if name not in ignored and old.get(name) != value:
            return f"{name} {old.get(name)!r}, not {value!r}"
    return None


def claim(folder: Path, setting: Mapping[str, Any], facts: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Make a folder that of this work, or find that it is; returns its note.

    Args:
        setting: what decides what is drawn.
        facts: of where and when that was, which may change on the way; those of the start are kept.
        kind: "evaluation", ..., as the sentence names it.

    Raises:
        ValueError: the folder holds work of another setting.
    """
    path = folder / CLAIM
    if not path.exists():
        write_files({path: json_bytes({**facts, "setting": dict(setting)})})
    note = read_note(path) or {}
    if wrong := difference(note.get("setting", {}), setting):
        raise ValueError(f"{folder} holds another {kind}, of {wrong}; name another folder")
    return note


def json_bytes(value: Any) -> bytes:
    """As a file."""
    return (json.dumps(value, indent=1) + "\n").encode()


def check_least(**least: tuple[float | None, float]) -> None:
    """Refuse numbers that are too small; option -> (value, least).

    Raises:
        ValueError: one is.
    """
    for name, (value, limit) in least.items():
        if value is not None and value < limit:
            raise ValueError(f"--{name.replace('_', '-')} must be {limit} or more, got {value}")
