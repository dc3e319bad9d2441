"""Parity with the original implementation, on the small reference cases in tests/golden."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from comfy_moss.benchmarks.verify import verify

GOLDEN = Path(__file__).parent / "golden"
ALL_GOLDEN = Path(os.environ.get("MOSS_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))


def changed_copy(target: Path, tensor: str, amount: float, case: str = "case_C_greedy") -> Path:
    """The reference directory with one number of one tensor altered, and a manifest that agrees."""
    shutil.copytree(GOLDEN, target)
    manifest = json.loads((target / "manifest.json").read_text())
    path = target / manifest["cases"][case]["file"]
    tensors = load_file(path)
    flat = tensors[tensor].view(-1)
    flat[0] = flat[0] + amount
    save_file(tensors, path)
    manifest["cases"][case]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_the_bundled_reference_cases_pass():
    checks = list(verify(GOLDEN))

    assert {c.case for c in checks} == {"rope", "sampler", "case_C_greedy"}
    assert [c for c in checks if not c.passed] == []


@pytest.mark.skipif(
    not ALL_GOLDEN.is_dir(),
    reason="NOT VERIFIED: the complete reference numbers are not here; name them in MOSS_GOLDEN",
)
def test_every_reference_case_passes():
    checks = list(verify(ALL_GOLDEN))

    assert len({c.case for c in checks}) >= 12
    assert [c for c in checks if not c.passed] == []


@pytest.mark.parametrize(
    "tensor, amount, quantity",
    [
        ("s03.logits", 0.01, "logits"),
        ("s01.blk0_out", 0.01, "blk0_out"),
        ("summed_final", 1e-4, "summed_final"),
        ("image_area8", 0.01, "image"),
        ("s02.bits", 1, "wrong bits"),
    ],
)
def test_a_changed_reference_fails(tmp_path, tensor, amount, quantity):
    checks = verify(changed_copy(tmp_path / "golden", tensor, amount))

    failed = {c.quantity for c in checks if not c.passed}

    assert quantity in failed


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path):
    folder = changed_copy(tmp_path / "golden", "s03.logits", 0.01)
    shutil.copy(GOLDEN / "manifest.json", folder / "manifest.json")

    with pytest.raises(ValueError, match="checksum"):
        list(verify(folder))


def test_an_unknown_kind_of_case_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"cases": {"x": {"kind": "magic", "file": "x"}}}))

    with pytest.raises(ValueError, match="unknown kind: magic"):
        list(verify(tmp_path))


def test_a_directory_without_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match="manifest.json"):
        list(verify(tmp_path))
