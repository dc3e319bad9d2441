"""The smallest stand-in for ComfyUI's modules in which comfy_moss.nodes can be imported and run.

It proves nothing about ComfyUI.  It exists so that our own logic and what our schemas say are tested on
machines without a host; whether a real one agrees is for the tests marked `host`.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
OUTPUT = {"tooltip", "display_name"}
INPUT = {"tooltip", "display_name", "optional"}
WIDGETS = {
    "Int": {"default", "min", "max", "step", "control_after_generate"},
    "Float": {"default", "min", "max", "step", "display_mode"},
    "String": {"default"},
    "Boolean": {"default"},
    "Combo": {"default", "options", "extra_dict"},
}


class Interrupted(BaseException):
    """The artist cancelled."""


@dataclass
class Socket:
    """An input or output of a schema.  `settings` are those that its kind allows."""

    kind: str
    id: str
    settings: dict[str, Any]

    @property
    def widget(self) -> bool:
        return self.kind in WIDGETS

    @property
    def default(self) -> Any:
        """What a fresh node shows."""
        return self.settings.get("default", self.settings.get("options", [None])[0])

    @property
    def optional(self) -> bool:
        return self.settings.get("optional", False)

    def get_io_type(self) -> str:
        return self.kind.upper()

    def __getattr__(self, name: str) -> Any:
        """Its settings: min, max, options."""
        try:
            return self.__dict__["settings"][name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Schema:
    """The fields of the host's schema that this pack uses."""

    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Socket]
    outputs: list[Socket]
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    has_intermediate_output: bool = False
    hidden: list[str] = field(default_factory=list)


class NodeOutput:
    def __init__(self, *result: Any, ui: Any = None) -> None:
        self.result, self.ui = result, ui


class Patcher:
    """A handle on a module."""

    def __init__(self, model: nn.Module, load_device: torch.device, offload_device: torch.device) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.callbacks: list[tuple[str, Callable]] = []
        self.patches: list[tuple[dict[str, Any], float]] = []

    def add_callback(self, kind: str, callback: Callable) -> None:
        self.callbacks.append((kind, callback))

    def clone(self) -> Patcher:
        cloned = copy(self)
        cloned.callbacks, cloned.patches = list(self.callbacks), list(self.patches)
        return cloned

    def add_patches(self, patches: dict[str, Any], strength: float) -> None:
        """Remembered, not applied."""
        self.patches.append((patches, strength))

    def detach(self, unpatch_all: bool = True) -> None:
        """Unload; or, not `unpatch_all`, let go of the handle alone because the model is about to be loaded
        again.
        """
        for kind, callback in self.callbacks:
            if kind == "detach":
                callback(self, unpatch_all)


class CLIP:
    """Text to conditioning, in the steps of CLIP Text Encode."""

    def __init__(self, no_init: bool = False) -> None:
        pass

    def clone(self) -> CLIP:
        copied = CLIP(no_init=True)
        copied.__dict__.update(self.__dict__, patcher=self.patcher.clone())
        return copied

    def load_model(self, tokens: Any) -> Patcher:
        sys.modules["comfy.model_management"].load_models_gpu([self.patcher], memory_required=0)
        return self.patcher

    def encode(self, text: str) -> list[list[Any]]:
        self.cond_stage_model.reset_clip_options()
        tokens = self.tokenizer.tokenize_with_weights(text, False)
        self.load_model(tokens)
        self.cond_stage_model.set_clip_options({"execution_device": self.patcher.load_device})
        features, pooled, more = self.cond_stage_model.encode_token_weights(tokens)
        return [[features, {"pooled_output": pooled, **more}]]


class VAE:
    """Pictures and latents, in the steps of VAE Decode and VAE Encode."""

    def decode(self, samples: Tensor, vae_options: dict[str, Any] = {}) -> Tensor:  # noqa: B006, as the host
        sys.modules["comfy.model_management"].load_models_gpu(
            [self.patcher], force_full_load=self.disable_offload
        )
        ready = samples.to(self.device, self.vae_dtype)
        pixels = self.first_stage_model.decode(ready, **vae_options).to(self.output_device, torch.float32)
        self.process_output(pixels)
        return pixels.movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        sys.modules["comfy.model_management"].load_models_gpu(
            [self.patcher], force_full_load=self.disable_offload
        )
        ready = self.process_input(pixels.movedim(-1, 1)).to(self.device, self.vae_dtype)
        return self.first_stage_model.encode(ready).to(self.output_device, torch.float32)


