"""Nodes of Infinity's fine-tunes, in a stand-in for ComfyUI: tiny models, every other node as it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fakehost import FakeHost, installed
from tune_builders import EDIT, ENLARGE, write_tunes


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        write_tunes(host.models / "infinity")
        yield host.start()


@pytest.fixture(scope="module")
def edit(host: FakeHost) -> tuple[Any, Any, Any]:
    return host.run("MoSs_LoadInfinity", model=EDIT, vae="plain_vae.safetensors").result


@pytest.fixture(scope="module")
def enlarge(host: FakeHost) -> tuple[Any, Any, Any]:
    return host.run("MoSs_LoadInfinity", model=ENLARGE, vae="small_vae.safetensors").result


def picture(height: int = 40, width: int = 64, count: int = 1) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


def finish(host: FakeHost, draft: Any) -> dict[str, Any]:
    """The paper's chain behind a draft."""
    frequency = host.run("MoSs_FrequencyMap", draft=draft).result[0]
    dispatch = host.run("MoSs_TokenDispatch", frequency=frequency).result[0]
    residual = host.run("MoSs_Refine", draft=draft, dispatch=dispatch).result[0]
    return host.run("MoSs_Composite", draft=draft, residual=residual).result[0]


def test_an_edit_goes_through_every_other_node(host: FakeHost, edit: tuple):
    model, clip, vae = edit
    asked = {"model": model, "image": picture(), "positive": clip.encode("a red cat"), "refine_scales": 2}

    draft = host.run("MoSs_InstructEdit", **asked).result[0]
    latent, dense = finish(host, draft), host.run("MoSs_DenseRefine", draft=draft).result[0]
    report = host.run("MoSs_Report", latent=latent, reference=dense).result[0]
    decoded = vae.decode(latent["samples"])
    size = "the reference's, without padding"
    matched = host.run("MoSs_MatchPicture", image=decoded, reference=picture(), size=size)

    assert latent["moss_cost"].label == "moss2" and latent["samples"].shape == (1, 8, 32, 32)
    assert latent["moss_cost"].kv_bytes > model.backbone.cache_bytes(2, 1024)
    assert "varedit_512.safetensors, taken for VAREdit by its name" in report
    assert matched.result[0].shape == (1, 40, 64, 3)


def test_what_does_not_fit_is_told_before_it_is_drawn(
    host: FakeHost, edit: tuple, monkeypatch: pytest.MonkeyPatch
):
    warned: list[str] = []
    monkeypatch.setattr(sys.modules["comfy_moss.nodes.sample"], "warn", lambda note: warned.append(note.text))
    asked = {"model": edit[0], "image": picture(), "positive": edit[1].encode("a red cat")}
    host.run("MoSs_InstructEdit", **asked)
    assert not warned
    monkeypatch.setattr(host, "memory", 2**20)

    host.run("MoSs_InstructEdit", **asked)

    assert len(warned) == 1 and "needs about" in warned[0]


def test_another_seed_runs_no_source_again(host: FakeHost, edit: tuple, monkeypatch: pytest.MonkeyPatch):
    model, clip, _ = edit
    asked = {"model": model, "image": picture(), "positive": clip.encode("a red cat"), "refine_scales": 3}
    ran, original = [], type(model.backbone)._source
    monkeypatch.setattr(
        type(model.backbone), "_source", lambda *given: ran.append(1) or original(*given)
    )

    model.store.clear()
    first = host.run("MoSs_InstructEdit", **asked, seed=1).result[1]
    del first
    second = host.run("MoSs_InstructEdit", **asked, seed=2).result[1]
    assert len(ran) == 1
    model.store.clear()
    fresh = host.run("MoSs_InstructEdit", **asked, seed=2).result[1]
    other = host.run("MoSs_InstructEdit", **{**asked, "image": picture(64, 64)}, seed=2).result[1]

    assert len(ran) == 3
    assert torch.equal(second["samples"], fresh["samples"])
    assert not torch.equal(fresh["samples"], other["samples"])


