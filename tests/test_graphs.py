"""CUDA graphs: a replayed pass does what the pass itself does, on a recorder that replays by running again,
and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from builders import TINY, tiny_backbone
from torch import Tensor

from comfy_moss.model import graphs as graphs_module
from comfy_moss.model.backbone import Pass, Step
from comfy_moss.model.graphs import Graphs, Replay
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.rope import rotation
from comfy_moss.model.sampling import Guidance
from comfy_moss.model.schedule import Positions, make_schedule
from comfy_moss.ops import choose
from comfy_moss.pipeline.draft import Recipe, draw_draft
from comfy_moss.pipeline.plan import generate, parse_method
from comfy_moss.pipeline.refine import finish_dense

SCHEDULE = make_schedule(1.5, "0.06M")
PASSES = len(SCHEDULE) - 2 + 1  # of one moss2: the draft's, and the refine step's


class Recorder:
    """Replays by running again, on the memory of the recording alone, as a graph does."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.recorded += 1
        result = torch.full_like(work(), torch.nan)

        def replay() -> None:
            self.replayed += 1
            result.copy_(work())

        return replay, result


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def plain() -> InfinityBackbone:
    return tiny_backbone()


@pytest.fixture
def graphed(plain: InfinityBackbone, recorder: Recorder) -> InfinityBackbone:
    return replace(plain, graphs=Graphs(recorder))


