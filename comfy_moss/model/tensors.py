"""Reading and writing tensor files: safetensors, PyTorch files and sharded directories.

Nothing in a file is ever run, and nothing is read into memory before it is asked for.
Facts: Infinity specification, section 1.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

TRANSFORMER, CODEC, TEXT = "an Infinity transformer", "a VAE", "a T5 text encoder"
HART_TRANSFORMER, HART_TOKENIZER = "a HART transformer", "a HART tokenizer"
MASK = "attn_bias_for_masking"  # of training; in a HART file the largest tensor by far
SAMPLE = 32  # values hashed at the start, the middle and the end of a tensor
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MODEL_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
log = logging.getLogger(__name__)
TRAINER_KEYS = ("gpt_ema_fsdp", "gpt_fsdp", "gpt_wo_ddp")  # averaged weights first: they are what such a run is for
SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


class CheckpointError(ValueError):
    """A model file is missing, damaged, or not what it was taken for; the message says what to do."""


class Tensors(Mapping[str, Tensor]):
    """Named tensors: shapes known at once, values read from disk (CPU, memory-mapped) when asked for.

    Attributes:
        path: the file or directory, for messages.
        shapes: name -> shape; values come in these shapes.
        files: what they are read from.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, Sequence[int]], read: Callable[[str], Tensor], files: Iterable[Path] = ()
    ) -> None:
        self.path = path
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.files = tuple(files)
        self._read = read

    @classmethod
    def of(cls, state: Mapping[str, Tensor], path: Path = Path("these weights"), files: Iterable[Path] = ()) -> Tensors:
        """A dictionary of tensors seen as Tensors."""
        if isinstance(state, Tensors):
            return state
        return cls(path, {name: tensor.shape for name, tensor in state.items()}, state.__getitem__, files)

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """The tensors that `names` (new name -> present name) lists, and no others."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Tensors(self.path, shapes, lambda name: self[names[name]], self.files)


def open_tensors(path: Path) -> Tensors:
    """Open a safetensors file, a PyTorch file, or a directory with an index of shards or with one such file.

    Training checkpoints are unwrapped to the transformer's weights (the averaged ones when both are there), codec
    files to what lies under "vae".

    Raises:
        CheckpointError: no such file, damaged, or holding more than weights.
    """
    path = Path(path)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        raise CheckpointError(f"there is no model file at {path}; check the name, or download the file")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _open_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _open_torch(path, mapped=head[:2] == b"PK")
    kind = "only a Git LFS pointer" if head == b"version h" else "empty" if not head else "no safetensors or PyTorch file"
    raise CheckpointError(f"{path} is {kind}; download the model file itself again")


def _open_safetensors(path: Path) -> Tensors:
    try:
        file = safe_open(path, framework="pt", device="cpu")
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError) as error:
        raise _damaged(path) from error
    return Tensors(path, shapes, file.get_tensor, [path])


def _open_torch(path: Path, mapped: bool) -> Tensors:
    try:
        content = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds program objects besides weights and was not opened, because they could run code; "
                "get the safetensors version, or save only its weights"
            ) from error
        raise _damaged(path) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path) from error
    state = {k: v for k, v in _unwrap(content).items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"{path} holds no weights by name; choose the model's weights file")
    return Tensors.of(state, path, [path])


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or was not fully downloaded; download it again")


def _unwrap(content: object) -> Mapping:
    """The dictionary of weights inside what a PyTorch file held."""
    content = content if isinstance(content, Mapping) else {}
    for holder in (content.get("trainer"), content):
        for key in TRAINER_KEYS if isinstance(holder, Mapping) else ():
            if isinstance(holder.get(key), Mapping) and holder[key]:
                return holder[key]
    return content["vae"] if isinstance(content.get("vae"), Mapping) else content


def _open_directory(path: Path) -> Tensors:
    indexes = sorted(path.glob("*.index.json"), key=lambda p: (".safetensors." not in p.name, p.name))
    if indexes:
        maps = [(index, _weight_map(index)) for index in indexes]
        complete = [pair for pair in maps if not _missing_shards(*pair)]
        return _open_shards(*(complete or maps)[0])
    files = [p for p in sorted(path.iterdir()) if p.is_file()]
    found = [p for p in files if p.suffix == ".safetensors"] or [p for p in files if p.suffix in TORCH_SUFFIXES]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(f"{path} should hold one model file, or shards with their .index.json, but holds {names}")
    return open_tensors(found[0])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not all(Path(shard).name == shard for shard in names.values()):
            raise ValueError("a shard lies outside of the directory")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _damaged(index) from error
    return names


def _missing_shards(index: Path, names: Mapping[str, str]) -> list[str]:
    return [shard for shard in sorted(set(names.values())) if not (index.parent / shard).is_file()]


def _open_shards(index: Path, names: Mapping[str, str]) -> Tensors:
    if missing := _missing_shards(index, names):
        raise CheckpointError(f"{index.parent} lacks {listing(missing)}, which {index.name} lists; download the rest")
    shards = {shard: open_tensors(index.parent / shard) for shard in set(names.values())}
    for name, shard in names.items():
        if name not in shards[shard].shapes:
            raise CheckpointError(f"{index.parent / shard} lacks the tensor {name}; download the directory again")
    shapes = {name: shards[shard].shapes[name] for name, shard in names.items()}
    files = [index, *(index.parent / shard for shard in shards)]
    return Tensors(index.parent, shapes, lambda name: shards[names[name]][name], files)


def listing(names: Sequence[str], show: int = 3) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - show
    return ", ".join(names[:show]) + (f" and {rest} more" if rest > 0 else "")


def fill_module(
    module: nn.Module, tensors: Tensors, dtype_of: Callable[[str], torch.dtype], device: torch.device | str | None = None
) -> None:
    """Give a module built on the meta device its weights, one tensor at a time; then it is in eval mode, without gradients.

    Args:
        dtype_of: parameter name -> dtype it gets.
        device: None = where the tensors are.

    Raises:
        CheckpointError: tensors are missing, of another shape, or not finite.  Names and shapes are checked before anything
            is read.  Tensors left over are named in the log only: files carry buffers of training that nobody needs.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    problems = {
        "lacks the tensors": sorted(wanted.keys() - tensors.shapes.keys()),
        "has tensors of another size:": [n for n, shape in wanted.items() if tensors.shapes.get(n, shape) != shape],
    }
    if any(problems.values()):
        text = " and ".join(f"{what} {listing(names)}" for what, names in problems.items() if names)
        raise CheckpointError(f"{tensors.path} {text}; it is damaged or of a model that is not known here")
    if surplus := sorted(tensors.shapes.keys() - wanted.keys()):
        log.warning(f"{tensors.path} has tensors that this model does not use: {listing(surplus)}")
    module.load_state_dict({name: _place(tensors, name, dtype_of(name), device) for name in wanted}, assign=True)
    module.eval().requires_grad_(False)


