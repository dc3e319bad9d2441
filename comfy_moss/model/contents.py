"""What a file holds, told by the names in it: which model, and under which wrappers its weights lie.

Trainers leave the weights one or two dictionaries deep, prefix every name (`module.`, `_orig_mod.`,
`model.`), and keep an
averaged copy beside the raw one.  Facts: docs/infinity.md, section 1.1; docs/hart.md, section 1.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

TRANSFORMER, CODEC, TEXT = "an Infinity transformer", "a VAE", "a T5 text encoder"
HART_TRANSFORMER, HART_TOKENIZER = "a HART transformer", "a HART tokenizer"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MODEL_SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".gguf")
CANONICAL = ("model", "pytorch_model", "diffusion_pytorch_model", "transformer", "vae", "ema_model")
LEFTOVERS = (  # of trainers, beside the weights
    "optimizer", "scheduler", "training_args", "rng_state", "random_states", "scaler", "trainer_state",
    "zero_pp_rank", "bf16_zero_pp_rank", "lr_scheduler", "events.out",
)
DEPTH = 3  # dictionaries inside each other that are looked into
# Names that only the kind has; what stands before one is a wrapper's prefix.  Where a file holds several
# kinds (a trainer's
# has its codec as well), the first of this table is meant.
MARKS = {
    TRANSFORMER: r"text_proj_for_sos\.|(?:block_chunks\.\d+\.module|blocks)\.\d+\.sa\.mat_qkv\.",
    HART_TRANSFORMER: r"context_embed\.",
    HART_TOKENIZER: r"vae\.quantize\.(?:embedding|quant_resi)\.",
    CODEC: r"(?:encoder|decoder)\.conv_in\.",
    TEXT: r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight",
}
PREFIXED = {kind: re.compile(rf"((?:[^.]+\.)*?)(?:{mark})") for kind, mark in MARKS.items()}
# Levels that torch.compile, FSDP, activation checkpoints and DeepSpeed put anywhere into a name.
TRANSPARENT = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
AVERAGED = re.compile(r"(?<![a-z])(?:ema|swa|averaged?|averaging|shadow|polyak)(?![a-z])")


@dataclass(frozen=True)
class Candidate:
    """Weights of one model somewhere in a file.

    Attributes:
        where: keys and prefix that lead there, joined by dots.
        names: name without wrappers -> name in the dictionary.
        state: the dictionary.
    """

    kind: str
    where: str
    names: Mapping[str, str]
    state: Mapping[str, Any]

    @property
    def preferred(self) -> bool:
        """Whether these are the weights to draw with: averaged ones, but a codec's plain ones, as its
        authors' code has it.
        """
        return bool(AVERAGED.search(self.where.lower())) != (self.kind == CODEC)


def identify(names: Iterable[str]) -> str:
    """What a file with these tensor names seems to be, in words for a message."""
    names = list(names)
    found = _candidates(dict.fromkeys(names), "")
    return found[0].kind if found else f"something else (it holds {listing(names)})"


def listing(names: Iterable[str], show: int = 3) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    rest = len(names) - show
    return ", ".join(names[:show]) + (f" and {rest} more" if rest > 0 else "")


def count_of(names: Iterable[str], pattern: str) -> int:
    """How many things a pattern numbers in names, from 0 on; those that are missing in between count.

    Raises:
        ValueError: none, or most are missing.
    """
    found = {int(match[1]) for match in map(re.compile(pattern).match, names) if match}
    if not found or max(found) > 2 * len(found) + 8:
        raise ValueError(f"{pattern} numbers {len(found)} things up to {max(found, default=0)}")
    return max(found) + 1


def unwrapped(content: Mapping) -> Candidate | None:
    """The weights that a file is for, whatever lies around them; None = it holds no tensors by name.

    Averaged weights come before raw ones.  Weights of an unknown model are those of the largest dictionary.

    Args:
        content: tensors by name, or dictionaries in dictionaries that end in such.
    """
    return _choice(list(_states(content)))


def unwrapped_names(names: Iterable[str]) -> Candidate:
    """The same for a file that is one dictionary."""
    return _choice([("", dict.fromkeys(names))])


def _choice(states: list[tuple[str, Mapping[str, Any]]]) -> Candidate | None:
    found = [candidate for where, state in states for candidate in _candidates(state, where)]
    if not found:
        where, state = max(states, key=lambda pair: len(pair[1]), default=("", {}))
        return Candidate("", where, dict(zip(state, state, strict=True)), state) if state else None
    first = next(kind for kind in MARKS if any(candidate.kind == kind for candidate in found))
    meant = [candidate for candidate in found if candidate.kind == first]
    most = max(len(candidate.names) for candidate in meant)
    whole = [
        candidate for candidate in meant if 2 * len(candidate.names) > most
    ]  # an average may lack buffers, not blocks
    chosen = max(whole, key=lambda candidate: (candidate.preferred, len(candidate.names)))
    return chosen if first == CODEC else _with_averages(chosen)


def _states(content: object, where: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dictionary with tensors by name, and the keys that lead there."""
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if state := {name: value for name, value in named.items() if isinstance(value, Tensor)}:
        yield where, state
    for name, value in named.items() if depth else ():
        yield from _states(value, f"{where}{name}.", depth - 1)


