"""HART's head: a token's code from logits, the mix of codes, and the residual diffusion of the finest scale.

The diffusion draws what codes cannot say, a token at a time: any subset of tokens gives the numbers that all
would.  Shapes: B pictures, N tokens, V codes, c channels of a token, C width of the transformer, S scales or
diffusion steps.
Facts: docs/hart.md, sections 6 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sampling import Guidance, Ramp, per_scale
from .schedule import Positions

TOP_K, LATE_TOP_K, LATE = 600, 300, 7  # codes that a token may become, fewer from scale LATE on
TINY = 2.0**-24  # distance from 0 and 1 that noise keeps


def progress(scales: int) -> Tensor:
    """(S,) float32 on the CPU: how far through the scales each is, see `sampling.Ramp`."""
    return torch.tensor(Ramp(1.0).shares(scales))


def guidance_weights(guidance: Guidance, scales: int) -> Tensor:
    """(S,) float32 on the CPU: t of every scale; logits become (1 + t) * prompt - t * unconditional.

    The authors count without the 1: their 4.5 is a ramp of 5.5 here.
    """
    if isinstance(guidance.cfg, Ramp):
        return (guidance.cfg.strength - 1) * progress(scales)
    return torch.tensor(per_scale(guidance.cfg, scales, "cfg")) - 1


def top_k_of(positions: Positions, top_k: int) -> list[tuple[int, int]]:
    """How many codes each token may become, as (how many, number of tokens) in order.  top_k 0 = the released
    numbers.
    """
    released = ((TOP_K if scale < LATE else LATE_TOP_K, count) for scale, count in positions.told())
    return list(released) if top_k == 0 else [(top_k, len(positions))]


def top_k_top_p(logits: Tensor, top_k: Sequence[tuple[int, int]] | int, top_p: float) -> Tensor:
    """Logits (B, N, V) with -inf at unlikely codes.

    Args:
        top_k: one number, or one for each run of tokens with its length; ties with the k-th survive.
        top_p: in (0, 1]: the least likely codes whose probabilities sum to at most 1 - top_p go.  0 = off.
    """
    runs = [(top_k, logits.shape[1])] if isinstance(top_k, int) else top_k
    runs = [(min(max(1, number), logits.shape[-1]), count) for number, count in runs]
    best = logits.topk(max(number for number, _ in runs), dim=-1).values
    parts = best.split([count for _, count in runs], dim=1)
    least = [part[..., number - 1 : number] for part, (number, _) in zip(parts, runs, strict=True)]
    logits = logits.masked_fill(logits < torch.cat(least, dim=1), -math.inf)
    if not 0 < top_p:
        return logits
    ordered, index = logits.sort(dim=-1)
    unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    unlikely[..., -1] = False
    return logits.masked_fill(unlikely.scatter(-1, index, unlikely), -math.inf)


def draw_code(logits: Tensor, noise: Tensor) -> Tensor:
    """Code numbers (B, N) int64 by probability; logits (B, N, V), noise (B, N) uniform in (0, 1)."""
    cumulated = logits.softmax(dim=-1).cumsum(dim=-1)
    target = (noise.clamp(TINY, 1 - TINY) * cumulated[..., -1])[..., None].contiguous()
    return torch.searchsorted(cumulated, target, right=True)[..., 0].clamp_max(logits.shape[-1] - 1)


def gumbel_softmax(logits: Tensor, ratio: Tensor, exponential: Tensor) -> Tensor:
    """Weights (B, N, V) of the codes in the mix that becomes a token.

    Args:
        logits: (B, N, V), truncated.
        ratio: (N,) or (B or 1, N), see `progress`: the further, the closer to one code alone.
        exponential: (B, N, V) noise of the exponential distribution, minus whose logarithm is Gumbel noise.
    """
    ratio = ratio[..., None]
    return ((logits * (1 + ratio) - exponential.log()) / gumbel_tau(ratio)).softmax(dim=-1)


def gumbel_tau(ratio: Tensor) -> Tensor:
    """Temperature of the mix, falling along the scales."""
    return (0.27 * (1 - 0.95 * ratio)).clamp_min(0.005)


def exponential(noise: Tensor) -> Tensor:
    """Uniform noise in (0, 1) as noise of the exponential distribution."""
    return -noise.clamp(TINY, 1 - TINY).log()


def normal(noise: Tensor) -> Tensor:
    """Uniform noise in (0, 1) as noise of the normal distribution."""
    return math.sqrt(2) * (2 * noise.clamp(TINY, 1 - TINY) - 1).erfinv()


def pass_sizes(tokens: int, count: int) -> list[int]:
    """How many of a scale's tokens each of `count` passes draws (MaskGIT's cosine); they sum to `tokens`."""
    hidden, sizes = tokens, []
    for step in range(1, count):
        left = max(1, min(hidden - 1, math.floor(tokens * math.cos(math.pi / 2 * step / count))))
        sizes.append(hidden - left)
        hidden = left
    return [*sizes, hidden]


def pass_of(order: Tensor, count: int) -> Tensor:
    """Which pass draws each token, (B, N) in [0, count); order (B, N): a permutation, last entries first."""
    sizes = pass_sizes(order.shape[1], count)
    number = torch.cat([torch.full_like(order[0, :size], n) for n, size in enumerate(sizes)]).flip(0)
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))


SINUSOID = 256  # numbers that a time or a level is written in
STRENGTH = 0.6  # of the residual, so that it stays within +-0.6
TIMES = 1000  # of the schedule in training


def sinusoid(values: Tensor) -> Tensor:
    """Numbers (n,) as cosines, then sines, of 128 frequencies: (n, 256) float32."""
    half = SINUSOID // 2
    index = torch.arange(half, dtype=torch.float32, device=values.device)
    frequency = torch.exp(-math.log(10000) * index / half)
    angles = values.float()[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Mixed(nn.Sequential):
    """Linear layers that compute in their own precision; what goes in and comes out is float32."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.SiLU) else in_its_precision(layer, x)
        return x


