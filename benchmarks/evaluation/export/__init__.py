"""Pictures for benchmarks that score elsewhere: `python -m comfy_moss export`."""
