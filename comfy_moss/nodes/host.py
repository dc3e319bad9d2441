"""ComfyUI's services in our hands: model management, progress, cancel and previews; its CLIP and VAE with our
modules inside.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.hooks
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.patcher_extension import CallbacksMP
from PIL import Image
from torch import Tensor, nn

from ..images import to_bytes
from ..model.backbone import Backbone, PositionedText, PromptReader, Text
from ..model.layers import device_of
from ..model.library import ModelFiles
from ..model.memory import decoder_bytes
from ..model.tensors import CheckpointError
from ..model.tiny_decoder import FOLDER, TinyDecoder, find_tiny_decoder, load_tiny_decoder, tiny_decoder_name
from ..model.vae import VAE, LatentRGB, fit_latent_rgb
from ..ops import TORCH, Kernels
from ..pipeline.cost import Stopwatch
from ..pipeline.refine import KVStore
from .memory import guarded

PREVIEW = 512  # pixels along the longest side of a preview, at most
# in a CONDITIONING: of the text tokens, for models that do not simply count them
POSITIONS = "moss_positions"
NOTES = "moss_notes"  # in a CONDITIONING: what its prompt asked for in vain
TEXT_TOO_LARGE = (
    "the device has too little memory for the text encoder: close other programs that use it, or choose "
    "precision bf16 in the loader"
)
PICTURE_TOO_LARGE = (
    "the device has too little memory to read or decode a picture of this size, even in strips: use VAE "
    "Decode (Tiled), or choose a smaller area; the draft is kept"
)
log = logging.getLogger(__name__)


# --- models -------------------------------------------------------------------------------------------------


def manage(
    module: nn.Module, load_device: torch.device, offload_device: torch.device, still: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The host's handle on a module.  Hosts before 0.11 have one kind only.

    Args:
        still: weights are not to move while the model is loaded, as recorded passes need it.
    """
    kind = "ModelPatcher" if still else "CoreModelPatcher"
    patcher = getattr(comfy.model_patcher, kind, comfy.model_patcher.ModelPatcher)
    return patcher(module, load_device=load_device, offload_device=offload_device)


def is_scarce() -> bool:
    """Whether the host was started to save GPU memory (--lowvram, --novram)."""
    state = getattr(mm, "vram_state", None)
    return getattr(state, "name", "") in ("LOW_VRAM", "NO_VRAM")


def is_roomy(module: nn.Module, device: torch.device) -> bool:
    """Whether a module may stay on the device with all its weights, and memory to spare: it takes less than
    half.  Weights in 8 bits are unpacked at every use; those who store them so have no memory to spare.
    """
    weights = list(module.parameters())
    packed = any(type(weight) is not nn.Parameter or weight.element_size() < 2 for weight in weights)
    size = sum(weight.nbytes for weight in weights)
    return not is_scarce() and not packed and 2 * size < mm.get_total_memory(device)


