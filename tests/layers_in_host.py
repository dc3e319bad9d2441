"""Run by the host's Python: draws with the host's own layers in every way that it treats memory, and prints
what came of it as one JSON object.  Arguments: ComfyUI's folder, then more of its own command line.

On a CPU nothing is ever brought from one device to another, so two things stand in for that.  The host is
told that its device is no CPU and how much memory is free, so that it leaves weights behind; and weights that
it left behind say that they are elsewhere and refuse to be computed with: only `to` and the host's casts may
touch them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(sys.argv[1])
sys.argv[1:] = ["--cpu", *sys.argv[2:]]
sys.path.insert(0, str(ROOT))
import comfy_moss  # noqa: E402, F401

sys.path[0] = str(HOST)  # ours is found through the package from here on

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.lora  # noqa: E402
import comfy.memory_management  # noqa: E402
import comfy.model_management as mm  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.overrides import TorchFunctionMode, resolve_name  # noqa: E402

sys.path.append(str(ROOT / "tests"))
from builders import tiny_backbone  # noqa: E402
from hart_builders import tiny_hart_backbone  # noqa: E402
from test_hart_limits import make_recipe as hart_recipe  # noqa: E402
from test_limits import make_recipe as limits_recipe  # noqa: E402
from tune_builders import MAPS, edit_recipe, enlarge_recipe, tiny_edit, tiny_enlarge  # noqa: E402

from comfy_moss.model.backbone import Backbone  # noqa: E402
from comfy_moss.model.hart import HartTransformer  # noqa: E402
from comfy_moss.model.infinity import InfinityTransformer  # noqa: E402
from comfy_moss.model.library import find_model  # noqa: E402
from comfy_moss.model.loading import load_module  # noqa: E402
from comfy_moss.model.nsarm import EnlargeTransformer  # noqa: E402
from comfy_moss.model.quantize import Quantizer  # noqa: E402
from comfy_moss.model.quantized_weights import quantized  # noqa: E402
from comfy_moss.model.schedule import make_schedule  # noqa: E402
from comfy_moss.model.tensors import Tensors, convert  # noqa: E402
from comfy_moss.model.vae import VAE, Tokenizer  # noqa: E402
from comfy_moss.nodes.host import is_roomy, manage  # noqa: E402
from comfy_moss.nodes.layers import pick  # noqa: E402
from comfy_moss.nodes.load import loaded  # noqa: E402
from comfy_moss.pipeline.draft import Recipe  # noqa: E402
from comfy_moss.pipeline.plan import generate, parse_method  # noqa: E402

torch.set_num_threads(1)
PROMPT = "a red heart on a gradient white background"
CHANGED = "blocks.1.ffn.fc1.weight"  # by patches
MIB = 2**20
Budget = tuple[float | None, str]  # bytes free on the device (None = the CPU as it is), and the host's mode


class LeftBehind(TorchFunctionMode):
    """Refuses to compute with tensors that were left behind, but for bringing them."""

    BRING = ("to", "copy_", "empty_like", "pin_memory")
    ASK = (
        "__get__", "numel", "nelement", "element_size", "size", "dim", "is_pinned", "data_ptr",
        "is_inference",
    )

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = {id(tensor): tensor for tensor in tensors}
        self.brought: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func == Tensor.device.__get__ and id(args[0]) in self.tensors:
            return torch.device("meta")  # elsewhere
        name = (resolve_name(func) or func.__name__).rpartition(".")[2]
        given = [*args, *(kwargs or {}).values()]
        found = [one for one in given if isinstance(one, Tensor) and id(one) in self.tensors]
        if found and name not in self.BRING + self.ASK:
            size = tuple(found[0].shape)
            raise AssertionError(f"{name} computes with a weight {size} that was left behind")
        result = func(*args, **(kwargs or {}))
        if found and name == "to":
            self.brought[id(found[0])] += 1
            return result.clone()  # on a device it would be another tensor
        return result


@contextmanager
def casts_counted(moved: Counter[str]) -> Iterator[None]:
    """Bytes of the weights that the host's layers bring to where their input is; always a copy, as it would
    be there.
    """
    cast, bring = comfy.ops.cast_bias_weight, mm.cast_to

    def counted(layer: Any, *args: Any, **options: Any) -> Any:
        moved["casts"] += 1
        moved["bytes"] += sum(w.nbytes for w in (layer.weight, layer.bias) if w is not None)
        return cast(layer, *args, **options)

    def copied(weight: Tensor, dtype: torch.dtype | None = None, *args: Any, **options: Any) -> Tensor:
        return weight.to(dtype=dtype, copy=True)

    comfy.ops.cast_bias_weight, mm.cast_to = counted, copied
    try:
        yield
    finally:
        comfy.ops.cast_bias_weight, mm.cast_to = cast, bring


@contextmanager
def device_with(free: float | None, state: str = "NORMAL_VRAM") -> Iterator[None]:
    """A device that is no CPU and has so many bytes free; None = the CPU as it is."""
    told = {
        "is_device_cpu": lambda device: False, "vram_state": mm.VRAMState[state],
        "pin_memory": lambda tensor: False,
        "get_free_memory": lambda _=None, torch_free_too=False: (free, free) if torch_free_too else free,
        "minimum_inference_memory": lambda: 0,
    }
    kept = {name: getattr(mm, name) for name in told}
    vars(mm).update({} if free is None else told)
    try:
        yield
    finally:
        vars(mm).update(kept)


def left(module: torch.nn.Module) -> list[Tensor]:
    """Weights that the host left behind: of layers that it casts, and whatever it moves only as a whole."""
    if not module.model_lowvram:
        return []
    moved = {id(part) for part in module.modules() if getattr(part, "comfy_patched_weights", False)}
    apart = [part for part in module.modules() if id(part) not in moved]
    return [tensor for part in apart for tensor in part.parameters(recurse=False)]


def drawn(backbone: Backbone, recipe: Recipe, method: Any) -> Tensor:
    """A picture (H, W, 3) in [0, 255]."""
    return 255 * generate(backbone, recipe, method).image[0]


def within(budget: Budget, patchers: list[Any], work: Callable[[], Tensor]) -> dict[str, Any]:
    """What came of some work while the host keeps models in the memory of a device."""
    moved: Counter[str] = Counter()
    with device_with(*budget):
        mm.unload_all_models()
        mm.load_models_gpu(patchers)
        behind = [tensor for patcher in patchers for tensor in left(patcher.model)]
        with casts_counted(moved), torch.inference_mode(), LeftBehind(behind) as guard:
            result = work()
    return {
        "result": result, "casts": moved["casts"], "cast_bytes": moved["bytes"], "left": len(behind),
        "left_bytes": sum(tensor.nbytes for tensor in behind), "brought": sum(guard.brought.values()),
    }


def told(found: dict[str, Any], plain: Tensor) -> dict[str, Any]:
    """With how far the result is from the plain one in its place."""
    return found | {"result": float((found["result"] - plain).abs().max())}


# --- nano ---------------------------------------------------------------------------------------------------


def nano(precision: str = "fp32") -> tuple:
    return loaded(find_model("nano", []), precision).result


def encoded(clip: Any) -> Tensor:
    ids = [token[0] for chunk in clip.tokenize(PROMPT)["t5"] for token in chunk]
    return clip.cond_stage_model.encoder.features(ids, clip.patcher.load_device)


def picture(model: Any, text: Tensor, method: str = "moss4") -> Tensor:
    files, schedule = model.files, make_schedule(1.0, model.files.area)
    recipe = Recipe((text,), None, (5,), schedule, files.guidance(1.5), files.sampling(0.5))
    return drawn(model.backbone, recipe, parse_method(method, published=files.published.on(schedule)))


def treated() -> dict[str, Any]:
    """Nano's prompt and picture however the host treats memory."""
    model, clip, _ = nano()
    models = [model.patcher, model.vae_patcher]
    text, plain = encoded(clip), None
    result: dict[str, Any] = {}
    for name, budget in BUDGETS.items():
        found = within(budget, models, lambda: picture(model, text))
        plain = found["result"] if plain is None else plain
        result[name] = told(found, plain)
        words = within((budget[0] and budget[0] / 8, budget[1]), [clip.patcher], lambda: encoded(clip))
        result[f"text, {name}"] = told(words, text)
    return result


