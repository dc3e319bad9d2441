"""What reaches the nodes from neighbours, menus and people: shapes, kinds, notations, and what is not
supported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import real_files
import torch
from builders import released_state, released_vae_state, tiny_transformer, tiny_vae
from fakehost import FakeHost, installed
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHost]:
    with installed(tmp_path_factory.mktemp("host")) as host:
        yield host.start()


@pytest.fixture(scope="module")
def parts(host: FakeHost) -> tuple[Any, Any]:
    model, clip, _ = host.run("MoSs_LoadInfinity").result
    return model, clip


@pytest.fixture(scope="module")
def draft(host: FakeHost, parts: tuple) -> Callable[..., Any]:
    def run(positive: Any = None, **changes: Any) -> Any:
        positive = positive or parts[1].encode("a red circle")
        inputs = {"model": parts[0], "positive": positive, "area": "0.06M", "refine_scales": 2} | changes
        return host.run("MoSs_InfinityDraft", **inputs).result[0]

    return run


@pytest.fixture(scope="module")
def frequency(host: FakeHost, draft: Callable) -> Any:
    return host.run("MoSs_FrequencyMap", draft=draft()).result[0]


# --- 9: shapes of neighbours --------------------------------------------------------------------------------

MASK = torch.zeros(6, 6)
MASK[:3] = 1
MASKS = {
    "(H,W)": MASK,
    "(1,H,W)": MASK[None],
    "(1,1,H,W)": MASK[None, None],
    "(1,H,W,1)": MASK[None, :, :, None],
    "(1,1,H,W,1)": MASK[None, None, ..., None],
    "half": MASK[None].half(),
    "double": MASK[None].double(),
    "bytes": MASK[None].byte(),
    "bool": MASK[None].bool(),
    "above 1": 5 * MASK[None],
    "with gradient": MASK[None].requires_grad_(),
    "not contiguous": MASK.T.contiguous().T[None],
}


@pytest.mark.parametrize("shape", MASKS)
def test_a_mask_of_any_shape_says_the_same(host: FakeHost, frequency: Any, shape: str) -> None:
    wanted = (
        host.run("MoSs_TokenDispatch", frequency=frequency, mask=MASKS["(1,H,W)"].detach()).result[0].dispatch
    )
    found = host.run("MoSs_TokenDispatch", frequency=frequency, mask=MASKS[shape].clone()).result[0].dispatch
    assert all(torch.equal(a, b) for a, b in zip(wanted.cells, found.cells, strict=True))


GREY = torch.rand(1, 8, 8, 1)
PICTURES = {
    "(1,H,W,1)": GREY,
    "(1,H,W,2)": torch.cat([GREY, torch.ones_like(GREY)], -1),
    "(1,H,W,3)": GREY.expand(-1, -1, -1, 3),
    "(1,H,W,4)": torch.cat([GREY.expand(-1, -1, -1, 3), torch.ones_like(GREY)], -1),
    "(H,W,3)": GREY[0].expand(-1, -1, 3),
    "(1,1,H,W,3)": GREY.expand(-1, -1, -1, 3)[None],
    "double": GREY.double(),
}


@pytest.mark.parametrize("shape", PICTURES)
def test_a_picture_of_any_shape_shows_the_same(host: FakeHost, frequency: Any, shape: str) -> None:
    wanted = host.run("MoSs_TokenDispatch", frequency=frequency, image=PICTURES["(1,H,W,3)"]).result[1]
    assert torch.equal(
        host.run("MoSs_TokenDispatch", frequency=frequency, image=PICTURES[shape]).result[1], wanted
    )


@pytest.mark.parametrize("name", ["mask", "image"])
@pytest.mark.parametrize("shape", [(), (5,), (0, 4, 4, 3), (1, 0, 4), (2, 3, 4, 5, 6, 7), (1, 2, 4, 4, 4)])
def test_what_is_no_mask_and_no_picture_is_told(
    host: FakeHost, frequency: Any, name: str, shape: tuple
) -> None:
    with pytest.raises(ValueError, match=f"the {name} input (has the shape|holds)|the painted mask is"):
        host.run("MoSs_TokenDispatch", frequency=frequency, **{name: torch.zeros(shape)})


# --- 12: what is not supported ------------------------------------------------------------------------------


@pytest.fixture()
def notices(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the page is sent."""
    sent: list[dict] = []
    server = ModuleType("server")
    queue = SimpleNamespace(currently_running={})
    instance = SimpleNamespace(
        send_sync=lambda event, data: sent.append({event: data}), prompt_queue=queue
    )
    server.PromptServer = SimpleNamespace(instance=instance)
    monkeypatch.setitem(sys.modules, "server", server)
    return sent


