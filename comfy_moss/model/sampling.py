"""How strongly a prompt guides, and how bits are drawn: with noise that depends only on where a bit stands.

Facts: docs/infinity.md, section 6.1; HART's guidance: docs/hart.md, section 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .schedule import Positions

NOISE_ID = "counter-murmur3 v1"  # names `bit_noise`; pictures of one seed are comparable only under one noise
PerScale = float | tuple[float, ...]  # one number for all scales, or one a scale


@dataclass(frozen=True)
class Sampling:
    """How bits are drawn.

    Attributes:
        tau: temperature > 0 dividing the logits.
        top_k: 1 takes the likelier bit (greedy); 0 and >= 2 change nothing, there are only two bits.
        top_p: in [0, 1]: a bit whose rival has probability <= 1 - top_p is not drawn but taken.  0 = off.
    """

    tau: PerScale = 1.0
    top_k: int = 900
    top_p: float = 0.97

    def __post_init__(self) -> None:
        taus = self.tau if isinstance(self.tau, tuple) else (self.tau,)
        if not all(math.isfinite(t) and t > 0 for t in taus):
            raise ValueError(f"tau (temperature) must be above 0, got {self.tau}")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p must lie between 0 and 1, got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, got {self.top_k}")

    def tau_at(self, positions: Positions, scales: int) -> Tensor:
        """Temperature of every token, (B or 1, N or 1, 1) float32."""
        return look_up(per_scale(self.tau, scales, "tau"), positions)


@dataclass(frozen=True)
class Ramp:
    """HART's guidance: grows along the scales, from none at the first towards `strength`."""

    strength: float

    def shares(self, scales: int) -> list[float]:
        """How far up each scale is, from 0 towards 1; the last counts like the one before, as released."""
        ratio = [n / max(1, scales - 1) for n in range(scales)]
        return ratio[:-1] + ratio[-2:-1] if scales > 1 else [0.0]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: how strong, and where in the network the two halves of the rows are mixed.

    Attributes:
        cfg: strength, >= 0; 1 = no guidance.
        layers: 0 = mix the logits (the official way); -k = mix the rows after the k-th block from the end;
            1 = nothing.
    """

    cfg: PerScale | Ramp = 3.0
    layers: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        values = self.asked if isinstance(self.asked, tuple) else (self.asked,)
        if not all(math.isfinite(v) and v >= 0 for v in values):
            raise ValueError(f"cfg (guidance) must be 0 or more, got {self.asked}")

    @property
    def asked(self) -> PerScale:
        """The strength as it was asked for: one number, or one a scale."""
        return self.cfg.strength if isinstance(self.cfg, Ramp) else self.cfg

    def per_scale(self, scales: int) -> tuple[float, ...]:
        """Strength at every scale.

        Raises:
            ValueError: the list is too short.
        """
        if isinstance(self.cfg, Ramp):
            return tuple(1 + (self.cfg.strength - 1) * share for share in self.cfg.shares(scales))
        return per_scale(self.cfg, scales, "cfg")

    def of_strength(self, cfg: float) -> Guidance:
        """The same kind of guidance, another strength."""
        return replace(self, cfg=Ramp(cfg) if isinstance(self.cfg, Ramp) else float(cfg))

    def active(self, scales: int) -> bool:
        """Whether any scale needs the unconditional rows."""
        return any(strength != 1 for strength in self.per_scale(scales))

    def at(self, positions: Positions, scales: int) -> Tensor:
        """Strength of every token, (B or 1, N or 1, 1) float32."""
        return look_up(self.per_scale(scales), positions)

    def mixes(self, depth: int, cfg: Tensor) -> dict[int, Tensor]:
        """Block index -> strength of every token, for the layers inside the network.

        Raises:
            ValueError: the network has too few blocks.
        """
        inside = [layer for layer in self.layers if layer not in (0, 1)]
        if not all(-depth < layer < 0 for layer in inside):
            allowed = f"guidance layers must be 0 or between -{depth - 1} and -1 for this model"
            raise ValueError(f"{allowed}, got {self.layers}")
        return {depth + layer: cfg for layer in inside}


def mix_rows(x: Tensor, cfg: Tensor) -> Tensor:
    """Both halves of x (2B, N, C) become cfg * positive + (1 - cfg) * negative, except tokens with cfg 1."""
    positive, negative = x.chunk(2)
    mixed = cfg * positive + (1 - cfg) * negative
    return torch.where(cfg.repeat(2 if cfg.shape[0] > 1 else 1, 1, 1) != 1, torch.cat([mixed, mixed]), x)


class Finite:
    """Whether all logits of a run were numbers: noted on the device, asked once at the end."""

    def __init__(self) -> None:
        self._noted: list[Tensor] = []

    def note(self, logits: Tensor) -> None:
        """Take some logits into account; waits for nothing."""
        self._noted.append(torch.isfinite(logits).all())

    def check(self) -> None:
        """Refuse logits that are no numbers.

        Raises:
            ValueError: some noted since the last check were not finite.
        """
        noted, self._noted = self._noted, []
        if not noted or torch.stack(noted).all():
            return
        raise ValueError(
            "the model returned values that are not numbers; its file is damaged or does not fit this "
            "precision"
        )


def per_scale(value: float | Sequence[float], scales: int, name: str) -> tuple[float, ...]:
    """One number for all scales, or a list with at least one entry a scale, as a tuple of `scales` numbers.

    Raises:
        ValueError: the list is too short.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * scales
    if len(value) < scales:
        raise ValueError(f"{name} lists {len(value)} values but the schedule has {scales} scales")
    return tuple(float(v) for v in value[:scales])


