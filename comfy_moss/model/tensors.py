"""Reading and writing tensor files: safetensors, PyTorch files and sharded directories.

Nothing in a file is ever run, and nothing is read into memory before it is asked for.
Facts: docs/infinity.md, section 1.1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .contents import (
    CODEC,
    HART_TOKENIZER,
    HART_TRANSFORMER,
    MARKS,
    UnsafeError,
    identify,
    is_model_name,
    listing,
    preference,
    read_pickle,
    unwrapped,
    unwrapped_names,
)

MASK = "attn_bias_for_masking"  # of training; in a HART file the largest tensor by far
SAMPLE = 32  # values hashed at the start, the middle and the end of a tensor
HEADS = {  # how other files begin
    b"version h": "only a Git LFS pointer", b"<": "a page of the web",
    b"Rar!": "a packed archive",
    b"7z": "a packed archive", b"\x1f\x8b": "a packed archive",
    b"\x00\x05\x16\x07": "a stub of Finder",
}
log = logging.getLogger(__name__)
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
SAFETENSORS_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}


class CheckpointError(ValueError):
    """A model file is missing, damaged, or not what it was taken for; the message says what to do."""


class Tensors(Mapping[str, Tensor]):
    """Named tensors: shapes known at once, values read from disk (CPU, memory-mapped) when asked for.

    Attributes:
        path: the file or directory, for messages.
        shapes: name -> shape; values come in these shapes.
        files: what they are read from.
        metadata: what a safetensors file says about itself.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, Sequence[int]], read: Callable[[str], Tensor],
        files: Iterable[Path] = (), metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.metadata = dict(metadata or {})
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.files = tuple(files)
        self._read = read

    @classmethod
    def of(
        cls, state: Mapping[str, Tensor], path: Path = Path("these weights"), files: Iterable[Path] = ()
    ) -> Tensors:
        """A dictionary of tensors seen as Tensors."""
        if isinstance(state, Tensors):
            return state
        return cls(path, {name: tensor.shape for name, tensor in state.items()}, state.__getitem__, files)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        with reading(self.path):
            return self._read(name).reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """The tensors that `names` (new name -> present name) lists, and no others."""
        shapes = {new: self.shapes[old] for new, old in names.items()}
        return Tensors(self.path, shapes, lambda name: self[names[name]], self.files, self.metadata)


