"""Shared test set-up: imports, and one tiny model for the whole session.

The repository root holds a folder `kernels/`, which transformers would take for the Hugging Face package of
that name if the root were on `sys.path`.  So the root is only there while comfy_moss is imported: its
submodules are found through the package afterwards.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download something must fail instead
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import pytest  # noqa: E402
import torch  # noqa: E402
from builders import write_model, write_weights  # noqa: E402

from comfy_moss.model.infinity import InfinityBackbone  # noqa: E402

torch.set_num_threads(1)

def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk: transformer.safetensors, vae.safetensors and text/ (imports transformers, which
    takes seconds).
    """
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> InfinityBackbone:
    """The weights of `model_dir`, loaded in float32 on the CPU; do not change them."""
    from comfy_moss.model.checkpoint import load_infinity

    path = write_weights(tmp_path_factory.mktemp("weights"))
    return load_infinity(path / "transformer.safetensors", path / "vae.safetensors")
