"""docs/python.md and the README: their examples run, in their order, and tables have every argument
there is.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import repmamba
from repmamba.data.images import write_png
from repmamba.evaluate.metrics import METRICS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "python.md").read_text("utf-8")
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def where_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the files that the page names, and a hub that has its repository."""
    from repmamba.network.config import NetworkConfig
    from repmamba.network.repmamba import RepMamba

    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    folder = repmamba.save_pretrained(network, tmp_path / "on the hub")
    (tmp_path / "mine.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(folder))
    numbers = np.random.default_rng(0).integers(0, 4000, (4, 40, 60)).astype(np.uint16)
    numbers[:, :5, :5] = 0
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 4100000, 10, 10), "nodata": 0}
    with rasterio.open(
        tmp_path / "scene.tif",
        "w",
        driver="GTiff",
        count=4,
        height=40,
        width=60,
        dtype="uint16",
        **place,
    ) as scene:
        scene.write(numbers)
    for part, edge in (("GT", 32), ("LR", 16)):
        write_png(tmp_path / "pairs" / part / "1.png", np.full((edge, edge, 3), 90, np.uint8))
    monkeypatch.chdir(tmp_path)
    yield
    METRICS.pop("mine.mae", None)  # an example registers it


@pytest.mark.usefixtures("where_the_examples_run")
def test_the_examples_run_one_after_the_other():
    names: dict[str, object] = {}
    for example in EXAMPLE.findall(PAGE):
        exec(example, names)
    assert isinstance(names["masked"], np.ma.MaskedArray)
    for result in (
        "scene_x4.tif",
        "part.cog.tif",
        "from_xarray.tif",
        "evaluation.html",
        "ours/model.safetensors",
    ):
        assert Path(result).is_file()


@pytest.mark.usefixtures("where_the_examples_run")
def test_the_example_of_the_readme_runs():
    (example,) = EXAMPLE.findall((DOCS.parent / "README.md").read_text("utf-8"))
    names: dict[str, Any] = {
        "array": np.zeros((9, 8, 3), np.uint8),
        "tensor": torch.zeros(1, 3, 9, 8),
    }
    exec(example, names)
    assert Path("scene_x4.tif").is_file()
    assert names["large"].shape == (1, 3, 36, 32)


def arguments_in(section: str) -> set[str]:
    """What the tables of a section have in their first column."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(section)]
    rows = re.findall(r"^\| (`[^|]*) \|", found, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_tables_have_every_argument_and_no_other():
    def of(function: Callable[..., object], *, but: set[str]) -> set[str]:
        return set(inspect.signature(function).parameters) - but

    assert arguments_in("Weights: load") == of(repmamba.load, but=set())
    assert arguments_in("Arrays: Upscaler.upscale") == of(
        repmamba.Upscaler.upscale, but={"self", "array"}
    )
    assert arguments_in("Other programs: export") == of(repmamba.export, but=set())
    assert arguments_in("Benchmarks: evaluate_folders") == of(repmamba.evaluate_folders, but=set())
    of_files = of(repmamba.upscale_file, but={"source", "target", "weights"})
    assert arguments_in("Files: upscale_file") == of_files


def test_the_page_names_every_name_of_the_front_door_and_every_error():
    errors = {name for name, found in vars(repmamba.errors).items() if isinstance(found, type)}
    for name in {*repmamba.__all__, *errors} - {"__version__"}:
        assert f"`{name}`" in PAGE, name
