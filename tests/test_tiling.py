"""Decoding in tiles."""

from __future__ import annotations

import pytest
import torch
from builders import tiny_backbone
from torch import Tensor
from torch.nn import functional as F

from comfy_moss.images import psnr
from comfy_moss.model.checkpoint import load_infinity
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.library import find_model
from comfy_moss.model.quantize import resample
from comfy_moss.model.vae import VAE, _spans, decode_in_tiles


def _repeat(codes: Tensor) -> Tensor:
    """A decoder whose pixels depend on their own cell alone."""
    return F.interpolate(codes, scale_factor=4.0, mode="nearest")


@pytest.mark.parametrize(("height", "width"), [(40, 40), (33, 90), (16, 71), (8, 8)])
def test_where_cells_do_not_depend_on_each_other_tiles_change_nothing(height: int, width: int) -> None:
    codes = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(decode_in_tiles(_repeat, codes, tile=16, overlap=4), _repeat(codes), atol=1e-6)


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(17, 16, 4), (64, 32, 8), (100, 16, 15), (90, 16, 4)]
)
def test_tiles_have_one_size_reach_from_end_to_end_and_overlap_enough(
    length: int, tile: int, overlap: int
) -> None:
    spans = _spans(length, tile, overlap)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert {end - start for start, end in spans} == {tile}
    assert all(end - start >= overlap for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_a_decoder_without_memory_for_the_whole_picture_gets_tiles(
    monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    backbone = tiny_backbone()
    total = torch.randn(1, backbone.channels, 40, 33, generator=torch.Generator().manual_seed(0))
    decode, seen = VAE.decode, []

    def with_little_memory(vae: VAE, codes: Tensor) -> Tensor:
        if max(codes.shape[2:]) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(codes.shape[2:])
        return decode(vae, codes)

    monkeypatch.setattr(VAE, "decode", with_little_memory)
    image = backbone.decode(total)
    assert image.shape == (1, 3, 40 * backbone.stride, 33 * backbone.stride) and torch.isfinite(image).all()
    assert len(seen) == 4 and "decoded in tiles" in caplog.text


def test_tiles_of_the_embedded_codec_look_like_the_whole_picture() -> None:
    files = find_model("nano", ())
    backbone: InfinityBackbone = load_infinity(files.transformer, files.vae)
    noise = torch.randn(1, backbone.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = resample(noise, (32, 48))  # smooth, as a drawn map is
    with torch.inference_mode():
        whole, tiled = backbone.decode(codes), decode_in_tiles(backbone.vae.decode, codes, tile=24)
    assert psnr((whole + 1) / 2, (tiled + 1) / 2)[0] > 30
