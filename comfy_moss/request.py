"""One request for pictures: what was asked for, its check before anything slow, the model, and the files.

Prints nothing.  Every command that draws makes its own from the same options.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__, typed
from .editing import Input, picture_options, read_input, remembered, source_of
from .images import check_writable, png, to_image, write_files
from .model.backbone import Backbone, Published
from .model.catalog import default_roots
from .model.graphs import with_graphs
from .model.library import ModelFiles, find_model
from .model.lora import merged, read_lora, shapes_of
from .model.sampling import NOISE_ID, Guidance, Sampling, per_scale
from .model.schedule import Schedule, parse_aspect
from .model.tiny_decoder import (
    FOLDER,
    TinyDecoder,
    find_tiny_decoder,
    load_tiny_decoder,
    tiny_decoder_name,
)
from .ops import choose
from .pipeline.budget import (
    Offer,
    check_budget,
    offers,
    place_of,
    plan_for,
    plan_within,
    seconds_of,
    times_file,
)
from .pipeline.draft import Recipe
from .pipeline.heatmap import explain
from .pipeline.plan import METHODS, Method, Picture, Plan, check_edits, parse_method


@dataclass(frozen=True)
class Request:
    """What somebody asks for, as typed; None = the model's own.

    Attributes:
        method, bounds, skip: see `parse_method`; `plan` says all three in one text.
        budget, seconds: the best found plan within a share of dense's work, or that time here; see `settle`.
        models: folders to look for models in first.
        aspect: width:height.
        pixels: image area, a key of `schedule.PRESETS`.
        cfg, tau: one number or one a scale.
        strength: factor on what refine passes add, in [0, 1]; window: side of the frequency window.
        tiny: decode with the codec's tiny decoder, quicker and not as well.
        kv_cache: "full", or "int8": keys and values in 8 bits.
        lora: files that change the transformer, each with its strength.
        no_cssa, no_refine_guidance: refine passes without cross-scale attention, without guidance.
        picture, mask: files of the picture to start from and of what may change in it; mode, fit: see
            `editing`.
        source: the prompt that the picture is of; taken: how many of its scales are taken whole.
        follow, rule: see `Edit`.
        sha256: what the files of picture and mask must be, by `editing.fingerprint`; () = anything.
        output, maps: where pictures and what explains them are written; None = nowhere.
    """

    prompt: str = ""
    negative: str = ""
    model: str = "nano"
    models: Sequence[Path] = ()
    method: str | None = None
    plan: str | None = None
    budget: float | None = None
    seconds: float | None = None
    bounds: float | Sequence[float] | None = None
    skip: int | None = None
    strength: float = 1.0
    window: int = 3
    no_cssa: bool = False
    no_refine_guidance: bool = False
    seed: int = 0
    batch: int = 1
    aspect: str = "1:1"
    pixels: str | None = None
    cfg: float | Sequence[float] | None = None
    tau: float | Sequence[float] | None = None
    device: str = "auto"
    precision: str = "auto"
    picture: Path | None = None
    mask: Path | None = None
    mode: str | None = None
    fit: str = "crop"
    source: str = ""
    taken: int | None = None
    follow: int | None = None
    rule: str | None = None
    sha256: Sequence[str] = ()
    output: Path | None = None
    maps: Path | None = None
    tiny: bool = False
    kv_cache: str = "full"
    lora: Sequence[tuple[Path, float]] = ()

    @classmethod
    def of(cls, options: object, **changes: Any) -> Request:
        """From options of these names, wherever they are attributes of; those that are missing stay as they
        are here.
        """
        known = {f.name: getattr(options, f.name) for f in fields(cls) if hasattr(options, f.name)}
        return cls(**{**known, **changes})

    @property
    def seeds(self) -> tuple[int, ...]:
        """One a picture, counting up."""
        return tuple(range(self.seed, self.seed + self.batch))


@dataclass(frozen=True)
class Checked:
    """A request with everything that can be known to be right before weights are read.

    Attributes:
        dtype: of the transformer's blocks, the codec and the text encoder.
        given: the picture to start from; None = from none.
    """

    request: Request
    files: ModelFiles
    method: Method
    schedule: Schedule
    guidance: Guidance
    sampling: Sampling
    pixels: str
    device: torch.device
    dtype: torch.dtype
    given: Input | None = None

    @property
    def published(self) -> Published:
        """Settings of the methods for this model and schedule."""
        return self.files.published.on(self.schedule)


def check(request: Request) -> Checked:
    """Refuse what is wrong with a request.

    Raises:
        ValueError: a value out of range, an output that cannot be written, or a model that is not there.
    """
    _check_texts(request)
    _check_outputs(request)
    if request.batch < 1:
        raise ValueError(f"the batch must hold at least 1 picture, got {request.batch}")
    if not 0 <= request.seed <= 2**64 - request.batch:
        raise ValueError(f"seeds lie between 0 and 2^64 - 1, got {request.seed} for {request.batch} pictures")
    _check_loras(request)
    given = read_input(request)
    device, dtype = choose_device(request.device, request.precision)
    files = find_model(request.model, [*request.models, *default_roots()])
    if files.pictured:
        raise ValueError(
            f"the model {files.told}, draws from a picture as well as from words, and no command gives it "
            "one; use its node in ComfyUI"
        )
    pixels = request.pixels or files.area
    ratio = files.ratio_for(given.ratio) if given else parse_aspect(request.aspect)
    schedule = files.schedule(ratio, pixels)
    method = method_of(request, files.published.on(schedule))
    if given and given.mode == "edit":
        check_edits(method)
    method.tokens_per_scale(schedule)  # refuses what this schedule cannot carry
    cfg = _scales(_guidance(request.cfg, files.cfg), schedule, "cfg")
    tau = _scales(files.tau if request.tau is None else request.tau, schedule, "tau")
    return Checked(
        request, files, method, schedule, files.guidance(cfg), files.sampling(tau), pixels, device, dtype,
        given,
    )


def _check_loras(request: Request) -> None:
    for path, strength in request.lora:
        if not path.is_file():
            raise ValueError(f"there is no LoRA {path}; name a file, for example style.safetensors:0.8")
        if not math.isfinite(strength):
            raise ValueError(f"the strength of {path} is {strength}; give it a number, such as 0.8")


def method_of(request: Request, published: Published) -> Method:
    """The method that a request names in one way or another.

    Raises:
        ValueError: an unknown or impossible method, or a plan beside other names of one.
    """
    bounds = [request.bounds] if isinstance(request.bounds, (int, float)) else request.bounds
    _check_budget(request)
    if request.plan is not None:
        if request.method or bounds or request.skip is not None:
            raise ValueError("a plan says all about the method; leave out method, bounds and skip")
        method = parse_method(request.plan, published=published)
    else:
        usual = "sparse3" if request.picture else published.method
        short = "draft" if request.skip is not None else "moss" if bounds else usual
        method = parse_method(_named(request.method) or short, bounds, request.skip, published)
    return _adjusted(method, request) if isinstance(method, Plan) else method


def _check_budget(request: Request) -> None:
    """A budget stands alone: the plan it stands for is chosen when the model is there, by `settle`."""
    if request.budget is None and request.seconds is None:
        return
    named = (request.method, request.plan, request.bounds, request.skip)
    if any(value is not None for value in named) or None not in (request.budget, request.seconds):
        raise ValueError(
            "a budget chooses the plan; give budget or seconds, and leave out method, plan, bounds and skip"
        )
    if request.budget is not None:
        check_budget(request.budget)
    elif not request.seconds > 0:
        raise ValueError(f"seconds must be above 0, got {request.seconds:g}")


def _named(method: str | None) -> str | None:
    """A method in any dress ("MoSs-4"); what is none stays as it was typed."""
    with contextlib.suppress(ValueError):
        return method and typed.word(method, METHODS, "method")
    return method


def _adjusted(plan: Plan, request: Request) -> Plan:
    """The plan with what the request says about all of its passes."""
    changes: dict[str, Any] = {"strength": request.strength} if request.strength != 1 else {}
    changes |= {"cross_scale": False} if request.no_cssa else {}
    changes |= {"guidance": 1.0} if request.no_refine_guidance else {}
    passes = tuple(replace(step, **changes) for step in plan.passes)
    return replace(plan, passes=passes, window=plan.window if request.window == 3 else request.window)


def _guidance(asked: float | Sequence[float] | None, own: float) -> float | Sequence[float]:
    """0 means the model's own everywhere, as in the nodes.

    Raises:
        ValueError: a 0 among others, which would leave the prompt out at that scale.
    """
    if isinstance(asked, Sequence) and 0 in asked:
        raise ValueError(
            f"cfg {list(asked)} has a 0, which would leave the prompt out; write 1 for no guidance"
        )
    return asked or own


def _scales(value: float | Sequence[float], schedule: Schedule, name: str) -> float | tuple[float, ...]:
    """One number, or at least one a scale."""
    values = per_scale(value, len(schedule), name)
    return float(value) if isinstance(value, (int, float)) else values


def _check_texts(request: Request) -> None:
    if not request.prompt.strip():
        raise ValueError("the prompt is empty; say what to draw")
    try:
        (request.prompt + request.negative).encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt holds bytes that are not text; write it in UTF-8") from None


def _check_outputs(request: Request) -> None:
    folders = [request.maps.absolute()] if request.maps else []
    if request.output:
        if request.output.suffix.lower() != ".png":
            raise ValueError(
                "pictures are written as PNG; name the output something.png instead of "
                f"{str(request.output)!r}"
            )
        if os.path.isdir(request.output):
            raise ValueError(f"{request.output} is a folder; name the picture to write in it")
        folders.insert(0, request.output.absolute().parent)
    for folder in folders:
        nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
            raise ValueError(f"nothing can be written to {folder}; choose another folder")
    last = max(0, request.batch - 1)  # the longest name
    for path in (request.output, request.maps and request.maps / "frequency.png"):
        check_writable(path and _numbered(path, last, request.batch))


def choose_device(name: str, precision: str) -> tuple[torch.device, torch.dtype]:
    """The device and dtype that "auto", "cuda:1", ... and "auto", "fp32", "bf16" stand for.

    Raises:
        ValueError: a device that cannot be used here.
    """
    try:
        name = {"gpu": "cuda"}.get(name.strip().lower(), name.strip().lower())
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device {name!r} cannot be used here; choose auto, or cpu") from None
    if precision == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and cpu_prefers_bf16())
        precision = "bf16" if fast else "fp32"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def cpu_prefers_bf16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: it has AMX.

    AVX-512's bfloat16 alone is not enough: on such a Xeon torch's products were measured to be slower than in
    float32.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    return bool(capabilities.get("amx_bf16"))


# --- the model, the files -----------------------------------------------------------------------------------


def load(checked: Checked) -> tuple[Backbone, Recipe, dict[str, float]]:
    """The model and the prompts' features, and the seconds that took.  The text encoder is gone before the
    model comes.
    """
    request, files, start = checked.request, checked.files, time.perf_counter()
    encoder = files.load_text(checked.device, checked.dtype)
    loaded = time.perf_counter()
    prompts = [request.prompt, *(words for words in (request.negative, request.source) if words.strip())]
    text, *others = encoder.encode(prompts)
    before = others.pop() if request.source.strip() else None
    encoded = time.perf_counter()
    del encoder
    backbone = files.load(checked.device, checked.dtype)
    backbone = replace(
        backbone, kernels=choose("auto", checked.device)[0], int8_cache=request.kv_cache == "int8"
    )
    backbone, _ = with_graphs(backbone, checked.device)
    if request.lora:
        backbone = merged(backbone, [(read_lora(p, shapes_of(backbone)), by) for p, by in request.lora])
    if request.tiny:
        backbone = replace(backbone, tiny=_tiny_decoder(checked, backbone))
    denied = tuple(others) * request.batch or None
    recipe = Recipe(
        (text,) * request.batch, denied, request.seeds, checked.schedule, checked.guidance, checked.sampling
    )
    seconds = {"load": loaded - start + time.perf_counter() - encoded, "text": encoded - loaded}
    if checked.given is None:
        return backbone, recipe, seconds
    start = time.perf_counter()
    source = source_of(checked.given, request, backbone, checked.schedule, drafted(checked), before)
    return backbone, replace(recipe, source=source), seconds | {"encode": time.perf_counter() - start}


def _tiny_decoder(checked: Checked, backbone: Backbone) -> TinyDecoder:
    """The tiny decoder of the model's codec, on the device.

    Raises:
        ValueError: there is none.
    """
    roots = [*checked.request.models, *default_roots()]
    path = find_tiny_decoder(checked.files.vae, [Path(root) / FOLDER for root in roots])
    if path is None:
        name = tiny_decoder_name(checked.files.vae)
        raise ValueError(
            f"{name}.safetensors was not found in a folder {FOLDER} of the models folders; make it with "
            "training/tiny_decoder.py, or leave --tiny out"
        )
    return load_tiny_decoder(path, backbone.channels, backbone.stride).to(checked.device)


def drafted(checked: Checked) -> int:
    """How many scales the method draws whole."""
    method, schedule = checked.method, checked.schedule
    return method.on(schedule).draft if isinstance(method, Plan) else len(schedule)


def settle(checked: Checked, backbone: Backbone, recipe: Recipe) -> tuple[Checked, Offer | None]:
    """With the plan that the request's budget stands for; the same where it has none.

    Raises:
        ValueError: no known plan is within the budget.
    """
    request, schedule = checked.request, checked.schedule
    if request.budget is None and request.seconds is None:
        return checked, None
    guided, model = checked.guidance.active(len(schedule)), Path(checked.files.name).name
    known = offers(backbone, schedule, guided, model)
    if request.budget is not None:
        offer = plan_for(request.budget, known)
    else:
        measure = partial(seconds_of, backbone, recipe)
        place = place_of(backbone, recipe, checked.dtype)
        offer = plan_within(request.seconds, known, measure, times_file(), place)
    return replace(checked, method=_adjusted(offer.plan, request)), offer


def write(
    checked: Checked, backbone: Backbone, picture: Picture, previews: Sequence[tuple[int, Tensor]]
) -> list[Path]:
    """Write pictures and maps, all or none.  Returns the pictures' paths."""
    request, images = checked.request, to_image(picture.image)
    paths = [_numbered(request.output, n, request.batch) for n in range(request.batch)]
    recipes = [recipe_of(checked, backbone, seed) for seed in request.seeds]
    files = {}
    if request.maps:
        for name, batch in _maps(checked, backbone, picture, previews).items():
            for n, image in enumerate(batch):
                files[_numbered(request.maps / f"{name}.png", n, request.batch)] = png(image)
    files |= {path: png(image, recipe) for path, image, recipe in zip(paths, images, recipes, strict=True)}
    write_files(files)
    return paths


