"""A model ready to draw many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from comfy_moss.model.backbone import Backbone
from comfy_moss.model.library import ModelFiles
from comfy_moss.ops import choose
from comfy_moss.pipeline.draft import Recipe
from comfy_moss.request import Checked


@dataclass(frozen=True)
class Studio:
    """A model and the features of all prompts that it will draw.

    Attributes:
        features: by prompt, (L, Ct).
        negative: of the order's negative prompt; None = it has none.
    """

    job: Checked
    backbone: Backbone
    features: dict[str, Tensor]
    negative: Tensor | None

    def recipe(self, prompts: Sequence[str], seeds: Sequence[int]) -> Recipe:
        """One batch: a picture for every pair of prompt and seed."""
        text = tuple(self.features[prompt] for prompt in prompts)
        negative = None if self.negative is None else (self.negative,) * len(text)
        return Recipe(text, negative, tuple(seeds), self.job.schedule, self.job.guidance, self.job.sampling)


def load(job: Checked, prompts: Sequence[str]) -> Studio:
    """Load the model of a checked order.  Raises as `load_model`."""
    negative = job.request.negative if job.request.negative.strip() else None
    texts = [*prompts, *([] if negative is None else [negative])]
    backbone, features = load_model(job.files, job.device, job.dtype, texts)
    return Studio(job, backbone, features, None if negative is None else features[negative])


@torch.inference_mode()
def load_model(
    files: ModelFiles, device: torch.device, dtype: torch.dtype, prompts: Sequence[str]
) -> tuple[Backbone, dict[str, Tensor]]:
    """A model and the features of prompts; the text encoder is gone before the model comes.

    Raises:
        ValueError: a file is damaged, or a prompt is too long for the model.
    """
    unique = list(dict.fromkeys(prompts))
    features = dict(zip(unique, files.load_text(device, dtype).encode(unique), strict=True))
    return replace(files.load(device, dtype), kernels=choose("auto", device)[0]), features
