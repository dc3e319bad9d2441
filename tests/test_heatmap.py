"""The pictures that explain the method."""

from __future__ import annotations

import pytest
import torch

from comfy_moss import images
from comfy_moss.model.schedule import Schedule, make_schedule
from comfy_moss.pipeline import heatmap
from comfy_moss.pipeline.dispatch import Dispatch
from comfy_moss.pipeline.draft import Draft, Recipe
from comfy_moss.pipeline.plan import PassMaps

SCHEDULE = Schedule(1.0, ((1, 1), (2, 2), (4, 4)), (4, 4))
LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722])


def _dispatch(*cells: list[int], batch: int = 1) -> Dispatch:
    """Refine scales from the last ones of SCHEDULE."""
    first = len(SCHEDULE) - len(cells)
    return Dispatch(tuple(range(first, len(SCHEDULE))), tuple(torch.tensor([c] * batch) for c in cells))


def _chroma(image: torch.Tensor) -> torch.Tensor:
    return image.amax(-1) - image.amin(-1)


def test_the_colour_map_grows_steadily_brighter() -> None:
    brightness = heatmap.colour_map(torch.linspace(0, 1, 200)) @ LUMINANCE
    assert (brightness.diff() > 0).all()
    assert brightness[0] < 0.02 and brightness[-1] > 0.9


def test_the_colour_map_takes_values_beyond_its_ends() -> None:
    ends = heatmap.colour_map(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[2], ends[3])


def test_the_percentile_is_the_share_of_calmer_places() -> None:
    assert heatmap.percentile(torch.tensor([[[4.0, 1.0], [3.0, 9.0]]])).tolist() == [
        [[0.625, 0.125], [0.375, 0.875]]
    ]


def test_places_that_are_equally_busy_get_the_same_colour() -> None:
    rank = heatmap.percentile(torch.tensor([[[5.0, 5.0], [5.0, 7.0]]]))
    assert rank.unique().tolist() == [0.375, 0.875]


def test_the_heatmap_depends_on_the_order_of_frequencies_only() -> None:
    frequency = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(heatmap.heatmap(frequency, (8, 8)), heatmap.heatmap(1000 * frequency.square(), (8, 8)))


def test_every_cell_of_the_heatmap_is_one_flat_square() -> None:
    image = heatmap.heatmap(torch.arange(16.0).view(1, 4, 4), (12, 8))
    blocks = image.view(1, 4, 3, 4, 2, 3)
    assert image.shape == (1, 12, 8, 3)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    assert len(image.flatten(0, 2).unique(dim=0)) == 16


@pytest.mark.parametrize("size", [(7, 5), (13, 4), (3, 3)])
def test_sizes_that_are_no_multiple_of_the_grid_are_filled(size: tuple[int, int]) -> None:
    image = heatmap.heatmap(torch.arange(16.0).view(1, 4, 4), size)
    assert image.shape == (1, *size, 3)
    assert image.isfinite().all() and 0 <= image.min() and image.max() <= 1


def test_only_dispatched_places_of_the_overlay_have_colour() -> None:
    shown = heatmap.overlay(torch.rand(1, 32, 32, 3), _dispatch([5]), SCHEDULE)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:17, 8:17] = True  # the cell and the line around it
    assert (_chroma(shown)[0][8:16, 8:16] > 0.2).all()
    assert _chroma(shown)[0][~inside].max() < 1e-6


def test_undispatched_places_are_dimmed() -> None:
    white = torch.ones(1, 32, 32, 3)
    assert heatmap.overlay(white, _dispatch([5]), SCHEDULE)[0, 31, 31].max() < 0.6


def test_the_finest_scale_lies_on_top() -> None:
    white = torch.ones(1, 32, 32, 3)
    both = heatmap.overlay(white, _dispatch([0], [0]), SCHEDULE)
    coarse, fine = heatmap.scale_colours((1, 2), SCHEDULE)
    assert torch.allclose(both[0, 4, 4], fine)
    assert torch.allclose(both[0, 12, 12], coarse)


def test_each_picture_of_a_batch_shows_its_own_dispatch() -> None:
    dispatch = Dispatch((2,), (torch.tensor([[0], [15]]),))
    shown = _chroma(heatmap.overlay(torch.ones(2, 32, 32, 3), dispatch, SCHEDULE))
    assert shown[0, 4, 4] > 0.2 > shown[1, 4, 4]
    assert shown[1, 28, 28] > 0.2 > shown[0, 28, 28]