def test_an_enlargement_goes_through_every_other_node(host: FakeHost, enlarge: tuple):
    model, clip, vae = enlarge
    asked = {"model": model, "image": picture(256, 256), "positive": clip.encode("a cat")}

    draft = host.run("MoSs_Enlarge", **asked, refine_scales=6).result[0]
    latent = finish(host, host.run("MoSs_Enlarge", **asked, refine_scales=5).result[0])
    matched = host.run(
        "MoSs_MatchPicture", image=vae.decode(latent["samples"]), reference=picture(256, 256),
        colours="the reference's",
    ).result[0]

    assert draft.draft.scales == 7 and draft.draft.recipe.guidance.asked == 1.0
    assert latent["moss_cost"].label == "moss5"
    assert matched.shape == (1, 1024, 1024, 3)
    assert torch.allclose(matched.mean((1, 2)), picture(256, 256).mean((1, 2)), atol=0.02)


@pytest.mark.parametrize(
    ("node", "file", "sentence"),
    [
        (
            "MoSs_InstructEdit", "plain.safetensors",
            "VAREdit, but this model is plain.safetensors, taken for Infinity because nothing marks it",
        ),
        ("MoSs_Enlarge", EDIT, "NSARM, but this model is varedit_512.safetensors, taken for VAREdit"),
    ],
)
def test_a_model_of_another_family_is_refused(host: FakeHost, node: str, file: str, sentence: str):
    model, clip, _ = host.run("MoSs_LoadInfinity", model=file, vae="plain_vae.safetensors").result

    with pytest.raises(ValueError, match=sentence):
        host.run(node, model=model, image=picture(256, 256), positive=clip.encode("a cat"))


def test_the_widget_decides_for_an_unmarked_file(host: FakeHost):
    parts = {"model": "plain.safetensors", "vae": "plain_vae.safetensors"}
    model, clip, _ = host.run("MoSs_LoadInfinity", **parts, family="VAREdit").result

    assert "taken for VAREdit as chosen" in model.files.told
    host.run(
        "MoSs_InstructEdit", model=model, image=picture(), positive=clip.encode("a cat"), area="0.25M",
        refine_scales=8,
    )
    with pytest.raises(ValueError, match="nano model is no NSARM"):
        host.run("MoSs_LoadInfinity", model="nano (embedded)", family="NSARM")


def test_what_cannot_be_is_said(host: FakeHost, edit: tuple, enlarge: tuple):
    words = {"positive": edit[1].encode("a cat")}

    with pytest.raises(ValueError, match="edits a picture and got none; wire one to MoSs Instruct Edit"):
        host.run("MoSs_InfinityDraft", model=edit[0], **words)
    with pytest.raises(ValueError, match="256 x 256 pixels, got 64 x 40; scale yours with Upscale Image"):
        host.run("MoSs_Enlarge", model=enlarge[0], image=picture(), **words)
    with pytest.raises(ValueError, match="leaves nothing to draft: this picture has 10 scales"):
        host.run("MoSs_InstructEdit", model=edit[0], image=picture(), **words, area="0.25M", refine_scales=10)


def test_a_batch_of_pictures_is_its_single_edits(host: FakeHost, edit: tuple):
    model, clip, _ = edit
    words = {"model": model, "positive": clip.encode("a red cat"), "refine_scales": 7}
    both = picture(48, 48, 2)

    together = host.run("MoSs_InstructEdit", image=both, seed=4, **words).result[1]["samples"]
    single = [
        host.run("MoSs_InstructEdit", image=both[n : n + 1], seed=4 + n, **words).result[1] for n in (0, 1)
    ]

    assert torch.allclose(together, torch.cat([one["samples"] for one in single]), atol=1e-6)


@pytest.mark.parametrize("kept", [True, False])
def test_a_picked_edit_is_refined_as_alone(host: FakeHost, edit: tuple, kept: bool):
    model, clip, _ = edit
    words = {"model": model, "positive": clip.encode("a red cat"), "refine_scales": 4}
    both = picture(48, 48, 2)

    drafts = host.run("MoSs_InstructEdit", image=both, seed=4, **words).result[0]
    if not kept:
        model.store.clear()
    picked = finish(host, host.run("MoSs_PickDrafts", draft=drafts, picks="2").result[0])["samples"]
    alone = finish(host, host.run("MoSs_InstructEdit", image=both[1:], seed=5, **words).result[0])["samples"]

    assert torch.allclose(picked, alone, atol=1e-6)