def patched() -> dict[str, Any]:
    """Weights patched by the host's own means: a LoRA of zeros, one of a known product, and a known
    difference.
    """
    model, clip, _ = nano()
    text, weights = encoded(clip), model.backbone.transformer.state_dict()
    key, bias = CHANGED, "blocks.2.sa.mat_qkv.bias"
    rows, columns = weights[key].shape
    torch.manual_seed(0)
    up, down, more = (torch.randn(size) / 8 for size in ((rows, 4), (4, columns), weights[bias].shape))
    cases = {
        "zeros": ({key: low_rank(torch.zeros_like(up), down)}, {}),
        "product": ({key: low_rank(up, down)}, {key: 0.5 * (up @ down)}),
        "difference": ({bias: ("diff", (more,))}, {bias: 0.5 * more}),
    }
    result, others, before = {}, [model.vae_patcher], picture(model, text)
    for name, (patches, deltas) in cases.items():
        changed = nano()[0]
        for at, delta in deltas.items():
            changed.backbone.transformer.get_parameter(at).data += delta
        plain = picture(changed, text)
        for where in ("plain", "no room"):
            one = model.patcher.clone()
            one.add_patches(patches, 0.5)
            found = within(BUDGETS[where], [one, *others], lambda: picture(model, text))
            effect = float((found["result"] - before).abs().max())
            result[f"{name}, {where}"] = told(found, plain) | {"effect": effect}
    without = within(BUDGETS["plain"], [model.patcher, *others], lambda: picture(model, text))
    return result | {"unpatched": told(without, before)}