def _candidates(state: Mapping[str, Any], where: str) -> list[Candidate]:
    """Models in one dictionary, the most telling kind first."""
    plain = {TRANSPARENT.sub("", name): name for name in state}
    found = []
    for kind, pattern in PREFIXED.items():
        prefixes = {match[1] for match in map(pattern.match, plain) if match}
        for prefix in sorted(prefixes):
            inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            held = {
                name: plain[name] for name in plain if name.startswith(prefix) and not name.startswith(inner)
            }
            found.append(
                Candidate(kind, where + prefix, {name[len(prefix) :]: held[name] for name in held}, state)
            )
    return found


def _with_averages(chosen: Candidate) -> Candidate:
    """With the averages that some trainers (LitEma) keep beside the weights, under names without dots."""
    flat = {name.replace(".", ""): name for name in chosen.names}
    averages = {}
    for held in chosen.state:
        holder, _, rest = held.partition(".")
        if AVERAGED.search(holder.lower()) and rest in flat:
            averages[flat[rest]] = held
    return replace(chosen, names={**chosen.names, **averages})


def is_leftover(name: str) -> bool:
    """Whether a name is of what systems, downloads and trainers leave beside models: hidden, such as Finder's
    `._name`.
    """
    return name.startswith((".", "__MACOSX")) or name.lower().startswith(LEFTOVERS)


def is_model_name(name: str) -> bool:
    """Whether a file may be a model by its name."""
    return name.lower().endswith(MODEL_SUFFIXES) and not is_leftover(name)


def preference(path: Path) -> tuple[bool, bool, int, str]:
    """Sorts copies of one model: canonical names, then safetensors, then short names (no `.fp16`, no `(1)`).
    """
    return path.stem not in CANONICAL, path.suffix.lower() != ".safetensors", len(path.name), path.name


# --- PyTorch files ------------------------------------------------------------------------------------------

# PyTorch files: tensors come out, nothing is run.
#
# torch's weights-only reader builds tensors and plain containers. Trainers write more beside the weights:
# numbers of numpy, arguments, paths, settings of their libraries. What is known to be such data is read as
# an empty stand-in, so that no class or function of the file is ever looked up; any other name in the file
# is refused.

SAFE = (2, 6)  # below, weights-only reading could be made to run code (CVE-2025-32434)
DICTIONARIES = (
    r"collections\.defaultdict|easydict\.EasyDict|addict\.\w+\.\w+|yacs\.config\.CfgNode"
    r"|[\w.]+\.AttributeDict"
)
LISTS = r"collections\.deque"
TRAINERS = (
    "accelerate", "deepspeed", "hydra", "lightning", "lightning_fabric", "lightning_utilities",
    "ml_collections", "mmengine", "omegaconf", "pytorch_lightning", "torchmetrics", "transformers",
    "torch.optim",
)
OTHERS = (
    r"numpy\.(?:_?core\.multiarray\.(?:scalar|_reconstruct)|ndarray|dtype|dtypes\.\w+)",
    r"numpy\.(?:bool_?|u?int\d+|float\d+|str_|bytes_)",
    r"numpy\.(?:random\.\w*(?:pickle|mtrand)\.\w+|_?core\.numeric\._frombuffer)", r"_codecs\.encode",
    r"builtins\.(?:bool|int|float|complex|str|bytes|bytearray)",
    r"builtins\.(?:list|tuple|dict|set|frozenset|slice|range|object)", r"argparse\.Namespace",
    r"types\.SimpleNamespace", r"pathlib\.(?:_local\.)?\w*Path", r"datetime\.\w+", r"decimal\.Decimal",
    r"fractions\.Fraction", r"uuid\.UUID", r"typing\.\w+", r"copyreg\._reconstructor",
    r"torch\.torch_version\.TorchVersion", r"torch\._C\.Generator",
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
    (re.compile(DICTIONARIES), InertDict), (re.compile(LISTS), InertList),
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
