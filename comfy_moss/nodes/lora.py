"""MoSs Load LoRA: a model whose transformer is changed by a file, as the host changes its own models.

The host's LoraLoaderModelOnly takes its own kind of model; this gives its machinery the names of ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.lora
import folder_paths
import torch
from comfy_api.latest import io

from ..model.lora import Lora, changed_id, read_lora, shapes_of
from ..model.tiny_decoder import ASSETS
from ..pipeline.refine import KVStore
from .host import MossModel, log
from .wires import Model, MossNode, schema

FOLDER = "loras"
INCLUDED = {"nano-night (embedded)": ASSETS / "loras" / "nano-night.safetensors"}  # for the embedded model


def patches_of(lora: Lora) -> dict[str, object]:
    """What the host adds to each weight, from kohya's names, which it reads."""
    named, keys = {}, {}
    for name, change in lora.changes.items():
        layer = name.removesuffix(".weight")
        alpha = torch.tensor(change.scale * change.down.shape[0])
        named |= {f"{layer}.lora_down.weight": change.down, f"{layer}.lora_up.weight": change.up}
        named[f"{layer}.alpha"], keys[layer] = alpha, name
    return comfy.lora.load_lora(named, keys)


def with_lora(model: MossModel, lora: Lora, strength: float) -> MossModel:
    """Another model on the same weights, which the host changes while this one draws."""
    patcher = model.patcher.clone()
    patcher.add_patches(patches_of(lora), strength)
    backbone = replace(model.backbone, model_id=changed_id(model.backbone.model_id, [(lora, strength)]))
    return replace(model, backbone=backbone, patcher=patcher, store=KVStore())


class LoadLora(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_LoadLora",
            display_name="MoSs Load LoRA",
            description="Changes a model by a LoRA: a style or a subject that somebody "
            "trained for it. Several may follow one another.",
            search_aliases=["lora", "style", "peft", "kohya", "load lora"],
            inputs=[
                Model.Input("model", tooltip="From MoSs Load Infinity, or from another MoSs Load LoRA."),
                io.Combo.Input(
                    "lora", options=[*INCLUDED, *folder_paths.get_filename_list(FOLDER)],
                    tooltip="A file made for this very model, with names of PEFT, kohya or EditInfinity. Put "
                    "it into models/loras and press R. nano-night gives nano dark backgrounds.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="How much of it: 1 as trained, 0 nothing, below 0 the opposite.",
                ),
            ],
            outputs=[
                Model.Output("changed_model", display_name="model", tooltip="For MoSs Draft and its like."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora: str) -> bool:
        """What is gone is told when it is read."""
        return True

    @classmethod
    def execute(cls, model: MossModel, lora: str, strength: float) -> io.NodeOutput:
        if strength == 0:
            return io.NodeOutput(model)
        if (path := INCLUDED.get(lora) or folder_paths.get_full_path(FOLDER, lora)) is None:
            raise ValueError(f"there is no LoRA {lora[:99]!r} in models/{FOLDER}; choose another, or press R")
        found = read_lora(Path(path), shapes_of(model.backbone))
        told = f", {found.ignored} of text encoder or codec are ignored" if found.ignored else ""
        log.info(f"MoSs: {found.name} changes {len(found.changes)} matrices{told}")
        return io.NodeOutput(with_lora(model, found, strength))