def lazily_built() -> dict[str, Any]:
    """With layers that have no weights until they are loaded, as the host builds them under dynamic VRAM."""
    text, right = encoded(nano()[1]), nano()[0]
    comfy.memory_management.aimdo_enabled = True
    model, clip, _ = nano()
    comfy.memory_management.aimdo_enabled = False
    models = [model.patcher, model.vae_patcher]
    found = within(BUDGETS["no room"], models, lambda: picture(model, text))
    words = within(BUDGETS["no room"], [clip.patcher], lambda: encoded(clip))
    return {"picture": told(found, picture(right, text)), "text": told(words, text)}


def low_rank(up: Tensor, down: Tensor) -> Any:
    """A LoRA of one matrix, as the host reads it from a file."""
    alpha = torch.tensor(float(len(down)))
    state = {"one.lora_up.weight": up, "one.lora_down.weight": down, "one.alpha": alpha}
    return comfy.lora.load_lora(state, {"one": "one"})["one"]


def in_fp8() -> dict[str, Any]:
    """As `--fp8_e4m3fn-unet` stores it, against the same rounding done beforehand."""
    comfy.cli_args.args.fp8_e4m3fn_unet = True
    model, clip, _ = nano("auto")
    comfy.cli_args.args.fp8_e4m3fn_unet = False
    text, rounded = encoded(clip), nano()[0]
    for block in rounded.backbone.transformer.blocks:
        for name, weight in block.named_parameters():
            if name.endswith(".weight") and weight.dim() == 2:
                weight.data = weight.data.to(torch.float8_e4m3fn).float()
    plain = picture(rounded, text)
    kinds = Counter(str(weight.dtype) for weight in model.backbone.transformer.blocks.parameters())
    models = [model.patcher, model.vae_patcher]
    found = {name: within(BUDGETS[name], models, lambda: picture(model, text)) for name in BUDGETS}
    return {"types": dict(kinds)} | {name: told(one, plain) for name, one in found.items()}


