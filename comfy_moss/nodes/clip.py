"""The text encoder as the host's CLIP, so that its own prompt nodes work."""

from __future__ import annotations

import logging
import re
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor, nn

from ..model.backbone import PromptReader
from .model import manage

WEIGHTED = re.compile(r"\([^()]+:\d*\.?\d+\)")  # (word:1.2)
log = logging.getLogger(__name__)


class Tokenizer:
    """Prompt -> token ids in the host's form."""

    def __init__(self, encoder: PromptReader) -> None:
        self.encoder = encoder

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, list[list[tuple]]]:
        """One list of (token id, weight 1.0), or with the word's number too."""
        if found := WEIGHTED.search(text):
            log.warning(f"This model has no prompt weights: {found[0]!r} is read as plain text.")
        ids = self.encoder.ids(text)
        return {"t5": [[(token, 1.0, n) if return_word_ids else (token, 1.0) for n, token in enumerate(ids)]]}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class T5(nn.Module):
    """The encoder in the host's form."""

    def __init__(self, encoder: PromptReader) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = encoder.model

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """Features (1, L, Ct) float32; there is no pooled output."""
        ids = [token[0] for chunk in tokens["t5"] for token in chunk]
        return self.encoder.features(ids)[None], None

    def reset_clip_options(self) -> None:
        """CLIP's options (layer, projection) mean nothing here."""

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """See `reset_clip_options`."""


class InfinityCLIP(comfy.sd.CLIP):
    """What Load Infinity hands to CLIP Text Encode."""

    def __init__(self, encoder: PromptReader | None = None, no_init: bool = False) -> None:
        super().__init__(no_init=True)
        if no_init:
            return
        self.cond_stage_model = T5(encoder)
        self.tokenizer = Tokenizer(encoder)
        self.patcher = manage(self.cond_stage_model, mm.text_encoder_device(), mm.text_encoder_offload_device())
        self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        self.patcher.is_clip = True
        self.apply_hooks_to_conds = self.layer_idx = None
        self.use_clip_schedule = False
        self.tokenizer_options = {}

    def clone(self, *args: Any, **kwargs: Any) -> InfinityCLIP:
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        return copy

    def load_model(self, tokens: object = None) -> object:
        """All of it at once: the host streams only layers of its own make."""
        mm.load_models_gpu([self.patcher], force_full_load=True)
        return self.patcher


def text_features(conditioning: list, name: str) -> tuple[Tensor, ...]:
    """Features (L, Ct) of every row of a CONDITIONING.

    Raises:
        ValueError: several prompts combined, values that are not finite, or not made by this model's CLIP.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"the {name} input holds {len(conditioning)} combined conditionings and this model reads one; "
            "use Conditioning (Concat), or write one prompt"
        )
    features = conditioning[0][0]
    if not isinstance(features, Tensor) or features.dim() != 3:
        raise ValueError(f"the {name} input is no text conditioning; wire it to CLIP Text Encode with the CLIP of Load Infinity")
    if not torch.isfinite(features).all():
        raise ValueError(f"the {name} input holds values that are not numbers; wire it straight to CLIP Text Encode")
    return tuple(features.to(torch.float32).unbind(0))
