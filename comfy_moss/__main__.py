"""`python -m comfy_moss`, or `python path/to/comfy_moss` where Python does not look into the working
folder.
"""

import importlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def _run() -> int:
    """Import the package from its own place, keep that place off sys.path, and run the command line.

    transformers takes any top-level `kernels` it can see for the Hugging Face package of that name; ours lies
    in
    the root.  Run as a script, the package's own folder is on the path too, and its modules would pass for
    others.
    Once comfy_moss is imported, it finds its modules without sys.path.
    """
    root, name = PACKAGE.parent, PACKAGE.name
    sys.path.insert(0, str(root))
    importlib.import_module(name)
    if root.name not in ("site-packages", "dist-packages"):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (root, PACKAGE)]
    return importlib.import_module(f"{name}.cli").main()


if __name__ == "__main__":
    sys.exit(_run())
