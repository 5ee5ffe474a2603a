"""The commands and Python of README, tutorials and how-tos run, page by page, from top to bottom.

They run in a folder with the files that the pages name. A block that cannot run here says why in a
comment before it: `<!-- not run: needs several GPUs -->`. Verbs and options of those are checked by
tests/test_pages.py.
"""

import ast
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.rio.main import main_group as rio
from rasterio.transform import from_origin

import repmamba
from repmamba.cli import main as command_line
from repmamba.data.images import write_png
from repmamba.evaluate.metrics import METRICS

CHECKOUT = Path(__file__).resolve().parents[1]
DOCS = CHECKOUT / "docs"
PAGES = [
    CHECKOUT / "README.md",
    *sorted((DOCS / "tutorials").glob("*.md")),
    *sorted((DOCS / "how-to").glob("*.md")),
    DOCS / "reference" / "cli" / "export.md",
]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RUN, SHOWN = ("bash", "python"), ("text",)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page: bash or Python, and why it does not run here, if it does not."""

    language: str
    text: str
    reason: str | None


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    return [
        Block(found["language"], found["text"], found["reason"]) for found in BLOCK.finditer(page)
    ]


def commands_of(text: str) -> list[list[str]]:
    """The commands of a block of bash, as words; patterns of file names are expanded."""
    lines = text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [[name for word in words for name in _expanded(word)] for words in commands if words]


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def run_command(words: list[str]) -> int:
    """Run a command of a page in this process; its exit code."""
    match words:
        case ["repmamba", *arguments]:
            return command_line.run(arguments)
        case ["rio", *arguments]:
            rio(arguments, standalone_mode=False)
            return 0
        case ["python", script, *arguments]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [script, *arguments])
                runpy.run_path(script, run_name="__main__")
            return 0
    raise AssertionError(f"{words[0]} does not run here: say so in a comment before the block")


def write_scene(path: Path) -> None:
    """Four bands of reflectance in 16 bit with missing pixels, from the bundled scene."""
    with rasterio.open(CHECKOUT / "examples" / "colorado.tif") as photo:
        red, green, blue = photo.read(window=((64, 112), (64, 136))).astype(np.uint16)
    bands = np.stack([blue, green, red, green]) * 14 + 300
    bands[:, :5, :5] = 0
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 4100000, 10, 10), "nodata": 0}
    shape = {"count": 4, "height": 48, "width": 72, "dtype": "uint16"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as scene:
        scene.write(bands)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name."""
    from repmamba.network.config import NetworkConfig
    from repmamba.network.repmamba import RepMamba

    folder = tmp_path_factory.mktemp("material")
    hub = repmamba.save_pretrained(
        RepMamba(NetworkConfig(scale=2, depths=(1,))), folder / "on the hub"
    )
    (folder / "mine.safetensors").write_bytes((hub / "model.safetensors").read_bytes())
    repmamba.export(folder / "mine.safetensors", folder / "x4.onnx")
    write_scene(folder / "scene.tif")
    write_scene(folder / "tiles" / "north" / "a.tif")
    edges = {"pairs/GT": 32, "pairs/LR": 16, "theirs": 64, "aid_x4/test/GT": 64}
    edges |= {"aid_x4/test/LR": 16, "images/train": 64, "images/val": 64, "images/test": 64}
    draw = np.random.default_rng(0)
    for part, edge in edges.items():
        picture = draw.integers(0, 256, (edge, edge, 3)).astype(np.uint8)
        write_png(folder / part / "1.png", picture)
    return folder


@pytest.fixture
def workplace(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the material, as the current folder, and a hub that has its repository."""
    here = shutil.copytree(material, tmp_path / "here")
    (here / "examples").symlink_to(CHECKOUT / "examples")
    hub = str(here / "on the hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: hub)
    monkeypatch.chdir(here)
    yield here
    METRICS.pop("mine.mae", None)  # a page registers it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_the_blocks_of_a_page_run_from_top_to_bottom(
    page: Path, workplace: Path, capfd: pytest.CaptureFixture[str]
):
    names = {"array": np.zeros((9, 8, 3), np.uint8), "tensor": torch.zeros(1, 3, 9, 8)}
    for block in blocks_of(page.read_text("utf-8")):
        if block.reason is not None or block.language in SHOWN:
            continue
        assert block.language in RUN, f"{block.language}: run it, or say why not"
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), names)
            continue
        for words in commands_of(block.text):
            code = run_command(words)
            assert code == 0, f"{shlex.join(words)}\n{capfd.readouterr().err}"


def test_what_does_not_run_is_well_formed_and_little():
    blocks = [block for page in PAGES for block in blocks_of(page.read_text("utf-8"))]
    for block in blocks:
        assert block.language in RUN + SHOWN
        if block.language == "python":
            ast.parse(block.text)
    assert sum(block.reason is not None for block in blocks) < len(blocks) / 3


@pytest.mark.parametrize("folder", ["tutorials", "how-to"])
def test_commands_of_tutorials_and_how_tos_are_in_blocks_that_run(folder: str):
    for page in (DOCS / folder).glob("*.md"):
        assert re.findall(r"^ {4}(?:\$ )?repmamba .*$", page.read_text("utf-8"), re.M) == [], page


def test_a_block_that_fails_is_seen(workplace: Path):
    page = "```bash\nrepmamba verify \\\n  scene.tif\n```\n\n<!-- not run: why -->\n```python\n1\n```\n"
    first, second = blocks_of(page)
    (words,) = commands_of(first.text)
    assert words == ["repmamba", "verify", "scene.tif"]
    assert run_command(words) == 1  # there is no receipt
    assert second.reason == "why"
    with pytest.raises(AssertionError, match="docker does not run here"):
        run_command(["docker", "run"])
