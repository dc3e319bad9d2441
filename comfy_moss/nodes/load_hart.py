"""Load HART: the released folder from the models folders, with its text model."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..model.library import ModelFiles, find_hart, hart_folders, model_entries, text_models
from ..model.tensors import CheckpointError
from .load import AUTOMATIC, loaded, stamps
from .schema import Model, schema

FOLDER = "hart"
NONE = "none found"  # a menu may not be empty


def register_hart_folder() -> None:
    """Make models/hart known to the host; folders that the user added under that name stay."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)


def _entries(*names: str) -> dict[str, Path]:
    """Name in a menu -> everything below the models folders of these names."""
    found: dict[str, Path] = {}
    known = [name for name in names if name in folder_paths.folder_names_and_paths]
    for root in (Path(path) for name in known for path in folder_paths.get_folder_paths(name)):
        for path in model_entries([root]):
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def models() -> dict[str, Path]:
    """Name in the menu -> folder of a HART model."""
    entries = _entries(FOLDER)
    folders = hart_folders(list(entries.values()))
    return {name: path for name, path in entries.items() if path in folders}


def texts() -> dict[str, Path]:
    """Name in the menu -> folder that may hold the text model."""
    entries = _entries(FOLDER, "text_encoders")
    folders = text_models(list(entries.values()))
    return {name: path for name, path in entries.items() if path in folders}


def model_files(model: str, text_encoder: str) -> ModelFiles:
    """The files of a choice in the menus.

    Raises:
        CheckpointError: something is missing.
    """
    if (folder := models().get(model)) is None:
        raise CheckpointError(
            f"there is no HART model {model!r} in models/{FOLDER}; put the folder hart-0.7b-1024px (llm and tokenizer) there"
        )
    known = texts()
    if text_encoder != AUTOMATIC and text_encoder not in known:
        raise CheckpointError(f"{text_encoder} is no longer in models/{FOLDER} or models/text_encoders; choose another")
    return find_hart(folder, list(_entries(FOLDER, "text_encoders").values()), known.get(text_encoder))


class LoadHART(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_LoadHART",
            display_name="Load HART",
            description="Loads HART-0.7B with its text model and tokenizer. It draws 1024 x 1024 pictures; all other nodes work "
            "with it as with Infinity.",
            search_aliases=["hart", "VAR", "next-scale", "moss loader", "hybrid autoregressive"],
            inputs=[
                io.Combo.Input(
                    "model", options=[*models()] or [NONE],
                    tooltip="The folder hart-0.7b-1024px with llm, tokenizer and system_prompt.txt in it. Put it into "
                    "models/hart, then press R.",
                ),
                io.Combo.Input(
                    "text_encoder", options=[AUTOMATIC, *texts()],
                    tooltip="automatic finds the folder Qwen2-VL-1.5B-Instruct in models/hart or models/text_encoders.",
                ),
                io.Combo.Input(
                    "precision", options=["auto", "bf16", "fp32"],
                    tooltip="auto: bf16 where the device is fast in it, fp32 otherwise. bf16 halves memory; fp32 reproduces "
                    "pictures most exactly.",
                ),
                io.Boolean.Input(
                    "more_smooth", default=True,
                    tooltip="On: tokens are soft mixes of codes, as released. Off: single codes, sharper and rougher.",
                ),
                io.Boolean.Input(
                    "residual_diffusion", default=True,
                    tooltip="On: the finest scale's tokens get what codes cannot say, as released. Off: codes alone, a little "
                    "faster and less detailed.",
                ),
                io.Int.Input(
                    "last_scale_passes", default=1, min=1, max=8,
                    tooltip="In how many passes the last scale is drawn when it is drawn whole, each seeing the ones before. "
                    "1 as released; MoSs Refine always takes one.",
                ),
            ],
            outputs=[  # ids of their own: older hosts want them to differ from the inputs'
                Model.Output("loaded_model", display_name="model", tooltip="HART, for Infinity Draft."),
                io.Clip.Output("loaded_clip", display_name="clip", tooltip="The text model, for CLIP Text Encode."),
                io.Vae.Output("loaded_vae", display_name="vae", tooltip="The tokenizer's codec, for VAE Decode."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, model: str, text_encoder: str, **settings: object) -> str:
        """Changes when a file was replaced, so that it is loaded again."""
        try:
            return stamps(model_files(model, text_encoder))
        except (ValueError, OSError):
            return "missing"

    @classmethod
    def execute(
        cls, model: str, text_encoder: str, precision: str, more_smooth: bool, residual_diffusion: bool, last_scale_passes: int
    ) -> io.NodeOutput:
        settings = {"smooth": more_smooth, "residual": residual_diffusion, "passes": last_scale_passes}
        return loaded(model_files(model, text_encoder), precision, **settings)
