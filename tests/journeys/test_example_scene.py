"""The bundled scene, and the picture that puts bicubic beside a result of it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCENE = EXAMPLES / "colorado.tif"
GAP, CAPTION = 8, 30


def test_the_bundled_scene_is_the_file_it_was_taken_from(geotiffs: Path):
    original = geotiffs / "201404_13SED190110_201404_0x1500m_CL_1_mask.tif"
    assert (
        hashlib.sha256(SCENE.read_bytes()).digest()
        == hashlib.sha256(original.read_bytes()).digest()
    )


@pytest.fixture(params=[2, 3, 4])
def enlarged(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[int, Path]:
    """A scale, and the scene enlarged by it, each pixel repeated."""
    scale: int = request.param
    with rasterio.open(SCENE) as lr:
        pixels = lr.read().repeat(scale, axis=1).repeat(scale, axis=2)
        place = {"crs": lr.crs, "transform": lr.transform @ rasterio.Affine.scale(1 / scale)}
    shape = {"count": 3, "height": pixels.shape[1], "width": pixels.shape[2], "dtype": "uint8"}
    with rasterio.open(tmp_path / "sr.tif", "w", driver="GTiff", **shape, **place) as sr:
        sr.write(pixels)
    return scale, tmp_path / "sr.tif"


@pytest.mark.parametrize("window", ["112,56,104,76", "0,0,20,10", "363,222,20,10"])
def test_the_three_panels_of_the_picture_show_the_same_ground(
    enlarged: tuple[int, Path], tmp_path: Path, window: str
):
    scale, sr = enlarged
    picture = tmp_path / "comparison.png"
    command = [
        sys.executable,
        EXAMPLES / "compare.py",
        SCENE,
        sr,
        "-o",
        picture,
        "--window",
        window,
    ]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout == f"{picture}\n"
    )

    pixels = np.asarray(Image.open(picture)).astype(int)[CAPTION:]
    width = (pixels.shape[1] + GAP) // 3
    given, bicubic, result = (
        pixels[:, left : left + width - GAP] for left in (0, width, 2 * width)
    )
    col, row, columns, rows = map(int, window.split(","))
    with rasterio.open(SCENE) as lr:
        truth = np.moveaxis(lr.read(window=((row, row + rows), (col, col + columns))), 0, -1)
    assert given.shape == (scale * rows, scale * columns, 3)
    assert (given == truth.repeat(scale, 0).repeat(scale, 1)).all()
    assert (result == given).all()
    assert 0 < np.abs(bicubic - given).mean() < 12  # smoother, but in the same place
