"""The codec as the host's VAE, so that VAE Decode, its tiled twin and VAE Encode work."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.sd
import torch
from torch import Tensor

from ..model.vae import VAE
from .model import manage


def _decode_bytes(codec: VAE, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that decoding codes of this shape takes at most, roughly: a few full-size feature maps."""
    pixels = shape[-2] * shape[-1] * codec.config.stride**2
    return 8 * codec.config.width * max(codec.config.mult[:2]) * pixels * mm.dtype_size(dtype)


class InfinityVAE(comfy.sd.VAE):
    """What Load Infinity hands to VAE Decode.  Its latents are sums of codes, not yet or no longer bits."""

    def __init__(self, codec: VAE) -> None:
        # Not the parent's __init__, which builds one of the host's own codecs from a file; these are the attributes it sets.
        self.first_stage_model = codec
        self.vae_dtype = next(codec.decoder.parameters()).dtype
        self.device, self.output_device = mm.vae_device(), mm.intermediate_device()
        self.patcher = manage(codec, self.device, mm.vae_offload_device())
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.memory_used_decode = lambda shape, dtype: _decode_bytes(codec, shape, dtype)
        self.memory_used_encode = lambda shape, dtype: _decode_bytes(codec, shape, dtype) // codec.config.stride**2
        self.downscale_ratio = self.upscale_ratio = codec.config.stride
        self.latent_channels, self.latent_dim, self.output_channels = codec.config.channels, 2, 3
        self.process_input = lambda image: image * 2 - 1
        self.process_output = self._to_image
        self.disable_offload = True  # the host streams only layers of its own make
        self.crop_input, self.not_video, self.handles_tiling = True, False, False
        self.downscale_index_formula = self.upscale_index_formula = None
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = self.size = None
        self.audio_sample_rate = 44100

    @staticmethod
    def _to_image(pixels: Tensor) -> Tensor:
        """[-1, 1] -> [0, 1] in place, as the host expects it."""
        return pixels.add_(1).div_(2).clamp_(0, 1)