ASKED = {
    "Set Area": {"area": (8, 8, 0, 0), "strength": 1.0},
    "Set Mask": {"mask": torch.ones(1, 4, 4), "mask_strength": 1.0},
    "Set Timestep Range": {"start_percent": 0.0, "end_percent": 0.5},
    "a ControlNet": {"control": object()},
    "GLIGEN": {"gligen": ("position", None, [])},
    "hooks": {"hooks": object()},
    "unCLIP": {"unclip_conditioning": [1]},
    "a reference picture": {"reference_latents": [1]},
    "a strength other than 1": {"strength": 0.5},
    "an inpainting picture": {"concat_latent_image": torch.ones(1)},
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_conditioning_asks_in_vain_is_said_once(
    host: FakeHost, parts: tuple, draft: Callable, notices: list, asked: str
) -> None:
    features, settings = parts[1].encode("a red circle")[0]
    draft([[features, settings | ASKED[asked]]])
    assert len(notices) == 1 and asked in notices[0]["moss.warning"]["text"]


def test_a_plain_conditioning_is_no_reason_to_warn(parts: tuple, draft: Callable, notices: list) -> None:
    draft(negative=parts[1].encode("a dog"))
    assert notices == []


@pytest.mark.parametrize(
    "text",
    [
        "a (red:1.2) circle",
        "a (red: .5) star",
        "a ((red)) circle",
        "[red:0.5] star",
        "<lora:style:1> star",
        "embedding:bad star",
        "a star BREAK a dog",
    ],
)
def test_prompt_weights_are_said_to_be_read_as_text(parts: tuple, notices: list, text: str) -> None:
    parts[1].encode(text)
    assert len(notices) == 1 and "has no prompt weights" in notices[0]["moss.warning"]["text"]


@pytest.mark.parametrize(
    "text", ["a circle (red)", "16:9 poster", "a photo (1:2 scale model, small)", "smile :)", "[old] book"]
)
def test_plain_punctuation_is_no_reason_to_warn(parts: tuple, notices: list, text: str) -> None:
    parts[1].encode(text)
    assert notices == []


# --- 13, 4 and 10: menus ------------------------------------------------------------------------------------


def menu(host: FakeHost, node: str, name: str) -> list[str]:
    return next(socket.options for socket in host.nodes[node].define_schema().inputs if socket.id == name)


def test_menus_are_told_by_content(host: FakeHost) -> None:
    folder = host.models / "infinity"
    folder.mkdir(parents=True)
    save_file(released_state(tiny_transformer()), folder / "mine.safetensors")
    save_file(released_vae_state(tiny_vae()), folder / "codec.safetensors")
    save_file({"a": torch.zeros(1)}, folder / "lora.safetensors")
    save_file(released_state(tiny_transformer()), folder / "model-00001-of-00002.safetensors")
    torch.save(real_files.infinity_trainer(released_state(tiny_transformer())), folder / "ar-ckpt-last.pth")
    real_files.litter(folder, "mine.safetensors")
    (host.models / "vae").mkdir()
    save_file(released_vae_state(tiny_vae()), host.models / "vae" / "ae.safetensors")
    assert {"mine.safetensors", "ar-ckpt-last.pth"} <= {*menu(host, "MoSs_LoadInfinity", "model")}
    assert {"codec.safetensors", "ae.safetensors"} <= {*menu(host, "MoSs_LoadInfinity", "vae")}
    every = {*menu(host, "MoSs_LoadInfinity", "model"), *menu(host, "MoSs_LoadInfinity", "vae")}
    assert not every & {
        "lora.safetensors",
        "model-00001-of-00002.safetensors",
        "._mine.safetensors",
        "training_args.bin",
    }


def test_hart_straight_in_its_folder_is_offered(host: FakeHost) -> None:
    real_files.write_hart(host.models / "hart")
    assert menu(host, "MoSs_LoadHART", "model") == ["llm/ema_model.bin"]
    model = host.run("MoSs_LoadHART", model="models/hart").result[0]
    assert model.files.folder == host.models / "hart"
    before = host.nodes["MoSs_LoadHART"].fingerprint_inputs("models/hart", "automatic")
    (host.models / "hart" / "llm" / "config.json").write_text(
        (host.models / "hart" / "llm" / "config.json").read_text() + " "
    )
    assert host.nodes["MoSs_LoadHART"].fingerprint_inputs("models/hart", "automatic") != before


def test_a_tokenizer_replaced_in_place_is_loaded_again(host: FakeHost) -> None:
    folder = host.models / "infinity" / "own"
    real_files.write_transformer(folder / "transformer.safetensors")
    real_files.write_vae(folder / "vae.safetensors")
    real_files.write_text(folder / "text")
    choice = ("own/transformer.safetensors", "automatic", "automatic", "auto")
    before = host.nodes["MoSs_LoadInfinity"].fingerprint_inputs(*choice)
    with (folder / "text" / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert host.nodes["MoSs_LoadInfinity"].fingerprint_inputs(*choice) != before


# --- 20 and fuzz: values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", ["60 30", "60;30", "60%, 30%", "[60, 30]", "60，30", "６０,３０", "60, 30,", "60/30"]
)
def test_bounds_are_understood_as_people_type_them(host: FakeHost, frequency: Any, values: str) -> None:
    found = host.run("MoSs_TokenDispatch", frequency=frequency, preset="custom bounds", values=values).result[
        0
    ]
    assert found.step.bounds == (60, 30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "abc"}, "seed is 'abc'; give it a whole number"),
        ({"seed": -1}, "seed must lie between 0 and"),
        ({"seed": 1.5}, "seed is 1.5; give it a whole number"),
        ({"cfg": float("nan")}, "cfg must lie between 0 and 20, got nan"),
        ({"tau": 1e9}, "tau must lie between 0 and 4"),
        ({"batch_size": 10**9}, "batch_size must lie between 1 and 64"),
        ({"aspect": "17:9"}, "aspect is '17:9'; choose one of 1:1"),
        ({"preview": "yes"}, "the input preview got 'yes'"),
        ({"model": None}, "the input model has no value"),
        ({"model": {"a": 1}}, "the input model got a dict, which is no MOSS_MODEL"),
        ({"refine_scales": True}, "refine_scales is True; give it a whole number"),
    ],
)
def test_values_of_another_kind_are_told_by_name(draft: Callable, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draft(**changes)


def test_a_whole_number_may_come_as_a_float(draft: Callable) -> None:
    assert draft(seed=3.0).draft.recipe.seeds == (3,)
