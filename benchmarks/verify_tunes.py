"""Compare Infinity's fine-tunes with reference numbers of the original code; see verify.

VAREdit: the source picture's pass and the edit.  NSARM: the maps, the prefix in one pass, the rest, and the
colour fix.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from comfy_moss.colour import fix_colours, resized
from comfy_moss.images import to_bytes
from comfy_moss.model.backbone import PicturedText, Step
from comfy_moss.model.cache import KVCache
from comfy_moss.model.checkpoint import transformer_from_state, vae_from_state
from comfy_moss.model.nsarm import SIDES, EnlargeBackbone
from comfy_moss.model.quantize import tokens_to_map
from comfy_moss.model.rope import rotation_at
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.model.tensors import open_tensors
from comfy_moss.model.vae import VAE, VAEConfig
from comfy_moss.model.varedit import (
    EditBackbone,
    EditCondition,
    cropped_to,
    padded_square,
    running_positions,
    shrunk,
)
from comfy_moss.ops import TORCH
from comfy_moss.pipeline.draft import draw_draft

from .comparison import EXACT, Comparison, Hooks
from .verify_infinity import (
    HIDDEN,
    IMAGE,
    SUMMED,
    Probe,
    check_image,
    check_text,
    recipe_of,
    reference_noise,
    schedule_of,
)

MAPS = 1e-4  # of the map network, times the reference's standard deviation
CLOSE_IMAGE = 1e-4  # images of an enlargement
GREY = 1.0  # levels of an 8-bit picture
OFF_BY_ONE = 0.01  # share of bytes that may be one level off
GRID = 0.05  # levels, of means over a grid


# --- VAREdit ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditProbe(Probe, EditBackbone):
    """A `Probe` of the source's pass as well.

    Attributes:
        keys: how many keys every attention call saw, in order.
    """

    keys: list[int] = field(default_factory=list)

    def _source(self, tokens: Tensor, condition: EditCondition, schedule: Schedule) -> KVCache:
        comparison, rows = self.comparison, self.comparison.take("src.rows").long()
        comparison.check("src.tokens", tokens[:, rows], SUMMED)
        with self._watch_source(rows):
            source = super()._source(tokens, condition, schedule)
        for layer in (0, 1):
            for name, part in zip("kv", source.view(layer), strict=True):
                stem = f"src.L{layer:02d}.{name}"
                comparison.check(stem, part[:, :, rows], HIDDEN, "src K, V", relative=True)
        for scale in range(len(schedule)):
            for name, part in zip("kv", shrunk(source.view(0), schedule, scale, torch.float32), strict=True):
                comparison.check(f"s{scale:02d}.src_{name}", part, HIDDEN, relative=True)
        return source

    def _watch_source(self, rows: Tensor) -> Hooks:
        block, hooks = self.transformer.blocks[0], Hooks()

        def check(name: str, hidden: Tensor) -> None:
            found = hidden[:, rows]
            found = found[: len(self.comparison.expected.get(name, found))]  # equal rows are stored once
            self.comparison.check(name, found, HIDDEN, relative=True)

        for name, module in {"sa": block.sa, "ca": block.ca, "ffn": block.ffn}.items():
            hook = lambda _m, _i, out, name=name: check(f"src.blk0_{name}", out)  # noqa: E731
            hooks.add(module.register_forward_hook(hook))
        hooks.add(block.register_forward_pre_hook(lambda _m, args: check("src.blk0_in", args[0])))
        # a block leaves its last update to whoever comes next
        for name, part in {"src.blk0_out": block, "src.last": self.transformer.blocks[-1]}.items():
            hook = lambda _m, args, out, name=name: check(name, args[3].added(*out))  # noqa: E731
            hooks.add(part.register_forward_hook(hook))
        return hooks

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        self.keys.clear()
        hidden = super().forward(tokens, step)
        self.lengths[f"s{int(step.positions.scale[0, 0]):02d}"] = tuple(self.keys)
        return hidden


def edit(case: dict, comparison: Comparison, folder: Path) -> None:
    """One edit, from the picture to the picture where there is a codec."""
    schedule, expected = schedule_of(case, comparison), comparison.expected
    transformer = transformer_from_state(open_tensors(folder / case["weights"]))
    vae, keys = _codec(case, transformer.config.bits, folder), []

    def attend(q: Tensor, segments: tuple, *rest: object) -> Tensor:
        keys.append(sum(k.shape[2] for k, _ in segments))
        return TORCH.cross_scale_attention(q, segments, *rest)

    noise, kernels = reference_noise(comparison, case["seed"]), replace(TORCH, cross_scale_attention=attend)
    probe = EditProbe(transformer, vae, "", comparison, noise, kernels=kernels, keys=keys)
    recipe = recipe_of(case, expected, schedule)
    recipe = replace(recipe, text=tuple(PicturedText(t, _raw(case, comparison, vae)) for t in recipe.text))
    check_text(comparison, probe, recipe)

    def watch(done: int, _scales: int, total: Tensor) -> None:
        comparison.check(f"s{done - 1:02d}.summed", total, SUMMED)

    draft, _ = draw_draft(probe, recipe, case["n_scales_run"], on_scale=watch)
    wrong = sum(
        probe.lengths[name] != (n["block0"],) + (n["others"],) * (probe.depth - 1)
        for name, n in case["kv_len"].items()
    )
    comparison.note("wrong numbers of keys", float(wrong), EXACT)
    comparison.check("summed_final", draft.total, SUMMED)
    if "out_u8" in expected:
        _check_edited(case, comparison, probe, draft.total)


def _codec(case: dict, bits: int, folder: Path) -> VAE:
    """The case's, or one without weights where it has none."""
    if case["vae_weights"]:
        return vae_from_state(open_tensors(folder / case["vae_weights"]))
    with torch.device("meta"):
        return VAE(VAEConfig(32, (1, 1, 1, 1, 1), 1, 1, bits))