@contextlib.contextmanager
def reading(
    path: Path, advice: str = "is damaged or was not fully downloaded; download it again"
) -> Iterator[None]:
    """Whatever a library raises over a file becomes one sentence of ours.

    Raises:
        CheckpointError: anything was raised but a lack of memory.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except ImportError as error:
        raise CheckpointError(
            f"reading {path} needs the Python package {error.name}; install it with pip"
        ) from error
    except OSError as error:
        if error.strerror and not isinstance(error, EOFError):
            raise CheckpointError(
                f"{path} cannot be read ({error.strerror}); check the name and its permissions"
            ) from error
        raise CheckpointError(f"{path} {advice}") from error
    except Exception as error:
        raise CheckpointError(f"{path} {advice}") from error


def open_tensors(path: Path, wrapped: bool = True) -> Tensors:
    """Open a safetensors file, a PyTorch file, or a directory with an index of shards or with one such model.

    What trainers wrap around the weights is looked through (`contents.unwrapped`).

    Args:
        wrapped: False = names as they stand in a safetensors file.

    Raises:
        CheckpointError: no such file, damaged, or holding more than weights.
    """
    path = Path(path)
    with reading(path):
        tensors = _open_directory(path) if path.is_dir() else _open_file(path)
    if not wrapped:
        return tensors
    found = unwrapped_names(tensors)
    empty = found.kind and not all(math.prod(tensors.shapes[held]) for held in found.names.values())
    if empty or any(name.endswith("flat_param") for name in tensors):
        raise CheckpointError(
            f"{path} holds only a part of its weights, as DeepSpeed ZeRO-3 and FSDP save them; join the "
            "parts into one file first"
        )
    return tensors if found.names.keys() == tensors.shapes.keys() else tensors.renamed(found.names)


def _open_file(path: Path) -> Tensors:
    if not path.is_file():
        raise CheckpointError(f"there is no model file at {path}; check the name, or download the file")
    if unfinished := next(
        (mark for mark in map(path.with_name, _downloads(path.name)) if mark.exists()), None
    ):
        raise CheckpointError(
            f"{path} is not fully downloaded yet: {unfinished.name} lies beside it; finish the download"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return _open_safetensors(path)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return _open_torch(path)
    if head[:4] == b"GGUF":
        from .gguf_file import open_gguf  # which needs this file

        return open_gguf(path)
    kind = next(
        (kind for start, kind in HEADS.items() if head.startswith(start)), "no safetensors or PyTorch file"
    )
    raise CheckpointError(f"{path} is {kind if head else 'empty'}; download the model file itself again")


def _downloads(name: str) -> tuple[str, ...]:
    """What programs keep beside a file of that name until they have all of it."""
    return tuple(name + suffix for suffix in (".aria2", ".part.meta", ".st", ".xltd.cfg"))


def _open_safetensors(path: Path) -> Tensors:
    file = safe_open(path, framework="pt", device="cpu")
    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, no mapping
    if not shapes:
        raise CheckpointError(f"{path} holds no weights; choose the model's weights file")
    return Tensors(path, shapes, file.get_tensor, [path], file.metadata())


def _open_torch(path: Path) -> Tensors:
    try:
        found = unwrapped(read_pickle(path))
    except UnsafeError as error:
        raise CheckpointError(f"{path} {error}") from error
    if found is None:
        raise CheckpointError(f"{path} holds no weights by name; choose the model's weights file")
    return Tensors.of({name: found.state[held] for name, held in found.names.items()}, path, [path])


def _open_directory(path: Path) -> Tensors:
    indexes = sorted(path.glob("[!.]*.index.json"), key=lambda p: (".safetensors." not in p.name, p.name))
    if indexes:
        maps = [(index, _weight_map(index)) for index in indexes]
        complete = [pair for pair in maps if not _missing_shards(*pair)]
        return _open_shards(*(complete or maps)[0])
    files = [file for file in sorted(path.iterdir()) if is_model_name(file.name) and file.is_file()]
    return open_tensors(only_model(path, files))


def only_model(folder: Path, files: Sequence[Path], kind: str | None = None) -> Path:
    """The one of several files to read: what opens, the canonical name first; other copies of it are named in
    the log.

    Args:
        kind: that it has to be, a key of `contents.MARKS`; None = all must be of one kind.

    Raises:
        CheckpointError: none opens, or they are of several kinds.
    """
    kinds, errors = {}, []
    for file in sorted(files, key=preference) if len(files) > 1 or kind else ():
        try:
            kinds[file] = identify(open_tensors(file))
        except CheckpointError as error:
            errors.append(error)
    fitting = [file for file, found in kinds.items() if kind in (None, found)]
    known = [file for file in fitting if kinds[file] in MARKS] or fitting
    if len(files) == 1 and not kind:
        return files[0]
    if not known and errors:
        raise errors[0]
    if not known or len({kinds[file] for file in known}) > 1:
        names = ", ".join(sorted(file.name for file in known or files)) or "none"
        raise CheckpointError(
            f"{folder} should hold one model file, or shards with their .index.json, but holds {names}"
        )
    chosen = min(known, key=preference)
    if len(known) > 1:
        others = listing([file.name for file in known if file != chosen])
        log.info(f"{folder} holds several copies of {kinds[chosen]}: {chosen.name} is taken, not {others}.")
    return chosen


def _weight_map(index: Path) -> dict[str, str]:
    with reading(index):
        names = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        if not names or not all(Path(shard).name == shard for shard in names.values()):
            raise ValueError("a shard lies outside of the directory")
    return names


def _missing_shards(index: Path, names: Mapping[str, str]) -> list[str]:
    return [shard for shard in sorted(set(names.values())) if not (index.parent / shard).is_file()]


def _open_shards(index: Path, names: Mapping[str, str]) -> Tensors:
    if missing := _missing_shards(index, names):
        raise CheckpointError(
            f"{index.parent} lacks {listing(missing)}, which {index.name} lists; download the rest"
        )
    shards = {}
    for shard in sorted(set(names.values())):
        with reading(index.parent / shard):
            shards[shard] = _open_file(index.parent / shard)
    for name, shard in names.items():
        if name not in shards[shard].shapes:
            raise CheckpointError(
                f"{index.parent / shard} lacks the tensor {name}; download the directory again"
            )
    shapes = {name: shards[shard].shapes[name] for name, shard in names.items()}
    files = [index, *(index.parent / shard for shard in shards)]
    return Tensors(index.parent, shapes, lambda name: shards[names[name]][name], files)


def write_safetensors(
    tensors: Mapping[str, Tensor], target: Path, dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file, one tensor at a time; the file appears whole or not at all.

    Args:
        dtype: what floating-point tensors become; None = as they are.
        metadata: what the file is to say about itself.

    Raises:
        CheckpointError: a dtype the format lacks, or the disk refused.
    """
    # big elements first: all are aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {"__metadata__": {"format": "pt"} | dict(metadata or {})}, 0
    for name in order:
        kind, size = _stored_as(name, tensors[name], dtype), tensors[name].numel()
        if kind not in SAFETENSORS_TYPES:
            raise CheckpointError(f"{name} is of type {kind}, which safetensors files cannot hold")
        start, end = end, end + size * kind.itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[kind], "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    part = target.with_name(f".{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in order:
                data = (
                    tensors[name]
                    .to(_stored_as(name, tensors[name], dtype))
                    .contiguous()
                    .reshape(-1)
                    .view(torch.uint8)
                )
                file.write(memoryview(data.numpy()))
        os.replace(part, target)
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written ({error.strerror}); nothing was changed"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _stored_as(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    plain = tensor.is_floating_point() and tensor.dtype not in EIGHT_BITS and not name.endswith("_scale")
    return dtype if dtype is not None and plain else tensor.dtype


def weights_id(*models: Tensors) -> str:
    """12 hexadecimal digits that tell models apart.

    Covers every tensor's name, shape and 96 of its values (start, middle, end) as float32: cheap for files of
    any size, and the same for every format and for every dtype that holds the values exactly.  Training a
    model on changes it; changing a few single weights by hand may not.
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


def convert(
    source: Path, target: Path, bf16: bool = False,
    facts: Callable[[Tensors], Mapping[str, str]] | None = None,
    packed: Callable[[Tensors], Tensors] | None = None,
) -> None:
    """Write any accepted model (one file, shards, training checkpoint) as one safetensors file, names as in
    the source.

    Of a codec only what draws and encodes is kept, of a HART transformer all but its training mask: released
        files carry
    training state beside the weights.

    Args:
        bf16: store floating-point tensors in bfloat16, half the size of released files; but scales of weights
            in 8 bits.
        facts: what the file is to say about its tensors; None = what the source says.
        packed: stores weights in 8 bits, see `quantized_weights.quantized`.

    Raises:
        CheckpointError: the source cannot be read, the target is the source or not named .safetensors, or
            writing failed.
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
    found = facts(tensors) if facts else tensors.metadata
    tensors = packed(tensors) if packed else tensors
    write_safetensors(tensors, target, torch.bfloat16 if bf16 else None, found)
