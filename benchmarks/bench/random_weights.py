"""Random weights and prompts, the same ones for every call on one kind of device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PROMPT_TOKENS = 20  # of a random prompt: a sentence, end token included
SEED = 0


def fill_at_random(model: nn.Module, device: torch.device, seed: int) -> nn.Module:
    """Make the parameters of a model from the meta device on a real one, and fill them so that signals keep their size."""
    model.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and name.endswith("weight")
        spread = 1 / math.sqrt(parameter[0].numel()) if matrix else 0.3
        parameter.normal_(_centre(name, parameter), spread, generator=generator)
    return model


def _centre(name: str, parameter: Tensor) -> float:
    """Norms multiply by about 1; heads attend about as sharply as trained ones, not evenly to everything."""
    if name.endswith("scale_mul_1H11"):
        return 3.0
    return float(parameter.dim() == 1 and name.endswith("weight"))


def random_prompt(vocabulary: int) -> list[int]:
    """Token ids below `vocabulary`."""
    return torch.randint(vocabulary, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(SEED)).tolist()
