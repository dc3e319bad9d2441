"""The shapes world, its captions, its detector and the GenEval-like suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from comfy_moss.benchmarks import detector, rendering, suite, world
from comfy_moss.benchmarks.world import Group, Scene, Thing

SIZES = [
    (256, 256), (144, 144), (192, 336), (336, 192), (144, 448), (448, 144), (224, 304), (448, 448),
    (512, 512),
]


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def _render(scene: Scene, seed: int = 0, height: int = 256, width: int = 256) -> np.ndarray:
    return rendering.render(scene, np.random.default_rng(seed), height, width)


def _chroma(image: np.ndarray) -> np.ndarray:
    return image.max(-1).astype(int) - image.min(-1)


@pytest.fixture(scope="module")
def cases() -> list[suite.Case]:
    return suite.prompts(25, seed=11)


@pytest.fixture(scope="module")
def images(cases: list[suite.Case]) -> list[np.ndarray]:
    return [_render(case.scene, seed) for seed, case in enumerate(cases)]


# --- scenes -------------------------------------------------------------------------------------------------


def test_sampling_follows_the_stated_mix() -> None:
    scenes = _scenes(3000)
    kinds = [tuple(group.count for group in scene.groups) for scene in scenes]
    assert kinds.count((1,)) / 3000 == pytest.approx(0.35, abs=0.04)
    assert kinds.count((1, 1)) / 3000 == pytest.approx(0.30, abs=0.04)
    assert sum(kind in ((2,), (3,), (4,)) for kind in kinds) / 3000 == pytest.approx(0.22, abs=0.04)
    assert sum(kind in ((2, 1), (3, 1)) for kind in kinds) / 3000 == pytest.approx(0.13, abs=0.04)
    assert sum(scene.relation is not None for scene in scenes) / 3000 == pytest.approx(0.15, abs=0.04)
    assert {scene.style for scene in scenes} == set(world.STYLES)


def test_two_things_differ_in_shape_and_color() -> None:
    for scene in _scenes(300):
        if len(scene.groups) == 2:
            first, second = (group.thing for group in scene.groups)
            assert first.shape != second.shape and first.color != second.color


@pytest.mark.parametrize(
    "build",
    [
        lambda: Thing("blob", "red"),
        lambda: Thing("circle", "pink"),
        lambda: Thing("circle", "red", "woolly"),
        lambda: Group(5, Thing("circle")),
        lambda: Scene(()),
        lambda: Scene((Group(3, Thing("circle")), Group(2, Thing("star")))),
        lambda: Scene((Group(2, Thing("circle")), Group(1, Thing("star"))), "left"),
        lambda: Scene((Group(1, Thing("circle")),), None, "white", None),
        lambda: Scene((Group(1, Thing("circle")),), None, "pink", "plain"),
    ],
)
def test_impossible_scenes_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        build()


def test_complete_keeps_what_is_fixed_and_gives_usual_but_distinct_colors() -> None:
    usual, taken = world.parse("a red star and a square"), world.parse("a red star and a circle")
    for seed in range(30):
        assert world.complete(usual, np.random.default_rng(seed)).groups[1].thing.color == "blue"
        done = world.complete(taken, np.random.default_rng(seed))
        assert done.groups[0] == taken.groups[0]
        assert done.groups[1].thing.color not in (None, "red")
        assert done.background in world.BACKGROUNDS and done.style in world.STYLES


# --- rendering ----------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_picture() -> None:
    for scene in _scenes(6):
        first = _render(scene, 5)
        assert first.dtype == np.uint8 and first.shape == (256, 256, 3)
        assert np.array_equal(first, _render(scene, 5))
        assert not np.array_equal(first, _render(scene, 6))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_objects_touch_neither_the_border_nor_each_other(height: int, width: int) -> None:
    for seed, scene in enumerate(_scenes(40, seed=height * width)):
        colored = _chroma(_render(scene, seed, height, width)) > 0
        inside = np.zeros_like(colored)
        inside[2:-2, 2:-2] = True
        assert not (colored & ~inside).any()
        assert detector.label_regions(colored)[1] == len(scene.things)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_outlines_fill_their_radius_and_stay_within_it(shape: str) -> None:
    points = rendering.outline(shape)
    assert 0.85 <= np.abs(points).max() <= 1.01
    assert not points.flags.writeable


def test_unknown_outline_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape"):
        rendering.outline("blob")


def test_silhouette_covers_the_area_of_its_outline() -> None:
    for shape in world.SHAPES:
        x, y = (rendering.outline(shape) * 30).T
        area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
        assert rendering.silhouette(shape, 40.3, 39.8, 30.0, 80, 80).sum() == pytest.approx(area, rel=0.04)


@pytest.mark.parametrize("texture", world.TEXTURES)
def test_textures_darken_a_fixed_share_in_step_with_the_object(texture: str) -> None:
    scene = Scene((Group(1, Thing("square", "green", texture)),), None, "white", "plain")
    rng = np.random.default_rng(3)
    picture = rendering.render(scene, rng)
    ((cx, cy, _),) = rendering.layout(scene, np.random.default_rng(3), 256, 256)
    patch = picture[int(cy) - 50 : int(cy) + 50, int(cx) - 50 : int(cx) + 50, 1] / world.COLORS["green"][1]
    dark = {"plain": 0.0, "striped": 0.5, "checkered": 0.5, "dotted": 0.29}[texture]
    assert 1 - patch.mean() == pytest.approx(0.5 * dark, abs=0.04)
    assert patch[50, 50] == pytest.approx(1.0 if texture == "plain" else 0.5, abs=0.05)


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_a_relation_decides_where_things_are(relation: str) -> None:
    scene = Scene((Group(1, Thing("star", "red")), Group(1, Thing("heart", "blue"))), relation)
    for height, width in SIZES:
        (ax, ay, _), (bx, by, _) = rendering.layout(scene, np.random.default_rng(0), height, width)
        distance = {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]
        assert distance > 0.4 * min(height, width)


@pytest.mark.parametrize(
    ("count", "height", "width"), [(3, 144, 256), (3, 256, 144), (4, 144, 448), (4, 448, 144)]
)
def test_long_pictures_hold_their_objects_in_a_row(count: int, height: int, width: int) -> None:
    scene = Scene((Group(count, Thing("star", "red")),))
    places = np.array(rendering.layout(scene, np.random.default_rng(0), height, width))
    along, across = (0, 1) if width > height else (1, 0)
    assert np.ptp(places[:, across]) < 0.05 * min(height, width)
    assert np.diff(places[:, along]).min() > 0.4 * min(height, width)


@pytest.mark.parametrize("background", world.BACKGROUNDS)
@pytest.mark.parametrize("style", world.STYLES)
def test_backgrounds_are_neutral_and_show_their_style(background: str, style: str) -> None:
    scene = Scene((Group(1, Thing("circle", "red")),), None, background, style)
    border = _render(scene)[:, :20].astype(int)
    assert np.ptp(border, axis=-1).max() == 0
    assert border.mean() == pytest.approx(world.BACKGROUNDS[background], abs=5)
    down, across = np.ptp(border[:, 0, 0]), np.ptp(border[0, :, 0])
    assert (down > 8) == (style != "plain")
    assert (across > 8) == (style == "striped")


# --- captions -----------------------------------------------------------------------------------------------


def test_parse_inverts_the_canonical_caption() -> None:
    for scene in _scenes(500):
        assert world.parse(world.canonical_caption(scene)) == scene


def test_captions_are_true_of_their_scene() -> None:
    rng = np.random.default_rng(1)
    for scene in _scenes(500):
        said = world.parse(world.caption(scene, rng))
        assert said is not None and said.relation == scene.relation
        assert (said.background, said.style) in ((None, None), (scene.background, scene.style))
        for claim, truth in zip(said.groups, scene.groups, strict=True):
            assert (claim.count, claim.thing.shape) == (truth.count, truth.thing.shape)
            assert (claim.thing.color or world.USUAL_COLORS[claim.thing.shape]) == truth.thing.color
            assert claim.thing.texture == truth.thing.texture


def test_captions_vary_in_the_stated_proportions() -> None:
    rng = np.random.default_rng(2)
    scenes = _scenes(2000)
    worded = [world.caption(scene, rng) for scene in scenes]
    assert all(text == text.lower() for text in worded)
    assert np.mean(["background" in text for text in worded]) == pytest.approx(0.6, abs=0.05)
    assert np.mean([text.startswith("a photo of") for text in worded]) == pytest.approx(0.5, abs=0.05)
    said = [world.parse(text) for text in worded]
    forgot = [any(group.thing.color is None for group in scene.groups) for scene in said]
    assert 0.1 < np.mean(forgot) < 0.2


def test_the_vocabulary_covers_every_caption() -> None:
    rng = np.random.default_rng(3)
    used = {word for scene in _scenes(1500) for word in world.words(world.caption(scene, rng))}
    assert used <= set(world.VOCABULARY)
    assert list(world.VOCABULARY) == sorted(set(world.VOCABULARY))
    assert {"an", "the", "picture", "image", "drawing", "and", "with", "in", "photo", "of", ",", "."} <= set(
        world.VOCABULARY
    )
    assert len(world.VOCABULARY) - len(used) <= 6


def test_words_separate_punctuation() -> None:
    assert world.words("A red circle, on white.") == ["a", "red", "circle", ",", "on", "white", "."]


def test_grammar_of_numbers_and_articles() -> None:
    assert (
        world.canonical_caption(Scene((Group(1, Thing("circle", "orange")),)))
        == "a photo of an orange circle"
    )
    scene = Scene(
        (Group(3, Thing("cross", "red", "dotted")), Group(1, Thing("star"))), None, "grey", "striped"
    )
    expected = "a photo of three red dotted crosses and a star on a striped grey background"
    assert world.canonical_caption(scene) == expected


def test_parse_accepts_an_artists_wording() -> None:
    scene = world.parse("The Striped Blue star, to the left of a heart, in a black background.")
    groups = (Group(1, Thing("star", "blue", "striped")), Group(1, Thing("heart")))
    assert scene == Scene(groups, "left", "black", "plain")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "red circle",
        "two circle",
        "a circles",
        "five circles",
        "a red blue circle",
        "three stars and two hearts",
        "two stars left of a heart",
        "a star on a pink background",
        "a star and a heart and a circle",
    ],
)
def test_parse_gives_none_outside_the_grammar(prompt: str) -> None:
    assert world.parse(prompt) is None


# --- detector -----------------------------------------------------------------------------------------------


def test_regions_agree_with_flood_fill() -> None:
    rng = np.random.default_rng(4)
    for density in (0.2, 0.5, 0.6, 0.8):
        mask = rng.random((23, 31)) < density
        labels, count = detector.label_regions(mask)
        canvas = Image.fromarray(mask.astype(np.uint8) * 255).convert("I")
        regions = 0
        for y, x in np.argwhere(mask):
            if canvas.getpixel((int(x), int(y))) == 255:
                regions += 1
                ImageDraw.floodfill(canvas, (int(x), int(y)), 1000 + regions)
        expected = np.maximum(np.asarray(canvas) - 1000, 0)
        assert count == regions == labels.max()
        assert len(np.unique(np.stack([labels[mask], expected[mask]]), axis=1).T) == count
        assert not labels[~mask].any()


def test_regions_of_an_empty_mask() -> None:
    labels, count = detector.label_regions(np.zeros((4, 5), bool))
    assert count == 0 and not labels.any()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_detections_name_every_object_where_it_is(height: int, width: int) -> None:
    for seed, scene in enumerate(_scenes(12, seed=8)):
        picture = _render(scene, seed, height, width)
        places = rendering.layout(scene, np.random.default_rng(seed), height, width)
        found = detector.detect(picture)
        assert len(found) == len(scene.things)
        for thing, (cx, cy, radius) in zip(scene.things, places, strict=True):
            near = min(found, key=lambda d: np.hypot(d.cx - cx, d.cy - cy))
            assert (near.shape, near.color) == (thing.shape, thing.color)
            assert np.hypot(near.cx - cx, near.cy - cy) < 0.35 * radius
            outline_area = rendering.silhouette(thing.shape, radius + 2, radius + 2, radius, 400, 400).sum()
            assert near.area == pytest.approx(outline_area, rel=0.25)
            assert near.score > 0.85


def test_objects_of_two_colors_that_touch_are_told_apart() -> None:
    canvas = Image.new("RGB", (256, 256), (150, 150, 150))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((40, 80, 127, 167), fill=world.COLORS["red"])
    draw.rectangle((128, 80, 215, 167), fill=world.COLORS["blue"])
    found = detector.detect(np.asarray(canvas))
    assert sorted((d.color, d.shape) for d in found) == [("blue", "square"), ("red", "square")]


def _recoloured(scene: Scene, colour: str, share: float) -> np.ndarray:
    """A picture whose object turns to another colour from some height downwards."""
    picture, other = (
        _render(scene),
        (replace(scene, groups=(replace(g, thing=replace(g.thing, color=colour)),)) for g in scene.groups),
    )
    picture, row = picture.copy(), int(256 * share)
    picture[row:] = _render(next(other))[row:]
    return picture


@pytest.mark.parametrize(
    ("shape", "color", "shifted"), [("star", "yellow", "orange"), ("cross", "orange", "red")]
)
def test_an_object_whose_hue_is_shifted_in_places_is_one_object(shape: str, color: str, shifted: str) -> None:
    """As a codec does."""
    scene = Scene((Group(1, Thing(shape, color)),), None, "black", "plain")
    (found,) = detector.detect(_recoloured(scene, shifted, 0.5))
    assert found.shape == shape and found.color in (color, shifted)


@pytest.mark.parametrize("color", ["blue", "green", "purple"])
def test_an_object_of_two_unlike_colors_is_no_object_of_one(color: str) -> None:
    scene = Scene((Group(1, Thing("star", "red")),), None, "black", "plain")
    assert "star" not in [found.shape for found in detector.detect(_recoloured(scene, color, 0.5))]


def test_the_bright_parts_of_a_texture_give_its_color() -> None:
    scene = Scene((Group(1, Thing("square", "orange", "checkered")),), None, "white", "plain")
    picture = _render(scene)
    dark = (picture[..., 0] < 160) & (_chroma(picture) > 40)
    picture = np.where(dark[..., None], np.uint8((200, 0, 60)), picture)  # the dark squares turn red
    (found,) = detector.detect(picture)
    assert (found.shape, found.color) == ("square", "orange")


def test_the_inside_of_objects_leaves_their_rim_out() -> None:
    scene = Scene((Group(2, Thing("square", "green")),), None, "white", "plain")
    picture = _render(scene)
    inside = detector.interior(detector.detect(picture), 256, 256)
    colored = _chroma(picture) > 40
    assert 0.5 * colored.sum() < inside.sum() < 0.85 * colored.sum()
    assert not (inside & ~colored).any()


def test_bridges_specks_and_holes_do_not_matter() -> None:
    scene = Scene((Group(2, Thing("circle", "green")),), None, "white", "plain")
    canvas = Image.fromarray(_render(scene))
    draw = ImageDraw.Draw(canvas)
    draw.line((100, 128, 160, 128), fill=world.COLORS["green"], width=2)
    draw.rectangle((5, 5, 15, 15), fill=world.COLORS["red"])
    draw.rectangle((44, 106, 86, 148), fill=(234, 234, 234))
    assert detector.score("counting", scene, np.asarray(canvas))


def test_a_picture_without_objects_gives_no_detection() -> None:
    for level in (0, 40, 150, 255):
        assert detector.detect(np.full((256, 256, 3), level, np.uint8)) == []


def test_odd_regions_are_found_but_not_named() -> None:
    canvas = Image.new("RGB", (256, 256), (234, 234, 234))
    ImageDraw.Draw(canvas).rectangle((20, 110, 235, 145), fill=world.COLORS["red"])
    (found,) = detector.detect(np.asarray(canvas))
    assert found.shape is None and found.color == "red"


def test_random_blobs_are_rarely_named() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(60):
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 7)), rng.uniform(15, 90, 7)
        canvas = Image.new("RGB", (256, 256), (150, 150, 150))
        points = np.stack([128 + radii * np.cos(angles), 128 + radii * np.sin(angles)], axis=1)
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=world.COLORS["blue"])
        found += detector.detect(np.asarray(canvas))
    assert len(found) > 50
    assert np.mean([d.shape is not None for d in found]) < 0.15


def test_colorful_smears_do_not_break_the_detector() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        smear = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        found = detector.detect(np.asarray(smear.resize((192, 256), Image.Resampling.BICUBIC)))
        assert all(0 <= d.cx <= 192 and 0 <= d.cy <= 256 and 0 <= d.score <= 1 for d in found)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8, 3), np.float32), ((8, 8), np.uint8), ((8, 8, 4), np.uint8)]
)
def test_other_layouts_are_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match="uint8"):
        detector.detect(np.zeros(shape, dtype))


# --- scoring ------------------------------------------------------------------------------------------------


def share_shown(cases: list[suite.Case], images: list[np.ndarray]) -> float:
    """The share of pictures that show what their prompt asks for."""
    return float(
        np.mean(
            [detector.score(case.task, case.scene, image) for case, image in zip(cases, images, strict=True)]
        )
    )


def test_clean_renders_score_full_marks(cases: list[suite.Case], images: list[np.ndarray]) -> None:
    assert {case.task for case in cases} == set(suite.TASKS)
    assert share_shown(cases, images) >= 0.99


def test_blurred_renders_score_nearly_as_well(cases: list[suite.Case], images: list[np.ndarray]) -> None:
    blur = ImageFilter.GaussianBlur(1.5)
    blurred = [np.asarray(Image.fromarray(image).filter(blur)) for image in images]
    assert share_shown(cases, blurred) >= 0.95


def test_coarse_renders_score_nearly_as_well(cases: list[suite.Case], images: list[np.ndarray]) -> None:
    small = [Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR) for image in images]
    coarse = [np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)) for image in small]
    assert share_shown(cases, coarse) >= 0.95


def test_pictures_of_other_prompts_score_at_chance(cases: list[suite.Case], images: list[np.ndarray]) -> None:
    order = np.random.default_rng(7).permutation(len(images))
    assert share_shown(cases, [images[i] for i in order]) < 0.25


def test_one_wrong_attribute_fails_its_task() -> None:
    scene = world.parse("a red star left of a blue heart on a white background")
    picture = _render(scene)
    mirrored, one = (
        replace(scene, relation="right"), _render(replace(scene, groups=scene.groups[:1], relation=None)),
    )
    swapped = world.parse("a blue star and a red heart")
    assert detector.score("position", scene, picture) and not detector.score("position", mirrored, picture)
    assert not detector.score("position", scene, one)
    assert detector.score("color_attr", scene, picture) and not detector.score("color_attr", swapped, picture)
    assert detector.score("two_object", swapped, picture) and not detector.score("two_object", swapped, one)
    assert detector.score("single_object", world.parse("a star"), one)
    assert not detector.score("single_object", world.parse("a heart"), one)
    assert detector.score("colors", world.parse("a red star"), one)
    assert not detector.score("colors", world.parse("a green star"), one)


def test_counting_wants_the_exact_number_and_nothing_else() -> None:
    for count in (2, 3, 4):
        picture = _render(Scene((Group(count, Thing("heart", "purple")),)))
        hits = [detector.score("counting", Scene((Group(n, Thing("heart")),)), picture) for n in (2, 3, 4)]
        assert hits == [n == count for n in (2, 3, 4)]
    mixed = _render(world.parse("two red hearts and a blue star"))
    assert not detector.score("counting", world.parse("two hearts"), mixed)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task"):
        detector.score("beauty", world.parse("a star"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="relation"):
        detector.score("position", world.parse("a star and a heart"), np.zeros((64, 64, 3), np.uint8))


# --- suite --------------------------------------------------------------------------------------------------


def test_the_suite_is_deterministic_and_balanced(cases: list[suite.Case]) -> None:
    assert cases == suite.prompts(25, seed=11)
    assert [case.prompt for case in cases] != [case.prompt for case in suite.prompts(25, seed=12)]
    tasks = [case.task for case in cases]
    assert all(tasks.count(task) == 25 for task in suite.TASKS)
    assert {case.scene.relation for case in cases if case.task == "position"} == set(world.RELATIONS)
    assert {case.scene.groups[0].count for case in cases if case.task == "counting"} == {2, 3, 4}
    assert {case.scene.groups[0].thing.shape for case in cases} == set(world.SHAPES)


def test_suite_prompts_describe_their_scenes_in_known_words(cases: list[suite.Case]) -> None:
    for case in cases:
        assert world.parse(case.prompt) == case.scene
        assert set(world.words(case.prompt)) <= set(world.VOCABULARY)
        colored = [group.thing.color is not None for group in case.scene.groups]
        assert all(colored) if case.task in ("colors", "color_attr") else not any(colored)


def test_paired_cases_hold_different_shapes(cases: list[suite.Case]) -> None:
    pairs = [case.scene.groups for case in cases if len(case.scene.groups) == 2]
    assert len(pairs) == 75
    assert all(first.thing.shape != second.thing.shape for first, second in pairs)
