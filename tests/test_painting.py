"""Painted cells as text."""

from __future__ import annotations

import pytest
import torch

from comfy_moss.pipeline.dispatch import join_masks, read_painting, write_painting


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (32, 32), (84, 48)])
def test_a_painting_survives_its_text(size: tuple[int, int]) -> None:
    cells = torch.rand(size, generator=torch.Generator().manual_seed(1)) < 0.4
    cells[0, 0] = True
    assert torch.equal(read_painting(write_painting(cells))[0].bool(), cells)


def test_the_first_cell_is_the_highest_bit() -> None:
    assert write_painting(torch.tensor([[True, False, False], [False, False, False]])) == "2x3:gA=="


def test_nothing_painted_is_no_text() -> None:
    assert write_painting(torch.zeros(4, 4, dtype=torch.bool)) == ""
    assert read_painting(" ") is None


@pytest.mark.parametrize("text", ["x", "2x3:", "2x3:gAAA", "0x0:", "2x3:g===", "-2x3:gA==", "4x4:!!!!"])
def test_a_damaged_painting_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="damaged; clear it and paint again"):
        read_painting(text)


def test_mask_and_painting_both_count() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[1, :4] = 0.5
    painting = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    joined = join_masks(mask, painting)
    assert joined.shape == (2, 8, 8)
    assert joined[0, :4, 4:].eq(1).all() and joined[0].sum() == 16
    assert joined[1, 0, 0] == 0.5 and joined[1, 0, 7] == 1
    assert torch.equal(join_masks(mask[1], painting), join_masks(mask[1:], painting))
    assert torch.equal(join_masks(None, painting), painting) and torch.equal(join_masks(mask, None), mask)
    assert join_masks(None, None) is None