def in_its_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer of x, float32 in and out."""
    return layer(x.to(layer.bias.dtype)).float()


class SinusoidEmbedding(nn.Module):
    """Sinusoid, linear, SiLU, linear: (n,) -> (n, width)."""

    def __init__(self, width: int, operations: Any = nn) -> None:
        super().__init__()
        linear = operations.Linear
        self.mlp = Mixed(linear(SINUSOID, width), nn.SiLU(), linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        return self.mlp(sinusoid(values))


class _Block(nn.Module):
    def __init__(self, width: int, operations: Any) -> None:
        super().__init__()
        linear = operations.Linear
        self.in_ln = operations.LayerNorm(width, eps=1e-6)
        self.mlp = Mixed(linear(width, width), nn.SiLU(), linear(width, width))
        self.adaLN_modulation = Mixed(nn.SiLU(), linear(width, 3 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int, operations: Any) -> None:
        super().__init__()
        self.linear = operations.Linear(width, outputs)
        self.adaLN_modulation = Mixed(nn.SiLU(), operations.Linear(width, 2 * width))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift
        return in_its_precision(self.linear, normed)


class DiffusionNet(nn.Module):
    """The network, under the released file's names.  Its matrices may be in a lower precision."""

    def __init__(self, channels: int, condition: int, width: int, depth: int, operations: Any = nn) -> None:
        super().__init__()
        self.time_embed = SinusoidEmbedding(width, operations)
        self.cond_embed = operations.Linear(condition, width)
        self.input_proj = operations.Linear(channels, width)
        self.res_blocks = nn.ModuleList(_Block(width, operations) for _ in range(depth))
        self.final_layer = _Final(width, 2 * channels, operations)

    def forward(self, x: Tensor, time: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and variance, each (N, c), of states x (N, c) at a time in [0, 999]; z (N, C)."""
        told = self.time_embed(torch.full((1,), time, device=x.device))
        y = told + in_its_precision(self.cond_embed, z)
        h = in_its_precision(self.input_proj, x)
        for block in self.res_blocks:
            h = block(h, y)
        noise, variance = self.final_layer(h, y).chunk(2, dim=-1)
        return noise, variance


def predict(
    net: DiffusionNet, x: Tensor, time: int, z: Tensor, unguided: Tensor | None, w: float
) -> tuple[Tensor, Tensor]:
    """Noise and variance, each (N, c), of states x (N, c) under guidance; the variance is not guided.

    Args:
        z, unguided: (N, C) conditions of the prompt's and of the unconditional rows; None = no guidance.
        w: guidance strength; the prompt's noise counts 1 + w times, the other -w times.
    """
    if unguided is None:
        return net(x, time, z)
    noise, variance = net(torch.cat([x, x]), time, torch.cat([z, unguided]))
    positive, negative = noise.chunk(2)
    return (1 + w) * positive - w * negative, variance.chunk(2)[0]


@dataclass(frozen=True)
class DiffusionSchedule:
    """Constants of the S kept steps of a cosine schedule, by rising time; tensors (S,) float64.

    Attributes:
        times: what the network is told.
        alphas_cumprod: share of the signal's power left at each step.
        betas: noise added from the step before.
        posterior_log_variance: smallest (log) variance of a step back; the first is the second's.
        posterior_mean_x0, posterior_mean_xt: weights of the estimated result and of the present state in the
            mean of a step back.
    """

    times: tuple[int, ...]
    alphas_cumprod: Tensor
    betas: Tensor
    posterior_log_variance: Tensor
    posterior_mean_x0: Tensor
    posterior_mean_xt: Tensor

    @classmethod
    def of(cls, steps: int) -> DiffusionSchedule:
        """S >= 2 steps spread evenly over the schedule in training.

        Raises:
            ValueError: fewer than 2 steps, or more than there were in training.
        """
        if not 2 <= steps <= TIMES:
            raise ValueError(f"the residual diffusion takes 2 to {TIMES} steps, not {steps}")
        edge = torch.arange(TIMES + 1, dtype=torch.float64) / TIMES
        power = ((edge + 0.008) / 1.008 * math.pi / 2).cos().square()
        trained = (1 - (1 - power[1:] / power[:-1]).clamp_max(0.999)).cumprod(0)
        times = tuple(round(k * (TIMES - 1) / (steps - 1)) for k in range(steps))
        alphas = trained[list(times)]
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        betas = 1 - alphas / before
        variance = betas * (1 - before) / (1 - alphas)
        variance[0] = variance[1]
        x0, xt = betas * before.sqrt() / (1 - alphas), (1 - before) * (1 - betas).sqrt() / (1 - alphas)
        return cls(times, alphas, betas, variance.log(), x0, xt)


def denoise(
    net: DiffusionNet,
    schedule: DiffusionSchedule,
    z: Tensor,
    unguided: Tensor | None,
    w: float,
    noise: Tensor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """After every diffusion step the estimate of the result and the state, both (N, c) float32.

    Args:
        z, unguided, w: see `predict`.  With w exactly 1 the model was run without guidance, and is here.
        noise: (S + 1, N, c) of the normal distribution: the start, then what each step adds, the last unused.
    """
    unguided = None if w == 1 else unguided
    x = noise[0].float()
    constants = (schedule.alphas_cumprod, schedule.betas, schedule.posterior_log_variance)
    constants += (schedule.posterior_mean_x0, schedule.posterior_mean_xt)
    columns = list(zip(*(values.tolist() for values in constants), strict=True))
    for n, k in enumerate(reversed(range(len(schedule.times)))):
        eps, variance = predict(net, x, schedule.times[k], z, unguided, w)
        alpha, beta, least, share_x0, share_xt = columns[k]
        x0 = (x / math.sqrt(alpha) - math.sqrt(1 / alpha - 1) * eps).clamp(-1, 1)
        share = (variance + 1) / 2
        log_variance = share * math.log(beta) + (1 - share) * least
        x = share_x0 * x0 + share_xt * x
        if k > 0:
            x = x + (log_variance / 2).exp() * noise[n + 1]
        yield x0, x


def draw_residual(
    net: DiffusionNet,
    schedule: DiffusionSchedule,
    z: Tensor,
    unguided: Tensor | None,
    w: float,
    noise: Tensor,
) -> Tensor:
    """Residuals (N, c) float32 in [-0.6, 0.6]; arguments as for `denoise`."""
    *_, (_, x) = denoise(net, schedule, z, unguided, w, noise)
    return STRENGTH * x
