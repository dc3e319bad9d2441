"""PyTorch files: tensors come out, nothing is run.

torch's weights-only reader builds tensors and plain containers.  Trainers write more beside the weights:
numbers of numpy,
arguments, paths, settings of their libraries.  What is known to be such data is read as an empty stand-in, so
that no class
or function of the file is ever looked up; any other name in the file is refused.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, which old protocols write
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

SAFE = (2, 6)  # below, weights-only reading could be made to run code (CVE-2025-32434)
DICTIONARIES = (
    r"collections\.defaultdict|easydict\.EasyDict|addict\.\w+\.\w+|yacs\.config\.CfgNode|[\w.]+\.AttributeDict"
)
LISTS = r"collections\.deque"
TRAINERS = (
    "accelerate",
    "deepspeed",
    "hydra",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "ml_collections",
    "mmengine",
    "omegaconf",
    "pytorch_lightning",
    "torchmetrics",
    "transformers",
    "torch.optim",
)
OTHERS = (
    r"numpy\.(?:_?core\.multiarray\.(?:scalar|_reconstruct)|ndarray|dtype|dtypes\.\w+)",
    r"numpy\.(?:bool_?|u?int\d+|float\d+|str_|bytes_)",
    r"numpy\.(?:random\.\w*(?:pickle|mtrand)\.\w+|_?core\.numeric\._frombuffer)",
    r"_codecs\.encode",
    r"builtins\.(?:bool|int|float|complex|str|bytes|bytearray)",
    r"builtins\.(?:list|tuple|dict|set|frozenset|slice|range|object)",
    r"argparse\.Namespace",
    r"types\.SimpleNamespace",
    r"pathlib\.(?:_local\.)?\w*Path",
    r"datetime\.\w+",
    r"decimal\.Decimal",
    r"fractions\.Fraction",
    r"uuid\.UUID",
    r"typing\.\w+",
    r"copyreg\._reconstructor",
    r"torch\.torch_version\.TorchVersion",
    r"torch\._C\.Generator",
    r"torch\.\w+\.\w+\.\w*(?:Config|Type|Strategy)",
    *(rf"{name.replace('.', chr(92) + '.')}\.[\w.]+" for name in TRAINERS),
)


class UnsafeError(ValueError):
    """The file holds, or needs, what could run code; the message is the rest of a sentence that begins with
    its name.
    """


class Inert:
    """Stands for an object that is data and nobody needs."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what the real class would."""

    def __setstate__(self, state: object) -> None:
        """Forgets it."""


class InertDict:
    """Stands for kinds of dictionaries: what they hold may be weights."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict:
        return OrderedDict()


class InertList:
    """Stands for kinds of lists."""

    def __new__(cls, *_: Any, **__: Any) -> list:
        return []


STAND_INS = (
    (re.compile(DICTIONARIES), InertDict),
    (re.compile(LISTS), InertList),
    (re.compile("|".join(OTHERS)), Inert),
)


def read_pickle(path: Path) -> Mapping:
    """What a PyTorch file holds, tensors memory-mapped where the format allows it.

    Raises:
        UnsafeError: it holds more than data, or this torch cannot tell.
        Exception: of torch's reader: the file is damaged.
    """
    if not reads_safely():
        raise UnsafeError(
            f"is a PyTorch file, and reading those could run code in torch {torch.__version__} "
            "(CVE-2025-32434); get the safetensors version, or update torch to 2.6 or newer"
        )
    zipped = zipfile.is_zipfile(path)
    names = _names_in_archive(path) if zipped else _names_in_stream(path)
    stand_ins = [(stand_in, name) for name in names if (stand_in := _stand_in(name))]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        raise (_refusal("torch names them") if "GLOBAL" in str(error) else error) from error
    return content if isinstance(content, Mapping) else {}


def reads_safely() -> bool:
    """Whether weights-only reading of this torch can be trusted."""
    return tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) >= SAFE


def _names_in_archive(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        files = archive.namelist()
        if any("/code/" in name or name.endswith("constants.pkl") for name in files):
            raise UnsafeError("is a TorchScript program, not a file of weights; get the safetensors version")
        if not (data := next((name for name in files if name.endswith("data.pkl")), None)):
            raise UnsafeError("is a zip archive; unpack it and choose the model file in it")
        return _names_in(io.BytesIO(archive.read(data)))


def _names_in_stream(path: Path) -> set[str]:
    """Of the format before torch 1.6: a magic number, a version, facts of the machine, and what was saved."""
    with path.open("rb") as file:
        return set().union(*(_names_in(file) for _ in range(4)))


def _names_in(file: BinaryIO) -> set[str]:
    """Classes and functions that a pickle names; nothing of it is run."""
    names = set()
    for opcode, value, _ in pickletools.genops(file):
        if opcode.proto > 3:
            raise UnsafeError(
                "was saved with a pickle protocol that torch does not read safely; "
                "save its weights again as safetensors"
            )
        if opcode.name == "GLOBAL":
            module, name = value.split(" ", 1)
            names.add(".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))))
    return names


def _stand_in(name: str) -> type | None:
    """What is read in the place of a class or function; None = torch decides.

    Raises:
        UnsafeError: it is not known to be data.
    """
    for pattern, stand_in in STAND_INS:
        if pattern.fullmatch(name):
            return stand_in
    if name.startswith(("torch.", "collections.")):
        return None
    raise _refusal(name)


def _refusal(name: str) -> UnsafeError:
    return UnsafeError(
        f"holds program objects besides weights ({name}) and was not opened, because they could run code; "
        "get the safetensors version, or save only its weights"
    )
