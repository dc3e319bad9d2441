"""The project around the code: what the README promises, what the files may hold, and the trap of the folder
kernels/.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import comfy_moss
from comfy_moss import cli
from comfy_moss.model.backbone import NANO, PAPER_BOUNDS
from comfy_moss.model.library import NAMES, RELEASES, TEXT_ENCODER
from comfy_moss.pipeline.plan import METHODS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("comfy_moss", "kernels", "benchmarks", "training")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NOT_OURS = {"__pycache__", "build", "models", "node_modules", "out", "venv"}  # what git does not track


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


README, MAKEFILE, PYPROJECT = _read("README.md"), _read("Makefile"), _read("pyproject.toml")
# as typed, without the program
COMMANDS = re.findall(r"(?:python|\(PY\)) -m comfy_moss (.+?)(?:`|\n)", README + MAKEFILE)


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    return next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction))


# --- what the README promises -------------------------------------------------------------------------------


def test_the_readmes_make_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    used = set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE))
    assert {"picture", "test"} <= used <= targets


def test_ci_runs_the_readmes_test_command_and_nothing_else() -> None:
    lines = [
        line for line in _read(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert lines == ["make test"] and "\nmake test\n" in README
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_readmes_picture_is_drawn_the_same_way_with_and_without_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_make, without = (command for command in COMMANDS if "out/picture.png" in command)
    assert with_make == without
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(with_make)) == 0
    assert (tmp_path / "out" / "picture.png").is_file()
    shown = {path.stem for path in (tmp_path / "out" / "maps").iterdir()}
    assert shown >= {"poster", "draft", "frequency", "dispatch", "result", "scale_00", "scale_01"}


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_the_readmes_commands_are_understood(command: str, capsys: pytest.CaptureFixture) -> None:
    try:
        args = cli._parser().parse_args(shlex.split(command))
    except SystemExit as end:  # --help
        assert end.code == 0 and "usage:" in capsys.readouterr().out
    else:
        assert callable(args.run)


@pytest.mark.parametrize("name", _subcommands())
def test_every_subcommand_is_in_the_readme_and_has_help(name: str, capsys: pytest.CaptureFixture) -> None:
    assert name in {shlex.split(command)[0] for command in COMMANDS}
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0 and f"comfy_moss {name}" in capsys.readouterr().out


def test_the_readme_names_every_method_with_its_bounds_and_every_model_with_its_files() -> None:
    files = {file for release in RELEASES.values() for file in (release.transformer, release.vae)}
    assert [
        name for name in (*METHODS, *NAMES, *files) if f"`{name}`" not in README and f" {name}`" not in README
    ] == []
    assert TEXT_ENCODER in README
    for k, bounds in PAPER_BOUNDS.items():
        line = re.search(rf"^\| `moss{k}` .*$", README, re.MULTILINE)[0]
        assert ", ".join(f"{bound:g}" for bound in bounds) in line
    for k, bounds in ((k, bounds) for searched in NANO.searched.values() for k, bounds in searched.items()):
        assert f"`moss{k}` {', '.join(f'{bound:g}' for bound in bounds)}" in README


def test_every_place_the_readme_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README + _read("CONTRIBUTING.md"))
    places = re.findall(r"^([a-z_]+(?:/[a-z_.]*)+) ", README, re.MULTILINE)
    assert len(links) >= 4 and len(places) >= 7
    assert [place for place in links + places if not (ROOT / place).exists()] == []


# --- what belongs together ----------------------------------------------------------------------------------


def test_package_registry_and_changelog_agree_on_the_version() -> None:
    assert re.search(r'^version = "(.+?)"', PYPROJECT, re.MULTILINE)[1] == comfy_moss.__version__
    assert re.search(r"^## \[(.+?)\]", _read("CHANGELOG.md"), re.MULTILINE)[1] == comfy_moss.__version__


def test_the_makefile_installs_the_tools_that_pyproject_names() -> None:
    tools = re.search(r"^dev = \[(.+)\]", PYPROJECT, re.MULTILINE)[1].replace(", ", " ")
    assert f"-r requirements.txt {tools}\n" in MAKEFILE


def _required(name: str) -> set[str]:
    return {re.match(r"[\w-]+", line)[0] for line in _read(name).splitlines() if line[:1] not in ("", "#")}


def test_the_requirements_are_what_the_code_imports() -> None:
    modules, required = {"pillow": "PIL"}, _required("requirements.txt")
    files = [path for path in CODE if path.parts[len(ROOT.parts)] in ("comfy_moss", "kernels")]
    imported = set().union(*map(_libraries, files)) - sys.stdlib_module_names
    # of the host, and of transformers; and what only GGUF files need, named when it is missing
    from_elsewhere = {"torch", "triton", "comfy", "comfy_api", "folder_paths", "tokenizers", "gguf"}
    assert {modules.get(name, name) for name in required} == imported - from_elsewhere


def test_the_laboratorys_requirements_are_what_it_imports_besides() -> None:
    files = [path for path in CODE if path.parts[len(ROOT.parts)] == "benchmarks"]
    known = (
        sys.stdlib_module_names
        | _required("requirements.txt")
        | {"PIL", "torch", "triton", "comfy_moss", "hosting", "ray"}  # ray: only where --cluster is given
    )
    assert set().union(*map(_libraries, files)) - known == _required("requirements-lab.txt")


def _libraries(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


# --- what the files may hold --------------------------------------------------------------------------------


def _files() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in NOT_OURS and (name[0] != "." or name in (".ci", ".github"))
        ]
        # a file in a work tree of its own
        yield from (Path(folder, name) for name in names if name != ".git")


PLACES = "|".join(("work", "root", "home", "Users", "mnt", "opt", "tmp"))
MACHINE = re.compile(rf"(?<![\w.~*)\]}}-])/(?:{PLACES})/[\w.-]|\b[A-Z]:\\Users".encode())


@pytest.mark.parametrize(
    "path", ["work/main/a.py", "root/venv", "home/anna/pictures", "Users/anna/x", "tmp/a.png"]
)
def test_paths_of_one_machine_are_recognised(path: str) -> None:
    for text in (f"/{path}", f'open("/{path}")', f"see /{path}", f"DIR=/{path}"):
        assert MACHINE.search(text.encode()), text
    for text in (path, f"our/{path}", f"~/{path}", f"{{ROOT}}/{path}"):
        assert not MACHINE.search(text.encode()), text


def test_no_file_holds_paths_of_one_machine() -> None:
    found = [(path.name, match[0]) for path in _files() if (match := MACHINE.search(path.read_bytes()))]
    assert found == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_of_code_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 600


# --- the folder kernels/ ------------------------------------------------------------------------------------


@pytest.fixture
def hub_kernels(tmp_path: Path) -> Path:
    """A folder with an installed package `kernels`, of a version that transformers accepts and with any
    member it asks for.
    """
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.10.4")
    package, facts = tmp_path / "kernels", tmp_path / f"kernels-{version}.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").write_text(
        "from unittest.mock import MagicMock\nMARK = 'hub'\n__getattr__ = MagicMock()\n"
    )
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (facts / "top_level.txt").write_text("kernels\n")
    return tmp_path


PROGRAM = """
import runpy, sys
sys.argv = ["comfy_moss", "models"]
try:
    runpy.run_module("comfy_moss", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
"""


@pytest.mark.parametrize("start", ["import comfy_moss.ops", PROGRAM], ids=["library", "program"])
def test_transformers_takes_the_hubs_kernels_and_not_our_folder(start: str, hub_kernels: Path) -> None:
    """Both begin with the repository's root first on sys.path, where `python -m` puts it."""
    script = f"{start}\nfrom transformers import T5EncoderModel\nimport kernels\nprint(kernels.MARK)"
    environment = os.environ | {"PYTHONPATH": str(hub_kernels)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["hub"], done.stderr


def test_kernels_is_no_package() -> None:
    assert (ROOT / "kernels" / "reference.py").is_file() and not (ROOT / "kernels" / "__init__.py").exists()
