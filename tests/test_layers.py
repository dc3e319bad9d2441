"""The layers: imports go down only, and each library stays on its own floor."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANK = {  # others: 4
    "kernels": 0, "typed": 0, "__version__": 0, "ops": 1, "images": 1, "model": 2, "pipeline": 3, "nodes": 6,
    "benchmarks": 5,
}
COMFYUI = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server",
}
FOLDERS = ("comfy_moss", "kernels", "benchmarks")
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def _part(path: PurePosixPath) -> str:
    """comfy_moss/model/vae -> model.  `comfy_moss.kernels` is the folder beside the package."""
    return path.parts[1] if path.parts[0] == "comfy_moss" else path.parts[0]


def _imports(file: PurePosixPath, tree: ast.AST) -> Iterator[PurePosixPath | str]:
    """What a file imports: its place in the repository where that is known, else the library's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            place = PurePosixPath(*node.module.split("."))
            ours = file.parts[0] == "benchmarks" and place.parts[0] == "comfy_moss"
            yield from (place / alias.name for alias in node.names) if ours else (place.parts[0],)
        elif isinstance(node, ast.ImportFrom):
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield from (folder / alias.name for alias in node.names)


def _allowed(here: str, target: PurePosixPath | str) -> bool:
    if isinstance(target, PurePosixPath):
        part = _part(target)
        if part in ("kernels", "benchmarks"):
            return (
                here
                in {"kernels": ("ops", "kernels", "benchmarks"), "benchmarks": ("cli", "benchmarks")}[part]
            )
        return RANK.get(part, 4) <= RANK.get(here, 4)
    if here == "kernels":
        return target in {"torch", "triton"} | sys.stdlib_module_names
    pack = {"comfy_moss", "kernels"} if here != "benchmarks" else {"kernels"}
    return target not in pack | (COMFYUI if here != "nodes" else set())


def complaints(file: PurePosixPath, source: str) -> list[str]:
    """What a file at this place in the repository may not contain."""
    tree, here = ast.parse(source), _part(file.with_suffix(""))
    found = [f"{here} imports {target}" for target in _imports(file, tree) if not _allowed(here, target)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)  # docstrings may name the models
    if here == "pipeline" and (
        name := re.search("infinity|(?<![a-z])hart", ast.unparse(tree), re.IGNORECASE)
    ):
        found.append(f"pipeline names {name[0]}")
    return found


def test_one_family_of_models_imports_nothing_of_the_other() -> None:
    infinity = {"infinity", "checkpoint"}
    hart = {"hart", "hart_head", "hart_checkpoint"}
    for family, other in ((infinity, hart), (hart, infinity)):
        for name in family:
            file = PurePosixPath(f"comfy_moss/model/{name}.py")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            found = {part.parent.name for part in _imports(file, tree) if isinstance(part, PurePosixPath)}
            assert not found & other, f"{name} imports {found & other}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down_only(file: Path) -> None:
    assert complaints(PurePosixPath(file.as_posix()), (ROOT / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("comfy_moss/model/vae.py", "from ..pipeline.draft import Draft"),
        ("comfy_moss/model/vae.py", "from .. import pipeline"),
        ("comfy_moss/model/vae.py", "from ...comfy_moss.nodes import load"),
        ("comfy_moss/model/vae.py", "from ..kernels.reference import rope2d"),
        ("comfy_moss/ops.py", "from .model import vae"),
        ("comfy_moss/pipeline/draft.py", "from ..benchmarks import suite"),
        ("comfy_moss/job.py", "from .benchmarks import suite"),
        ("comfy_moss/nodes/load.py", "def run():\n    from ..benchmarks import suite"),
        ("benchmarks/suite.py", "from comfy_moss.nodes import load"),
        ("benchmarks/suite.py", "import folder_paths"),
        ("comfy_moss/cli.py", "def run():\n    from .nodes import load"),
        ("comfy_moss/cli.py", "import folder_paths"),
        ("comfy_moss/cli.py", "import comfy.utils"),
        ("comfy_moss/cli.py", "import comfy_moss.model"),
        ("comfy_moss/ops.py", "from kernels.reference import rope2d"),
        ("kernels/rope2d.py", "import numpy"),
        ("kernels/rope2d.py", "from ..comfy_moss.ops import rope2d"),
        ("comfy_moss/pipeline/draft.py", "kind = 'HART'"),
        ("comfy_moss/pipeline/draft.py", "def run(infinity_model): pass"),
    ],
)
def test_what_breaks_the_layers_is_found(file: str, source: str) -> None:
    assert complaints(PurePosixPath(file), source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("comfy_moss/nodes/load.py", "import folder_paths\nfrom ..pipeline.draft import Draft"),
        ("comfy_moss/ops.py", "from .kernels.reference import rope2d"),
        ("comfy_moss/cli.py", "from . import __version__, job\nfrom .benchmarks import commands"),
        (
            "benchmarks/suite.py",
            "import comfy_moss\nfrom comfy_moss.request import check\nfrom .world import Scene",
        ),
        ("kernels/rope2d.py", "import math\nimport triton.language as tl\nfrom .reference import rope2d"),
        ("comfy_moss/pipeline/draft.py", "def chart():\n    '''Infinity and HART'''\n    return 'chart'"),
    ],
)
def test_what_keeps_the_layers_is_not(file: str, source: str) -> None:
    assert complaints(PurePosixPath(file), source) == []
