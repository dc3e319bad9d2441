"""Parity with HART's original implementation, on an excerpt of the reference numbers in tests/golden_hart."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from comfy_moss.benchmarks.verify import verify

GOLDEN = Path(__file__).parent / "golden_hart"
ALL_GOLDEN = Path(os.environ.get("MOSS_GOLDEN_HART", Path(__file__).parents[2] / "shared" / "golden_hart"))


def changed_copy(target: Path, file: str, tensor: str, factor: float) -> Path:
    """The reference directory with one tensor multiplied, and a manifest that agrees."""
    shutil.copytree(GOLDEN, target)
    manifest = json.loads((target / "manifest.json").read_text())
    tensors = load_file(target / file)
    tensors[tensor] = (tensors[tensor] * factor).to(tensors[tensor].dtype)
    save_file(tensors, target / file)
    manifest["files"][file]["sha256"] = hashlib.sha256((target / file).read_bytes()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_the_bundled_reference_cases_pass():
    checks = list(verify(GOLDEN))

    assert {c.case for c in checks} == {"sched_teacher", "units"}
    assert {"logits_raw", "rotated", "diffusion constants", "kept codes", "wrong phi"} <= {
        c.quantity for c in checks
    }
    assert [c for c in checks if not c.passed] == []


@pytest.mark.skipif(
    not ALL_GOLDEN.is_dir(),
    reason="NOT VERIFIED: the complete reference numbers are not here; name them in MOSS_GOLDEN_HART",
)
def test_every_reference_case_passes():
    checks = list(verify(ALL_GOLDEN))

    assert len({c.case for c in checks}) >= 11
    assert [c for c in checks if not c.passed] == []
    assert all(c.allowed <= 1e-4 for c in checks if "logits" in c.quantity)
    assert all(
        c.allowed == 0
        for c in checks
        if c.quantity in ("wrong codes", "kept tokens", "tokens of a pass", "kept codes")
    )


@pytest.mark.parametrize(
    ("file", "tensor", "factor", "quantity"),
    [
        ("sched_teacher.safetensors", "s05.logits_raw", 1.001, "logits_raw"),
        ("sched_teacher.safetensors", "in.position_ids", 2, "logits_raw"),
        ("units.safetensors", "rope2d.out", 1.001, "rotated"),
        ("units.safetensors", "sampler.kept.k300.p0.0", 0, "kept codes"),
        ("units.safetensors", "diffusion8.posterior_mean_coef1", 1.001, "diffusion constants"),
        ("sched_weights.safetensors", "model.blocks.1.ln_wo_grad.weight", 1.01, "logits_raw"),
        ("sched_weights.safetensors", "vae.quantize.quant_resi.qresi_ls.0.bias", 2, "logits_raw"),
    ],
)
def test_a_changed_reference_fails(tmp_path: Path, file: str, tensor: str, factor: float, quantity: str):
    checks = verify(changed_copy(tmp_path / "golden", file, tensor, factor))

    assert quantity in {c.quantity for c in checks if not c.passed}


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path):
    folder = changed_copy(tmp_path / "golden", "units.safetensors", "rope2d.out", 1.001)
    shutil.copy(GOLDEN / "manifest.json", folder / "manifest.json")
    with pytest.raises(ValueError, match="checksum"):
        list(verify(folder))


def test_an_unknown_kind_of_case_is_an_error(tmp_path: Path):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"files": {"tiny_magic.safetensors": {}}, "configs": {}})
    )
    with pytest.raises(ValueError, match="unknown kind: magic"):
        list(verify(tmp_path))


def test_an_expected_tensor_that_nothing_is_compared_with_is_an_error(tmp_path: Path):
    folder = changed_copy(tmp_path / "golden", "units.safetensors", "rope2d.out", 1)
    tensors = load_file(folder / "units.safetensors")
    save_file(tensors | {"new.quantity": tensors["rope2d.out"].clone()}, folder / "units.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["units.safetensors"]["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="nothing was compared with new.quantity"):
        list(verify(folder))