def _numbered(path: Path, n: int, count: int) -> Path:
    """out.png -> out_0.png, ... where there are several."""
    return path.with_stem(f"{path.stem}_{n:0{len(str(count - 1))}}") if count > 1 else path


def _maps(
    checked: Checked, backbone: Backbone, picture: Picture, previews: Sequence[tuple[int, Tensor]]
) -> dict[str, Tensor]:
    """Name -> images (B, H, W, 3): every drawn scale, the result, and for refine passes what explains them.
    """
    with torch.inference_mode():
        images = {
            f"scale_{n:02d}": to_image(backbone.decode(total.to(backbone.device))) for n, total in previews
        }
    images["result"] = to_image(picture.image)
    given, count, before = checked.given, len(picture.image), {}
    if given:
        before = given.panels(backbone, checked.schedule, picture.change, count)
    if not picture.passes and not before:
        return images
    scales = picture.passes[0].draft.scales if picture.passes else previews[-1][0] + 1
    images["draft"] = images[f"scale_{scales - 1:02d}"]
    notes = (f"{scales} scales in order, {checked.schedule.tokens(0, scales)} tokens", picture.cost.label)
    heading = " -> ".join(words for words in (checked.request.source, checked.request.prompt) if words)
    return images | explain(images["draft"], images["result"], picture.passes, heading, notes, before)


