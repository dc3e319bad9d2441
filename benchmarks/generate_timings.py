"""Time whole pictures, methods interleaved, and store the medians with hardware and versions.

    python benchmarks/generate_timings.py --shape nano --device cpu
    python benchmarks/generate_timings.py --shape 2b --device cuda --precision bf16      # random weights, 1 megapixel

Writes benchmarks/results/generate_<shape>_<device name>.json.  The weights' values do not matter for time, so the released
shapes are filled at random.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402

sys.path.remove(str(ROOT))  # the folder kernels/ must not pass for the package of that name

import torch  # noqa: E402

from comfy_moss.model.checkpoint import load_infinity  # noqa: E402
from comfy_moss.model.infinity import InfinityConfig, InfinityTransformer  # noqa: E402
from comfy_moss.model.infinity_backbone import InfinityBackbone  # noqa: E402
from comfy_moss.model.schedule import make_schedule  # noqa: E402
from comfy_moss.model.vae import VAE, VAEConfig  # noqa: E402
from comfy_moss.pipeline.draft import Recipe  # noqa: E402
from comfy_moss.pipeline.generate import Method, generate, parse_method  # noqa: E402

METHODS = ("dense", "draft", "fastvar", "moss2", "moss3", "moss4", "moss5")
CODEC = VAEConfig(width=128, mult=(1, 2, 4, 4, 4), encoder_blocks=2, decoder_blocks=3, channels=32)
SHAPES = {  # infinity_layer12 and infinity_2b
    "125m": (InfinityConfig(12, 768, 8, 3072, 16, 2048, 16, 512, 15), VAEConfig(128, (1, 2, 4, 4, 4), 2, 3, 16), "0.06M"),
    "2b": (InfinityConfig(32, 2048, 16, 8192, 32, 2048, 16, 512, 15), CODEC, "1M"),
}


def random_backbone(shape: str, device: str, dtype: torch.dtype) -> tuple[InfinityBackbone, str]:
    """A model of that shape with small random weights, and the image area it is meant for."""
    config, codec, area = SHAPES[shape]
    with torch.device("meta"):
        parts = InfinityTransformer(config), VAE(codec)
    torch.manual_seed(0)
    for part in parts:
        part.to_empty(device=device).requires_grad_(False).eval()
        for parameter in part.parameters():
            parameter.normal_(std=0.02)
    parts[0].blocks.to(dtype)
    parts[1].to(dtype)
    return InfinityBackbone(*parts, f"random-{shape}"), area


def load(shape: str, device: str, dtype: torch.dtype) -> tuple[InfinityBackbone, str]:
    if shape != "nano":
        return random_backbone(shape, device, dtype)
    folder = ROOT / "comfy_moss" / "assets" / "nano"
    return load_infinity(folder / "transformer.safetensors", folder / "vae.safetensors", None, device, dtype), "0.25M"


def measure(backbone: InfinityBackbone, recipe: Recipe, methods: dict[str, Method], runs: int) -> dict[str, dict]:
    """Every method once unmeasured, then `runs` rounds of all methods in turn; medians of every stage."""
    rounds: dict[str, list] = {name: [] for name in methods}
    for n in range(runs + 1):
        for name, method in methods.items():
            picture = generate(backbone, recipe, method)
            if n:
                rounds[name].append(picture)
    return {name: summarise(pictures) for name, pictures in rounds.items()}


def summarise(pictures: list) -> dict:
    totals = [sum(p.seconds.values()) for p in pictures]
    quartiles = statistics.quantiles(totals, n=4) if len(totals) > 1 else [totals[0]] * 3
    stages = {stage: round(statistics.median(p.seconds[stage] for p in pictures), 4) for stage in pictures[0].seconds}
    return {
        "median_s": round(statistics.median(totals), 4),
        "iqr_s": round(quartiles[2] - quartiles[0], 4),
        "stages_s": stages,
        "tokens": sum(pictures[0].tokens_per_scale),
        "kv_bytes": pictures[0].kv_bytes,
    }


def hardware(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfy_moss": comfy_moss.__version__,
    }


def cpu_name() -> str:
    """The processor's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("nano", *SHAPES), default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone, area = load(args.shape, args.device, torch.bfloat16 if args.precision == "bf16" else torch.float32)
    text = torch.randn(12, backbone.transformer.config.text_width, generator=torch.Generator().manual_seed(0))
    recipe = Recipe((text,), None, (0,), make_schedule(1.0, area))
    table = measure(backbone, recipe, {name: parse_method(name) for name in args.methods}, args.runs)
    result = {"shape": args.shape, "precision": args.precision, "runs": args.runs, **hardware(args.device), "methods": table}
    slug = re.sub(r"[^A-Za-z0-9]+", "-", result["device"]).strip("-").lower()
    target = ROOT / "benchmarks" / "results" / f"generate_{args.shape}_{slug}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result, indent=1) + f"\n{target}\n")


if __name__ == "__main__":
    main()