@dataclass
class FakeHost:
    """What a test sees of it.

    Attributes:
        models: the models folder.
        loads: (handles, keyword arguments) of every request to load models.
        loaded: handles whose models are on the device.
        args: the host's command line; the page's setting of previews changes it too.
        progress: (done, total, picture or None) of every step of a progress bar.
        interrupted: whether the artist has cancelled.
        memory: bytes of the device.
        nodes: node id -> class.
    """

    models: Path
    loads: list[tuple[list[Patcher], dict[str, Any]]] = field(default_factory=list)
    loaded: list[Patcher] = field(default_factory=list)
    args: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(preview_method="auto"))
    progress: list[tuple[int, int, Any]] = field(default_factory=list)
    interrupted: bool = False
    memory: float = 2.0**40
    nodes: dict[str, Any] = field(default_factory=dict)

    def start(self, package: str = "comfy_moss") -> FakeHost:
        """Load the pack's nodes, as the host does once."""
        extension = importlib.import_module(f"{package}.nodes")
        nodes = asyncio.run(_nodes_of(extension.comfy_entrypoint))
        self.nodes = {node.define_schema().node_id: node for node in nodes}
        return self

    def run(self, node_id: str, within: tuple[dict, str] | None = None, **inputs: Any) -> NodeOutput:
        """Run a node as the host does: a clone of its class; required widgets not given have their defaults.

        Args:
            within: the graph as it was queued, and the node's name in it, for nodes that ask for these.

        Raises:
            TypeError: an input that the node does not have, or a required one missing.
        """
        sockets = {socket.id: socket for socket in self.nodes[node_id].define_schema().inputs}
        shown = {name: socket for name, socket in sockets.items() if socket.widget and not socket.optional}
        values = {name: socket.default for name, socket in shown.items()} | inputs
        required = {name for name, socket in sockets.items() if not socket.settings.get("optional")}
        if not required <= values.keys() <= sockets.keys():
            raise TypeError(f"{node_id} has the inputs {', '.join(sockets)}; got {', '.join(values)}")
        graph, name = within or (None, None)
        hidden = SimpleNamespace(prompt=graph, unique_id=name)
        node = type(node_id, (self.nodes[node_id],), {"hidden": hidden})
        with torch.inference_mode():
            return _locked(node).execute(**values)

    def load(self, patchers: list[Patcher], **options: Any) -> None:
        """`load_models_gpu`: models that are loaded already are detached and put back, as the host does."""
        self.loads.append((patchers, options))
        for again in [one for one in self.loaded if one.model in [patcher.model for patcher in patchers]]:
            self.loaded.remove(again)
            again.detach(unpatch_all=False)
        self.loaded += patchers

    def free(self, *kept: Patcher) -> None:
        """Unload everything else, as the host does when memory is short or the artist asks for it."""
        for patcher in [one for one in self.loaded if one not in kept]:
            self.loaded.remove(patcher)
            patcher.detach()

    def partially_unload(self, patcher: Patcher) -> None:
        """Some weights go to memory.  The host tells nobody: no callback, and the model counts as loaded."""

    def interrupt_check(self) -> None:
        if self.interrupted:
            raise Interrupted


def _locked(node: type) -> type:
    """What the host runs instead of a node's class: a copy of a copy, of which nothing can be changed."""

    class Locked(type(node)):
        def __setattr__(cls, name: str, value: Any) -> None:
            raise AttributeError(f"cannot modify class attribute {name!r} on locked class {cls.__name__!r}")

    bases = (node, *node.__bases__)
    clone = type(f"{node.__name__}Clone", bases, dict(vars(node)))
    return Locked(clone.__name__, bases, dict(vars(clone)))


async def _nodes_of(entrypoint: Callable) -> list[Any]:
    return await (await entrypoint()).get_node_list()


def _socket(kind: str, allowed: set[str], id: str, **settings: Any) -> Socket:
    if unknown := settings.keys() - allowed:
        raise TypeError(f"{kind} does not know {', '.join(unknown)}")
    return Socket(kind, id, settings)


def _kind(name: str) -> SimpleNamespace:
    """io.Image and its like."""
    inputs = INPUT | WIDGETS.get(name, set())
    return SimpleNamespace(Input=partial(_socket, name, inputs), Output=partial(_socket, name, OUTPUT))