# --- recipes ------------------------------------------------------------------------------------------------

_OPTIONS = ("model", "seed", "aspect", "pixels", "negative", "cfg", "tau", "precision", "kv_cache")
_METHOD_OPTIONS = ("method", "bounds", "skip", "strength", "window")  # of pictures that name no plan


def recipe_of(checked: Checked, backbone: Backbone, seed: int) -> dict[str, Any]:
    """All that decides one picture of the batch, for its metadata and for --json."""
    request, given = checked.request, checked.given
    aspect = f"{given.image.shape[2]}:{given.image.shape[1]}" if given else request.aspect
    drawn_from = {"edit": remembered(given, request)} if given else {}
    decoder = {"decoder": "tiny"} if request.tiny else {}
    cache = {"kv_cache": request.kv_cache} if request.kv_cache != "full" else {}
    loras = {"lora": [f"{path}:{strength:g}" for path, strength in request.lora]} if request.lora else {}
    return drawn_from | decoder | cache | loras | {
        "prompt": request.prompt, "negative": request.negative, "seed": seed, **_method_facts(checked.method),
        "cfg": checked.guidance.asked, "tau": checked.sampling.tau, "aspect": aspect,
        "pixels": checked.pixels, "model": Path(checked.files.name).name, "model_id": backbone.model_id,
        "noise": NOISE_ID, "precision": "bf16" if checked.dtype == torch.bfloat16 else "fp32",
        "device": checked.device.type, "version": __version__, "torch": torch.__version__,
    }


