"""What upscale_file takes by keyword: one line for what it does not, before anything is read."""

from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from rasterio.windows import Window as RasterioWindow

from repmamba.errors import UsageError
from repmamba.scene.arguments import KINDS, Arguments, checked_arguments
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.tiles.window import Window


def test_every_argument_has_its_kind():
    assert list(KINDS) == list(Arguments.__annotations__)
    assert get_type_hints(Arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window", (0, 0, 32)),
        ("window", "0,0,32,32"),
        ("window", RasterioWindow(0.5, 0, 8, 8)),
        ("window", RasterioWindow(0, 0, float("inf"), 8)),
        ("bbox", (0, 1, 2)),
        ("bands", "3,2,1"),
        ("bands", 3),
        ("rgb", (3, 2)),
        ("value_range", "2720,6896"),
        ("value_range", 255),
        ("value_range", ("0", "1")),
        ("tile", 64.5),
        ("tile", True),
        ("halo", "8"),
        ("workers", "2"),
        ("scale", "4"),
        ("consistent", "no"),
        ("untrusted", 1),
        ("on_corrupt", "ignore"),
        ("creation", "COMPRESS=ZSTD"),
        ("confidence", 3),
        ("format", 7),
        ("max_pixels", 1e9),
        ("bands", [[1, "a\nb"]]),
    ],
)
@pytest.mark.parametrize("attempt", [upscale_file, plan_file])
def test_a_value_of_another_type_is_one_line_that_says_what_is_taken(attempt, name, value):
    with pytest.raises(UsageError, match=rf"^{name} is .*; it takes .*\.$") as refused:
        attempt("in.tif", "out.tif", **{name: value})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "meant"), [("range", "value_range"), ("co", "creation"), ("colour", None)]
)
def test_an_unknown_name_is_one_line_that_names_those_that_are_known(name, meant):
    with pytest.raises(UsageError, match=f"There is no option '{name}'") as refused:
        upscale_file("in.tif", "out.tif", **{name: (0, 1)})
    assert ("what you mean is" in str(refused.value)) == (meant is not None)
    assert meant is None or f"what you mean is {meant}." in str(refused.value)
    assert str(refused.value).endswith(f"There are {', '.join(KINDS)}.")


def test_what_is_given_comes_out_in_plain_types_and_none_is_left_out():
    given = {
        "tile": np.int64(64),
        "window": [1, 2, np.int32(30), 40],
        "bands": np.array([3, 1]),
        "value_range": np.array([0, 4000], np.float32),
        "consistent": np.bool_(False),
        "creation": {"ZLEVEL": 9},
        "confidence": Path("trust.tif"),
        "halo": None,
    }
    assert checked_arguments(given) == {
        "tile": 64,
        "window": Window(row=2, col=1, height=40, width=30),
        "bands": (3, 1),
        "value_range": (0.0, 4000.0),
        "consistent": False,
        "creation": {"ZLEVEL": "9"},
        "confidence": "trust.tif",
    }


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
def test_an_upscaler_that_is_made_already_takes_none_of_what_made_it(
    write_raster, bicubic, tmp_path, option
):
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
