"""The pack is imported as ComfyUI does it, on machines that lack what it can do without.  In a stand-in for
ComfyUI.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# Loads the root's __init__.py under the folder's path as its name, asks for the nodes, and draws a picture.
PROGRAM = """
import importlib.util, logging, pathlib, sys, tempfile
sys.path.append({tests!r})
{before}
from fakehost import installed
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="LOG %(message)s")
with installed(pathlib.Path(tempfile.mkdtemp())) as host:
    name = {root!r}.replace(".", "_x_")
    file, folders = {root!r} + "/__init__.py", [{root!r}]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    assert {root!r} not in sys.path and "comfy_moss" not in sys.modules and pack.WEB_DIRECTORY
    host.start(name + ".comfy_moss")
    model, clip, vae = host.run("MoSs_LoadInfinity").result
    prompt = clip.encode("a red circle")
    draft = host.run("MoSs_InfinityDraft", model=model, positive=prompt, area="0.06M").result[0]
    assert host.run("MoSs_DenseRefine", draft=draft).result[0]["samples"].isfinite().all()
{after}
"""
NO_TRITON = "sys.modules['triton'] = None"
NO_CUDA = """
import torch
def forbidden(*args, **kwargs):
    raise AssertionError("CUDA was touched")
torch.cuda.init = torch.cuda._lazy_init = torch.cuda.current_device = forbidden
torch.cuda.is_available = lambda: False
"""
HUB = "import kernels; assert kernels.MARK == 'hub' and len(kernels.__path__) == 1"


@pytest.mark.parametrize(
    ("before", "after"), [(NO_TRITON, ""), (NO_CUDA, ""), (HUB, HUB)],
    ids=["no triton", "no CUDA", "Hugging Face's kernels"],
)
def test_the_pack_loads_and_draws_and_says_once_what_computes_it(
    before: str, after: str, tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("MARK = 'hub'\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if before == HUB:
        environment["PYTHONPATH"] = str(tmp_path)
    script = PROGRAM.format(tests=str(TESTS), root=str(ROOT), before=before, after=after)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("LOG")]
    assert re.fullmatch(r"LOG MoSs \d.*: 19 nodes", said[0])  # nothing is probed before a model is loaded
    assert re.fullmatch(r"LOG MoSs: attention and RoPE of nano: torch: .*(no CUDA|on cpu).*", said[1])
    assert len(said) == 2
