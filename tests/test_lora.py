"""LoRAs: files of every scheme change the matrices they name, exactly; others are refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import tiny_backbone, write_model
from fakehost import installed
from lora_builders import LAYERS, SCHEMES, halves, kohya
from PIL import Image
from safetensors.torch import load_file, save_file
from test_limits import make_recipe

from comfy_moss import cli, images, request
from comfy_moss.model.lora import changed_id, merged, read_lora, shapes_of
from comfy_moss.model.tensors import CheckpointError
from comfy_moss.pipeline.draft import draw_draft

SHAPES = shapes_of(tiny_backbone())


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return images.from_pillow(image.convert("RGB"))


def state(backbone: object) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.transformer.state_dict().items()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_of_any_scheme_changes_exactly_what_it_names(tmp_path: Path, scheme: str) -> None:
    pairs = halves(SHAPES)
    scale = SCHEMES[scheme](tmp_path / "style.safetensors", pairs)
    lora = read_lora(tmp_path / "style.safetensors", SHAPES)
    model = tiny_backbone()
    before = state(model)
    after = state(merged(model, [(lora, 0.5)]))
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        if layer in pairs and name.endswith(".weight"):
            down, up = pairs[layer]
            assert torch.equal(after[name], weight + 0.5 * (scale * (up @ down)))
        else:
            assert torch.equal(after[name], weight)
    assert set(lora.changes) == {f"{layer}.weight" for layer in LAYERS} and lora.ignored == 0


def test_a_file_that_leaves_blocks_out_has_the_chunks_of_released_models(tmp_path: Path) -> None:
    deep = shapes_of(tiny_backbone(depth=16))
    for place, block in (("0.module.1", 1), ("3.module.0", 6), ("7.module.1", 15)):
        stem = f"block_chunks.{place}.sa.proj"
        halves = {f"{stem}.lora_down.weight": torch.ones(2, 32), f"{stem}.lora_up.weight": torch.ones(32, 2)}
        save_file(halves, tmp_path / "style.safetensors")
        found = read_lora(tmp_path / "style.safetensors", deep)
        assert set(found.changes) == {f"blocks.{block}.sa.proj.weight"}


def test_several_add_up_and_zeros_change_nothing(tmp_path: Path) -> None:
    pairs = halves(SHAPES)
    nothing = {layer: (down, torch.zeros_like(up)) for layer, (down, up) in pairs.items()}
    kohya(tmp_path / "a.safetensors", pairs), kohya(tmp_path / "zero.safetensors", nothing)
    lora, zero = (read_lora(tmp_path / f"{name}.safetensors", SHAPES) for name in ("a", "zero"))
    once, twice = (state(merged(tiny_backbone(), [(lora, 1.0)] * n)) for n in (1, 2))
    plain, same = state(tiny_backbone()), state(merged(tiny_backbone(), [(zero, 3.0)]))
    for name in plain:
        assert torch.equal(same[name], plain[name])
        assert torch.allclose(twice[name] - plain[name], 2 * (once[name] - plain[name]), atol=1e-5)
    models = tiny_backbone(), *(merged(tiny_backbone(), [(one, 1.0)]) for one in (lora, zero))
    expected, changed, same = (draw_draft(model, make_recipe(), 5)[0].total for model in models)
    assert torch.equal(same, expected) and not torch.equal(changed, expected)


def test_weights_with_other_loras_have_another_name(tmp_path: Path) -> None:
    for name, size in (("a", 0.3), ("b", 0.2)):
        kohya(tmp_path / f"{name}.safetensors", halves(SHAPES, size=size))
    a, b = (read_lora(tmp_path / f"{name}.safetensors", SHAPES) for name in "ab")
    kinds = [], [(a, 1.0)], [(a, 0.5)], [(b, 1.0)], [(a, 1.0), (b, 1.0)]
    assert len({changed_id("x", loras) for loras in kinds}) == len(kinds)


def test_what_changes_text_encoder_or_codec_is_ignored_and_counted(tmp_path: Path) -> None:
    pairs, extra = halves(SHAPES), torch.zeros(3, 8)
    kohya(tmp_path / "a.safetensors", pairs)
    more = load_file(tmp_path / "a.safetensors")
    for stem in ("lora_te_encoder_block_0_q", "vae.decoder.conv_in"):
        more |= {f"{stem}.lora_down.weight": extra.clone(), f"{stem}.lora_up.weight": extra.T.contiguous()}
    save_file(more, tmp_path / "b.safetensors")
    lora = read_lora(tmp_path / "b.safetensors", SHAPES)
    assert lora.ignored == 2 and set(lora.changes) == {f"{layer}.weight" for layer in LAYERS}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (3, 8)}, "no LoRA for this model"),
        ({"lora_te_block_0_q.lora_down.weight": (3, 8)}, "changes text encoder or codec alone"),
        ({"blocks.0.sa.mat_qkv.lora_A.weight": (3, 32)}, "lacks a half of the change of blocks.0.sa.mat_qkv"),
        (
            {"blocks.0.sa.proj.lora_A.weight": (3, 64), "blocks.0.sa.proj.lora_B.weight": (64, 3)},
            "made for a model of another size",
        ),
        ({"blocks.0.sa.proj.hada_w1_a": (3, 32)}, "is a LoHa"),
        ({"blocks.0.sa.proj.lokr_w1": (3, 3)}, "is a LoKr"),
        (
            {
                f"block_chunks.{n}.module.2.sa.proj.lora_{half}.weight": size
                for n in (0, 1) for half, size in (("A", (3, 32)), ("B", (32, 3)))
            },
            "changes 2 chunks of 3 blocks and this model has 2 blocks",
        ),
        ({"something": (2, 2)}, "no LoRA for this model"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, state: dict, sentence: str) -> None:
    save_file({name: torch.zeros(size) for name, size in state.items()}, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=sentence) as told:
        read_lora(tmp_path / "style.safetensors", SHAPES)
    assert str(told.value).startswith("style.safetensors") and "\n" not in str(told.value)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"blocks.0.sa.proj.lora_A.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError):
        read_lora(tmp_path / "bad.pth", SHAPES)
    assert not (tmp_path / "ran").exists()


def test_weights_in_8_bits_are_refused(tmp_path: Path) -> None:
    kohya(tmp_path / "a.safetensors", halves(SHAPES))
    model = tiny_backbone()
    model.transformer.blocks[0].sa.mat_qkv.weight.data = torch.zeros(96, 32, dtype=torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match="cannot be added to weights in 8 bits"):
        merged(model, [(read_lora(tmp_path / "a.safetensors", SHAPES), 1.0)])


def test_the_command_line_draws_with_it_and_its_recipe_says_so(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kohya(tmp_path / "style.safetensors", halves(SHAPES))
    order = ["generate", "a red cat", "--model", str(model_dir), "--pixels", "0.06M"]
    seen = {}
    for name, options in {
        "plain": [], "none": ["--lora", f"{tmp_path / 'style.safetensors'}:0"],
        "style": ["--lora", f"{tmp_path / 'style.safetensors'}:0.5"],
    }.items():
        assert cli.main([*order, "-o", str(tmp_path / f"{name}.png"), *options]) == 0
        seen[name] = pixels(tmp_path / f"{name}.png")
    assert torch.equal(seen["plain"], seen["none"]) and not torch.equal(seen["plain"], seen["style"])
    recipe = images.read_recipe(tmp_path / "style.png")
    assert recipe["lora"] == [f"{tmp_path / 'style.safetensors'}:0.5"]
    command, *rest = request.arguments(recipe | {"model": str(model_dir)})
    assert cli.main([command, "-o", str(tmp_path / "again.png"), *rest]) == 0
    assert torch.equal(pixels(tmp_path / "again.png"), seen["style"])
    capsys.readouterr()
    assert cli.main([*order, "--lora", "gone.safetensors"]) == 2
    assert "there is no LoRA gone.safetensors" in capsys.readouterr().err


def test_the_node_makes_another_model_on_the_same_weights(tmp_path: Path) -> None:
    with installed(tmp_path) as host:
        write_model(host.models / "infinity" / "tiny")
        (host.models / "loras").mkdir()
        kohya(host.models / "loras" / "style.safetensors", halves(SHAPES))
        host.start()
        model = host.run("MoSs_LoadInfinity", model="tiny/transformer.safetensors").result[0]
        changed = host.run("MoSs_LoadLora", model=model, lora="style.safetensors", strength=0.5).result[0]
        twice = host.run("MoSs_LoadLora", model=changed, lora="style.safetensors", strength=1.0).result[0]
        none = host.run("MoSs_LoadLora", model=model, lora="style.safetensors", strength=0.0).result[0]
        assert none is model
        assert [len(one.patcher.patches) for one in (model, changed, twice)] == [0, 1, 2]
        assert changed.patcher.model is model.patcher.model and changed.store is not model.store
        assert len({one.backbone.model_id for one in (model, changed, twice)}) == 3
        with pytest.raises(ValueError, match="there is no LoRA 'gone.safetensors'"):
            host.run("MoSs_LoadLora", model=model, lora="gone.safetensors")


def test_the_included_lora_is_the_first_choice_and_fits_the_embedded_model(tmp_path: Path) -> None:
    with installed(tmp_path) as host:
        (host.models / "loras").mkdir(parents=True)
        kohya(host.models / "loras" / "style.safetensors", halves(SHAPES))
        nodes = host.start().nodes
        menu = next(s for s in nodes["MoSs_LoadLora"].define_schema().inputs if s.id == "lora")
        assert menu.settings["options"] == ["nano-night (embedded)", "style.safetensors"]
        model = host.run("MoSs_LoadInfinity", model="nano (embedded)").result[0]
        changed = host.run("MoSs_LoadLora", model=model, lora=menu.settings["options"][0], strength=1.0)
        assert len(changed.result[0].patcher.patches) == 1


