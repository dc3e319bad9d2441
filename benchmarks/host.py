"""What the host adds: seconds of the shipped workflow in a real ComfyUI beside the library's own, on this
machine's CPU.

    COMFYUI_PATH=/path/to/ComfyUI python benchmarks/host.py [--runs 5] [--files 30000]

Both run in the host's Python with one thread, by turns, so that a busy moment hits both; medians are printed
as JSON.  A picture counts in the host from queueing it to the end of its run with the saved file, in the
library without loading the model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # where the host is started for the tests
from hosting import Host, checkout, interpreter  # noqa: E402

WORKFLOW = ROOT / "workflows" / "api" / "01 Text to image.json"
MEGAPIXEL = {"area": "1M"}  # 512 x 512 for nano


def graph(seed: int, draft: dict[str, Any] | None = None, **dispatch: Any) -> dict[str, Any]:
    """The shipped workflow with another seed, and with other values in its draft and dispatch nodes."""
    nodes = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    for node in nodes.values():
        if node["class_type"] == "MoSs_InfinityDraft":
            node["inputs"] |= {"seed": seed, **(draft or {})}
        if node["class_type"] == "MoSs_TokenDispatch":
            node["inputs"] |= dispatch
    return nodes


def prompt() -> str:
    return next(
        node["inputs"]["text"] for node in graph(0).values() if node["class_type"] == "CLIPTextEncode"
    )


def bounds(run: int) -> str:
    """That of sparse3, but for a tenth of a percent a run, so that no run is like another."""
    return f"{45 + run / 10}"


def in_host(host: Host, nodes: dict[str, Any], preview: str = "auto") -> float:
    """Seconds of a run."""
    start = time.perf_counter()
    result = host.run(nodes, extra_data={"preview_method": preview})
    if result["status"]["status_str"] != "success":
        raise RuntimeError(result["status"])
    return time.perf_counter() - start


def in_library(seed: int, *options: str) -> dict[str, float]:
    """Seconds of every stage of a picture by the command line."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            interpreter(checkout()), "-m", "comfy_moss", "generate", prompt(), "--seed", str(seed), "--json",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "-o", f"{folder}/a.png", *options], cwd=ROOT, env=environment, capture_output=True,
            text=True, check=True,
        )
    return {
        stage: seconds
        for stage, seconds in json.loads(done.stdout)["seconds"].items()
        if stage not in ("load", "total")
    }


def by_turns(runs: int, **measures: Callable[[int], float]) -> dict[str, float]:
    """Median seconds of each measure of a run's number, and the first over the second."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for run in range(runs):
        for name, measure in measures.items():
            seconds[name].append(measure(run))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first, second, *_ = medians.values()
    return {**medians, "ratio": first / second}


def measured(host: Host, runs: int, files: int) -> dict[str, dict[str, float]]:
    """All figures; aims: a picture and other bounds at most 1.3, preview at most 1.05."""
    for warm in ({}, MEGAPIXEL):
        in_host(host, graph(1, warm))
    found = {
        "a picture": by_turns(
            runs, host=lambda run: in_host(host, graph(100 + run)),
            library=lambda run: sum(in_library(100 + run).values()),
        ),
        "512 px, preview on and off": by_turns(
            runs, on=lambda run: in_host(host, graph(200 + run, MEGAPIXEL)),
            off=lambda run: in_host(host, graph(300 + run, MEGAPIXEL), "none"),
        ),
    }
    in_host(host, graph(400))

    def library(run: int) -> float:
        seconds = in_library(400, f"--plan=draft-3; -1@{bounds(run)} unguided")
        return seconds["refine"] + seconds["decode"]

    changed = {"preset": "custom bounds"}
    found["other bounds"] = by_turns(
        runs, host=lambda run: in_host(host, graph(400, **changed, values=bounds(run))), library=library
    )
    few = statistics.median(in_host(host, graph(400)) for _ in range(runs))
    for n in range(files):
        folder = host.base / "models" / ("checkpoints", "vae", "text_encoders")[n % 3] / str(n // 1000)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n}.safetensors").touch()
    in_host(host, graph(400))
    many = statistics.median(in_host(host, graph(400)) for _ in range(runs))
    found["a cached picture"] = {f"with {files} more files": many, "without": few, "ratio": many / few}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="of every measure")
    parser.add_argument("--files", type=int, default=30000, help="unrelated files below models/")
    options = parser.parse_args()
    with Host() as host:
        figures = measured(host, options.runs, options.files)
    rounded = {name: {key: round(value, 4) for key, value in row.items()} for name, row in figures.items()}
    sys.stdout.write(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