def _api() -> dict[str, Any]:
    kinds = {
        name: _kind(name) for name in (*WIDGETS, "Image", "Mask", "Latent", "Conditioning", "Clip", "Vae")
    }
    io = SimpleNamespace(
        Schema=Schema, NodeOutput=NodeOutput, ComfyNode=type("ComfyNode", (), {"hidden": None}), Custom=_kind,
        Hidden=SimpleNamespace(unique_id="unique_id", prompt="prompt"),
        NumberDisplay=SimpleNamespace(slider="slider"), FolderType=SimpleNamespace(temp="temp"), **kinds,
    )
    ui = SimpleNamespace(
        ImageSaveHelper=SimpleNamespace(
            save_images=lambda images, prefix, folder, cls: [
                {"filename": f"{prefix}_{n}.png"} for n in range(len(images))
            ]
        ),
        PreviewText=lambda text: {"text": (text,)},
    )
    return {
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ui": ui, "ComfyExtension": type("ComfyExtension", (), {})},
    }


def _comfy(host: FakeHost) -> dict[str, Any]:
    devices = (
        "get_torch_device", "unet_offload_device", "vae_device", "vae_offload_device", "intermediate_device",
        "text_encoder_device", "text_encoder_offload_device",
    )
    management = {name: lambda: CPU for name in devices} | {
        "unet_dtype": lambda device, model_params, supported: torch.float32,
        "unet_manual_cast": lambda stored, device, supported: None,
        "vae_dtype": lambda device, allowed: torch.float32,
        "dtype_size": lambda dtype: dtype.itemsize,
        "load_models_gpu": host.load,
        "unload_all_models": host.free,
        "soft_empty_cache": lambda: None,
        "get_total_memory": lambda device: host.memory,
        "throw_exception_if_processing_interrupted": lambda: host.interrupt_check(),
    }

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, done: int, total: int | None = None, preview: Any = None) -> None:
            host.progress.append((done, self.total, preview))

    return {
        "comfy": {},
        "comfy.model_management": management,
        "comfy.model_patcher": {"ModelPatcher": Patcher},
        "comfy.ops": {"pick_operations": lambda stored, compute, device: nn, "manual_cast": nn},
        "comfy.patcher_extension": {"CallbacksMP": SimpleNamespace(ON_DETACH="detach")},
        "comfy.sd": {"CLIP": CLIP, "VAE": VAE, "__file__": str(host.models.parent / "comfy" / "sd.py")},
        "comfy.cli_args": {
            "LatentPreviewMethod": SimpleNamespace(NoPreviews="none", TAESD="taesd"), "args": host.args
        },
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.lora": {"load_lora": lambda lora, keys: {keys[layer]: layer for layer in keys}},
        "comfy.hooks": {"EnumHookMode": SimpleNamespace(MinVram="minvram")},
    }


def _folders(models: Path) -> dict[str, Any]:
    """The host's folder_paths.  Listings are made anew at each call, where the host keeps them."""
    weights = {".safetensors", ".pth", ".pt", ".bin"}
    kinds = ("vae", "text_encoders", "vae_approx", "loras")
    known = {name: ([str(models / name)], weights) for name in kinds}

    def add(name: str, folder: str, is_default: bool = False) -> None:
        known.setdefault(name, ([], set()))[0].insert(0, folder)

    def listing(name: str) -> list[str]:
        folders, suffixes = known[name]
        files = [(file, folder) for folder in folders for file in Path(folder).rglob("*") if file.is_file()]
        return sorted(
            {
                str(file.relative_to(folder))
                for file, folder in files
                if not suffixes or file.suffix in suffixes
            }
        )

    def full(name: str, file: str) -> str | None:
        return next(
            (path for folder in known[name][0] if os.path.isfile(path := os.path.join(folder, file))), None
        )

    folder_paths = {
        "models_dir": str(models), "folder_names_and_paths": known, "add_model_folder_path": add,
        "get_folder_paths": lambda name: list(known[name][0]), "get_filename_list": listing,
        "get_full_path": full,
    }
    return {"folder_paths": folder_paths}


def _ours(name: str) -> bool:
    """Whether a module is a stand-in, or was imported on top of one."""
    return name.split(".")[0] in ("comfy", "comfy_api", "folder_paths") or name.startswith("comfy_moss.nodes")


@contextmanager
def installed(folder: Path) -> Iterator[FakeHost]:
    """Put the stand-in into sys.modules, and take it and comfy_moss.nodes out again.

    Args:
        folder: for models/.
    """
    host = FakeHost(folder / "models")
    for name, members in (_api() | _comfy(host) | _folders(host.models)).items():
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(members)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield host
    finally:
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]
        if package := sys.modules.get("comfy_moss"):
            vars(package).pop("nodes", None)