def test_an_empty_dispatch_leaves_a_grey_picture() -> None:
    shown = heatmap.overlay(torch.rand(1, 16, 16, 3), _dispatch([], []), SCHEDULE)
    assert _chroma(shown).max() < 1e-6


def test_the_picture_stays_visible_beneath_the_tokens() -> None:
    image = torch.zeros(1, 32, 32, 3)
    image[:, :, 12:] = 1
    shown = heatmap.overlay(image, _dispatch([5]), SCHEDULE)
    assert shown[0, 12, 10].sum() < 0.7 * shown[0, 12, 14].sum()


def test_the_finest_scale_keeps_its_colour_for_every_k() -> None:
    last, deep = heatmap.scale_colours((2,), SCHEDULE), make_schedule(1.0, "1M")
    for k in range(2, 13):
        assert torch.equal(heatmap.scale_colours(range(13 - k, 13), deep)[-1], last[0])


def test_a_scale_has_one_colour_in_whatever_pass_it_is_redrawn() -> None:
    alone, together = heatmap.scale_colours((1,), SCHEDULE), heatmap.scale_colours((1, 2), SCHEDULE)
    assert torch.equal(alone[0], together[0]) and not torch.equal(alone[0], together[1])


def test_the_colours_of_five_scales_differ_clearly() -> None:
    colours = heatmap.scale_colours(range(8, 13), make_schedule(1.0, "1M"))
    assert torch.pdist(colours).min() > 0.3


def test_the_legend_has_a_row_a_scale_in_its_colour() -> None:
    strip = heatmap.legend(_dispatch([0], [3, 4]), SCHEDULE, 400)[0]
    step = strip.shape[0] // 3
    coarse, fine = heatmap.scale_colours((1, 2), SCHEDULE)
    assert strip.shape[1] == 400
    assert torch.allclose(strip[step // 2, 5], fine, atol=1 / 255)
    assert torch.allclose(strip[step + step // 2, 5], coarse, atol=1 / 255)


def test_the_poster_shows_every_panel_unchanged() -> None:
    panels = [torch.full((1, 100, 80, 3), level) for level in (0.2, 0.4, 0.6)]
    page = images.poster(panels, ["one", "two", "three"])
    found = [(page == (level * 255 + 0.5) // 1 / 255).all(-1).sum().item() for level in (0.2, 0.4, 0.6)]
    assert found == pytest.approx([8000] * 3, abs=40)  # some edges of letters have the same grey
    assert (page[0, 0] == 1).all() and (page[0, :, -1] == 1).all()


def test_a_long_heading_stays_on_the_page() -> None:
    panels = [torch.zeros(1, 64, 64, 3)] * 2
    page = images.poster(panels, ["a", "b"], heading="word " * 500)
    assert (page[0, :, -4:] == 1).all()


def test_headings_in_any_script_are_accepted() -> None:
    panels = [torch.zeros(1, 64, 64, 3)]
    plain = images.poster(panels, ["a"], heading="cafe")
    assert torch.equal(images.poster(panels, ["a"], heading="café \u732b\n"), plain)


@pytest.mark.parametrize(
    ("passes", "names"), [(1, ["frequency", "dispatch"]), (2, ["frequency", "dispatch_2"])]
)
def test_an_explanation_enlarges_small_pictures_and_shows_every_pass(passes: int, names: list[str]) -> None:
    image, recipe = torch.rand(2, 32, 16, 3), Recipe((torch.zeros(1, 1),) * 2, None, (0, 1), SCHEDULE)
    draft = Draft(recipe, (), torch.zeros(2, 1, 4, 4), "")
    maps = PassMaps(draft, torch.rand(2, 4, 4), _dispatch([0], [3, 4], batch=2))
    shown = heatmap.explain(image, image, [maps] * passes, "a cat")
    assert all(shown[name].shape == (2, 1024, 512, 3) for name in names) and len(shown) == 2 * passes + 1
    assert shown["poster"].shape[0] == 2 and shown["poster"].shape[2] > (2 + 2 * passes) * 512
