"""Bit sampling and its counter-based noise."""

from __future__ import annotations

import math

import pytest
import torch

from comfy_moss.model.sampling import Sampling, bit_noise, bit_probability, draw_bits
from comfy_moss.model.schedule import Positions, make_schedule

PINNED = [[[5962820, 2317868], [8109595, 15951164]]]  # a change here changes every artist's pictures
SCHEDULE = make_schedule(1.0, "1M")


def test_noise_depends_on_the_place_alone():
    whole = bit_noise([3, 4], Positions.of_scale(SCHEDULE, 5), 16)
    cells = torch.tensor([[140, 2, 77]])

    part = bit_noise([4], Positions.of_cells(SCHEDULE, 5, cells), 16)

    assert torch.equal(part[0], whole[1, cells[0]])


@pytest.mark.gpu
def test_noise_is_the_same_on_the_gpu():
    positions = Positions.of_scale(SCHEDULE, 5)
    there = Positions.of_scale(SCHEDULE, 5, "cuda")
    assert torch.equal(bit_noise([7], positions, 32), bit_noise([7], there, 32).cpu())


def test_noise_is_uniform_and_independent():
    noise = bit_noise([0, 1, 2**40], Positions.of_scale(SCHEDULE, 12), 32).double()
    n = noise[0].numel()

    assert 0 < noise.min() and noise.max() < 1
    counts = torch.histc(noise[0], 32, 0, 1)
    assert ((counts - n / 32) ** 2 / (n / 32)).sum() < 75  # chi-square, 31 degrees of freedom, p < 1e-5
    flat = noise - 0.5
    pairs = [
        (flat[0], flat[1]), (flat[0], flat[2]), (flat[0, 1:], flat[0, :-1]),
        (flat[0, ..., 1:], flat[0, ..., :-1]),
    ]
    for a, b in pairs:  # seeds, neighbouring tokens, neighbouring bits
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.numel())


def test_scales_and_rows_do_not_share_noise():
    a = bit_noise([0], Positions.of_scale(SCHEDULE, 11), 8)
    b = bit_noise([0], Positions.of_scale(SCHEDULE, 12), 8)
    assert not torch.isin(a.unique(), b.unique()).double().mean() > 0.05


def test_noise_values_are_pinned():
    noise = bit_noise([42], Positions.of_cells(SCHEDULE, 3, torch.tensor([[0, 7]])), 2)
    assert (noise * 2**24).int().tolist() == PINNED


def test_drawn_frequencies_match_the_probability():
    logits = torch.tensor([0.0, 1.0]).expand(1, 4096, 4, 2)
    bits = draw_bits(logits, bit_noise([5], Positions.of_scale(SCHEDULE, 12), 4), 0, 0.0)
    assert bits.float().mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


def test_a_sure_bit_is_taken_not_drawn():
    logits = torch.tensor([[0.0, 3.5], [3.5, 0.0], [0.0, 3.4]])  # ln(0.97 / 0.03) = 3.476
    assert bit_probability(logits, 900, 0.97).tolist() == [1.0, 0.0, pytest.approx(1 / (1 + math.exp(-3.4)))]
    assert bit_probability(torch.tensor([0.0, 0.1]), 1, 0.0) == 1


@pytest.mark.parametrize(
    "settings",
    [{"tau": -1.0}, {"tau": 0.0}, {"tau": math.nan}, {"top_p": 1.5}, {"top_k": -1}, {"tau": (1.0, 0.0)}],
)
def test_impossible_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sampling(**settings)


def test_noise_never_reaches_one_so_a_sure_bit_is_always_drawn():
    """The greatest of 2^24 values plus a half rounds up to 1 in float32; this is one of the places where it
    comes up.
    """
    place = Positions.of_cells(SCHEDULE, 12, torch.tensor([[40 * 64 + 51]]))
    noise = bit_noise([75], place, 32)[0, 0]
    assert noise[26] == 1 - 2.0**-24
    assert draw_bits(torch.tensor([0.0, 60.0]).expand(32, 2), noise, 0, 0.0).all()
