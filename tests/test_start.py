"""How people start the command line: as a module, as a folder, from anywhere, with an embedded Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_moss import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "comfy_moss"
ORDER = ["generate", "a red circle", "--pixels", "0.06M", "-o", "out.png"]


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *command]
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("command", "cwd"),
    [
        (["-m", "comfy_moss"], ROOT),
        ([str(PACKAGE)], Path("/")),
        (["-I", str(PACKAGE)], Path("/")),
        (["-I", "comfy_moss"], ROOT),
        (["-s", "-E", str(PACKAGE / "__main__.py")], Path("/")),
        (["."], PACKAGE),
        (["__main__.py"], PACKAGE),
        (["-P", str(PACKAGE)], ROOT),
        (["-m", "comfy_moss"], PACKAGE.parent),
        (["-c", f"import runpy; runpy.run_path({str(PACKAGE)!r}, run_name='__main__')"], Path("/")),
    ],
)
def test_the_command_line_starts(command: list[str], cwd: Path) -> None:
    if "-P" in command and sys.version_info < (3, 11):
        pytest.skip("-P is of Python 3.11")
    code = command[command.index("-c") + 1] if "-c" in command else ""
    order = ["-c", f"import sys; sys.argv[1:] = ['--version']; {code}"] if code else [*command, "--version"]
    done = run(*order, cwd=cwd)
    assert (done.returncode, done.stdout.strip()) == (0, __version__), done.stderr


def test_an_embedded_python_draws_from_a_folder_with_spaces_and_accents(tmp_path: Path) -> None:
    home = tmp_path / "Mes modèles 模型"
    home.mkdir()
    (home / "ComfyUI-MoSs").symlink_to(ROOT, target_is_directory=True)
    done = run("-I", str(home / "ComfyUI-MoSs" / "comfy_moss"), *ORDER, cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out.png").is_file(), done.stderr


def test_a_foreign_module_of_our_names_is_not_shadowed(tmp_path: Path) -> None:
    program = f"""
import runpy, sys
sys.argv[1:] = ["--version"]
sys.path.insert(0, {str(PACKAGE)!r})
try:
    runpy.run_path({str(PACKAGE)!r}, run_name="__main__")
except SystemExit:
    pass
assert not any(entry in ({str(ROOT)!r}, {str(PACKAGE)!r}) for entry in sys.path), sys.path
"""
    done = run("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
