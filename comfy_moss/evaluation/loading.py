"""A model ready to draw many prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..job import Job
from ..model.backbone import Backbone
from ..ops import choose
from ..pipeline.draft import Recipe


@dataclass(frozen=True)
class Studio:
    """A model and the features of all prompts that it will draw.

    Attributes:
        features: by prompt, (L, Ct).
        negative: of the order's negative prompt; None = it has none.
    """

    job: Job
    backbone: Backbone
    features: dict[str, Tensor]
    negative: Tensor | None

    def recipe(self, prompts: Sequence[str], seeds: Sequence[int]) -> Recipe:
        """One batch: a picture for every pair of prompt and seed."""
        text = tuple(self.features[prompt] for prompt in prompts)
        negative = None if self.negative is None else (self.negative,) * len(text)
        return Recipe(text, negative, tuple(seeds), self.job.schedule, **self.job.settings)


@torch.inference_mode()
def load(job: Job, prompts: Sequence[str]) -> Studio:
    """Load the model of a checked order; the text encoder is gone before it comes.

    Raises:
        ValueError: a file is damaged, or a prompt is too long for the model.
    """
    files, negative = job.files, job.args.negative.strip()
    unique = list(dict.fromkeys([*prompts, *([job.args.negative] if negative else [])]))
    encoder = files.load_text(job.device, job.dtype)
    features = dict(zip(unique, encoder.encode(unique), strict=True))
    del encoder
    backbone = files.load(job.device, job.dtype)
    backbone = replace(backbone, kernels=choose("auto", job.device)[0])
    return Studio(job, backbone, features, features[job.args.negative] if negative else None)
