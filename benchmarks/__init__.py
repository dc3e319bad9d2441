"""The laboratory: speed, quality, calibration, export and verification.  It comes with a clone, not with a
registry install.

`python -m comfy_moss bench | evaluate | export | calibrate | verify` find it as `comfy_moss.benchmarks`, by
the package's path; `python -m benchmarks.kernels` runs from the root.
"""

import sys
from pathlib import Path

import comfy_moss

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# by `python -m`, which put the root on the path: kernels/ must not pass for the hub's package
if __name__ == "benchmarks":
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    sys.modules.setdefault("comfy_moss.benchmarks", sys.modules[__name__])
    comfy_moss.benchmarks = sys.modules[__name__]
