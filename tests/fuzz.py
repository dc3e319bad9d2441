"""Mutated files, recipes and workflows, from a fixed seed: each must work, or be refused in a sentence of
ours.

    python tests/fuzz.py files 20000
    python tests/fuzz.py recipes 2000
    python tests/fuzz.py workflows 2000

Prints what was not, as one JSON object, and exits with 1 if there was any.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 20  # that one trial may take
WILD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    7,
    2**31,
    2**63,
    10**9,
    10**30,
    -0.0,
    0.5,
    1e9,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "0",
    "a",
    "float32",
    "é模\u202e",
    "x" * 3000,
    "../../x",
    "a\0b",
    [],
    [None],
    [1, 2, 3],
    [10**9],
    {},
    {"a": 1},
    [[[]]],
]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "BOOL",
    "F4",
    "Q4",
    "f32",
    "",
]


@dataclass
class Findings:
    """What a run showed.

    Attributes:
        outcomes: "works", or how a refusal begins -> how often.
        faults: (trial, what was done, what came of it) of everything that may not be.
        memory: peak resident MiB after a tenth of the trials, and at the end.
    """

    outcomes: Counter = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MiB of peak memory added after the first tenth."""
        return self.memory[-1] - self.memory[0]

    def facts(self) -> dict[str, Any]:
        """For the command line."""
        works = self.outcomes["works"]
        return {
            "trials": sum(self.outcomes.values()) + len(self.faults),
            "works": works,
            "faults": len(self.faults),
            "refused": sum(self.outcomes.values()) - works,
            "growth_mib": round(self.growth, 1),
            "first_faults": self.faults[:10],
            "refusals": self.outcomes.most_common(12),
        }


