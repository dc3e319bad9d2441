"""Load Infinity: the embedded model, or files from the models folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from comfy_api.latest import io

from ..model.library import ModelFiles, assemble, find_model, parts
from ..model.tensors import CheckpointError
from ..ops import choose
from .clip import InfinityCLIP
from .model import MossModel, manage
from .schema import Model, schema
from .vae import InfinityVAE

NANO = "nano (embedded)"
AUTOMATIC = "automatic"
FOLDERS = {"transformer": ("infinity",), "vae": ("infinity", "vae"), "text": ("infinity", "text_encoders")}


def register_folder() -> None:
    """Make models/infinity known to the host; folders that the user added under that name stay."""
    folder_paths.add_model_folder_path("infinity", os.path.join(folder_paths.models_dir, "infinity"), is_default=True)


def _roots(part: str) -> list[Path]:
    known = [name for name in FOLDERS[part] if name in folder_paths.folder_names_and_paths]
    return [Path(path) for name in known for path in folder_paths.get_folder_paths(name)]


def choices(part: str) -> dict[str, Path]:
    """Name in the menu -> path of every "transformer", "vae" or "text" encoder that may be one, by its name."""
    found: dict[str, Path] = {}
    for root in _roots(part):
        for path in parts([root])[part]:
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def _chosen(part: str, name: str) -> Path | None:
    if name == AUTOMATIC:
        return None
    if (path := choices(part).get(name)) is None:
        raise CheckpointError(
            f"{name} is no longer in the folder {' or '.join(FOLDERS[part])} of your models; choose another file"
        )
    return path


def model_files(model: str, vae: str, text_encoder: str) -> ModelFiles:
    """The files of a choice in the menus.

    Raises:
        CheckpointError: something is missing, or the embedded model was given foreign parts.
    """
    if model == NANO:
        if (vae, text_encoder) != (AUTOMATIC, AUTOMATIC):
            raise CheckpointError("the embedded nano model brings its own VAE and text encoder; set both to automatic")
        return find_model("nano", [])
    roots = [root for part in FOLDERS for root in _roots(part)]
    return assemble(_chosen("transformer", model), _chosen("vae", vae), _chosen("text", text_encoder), roots)


def precision_of(name: str) -> torch.dtype:
    """auto: bfloat16 where the device computes in it, else float32."""
    bf16 = name == "bf16" or (name == "auto" and mm.should_use_bf16(mm.get_torch_device()))
    return torch.bfloat16 if bf16 else torch.float32


def stamps(files: ModelFiles) -> str:
    """Changes when a file was replaced."""
    return repr([(str(path), path.stat().st_mtime) for path in files.paths])


def loaded(files: ModelFiles, precision: str, **settings: Any) -> io.NodeOutput:
    """Model, text encoder and VAE as the nodes of the pack and of the host take them.

    Args:
        settings: of the model itself, fields of its backbone.
    """
    dtype, device = precision_of(precision), mm.get_torch_device()
    backbone = files.load(mm.unet_offload_device(), dtype)
    backbone = replace(backbone, kernels=choose("auto", device)[0], **settings)
    clip = InfinityCLIP(files.load_text(mm.text_encoder_offload_device(), dtype))
    codec = InfinityVAE(backbone.vae)
    patcher = manage(backbone.transformer, device, mm.unet_offload_device())
    return io.NodeOutput(MossModel(backbone, files, patcher, codec.patcher), clip, codec)


class LoadInfinity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_LoadInfinity",
            display_name="Load Infinity",
            description="Loads an Infinity model with its text encoder and VAE. The small model nano is built in, so a fresh "
            "install draws at once.",
            search_aliases=["infinity", "VAR", "next-scale", "moss loader", "nano"],
            inputs=[
                io.Combo.Input(
                    "model", options=[NANO, *choices("transformer")],
                    tooltip="The transformer. nano is built in and draws coloured shapes at 256 x 256. Put others into "
                    "models/infinity, for example infinity_2b_reg.pth, then press R.",
                ),
                io.Combo.Input(
                    "vae", options=[AUTOMATIC, *choices("vae")],
                    tooltip="automatic finds the VAE that belongs to the model (for 2B: infinity_vae_d32reg.pth) in "
                    "models/infinity or models/vae. A VAE of another model is refused.",
                ),
                io.Combo.Input(
                    "text_encoder", options=[AUTOMATIC, *choices("text")],
                    tooltip="automatic finds the folder flan-t5-xl in models/infinity or models/text_encoders.",
                ),
                io.Combo.Input(
                    "precision", options=["auto", "bf16", "fp32"],
                    tooltip="auto: bf16 where the device is fast in it, fp32 otherwise. bf16 halves memory; fp32 reproduces "
                    "pictures most exactly.",
                ),
            ],
            outputs=[  # ids of their own: older hosts want them to differ from the inputs'
                Model.Output("loaded_model", display_name="model", tooltip="Infinity, for Infinity Draft."),
                io.Clip.Output("loaded_clip", display_name="clip", tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output("loaded_vae", display_name="vae", tooltip="The VAE, for VAE Decode."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model: str, vae: str, text_encoder: str, precision: str) -> str:
        """Changes when a file was replaced, so that it is loaded again."""
        try:
            files = model_files(model, vae, text_encoder)
            return stamps(files)
        except (ValueError, OSError):
            return "missing"

    @classmethod
    def execute(cls, model: str, vae: str, text_encoder: str, precision: str) -> io.NodeOutput:
        return loaded(model_files(model, vae, text_encoder), precision)
