"""Help pages, names and tooltips in both languages, and what the registry shows: all of it must agree with
the nodes.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakehost import Schema, Socket, installed
from hosting import Host, checkout
from PIL import Image

from comfy_moss.model.backbone import NANO, PAPER_BOUNDS
from comfy_moss.model.library import EMBEDDED, RELEASES, TEXT_ENCODER
from comfy_moss.pipeline.fastvar import FastVARConfig

ROOT = Path(__file__).resolve().parent.parent
# the host reads <node id>/<language>.md in it, and resolves the pages' pictures against it
DOCS = ROOT / "js" / "docs"
LANGUAGES = ("en", "zh")
PANEL = 240  # CSS pixels; the help panel's width until somebody widens it
NEEDED = {
    "__init__.py", "comfy_moss", "js", "kernels", "locales", "pyproject.toml", "requirements.txt",
    "workflows",
}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Schema]]:
    """Node id -> schema."""
    with installed(tmp_path_factory.mktemp("host")) as host:
        yield {name: node.define_schema() for name, node in host.start().nodes.items()}


def _page(node: str, language: str) -> str:
    return (DOCS / node / f"{language}.md").read_text(encoding="utf-8").replace("<wbr>", "")


def _locale(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def _sockets(node: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Name and tooltip of every input and output of a node in a locale."""
    yield from node["inputs"].values()
    yield from node["outputs"].values()


def _texts(node: dict[str, Any]) -> Iterator[str]:
    yield from (node["display_name"], node["description"])
    for socket in _sockets(node):
        yield from socket.values()


def _pictures() -> list[tuple[str, Path]]:
    """Page and file of every picture that a page shows."""
    shown = []
    for page in sorted(DOCS.rglob("*.md")):
        links = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        shown += [(f"{page.parent.name}/{page.name}", DOCS / link) for link in links]
    return shown


# --- pages --------------------------------------------------------------------------------------------------