def run(trials: int, seed: int, attempt: Callable[[random.Random], Iterator[str]]) -> Findings:
    """Many trials.

    Args:
        attempt: a generator of one trial: yields what it does, then does it.
    """
    found = Findings()
    marks = {max(0, trials // 10 - 1), trials - 1}
    for number in range(trials):
        chance, done = random.Random(f"{seed}-{number}"), "nothing yet"
        try:
            with limited(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for done in attempt(chance):  # noqa: B007, the last one is told
                    pass
            found.outcomes["works"] += 1
        except BaseException as error:  # whatever it is, it is a finding
            if isinstance(error, KeyboardInterrupt):
                raise
            if complaint := fault(error):
                found.faults.append((number, done, complaint))
            else:
                found.outcomes[" ".join(re.sub(r"\S*[/\\.'\d]\S*", "_", str(error)).split()[:6])] += 1
        if number in marks:
            gc.collect()
            found.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def fault(error: BaseException) -> str | None:
    """What is wrong with an error: not ours, or more than two sentences; None = nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames)), None)
    where = (
        f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {str(error)[:200]}"
        if last
        else repr(error)
    )
    ours = isinstance(error, ValueError) and last is not None and any(
        part in last.filename for part in ("/comfy_moss/", "fakehost")
    )
    if not ours:
        return where
    return f"no sentence: {where}" if not is_sentence(str(error)) else None


def is_sentence(text: str) -> bool:
    """One or two sentences on one line, of a length that can be read."""
    return 10 < len(text) < 700 and "\n" not in text and len(re.findall(r"[.!?]\s+[A-Z]", text)) < 2


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- mutations ----------------------------------------------------------------------------------------------


def mutate_bytes(chance: random.Random, data: bytes) -> bytes:
    """One of: bits flipped, cut off, padded, a part zeroed, repeated, moved or replaced."""
    data, size = bytearray(data), len(data)
    at = chance.randrange(size + 1) if chance.random() < 0.5 else min(size, chance.randrange(64))
    span = min(chance.choice([1, 2, 8, 64, 1000]), size - at)
    match chance.randrange(6):
        case 0:
            for _ in range(chance.choice([1, 1, 3, 16])):
                if size:
                    place = min(size - 1, int(size * chance.random() ** 3))
                    data[place] ^= 1 << chance.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data += chance.randbytes(chance.choice([1, 8, 500]))
        case 3:
            data[at : at + span] = bytes(span)
        case 4:
            data[at:at] = data[at : at + span]
        case _:
            data[at : at + span] = chance.randbytes(span)
    return bytes(data)


def mutate_json(chance: random.Random, value: Any) -> Any:
    """A few places of a JSON value deleted, renamed or replaced by something wild."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 2, 5])):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(chance.choice(WILD))
        holder, key = chance.choice(places)
        match chance.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                other = chance.choice(["", "x", f"{key}_", "blocks.999999999.x", f"{key}.weight"])
                holder[other] = holder.pop(key)
            case 2 if isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
                number = holder[key]
                holder[key] = chance.choice([-number, number + 1, number * 2, number * 10**6, str(number)])
            case _:
                holder[key] = copy.deepcopy(chance.choice(WILD))  # later rounds reach into it
    return value


def _places(value: Any, depth: int = 6) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys[:200] if not isinstance(keys, range) else keys[:50]:
        yield value, key
        if depth:
            yield from _places(value[key], depth - 1)


def mutate_json_file(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.25:
        return mutate_bytes(chance, data)
    text = json.dumps(mutate_json(chance, json.loads(data)))
    return text.encode(chance.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"]))


def mutate_safetensors(chance: random.Random, data: bytes) -> bytes:
    """Bytes, or the header's names, shapes, dtypes and offsets."""
    if chance.random() < 0.35:
        return mutate_bytes(chance, data)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    for _ in range(chance.choice([1, 1, 2, 8])):
        _mutate_tensor(chance, header, chance.choice(names))
    if chance.random() < 0.15:
        header = mutate_json(chance, header)
    text = json.dumps(header).encode()
    length = len(text) if chance.random() < 0.95 else chance.choice([0, 1, len(text) + 8, 2**40, 2**63])
    return length.to_bytes(8, "little") + text + body


def _mutate_tensor(chance: random.Random, header: dict[str, Any], name: str) -> None:
    """Rename, drop, re-type or reshape one tensor, mostly so that the format stays valid."""
    entry = header.pop(name, None)
    if not isinstance(entry, dict):
        return
    shape = entry.get("shape") or [1]
    match chance.randrange(7):
        case 0:
            return
        case 1:
            name = chance.choice(
                [
                    "module." + name,
                    "ema." + name,
                    name.replace("0", "7"),
                    name.upper(),
                    "",
                    name + ".x",
                    re.sub(r"\d+", "999999999", name),
                    re.sub(r"\d+", "0", name),
                ]
            )
        case 2:
            entry["dtype"] = chance.choice(DTYPES)
        case 3:
            entry["shape"] = chance.choice(
                [shape[::-1], [1, *shape], [*shape, 1], [2 * shape[0], *shape[1:]], [], [0]]
            )
        case 4:
            total = 1
            for side in shape:
                total *= side
            entry["shape"] = chance.choice([[total], [1, total], [total, 1, 1], [1] * 40 + [total]])
        case 5:
            entry["dtype"] = {"F32": "I32", "F16": "BF16"}.get(entry["dtype"], "F32")
        case _:
            entry["data_offsets"] = chance.choice(
                [[0, 0], [0, 4], [-1, 4], [4, 0], [0, 2**62], entry["data_offsets"][::-1], "x"]
            )
    header[name] = entry


def mutate_pickle(chance: random.Random, data: bytes) -> bytes:
    """Bytes of the archive, or of the pickle in it."""
    if chance.random() < 0.4 or not zipfile.is_zipfile(io.BytesIO(data)):
        return mutate_bytes(chance, data)
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in archive.namelist():
            part = archive.read(name)
            if name.endswith("data.pkl"):
                part = mutate_bytes(chance, part)
            elif chance.random() < 0.02:
                continue
            target.writestr(name, part)
    return out.getvalue()


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".safetensors": mutate_safetensors,
    ".pth": mutate_pickle,
    ".bin": mutate_pickle,
    ".json": mutate_json_file,
}


# --- files --------------------------------------------------------------------------------------------------


def prototypes(folder: Path) -> list[Path]:
    """Models in every layout that the pack reads."""
    import torch
    from builders import released_state, tiny_transformer, write_model
    from hart_builders import write_hart_model
    from real_files import save_wrapped, write_vae

    plain = write_model(folder / "plain")
    trainer = folder / "trainer"
    save_wrapped(trainer / "transformer.pth", "ema_model beside model, in DDP")
    write_vae(trainer / "vae.pth")
    shutil.copytree(plain / "text", trainer / "text")
    shards = folder / "shards"
    (shards / "infinity_8b_weights").mkdir(parents=True)
    state = released_state(tiny_transformer())
    names = sorted(state)
    for part, held in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in held}, shards / "infinity_8b_weights" / f"{part}.bin")
    index = {"metadata": {}, "weight_map": {name: f"{n % 2}.bin" for n, name in enumerate(names)}}
    (shards / "infinity_8b_weights" / "model.bin.index.json").write_text(json.dumps(index))
    write_vae(shards / "vae.safetensors")
    shutil.copytree(plain / "text", shards / "text")
    return [plain, trainer, shards, write_hart_model(folder / "hart")]


def files(trials: int, seed: int = 0, full: int = 1) -> Findings:
    """Mutate one file of a model, and find, open, load and convert the model.

    Args:
        full: one in how many models that open is loaded, too.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        models = prototypes(folder)
        contents = {
            path: path.read_bytes() for model in models for path in sorted(model.rglob("*")) if path.is_file()
        }
        parts = {
            model: [path for path in contents if model in path.parents and path.suffix in MUTATIONS]
            for model in models
        }

        def attempt(chance: random.Random) -> Iterator[str]:
            model = chance.choice(models)
            path = chance.choice(parts[model])
            path.write_bytes(MUTATIONS[path.suffix](chance, contents[path]))
            other = chance.choice(
                [f"._{path.name}", f"{path.stem} (1){path.suffix}", path.name.upper(), "a b.PTH"]
            )
            renamed = path.with_name(other)
            moved = chance.random() < 0.05
            try:
                if moved:
                    path.rename(renamed)
                yield f"{path.relative_to(folder)}{f' as {renamed.name}' if moved else ''}"
                use(model, path, chance, full)
            finally:
                renamed.unlink(missing_ok=True)
                path.write_bytes(contents[path])
                left = [p for p in folder.rglob("*") if p.is_file() and p not in contents]
                for p in left:
                    p.unlink()
                if left:
                    raise AssertionError(f"left behind: {left}")

        return run(trials, seed, attempt)


def use(model: Path, path: Path, chance: random.Random, full: int) -> None:
    """What the nodes do with a model, in their order; sometimes what `convert` does."""
    from comfy_moss.model.checkpoint import open_transformer, open_vae
    from comfy_moss.model.contents import CODEC, TRANSFORMER, identify
    from comfy_moss.model.library import find_model
    from comfy_moss.model.tensors import convert, open_tensors
    from comfy_moss.model.text import load_tokenizer

    if chance.random() < 0.1 and path.suffix != ".json":
        target = model / "converted.safetensors"
        try:
            convert(path, target)
        finally:
            target.unlink(missing_ok=True)
        return
    found = find_model(str(model), [])
    if path.suffix != ".json" and path not in (found.text / "model.safetensors",) and chance.randrange(full):
        tensors = open_tensors(path)
        kind = identify(tensors)
        if kind in (TRANSFORMER, CODEC):
            (open_transformer if kind == TRANSFORMER else open_vae)(tensors)
        return
    if path.name.startswith("tokenizer") and chance.randrange(full):
        load_tokenizer(found.text, padded=model.name == "hart")("a red circle")
    elif found.text == path.parent and (path.name == "config.json" or not chance.randrange(full)):
        found.load_text().encode(["a red circle", "unheard words 模型"])
    elif found.text != path.parent:
        found.load()


# --- workflows ----------------------------------------------------------------------------------------------


def workflows(trials: int, seed: int = 0) -> Findings:
    """Run one node of a graph with widgets and links that are missing, of another kind, out of range or no
    numbers.
    """
    import torch
    from fakehost import installed

    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, installed(Path(place)) as host:
        host.start()
        model, clip, vae = host.run("MoSs_LoadInfinity").result
        text = clip.encode("a red circle")
        draft = host.run(
            "MoSs_InfinityDraft", model=model, positive=text, area="0.06M", refine_scales=2
        ).result[0]
        frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
        dispatch = host.run("MoSs_TokenDispatch", frequency=frequency).result[0]
        residual = host.run("MoSs_Refine", draft=draft, dispatch=dispatch).result[0]
        latent = host.run("MoSs_Composite", draft=draft, residual=residual).result[0]
        links = {
            "MOSS_MODEL": model, "MOSS_DRAFT": draft, "MOSS_FREQUENCY": frequency, "MOSS_DISPATCH": dispatch,
            "MOSS_RESIDUAL": residual, "LATENT": latent, "CONDITIONING": text, "VAE": vae,
            "IMAGE": torch.rand(1, 32, 32, 3),
            "MASK": torch.rand(1, 16, 16),
        }
        wild = [
            *WILD, *odd_tensors(), *links.values(), [[torch.zeros(1, 3, 5), {}]], {"samples": None},
            [[1, {}]],
        ]

        def attempt(chance: random.Random) -> Iterator[str]:
            name = chance.choice(sorted(host.nodes))
            sockets = host.nodes[name].define_schema().inputs
            kinds = {s.id: chance.choice(s.get_io_type().split(",")) for s in sockets if not s.widget}
            values = {name: links[kind] for name, kind in kinds.items()}
            values |= {socket.id: socket.default for socket in sockets if socket.widget}
            values |= {"area": "0.06M"} if name == "MoSs_InfinityDraft" else {}
            rich = [
                socket for socket in sockets if socket.widget or socket.optional or chance.random() < 0.15
            ] or sockets
            for socket in chance.sample(rich, min(len(rich), chance.choice([1, 1, 2, 3]))):
                value = (
                    chance.choice(wild)
                    if chance.random() < 0.5 or socket.widget
                    else chance.choice(odd_tensors())
                )
                if socket.widget and chance.random() < 0.7:
                    value = near(chance, socket)
                values[socket.id] = value
                if chance.random() < 0.1:
                    del values[socket.id]
            yield f"{name}({', '.join(f'{key}={value!r}'[:60] for key, value in values.items())})"
            with torch.inference_mode():
                host.nodes[name].execute(**values)

        return run(trials, seed, attempt)


def odd_tensors() -> list[Any]:
    """Shapes and values that neighbours pass."""
    import torch

    shapes = [
        (), (0,), (5,), (4, 4), (1, 4, 4), (2, 4, 4), (1, 1, 4, 4), (1, 4, 4, 1), (1, 4, 4, 2), (1, 4, 4, 4),
        (3, 4, 4, 3), (1, 1, 4, 4, 3), (1, 0, 4, 3), (0, 4, 4, 3),
    ]
    plain = [torch.rand(shape) for shape in shapes]
    others = [
        torch.full((1, 4, 4), float("nan")), torch.full((1, 4, 4, 3), float("inf")),
        torch.ones(1, 4, 4, dtype=torch.uint8),
    ]
    return [*plain, *others, torch.rand(1, 4, 4).half(), torch.rand(1, 4, 4, 3, dtype=torch.float64)]


def near(chance: random.Random, socket: Any) -> Any:
    """A value at or beyond the edges of a widget."""
    kind = socket.get_io_type()
    if kind in ("INT", "FLOAT"):
        edges = [socket.min, socket.min - 1, socket.max, socket.max + 1]
        return chance.choice([*edges, 1e9, float("nan"), -float("inf"), str(socket.default), "x"])
    if kind == "COMBO":
        return chance.choice([*socket.options, "", "gone.safetensors", "../../etc/passwd"])
    if kind == "STRING":
        return chance.choice(
            ["80,70", "80", "a,b", "1e999", "4x4:AAA=", "99999x99999:AA==", "0x0:", "8 0", "x" * 5000, "é\0"]
        )
    return chance.choice([True, False, "true", 0, None])


# --- recipes ------------------------------------------------------------------------------------------------


def recipes(trials: int, seed: int = 0) -> Findings:
    """Mutate pictures that remember how they were made, and read, check and type their recipes again."""
    import torch

    from comfy_moss.images import png

    recipe = {
        "prompt": "a red circle", "negative": "", "seed": 7, "method": "moss", "bounds": [60.0, 30.0],
        "skip": None, "cssa": True, "refine_guidance": True, "strength": 1.0, "window": 3, "cfg": 1.5,
        "tau": 0.5, "aspect": "1:1", "pixels": "0.06M", "model": "nano", "model_id": "0", "noise": 1,
        "precision": "fp32", "device": "cpu", "version": "0.1.0", "torch": "2.13",
    }
    picture = torch.rand(8, 8, 3)
    whole = png(picture, recipe)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        path = Path(place) / "picture.png"

        def attempt(chance: random.Random) -> Iterator[str]:
            damaged = chance.random() < 0.3
            changed = recipe if damaged else mutate_json(chance, recipe)
            path.write_bytes(mutate_bytes(chance, whole) if damaged else png(picture, changed))
            yield "bytes" if damaged else json.dumps(changed)[:300]
            read_again(path)
            if left := [file for file in path.parent.iterdir() if file != path]:
                raise AssertionError(f"left behind: {left}")

        return run(trials, seed, attempt)


def read_again(path: Path) -> None:
    """Up to where drawing would begin."""
    from comfy_moss.cli import _parser
    from comfy_moss.images import read_recipe
    from comfy_moss.request import Request, arguments, check

    order = arguments(read_recipe(path))
    check(Request.of(_parser().parse_args([order[0], "-o", str(path.with_name("again.png")), *order[1:]])))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]
    import conftest  # noqa: F401, puts the package on the path

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("files", "recipes", "workflows"))
    parser.add_argument("trials", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    findings = globals()[asked.what](asked.trials, asked.seed)
    sys.stdout.write(json.dumps(findings.facts(), indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if findings.faults else 0)