@dataclass(frozen=True, repr=False)
class MossModel:
    """A model with all its parts, whose weights are loaded, moved and unloaded by the host.

    Attributes:
        patcher: the host's handle on the transformer; this very name is how the host recognises models.
        vae_patcher: the same for the codec.
        store: owner of the KV cache of the draft in use; emptied when the host unloads the model.
        stores: those of all models on these weights, as LoRAs make them; one of them holds a cache.
    """

    backbone: Backbone
    files: ModelFiles
    patcher: comfy.model_patcher.ModelPatcher
    vae_patcher: comfy.model_patcher.ModelPatcher
    store: KVStore = field(default_factory=KVStore)
    stores: weakref.WeakSet[KVStore] = field(default_factory=weakref.WeakSet)

    def __post_init__(self) -> None:
        self.stores.add(self.store)
        # the callback must not hold the model: that circle would keep its weights until garbage is collected
        store, graphs = self.store, getattr(self.backbone, "graphs", None)

        def detached(_: object, unpatch_all: bool) -> None:
            if unpatch_all:  # otherwise a load is about to put the model back where it is
                store.clear()
                if graphs:
                    graphs.clear()

        self.patcher.add_callback(CallbacksMP.ON_DETACH, detached)

    def __repr__(self) -> str:
        return f"model {self.files.name}"

    def load(self, tokens: int, rows: int, largest: int, past: int = 0) -> None:
        """Have the host bring the weights to the device, as many as it has room for, and make room.

        Args:
            tokens: a row, in KV caches that are yet to be made.
            rows: batch rows, unconditional ones included.
            largest: tokens of the largest forward pass.
            past: tokens a row in the cache before that pass, where it does not join them.
        """
        for store in self.stores - {self.store}:
            store.clear()
        cache = self.backbone.cache_bytes(rows, tokens) if tokens else 0
        activations = self.backbone.pass_bytes(rows, largest, past or tokens, stored=not past)
        patchers = [self.patcher, self.vae_patcher]
        mm.load_models_gpu(patchers, memory_required=cache + activations)

    def load_codec(self) -> torch.device:
        """Have the host bring the codec alone to its device, and say which."""
        mm.load_models_gpu([self.vae_patcher])
        return self.vae_patcher.load_device

    def preview(self, total: Tensor) -> Tensor:
        """Sums of codes (B, c, h, w) as pictures (B, H, W, 3) in [0, 1] on the CPU, as the artist chose: by
        the codec's tiny decoder ("taesd") where there is one, else by the linear map.
        """
        if args.preview_method != LatentPreviewMethod.TAESD or self.tiny is None:
            return self.rgb(total)
        pictures = self.tiny.to(total.device).decode(total)
        return ((pictures + 1) / 2).movedim(1, -1).float().cpu()

    @cached_property
    def tiny(self) -> TinyDecoder | None:
        """Its codec's tiny decoder, in models/vae_approx or shipped; None = there is none to be read."""
        path = find_tiny_decoder(self.files.vae, map(Path, folder_paths.get_folder_paths(FOLDER)))
        if path is None:
            name = tiny_decoder_name(self.files.vae)
            log.warning(f"MoSs: {name} is not in models/{FOLDER}; previews are coarse")
            return None
        try:
            return load_tiny_decoder(path, self.backbone.channels, self.backbone.stride)
        except CheckpointError as error:
            log.warning(f"MoSs: previews are coarse: {error}")
            return None

    @cached_property
    def rgb(self) -> LatentRGB:
        """What its codes look like: fitted to the codec once, wherever it is by then."""
        codec = self.vae_patcher.model
        to = device_of(codec), codec.dtype
        return fit_latent_rgb(lambda images: codec.encode(images.to(*to)), codec.config.stride)


# --- progress -----------------------------------------------------------------------------------------------


def previews_wanted() -> bool:
    """Whether the artist wants live previews at all."""
    return args.preview_method != LatentPreviewMethod.NoPreviews


class Progress:
    """`on_scale` of the pipeline: says how far the picture is, shows it, and stops when the artist cancels.

    Args:
        steps: scales and passes that this node runs.
        first: scales that were drawn before it.
        preview: show the picture after every scale, if the artist wants that at all.
    """

    def __init__(self, model: MossModel, steps: int, first: int = 0, preview: bool = False) -> None:
        self.model, self.first, self.shown = model, first, preview and previews_wanted()
        self.bar = comfy.utils.ProgressBar(steps)
        self.watch = Stopwatch(model.backbone.device)

    def __call__(self, done: int, scales: int, total: Tensor) -> None:
        mm.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done - self.first, preview=self._preview(total[:1]) if self.shown else None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage, without that of the previews in it."""
        before = self.seconds.get("preview", 0.0)
        with self.watch.stage(name):
            yield
        self.seconds[name] -= self.seconds.get("preview", 0.0) - before

    @property
    def seconds(self) -> dict[str, float]:
        """By stage, so far."""
        return self.watch.seconds

    def _preview(self, total: Tensor) -> tuple[str, Image.Image, int]:
        """The first picture of the batch as the host takes it: the host enlarges it to the size given."""
        with self.watch.stage("preview"):
            picture = Image.fromarray(to_bytes(self.model.preview(total)[0]).numpy())
        return "JPEG", picture, min(PREVIEW, max(total.shape[2:]) * self.model.backbone.stride)


def seconds_in_queue() -> float | None:
    """Seconds since the running graph was queued, or since the one before it ended; None where there is no
    server.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None or not (running := list(server.prompt_queue.currently_running.values())):
        return None
    queued = running[-1][3].get("create_time")
    earlier = next(reversed(server.prompt_queue.history.values()), {}).get("status") or {}
    ends = [message[1].get("timestamp", 0) for message in earlier.get("messages", [])]
    return None if queued is None else max(0.0, time.time() - max(queued, *ends, 0) / 1000)


