"""`rio repmamba`: a command of rasterio's rio, as rio itself calls it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from click.testing import CliRunner, Result
from rasterio.rio.main import main_group

from repmamba.cli.rio import repmamba
from repmamba.cli.upscale import upscale
from repmamba.scene.engine import upscale_file


def rio(*arguments: object) -> Result:
    return CliRunner().invoke(main_group, [str(argument) for argument in arguments])


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.tif"
    numbers = np.random.default_rng(0).integers(40, 200, (4, 48, 64)).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 4, "height": 48, "width": 64, "dtype": "uint8"}
    place = {"crs": "EPSG:32613", "transform": Affine(10, 0, 500000, 0, -10, 4000000)}
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(numbers)
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["repmamba", "--help"]], ids=" ".join)
def test_rio_lists_and_explains_the_command_without_torch(arguments):
    code = (
        "import sys; from rasterio.rio.main import main_group; "
        f"main_group({arguments!r}, standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "repmamba" in process.stdout
    assert "Upscale" in process.stdout


@pytest.mark.parametrize(
    "bounds", ["500100 3999700 500300 3999900", "[500100, 3999700, 500300, 3999900]"]
)
def test_the_options_of_rio_give_the_pixels_of_upscale_file(scene, tiny_weights, tmp_path, bounds):
    weights, ours = tiny_weights(2), tmp_path / "ours.tif"
    options = ["--bounds", bounds, "-b", 4, "-b", "3,2", "--rgb", "4,3,2", "--co", "compress=none"]
    done = rio("repmamba", scene, tmp_path / "a.png", "-f", "gtiff", "--weights", weights, *options)
    assert done.exit_code == 0, done.output
    upscale_file(
        scene,
        ours,
        weights,
        bbox=(500100, 3999700, 500300, 3999900),
        bands=(4, 3, 2),
        rgb=(4, 3, 2),
        creation={"compress": "none"},
    )
    with rasterio.open(tmp_path / "a.png") as result, rasterio.open(ours) as expected:
        assert result.driver == "GTiff"
        assert result.compression is None
        assert (result.profile, result.bounds) == (expected.profile, expected.bounds)
        assert tuple(result.bounds) == (500100, 3999700, 500300, 3999900)
        assert (result.read() == expected.read()).all()


def test_every_option_of_upscale_is_one_of_rio_except_quiet_and_json():
    flags = {flag for param in repmamba.params for flag in (*param.opts, *param.secondary_opts)}
    missing = {
        param.name
        for param in upscale.params
        if param.param_type_name == "option" and not {*param.opts, *param.secondary_opts} <= flags
    }
    assert missing == {"quiet", "as_json"}  # rio has its own -q


def test_output_is_positional_or_an_option_and_a_folder_for_several_inputs(
    scene, tiny_weights, tmp_path
):
    other = tmp_path / "other.tif"
    other.write_bytes(scene.read_bytes())
    with_weights = ["--weights", tiny_weights(2)]
    done = rio("repmamba", scene, other, "-o", tmp_path / "option", *with_weights)
    assert done.exit_code == 0, done.output
    assert "2 inputs: 2 upscaled" in done.output
    done = rio("-q", "repmamba", scene, other, tmp_path / "last", *with_weights)
    assert (done.exit_code, done.output) == (0, "")
    for folder in ("option", "last"):
        names = {path.name for path in (tmp_path / folder).glob("*.tif")}
        assert names == {"scene_x2.tif", "other_x2.tif"}


def test_an_existing_file_is_only_replaced_with_overwrite(scene, tiny_weights, tmp_path):
    target = tmp_path / "out.tif"
    target.write_text("kept")
    call = ["repmamba", scene, target, "--weights", tiny_weights(2)]
    refused = rio(*call)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output
    assert target.read_text() == "kept"
    assert rio(*call, "--overwrite").exit_code == 0
    with rasterio.open(target) as result:
        assert result.shape == (96, 128)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.tif", "out.tif"], 1, "nowhere.tif does not exist"),
        (["only.tif"], 2, "There is only one file, only.tif: give INPUT and OUTPUT."),
        (["{scene}", "out.tif", "-b", "9"], 2, "band"),
        (["{scene}", "out.tif", "--scale", "5"], 2, "--scale"),
        (["{scene}", "out.tif", "--bounds", "1 2 3"], 2, "bounding box"),
        (["{scene}", "out.tif", "--weights", "nope"], 1, "There are no weights 'nope'"),
    ],
)
def test_a_wrong_call_gets_one_line(scene, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    failed = rio("repmamba", *(argument.format(scene=scene) for argument in arguments))
    assert failed.exit_code == code, failed.output
    (line,) = (line for line in failed.output.splitlines() if line.startswith("Error: "))
    assert message in line
    assert isinstance(failed.exception, SystemExit)
    assert not Path("out.tif").exists()
