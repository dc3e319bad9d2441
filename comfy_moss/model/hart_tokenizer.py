"""HART's tokenizer: image <-> feature map, a convolutional codec with attention at its lowest resolution, and the quantiser.

Blocks and module names are those of model/vae.py.  Facts: HART specification, section 9.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .hart_vq import Quantizer
from .vae import Decoder, Encoder, VAEConfig


class Attention(nn.Module):
    """Every place of a feature map (B, C, H, W) attends to every place; one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(2).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]  # the scale is C^-1/2
        return x + self.proj_out(out.transpose(1, 2).unflatten(2, x.shape[2:]))


def _attentions(channels: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(Attention(channels) for _ in range(count))


def _run_level(level: nn.Module, x: Tensor) -> Tensor:
    """Residual blocks, each followed by attention where the level has it."""
    for n, block in enumerate(level.block):
        x = block(x)
        x = level.attn[n](x) if hasattr(level, "attn") else x
    return x


def _run_middle(middle: nn.Module, x: Tensor) -> Tensor:
    return middle.block_2(middle.attn_1(middle.block_1(x)))


class AttentiveEncoder(Encoder):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        channels = config.width * config.mult[-1]
        self.down[-1].attn = _attentions(channels, config.encoder_blocks)
        self.mid.attn_1 = Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = _run_level(level, x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        return self.conv_out(self.norm_out(_run_middle(self.mid, x)))


class AttentiveDecoder(Decoder):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        channels = config.width * config.mult[-1]
        self.up[-1].attn = _attentions(channels, config.decoder_blocks)
        self.mid.attn_1 = Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = _run_middle(self.mid, self.conv_in(x))
        for level in reversed(self.up):
            x = _run_level(level, x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(self.norm_out(x))


class Tokenizer(nn.Module):
    """Codec between images (B, 3, H, W) in [-1, 1], RGB, and feature maps (B, c, H / stride, W / stride); and its quantiser."""

    def __init__(self, config: VAEConfig, quantizer: Quantizer) -> None:
        super().__init__()
        self.config = config
        self.encoder = AttentiveEncoder(config)
        self.decoder = AttentiveDecoder(config)
        self.quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.quantize = quantizer

    def encode(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [-1, 1] -> features (B, c, H / stride, W / stride), not yet quantised."""
        return self.quant_conv(self.encoder(image))

    def decode(self, codes: Tensor) -> Tensor:
        """Summed codes (B, c, h, w) -> image (B, 3, h * stride, w * stride) in [-1, 1]."""
        return self.decoder(self.post_quant_conv(codes)).clamp(-1, 1)
