"""Memory runs out at every stage of a graph: one sentence, nothing held, and the next run draws the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from builders import with_tiny
from fakehost import FakeHost
from test_nodes import TINY_FILE, draw, moss

from comfy_moss.model.memory import is_out_of_memory
from comfy_moss.model.schedule import make_schedule
from comfy_moss.pipeline.memory import RESERVED, predict
from comfy_moss.pipeline.plan import Plan

WORDS = "too little memory"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with with_tiny(tmp_path_factory.mktemp("host")) as host:
        yield host


@pytest.fixture(scope="module")
def tiny(host: FakeHost) -> tuple[Any, Any, Any]:
    return host.run("MoSs_LoadInfinity", model=TINY_FILE).result


def decoded(host: FakeHost, parts: tuple) -> torch.Tensor:
    """The whole graph, from words to picture."""
    latent = moss(host, draw(host, parts, "a red cat"))
    return parts[2].decode(latent["samples"])


# where it runs out: what is called there, and the node that says so
STAGES: dict[str, tuple[Callable[[tuple], tuple[Any, str]], str]] = {
    "text": (lambda parts: (type(parts[1].cond_stage_model.encoder), "features"), "text encoder"),
    "draft": (lambda parts: (type(parts[0].backbone.transformer), "forward"), "MoSs Draft"),
    "prompts": (lambda parts: (type(parts[0].backbone.transformer), "condition"), "MoSs Draft"),
    "cache": (lambda parts: (type(parts[0].backbone), "new_cache"), "MoSs Draft"),
    "bits": (lambda parts: (type(parts[0].backbone), "sample"), "MoSs Draft"),
    "decode": (lambda parts: (type(parts[2].first_stage_model), "decode"), "decode a picture"),
}


def run_out(*args: Any, **options: Any) -> None:
    """As torch says it of a GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("stage", STAGES)
def test_out_of_memory_is_a_sentence_and_the_next_run_draws_the_same(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    before = decoded(host, tiny)
    find, named = STAGES[stage]
    with monkeypatch.context() as patch:
        patch.setattr(*find(tiny), run_out)
        with pytest.raises(ValueError, match=WORDS) as told:
            decoded(host, tiny)
    assert named in str(told.value) and str(told.value).count("\n") == 0
    assert told.value.__context__ is None and told.value.__cause__ is None  # which would hold its frames
    assert tiny[0].store.nbytes == 0 and host.loaded == []
    assert torch.equal(decoded(host, tiny), before)


@pytest.mark.parametrize(
    ("module", "name", "node"),
    [
        ("nodes.maps", "frequency_map", "MoSs Frequency Map"),
        ("nodes.maps", "dispatch_tokens", "MoSs Token Dispatch"),
        ("nodes.sample", "draw_pass", "MoSs Refine"), ("nodes.sample", "composite", "MoSs Composite"),
    ],
)
def test_behind_the_draft_it_is_kept(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch, module: str, name: str, node: str
) -> None:
    one = draw(host, tiny, "a red cat")
    before = moss(host, one)["samples"]
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[f"comfy_moss.{module}"], name, run_out)
        with pytest.raises(ValueError, match=f"{WORDS} for {node}"):
            moss(host, one)
    assert tiny[0].store.nbytes == 0 and host.loaded == []
    assert torch.equal(moss(host, one)["samples"], before)  # from the draft's tokens


def test_other_errors_are_told_as_they_are(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(type(tiny[0].backbone.transformer), "forward", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        draw(host, tiny)


def test_both_kinds_of_memory_are_known_by_what_torch_says() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**62, dtype=torch.uint8)
    assert is_out_of_memory(told.value) and is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("out of memory")) and not is_out_of_memory(RuntimeError("shapes"))


def test_a_picture_that_is_too_large_is_told_before_it_is_drawn(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, schedule = tiny[0].backbone, make_schedule(1.0, "1M")
    one, four = (predict(backbone, Plan(-1), schedule, True, batch).least for batch in (1, 4))
    monkeypatch.setattr(host, "memory", RESERVED + (one + four) / 2)
    output = host.run(
        "MoSs_InfinityDraft", model=tiny[0], positive=tiny[1].encode("a red cat"), area="1M", batch_size=4,
        refine_scales=1, method="custom",
    )
    (note,) = [note for note in output.ui["moss_notes"] if note["key"] == "memory"]
    assert "needs about" in note["text"] and "one picture at a time" in note["values"]["ways"]
    assert "area 0.06M" in note["values"]["ways"]


def test_what_fits_is_not_spoken_of(host: FakeHost, tiny: tuple) -> None:
    output = host.run(
        "MoSs_InfinityDraft", model=tiny[0], positive=tiny[1].encode("a red cat"), area="0.06M",
    )
    assert [note for note in output.ui["moss_notes"] if note["key"] == "memory"] == []


def test_nodes_that_start_from_a_picture_warn_too_and_an_edit_counts_two_caches(
    host: FakeHost, tiny: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text, other = tiny[0], *(tiny[1].encode(words) for words in ("a red cat", "a blue star"))
    asked = {"image": torch.rand(4, 64, 64, 3), "positive": text, "refine_scales": 0, "area": "0.25M"}
    draft = host.run("MoSs_ImageToDraft", model=model, **asked).result[0]
    four = predict(model.backbone, Plan(0), draft.draft.recipe.schedule, True, 4)
    warned: list[str] = []
    monkeypatch.setattr(sys.modules["comfy_moss.nodes.sample"], "warn", lambda note: warned.append(note.text))

    monkeypatch.setattr(host, "memory", RESERVED + four.least + four.cache / 2)
    host.run("MoSs_ImageToDraft", model=model, **asked)
    assert not warned
    host.run("MoSs_EditDraft", draft=draft, positive=other)
    assert len(warned) == 1 and "needs about" in warned[0]
    monkeypatch.setattr(host, "memory", RESERVED + four.least - four.cache / 2)
    host.run("MoSs_ImageToDraft", model=model, **asked)
    assert len(warned) == 2 and "one picture at a time" in warned[1]
