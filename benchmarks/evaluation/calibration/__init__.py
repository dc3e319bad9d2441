"""Finding the bounds of MoSs-k: `python -m comfy_moss calibrate`."""