def look_up(values: Sequence[float], positions: Positions) -> Tensor:
    """Each token's entry in a list of one number a scale, (B or 1, N or 1, 1) float32.

    Where the scales are known here, by filling: copying a list to a GPU would wait for it.
    """
    device = positions.scale.device
    if not positions.runs:
        return torch.tensor(values, device=device)[positions.scale][..., None]
    runs = [(values[scale], count) for scale, count in positions.runs]
    if len({value for value, _ in runs}) == 1:
        return torch.full((1, 1, 1), runs[0][0], dtype=torch.float32, device=device)
    parts = [torch.full((1, n, 1), value, dtype=torch.float32, device=device) for value, n in runs]
    return torch.cat(parts, dim=1)


def bit_probability(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probability that a bit is 1 after filtering; logits (..., 2) -> (...) float32.

    Equal logits under top_k = 1 stay a coin toss, as in the original.
    """
    margin = (logits[..., 1] - logits[..., 0]).float()
    sure = margin != 0
    if top_k != 1:
        rival = torch.sigmoid(-margin.abs())  # probability of the less likely bit
        sure = sure & (rival <= (1 - top_p if top_p > 0 else -1))
    return torch.where(sure, (margin > 0).float(), margin.sigmoid())


def draw_bits(logits: Tensor, noise: Tensor, top_k: int, top_p: float) -> Tensor:
    """Bits (...) uint8 from logits (..., 2) and uniform noise (...) in (0, 1)."""
    return (noise < bit_probability(logits, top_k, top_p)).to(torch.uint8)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash (murmur3's finaliser) in int64 arithmetic, exact on every device."""
    mask = 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
    return x ^ (x >> 16)


def bit_noise(seeds: Sequence[int], positions: Positions, bits: int) -> Tensor:
    """Uniform noise in (0, 1) of every bit, keyed by (seed, scale, row, column, bit) and by nothing else.

    So a draft is the same for every number of refine scales, batch size, order of tokens and device.

    Args:
        seeds: one integer a picture, B of them, any size up to 64 bits.
        positions: N tokens a picture, (B, N) or (1, N).
        bits: d, bits a token.

    Returns:
        (B, N, d) float32 on the device of the positions.
    """
    return noise_of(noise_keys(seeds, positions), bits)


def noise_keys(seeds: Sequence[int], positions: Positions) -> Tensor:
    """(B, N) int64: what `noise_of` draws a token's noise from; seeds and positions as of `bit_noise`."""
    device = positions.scale.device
    low, high = (
        torch.cat([torch.full((1, 1), part & 0xFFFFFFFF, device=device) for part in parts])
        for parts in (seeds, [seed >> 32 for seed in seeds])
    )
    key = _mix(low ^ 0x9E3779B9)
    for part in (high, positions.scale, positions.row, positions.col):
        key = _mix(key ^ _mix((part + 0x7F4A7C15) & 0xFFFFFFFF) ^ 0x165667B1)
        key = (key * 5 + 0xE6546B64) & 0xFFFFFFFF
    return key


def noise_of(key: Tensor, bits: int) -> Tensor:
    """Uniform noise (B, N, d) in (0, 1) from keys (B, N)."""
    bit = _mix(torch.arange(1, bits + 1, device=key.device) * 0x9E3779B1 & 0xFFFFFFFF)
    value = _mix(key[..., None] ^ bit) >> 8
    # The greatest value plus a half rounds up to 2^24: held below, or a bit that is sure would not be drawn.
    return ((value.float() + 0.5) / (1 << 24)).clamp_max(1 - 2.0**-24)