def _place(tensors: Tensors, name: str, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """A copy of its own, so that the model does not change when the file does."""
    source = tensors[name]
    placed = source.to(device=device or source.device, dtype=dtype, copy=True).contiguous()
    if not placed.is_meta and not _finite(placed):
        if dtype == torch.float16 and _finite(source):
            raise CheckpointError(f"{tensors.path}: {name} does not fit into float16; choose bfloat16 or float32")
        raise CheckpointError(f"{tensors.path}: {name} holds values that are not numbers; download the file again")
    return placed


def _finite(tensor: Tensor) -> bool:
    """One pass without a temporary: a NaN anywhere makes both extremes NaN."""
    if tensor.numel() == 0:
        return True
    return all(math.isfinite(extreme) for extreme in torch.stack(tensor.aminmax()).tolist())


def write_safetensors(tensors: Mapping[str, Tensor], target: Path, dtype: torch.dtype | None = None) -> None:
    """Write one safetensors file, one tensor at a time; the file appears whole or not at all.

    Args:
        dtype: what floating-point tensors become; None = as they are.

    Raises:
        CheckpointError: a dtype the format lacks, or the disk refused.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # big elements first: all are aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        kind, size = _stored_as(tensors[name], dtype), tensors[name].numel()
        if kind not in SAFETENSORS_TYPES:
            raise CheckpointError(f"{name} is of type {kind}, which safetensors files cannot hold")
        start, end = end, end + size * kind.itemsize
        header[name] = {"dtype": SAFETENSORS_TYPES[kind], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in order:
                data = tensors[name].to(_stored_as(tensors[name], dtype)).contiguous().reshape(-1).view(torch.uint8)
                file.write(memoryview(data.numpy()))
        os.replace(part, target)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written ({error.strerror}); nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _stored_as(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def identify(names: Iterable[str]) -> str:
    """What a file with these tensor names seems to be, in words for a message."""
    names = list(names)
    if any(n.startswith("text_proj_for_sos.") or ".sa.mat_qkv." in n for n in names):
        return TRANSFORMER
    if any(n.startswith(("encoder.conv_in.", "decoder.conv_in.")) for n in names):
        return CODEC
    if any(n.endswith("block.0.layer.0.SelfAttention.q.weight") for n in names):
        return TEXT
    if any(n.startswith("context_embed.") for n in names):
        return HART_TRANSFORMER
    if any(n.startswith("vae.quantize.") for n in names):
        return HART_TOKENIZER
    return f"something else (it holds {listing(names)})"


def weights_id(*models: Tensors) -> str:
    """12 hexadecimal digits that tell models apart.

    Covers every tensor's name, shape and 96 of its values (start, middle, end) as float32: cheap for files of any size, and
    the same for every format and for every dtype that holds the values exactly.  Training a model on changes it;
    changing a few single weights by hand may not.
    """
    digest = hashlib.sha256()
    for model in models:
        for name in sorted(model.shapes):
            flat = model[name].reshape(-1)
            middle = max(0, (len(flat) - SAMPLE) // 2)
            parts = (flat[:SAMPLE], flat[middle : middle + SAMPLE], flat[max(0, len(flat) - SAMPLE) :])
            digest.update(f"{name}{model.shapes[name]}".encode())
            digest.update(torch.cat(parts).detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def convert(source: Path, target: Path, bf16: bool = False) -> None:
    """Write any accepted model (one file, shards, training checkpoint) as one safetensors file, names as in the source.

    Of a codec only what draws and encodes is kept, of a HART transformer all but its training mask: released files carry
    training state beside the weights.

    Args:
        bf16: store floating-point tensors in bfloat16, half the size of released files.

    Raises:
        CheckpointError: the source cannot be read, the target is the source or not named .safetensors, or writing failed.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise CheckpointError(f"{target} should end in .safetensors")
    tensors = open_tensors(source)
    if target.exists() and any(target.samefile(file) for file in tensors.files):
        raise CheckpointError(f"{target} is the file to convert; give the result another name")
    kind = identify(tensors)
    if kept := {CODEC: ("encoder.", "decoder."), HART_TOKENIZER: ("vae.",)}.get(kind):
        tensors = tensors.renamed({n: n for n in tensors if n.startswith(kept)})
    elif kind == HART_TRANSFORMER:
        tensors = tensors.renamed({n: n for n in tensors if n != MASK})
    write_safetensors(tensors, target, torch.bfloat16 if bf16 else None)
