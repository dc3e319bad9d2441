"""Drawing HART's tokens from logits over codes: the guidance ramp, truncation, one code, and the soft mix of codes.

Shapes: B pictures, N tokens, V codes, c channels of a token.  Facts: HART specification, sections 6 to 8.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .guidance import Guidance
from .rope import Positions
from .sampling import per_scale

MANY, FEW, LATE = 600, 300, 7  # codes that a token may become: before the eighth scale, and from then on
TINY = 2.0**-24  # distance from 0 and 1 that noise keeps
NOT_NUMBERS = "the model returned values that are not numbers; its file is damaged or does not fit this precision"


def progress(scales: int, device: torch.device | str = "cpu") -> Tensor:
    """(S,) float32: how far through the scales each is, from 0 towards 1.  The last counts like the one before, as released."""
    ratio = [n / max(1, scales - 1) for n in range(scales)]
    return torch.tensor(ratio[:-1] + ratio[-2:-1] if scales > 1 else [0.0], device=device)


def strengths(guidance: Guidance, scales: int, device: torch.device | str = "cpu") -> Tensor:
    """(S,) float32: t of every scale; logits become (1 + t) * prompt - t * unconditional.

    One number grows along the scales from none, as released (whose own count leaves the 1 out: its 4.5 is 5.5 here).  A list
    is taken as it stands.
    """
    if isinstance(guidance.cfg, tuple):
        return torch.tensor(per_scale(guidance.cfg, scales, "cfg"), device=device) - 1
    return (guidance.cfg - 1) * progress(scales, device)


def most_codes(positions: Positions, top_k: int) -> Tensor:
    """(N,) int64: how many codes each token may become.  top_k 0 = the released numbers."""
    scale = positions.scale[0]
    return torch.where(scale < LATE, MANY, FEW) if top_k == 0 else torch.full_like(scale, top_k)


def truncate(logits: Tensor, most: Tensor | int, top_p: float) -> Tensor:
    """Logits (B, N, V) with -inf at unlikely codes.

    Args:
        most: top-k, one number or (N,); ties with the k-th survive.
        top_p: in (0, 1]: the least likely codes whose probabilities sum to at most 1 - top_p are removed.  0 = off.
    """
    most = torch.as_tensor(most, device=logits.device).clamp(1, logits.shape[-1]).expand(logits.shape[:-1])
    best = logits.topk(int(most.max()), dim=-1).values
    logits = logits.masked_fill(logits < best.gather(-1, most[..., None] - 1), -math.inf)
    if not 0 < top_p:
        return logits
    ordered, place = logits.sort(dim=-1)
    unlikely = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    unlikely[..., -1] = False
    return logits.masked_fill(unlikely.scatter(-1, place, unlikely), -math.inf)


def draw_code(logits: Tensor, noise: Tensor) -> Tensor:
    """Code numbers (B, N) int64 by probability; logits (B, N, V), noise (B, N) uniform in (0, 1)."""
    upto = logits.softmax(dim=-1).cumsum(dim=-1)
    place = noise.clamp(TINY, 1 - TINY) * upto[..., -1]
    return torch.searchsorted(upto, place[..., None].contiguous(), right=True)[..., 0].clamp_max(logits.shape[-1] - 1)


def soft_mix(logits: Tensor, ratio: Tensor, waiting: Tensor) -> Tensor:
    """Weights (B, N, V) of the codes in the mix that becomes a token.

    Args:
        logits: (B, N, V), truncated.
        ratio: (N,) or (B or 1, N), see `progress`: the further, the closer to one code alone.
        waiting: (B, N, V) noise of the exponential distribution.
    """
    ratio = ratio[..., None]
    return ((logits * (1 + ratio) - waiting.log()) / softness(ratio)).softmax(dim=-1)


def softness(ratio: Tensor) -> Tensor:
    """Temperature of the soft mix, falling along the scales."""
    return (0.27 * (1 - 0.95 * ratio)).clamp_min(0.005)


def exponential(noise: Tensor) -> Tensor:
    """Uniform noise in (0, 1) as noise of the exponential distribution."""
    return -noise.clamp(TINY, 1 - TINY).log()


def normal(noise: Tensor) -> Tensor:
    """Uniform noise in (0, 1) as noise of the normal distribution."""
    return math.sqrt(2) * (2 * noise.clamp(TINY, 1 - TINY) - 1).erfinv()


def passes(tokens: int, count: int) -> list[int]:
    """How many of a scale's tokens each of `count` passes draws, in order (MaskGIT's cosine); they sum to `tokens`."""
    hidden, sizes = tokens, []
    for step in range(1, count):
        left = max(1, min(hidden - 1, math.floor(tokens * math.cos(math.pi / 2 * step / count))))
        sizes.append(hidden - left)
        hidden = left
    return [*sizes, hidden]


def pass_of(order: Tensor, count: int) -> Tensor:
    """Which pass draws each token: order (B, N) a permutation, whose last entries come first -> (B, N) in [0, count)."""
    sizes = torch.tensor(passes(order.shape[1], count), device=order.device)
    number = torch.arange(count, device=order.device).repeat_interleave(sizes).flip(0)
    return torch.empty_like(order).scatter_(1, order, number.expand_as(order))
