"""The scripts that made the embedded model still train it, and train the very network that draws."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers  # noqa: F401  (imported before the root is on the path, see conftest)

from comfy_moss.benchmarks import rendering, world
from comfy_moss.benchmarks.detector import detect, judge
from comfy_moss.model.backbone import Step
from comfy_moss.model.infinity import LEVELS, InfinityBackbone
from comfy_moss.model.layers import join_biases
from comfy_moss.model.library import find_model
from comfy_moss.model.lora import merged, read_lora, shapes_of
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import Positions
from comfy_moss.model.vae import VAE
from comfy_moss.ops import TORCH

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def training():
    """The module training.forward; the root is on sys.path only while all of training is imported."""
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("training.train_transformer")
        return sys.modules["training.forward"]
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def pool(training):
    """The module training.pool, which the trainer has imported."""
    return sys.modules["training.pool"]


@pytest.fixture(scope="module")
def nano(training):
    torch.manual_seed(0)
    model = training.Nano()
    with torch.no_grad():
        model.transformer.head.weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("area", ["0.25M", "1M"])
def test_training_runs_the_forward_pass_of_inference_but_for_halved_attention(
    training, pool, nano, area, monkeypatch
):
    schedule = training.SCHEDULES[area]
    features = torch.randn(2, 16, *schedule.grids[-1], generator=torch.Generator().manual_seed(1))
    inputs, targets = training.corrupted_scales(features, 7, flips=0.0)
    backbone = InfinityBackbone(nano.transformer, VAE(pool.CONFIG))
    losses = []
    with torch.no_grad():
        _, condition = nano.read(["a red circle", None])
        cache = backbone.new_cache(condition, schedule.tokens(0, 7))
        for n in range(7):
            positions = Positions.of_scale(schedule, n)
            step = Step(positions, schedule, condition, Guidance(1.0), cache=cache, store=True)
            logits = backbone.logits(backbone.forward(inputs[n], step), step)
            margins = logits[..., 1] - logits[..., 0]
            losses.append(F.binary_cross_entropy_with_logits(margins, targets[n].float()))

        trained = training.look(nano, features, ["a red circle", None], 7, flips=0.0).losses
        monkeypatch.setattr(training, "KERNELS", TORCH)
        in_float32 = training.look(nano, features, ["a red circle", None], 7, flips=0.0).losses

    assert torch.allclose(in_float32, torch.stack(losses), rtol=1e-4)
    assert torch.allclose(trained, in_float32, rtol=1e-2) and not torch.equal(trained, in_float32)


def test_a_step_reaches_every_weight(training, pool, nano):
    rng = np.random.default_rng(0)
    scenes = [pool.sample_scene(rng) for _ in range(4)]
    batches = pool.Batches(scenes, torch.randn(4, 16, 32, 32).half(), rng)
    batch = batches.draw(3)

    training.look(nano, batch.features, [*batch.captions[:2], None], 6).losses.sum().backward()

    assert [name for name, p in nano.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_scales_without_gradients_are_seen_all_the_same_and_the_rest_reaches_every_weight(training, nano):
    features = torch.randn(2, 16, 64, 64, generator=torch.Generator().manual_seed(1))
    captions = ["a red circle", None]

    def losses(learnt_from):
        torch.manual_seed(0)
        return training.look(nano, features, captions, 7, learnt_from=learnt_from).losses

    whole, part = losses(0), losses(6)
    nano.zero_grad()
    part.sum().backward()

    assert torch.allclose(part, whole)
    level = nano.transformer.lvl_embed.weight.grad.abs().sum(1)
    assert level[: LEVELS + 6].sum() == 0 and level[LEVELS + 6] > 0
    missed = [name for name, p in nano.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    of_first_scale = {"pos_start", "text_proj_for_sos"}
    assert {name.split(".")[1] for name in missed} == of_first_scale


def test_late_scales_take_turns_alike_on_every_worker_dear_ones_more_often_at_the_end(training):
    lessons = sys.modules["training.lessons"]

    early, late = ([lessons.late_scale(step, done) for step in range(400)] for done in (0.1, 0.9))

    assert early == [lessons.late_scale(step, 0.1) for step in range(400)]
    assert {*early} == {*late} == {10, 11, 12}
    assert early.count(12) < 130 < 170 < late.count(12)


def test_a_stream_makes_new_pictures_and_draws_them_again(training, pool):
    stream = sys.modules["training.stream"]
    codec = VAE(pool.CONFIG).state_dict()

    pictures = stream.Stream("1M", codec, np.random.default_rng(0), first=1, most=2)
    new, again = pictures.new(2), pictures.draw(5)

    assert new.features.shape == (2, 16, 64, 64) and not torch.equal(*new.features)
    assert all(any(torch.equal(one, two) for two in new.features) for one in again.features)
    assert not any(map(pool.held_out, new.scenes))


def test_flipped_bits_change_what_later_scales_see_and_must_repair(training):
    features = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)

    one, other = training.corrupted_scales(features, 4), training.corrupted_scales(features, 4)

    assert torch.equal(one[1][0], other[1][0])  # the first target is the picture's own
    assert not torch.equal(one[0][3], other[0][3])
    assert not torch.equal(one[1][3], other[1][3])


def test_parts_of_pairs_hold_two_things_often_in_their_usual_colours(pool, tmp_path):
    torch.save(torch.zeros(pool.PAIRS, 1), tmp_path / "features_2.pt")

    scenes, _ = pool.encoded_part(tmp_path, 2, {})

    usual = [all(g.thing.color == pool.USUAL_COLORS[g.thing.shape] for g in scene.groups) for scene in scenes]
    assert {len(scene.groups) for scene in scenes} == {2}
    assert 0.35 < np.mean(usual) < 0.5


def test_what_is_held_out_for_the_evaluation_is_not_trained_on(pool, tmp_path):
    torch.save(torch.arange(pool.PAIRS)[:, None], tmp_path / "features_2.pt")
    every, _ = pool.encoded_part(tmp_path, 2, {})

    scenes, features = pool.encoded_pictures(tmp_path, [2], {})

    assert 0.7 * len(every) < len(scenes) < 0.9 * len(every)
    assert not any(map(pool.held_out, scenes))
    assert scenes == [every[n] for n in features.flatten().tolist()]


def test_words_of_a_prompt_know_their_order_from_the_start(training):
    nano = training.Nano()
    captions = ["a red circle and a blue square", "a blue circle and a red square"]

    one, other = (
        nano.text(input_ids=nano.tokenizer(c, return_tensors="pt").input_ids).last_hidden_state
        for c in captions
    )

    assert (one[0, 2] - other[0, 2]).norm() > 0.1 * one[0, 2].norm()  # "circle" has seen its own colour


@pytest.fixture(scope="module")
def hints(training):
    return sys.modules["training.hints"]


def test_every_word_of_a_noun_phrase_is_labelled_with_its_thing(hints):
    scene = world.parse("a red circle above a dotted blue square on a plain white background")
    caption = "a photo of a red circle above a blue dotted square on a plain white background"

    labels = hints.word_labels(caption, scene)

    told = {n: (world.SHAPES[row[0]], hints.PLACES[row[4]]) for n, row in enumerate(labels) if row[0] >= 0}
    assert told == {n: ("circle", "above") for n in (3, 4, 5)} | {
        n: ("square", "below") for n in (7, 8, 9, 10)
    }


@pytest.mark.parametrize("area", ["0.25M", "1M"])
def test_tokens_along_the_directions_tell_their_places(training, hints, area):
    schedule = training.SCHEDULES[area]
    head, scales = hints.Hints(128, 192), [0, 2, len(schedule) - 1]
    rows = [torch.zeros(1, 14)]  # the very first token need not tell anything
    for n in scales[1:]:
        size = schedule.grids[n][0]
        corner = torch.cartesian_prod(torch.arange(size), torch.arange(size)) * 256 / size
        y, x = (corner / 4).round().mul(4).unbind(1)
        waves = [y / rendering.PERIOD, x / rendering.PERIOD, y / rendering.CHECK_HEIGHT]
        turn = 2 * torch.pi * torch.stack(waves, dim=1)
        fine = torch.cat([(2 * turn).cos(), (2 * turn).sin()], dim=1) * (area == "1M")
        rows.append(torch.cat([(corner + 128 / size) / 128 - 1, turn.cos(), turn.sin(), fine], dim=1))
    told = torch.cat(rows) * torch.tensor([hints.PLACE] * 2 + [hints.PHASE] * 12)
    directions = torch.cat([head.place, head.phase, head.fine_phase], dim=1)
    rest = torch.randn(192, generator=torch.Generator().manual_seed(2))
    rest -= rest.mean() + directions @ (directions.T @ rest)
    length = (1 - told.square().sum(-1)).clamp(min=0).sqrt()
    tokens = (told @ directions.T + length[:, None] * rest / rest.norm())[None]

    assert (
        head.places(tokens, schedule, scales) < 0.03 < 0.3 < head.places(tokens.roll(1, 1), schedule, scales)
    )


def test_a_part_of_another_size_is_refused(pool, tmp_path):
    torch.save(torch.zeros(7, 1), tmp_path / "features_2.pt")

    with pytest.raises(ValueError, match=r"features_2\.pt holds 7 pictures .* delete it"):
        pool.encoded_part(tmp_path, 2, {})


@pytest.fixture(scope="module")
def score(training):
    """The module training.score; training.restore is imported with it."""
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("training.restore")
        return importlib.import_module("training.score")
    finally:
        sys.path.remove(str(ROOT))


def test_a_restored_state_draws_as_the_shipped_model_does(score, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["restore", "--state", str(tmp_path)])
    sys.modules["training.restore"].main()
    case = score.prompts(1, 4242)[0]

    nano, backbone = score.load(tmp_path)
    ((_, pictures),) = score.draw(nano, backbone, [case], "0.25M")

    shipped = find_model("nano", []).load(torch.device("cpu"), torch.float32).transformer.state_dict()
    join_biases(backbone.transformer)
    drawn = backbone.transformer.state_dict()
    assert all(torch.equal(drawn[name], shipped[name]) for name in drawn)
    assert len(pictures) == 4 and pictures[0].shape == (256, 256, 3)
    assert judge(case.task, case.scene, detect(pictures[0]), 256)
    bits = score.bits_a_bit(nano, backbone, [case], "0.25M")
    assert len(bits) == 10 and max(bits) < 0.7  # it knows its pictures


def test_a_report_counts_textures_only_where_a_prompt_names_them(score):
    named, unnamed = ({k: (True, k == 0) for k in score.SKIPPED}, {k: (True, None) for k in score.SKIPPED})
    looks = [(case, seen) for case in score.prompts(1, 0) for seen in (named, unnamed)]

    rows = score.report(looks)

    dense, draft = rows["dense"], rows["without the last 3"]
    assert dense["with textures"] == dense["textures shown"] == draft["score"] == 1
    assert draft["textures shown"] == 0 and draft["with textures"] == 0.5


def test_a_step_of_1m_trains_both_presets_and_one_late_scale(training, pool, hints, monkeypatch):
    lessons, stream = sys.modules["training.lessons"], sys.modules["training.stream"]
    nano, codec, rng = training.Nano(), VAE(pool.CONFIG).state_dict(), np.random.default_rng(0)
    streams = [stream.Stream(area, codec, rng, first=1) for area in ("0.25M", "1M")]
    looked = []
    monkeypatch.setattr(lessons, "SHORT_BATCH", 2)
    monkeypatch.setattr(
        lessons, "long_step", lambda *a, learnt_from=0: looked.append(learnt_from) or lessons_cost(a[3])
    )

    def lessons_cost(scales):
        return torch.arange(scales).float(), torch.tensor(0.5)

    seen = lessons.train_large_step(nano, hints.Hints(128, 192), *streams, scale=11)

    assert looked == [0, 0, 11]
    missing = torch.isnan(seen).nonzero().flatten().tolist()
    assert missing == [10 + 10, 10 + 12]  # of 1M the other two late scales
    assert all(p.grad.abs().sum() > 0 for p in nano.transformer.blocks[5].ffn.parameters())


@pytest.fixture(scope="module")
def train_lora(training):
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("training.train_lora")
    finally:
        sys.path.remove(str(ROOT))


def test_a_lora_learns_alone_and_its_file_says_what_was_learnt(train_lora, training, pool, tmp_path):
    """On two pictures and the early scales, which takes seconds."""
    torch.manual_seed(0)
    nano, features = training.Nano(), torch.randn(2, 16, 32, 32)
    before = {name: value.clone() for name, value in nano.state_dict().items()}
    backbone = InfinityBackbone(training.make_transformer(), VAE(pool.CONFIG), model_id="m")
    backbone.transformer.load_state_dict(nano.transformer.state_dict())
    changes = train_lora.add_changes(nano)

    def loss():
        torch.manual_seed(1)
        return training.look(nano, features, ["a red circle", None], training.EARLY).losses.mean()

    parameters = [p for change in changes.values() for p in change.parameters()]
    optimizer, first = torch.optim.AdamW(parameters, lr=1e-2), loss().item()
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    train_lora.save(changes, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", shapes_of(backbone))
    weights = dict(merged(backbone, [(lora, 1.0)]).transformer.named_parameters())

    assert loss().item() < first - 0.05
    after = {name.replace(".parametrizations.weight.original", ".weight"): value
             for name, value in nano.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert len(lora.changes) == len(changes) == 6 * len(train_lora.LAYERS)
    for layer in changes:
        trained = nano.transformer.get_submodule(layer).weight
        assert torch.allclose(weights[f"{layer}.weight"], trained, atol=2e-3)
        assert not torch.equal(trained, before[f"transformer.{layer}.weight"])


def test_a_picture_of_a_stream_has_the_look_that_is_asked_for(train_lora, training, pool):
    seen = []

    def look(picture):
        seen.append(train_lora.night(picture))
        return seen[-1]

    codec, rng = VAE(pool.CONFIG).state_dict(), np.random.default_rng(0)
    batch = sys.modules["training.stream"].Stream("0.25M", codec, rng, first=0, look=look).new(1)

    vae = VAE(pool.CONFIG)
    vae.load_state_dict(codec)
    image = pool.to_float(torch.from_numpy(seen[0]).permute(2, 0, 1)[None])
    with torch.no_grad():
        assert torch.equal(batch.features, vae.encode(image).half().float())


def test_at_night_greys_are_dark_and_things_keep_their_colours(train_lora):
    scene = world.parse("a red circle on a plain white background")
    rendered = rendering.render(scene, np.random.default_rng(0), 256, 256)

    picture = train_lora.night(rendered)

    assert (rendered[0, 0] > 200).all() and (picture[0, 0] < 60).all()
    assert (picture[128, 128] == rendered[128, 128]).all() and rendered[128, 128, 0] > 200
