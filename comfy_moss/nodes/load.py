"""MoSs Load Infinity and MoSs Load HART: the embedded model, or files from the models folders.

Menus, checks and fingerprints are asked for at every turn, so they read the host's cached listings; nothing
is searched for, and of a file only its header is read, once, to tell what it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..model.catalog import is_whole_name, kind_of, model_entries
from ..model.checkpoint import RELEASED_VAES
from ..model.contents import CODEC, TEXT, TRANSFORMER
from ..model.family import BACKBONES, INFINITY
from ..model.graphs import with_graphs
from ..model.hart_checkpoint import AVERAGED, PARTS
from ..model.library import EMBEDDED, TEXT_ENCODER, ModelFiles, assemble, find_hart, find_model
from ..model.tensors import CheckpointError
from ..model.text import QWEN, text_width
from ..ops import choose
from .host import InfinityCLIP, InfinityVAE, MossModel, is_roomy, log, manage
from .layers import NAMED, precision_of
from .wires import Model, MossNode, schema

NANO = "nano (embedded)"
AUTOMATIC = "automatic"
NONE = "none found"  # a menu may not be empty
FULL, INT8 = "full", "8 bits"  # of the KV cache
HART = "hart"
OURS = "infinity"
INFINITY_FOLDERS = {
    "transformer": (OURS, "diffusion_models", "checkpoints"),
    "vae": (OURS, "vae"),
    "text": (OURS, "text_encoders"),
}
HART_MODELS = (HART, "diffusion_models", "checkpoints")
HART_FOLDERS = (*HART_MODELS, "text_encoders")
HERE = "models/hart"  # in the menu: the released folder's contents lie there themselves
KINDS = {"transformer": TRANSFORMER, "vae": CODEC}
PRECISION = (
    "auto: what ComfyUI would choose on this device, as a rule bf16 where it is fast, else fp16 or fp32. "
    "bf16 and fp16 halve memory; fp32 reproduces pictures most exactly."
)
T5_WIDTH = 2048  # of flan-t5-xl; other people's T5 encoders lie in the same folders
CONFIG = "config.json"
VAE_STEMS = {Path(name).stem for name in (*RELEASED_VAES.values(), EMBEDDED.vae)}


# --- what lies in the models folders ------------------------------------------------------------------------


def register_folders() -> None:
    """Make models/infinity and models/hart known to the host; folders that the user added under those names
    stay.
    """
    for name in (OURS, HART):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name), is_default=True)


def known(*kinds: str) -> list[str]:
    """Those of the host's kinds of models folders that it has."""
    return [kind for kind in kinds if kind in folder_paths.folder_names_and_paths]


def listed(kind: str) -> tuple[str, ...]:
    """Paths below the folders of a kind, as the host has listed them, higher first; of other folders than
    ours only weights.
    """
    return higher_first(tuple(folder_paths.get_filename_list(kind)))


@lru_cache(maxsize=16)  # of listings, which seldom change, while a menu is asked for at every turn
def higher_first(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted((path.replace(os.sep, "/") for path in paths), key=lambda path: path.count("/")))


def roots(*kinds: str) -> list[Path]:
    """The folders of some kinds."""
    return [Path(path) for kind in known(*kinds) for path in folder_paths.get_folder_paths(kind)]


def located(name: str, *kinds: str) -> Path | None:
    """Where a listed file, or a folder of listed files, is."""
    return next((path for root in roots(*kinds) if (path := root / name).exists()), None)


def parent(path: str) -> str:
    return path.rpartition("/")[0]


def text_folders(kind: str, wanted: str = "") -> list[str]:
    """Folders below those of a kind that have a config.json, and `wanted` in their path."""
    names = folders(listed(kind), wanted)
    return [name for name in names if folder_paths.get_full_path(kind, f"{name}/{CONFIG}")]


