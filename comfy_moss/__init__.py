"""Next-scale-prediction image models with Mixture of Scales, free of ComfyUI."""

from pathlib import Path

__version__ = "0.1.0"

# `kernels/` lies beside this package, not in it; this makes it importable as `.kernels` however the pack was
# loaded.
__path__.append(str(Path(__file__).resolve().parent.parent))
