"""CUDA graphs: a replayed pass does what the pass itself does, on a recorder that replays by running again,
and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from builders import TINY, tiny_backbone
from hart_builders import SCHEDULE as HART_SCHEDULE
from hart_builders import prompt, tiny_hart_backbone
from torch import Tensor

from comfy_moss.model import graphs as graphs_module
from comfy_moss.model.backbone import HART, Pass, Step
from comfy_moss.model.graphs import Graphs, Replay, graphs_for, with_graphs
from comfy_moss.model.infinity import InfinityBackbone
from comfy_moss.model.rope import rotation
from comfy_moss.model.sampling import Guidance, Ramp, Sampling
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
    return replace(plain, graphs=Graphs(lambda: recorder))


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


@pytest.mark.parametrize("int8", [False, True])
def test_methods_may_follow_one_another(plain, graphed, int8) -> None:
    plain, graphed = (replace(model, int8_cache=int8) for model in (plain, graphed))
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
    condition, graphs, model = _recipe().condition(plain), Graphs(lambda: recorder), plain.transformer
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
            pairs.append((graphs.run(model, x, nows[0]), model(x, nows[1])))
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

    model = replace(plain, graphs=Graphs(lambda: refuse))
    for seed in range(2):
        assert torch.equal(_drawn(model, _recipe(seed)), _drawn(plain, _recipe(seed)))
    assert "not permitted when stream is capturing" in caplog.text and "long trace" not in caplog.text


def test_the_recording_not_used_for_longest_is_let_go(plain, recorder, monkeypatch) -> None:
    monkeypatch.setattr(graphs_module, "MOST", PASSES)
    model = replace(plain, graphs=Graphs(lambda: recorder))
    for seed in range(2):
        _drawn(model, _recipe(seed))
    _drawn(model, _recipe(2, words=(40,)))  # as many other passes push the first ones out
    _drawn(model, _recipe(3))
    assert recorder.recorded == recorder.replayed == PASSES


def test_weights_that_moved_between_two_passes_of_one_picture_are_not_replayed(plain, recorder) -> None:
    """As a host does it that takes some of them away and brings them back."""
    graphed = replace(plain, graphs=Graphs(lambda: recorder))
    for seed in range(2):
        _drawn(graphed, _recipe(seed))
    recipe = _recipe(2)
    condition = recipe.condition(graphed)
    first = draw_draft(graphed, recipe, 2, condition=condition)[0]
    weight = plain.transformer.blocks[0].ffn.fc1.weight
    weight.data = weight.data.clone()
    replayed = recorder.replayed
    again = draw_draft(graphed, recipe, 2, condition=condition)[0]
    assert recorder.replayed == replayed and torch.equal(first.total, again.total)


def test_a_prompt_of_another_length_replays_and_draws_what_it_draws_alone(plain, graphed, recorder) -> None:
    for seed, words in enumerate([(5,), (5,), (9,), (31,), (1,)]):
        recipe = _recipe(seed, words)
        assert torch.equal(_drawn(graphed, recipe), _drawn(plain, recipe))
    assert recorder.recorded == PASSES and recorder.replayed == 4 * PASSES


def test_padding_is_masked_exactly(plain) -> None:
    """In float64 attention over padded text is attention over the text, to the last bit that addition
    leaves.
    """
    text, model = [torch.randn(5, 32), torch.randn(7, 32)], plain.transformer
    bare, padded = (model.condition(text, None, True, multiple) for multiple in (1, 32))
    assert padded.text[0][0].shape[2] == 32 and bare.text[0][0].shape[2] == 7
    assert torch.allclose(bare.pooled, padded.pooled, rtol=0, atol=1e-6)
    q = torch.randn(4, 2, 6, 16, dtype=torch.float64)
    results = []
    for condition in (bare, padded):
        k, v = (part.double() for part in condition.text[0])
        mask = condition.text_mask
        mask = mask if mask.dtype == torch.bool else mask.double()
        results.append(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert (results[0] - results[1]).abs().max() < 1e-12


def test_text_is_copied_once_a_picture(plain, graphed, monkeypatch) -> None:
    for seed in range(2):
        _drawn(graphed, _recipe(seed))
    copied, copy = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, of: (copied.append(len(of)), copy(to, of))[1])
    _drawn(graphed, _recipe(2))
    # text, its mask, and three vectors of the prompts
    assert max(copied) == 3 + 2 * plain.depth + 1 and copied.count(max(copied)) == 1
    assert sorted(copied)[:-1] == [3] * PASSES  # tokens and rotations


def test_a_pass_that_cannot_be_recorded_is_tried_once(plain) -> None:
    tries = []

    def refuse(work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        tries.append(work)
        raise RuntimeError("not now")

    model = replace(plain, graphs=Graphs(lambda: refuse))
    for seed in range(4):
        _drawn(model, _recipe(seed))
    assert len(tries) == PASSES


def test_a_smaller_picture_keeps_the_recordings_and_a_larger_one_starts_anew(graphed, recorder) -> None:
    for method in ("draft-1", "draft-1", "moss2", "moss2", "draft-1"):
        _drawn(graphed, _recipe(1), method)
    # the draft's passes serve moss2, which adds its refine pass
    assert recorder.recorded == len(SCHEDULE) - 1 + 1


def test_recordings_that_hold_too_much_start_anew(plain, recorder, monkeypatch, caplog) -> None:
    recorder.nbytes = graphs_module.MOST_BYTES + 1
    made = []
    model = replace(plain, graphs=Graphs(lambda: (made.append(recorder), recorder)[1]))
    for seed in range(2):
        assert torch.equal(_drawn(model, _recipe(seed)), _drawn(plain, _recipe(seed)))
    assert len(made) > 2 and "more than they may" in caplog.text


def test_hart_replays_too(recorder) -> None:
    model = tiny_hart_backbone()
    graphed = replace(model, graphs=Graphs(lambda: recorder))
    for seed in range(3):
        settings = (HART_SCHEDULE, Guidance(Ramp(5.5)), Sampling(1.0, 0, 0.0))
        recipe = Recipe((prompt(seed, tokens=2 + seed),), None, (seed,), *settings)
        for method in ("moss2", "dense"):
            chosen = parse_method(method, published=HART)
            ours, theirs = (generate(m, recipe, chosen).total for m in (graphed, model))
            assert torch.equal(ours, theirs)
    assert recorder.replayed


@pytest.mark.parametrize(
    ("device", "version", "spare", "reason"),
    [
        ("cpu", "2.13.0", True, "the model is on cpu"),
        ("cuda", "2.5.1+cu121", True, "they need PyTorch 2.6 or newer, here is 2.5.1"),
        ("cuda", "2.13.0", False, "memory is scarce"),
    ],
)
def test_where_there_are_no_graphs_one_sentence_says_why(device, version, spare, reason, monkeypatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    graphs, why = graphs_for(torch.device(device), spare)
    assert graphs is None and reason in why


def test_on_cuda_everybody_gets_graphs(plain) -> None:
    graphs, why = graphs_for(torch.device("cuda"))
    assert isinstance(graphs, Graphs) and "at most 64 passes and 2 GiB" in why
    assert with_graphs(plain, torch.device("cuda"))[0].graphs is not None
    assert "not written for this family" in with_graphs(object(), torch.device("cuda"))[1]


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