@torch.inference_mode()
def _raw(case: dict, comparison: Comparison, vae: VAE) -> Tensor:
    """The reference's encoded picture (c, H, W); where the case has the picture, ours is compared with it."""
    expected = comparison.expected
    if case.get("raw_given"):
        return comparison.take("src.raw")[0].float()
    square = padded_square(Image.fromarray(expected["in.src_u8"].numpy()), case["target_size"])
    pixels = _pixels(square)
    comparison.check("src.resized_u8", pixels, EXACT, "resized picture")
    image = pixels.movedim(-1, 0)[None] / 255 * 2 - 1
    comparison.check("src.resized_area8", F.avg_pool2d(image, 8), SUMMED, "resized picture, means")
    comparison.check("src.raw", vae.encode(image), HIDDEN, relative=True)
    return expected["src.raw"][0].float()


def _pixels(picture: Image.Image) -> Tensor:
    """(H, W, 3) uint8."""
    flat = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3)


@torch.inference_mode()
def _check_edited(case: dict, comparison: Comparison, probe: EditProbe, total: Tensor) -> None:
    image = probe.decode(total)
    check_image(comparison, case, image, IMAGE)
    drawn = Image.fromarray(to_bytes((image[0] + 1) / 2).movedim(0, -1).numpy())
    height, width = comparison.expected["in.src_u8"].shape[:2]
    comparison.check("out_u8", _pixels(cropped_to(drawn, (width, height))), GREY, "picture, 8 bit")


def edit_positions(case: dict, comparison: Comparison, folder: Path) -> None:
    """Positions and rotations of the source and of all scales."""
    for key, facts in case["ratios"].items():
        ratio, preset = re.fullmatch(r"r([\d.]+)_(.+)", key).groups()
        places = running_positions(make_schedule(float(ratio), preset)).to(torch.int32)
        comparison.check(f"{key}.pos", places, EXACT, "positions")
        digest = hashlib.sha256(places.numpy().tobytes()).hexdigest()
        comparison.note("position hashes", float(digest != facts["pos_int32_sha256"]), EXACT)
        for name in [n for n in comparison.expected if re.fullmatch(rf"{re.escape(key)}\.d\d+\.rows", n)]:
            rows, stem = comparison.take(name).long(), name.removesuffix("rows")
            head_dim = int(re.search(r"\.d(\d+)\.", name)[1])
            cos, sin = rotation_at(*places[rows].T[:, None], head_dim)
            comparison.check(f"{stem}cos", cos, SUMMED, "cos, sin")
            comparison.check(f"{stem}sin", sin, SUMMED, "cos, sin")


# --- NSARM --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EnlargeProbe(Probe, EnlargeBackbone):
    """A `Probe` of the maps and of the given scales as well."""

    def prefix_tokens(self, features: Tensor) -> tuple[Tensor, ...]:
        with self._watch_maps():
            return super().prefix_tokens(features)

    def _watch_maps(self) -> Hooks:
        maps, hooks, check = self.transformer.map_transformer, Hooks(), self.comparison.check

        def watch(module: torch.nn.Module, name: str, quantity: str) -> None:
            hook = lambda _m, _i, out: check(name, out, MAPS, quantity, relative=True)  # noqa: E731
            hooks.add(module.register_forward_hook(hook))

        def pooled(name: str) -> object:
            return lambda _m, args: check(name, args[0], MAPS, "map pooled", relative=True)

        watch(maps.feature_extractor, "map.features", "map features")
        for n, (transformer, project) in enumerate(zip(maps.transformers, maps.output_projs, strict=True)):
            hooks.add(transformer.register_forward_pre_hook(pooled(f"map.s{n:02d}.pooled")))
            watch(transformer.layers[0], f"map.s{n:02d}.layer0", "map first layer")
            watch(transformer, f"map.s{n:02d}.encoded", "map last layer")
            watch(project, f"map.s{n:02d}.out", "map")
        return hooks

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        """Of the given scales the head's numbers too, which nothing needs but the comparison."""
        hidden = super().forward(tokens, step)
        for scale, part in self.parts(step):
            if scale < len(step.condition.given):
                raw = self.transformer.logits(hidden[:, part], step.condition).flatten(2)
                self.comparison.check(f"s{scale:02d}.logits_raw", raw, HIDDEN, relative=True)
        return hidden


