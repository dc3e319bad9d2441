"""Colours of the scales are told apart by every colour vision, as swatches and laid over a picture."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.heatmap import DRAFTED, scale_colours

DEEP = make_schedule(1.0, "1M")
JS = Path(__file__).resolve().parent.parent / "js"
# What a colour looks like, in linear light (Machado, Oliveira and Fernandes 2009, severity 1).
VISIONS = {
    "every cone": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(  # of linear sRGB, white = (1, 1, 1)
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
) / np.array([[0.95047], [1.0], [1.08883]])


def lab(colours: np.ndarray, vision: str = "every cone") -> np.ndarray:
    """sRGB in [0, 1] (..., 3) -> CIE L*a*b* as someone sees it."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    x, y, z = np.moveaxis((linear @ VISIONS[vision].T).clip(0, 1) @ TO_XYZ.T, -1, 0)
    fx, fy, fz = (np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 of L*a*b* colours (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)

    def rotation(chroma: np.ndarray) -> np.ndarray:
        return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))

    scale = 1.5 - 0.5 * rotation((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(scale * a1, b1), np.hypot(scale * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, scale * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    hue, chroma, light = np.radians(h1 + turn / 2), (c1 + c2) / 2, (l1 + l2) / 2
    weight = (
        1 - 0.17 * np.cos(hue - np.radians(30)) + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6)) - 0.20 * np.cos(4 * hue - np.radians(63))
    )
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * weight)
    angle = 60 * np.exp(-(((np.degrees(hue) % 360 - 275) / 25) ** 2))
    return np.sqrt(dl**2 + dc**2 + dh**2 - np.sin(np.radians(angle)) * 2 * rotation(chroma) * dc * dh)


def nearest(colours: np.ndarray, ground: np.ndarray) -> tuple[float, float, float]:
    """Least distance over all visions: of scales in turn, of any two, and of any and the ground."""
    next_to, any_two, to_ground = [], [], []
    for vision in VISIONS:
        seen = lab(colours, vision)
        pairs = distance(seen[:, None], seen[None])
        next_to.append(np.diag(pairs, 1).min())
        any_two.append(pairs[np.triu_indices(len(pairs), 1)].min())
        to_ground.append(distance(seen, lab(ground, vision)).min())
    return min(next_to), min(any_two), min(to_ground)


@pytest.mark.parametrize(
    ("one", "other", "expected"),  # from the test data of the paper
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, -1, 2), (50, 0, 0), 2.3669),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_distance_is_that_of_the_standard(
    one: tuple[float, ...], other: tuple[float, ...], expected: float
) -> None:
    assert distance(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


def test_every_vision_tells_scales_apart_and_from_what_stays_as_drafted() -> None:
    next_to, any_two, to_drafted = nearest(scale_colours(range(6, 13), DEEP).numpy(), DRAFTED.numpy())
    assert next_to > 20  # 10.9 with Okabe and Ito's colours in their order
    assert to_drafted > 17  # 8.2 likewise
    assert any_two > 11


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_laid_over_a_picture_they_are_told_apart_too(grey: float) -> None:
    colours = scale_colours(range(6, 13), DEEP).numpy() * (0.5 + 0.5 * grey)  # as `overlay` tints and dims
    next_to, _, to_drafted = nearest(colours, np.full(3, 0.10 + 0.38 * grey))
    assert next_to > 10 and to_drafted > 16


def test_the_page_has_no_colours_of_its_own_for_them() -> None:
    code = "".join(file.read_text("utf-8") for file in JS.glob("*.mjs"))
    codes = set(re.findall(r"#[0-9a-f]{6}\b", code))
    ours = [*scale_colours(range(6, 13), DEEP), DRAFTED]
    assert not codes & {"#" + bytes((255 * colour).round().int().tolist()).hex() for colour in ours}
    assert codes <= {"#292929", "#808080", "#ffffff", "#4e4e4e", "#60a5fa", "#ff6b6b", "#e69f00"}
