"""The colour fix: colours of one picture for another."""

from __future__ import annotations

import pytest
import torch

from comfy_moss.colour import fix_colours, resized, with_low_frequencies


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator) * 255).round() / 255


def test_a_picture_keeps_its_own_colours():
    picture = noise(1, 64, 48, 3)

    assert (fix_colours(picture, picture) - picture).abs().max() <= 2 / 255


def test_the_mean_and_spread_become_the_references():
    picture, reference = 0.2 + 0.3 * noise(1, 64, 64, 3), noise(1, 16, 16, 3, seed=1)

    fixed = fix_colours(picture, reference, wavelet=False)

    wanted = resized(reference, (64, 64))
    assert torch.allclose(fixed.mean((1, 2)), wanted.mean((1, 2)), atol=0.02)
    assert torch.allclose(fixed.std((1, 2)), wanted.std((1, 2)), atol=0.03)


def test_low_frequencies_are_the_references_and_detail_is_the_pictures():
    shade = torch.full((1, 3, 96, 96), 0.25)
    detail = 0.1 * torch.sign(torch.arange(96) % 2 - 0.5).expand(1, 3, 96, 96)

    fixed = with_low_frequencies(0.6 + detail, shade)

    assert torch.allclose(fixed[..., 40:56, 40:56], (shade + detail)[..., 40:56, 40:56], atol=1e-3)


def test_one_reference_serves_a_batch_and_two_do_not_serve_three():
    pictures, reference = noise(3, 32, 32, 3), noise(1, 8, 8, 3, seed=1)

    together = fix_colours(pictures, reference)

    assert torch.equal(together[1:2], fix_colours(pictures[1:2], reference))
    with pytest.raises(ValueError, match="3 pictures cannot take the colours of 2"):
        fix_colours(pictures, noise(2, 8, 8, 3))