def in_8_bits() -> dict[str, Any]:
    """Files that `convert` wrote, against the same weights multiplied out in plain torch; and with a LoRA."""
    result, files, text = {}, find_model("nano", []), encoded(nano()[1])
    for kind in ("fp8", "int8"):
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"{kind}.safetensors"
            convert(files.transformer, path, packed=lambda tensors, kind=kind: quantized(tensors, kind))
            one = replace(files, transformer=path)
            model, right = loaded(one, "fp32").result[0], replace(nano()[0], backbone=one.load())
        models, plain = [model.patcher, model.vae_patcher], picture(right, text)
        for where in ("plain", "no room"):
            found = within(BUDGETS[where], models, lambda model=model: picture(model, text))
            mean = float((found["result"] - plain).abs().mean())
            result[f"{kind}, {where}"] = told(found, plain) | {"mean": mean}
        torch.manual_seed(0)
        up, down = torch.randn(768, 4) / 8, torch.randn(4, 192) / 8
        weight = right.backbone.transformer.get_parameter(CHANGED)
        weight.data += (change := 0.5 * (up @ down))
        changed, one = picture(right, text), model.patcher.clone()
        one.add_patches({CHANGED: low_rank(up, down)}, 0.5)
        patchers, at = [one, model.vae_patcher], partial(model.backbone.transformer.get_parameter, CHANGED)
        held = within(BUDGETS["plain"], patchers, lambda at=at: at().dequantize())["result"]
        found = within(BUDGETS["no room"], patchers, lambda model=model: picture(model, text))["result"]
        result[f"{kind}, LoRA"] = {
            "rounding": float((held - weight).abs().mean() / change.abs().mean()),
            "off": float((found - changed).abs().mean()), "effect": float((found - plain).abs().mean()),
        }
        blocks = model.backbone.transformer.blocks.modules()
        result[f"{kind}, layers"] = Counter(type(part.weight).__name__ for part in blocks if is_matrix(part))
        result[f"{kind}, graphs"] = is_roomy(model.backbone.transformer, torch.device("cpu"))
    return result


def is_matrix(layer: torch.nn.Module) -> bool:
    return getattr(layer, "weight", None) is not None and layer.weight.dim() == 2


# --- the other families, of two narrow blocks ---------------------------------------------------------------


def families() -> dict[str, Any]:
    """Tiny models of all families without room for a single layer."""
    plain, edit = tiny_backbone(patchify=True), tiny_edit()
    hart, enlarge = tiny_hart_backbone(cosine=True), tiny_enlarge()
    models = {
        "patchify": (plain, limits_recipe(), partial(InfinityTransformer, plain.transformer.config)),
        "varedit": (edit, edit_recipe(edit), partial(InfinityTransformer, edit.transformer.config)),
        "nsarm": (enlarge, enlarge_recipe(), partial(EnlargeTransformer, enlarge.transformer.config, MAPS)),
        "hart": (hart, hart_recipe(), partial(HartTransformer, hart.transformer.config)),
    }
    return {name: without_room(*one) for name, one in models.items()}


def without_room(plain: Backbone, recipe: Recipe, make: Callable[[Any], torch.nn.Module]) -> dict[str, Any]:
    def codec(ops: Any) -> torch.nn.Module:
        if not hasattr(plain.vae, "quantize"):
            return VAE(plain.vae.config, ops)
        return Tokenizer(plain.vae.config, Quantizer(*plain.vae.quantize.embedding.weight.shape), ops)

    parts, method = {"transformer": make, "vae": codec}, parse_method("draft-1; -1@50")
    hosted = {
        name: load_module(
            build, Tensors.of(getattr(plain, name).state_dict()), lambda _: torch.float32, "cpu", operations()
        )
        for name, build in parts.items()
    }
    patchers = [manage(part, torch.device("cpu"), torch.device("cpu")) for part in hosted.values()]
    backbone = replace(plain, **hosted)
    found = within(BUDGETS["no room"], patchers, lambda: drawn(backbone, recipe, method))
    return told(found, drawn(plain, recipe, method))


def operations() -> Any:
    return pick(torch.float32, torch.float32, False)


BUDGETS: dict[str, Budget] = {
    "plain": (None, "NORMAL_VRAM"), "some room": (6 * MIB, "NORMAL_VRAM"), "low": (4 * MIB, "LOW_VRAM"),
    "no room": (0.0, "NO_VRAM"),
}

if __name__ == "__main__":
    parts = (treated, patched, lazily_built, in_fp8, in_8_bits, families)
    sys.stdout.write(json.dumps({part.__name__: part() for part in parts}))
