"""The laboratory: speed, quality, calibration, export and verification.  It comes with a clone, not with a registry install.

`python -m comfy_moss bench | evaluate | export | calibrate | verify` find it as `comfy_moss.benchmarks`, by the package's path.
"""