def _method_facts(method: Method) -> dict[str, Any]:
    """The method by its plan, and in the words of old, where they can say it."""
    if not isinstance(method, Plan):
        return {"method": method.label, "plan": None, "bounds": None, "skip": None}
    step = method.passes[0] if method.name == "moss" else None
    facts = {"method": method.name, "plan": str(method), "bounds": list(step.bounds) if step else None}
    facts |= {"skip": method.k if method.name == "draft" else None}
    if step:
        facts |= {"cssa": step.cross_scale, "refine_guidance": step.guided, "strength": step.strength}
    return facts | {"window": method.window}


def arguments(recipe: Mapping[str, Any]) -> list[str]:
    """The command line that draws a recipe again: `cli.main(arguments(read_recipe(path)))`.

    The model is stored by name, without its folder; where that does not find it, set recipe["model"] to its
    place.

    Raises:
        ValueError: something in it is no value of its option.
    """
    for name in ("prompt", *_OPTIONS, *_METHOD_OPTIONS, "lora"):
        _check_value(name, recipe.get(name, "" if name == "prompt" else None))
    plan, edit = recipe.get("plan"), recipe.get("edit")
    names = _OPTIONS if plan else (*_OPTIONS, *_METHOD_OPTIONS)
    command, texts, chosen = "generate", [recipe.get("prompt") or ""], {}
    if edit:
        command, names = "edit", [name for name in names if name not in ("aspect", "strength")]
        picture, chosen = picture_options(edit)
        texts.insert(0, picture)
    told = {name: recipe.get(name) for name in names} | chosen
    given = {name.replace("_", "-"): value for name, value in told.items() if value is not None}
    options = [f"--{name}={_typed(value)}" for name, value in given.items()]
    options += ["--tiny"] * (recipe.get("decoder") == "tiny")
    options += [f"--lora={told}" for told in recipe.get("lora") or ()]
    if plan:
        return [command, f"--plan={plan}", *options, "--", *texts]
    switches = ["--no-cssa"] * (not recipe.get("cssa", True))
    switches += ["--no-refine-guidance"] * (not recipe.get("refine_guidance", True))
    return [command, *options, *switches, "--", *texts]