def test_every_node_has_a_page_in_every_language_and_there_are_no_others(schemas: dict[str, Schema]) -> None:
    pages = {(page.parent.name, page.stem) for page in DOCS.rglob("*.md")}
    assert pages == {(node, language) for node in schemas for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_page_has_the_nodes_name_as_its_title_and_tells_about_every_input_and_output(language: str) -> None:
    for node, texts in _locale(language).items():
        page = _page(node, language)
        assert page.startswith(f"# {texts['display_name']}\n")
        assert [socket["name"] for socket in _sockets(texts) if f"- **{socket['name']}**" not in page] == []


def test_every_page_shows_one_picture_and_every_picture_is_shown() -> None:
    shown = _pictures()
    assert sorted(page for page, _ in shown) == sorted(
        f"{p.parent.name}/{p.name}" for p in DOCS.rglob("*.md")
    )
    assert {file for _, file in shown} == {file for file in DOCS.rglob("*.*") if file.suffix != ".md"}


@pytest.mark.parametrize("file", sorted({file for _, file in _pictures()}), ids=lambda file: file.parent.name)
def test_a_picture_is_small_to_load_and_sharp_in_the_panel(file: Path) -> None:
    with Image.open(file) as image:
        image.load()
        assert image.format == {".png": "PNG", ".jpg": "JPEG"}[file.suffix]
        assert image.width >= 2 * PANEL
    assert file.stat().st_size < 60_000


def test_pages_link_to_nothing_else() -> None:
    """The host would resolve a link to a file against its own address."""
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert re.findall(r"(?<!!)\[[^\]]*\]\([^)]*\)|<(?!wbr>)\w", pages) == []


# --- facts that pages repeat --------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_loaders_page_names_the_files_that_belong_together_side_by_side(language: str) -> None:
    lines = _page("MoSs_LoadInfinity", language).splitlines()
    assert any(TEXT_ENCODER in line for line in lines)
    for release in RELEASES.values():
        line = next(line for line in lines if release.transformer in line)
        assert release.vae in line or "same VAE" in line or "VAE 同上" in line


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_drafts_page_knows_every_models_own_guidance_and_temperature(language: str) -> None:
    page = _page("MoSs_InfinityDraft", language)
    models = {"nano": EMBEDDED, "125M": RELEASES["125m"], "2B": RELEASES["2b"], "8B": RELEASES["8b"]}
    for setting in ("cfg", "tau"):
        values = [f"{model} {getattr(release, setting):g}" for model, release in models.items()]
        assert re.search(r"[,，] ?".join(map(re.escape, values)), page)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_dispatch_page_has_the_papers_bounds(language: str) -> None:
    rows = re.findall(r"^\| (\d) \| ([\d, ]+)\|$", _page("MoSs_TokenDispatch", language), re.MULTILINE)
    assert {int(k): tuple(map(float, bounds.split(","))) for k, bounds in rows} == PAPER_BOUNDS
    page = _page("MoSs_TokenDispatch", language)
    assert all(
        ", ".join(f"{bound:g}" for bound in bounds) in page for searched in NANO.searched.values()
        for bounds in searched.values()
    )


@pytest.mark.parametrize(
    ("language", "needs"), [("en", "refine_scales {} or more"), ("zh", "细化尺度数须为 {} 或更大")]
)
def test_the_fastvar_page_says_how_many_scales_it_needs(language: str, needs: str) -> None:
    config = FastVARConfig()
    assert needs.format(config.skip + len(config.prune)) in _page("MoSs_FastVARRefine", language)


# --- names and tooltips -------------------------------------------------------------------------------------


def test_english_names_and_tooltips_are_those_of_the_nodes(schemas: dict[str, Schema]) -> None:
    def texts(socket: Socket) -> dict[str, str]:
        return {
            "name": socket.settings.get("display_name") or socket.id,
            "tooltip": socket.settings["tooltip"],
        }

    assert _locale("en") == {
        node: {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": {socket.id: texts(socket) for socket in schema.inputs},
            "outputs": {str(n): texts(socket) for n, socket in enumerate(schema.outputs)},
        }
        for node, schema in schemas.items()
    }


def test_chinese_covers_what_english_covers_and_is_chinese() -> None:
    def shape(node: dict[str, Any]) -> list[Any]:
        return [
            list(node),
            *((list(node[part]), [list(s) for s in node[part].values()]) for part in ("inputs", "outputs")),
        ]

    english, chinese = _locale("en"), _locale("zh")
    assert {name: shape(node) for name, node in chinese.items()} == {
        name: shape(node) for name, node in english.items()
    }
    assert [text for node in chinese.values() for text in _texts(node) if not text.strip()] == []
    told = [
        text
        for node in chinese.values()
        for text in (node["description"], *(s["tooltip"] for s in _sockets(node)))
    ]
    assert [text for text in told if not re.search(r"[\u4e00-\u9fff]", text)] == []


def test_no_two_nodes_and_no_two_inputs_of_a_node_share_a_name() -> None:
    for nodes in map(_locale, LANGUAGES):
        groups = [[node["display_name"] for node in nodes.values()]]
        groups += [[socket["name"] for socket in node["inputs"].values()] for node in nodes.values()]
        assert [names for names in groups if len(set(names)) != len(names)] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_hold_nothing_that_the_front_end_would_take_for_a_command(language: str) -> None:
    """Its translations use {} for values, @ for links and | for plurals."""
    assert [
        text for node in _locale(language).values() for text in _texts(node) if re.search(r"[{}@|]", text)
    ] == []


# --- the registry -------------------------------------------------------------------------------------------



def test_the_icon_is_square_and_as_large_as_the_registry_takes() -> None:
    with Image.open(ROOT / "icon.png") as icon:
        assert icon.format == "PNG" and icon.size == (400, 400)


def test_the_registrys_archive_holds_all_that_the_pack_needs_and_no_tests() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    try:
        left_out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
            "\0"
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    places = {path.split("/")[0] for path in left_out if path}
    assert "tests" in places and not places & NEEDED


# --- in a real host -----------------------------------------------------------------------------------------


@pytest.mark.host
@pytest.mark.skipif(checkout() is None, reason="no ComfyUI checkout; set COMFYUI_PATH to one")
def test_the_host_serves_pages_pictures_and_both_languages() -> None:
    with Host() as host:
        known, translations = host.get("/object_info"), host.get("/i18n")
        for language in LANGUAGES:
            assert translations[language]["nodeDefs"].items() >= _locale(language).items()
        for node, texts in _locale("en").items():
            inputs = known[node]["input"]["required"] | known[node]["input"].get("optional", {})
            tooltips = {name: options["tooltip"] for name, (_, options) in inputs.items()}
            assert tooltips == {name: socket["tooltip"] for name, socket in texts["inputs"].items()}
            assert known[node]["output_name"] == [socket["name"] for socket in texts["outputs"].values()]
            for language in LANGUAGES:
                served = host.get(f"/extensions/ComfyUI-MoSs/docs/{node}/{language}.md")
                assert served.decode().replace("<wbr>", "") == _page(node, language)
        for _, file in _pictures():
            served = host.get(f"/extensions/ComfyUI-MoSs/docs/{file.relative_to(DOCS).as_posix()}")
            assert served == file.read_bytes()
