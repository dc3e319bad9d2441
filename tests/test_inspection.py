"""The inspector's data: from it alone, everything the pipeline decides can be decided again."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from comfy_moss.model.backbone import PAPER_BOUNDS, TokenWork
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.dispatch import RefinePass, dispatch_tokens
from comfy_moss.pipeline.draft import Draft, Recipe
from comfy_moss.pipeline.heatmap import colour_map, inspection, percentile, scale_colours
from comfy_moss.pipeline.plan import Plan, share_of_dense

SCHEDULE = make_schedule(1.5, "0.25M")  # rows differ from columns on most grids
WORK = TokenWork(25.0 * 3, 6.0)
CONFIG = RefinePass.of_last((80.0, 50.0, 33.3, 10.0))


def _frequency(batch: int = 2) -> torch.Tensor:
    """Twice the last grid, as with tokens of 2 x 2 cells, and coarse, so that there are ties."""
    h, w = SCHEDULE.grids[-1]
    return (torch.rand(batch, 2 * h, 2 * w, generator=torch.Generator().manual_seed(0)) * 4).round()


def _painted(batch: int) -> torch.Tensor:
    mask = torch.zeros(batch, 30, 20)
    mask[:, 20:, 5:12] = 1
    mask[-1, :4] = 0.5
    return mask


def _payload(
    frequency: torch.Tensor, config: RefinePass = CONFIG, painted: torch.Tensor | None = None
) -> dict[str, Any]:
    draft = drafted(len(frequency), -len(config.scales))
    return json.loads(json.dumps(inspection(draft, frequency, config, WORK, 12345, painted), allow_nan=False))


def drafted(batch: int, left: int) -> Draft:
    """A draft that leaves so many scales; of its values nothing is looked at but their number."""
    recipe = Recipe((torch.zeros(1, 1),) * batch, None, (0,) * batch, SCHEDULE)
    bits = tuple(torch.zeros(batch, h * w, 1) for h, w in SCHEDULE.grids[:left])
    return Draft(recipe, bits, torch.zeros(batch, 1, 1, 1), "")


def _array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def _redo(payload: dict[str, Any], bounds: list[float]) -> list[list[list[int]]]:
    """Cells per picture and refine scale from the payload, as the browser takes them; its Math.floor(x + 0.5)
    rounds.
    """
    taken = []
    for ranks in payload["ranks"]:
        taken.append([])
        for (h, w), text, up, low in zip(payload["grids"], ranks, bounds, [*bounds[1:], 0], strict=True):
            rank, start = _array(text, "<u2"), math.floor(h * w * low / 100 + 0.5)
            stop = start + math.floor(h * w * (up - low) / 100 + 0.5)
            taken[-1].append(np.nonzero((rank >= start) & (rank < stop))[0].tolist())
    return taken


@pytest.mark.parametrize("masks", [None, 1, 2])
@pytest.mark.parametrize("bounds", [(80.0, 50.0, 33.3, 10.0), (100.0, 100.0, 20.0, 20.0), PAPER_BOUNDS[4]])
def test_the_dispatch_is_redone_from_the_payload_alone_for_any_bounds(
    bounds: tuple[float, ...], masks: int | None
) -> None:
    painted = None if masks is None else _painted(masks)
    payload = _payload(_frequency(), painted=painted)  # made for CONFIG, whatever the bounds are now

    dispatch = dispatch_tokens(_frequency(), SCHEDULE, RefinePass.of_last(bounds), painted)

    expected = [[cells[n].tolist() for cells in dispatch.cells] for n in range(2)]
    assert _redo(payload, list(bounds)) == expected
    assert expected[0] != expected[1]
    assert payload["scales"] == list(dispatch.scales)
    assert payload["pass"]["scales"] == [-4, -3, -2, -1]


def test_painting_changes_the_ranks_and_not_the_map() -> None:
    plain, painted = _payload(_frequency()), _payload(_frequency(), painted=_painted(1))
    assert plain["ranks"] != painted["ranks"] and plain["map"] == painted["map"]


def test_every_cell_has_a_rank_of_its_own_and_the_busiest_the_first() -> None:
    h, w = SCHEDULE.grids[-1]
    frequency = torch.arange(float(h * w)).view(1, h, w)
    payload = _payload(frequency)
    for (rows, columns), text in zip(payload["grids"], payload["ranks"][0], strict=True):
        assert _array(text, "<u2").tolist() == list(reversed(range(rows * columns)))


def test_the_share_of_dense_is_computed_from_the_payloads_numbers() -> None:
    payload = _payload(_frequency())
    work, drafted = payload["work"], payload["draft_tokens"]
    refined = sum(map(len, _redo(payload, payload["pass"]["bounds"])[0]))

    row = refined * (work["linear"] + work["attention"] * (drafted + refined))
    share = (work["draft"] + work["rows"] * row) / work["dense"]

    plan = Plan(-4, (CONFIG,))
    assert refined == sum(CONFIG.counts(SCHEDULE))
    assert share == share_of_dense(plan, SCHEDULE, WORK, guided=False)
    assert drafted == sum(h * w for h, w in SCHEDULE.grids[:-4])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_settings_are_those_given_coarsest_scale_first(k: int) -> None:
    bounds = [60.0 - 10 * n for n in range(k)]
    payload = _payload(_frequency(1), RefinePass.of_last(tuple(bounds)))
    assert (payload["version"], payload["kv_bytes"], payload["pass"]["bounds"]) == (3, 12345, bounds)
    assert payload["grids"] == [list(grid) for grid in SCHEDULE.grids[-k:]]
    assert [len(scales) for scales in payload["ranks"]] == [k]
    assert (
        _rgb(payload["colours"]).tolist()
        == (255 * scale_colours(range(10 - k, 10), SCHEDULE)).round().tolist()
    )


def _rgb(codes: list[str]) -> torch.Tensor:
    assert all(len(code) == 7 and code[0] == "#" for code in codes)
    return torch.tensor([list(bytes.fromhex(code[1:])) for code in codes], dtype=torch.float64)


def test_the_palette_gives_the_heatmaps_colours_when_interpolated() -> None:
    palette = _rgb(_payload(_frequency(1))["palette"]).numpy()
    places = torch.linspace(0, 1, 200)
    knots = np.linspace(0, 1, len(palette))
    mixed = np.stack([np.interp(places, knots, palette[:, channel]) for channel in range(3)], axis=-1)
    assert np.abs(mixed / 255 - colour_map(places).numpy()).max() < 1e-6


def test_the_map_is_the_frequency_on_the_last_grid() -> None:
    frequency = _frequency()
    shown = F.adaptive_avg_pool2d(frequency, SCHEDULE.grids[-1])

    maps = _payload(frequency)["map"]

    assert maps["grid"] == list(SCHEDULE.grids[-1]) and len(maps["frequency"]) == len(maps["percentile"]) == 2
    for n in range(2):
        assert np.array_equal(_array(maps["frequency"][n], "<f4"), shown[n].flatten().numpy())
        exact = 255 * percentile(shown)[n].flatten().numpy()
        assert np.abs(_array(maps["percentile"][n], "u1") - exact).max() <= 0.5


def test_what_dispatch_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="leave no scale"):
        inspection(drafted(2, -4), _frequency(), RefinePass.of_last((50.0,) * len(SCHEDULE)), WORK, 0)
    with pytest.raises(ValueError, match="cannot come after scale 5"):
        inspection(drafted(2, -4), _frequency(), RefinePass.of_last((50.0,) * 5), WORK, 0)
    with pytest.raises(ValueError, match="painted mask"):
        inspection(drafted(2, -4), _frequency(), CONFIG, WORK, 0, _painted(3))
