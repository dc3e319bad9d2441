"""Decoding in strips: the picture that decoding at once gives, in little memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from builders import tiny_backbone, tiny_vae
from hart_builders import tiny_hart_backbone
from torch import Tensor

from comfy_moss.model.library import find_model
from comfy_moss.model.quantize import resample
from comfy_moss.model.strips import decode_in_strips, moments
from comfy_moss.model.vae import Decoder


def features(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    noise = torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return resample(noise, (height, width))  # smooth, as a drawn map is


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 17), (7, 50), (1, 9)])
@pytest.mark.parametrize("pixels", [1, 64, 300, 10**6])
def test_strips_of_any_size_give_what_decoding_at_once_gives(height: int, width: int, pixels: int) -> None:
    codec = tiny_vae(mult=(1, 1, 1), blocks=2).double()
    codes = features(8, height, width).double()
    with torch.inference_mode():
        whole = codec.decoder(codes)
        strips = decode_in_strips(codec.decoder, codes, pixels)
        turned = decode_in_strips(codec.decoder, codes.contiguous(memory_format=torch.channels_last), pixels)
    assert (whole - strips).abs().max() < 1e-5 and (whole - turned).abs().max() < 1e-5  # norms in float32
    assert whole.abs().max() > 0.1


def test_a_codec_with_attention_is_decoded_in_strips_too() -> None:
    decoder = tiny_hart_backbone().vae.decoder
    with torch.inference_mode():
        whole, strips = decoder(codes := features(8, 24, 24)), decode_in_strips(decoder, codes, 100)
    assert (whole - strips).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_the_embedded_codec_are_the_same_to_a_grey_level(dtype: torch.dtype) -> None:
    codec = find_model("nano", ()).load().vae.to(dtype)
    codes = features(16, 32, 48).to(dtype)
    with torch.inference_mode():
        both = codec.decoder(codes), decode_in_strips(codec.decoder, codes, 2048)
        whole, strips = (x.float().clamp(-1, 1) for x in both)
    apart = (whole - strips).abs() * 127.5
    if dtype == torch.float32:
        assert apart.max() < 0.01
    else:  # both are off from float32 by bfloat16's rounding
        exact = codec.float().decoder(codes.float()).clamp(-1, 1)
        assert apart.mean() < 1 and (strips - exact).abs().mean() <= 1.1 * (whole - exact).abs().mean()


def test_mean_and_variance_do_not_cancel_far_from_zero() -> None:
    x = 1000 + torch.randn(2, 32, 40, 30, generator=torch.Generator().manual_seed(0))
    mean, gain = moments(x, 8, 1e-6, pixels=90)
    exact = x.double().reshape(2, 8, -1)
    assert torch.allclose(mean.double(), exact.mean(2), rtol=1e-6)
    assert torch.allclose(gain.double(), 1 / exact.var(2, correction=0).sqrt(), rtol=1e-3)


def test_a_decoder_without_memory_for_the_whole_picture_gets_strips(monkeypatch, caplog) -> None:
    backbone = tiny_backbone()
    total = features(backbone.channels, 40, 33)
    with torch.inference_mode():
        whole = backbone.decode(total)

    def too_little(self: Decoder, *_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Decoder, "forward", too_little)
    with torch.inference_mode():
        strips = backbone.decode(total)
    assert (whole - strips).abs().max() < 1e-4 and "decoded in strips" in caplog.text


def test_only_whole_maps_of_three_layers_are_in_memory_at_once(monkeypatch) -> None:
    """A block's input, its inner map and its result."""
    codec, alive, peak = tiny_vae(width=32, mult=(1, 1), blocks=2), [0], [0]
    held = torch.empty

    def counting(*args: object, **options: object) -> Tensor:
        made = held(*args, **options)
        alive[0] += made.numel()
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(made, lambda n=made.numel(): alive.__setitem__(0, alive[0] - n))
        return made

    monkeypatch.setattr(torch, "empty", counting)
    with torch.inference_mode():
        decode_in_strips(codec.decoder, features(8, 64, 64), 512)
    assert peak[0] <= 3 * 32 * 128 * 128
