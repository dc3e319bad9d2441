"""Files as people really have them: what trainers write, how the hub and the host lay them out.

`WRAPPERS` are the ways in which one and the same weights are found; each takes a flat dictionary and gives
what is saved.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import released_state, released_vae_state, tiny_text_dir, tiny_transformer, tiny_vae
from hart_builders import write_hart_model
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def noise_like(state: State) -> State:
    """Other weights of the same names: what should not be taken."""
    return {name: torch.full_like(tensor, 7) for name, tensor in state.items()}


def optimizer_state(state: State) -> dict[str, Any]:
    """As torch's AdamW saves it, numbered and not named."""
    moments = {
        n: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(t)} for n, t in enumerate(state.values())
    }
    return {
        "state": moments,
        "param_groups": [{"lr": np.float64(1e-4), "betas": (0.9, 0.95), "params": list(moments)}],
    }


def infinity_trainer(state: State, **weights: State | None) -> dict[str, Any]:
    """As Infinity's train.py writes `ar-ckpt-*.pth`: arguments with numbers of numpy, the codec, and the
    weights.
    """
    trainer = {
        "config": {"label_smooth": 0.0, "prog_it": np.int64(0)},
        "vae_local": released_vae_state(tiny_vae(seed=8)),
    }
    trainer |= weights or {"gpt_fsdp": state}
    trainer["gpt_fsdp_opt" if "gpt_fsdp" in trainer else "gpt_opt"] = optimizer_state(state)
    args = {
        "tblr": 1e-4,
        "grad_boom": np.float64(1.7),
        "dtype": np.dtype("float32"),
        "seed": np.int64(0),
        "cur_it": "12/40",
        "device": torch.device("cpu"),
        "tp": np.float32(0.5),
        "log_txt_path": pathlib.PurePosixPath("/data/log.txt"),
    }
    return {
        "args": args,
        "gpt_training": True,
        "arch": "infinity_2b",
        "epoch": 3,
        "iter": 12,
        "trainer": trainer,
        "acc_str": "[no]",
        "milestones": [(1, 2.5)],
    }


def lightning(state: State) -> dict[str, Any]:
    """A module called `model`, its loss, loops, callbacks and hyperparameters."""
    weights = prefixed(state, "model.") | {"loss.discriminator.weight": torch.zeros(2)}
    return {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(weights),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best": pathlib.PurePosixPath("a.ckpt")}},
        "optimizer_states": [optimizer_state(state)],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": argparse.Namespace(lr=np.float32(1e-4)),
    }


def deepspeed(state: State) -> dict[str, Any]:
    """`mp_rank_00_model_states.pt`."""
    return {
        "module": OrderedDict(state),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [{"a": torch.Size([2])}],
        "ds_config": {"zero_optimization": {"stage": 1}},
        "ds_version": "0.15.1",
        "global_steps": 10,
        "dp_world_size": 8,
    }


def litema(state: State) -> State:
    """Averages under names without dots, beside the raw weights."""
    averages = {"model_ema." + name.replace(".", ""): tensor for name, tensor in state.items()}
    return prefixed(noise_like(state), "model.") | averages | {"model_ema.decay": torch.tensor(0.999)}


def compiled(state: State) -> State:
    """Every block compiled on its own."""
    return {
        name.replace(".sa.", "._orig_mod.sa.").replace(".ffn.", "._orig_mod.ffn."): t
        for name, t in state.items()
    }


def fsdp(state: State) -> State:
    """The wrapper of every level left in the names."""
    inner = {
        name.replace(".sa.", "._fsdp_wrapped_module._checkpoint_wrapped_module.sa."): t
        for name, t in state.items()
    }
    return prefixed(inner, "_fsdp_wrapped_module.")


WRAPPERS: dict[str, Callable[[State], Any]] = {
    "Infinity's trainer": infinity_trainer,
    "Infinity's trainer, without FSDP": lambda s: infinity_trainer(s, gpt_wo_ddp=s),
    "Infinity's trainer, averaged for pictures": lambda s: infinity_trainer(
        s, gpt_wo_ddp=noise_like(s), gpt_ema_for_vis=s
    ),
    "Infinity's trainer, averaged, with FSDP": lambda s: infinity_trainer(
        s, gpt_fsdp=noise_like(s), gpt_ema_fsdp=s
    ),
    "Infinity's trainer, averages not there yet": lambda s: infinity_trainer(
        s, gpt_fsdp=s, gpt_ema_fsdp=None
    ),
    "DDP": lambda s: prefixed(s, "module."),
    "torch.compile": lambda s: prefixed(s, "_orig_mod."),
    "torch.compile in DDP": lambda s: prefixed(s, "module._orig_mod."),
    "DDP in torch.compile": lambda s: prefixed(s, "_orig_mod.module."),
    "torch.compile, block by block": compiled,
    "FSDP with its wrappers": fsdp,
    "a class with a model in it": lambda s: prefixed(s, "model."),
    "a trainer with a gpt in it": lambda s: prefixed(s, "gpt."),
    "state_dict": lambda s: {"state_dict": s, "epoch": 1},
    "model_state_dict": lambda s: {
        "model_state_dict": s,
        "optimizer_state_dict": optimizer_state(s),
        "loss": np.float64(1),
    },
    "model": lambda s: {"model": s, "optimizer": optimizer_state(s)},
    "module": lambda s: {"module": s},
    "ema": lambda s: {"ema": s},
    "ema beside model": lambda s: {"model": noise_like(s), "ema": s},
    "ema_model beside model, in DDP": lambda s: {
        "model": prefixed(noise_like(s), "module."),
        "ema_model": prefixed(s, "module."),
    },
    "model_ema beside model, by prefix": lambda s: (
        prefixed(noise_like(s), "model.") | prefixed(s, "model_ema.")
    ),
    "timm": lambda s: {"state_dict": noise_like(s), "state_dict_ema": s, "args": argparse.Namespace(lr=1.0)},
    "torch.optim.swa_utils": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(5)},
    "averaged_model": lambda s: {"model": noise_like(s), "averaged_model": s},
    "shadow": lambda s: {"model": noise_like(s), "optimizer": {}, "shadow": s, "decay": 0.999},
    "EMA as Lightning's callback keeps it": lambda s: {
        "state_dict": noise_like(s),
        "callbacks": {"EMA": {"ema_weights": s}},
    },
    "LitEma": litema,
    "Lightning": lightning,
    "DeepSpeed": deepspeed,
    "two levels": lambda s: {"checkpoint": {"model": s}},
    "defaultdict": lambda s: defaultdict(int, s),
    "with an average of three tensors": lambda s: {"model": s, "ema": dict(list(s.items())[:3])},
}