@lru_cache(maxsize=16)
def folders(paths: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """Folders of listed files with `wanted` in their path; of those with a config.json among the files only
    these.
    """
    inside = dict.fromkeys(parent(path) for path in paths if wanted in path and "/" in path)
    configs = {parent(path) for path in paths if path.endswith(f"/{CONFIG}")}
    return tuple(name for name in inside if name in configs or not configs)


def choices(part: str) -> list[str]:
    """Names in the menu of everything that is a "transformer", a "vae" or a "text" encoder, by its content.
    """
    kinds = known(*INFINITY_FOLDERS[part])
    if part == "text":
        named = (name for kind in kinds for name in (*text_folders(kind), *text_files(kind)))
        return [*dict.fromkeys(named)]
    found = (weights(listed(kind), kind, tuple(roots(kind)), part) for kind in kinds)
    return [*dict.fromkeys(name for names in found for name in names)]


def text_files(kind: str) -> list[str]:
    """T5 encoders in a single file below the folders of a kind, as wide as flan-t5-xl."""
    whole = text_folders(kind)
    names = [name for name in listed(kind) if "t5" in name.lower() and name.endswith(".safetensors")]
    found = [name for name in names if parent(name) not in whole and is_whole_name(name.rpartition("/")[2])]
    return [name for name in found if (path := located(name, kind)) and is_flan(path)]


def is_flan(file: Path) -> bool:
    """Whether a file is a T5 encoder as wide as flan-t5-xl."""
    return kind_of(file) == TEXT and text_width(file) == T5_WIDTH


def is_part(part: str, kind: str, name: str) -> bool:
    """Whether a weight file is a "transformer" or a "vae"; one that cannot be read is told by its name."""
    base = name.rpartition("/")[2].lower()
    ours = OURS in base or "vae" in base
    if (
        not ours
        and not base.endswith(".safetensors")
        and (kind not in (OURS, "vae") or base.endswith(".bin"))
    ):
        return False  # other people's checkpoints, and shards of text encoders: slow to look into
    content = kind_of(path) if (path := located(name, kind)) else None
    if content is not None:
        return content == KINDS[part]
    return (kind == OURS or OURS in base or part == "vae") and ("vae" in base) == (part == "vae")


@lru_cache(maxsize=16)
def weights(paths: tuple[str, ...], kind: str, places: tuple[Path, ...], part: str) -> tuple[str, ...]:
    """Listed weights that are such a part; folders of shards as one, without those of text encoders.

    Args:
        places: the folders that the paths are listed in.
    """
    shards = {parent(path) for path in paths if path.endswith(".index.json")} - {""}
    texts = {parent(path) for path in paths if path.endswith(f"/{CONFIG}")}
    files = [
        path
        for path in paths
        if is_whole_name(path.rpartition("/")[2]) and parent(path) not in shards | texts
    ]
    return tuple(name for name in (*files, *sorted(shards - texts)) if is_part(part, kind, name))


def chosen(part: str, name: str) -> Path | None:
    """Where a choice in the menu is; None = automatic.

    Raises:
        CheckpointError: it is gone.
    """
    kinds = INFINITY_FOLDERS[part]
    if name == AUTOMATIC:
        return None
    if name not in choices(part) or (path := located(name, *kinds)) is None:
        places = " or ".join(kinds)
        raise CheckpointError(
            f"{name[:100]} is no longer in the folder {places} of your models; choose another file"
        )
    return path


def stamps(kinds: tuple[str, ...], belongs: Callable[[str], bool]) -> list[tuple[str, int, int]]:
    """Path, time and size of the listed files that belong to a choice, and of those beside a config.json:
    differs when one of
    them was replaced, in place as well."""
    paths = [(kind, path) for kind in known(*kinds) for path in listed(kind) if belongs(path)]
    found = {full: None for kind, path in paths if (full := folder_paths.get_full_path(kind, path))}
    folders = {os.path.dirname(path) for path in found}
    whole = [folder for folder in folders if os.path.exists(os.path.join(folder, CONFIG))]
    inside = [entry.path for folder in whole for entry in os.scandir(folder) if entry.is_file()]
    told = {path: os.stat(path) for path in sorted({*found, *inside})}
    return [(path, stamp.st_mtime_ns, stamp.st_size) for path, stamp in told.items()]


def below(name: str) -> Callable[[str], bool]:
    """Whether a path is the file `name`, or lies in the folder of that name."""
    return lambda path: not name or path == name or path.startswith(f"{name}/")


# --- loading ------------------------------------------------------------------------------------------------


def infinity_files(model: str, vae: str, text_encoder: str, family: str = AUTOMATIC) -> ModelFiles:
    """The files of a choice in the menus.

    Raises:
        CheckpointError: something is missing, or the embedded model was given foreign parts.
    """
    if model == NANO:
        if (vae, text_encoder) != (AUTOMATIC, AUTOMATIC):
            raise CheckpointError(
                "the embedded nano model brings its own VAE and text encoder; set both to automatic"
            )
        if family not in (AUTOMATIC, INFINITY):
            raise CheckpointError(f"the embedded nano model is no {family}; set family to automatic")
        return find_model("nano", [])
    everywhere = roots(*dict.fromkeys(kind for kinds in INFINITY_FOLDERS.values() for kind in kinds))
    parts = (chosen("transformer", model), chosen("vae", vae), chosen("text", text_encoder))
    return assemble(*parts, everywhere, None if family == AUTOMATIC else family)


def infinity_stamps(model: str, vae: str, text_encoder: str) -> str:
    """Changes when a file of a choice was replaced; what is found automatically is known by its name, or lies
    beside.
    """
    beside = below(parent(model)) if "/" in model else lambda path: path.startswith("text/")
    vaes = (
        below(vae)
        if vae != AUTOMATIC
        else lambda path: path.rpartition("/")[2].rpartition(".")[0] in VAE_STEMS
    )
    texts = (
        below(text_encoder)
        if text_encoder != AUTOMATIC
        else lambda path: TEXT_ENCODER in path or beside(path)
    )
    parts = {"transformer": below(model), "vae": vaes, "text": texts}
    found = [stamps(INFINITY_FOLDERS[part], belongs) for part, belongs in parts.items()]
    return repr(found) if found[0] else "missing"


def kv_cache_input() -> io.Combo.Input:
    """How keys and values of drawn tokens are held."""
    return io.Combo.Input(
        "kv_cache", options=[FULL, INT8], default=FULL, optional=True, extra_dict={"advanced": True},
        tooltip="What is remembered of drawn tokens. 8 bits takes half the memory of bf16 and changes "
        "pictures slightly: for cards that run out of memory.",
    )


def loaded(files: ModelFiles, precision: str, **settings: Any) -> io.NodeOutput:
    """Model, text encoder and VAE as the nodes of the pack and of the host take them.

    Args:
        settings: of the model itself, fields of its backbone.
    """
    (dtype, layers), device = precision_of(precision, files), mm.get_torch_device()
    backbone = files.load(mm.unet_offload_device(), dtype, layers)
    kernels, reason = choose("auto", device)
    backbone = replace(backbone, kernels=kernels, **settings)
    backbone, why = with_graphs(backbone, device, spare_memory=is_roomy(backbone.transformer, device))
    log.info(f"MoSs: attention and RoPE of {files.told}: {reason}; {why}")
    words = Path(comfy.sd.__file__).parent / "text_encoders" / "t5_tokenizer"  # the host's own
    text = files.load_text(mm.text_encoder_offload_device(), dtype, words, comfy.ops.manual_cast)
    clip, codec = InfinityCLIP(text), InfinityVAE(backbone.vae, kernels)
    still = backbone.graphs is not None
    patcher = manage(backbone.transformer, device, mm.unet_offload_device(), still)
    return io.NodeOutput(MossModel(backbone, files, patcher, codec.patcher), clip, codec)


class LoadInfinity(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_LoadInfinity",
            display_name="MoSs Load Infinity",
            description="Loads an Infinity model with its text encoder and VAE. The small model nano is "
            "built in, so a fresh install draws at once.",
            search_aliases=["infinity", "VAR", "next-scale", "moss loader", "nano"],
            inputs=[
                io.Combo.Input(
                    "model", options=[NANO, *choices("transformer")],
                    tooltip="The transformer. nano is built in and draws coloured shapes, at 256 x 256 or "
                    "with area 1M at 512 x 512. Put others into models/diffusion_models (or "
                    "models/infinity), for example infinity_2b_reg.pth, then press R.",
                ),
                io.Combo.Input(
                    "vae", options=[AUTOMATIC, *choices("vae")],
                    tooltip="automatic finds the VAE that belongs to the model (for 2B: "
                    "infinity_vae_d32reg.pth) in models/vae or models/infinity. A VAE of another model is "
                    "refused.",
                ),
                io.Combo.Input(
                    "text_encoder", options=[AUTOMATIC, *choices("text")],
                    tooltip="automatic finds flan-t5-xl in models/text_encoders or models/infinity: the "
                    "whole folder, or its encoder in one file (fp16 or fp8).",
                ),
                io.Combo.Input(
                    "precision", options=["auto", *NAMED],
                    tooltip=PRECISION,
                ),
                io.Combo.Input(
                    "family", options=[AUTOMATIC, *BACKBONES], default=AUTOMATIC, optional=True,
                    tooltip="What the transformer is. automatic goes by what the file says of itself, then "
                    "by its name; VAREdit's files cannot be told from Infinity's otherwise.",
                ),
                kv_cache_input(),
            ],
            outputs=[  # ids of their own: older hosts want them to differ from the inputs'
                Model.Output("loaded_model", display_name="model", tooltip="Infinity, for MoSs Draft."),
                io.Clip.Output(
                    "loaded_clip", display_name="clip", tooltip="The text encoder, for CLIP Text Encode."
                ),
                io.Vae.Output("loaded_vae", display_name="vae", tooltip="The VAE, for VAE Decode."),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls, model: str, vae: str, text_encoder: str, precision: str, family: str = AUTOMATIC,
        kv_cache: str = FULL,
    ) -> str:
        """Changes when a file was replaced, so that it is loaded again."""
        return NANO if model == NANO else infinity_stamps(model, vae, text_encoder)

    @classmethod
    def execute(
        cls, model: str, vae: str, text_encoder: str, precision: str, family: str = AUTOMATIC,
        kv_cache: str = FULL,
    ) -> io.NodeOutput:
        files = infinity_files(model, vae, text_encoder, family)
        return loaded(files, precision, int8_cache=kv_cache == INT8)


def hart_folders() -> list[str]:
    """The folders that hold a HART model, below those of the host; HERE = one of those itself."""
    found: set[str] = set()
    for kind in known(*HART_MODELS):
        paths = [f"/{path}" for path in listed(kind)]
        inside = [{p.partition(f"/{part}/")[0][1:] for p in paths if f"/{part}/" in p} for part in PARTS]
        found |= {name or HERE for name in set.intersection(*inside)}
    return sorted(found)


def hart_weights() -> list[str]:
    """Names in the menu: the weights of every HART model, since the host looks for files that are missing."""
    found = []
    for name in hart_folders():
        inside = "" if name == HERE else f"{name}/"
        weights = (f"{inside}llm/{file}" for file in AVERAGED)
        found.append(next((path for path in weights if located(path, *HART_MODELS)), name))
    return found


def hart_folder_of(model: str) -> str:
    """The folder of a choice in the menu; earlier workflows name the folder itself."""
    return model.partition("/llm/")[0] if "/llm/" in model else HERE if model.startswith("llm/") else model


def hart_texts() -> list[str]:
    """Names in the menu of the folders that may hold the text model."""
    return [*dict.fromkeys(name for kind in known(*HART_FOLDERS) for name in text_folders(kind, QWEN))]


def hart_files(model: str, text_encoder: str) -> ModelFiles:
    """The files of a choice in the menus.

    Raises:
        CheckpointError: something is missing.
    """
    model = hart_folder_of(model)
    name = "" if model == HERE else model
    if model not in hart_folders() or (folder := located_hart(name)) is None:
        raise CheckpointError(
            f"there is no HART model {model[:100]!r} in models/{HART}, models/diffusion_models or "
            "models/checkpoints; put the folder hart-0.7b-1024px (llm and tokenizer) into one of them"
        )
    if text_encoder != AUTOMATIC and text_encoder not in hart_texts():
        raise CheckpointError(
            f"{text_encoder[:100]} is no longer in models/{HART} or models/text_encoders; choose another"
        )
    text = None if text_encoder == AUTOMATIC else located(text_encoder, *HART_FOLDERS)
    return find_hart(folder, model_entries(roots(*HART_FOLDERS)), text)


def located_hart(name: str) -> Path | None:
    """Where the folder of a HART model is."""
    places = [root / name for root in roots(*HART_MODELS)]
    return next((place for place in places if all((place / part).is_dir() for part in PARTS)), None)


class LoadHART(MossNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="MoSs_LoadHART",
            display_name="MoSs Load HART",
            description="Loads HART-0.7B with its text model and tokenizer. It draws 1024 x 1024 pictures; "
            "all other nodes work with it as with Infinity.",
            search_aliases=["hart", "VAR", "next-scale", "moss loader", "hybrid autoregressive"],
            inputs=[
                io.Combo.Input(
                    "model", options=hart_weights() or [NONE],
                    tooltip="HART's weights, in the folder hart-0.7b-1024px with llm, tokenizer and "
                    "system_prompt.txt in it. Put that into models/hart or models/diffusion_models, then "
                    "press R.",
                ),
                io.Combo.Input(
                    "text_encoder", options=[AUTOMATIC, *hart_texts()],
                    tooltip="automatic finds the folder Qwen2-VL-1.5B-Instruct in models/hart or "
                    "models/text_encoders.",
                ),
                io.Combo.Input(
                    "precision", options=["auto", *NAMED],
                    tooltip=PRECISION,
                ),
                io.Boolean.Input(
                    "more_smooth", default=True,
                    tooltip="On: tokens are soft mixes of codes, as released. Off: single codes, sharper "
                    "and rougher.",
                ),
                io.Boolean.Input(
                    "residual_diffusion", default=True,
                    tooltip="On: the finest scale's tokens get what codes cannot say, as released. Off: "
                    "codes alone, a little faster and less detailed.",
                ),
                io.Int.Input(
                    "last_scale_passes", default=1, min=1, max=8,
                    tooltip="In how many passes the last scale is drawn when it is drawn whole, each seeing "
                    "the ones before. 1 as released; MoSs Refine always takes one.",
                ),
                kv_cache_input(),
            ],
            outputs=[  # ids of their own: older hosts want them to differ from the inputs'
                Model.Output("loaded_model", display_name="model", tooltip="HART, for MoSs Draft."),
                io.Clip.Output(
                    "loaded_clip", display_name="clip", tooltip="The text model, for CLIP Text Encode."
                ),
                io.Vae.Output(
                    "loaded_vae", display_name="vae", tooltip="The tokenizer's codec, for VAE Decode."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool:
        """Whatever is named: earlier workflows name the folder, and what is gone is told by the loader."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str, text_encoder: str, **settings: object) -> str:
        """Changes when a file was replaced, so that it is loaded again."""
        texts = below(text_encoder) if text_encoder != AUTOMATIC else lambda path: QWEN in path
        model = hart_folder_of(model)
        files = stamps(HART_MODELS, below("" if model == HERE else model))
        return repr([files, stamps(HART_FOLDERS, texts)]) if files else "missing"

    @classmethod
    def execute(
        cls, model: str, text_encoder: str, precision: str, more_smooth: bool, residual_diffusion: bool,
        last_scale_passes: int, kv_cache: str = FULL,
    ) -> io.NodeOutput:
        settings = {"smooth": more_smooth, "residual": residual_diffusion, "passes": last_scale_passes}
        settings |= {"int8_cache": kv_cache == INT8}
        return loaded(hart_files(model, text_encoder), precision, **settings)
