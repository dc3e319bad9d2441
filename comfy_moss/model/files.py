"""A model on disk: its files, the settings to start from, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .backbone import Backbone, PromptReader
from .checkpoint import load_infinity
from .published import NANO, PAPER, Published
from .sampling import Sampling
from .schedule import Schedule, make_schedule
from .text import TextEncoder


@dataclass(frozen=True)
class ModelFiles:
    """A complete Infinity model; another family overrides what differs.

    Attributes:
        area: image area it was made for, a key of `schedule.PRESETS`.
        cfg, tau: guidance and temperature its authors use.
    """

    name: str
    transformer: Path
    vae: Path
    text: Path
    area: str
    cfg: float
    tau: float

    @property
    def published(self) -> Published:
        """Settings of the methods for this model."""
        return NANO if self.name == "nano" else PAPER

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.transformer, self.vae, self.text)

    def schedule(self, height_over_width: float, area: str) -> Schedule:
        """The scales of a picture.

        Raises:
            ValueError: the model cannot draw this shape or area.
        """
        return make_schedule(height_over_width, area)

    def sampling(self, tau: float | tuple[float, ...]) -> Sampling:
        """How tokens are drawn, at this temperature."""
        return Sampling(tau)

    def load_text(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> PromptReader:
        """What reads the prompts.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return TextEncoder.load(self.text, device, dtype)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
        """The model itself; dtype is that of its large matrices and of the codec.

        Raises:
            CheckpointError: a file is missing or damaged, or the files do not belong together.
        """
        return replace(load_infinity(self.transformer, self.vae, self.text, device, dtype), published=self.published)