def _recipe(seed: int = 0, words: Sequence[int] = (5,), guidance: Guidance = Guidance()) -> Recipe:
    """Prompts of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    text = tuple(torch.randn(n, TINY.text_width, generator=generator) for n in words)
    return Recipe(text, None, tuple(range(seed, seed + len(words))), SCHEDULE, guidance)


def _drawn(backbone: InfinityBackbone, recipe: Recipe, method: str = "moss2") -> Tensor:
    return generate(backbone, recipe, parse_method(method)).total


def test_replayed_pictures_of_other_seeds_and_prompts_are_those_of_the_plain_model(
    plain, graphed, recorder
) -> None:
    for seed in range(4):
        recipe = _recipe(seed)
        assert torch.equal(_drawn(graphed, recipe), _drawn(plain, recipe))
    assert recorder.recorded == PASSES  # with the second picture
    assert recorder.replayed == 3 * PASSES


@pytest.mark.parametrize(
    "recipe",
    [
        {"words": (3, 7)},  # a text mask
        {"guidance": Guidance(1.0)},
        {"guidance": Guidance(2.0, layers=(0, -1))},  # rows mixed inside the network
    ],
    ids=["mask", "no guidance", "mixed layers"],
)
@pytest.mark.parametrize("method", ["moss2", "moss2-sa", "moss2-unguided"])
def test_every_kind_of_pass_can_be_replayed(plain, graphed, recorder, recipe, method) -> None:
    for seed in range(3):
        ours, theirs = (_drawn(model, _recipe(seed, **recipe), method) for model in (graphed, plain))
        assert torch.equal(ours, theirs)
    assert recorder.replayed >= 2 * PASSES


def test_methods_may_follow_one_another(plain, graphed) -> None:
    for method in ("dense", "moss2", "moss2", "fastvar", "dense", "dense", "moss3", "moss3", "moss2"):
        assert torch.equal(_drawn(graphed, _recipe(1), method), _drawn(plain, _recipe(1), method))


def test_drafts_keep_their_caches_while_others_are_drawn(plain, graphed) -> None:
    for start in (0, 10, 20):
        seeds = range(start, start + 3)
        drafts = [draw_draft(graphed, _recipe(seed), 4) for seed in seeds]
        for seed, (draft, cache) in zip(seeds, drafts, strict=True):
            finished, _ = finish_dense(graphed, draft, cache)
            whole, _ = draw_draft(plain, _recipe(seed), len(SCHEDULE))
            assert torch.equal(finished.total, whole.total)
        del drafts, draft, cache


def test_passes_of_one_size_at_several_lengths_of_the_cache_are_told_apart(plain, recorder) -> None:
    condition, graphs, model = _recipe().condition(plain), Graphs(recorder), plain.transformer
    step = Step(Positions.of_scale(SCHEDULE, 2), SCHEDULE, condition)
    tables = rotation(step.positions, SCHEDULE, TINY.head_dim)
    pairs = []
    for turn in range(3):
        caches = [
            graphs.new_cache([64] * 2, 2, 2, TINY.head_dim, torch.float32, "cpu"),
            plain.new_cache(condition, 64),
        ]
        generator = torch.Generator().manual_seed(turn)
        parts = [torch.randn(2, tables[0].shape[1], TINY.width, generator=generator) for _ in range(3)]
        nows = [Pass(replace(step, cache=cache, store=True), *tables) for cache in caches]
        for x in parts:
            replayed = graphs.replay(model, x, nows[0])
            pairs.append((model(x, nows[0]) if replayed is None else replayed, model(x, nows[1])))
        del caches, nows
    # at the end: a later replay must not write into an earlier result
    assert all(torch.equal(a, b) for a, b in pairs)
    assert recorder.recorded == 3


def test_memory_is_lent_again_only_when_it_is_free(graphed) -> None:
    _, first = draw_draft(graphed, _recipe(1), 4)
    _, second = draw_draft(graphed, _recipe(2), 4)
    assert first.layers[0].data_ptr() != second.layers[0].data_ptr()
    part, address = first.first_rows(1), first.layers[0].data_ptr()
    del first
    _, third = draw_draft(graphed, _recipe(3), 4)
    assert third.layers[0].data_ptr() != address  # a part of it is still in use
    del part
    _, fourth = draw_draft(graphed, _recipe(4), 4)
    assert fourth.layers[0].data_ptr() == address


def test_moved_weights_are_never_run_from_an_old_recording(plain, graphed, recorder) -> None:
    for seed in range(2):
        _drawn(graphed, _recipe(seed))
    weight = graphed.transformer.blocks[0].ffn.fc1.weight
    weight.data = 2 * weight.data  # at another address, as after a host has moved the model out and in
    assert torch.equal(_drawn(graphed, _recipe(5)), _drawn(plain, _recipe(5)))
    assert recorder.replayed == PASSES  # those of the second picture


def test_what_cannot_be_recorded_runs_as_usual_and_says_so(plain, caplog) -> None:
    def refuse(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nlong trace")

    model = replace(plain, graphs=Graphs(refuse))
    for seed in range(2):
        assert torch.equal(_drawn(model, _recipe(seed)), _drawn(plain, _recipe(seed)))
    assert "not permitted when stream is capturing" in caplog.text and "long trace" not in caplog.text


def test_the_recording_not_used_for_longest_is_let_go(plain, recorder, monkeypatch) -> None:
    monkeypatch.setattr(graphs_module, "MOST", PASSES)
    model = replace(plain, graphs=Graphs(recorder))
    for seed in range(2):
        _drawn(model, _recipe(seed))
    _drawn(model, _recipe(2, words=(6,)))  # as many other passes push the first ones out
    _drawn(model, _recipe(3))
    assert recorder.recorded == recorder.replayed == PASSES


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "auto", "triton"])
def test_graphs_on_a_gpu_draw_what_the_model_draws_without_them(plain, backend) -> None:
    plain.transformer.cuda().blocks.to(torch.bfloat16)
    plain.vae.cuda()
    plain = replace(plain, kernels=choose(backend, "cuda")[0])
    graphed = replace(plain, graphs=Graphs())
    for seed in range(4):
        for words in ((5,), (3, 7)):
            recipe = _recipe(seed, words)
            assert (_drawn(graphed, recipe) != _drawn(plain, recipe)).float().mean() <= 0.01
    assert sum(recording is not None for recording in graphed.graphs._recordings.values()) >= PASSES
