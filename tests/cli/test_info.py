"""repmamba info: what is installed, what a raster is, what a checkpoint is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from repmamba.cli.main import run
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba

SCENE = Path(__file__).resolve().parents[2] / "examples" / "colorado.tif"

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def facts_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def call(*arguments: object) -> Any:
        assert run(["info", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return write_checkpoint(
        file, Checkpoint.of(network, origin="made by a test", training={"steps": 3})
    )


def test_without_a_file_it_tells_versions_device_and_the_scan_with_its_reason(facts_of):
    facts = facts_of("--device", "cpu")
    assert facts["libraries"]["torch"] == torch.__version__
    assert facts["libraries"]["GDAL"] == rasterio.__gdal_version__
    assert facts["device"]["chosen"] == "cpu"
    assert facts["scan"]["there are"][facts["scan"]["backend"]] == "Runs on cpu."
    assert facts["scan"]["there are"]["triton"] == "Does not run on cpu: it is for cuda."
    assert facts["scan"]["why"]


def test_the_processor_is_named_as_where_costs_are_measured(
    facts_of, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "repmamba.evaluate.timing.processor", lambda device: f"A maker's {device} of 64 cores"
    )
    assert facts_of("--device", "cpu")["device"]["name"] == "A maker's cpu of 64 cores"


def test_the_scan_that_was_asked_for_is_the_one_it_tells(facts_of, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REPMAMBA_SCAN", "definition")
    scan = facts_of("--device", "cpu")["scan"]
    assert scan["backend"] == "definition"
    assert "REPMAMBA_SCAN" in scan["why"]


def test_a_raster_is_told_with_its_place_and_what_becomes_of_it(facts_of):
    facts = facts_of(SCENE, "--scale", 2)
    assert facts["size"] == "383 x 232 pixels"
    assert facts["bands"] == {"1": "red", "2": "green", "3": "blue"}
    assert facts["missing pixels"] == "by a mask"
    assert facts["place"]["crs"] == "EPSG:26913"
    assert facts["enlarged"]["size"] == "766 x 464 pixels"
    assert facts["enlarged"]["pixel"] == "0.07490776471 x 0.07499894793"


def test_bands_have_the_numbers_that_upscale_takes(facts_of, tmp_path: Path):
    file = tmp_path / "five.tif"
    shape = {"width": 8, "height": 6, "count": 5, "dtype": "uint8"}
    with rasterio.open(file, "w", driver="GTiff", photometric="RGB", alpha="YES", **shape) as five:
        five.write(np.full((5, 6, 8), 255, np.uint8))
        five.set_band_description(5, "near infrared")
    bands = facts_of(file)["bands"]
    assert bands["4"] == "alpha"
    assert bands["5"].endswith("near infrared")
    assert list(bands) == ["1", "2", "3", "4", "5"]


def test_what_a_run_decides_of_a_raster_is_told(facts_of, tmp_path: Path):
    file = tmp_path / "rgbanir.tif"
    shape = {"width": 40, "height": 30, "count": 5, "dtype": "int16", "nodata": -9999}
    values = np.random.default_rng(0).integers(200, 4000, (5, 30, 40)).astype(np.int16)
    values[3] = 255
    with rasterio.open(file, "w", driver="GTiff", photometric="RGB", alpha="YES", **shape) as five:
        five.write(values)
    facts = facts_of(file)
    assert (
        facts["missing pixels"] == "where alpha is 0; where a band is -9999, as the file declares"
    )
    assert facts["alpha"] == "band 4, as the file says (--no-alpha if it is data)"
    assert facts["colours"] == "red, green, blue are bands 1, 2, 3"
    low, high = np.percentile(values[:3], (0.5, 99.5))
    told = facts["value range"]
    assert [float(word) for word in told.split("; ")[0].split(" to ")] == pytest.approx(
        [low, high], abs=4
    )
    assert told.endswith(", the range of nearly all values of the scene, the default for this type")
    assert facts_of(SCENE)["alpha"] == "none"
    assert (
        facts_of(SCENE)["value range"] == "0 to 255, the limits of uint8, the default for this type"
    )


def test_a_number_that_looks_like_nodata_is_told_in_the_facts(facts_of, geotiffs: Path):
    told = facts_of(geotiffs / "cog_gcps.tif")["value range"]
    assert "; possibly undeclared nodata: 0 in 2.01 % of it, 26 below all others" in told


def test_of_a_large_or_a_damaged_raster_it_is_told_how_the_range_is_found(facts_of, tmp_path: Path):
    file = tmp_path / "large.tif"
    shape = {"width": 9000, "height": 9000, "count": 1, "dtype": "uint16"}
    with rasterio.open(file, "w", driver="GTiff", sparse_ok=True, tiled=True, **shape):
        pass
    assert "which upscale --dry-run finds by reading it" in facts_of(file)["value range"]
    file = tmp_path / "cut.tif"
    with rasterio.open(file, "w", driver="GTiff", **shape | {"width": 300, "height": 300}) as cut:
        cut.write(np.ones((1, 300, 300), np.uint16))
    file.write_bytes(file.read_bytes()[:90_000])
    assert facts_of(file)["value range"].startswith("unknown: ")


@pytest.mark.parametrize(
    ("bands", "told"),
    [
        (2, None),
        (3, "bands 1, 2, 3 one by one as grey (3 passes); if they are colours, give --rgb 1,2,3"),
        (
            4,
            "bands 1, 2, 3, 4 one by one as grey (4 passes); if the first three are colours, give --rgb "
            "1,2,3",
        ),
    ],
)
def test_bands_that_go_alone_are_told_where_they_may_be_colours(
    facts_of, tmp_path: Path, bands: int, told: str | None
):
    file = tmp_path / "deep.tif"
    shape = {
        "width": 8,
        "height": 6,
        "count": bands,
        "dtype": "uint16",
        "photometric": "MINISBLACK",
    }
    with rasterio.open(file, "w", driver="GTiff", **shape) as raster:
        raster.write(np.ones((bands, 6, 8), np.uint16))
    assert facts_of(file).get("through the network") == told


def test_of_colours_and_further_bands_those_that_go_alone_are_told(facts_of, tmp_path: Path):
    assert "through the network" not in facts_of(SCENE)
    file = tmp_path / "six.tif"
    shape = {
        "width": 8,
        "height": 6,
        "count": 6,
        "dtype": "uint8",
        "photometric": "RGB",
        "alpha": "NO",
    }
    with rasterio.open(file, "w", driver="GTiff", **shape) as raster:
        raster.write(np.ones((6, 6, 8), np.uint8))
    assert facts_of(file)["through the network"] == "bands 4, 5, 6 one by one as grey (3 passes)"


@pytest.mark.parametrize("name", ["product.SAFE", "product.zarr"])
def test_a_folder_that_is_a_raster_is_not_taken_for_a_checkpoint(capsys, tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    assert run(["info", str(tmp_path / name)]) == 1
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "weights" not in said


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cog_gcps.tif", {"ground control points": 210, "crs": "EPSG:4326"}),
        ("test_rpcs.tif", {"rational polynomials (RPC)": "in the tags"}),
    ],
)
def test_every_kind_of_place_is_told(facts_of, geotiffs: Path, name: str, place: dict[str, object]):
    assert facts_of(geotiffs / name)["place"] == place


def test_a_coordinate_system_without_a_code_is_told_by_its_name(facts_of, geotiffs: Path):
    assert facts_of(geotiffs / "image_nodata.tif")["place"]["crs"] == "Albers, without a code"


def test_a_picture_has_no_place(facts_of, tmp_path: Path):
    file = tmp_path / "grey.png"
    with rasterio.open(
        file, "w", driver="PNG", width=8, height=6, count=1, dtype="uint8"
    ) as raster:
        raster.write(np.zeros((1, 6, 8), np.uint8))
    assert facts_of(file)["place"] == {}


def test_a_raster_that_cannot_be_enlarged_is_one_line(capsys, geotiffs: Path):
    assert run(["info", str(geotiffs / "cint16.tif")]) == 1
    assert "complex" in capsys.readouterr().err


def test_a_checkpoint_is_told_with_its_configuration_and_training(facts_of, checkpoint: Path):
    facts = facts_of(checkpoint)
    assert facts["scale"] == 2
    assert facts["origin"] == "made by a test"
    assert facts["training"] == {"steps": 3}
    assert facts["configuration"]["depths"] == [1]
    assert list(facts["parameters"].values()) == sorted(facts["parameters"].values(), reverse=True)


def test_both_counts_that_are_called_folded_are_told_apart(capsys):
    assert run(["info", "x4"]) == 0
    shown = capsys.readouterr().out
    assert (
        "795,984 as trained, 785,184 RepConvs folded, as papers count, 628,576 all folded, as it "
        "runs" in shown
    )


def test_of_packaged_weights_ten_lines_are_printed_and_the_rest_is_in_the_json(capsys, facts_of):
    for name in ("x2", "x3", "x4"):
        assert run(["info", name]) == 0
        shown = capsys.readouterr().out
        assert shown.count("\n") <= 10
        assert f"repmamba info {name} --json" in shown
        assert re.search(r"^terms +\S", shown, re.MULTILINE)
    assert "recipe" in facts_of("x4")["training"]


def test_a_name_that_no_weights_have_is_told_with_those_that_there_are(capsys):
    assert run(["info", "x5"]) == 1
    said = capsys.readouterr().err
    assert (
        said
        == "Error: x5 is neither a file nor the name of packaged weights: x4, x3, x2, x4-real.\n"
    )
    assert run(["info", "x5.tif"]) == 1
    assert "x5.tif does not exist" in capsys.readouterr().err


def test_a_corrupt_checkpoint_is_one_line(capsys, tmp_path: Path):
    file = tmp_path / "broken.safetensors"
    file.write_bytes(b"\x10")
    assert run(["info", str(file)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_file_says_of_itself_cannot_steer_the_terminal(capsys, tmp_path: Path):
    file = tmp_path / "sly.tif"
    with rasterio.open(
        file, "w", driver="GTiff", width=8, height=6, count=1, dtype="uint8"
    ) as raster:
        raster.write(np.zeros((1, 6, 8), np.uint8))
        raster.set_band_description(1, "\x1b[2J\x1b]0;owned\x07")
    assert run(["info", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert "\x1b" not in shown


def test_a_name_longer_than_any_file_s_is_one_line(capsys):
    assert run(["info", "a" * 300]) == 1
    assert capsys.readouterr().err.count("\n") == 1