def _check_value(name: str, value: object) -> None:
    """Refuse what `generate` never wrote."""
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values if v is not None)
    text = name not in ("prompt", "plan") or value is None or isinstance(value, str)
    if not plain or not text or not values:
        raise ValueError(
            f"the recipe in this picture is damaged: its {name} is {str(value)[:60]!r}; use another picture"
        )


def _typed(value: str | float | Sequence[float]) -> str:
    """A value as it is typed on the command line, with all its digits."""
    if isinstance(value, str):
        return value
    return ",".join(map(repr, value)) if isinstance(value, Sequence) else repr(value)


def facts(
    checked: Checked, backbone: Backbone, picture: Picture, seconds: Mapping[str, float],
    paths: Sequence[Path],
) -> dict[str, Any]:
    """What --json prints: the recipe, what it cost, and where the pictures are."""
    request, cost, (height, width) = checked.request, picture.cost, picture.image.shape[2:]
    return recipe_of(checked, backbone, request.seed) | {
        "method": checked.method.label, "seeds": request.seeds, "width": width, "height": height,
        "grids": checked.schedule.grids, "tokens_per_scale": cost.tokens_per_scale,
        "refine_tokens": cost.refine_tokens, "kv_bytes": cost.kv_bytes,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "files": [str(path) for path in paths], "maps": str(request.maps) if request.maps else None,
    }
