"""Progress bar, live preview and cancel between scales."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils
from PIL import Image
from torch import Tensor

from ..images import to_bytes
from ..pipeline.stopwatch import Stopwatch
from .model import SKETCH, MossModel


class Progress:
    """`on_scale` of the pipeline: says how far the picture is, shows it, and stops when the artist cancels.

    Attributes:
        watch: seconds spent on previews, which are no part of the method.
    """

    def __init__(self, model: MossModel, steps: int, first: int = 0, preview: bool = True) -> None:
        self.model, self.first, self.preview = model, first, preview
        self.bar = comfy.utils.ProgressBar(steps)
        self.watch = Stopwatch(model.backbone.device, ["preview"])

    def __call__(self, done: int, scales: int, total: Tensor) -> None:
        mm.throw_exception_if_processing_interrupted()
        with self.watch.stage("preview"):
            shown = ("JPEG", self._picture(total), SKETCH) if self.preview else None
        self.bar.update_absolute(done - self.first, preview=shown)

    def _picture(self, total: Tensor) -> Image.Image:
        """The first picture of the batch."""
        return Image.fromarray(to_bytes(self.model.sketch(total[:1])[0]).numpy())

    @property
    def seconds(self) -> float:
        return self.watch.seconds["preview"]
