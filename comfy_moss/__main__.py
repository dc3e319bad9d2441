"""`python -m comfy_moss`."""

import sys
from pathlib import Path


def _leave_root() -> None:
    """Take the repository root off sys.path, where `python -m` put it.

    transformers takes any top-level `kernels` it can see for the Hugging Face package of that name; ours lies in the root.
    comfy_moss itself is imported already, and finds its own modules without sys.path.
    """
    root = Path(__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]


if __name__ == "__main__":
    _leave_root()
    from .cli import main

    sys.exit(main())
