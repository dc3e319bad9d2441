"""Measuring speed and memory on the machine at hand: `python -m comfy_moss bench`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