def enlarge(case: dict, comparison: Comparison, folder: Path) -> None:
    """One enlargement, from the small picture to the picture with its colours mended."""
    schedule, expected = schedule_of(case, comparison), comparison.expected
    transformer = transformer_from_state(open_tensors(folder / case["weights"]), heads=_heads(case, folder))
    vae = vae_from_state(open_tensors(folder / case["vae_weights"]))
    small = expected["in.lr_u8"]
    with torch.inference_mode():
        features = vae.encode(small.movedim(-1, 0)[None] / 127.5 - 1)
    comparison.check("h", features, HIDDEN, relative=True)
    skipped = [schedule.tokens(n, n + 1) * transformer.config.bits for n in range(case["prefix_scales"])]
    noise = reference_noise(comparison, case["seed"], skipped)
    probe = EnlargeProbe(transformer, vae, "", comparison, noise, stride=case["logits_stride"])
    recipe = recipe_of(case, expected, schedule)
    recipe = replace(recipe, text=tuple(PicturedText(t, expected["h"][0]) for t in recipe.text))
    check_text(comparison, probe, recipe)
    _check_bits(comparison, probe, expected["h"])

    def watch(done: int, _scales: int, total: Tensor) -> None:
        comparison.check(f"s{done - 1:02d}.summed", total, SUMMED)
        comparison.check(f"s{done - 1:02d}.summed_area4", F.avg_pool2d(total, 4), SUMMED, "summed")

    draft, _ = draw_draft(probe, recipe, len(schedule), on_scale=watch)
    comparison.check("summed_final", draft.total, SUMMED)
    with torch.inference_mode():
        image = probe.decode(draft.total)
    check_image(comparison, case, image, CLOSE_IMAGE)
    ours = to_bytes((image[0] + 1) / 2).movedim(0, -1)
    _check_picture(comparison, "sr", ours)
    _check_fixed(comparison, expected.get("sr_u8", ours), small)


def _heads(case: dict, folder: Path) -> list[int]:
    """Of the maps, which no tensor shows; the manifest says them beside the weights."""
    cases = json.loads((folder / "manifest.json").read_text())["cases"].values()
    return next(one["config"]["map_heads"] for one in cases if one["file"] == case["weights"])


def _check_bits(comparison: Comparison, probe: EnlargeProbe, features: Tensor) -> None:
    """The prefix on the codec's cells, channels last, as the reference stores it."""
    with torch.inference_mode():
        given = probe.prefix_tokens(features)
    for n, (side, tokens) in enumerate(zip(SIDES, given, strict=True)):
        cells = tokens_to_map(tokens, (side // 2, side // 2), probe.patchify)
        comparison.check(f"s{n:02d}.map_bits", cells.movedim(1, -1), EXACT, "wrong prefix bits")


def colours(case: dict, comparison: Comparison, folder: Path) -> None:
    """The colour fix alone, at its real size."""
    times, expected = case["sr_repeat"], comparison.expected
    drawn = expected["in.sr128_u8"].repeat_interleave(times, 0).repeat_interleave(times, 1)
    reference, crop = expected["in.lr_u8"], tuple(case["crop_origin_yx"])
    enlarged = resized(reference[None].float() / 255, drawn.shape[:2])
    _check_picture(comparison, "resized", to_bytes(enlarged[0]), crop)
    _check_fixed(comparison, drawn, reference, crop)


def _check_picture(
    comparison: Comparison, name: str, picture: Tensor, crop: tuple[int, int] | None = None
) -> None:
    """An 8-bit picture (H, W, 3) against all that the case holds of one: the whole, means, and parts.

    Args:
        crop: (y, x) where the 64 x 64 window lies; None = in the middle.
    """
    middle = (picture.shape[0] - 64) // 2
    y, x = crop or (middle, middle)
    grid = F.avg_pool2d(picture.movedim(-1, 0)[None].float(), picture.shape[0] // 32)
    comparison.check(f"{name}_grid32", grid, GRID, "picture, means")
    parts = {"u8": picture, "crop": picture[y : y + 64, x : x + 64], "corner": picture[:48, :48]}
    for part, found in parts.items():
        if (reference := comparison.expected.get(f"{name}_{part}")) is not None:
            comparison.check(f"{name}_{part}", found, GREY, "picture, 8 bit")
            off = (found.cpu().int() != reference.int()).float().mean().item()
            comparison.note("share of bytes off by one", off, OFF_BY_ONE)


def _check_fixed(
    comparison: Comparison, drawn: Tensor, reference: Tensor, crop: tuple[int, int] | None = None
) -> None:
    ours, theirs = (picture[None].float() / 255 for picture in (drawn, reference))
    settings = {"adain": (True, False), "fixed": (True, True), "wavelet_only": (False, True)}
    for name, (statistics, wavelet) in settings.items():
        _check_picture(comparison, name, to_bytes(fix_colours(ours, theirs, statistics, wavelet)[0]), crop)