# --- text encoder -------------------------------------------------------------------------------------------




class Tokenizer:
    """Prompt -> token ids in the host's form."""

    def __init__(self, encoder: PromptReader) -> None:
        self.encoder = encoder

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **options: Any
    ) -> dict[str, list[list[tuple]]]:
        """One list of (token id, weight 1.0), or with the word's number too."""
        ids = self.encoder.ids(text)
        words = [(token, 1.0, n) if return_word_ids else (token, 1.0) for n, token in enumerate(ids)]
        for note in (notes := weight_notes(text)):
            warn(Note(**note))
        return {"t5": [words], NOTES: notes}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class T5(nn.Module):
    """The encoder in the host's form."""

    def __init__(self, encoder: PromptReader) -> None:
        super().__init__()
        self.encoder = encoder
        self.model = encoder.model
        self.execution_device: torch.device | None = None  # None = where its weights are

    def encode_token_weights(
        self, tokens: dict[str, list[list[tuple]]]
    ) -> tuple[Tensor, None, dict[str, Tensor]]:
        """Features (1, L, Ct) float32, no pooled output, and the positions (1, L) where the model reads them.
        """
        ids = [token[0] for chunk in tokens["t5"] for token in chunk]
        device = self.execution_device
        text = guarded(lambda: self.encoder.features(ids, device), TEXT_TOO_LARGE)
        notes = {NOTES: tokens[NOTES]} if tokens.get(NOTES) else {}
        if isinstance(text, PositionedText):
            return text.features[None], None, {POSITIONS: text.positions[None], **notes}
        return text[None], None, notes

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""
        self.execution_device = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """The device to compute on; CLIP's other options (layer, projection) mean nothing here."""
        self.execution_device = options.get("execution_device", self.execution_device)


class InfinityCLIP(comfy.sd.CLIP):
    """What MoSs Load Infinity hands to CLIP Text Encode."""

    def __init__(self, encoder: PromptReader | None = None, no_init: bool = False) -> None:
        super().__init__(no_init=True)
        if no_init:
            return
        self.cond_stage_model = T5(encoder)
        self.tokenizer = Tokenizer(encoder)
        self.patcher = manage(
            self.cond_stage_model, mm.text_encoder_device(), mm.text_encoder_offload_device()
        )
        self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        self.patcher.is_clip = True
        self.apply_hooks_to_conds = self.layer_idx = None
        self.use_clip_schedule = False
        self.tokenizer_options = {}

    def clone(self, *args: Any, **kwargs: Any) -> InfinityCLIP:
        copy = super().clone(*args, **kwargs)
        copy.__class__ = type(self)
        return copy


def text_features(conditioning: list, name: str) -> tuple[Text, ...]:
    """Features (L, Ct) of every row of a CONDITIONING, with their positions where it has them.

    Raises:
        ValueError: several prompts combined, values that are not finite, or not made by this model's CLIP.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"the {name} input holds {len(conditioning)} combined conditionings and this model reads one; "
            "use Conditioning (Concat), or write one prompt"
        )
    try:
        features, settings = conditioning[0]
    except (TypeError, ValueError):
        features, settings = None, {}
    if not isinstance(features, Tensor) or features.dim() != 3 or not features.numel():
        raise ValueError(
            f"the {name} input is no text conditioning; wire it to CLIP Text Encode with the CLIP of MoSs "
            "Load Infinity"
        )
    for note in notes_of(conditioning, name):
        if note.key == "unsupported":  # of prompt weights the page was told when they were read
            warn(note)
    if not torch.isfinite(features).all():
        raise ValueError(
            f"the {name} input holds values that are not numbers; wire it straight to CLIP Text Encode"
        )
    rows = features.to(torch.float32).unbind(0)
    if (positions := settings.get(POSITIONS)) is None:
        return rows
    return tuple(PositionedText(row, where) for row, where in zip(rows, positions, strict=True))


# --- codec --------------------------------------------------------------------------------------------------


def _decode_bytes(codec: VAE, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that decoding one picture of codes of this shape takes at most."""
    return decoder_bytes(codec.config, shape[-2] * shape[-1] * codec.config.stride**2, mm.dtype_size(dtype))


