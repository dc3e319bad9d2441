"""Compare Infinity with reference numbers of the original code; see verify.

Cases run teacher-forced: every step gets the reference's bits, and the bits we would have drawn are compared
as well, so that one early slip cannot hide or cause the later ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from comfy_moss.model.backbone import Branch, Step, Text
from comfy_moss.model.cache import KVCache
from comfy_moss.model.checkpoint import load_infinity, vae_from_state
from comfy_moss.model.infinity import InfinityBackbone, InfinityCondition
from comfy_moss.model.quantize import bits_to_codes, map_to_tokens, quantize_scales, resample, tokens_to_map
from comfy_moss.model.rope import grid_positions, rotation
from comfy_moss.model.sampling import Guidance, Sampling, bit_noise, bit_probability, draw_bits
from comfy_moss.model.schedule import Positions, Schedule, make_schedule
from comfy_moss.model.tensors import open_tensors
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.fastvar import finish_fastvar

from .comparison import EXACT, Comparison, Hooks

HIDDEN = 5e-5  # logits and hidden states, times the reference's standard deviation
SUMMED = 5e-6  # sums of codes and token inputs
IMAGE = 2e-3  # images in [-1, 1], or 20 times the case's sensitivity if that is more
PROBABILITY = 1e-4


@dataclass(frozen=True)
class WatchedBranch:
    """A `Branch` whose picked tokens are compared."""

    inner: Branch
    comparison: Comparison
    prefix: str

    def pick(self, layer: int, kind: str, x: Tensor) -> Tensor | None:
        picked = self.inner.pick(layer, kind, x)
        if picked is not None:
            self.comparison.check(f"{self.prefix}L{layer:02d}.{kind}", picked, EXACT, "kept tokens")
        return picked

    def fill(self, layer: int, kind: str, update: Tensor, picked: Tensor | None) -> Tensor:
        return self.inner.fill(layer, kind, update, picked)


@dataclass(frozen=True)
class Probe(InfinityBackbone):
    """A backbone that compares what passes through it and always answers with the reference's bits."""

    comparison: Comparison = None
    noise: Callable[..., Tensor] = bit_noise
    capacity: int = 0  # tokens a layer, where the last scale is to be kept too
    lengths: dict[str, int] = field(default_factory=dict)  # of every layer's cache after every scale
    stride: int = 1  # only every so many tokens' logits are in the reference

    def new_cache(self, condition: InfinityCondition, capacity: int | Sequence[int]) -> KVCache:
        """Room for the last scale too, which the reference keeps to no use."""
        return super().new_cache(condition, self.capacity or capacity)

    def forward(self, tokens: Tensor | None, step: Step) -> Tensor:
        step = self._watched(step)
        scale, parts = int(step.positions.scale[0, 0]), self.parts(step)
        for number, part in parts if tokens is not None else ():
            self.comparison.check(f"s{number:02d}.next_in", tokens[:, part], SUMMED)
        with self._watch_block(parts):
            hidden = super().forward(tokens, step)
        for layer, length in enumerate(step.cache.lengths):
            self.lengths[f"s{scale:02d}.L{layer:02d}"] = length
        return hidden

    @staticmethod
    def parts(step: Step) -> list[tuple[int, slice]]:
        """The scales of a step, and which of its tokens are theirs."""
        scales, counts = step.positions.scale[0].unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        firsts = (ends - counts).tolist()
        return [(n, slice(*at)) for n, *at in zip(scales.tolist(), firsts, ends.tolist(), strict=True)]

    def _watched(self, step: Step) -> Step:
        """FastVAR's steps: kept in the cache, and with the picked tokens compared."""
        if not self.capacity:
            return step
        scale = int(step.positions.scale[0, 0])
        branch = WatchedBranch(step.branch, self.comparison, f"keep.s{scale:02d}.") if step.branch else None
        return replace(step, store=True, branch=branch)

    def _watch_block(self, parts: Sequence[tuple[int, slice]]) -> Hooks:
        block, hooks = self.transformer.blocks[0], Hooks()

        def check(name: str, hidden: Tensor) -> None:
            for scale, part in parts:
                self.comparison.check(f"s{scale:02d}.blk0_{name}", hidden[:, part], HIDDEN, relative=True)

        for name, module in {"sa": block.sa, "ca": block.ca, "ffn": block.ffn}.items():
            hooks.add(module.register_forward_hook(lambda _m, _i, out, name=name: check(name, out)))
        # the block leaves its last update to the next one's norm
        hooks.add(block.register_forward_hook(lambda _m, args, out: check("out", args[3].added(*out))))
        hooks.add(block.register_forward_pre_hook(lambda _m, args: check("in", args[0])))
        return hooks

    def sample(self, hidden: Tensor, step: Step) -> Tensor:
        sampling = step.sampling
        check, expected = self.comparison.check, self.comparison.expected
        prefix = f"s{int(step.positions.scale[0, 0]):02d}"
        # upstream runs the head on fewer rows where the others are not used
        if f"{prefix}.logits_raw" in expected:
            raw = self.transformer.logits(hidden, step.condition).flatten(2)
            check(f"{prefix}.logits_raw", raw[: len(expected[f"{prefix}.logits_raw"])], HIDDEN, relative=True)
        logits = self.logits(hidden, step)
        check(f"{prefix}.logits", logits.flatten(2)[:, :: self.stride], HIDDEN, relative=True)
        if f"{prefix}.probs" in expected:
            p = bit_probability(logits, sampling.top_k, sampling.top_p)
            check(f"{prefix}.probs", torch.stack([1 - p, p], -1), PROBABILITY)
        noise = self.noise(step.seeds, step.positions, logits.shape[-2])
        bits = draw_bits(logits, noise, sampling.top_k, sampling.top_p)
        check(f"{prefix}.bits", bits, EXACT, "wrong bits")
        return expected[f"{prefix}.bits"].reshape(bits.shape)

    def code_map(self, codes: Tensor, scale: int, schedule: Schedule, filled: Tensor | None = None) -> Tensor:
        image = tokens_to_map(codes, schedule.grids[scale], self.patchify)
        self.comparison.check(f"s{scale:02d}.codes", image, SUMMED)
        return super().code_map(codes, scale, schedule, filled)


