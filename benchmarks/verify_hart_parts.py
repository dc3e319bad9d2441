"""HART's reference numbers for single parts: tokenizer, diffusion, sampler, rotary positions, text
encoder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from comfy_moss.model.hart import HartTransformer
from comfy_moss.model.hart_checkpoint import hart_from_state, tokenizer_from_state
from comfy_moss.model.hart_head import (
    STRENGTH,
    DiffusionSchedule,
    denoise,
    gumbel_softmax,
    predict,
    top_k_top_p,
)
from comfy_moss.model.quantize import Quantizer, phi_index
from comfy_moss.model.rope import coordinate_rotation, prompt_rotation, rotate
from comfy_moss.model.schedule import Schedule, square_schedule
from comfy_moss.model.tensors import Tensors
from comfy_moss.model.text import PromptEncoder, qwen_from_state
from comfy_moss.model.vae import Tokenizer, VAEConfig

from .comparison import EXACT, PeakComparison

CLOSE = 1e-4  # hidden states, logits, feature maps, images
DIFFUSED = 1e-3  # what went through the residual diffusion, whose first step amplifies


@dataclass(frozen=True)
class Golden:
    """One case.

    Attributes:
        config: of the model, as the manifest states it; empty for cases without one.
        meta: what the manifest says about the case beside its tensors.
    """

    comparison: PeakComparison
    folder: Path
    config: Mapping[str, Any]
    meta: Mapping[str, Any]

    @property
    def schedule(self) -> Schedule:
        return square_schedule(self.config["patch_nums"])

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / f"{self.config['name']}_weights.safetensors")

    def transformer(self) -> HartTransformer:
        return hart_from_state(self._part("model."), self.config)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        """The weights whose names begin so, without that."""
        named = {name: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): tensor for name, tensor in named.items()}

    def tokenizer(self) -> Tokenizer:
        """Some directories have the quantiser's weights alone; the codec is then random and must not be
        used."""
        state = {name: tensor for name, tensor in self.weights.items() if name.startswith("vae.")}
        if "vae.encoder.conv_in.weight" in state:
            return tokenizer_from_state(state, self.config)
        mult = tuple(self.config["ch_mult"])
        quantizer = Quantizer(*state["vae.quantize.embedding.weight"].shape)
        quantizer.load_state_dict(self._part("vae.quantize."))
        sizes = VAEConfig(self.config["ch"], mult, 2, 3, self.config["z_channels"])
        return Tokenizer(sizes, quantizer.requires_grad_(False))


def image01(image: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (image + 1) / 2


def tokenizer(case: Golden) -> None:
    check, expected = case.comparison.check, case.comparison.expected
    vae, sides = case.tokenizer(), case.config["patch_nums"]
    image, features = expected["in.image"], expected["f"]
    check("encoder_out", vae.encoder(image), CLOSE, relative=True)
    check("f", vae.encode(image), CLOSE, relative=True)
    for variant, hybrid in (("discrete", False), ("hybrid", True)):
        codes, totals, left = vae.quantize.quantize(features, sides, hybrid)
        for n, (code, total) in enumerate(zip(codes, totals, strict=True)):
            check(f"{variant}.idx{n:02d}", code, EXACT, "wrong codes")
            check(f"{variant}.f_hat{n:02d}", total, CLOSE, "sum of codes", relative=True)
        check(f"{variant}.last_target_BLC", left.flatten(2).transpose(1, 2), CLOSE, relative=True)
        check(f"{variant}.image", vae.decode(totals[-1]), CLOSE, "image", relative=True)
    check("continuous.image", vae.decode(features), CLOSE, "image", relative=True)
    check("decode.f_random", vae.decode(expected["in.f_random"]), CLOSE, "image", relative=True)


def diffusion(case: Golden) -> None:
    """Both halves of a guided run share their state, and only the first half's result is used."""
    comparison, net = case.comparison, case.transformer().diffloss["net"]
    z, x, half = comparison.take("z"), comparison.take("x"), len(comparison.take("z")) // 2
    for name in list(comparison.expected):
        if match := re.fullmatch(r"net\.t(\d+)", name):
            ours = torch.cat(net(x, int(match[1]), z), dim=1)
            comparison.check(name, ours, DIFFUSED, "network", relative=True)
        elif match := re.fullmatch(r"net_cfg([\d.]+)\.t(\d+)", name):
            halves = x[:half], int(match[2]), z[:half], z[half:]
            ours = torch.cat(predict(net, *halves, float(match[1])), dim=1)
            first_half(comparison, name, ours, "network, guided")
        elif match := re.fullmatch(r"time_embed\.t(\d+)", name):
            ours = net.time_embed(torch.tensor([int(match[1])]))
            comparison.check(name, ours, CLOSE, "time embedding", relative=True)
        elif match := re.fullmatch(r"cfg([\d.]+)\.out", name):
            _sampler(comparison, case, net, z, _strength(match[1], case), name.removesuffix(".out"))


def _strength(name: str, case: Golden) -> float:
    """Guidance of a case whose name rounds it: that of the last scale, of this model's schedule or the
    released one's."""
    scales = len(case.config["patch_nums"])
    known = (cfg * (n - 2) / (n - 1) for cfg in (case.config["cfg"], 4.5) for n in (scales, 14))
    return next((w for w in known if f"{w:.2f}" == name), float(name))


def first_half(comparison: PeakComparison, name: str, ours: Tensor, quantity: str) -> None:
    """Compare with the first half of the reference's rows, which are the guided ones."""
    reference = comparison.take(name)[: len(ours)]
    error = (ours.double() - reference.double()).abs().max().item()
    comparison.note(quantity, error / max(comparison.unit(reference), 1e-12), DIFFUSED)


