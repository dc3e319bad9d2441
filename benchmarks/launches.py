"""Count what the refine step of Infinity-2B gives a GPU to launch, without one: python benchmarks/launches.py

Runs the transformer on the meta device, where nothing is computed, and counts every operation that makes or fills a tensor:
with torch's operations, and with each kernel of kernels/ taken as the one launch that it is.  Attention counts as one launch in
both.  On a GPU, `bench` counts what really ran (column "launches in refine").
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path.remove(str(ROOT))  # the folder kernels/ must not pass for the package of that name

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from comfy_moss.benchmarks.bench.shapes import SHAPES  # noqa: E402
from comfy_moss.model.backbone import Pass, Step  # noqa: E402
from comfy_moss.model.cache import KVCache  # noqa: E402
from comfy_moss.model.infinity import InfinityCondition, InfinityTransformer  # noqa: E402
from comfy_moss.model.schedule import Positions, make_schedule  # noqa: E402
from comfy_moss.ops import TORCH, Kernels  # noqa: E402

SCHEDULE = make_schedule()
TEXT, PAST, TOKENS = 20, 921, 988  # of the prompt, in the cache, and refined: MoSs5 at 1024 x 1024
LAUNCHES_NOTHING = {"detach", "alias", "empty", "empty_like", "new_empty", "_unsafe_view", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Counts operations by name; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        name = func.overloadpacket.__name__
        if not func.is_view and name not in LAUNCHES_NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class OneAttention(TorchFunctionMode):
    """Attention as the one kernel that it is on a GPU."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if func is F.scaled_dot_product_attention:
            self.launches.counts["attention"] += 1
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def fused(launches: Launches) -> Kernels:
    """Every kernel of kernels/ as one launch that returns what its twin returns."""

    def once(name: str, result: Callable[..., object]) -> Callable[..., object]:
        def launch(*args: object, **options: object) -> object:
            launches.counts[name] += 1
            return result(*args)

        return launch

    def like(x: Tensor, *_: object) -> Tensor:
        return torch.empty_like(x)

    def normed(x: Tensor, _scale: Tensor, _shift: Tensor, dtype: torch.dtype | None = None, *_: object) -> Tensor:
        return torch.empty_like(x, dtype=dtype)

    def roped(qkv: Tensor, *_: object) -> tuple[Tensor, ...]:
        return tuple(qkv.permute(2, 0, 3, 1, 4))

    results = {"cosine_rope2d": roped, "cross_scale_attention": like, "modulated_norm": normed, "affine_norm": normed}
    return Kernels("fused", **{name: once(name, result) for name, result in (results | {"gated_add": like}).items()})


@torch.inference_mode()
def count(kernels: Callable[[Launches], Kernels]) -> Counter[str]:
    """Launches of all blocks in one refine step."""
    config = SHAPES["2b"].transformer
    with torch.device("meta"):
        model = InfinityTransformer(config)
        model.blocks.to(torch.bfloat16)
        kv = (torch.empty(2, config.heads, TEXT, config.head_dim, dtype=torch.bfloat16),) * 2
        pooled = torch.empty(2, config.width)
        condition = InfinityCondition(pooled, torch.empty(2, 6, config.width), (kv,) * config.depth, None, 1)
        cache = KVCache([PAST] * config.depth, 2, config.heads, config.head_dim, torch.bfloat16, "meta")
        cache.lengths = [PAST] * config.depth
        x, angles = torch.empty(2, TOKENS, config.width), torch.empty(1, TOKENS, config.head_dim // 2)
        launches = Launches()
        step = Step(Positions.of_scale(SCHEDULE, 0), SCHEDULE, condition, cache=cache)
        with OneAttention(launches), launches:
            model(x, Pass(step, angles, angles, kernels=kernels(launches)))
    return launches.counts


def main() -> None:
    layers = SHAPES["2b"].transformer.depth
    for name, kernels in (("torch", lambda _: TORCH), ("kernels/", fused)):
        counts = count(kernels)
        parts = ", ".join(f"{operation} {number / layers:g}" for operation, number in counts.most_common())
        sys.stdout.write(f"{name}: {counts.total()} launches, a layer {counts.total() / layers:g}: {parts}\n")


if __name__ == "__main__":
    main()