def recipe_of(case: dict, expected: dict[str, Tensor], schedule: Schedule) -> Recipe:
    greedy = case["mode"].startswith("greedy")
    negative = case.get("negative_lens")
    return Recipe(
        text=tuple(expected["in.text_kv"].split(case["text_lens"])),
        negative=tuple(expected["in.neg_kv"].split(negative)) if negative else None,
        seeds=(case["seed"],) * len(case["text_lens"]),
        schedule=schedule,
        guidance=Guidance(tuple(case["cfg_list"]), tuple(case["cfg_insertion_layer"])),
        sampling=Sampling(
            tuple(case["tau_list"]), 1 if greedy else case["top_k"], 0.0 if greedy else case["top_p"]
        ),
    )


def reference_noise(
    comparison: Comparison, seed: int, skipped: Sequence[int] = ()
) -> Callable[..., Tensor]:
    """Noise as the original draws it: Exp(1) pairs from one generator; bit = argmax(p / E) is u < p with u =
    E1 / (E0 + E1).

    Args:
        skipped: bits of each scale for which the original draws noise without a use.
    """
    generator = torch.Generator().manual_seed(seed)
    for bits in skipped:
        torch.empty(bits, 2).exponential_(1, generator=generator)

    def noise(seeds: tuple[int, ...], positions: Positions, bits: int) -> Tensor:
        shape = (len(seeds), len(positions), bits, 2)
        pairs = torch.empty(shape).view(-1, 2).exponential_(1, generator=generator).view(shape)
        comparison.check(f"s{int(positions.scale[0, 0]):02d}.noise", pairs, EXACT)
        return pairs[..., 1] / pairs.sum(-1)

    return noise