class InfinityVAE(comfy.sd.VAE):
    """What MoSs Load Infinity hands to VAE Decode.  Its latents are sums of codes, not yet or no longer bits.
    """

    def __init__(self, codec: VAE, kernels: Kernels = TORCH) -> None:
        # Not the parent's __init__, which builds one of the host's own codecs from a file; these are the
        # attributes it sets.
        self.first_stage_model, self.kernels = codec, kernels
        self.vae_dtype = codec.dtype
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.patcher = manage(codec, self.device, mm.vae_offload_device())
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.memory_used_decode = lambda shape, dtype: _decode_bytes(codec, shape, dtype)
        self.memory_used_encode = lambda shape, dtype: (
            _decode_bytes(codec, shape, dtype) // codec.config.stride**2
        )
        self.downscale_ratio = self.upscale_ratio = codec.config.stride
        self.latent_channels, self.latent_dim, self.output_channels = codec.config.channels, 2, 3
        self.process_input = lambda image: image * 2 - 1
        self.process_output = self._to_image
        self.disable_offload = False
        self.crop_input, self.not_video, self.handles_tiling = True, False, False
        self.downscale_index_formula = self.upscale_index_formula = None
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = self.size = None
        self.audio_sample_rate = 44100

    def decode(self, samples: Tensor, vae_options: Mapping[str, Any] | None = None) -> Tensor:
        """As the host does, with our kernels; where even strips are too large, in a sentence."""
        options = {"ops": self.kernels, **(vae_options or {})}
        return guarded(lambda: super(InfinityVAE, self).decode(samples, options), PICTURE_TOO_LARGE)

    def encode(self, pixels: Tensor, *args: Any, **options: Any) -> Tensor:
        return guarded(lambda: super(InfinityVAE, self).encode(pixels, *args, **options), PICTURE_TOO_LARGE)

    @staticmethod
    def _to_image(pixels: Tensor) -> Tensor:
        """[-1, 1] -> [0, 1] in place, as the host expects it."""
        return pixels.add_(1).div_(2).clamp_(0, 1)


# --- what these models do not have --------------------------------------------------------------------------

# What an artist asked for and this family of models does not have: said in the page and the log, never
# dropped silently.

# (word:1.2), ((word)), [word:0.5], <lora:name:1>, embedding:name, BREAK
SYNTAX = re.compile(
    r"\([^()]+:\s*\d*\.?\d+\s*\)|\(\([^()]+\)\)|\[[^\[\]]+:\s*[\d.]+\s*\]"
    r"|<lora:[^<>]+>|\bembedding:[^\s,]+|\bBREAK\b"
)
UNSUPPORTED = {  # what other nodes write into a conditioning, and what it asks for
    "area": "Set Area", "mask": "Set Mask", "start_percent": "Set Timestep Range",
    "end_percent": "Set Timestep Range", "control": "a ControlNet", "gligen": "GLIGEN", "hooks": "hooks",
    "unclip_conditioning": "unCLIP", "reference_latents": "a reference picture",
    "guidance": "a guidance of its own", "concat_latent_image": "an inpainting picture",
}


@dataclass(frozen=True)
class Note:
    """A warning that a node shows.

    Attributes:
        key: by which the page finds its words in other languages; `values` are those in the sentence.
    """

    key: str
    text: str
    values: dict[str, Any] = field(default_factory=dict)


def warn(note: Note) -> None:
    """Tell the artist, in the page and in the log, and go on."""
    log.warning(note.text)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync("moss.warning", vars(note))


def notes_of(conditioning: list | None, name: str) -> list[Note]:
    """What a conditioning asks for that this family of models does not have: the picture is the same without.
    """
    settings = conditioning[0][1] if conditioning and len(conditioning[0]) == 2 else {}
    asked = dict.fromkeys(what for key, what in UNSUPPORTED.items() if settings.get(key) is not None)
    if settings.get("strength", 1.0) != 1.0:
        asked["a strength other than 1"] = None
    found = [Note(**note) for note in settings.get(NOTES) or ()]
    if asked:
        listed = ", ".join(asked)
        text = f"This model cannot follow {listed} of the {name} conditioning; it is drawn without."
        found.append(Note("unsupported", text, {"asked": listed, "name": name}))
    return found


def weight_notes(text: str) -> list[dict[str, Any]]:
    """That `(word:1.2)` and its like are read as plain text, if a prompt has them."""
    if not (found := SYNTAX.search(text)):
        return []
    text = f"This model has no prompt weights: {found[0]!r} is read as plain text."
    return [vars(Note("weights", text, {"found": found[0]}))]