def _sampler(
    comparison: PeakComparison, case: Golden, net: torch.nn.Module, z: Tensor, w: float, prefix: str
) -> None:
    start, added = comparison.take(f"{prefix}.init_noise"), comparison.take(f"{prefix}.step_noise")
    rows = len(start)  # half of z, or all of it where nothing is guided
    schedule = DiffusionSchedule.of(int(case.config["num_sampling_steps"]))
    noise = torch.cat([start[None], added[:, :rows]])
    steps = list(denoise(net, schedule, z[:rows], z[rows:] if rows < len(z) else None, w, noise))
    results, states = zip(*steps, strict=True)
    for name, ours in ((f"{prefix}.step_x0", results), (f"{prefix}.step_x", states)):
        ours, reference = torch.stack(ours), comparison.take(name)[:, :rows]
        error = (ours - reference).abs().amax(dim=(1, 2)) / reference.abs().amax(dim=(1, 2)).clamp_min(1e-12)
        comparison.note("diffusion, every step", error.max().item(), DIFFUSED)
    first_half(comparison, f"{prefix}.out", STRENGTH * states[-1], "diffusion")


def units(case: Golden) -> None:
    comparison = case.comparison
    _truncation(comparison)
    _rotations(comparison)
    for key, indices in case.meta["phi_index"].items():
        ours = [phi_index(n, int(key), 4) for n in range(int(key))]
        comparison.note("wrong phi", float(ours != indices), EXACT)
    for key, times in case.meta.items():
        if match := re.fullmatch(r"diffusion(\d+)\.timesteps", key):
            _constants(comparison, int(match[1]), times)


def _truncation(comparison: PeakComparison) -> None:
    logits = comparison.take("sampler.logits")
    for name in [n for n in comparison.expected if n.startswith("sampler.kept.")]:
        top_k, top_p = re.fullmatch(r"sampler\.kept\.k(\d+)\.p([\d.]+)", name).groups()
        kept = top_k_top_p(logits, int(top_k) or logits.shape[-1], float(top_p)).isfinite()
        comparison.check(name, kept, EXACT, "kept codes")
    for name in [n for n in comparison.expected if n.startswith("gumbel.soft_tau")]:
        _soft(comparison, name, logits, comparison.take("gumbel.exp_noise"))


def _soft(comparison: PeakComparison, name: str, logits: Tensor, exponential: Tensor) -> None:
    """The mix at that temperature, without the factor on the logits that comes with it in drawing."""
    ratio = (1 - float(name.removeprefix("gumbel.soft_tau")) / 0.27) / 0.95
    mix = gumbel_softmax(logits / (1 + ratio), torch.tensor([ratio]), exponential)
    comparison.check(name, mix, CLOSE, "soft mix", relative=True)


def _rotations(comparison: PeakComparison) -> None:
    x, place = comparison.take("rope2d.x"), comparison.take("rope2d.pos")
    cos, sin = coordinate_rotation(place[..., 0], place[..., 1], x.shape[-1])
    comparison.check("rope2d.cos", cos, CLOSE, "cos, sin", relative=True)
    comparison.check("rope2d.sin", sin, CLOSE, "cos, sin", relative=True)
    comparison.check("rope2d.out", rotate(x, cos, sin), CLOSE, "rotated", relative=True)
    turned = rotate(x, *prompt_rotation(comparison.take("rope1d.pos"), x.shape[-1]))
    comparison.check("rope1d.out", turned, CLOSE, "rotated", relative=True)


def _constants(comparison: PeakComparison, count: int, times: list[int]) -> None:
    steps, prefix = DiffusionSchedule.of(count), f"diffusion{count}."
    comparison.note("wrong times", float(list(steps.times) != times), EXACT)
    ours = {
        "betas": steps.betas,
        "alphas_cumprod": steps.alphas_cumprod,
        "posterior_log_variance_clipped": steps.posterior_log_variance,
        "posterior_mean_coef1": steps.posterior_mean_x0,
        "posterior_mean_coef2": steps.posterior_mean_xt,
        "sqrt_recip_alphas_cumprod": steps.alphas_cumprod.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / steps.alphas_cumprod - 1).sqrt(),
    }
    for name, values in ours.items():
        comparison.check(prefix + name, values, CLOSE, "diffusion constants", relative=True)


def text(case: Golden) -> None:
    comparison, meta = case.comparison, case.meta
    state = Tensors.of(load_file(case.folder / "text_weights.safetensors"))
    model = qwen_from_state(state, meta["qwen2_config"], "cpu", torch.float32)
    pad, length = meta["pad_token_id"], meta["max_length"]
    system = comparison.take("system_tokens")[0].tolist()
    mask = comparison.take("mask").bool()
    prompts = [row[kept].tolist() for row, kept in zip(comparison.take("tokens"), mask, strict=True)]
    for name, prefix in (("sys", system), ("nosys", [])):
        encoder = PromptEncoder(model, lambda _prompt: [], prefix, pad, length, meta["padding_side"])
        features, positions = map(torch.stack, zip(*(encoder.features(ids) for ids in prompts), strict=True))
        comparison.check(f"{name}.context", features, CLOSE, "context", relative=True)
        comparison.check("position_ids", positions, EXACT, "positions")


PARTS: dict[str, Callable[[Golden], None]] = {
    "tokenizer": tokenizer, "diffusion": diffusion, "units": units, "text": text,
}