def check_text(comparison: Comparison, backbone: InfinityBackbone, recipe: Recipe) -> None:
    """Text conditioning: rows of all prompts, then of the unconditional ones, padding left out."""
    model, kept = backbone.transformer, {}
    hooks = Hooks()
    for name, module in (
        ("text_norm", model.text_norm), ("text_ca", model.text_proj_for_ca), ("gss", model.shared_ada_lin)
    ):
        hooks.add(module.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out})))
    with hooks:
        condition = recipe.condition(backbone)
    lengths = [_length(text) for text in recipe.text]
    lengths += [_length(text) for text in recipe.negative or recipe.text] if condition.guided else []
    comparison.check("gss", kept.pop("gss"), HIDDEN, relative=True)
    for name, padded in kept.items():
        comparison.check(
            name, torch.cat([row[:n] for row, n in zip(padded, lengths, strict=True)]), HIDDEN, relative=True
        )
    comparison.check("sos", condition.pooled, HIDDEN, relative=True)


def _length(text: Text) -> int:
    return len(text if isinstance(text, Tensor) else text.features)


def check_image(comparison: Comparison, case: dict, image: Tensor, allowed: float = IMAGE) -> None:
    """A decoded image, by means over cells and by its middle."""
    allowed = max(allowed, 20 * case.get("image_sensitivity_1e-6", 0.0))
    y, x = (image.shape[2] - 32) // 2, (image.shape[3] - 32) // 2
    for side in (8, 32):
        comparison.check(f"image_area{side}", F.avg_pool2d(image, side), allowed, "image")
    comparison.check("image_center_crop", image[:, :, y : y + 32, x : x + 32], allowed, "image")
    if "image_u8_bgr" in comparison.expected:
        levels = ((image + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(3)
        comparison.check(
            "image_u8_bgr", levels[: len(comparison.expected["image_u8_bgr"])], 1.0, "image, 8 bit"
        )


def schedule_of(case: dict, comparison: Comparison) -> Schedule:
    """The scales of a case.

    Raises:
        ValueError: the reference has others.
    """
    schedule = make_schedule(case["h_div_w"], case["pn"])
    if [list(g) for g in schedule.grids] != [entry[-2:] for entry in case["schedule"]]:
        raise ValueError(f"{comparison.case}: the schedule differs from the reference's {case['schedule']}")
    return schedule


def generate(case: dict, comparison: Comparison, folder: Path) -> None:
    """A picture from a prompt."""
    schedule, expected = schedule_of(case, comparison), comparison.expected
    loaded = load_infinity(folder / case["weights"], folder / case["vae_weights"])
    fastvar = case["kind"] == "fastvar_generate"
    probe = Probe(
        loaded.transformer,
        loaded.vae,
        loaded.model_id,
        comparison,
        reference_noise(comparison, case["seed"]),
        schedule.tokens() if fastvar else 0,
    )
    recipe = recipe_of(case, expected, schedule)
    check_text(comparison, probe, recipe)

    def on_scale(done: int, _scales: int, total: Tensor) -> None:
        comparison.check(f"s{done - 1:02d}.summed", total, SUMMED)

    if fastvar:
        draft, _, _ = finish_fastvar(probe, recipe, on_scale=on_scale)
        wrong = sum(probe.lengths.get(name) != length for name, length in case["kv_cache_len"].items())
        comparison.note("wrong cache lengths", float(wrong), EXACT)
    else:
        draft, _ = draw_draft(probe, recipe, case.get("n_scales_run", len(schedule)), on_scale=on_scale)
    comparison.check("summed_final", draft.total, SUMMED)
    if any(name.startswith("image") for name in expected):
        with torch.inference_mode():
            check_image(comparison, case, probe.decode(draft.total))


@torch.inference_mode()
def codec(case: dict, comparison: Comparison, folder: Path) -> None:
    """A picture encoded and decoded."""
    vae, expected = vae_from_state(open_tensors(folder / case["vae_weights"])), comparison.expected
    channels = vae.config.channels
    patchify = expected["s00.bits_tokens"].shape[-1] == 4 * channels
    comparison.seen.add("x")
    features = vae.encode(expected["x"])
    comparison.check("h", features, HIDDEN, relative=True)
    grids = [tuple(entry[-2:]) for entry in case["schedule"]]
    bits, total = quantize_scales(features, grids)
    comparison.check("z", total, SUMMED)
    comparison.check("summed_from_bits", total, SUMMED)
    running, inputs = torch.zeros_like(total), []
    for n, bit in enumerate(bits):
        if n:
            inputs.append(map_to_tokens(resample(running, grids[n]), patchify))
        running = running + resample(bits_to_codes(bit, channels), grids[-1])
        comparison.check(f"s{n:02d}.bits", bit.permute(0, 2, 3, 1), EXACT, "wrong bits")
        comparison.check(f"s{n:02d}.bits_tokens", map_to_tokens(bit.float(), patchify), EXACT, "wrong bits")
    comparison.check("teacher_inputs", torch.cat(inputs, dim=1), SUMMED)
    comparison.check("recon", vae.decode(total), IMAGE, "image")
    y, x = _crop_place(expected["recon"], expected["recon_unclamped_crop"])
    comparison.check("recon_unclamped_crop", vae.decoder(total)[:, :, y : y + 32, x : x + 32], IMAGE, "image")


def _crop_place(image: Tensor, crop: Tensor) -> tuple[int, int]:
    """Where in the reference's own image its crop lies; the manifest does not say."""
    h, w = image.shape[2:]
    for y, x in ((32, 32), (h // 4, w // 4), ((h - 32) // 2, (w - 32) // 2), (0, 0)):
        if torch.equal(image[:, :, y : y + 32, x : x + 32], crop.clamp(-1, 1)):
            return y, x
    raise ValueError("the reference's unclamped crop lies nowhere in its image")


def rope(case: dict, comparison: Comparison, folder: Path) -> None:
    """Positions and rotations of all scales."""
    for key, facts in case["ratios"].items():
        schedule = make_schedule(float(key[1:]))
        positions = Positions.concat([Positions.of_scale(schedule, n) for n in range(len(schedule))])
        py, px = grid_positions(positions, schedule)
        cells = torch.stack([py[0], px[0]], dim=1).to(torch.int32)
        comparison.check(f"{key}.pos", cells, EXACT, "positions")
        digest = hashlib.sha256(cells.numpy().tobytes()).hexdigest()
        comparison.note("position hashes", float(digest != facts["pos_int32_sha256"]), EXACT)
        for name in [n for n in comparison.expected if re.fullmatch(rf"{re.escape(key)}\.d\d+\.rows", n)]:
            comparison.seen.add(name)
            stem, rows = name.removesuffix("rows"), comparison.expected[name]
            cos, sin = rotation(positions, schedule, int(re.search(r"\.d(\d+)\.", name)[1]))
            comparison.check(f"{stem}cos", cos[0, rows], SUMMED, "cos, sin")
            comparison.check(f"{stem}sin", sin[0, rows], SUMMED, "cos, sin")


def sampler(case: dict, comparison: Comparison, folder: Path) -> None:
    """Bits from logits."""
    expected = comparison.expected
    logits, pairs = expected["logits"], expected["noise_seed7"]
    generator = torch.Generator().manual_seed(7)
    drawn = torch.empty_like(pairs).view(-1, 2).exponential_(1, generator=generator)
    comparison.check("noise_seed7", drawn, EXACT, "noise")
    comparison.seen.add("logits")
    for name in [n for n in expected if n.endswith(".probs")]:
        top_k, digits = re.fullmatch(r"k(\d+)_p(\d+)\.probs", name).groups()
        top_p = float(f"{digits[0]}.{digits[1:] or 0}")
        p = bit_probability(logits, int(top_k), top_p)
        comparison.check(name, torch.stack([1 - p, p], -1), 1e-6)
        bits = draw_bits(logits, pairs[..., 1] / pairs.sum(-1), int(top_k), top_p)
        comparison.check(name.replace("probs", "bits"), bits, EXACT, "wrong bits")