DATA: dict[str, Any] = {
    "numpy.float64": np.float64(1.5),
    "numpy.float32": np.float32(1.5),
    "numpy.int64": np.int64(3),
    "numpy.bool": np.bool_(True),
    "numpy.str_": np.str_("a"),
    "numpy.dtype": np.dtype("float16"),
    "numpy.ndarray": np.arange(3.0),
    "numpy type": np.float32,
    "argparse.Namespace": argparse.Namespace(lr=np.float64(1)),
    "pathlib": pathlib.PurePosixPath("/data"),
    "defaultdict": defaultdict(list, a=[1]),
    "torch.Size": torch.Size([1]),
    "torch.dtype": torch.bfloat16,
    "TorchVersion": torch.torch_version.TorchVersion("2.6.0"),
    "complex": 1 + 2j,
    "set": {1, 2},
    "range": range(3),
}


def save_wrapped(path: Path, wrapper: str, state: State | None = None) -> Path:
    """A PyTorch file of the tiny transformer in one of WRAPPERS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(WRAPPERS[wrapper](state or released_state(tiny_transformer())), path)
    return path


# --- layouts ------------------------------------------------------------------------------------------------


def hub_cache(root: Path, repository: str, source: Path) -> Path:
    """A folder as the hub's client keeps it: blobs by hash, and a snapshot of links.  Returns the
    snapshot.
    """
    home = root / ("models--" + repository.replace("/", "--"))
    snapshot, blobs = home / "snapshots" / "0123456789abcdef", home / "blobs"
    blobs.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(snapshot.name)
    for number, file in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        blob, link = blobs / f"{number:040x}", snapshot / file.relative_to(source)
        shutil.copyfile(file, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return snapshot


def portable(folder: Path) -> Path:
    """Windows portable: embedded Python, and the pack inside ComfyUI's custom nodes.  Returns ComfyUI's
    folder.
    """
    comfyui = folder / "ComfyUI_windows_portable" / "ComfyUI"
    (folder / "ComfyUI_windows_portable" / "python_embeded").mkdir(parents=True)
    for name in ("checkpoints", "diffusion_models", "text_encoders", "vae", "unet", "clip"):
        (comfyui / "models" / name).mkdir(parents=True)
    (comfyui / "custom_nodes").mkdir()
    return comfyui


def write_transformer(path: Path, seed: int = 0, **sizes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = released_state(tiny_transformer(seed, **sizes))
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    return path


def write_vae(path: Path, seed: int = 1, **sizes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = released_vae_state(tiny_vae(seed=seed, **sizes))
    torch.save({"vae": state}, path) if path.suffix == ".pth" else save_file(state, path)
    return path


def write_text(path: Path, width: int = 32) -> Path:
    return tiny_text_dir(path, width)


def write_hart(path: Path, text: bool = True) -> Path:
    return write_hart_model(path, text=text)


def litter(folder: Path, beside: str) -> list[Path]:
    """What lies beside a model of that name in real folders: of Finder, downloads, trainers, and a damaged
    file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(beside).stem
    files = {
        f"._{beside}": b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X" + bytes(100),
        ".DS_Store": b"\x00\x00\x00\x01Bud1",
        "Thumbs.db": b"\xd0\xcf\x11\xe0",
        "desktop.ini": b"[.ShellClassInfo]",
        f"{beside}.part": b"\x80",
        f"{beside}.crdownload": b"\x80",
        "other.safetensors": b"\x00",
        "other.safetensors.aria2": b"\x00",
        f"{beside}.1": b"\x00",
        f"{stem}.incomplete.safetensors": b"",
        f"{stem} (1).safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        f"{stem}-page.safetensors": b"<!DOCTYPE html><html>404</html>",
        "training_args.bin": b"PK\x03\x04 not whole",
        "optimizer.bin": b"\x80\x02}q\x00.",
        "random_states_0.pkl": b"\x80",
        "._model.safetensors.index.json": b"\x00\x05\x16\x07",
        "events.out.tfevents.1": b"\x00",
        "model.gguf": b"GGUF\x03",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    torch.save({"state": {}, "param_groups": [{"lr": 1.0}]}, folder / "scheduler.pt")
    torch.save({"args": argparse.Namespace(a=1)}, folder / "rng_state.pth")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / f"._{beside}").write_bytes(b"\x00\x05\x16\x07")
    (folder / "step.safetensors").mkdir()
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1}))
    return [folder / name for name in files]
