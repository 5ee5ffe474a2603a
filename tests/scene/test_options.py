"""The options of upscale_file: explicit keywords, each in a group that checks it before a read."""

import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window as RasterioWindow

from repmamba.errors import UsageError
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.options import NetworkOptions, RunOptions, SceneOptions
from repmamba.scene.source.admission import ReadOptions
from repmamba.tiles.window import Window

GROUPS = (NetworkOptions, ReadOptions, SceneOptions, RunOptions)


def test_every_keyword_is_in_a_group_with_the_same_default():
    keywords = inspect.signature(upscale_file).parameters
    in_groups = {field.name: field.default for group in GROUPS for field in fields(group)}
    apart = {"source", "target", "weights", "progress", "assembling", "measuring"}
    assert in_groups == {
        name: keyword.default for name, keyword in keywords.items() if name not in apart
    }


def test_a_plan_takes_what_a_run_takes():
    planned, run = inspect.signature(plan_file), inspect.signature(upscale_file)
    assert planned.parameters == run.parameters
    assert planned.return_annotation == "Estimate"


def test_the_docstring_describes_every_argument():
    described = {
        line.strip().partition(":")[0] for line in inspect.getdoc(upscale_file).split("\n")
    }
    assert set(inspect.signature(upscale_file).parameters) <= described


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"window": RasterioWindow(0.5, 0, 8, 8)}, "give whole numbers of pixels"),
        ({"window": RasterioWindow(0, 0, float("inf"), 8)}, "give whole numbers of pixels"),
        ({"bbox": (0, 1, 2, float("nan"))}, "give four finite numbers"),
        ({"window": (0, 0, 8, 8), "bbox": (0, 1, 2, 3)}, "give one of them"),
        ({"bands": "3,2,1"}, "'3,2,1' is one text: give the numbers or names of bands as a list"),
        ({"rgb": "red"}, "'red' is one text"),
        ({"value_range": "2720,6896"}, "give two numbers .* or 'robust' or 'type'"),
        ({"tile": 63}, "tile=63: expected an even number"),
        ({"tile": True}, "tile=1: expected an even number"),
        ({"halo": -2}, "halo=-2: expected an even number"),
        ({"on_corrupt": "ignore"}, "on_corrupt='ignore': give 'error' or 'fill'"),
        ({"workers": 2, "cluster": "tcp://host:8786"}, "give workers= or cluster="),
    ],
    ids=str,
)
@pytest.mark.parametrize("attempt", [upscale_file, plan_file])
def test_a_value_that_makes_no_sense_is_one_line(attempt, option, said):
    with pytest.raises(UsageError, match=said) as refused:
        attempt("in.tif", "out.tif", **option)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "option",
    [
        {"window": (0, 0, 32)},
        {"bbox": (0, 1, 2)},
        {"bands": 3},
        {"value_range": 255},
        {"tile": 64.5},
        {"halo": "8"},
        {"creation": "COMPRESS=ZSTD"},
        {"confidence": 3},
        {"range": (0, 1)},
    ],
    ids=str,
)
def test_another_type_or_name_is_an_error_of_python_and_writes_nothing(
    write_raster, tmp_path, bicubic, option
):
    path = write_raster("in.tif", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises((TypeError, ValueError)):
        upscale_file(path, tmp_path / "out.tif", bicubic, **option)
    assert list(tmp_path.iterdir()) == [path]


def test_values_are_kept_as_plain_types():
    scene = SceneOptions(
        tile=np.int64(64),
        window=[1, 2, np.int32(30), 40],
        bands=np.array([3, 1]),
        value_range=np.array([0, 4000], np.float32),
        consistent=np.bool_(False),
        creation={"ZLEVEL": 9},
    )
    assert scene == SceneOptions(
        tile=64,
        window=Window(row=2, col=1, height=40, width=30),
        bands=(3, 1),
        value_range=(0.0, 4000.0),
        consistent=False,
        creation={"ZLEVEL": "9"},
    )
    kept = (scene.tile, scene.consistent, *scene.bands, *scene.value_range)
    assert [type(value) for value in kept] == [int, bool, int, int, float, float]
    assert RunOptions(confidence="trust.tif").confidence == Path("trust.tif")
    assert [ReadOptions(nodata=given).nodata for given in (0, np.int16(0), [0, np.nan])][:2] == [
        (0.0,),
        (0.0,),
    ]


@pytest.mark.parametrize("other", ["overwrite", "restart"])
def test_a_finished_result_is_not_kept_where_it_is_to_be_made_anew(other):
    assert RunOptions(keep_finished=True).keep_finished
    assert not RunOptions(keep_finished=True, **{other: True}).keep_finished


@pytest.mark.parametrize(
    "option",
    [
        {"scale": 3},
        {"device": "cpu"},
        {"backend": "native"},
        {"precision": "bfloat16"},
        {"ensemble": True},
    ],
)
def test_a_loaded_upscaler_takes_no_options_of_load(write_raster, bicubic, tmp_path, option):
    path = write_raster("in.tif", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UsageError, match="The Upscaler bicubic is"):
        plan_file(path, tmp_path / "out.tif", bicubic, **option)
    assert (
        plan_file(path, tmp_path / "out.tif", bicubic, scale=bicubic.scale, ensemble=False).scale
        == bicubic.scale
    )


@pytest.mark.parametrize("window", [(4, 2, 8, 6), RasterioWindow(4, 2, 8, 6), Window(2, 4, 6, 8)])
def test_a_window_is_columns_first_as_on_the_command_line_and_in_rasterio(
    write_raster, bicubic, tmp_path, window
):
    path = write_raster("in.tif", np.arange(3 * 20 * 24, dtype=np.uint16).reshape(3, 20, 24))
    result = upscale_file(path, tmp_path / "out.tif", bicubic, window=window)
    assert (result.grid.width, result.grid.height) == (8 * bicubic.scale, 6 * bicubic.scale)
    assert result.grid.transform @ (0, 0) == (500040, 4099980)
