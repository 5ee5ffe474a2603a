"""The map of the page: its display copies and tiles hold the pixels of the input and the result."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.errors import RasterioIOError
from rasterio.io import MemoryFile
from rasterio.warp import transform as transform_points

from repmamba.errors import NoSpace
from repmamba.gdal import created, opened
from repmamba.scene.engine import upscale_file
from repmamba.service import display, map_tiles

from .conftest import Server, picture

WORLD = 20037508.342789244  # metres from the middle of a Web Mercator map to its edge
HEIGHT, WIDTH = 40, 50
NOISE = np.random.default_rng(0).integers(1, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
UTM = Affine(9, 0, 500_000, 0, -9, 5_000_000)  # a place in zone 32
AROUND = Affine(360 / WIDTH, 0, -180, 0, -180 / HEIGHT, 90)


def points(place: Affine) -> list[GroundControlPoint]:
    corners = ((0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH))
    return [GroundControlPoint(row, col, *(place @ (col, row))) for row, col in corners]


PLACED: dict[str, dict[str, Any]] = {
    "projected": {"crs": "EPSG:32632", "transform": UTM},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(1.2e-4, 0, -70.1, 0, -1e-4, -30.2)},
    "south up": {"crs": "EPSG:32632", "transform": Affine(9, 0, 500_000, 0, 9, 5_000_000)},
    "rotated": {"crs": "EPSG:32632", "transform": UTM @ Affine.rotation(30) @ Affine.scale(0.77)},
    "Web Mercator": {"crs": "EPSG:3857", "transform": Affine(13, 0, 1e6, 0, -13, 2e6)},
    "rotated in it": {
        "crs": "EPSG:3857",
        "transform": Affine(13, 0, 1e6, 0, -13, 2e6) @ Affine.rotation(20) @ Affine.scale(0.75),
    },
    "points": {"crs": "EPSG:32632", "gcps": points(UTM)},
}
NOWHERE: dict[str, dict[str, Any]] = {
    "no place": {},
    "no CRS": {"transform": UTM},
    "the whole Earth": {"crs": "EPSG:4326", "transform": AROUND},
    "across the antimeridian": {
        "crs": "EPSG:4326",
        "transform": Affine(0.1, 0, 178, 0, -0.1, 10),
    },
    "a local CRS": {"crs": 'LOCAL_CS["a mine",UNIT["metre",1]]', "transform": UTM},
    "a place outside its CRS": {
        "crs": "EPSG:32632",
        "transform": Affine(1e7, 0, 1e9, 0, -1e7, 1e9),
    },
    "no area": {"crs": "EPSG:32632", "transform": Affine(10, 10, 500_000, 10, 10, 5_000_000)},
    "points on a line": {
        "crs": "EPSG:32632",
        "gcps": [GroundControlPoint(at, at, 500_000 + at, 5_000_000 + at) for at in (0, 20, 40)],
    },
}


class Shown(NamedTuple):
    """The copies of an input and its result, and the result."""

    before: Path
    after: Path
    result: np.ndarray
    transform: Affine


@pytest.fixture
def shown(tmp_path: Path, tiny_weights: Callable[..., Path]) -> Callable[..., Shown]:
    def write(
        pixels: np.ndarray,
        place: dict[str, Any],
        scale: int = 2,
        check: Callable[[], None] = lambda: None,
        **keywords: Any,
    ) -> Shown:
        source = tmp_path / "source.tif"
        count, height, width = pixels.shape
        shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
        with created(source, **shape, **place) as file:
            file.write(pixels)
        keywords = {"format": "GTiff", "weights": tiny_weights(scale), **keywords}
        result = upscale_file(source, tmp_path / "result", untrusted=True, workers=1, **keywords)
        display.write_display(source, result, keywords, tmp_path, check)
        with opened(tmp_path / "result") as file:
            return Shown(
                tmp_path / "before.tif", tmp_path / "after.tif", file.read(), file.transform
            )

    return write


def decoded(png: Any) -> np.ndarray:
    return np.moveaxis(np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")), 2, 0)


def tiles_of(copy: Path, z: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """The tiles of a zoom level that touch a copy's bounds, found without rio-tiler."""
    west, south, east, north = map_tiles.describe(copy, "")["bounds"]

    def column(longitude: float) -> int:
        return int((longitude + 180) / 360 * 2**z)

    def row(latitude: float) -> int:
        stretched = math.asinh(math.tan(math.radians(latitude)))
        return int((1 - stretched / math.pi) / 2 * 2**z)

    for y in range(row(north), row(south) + 1):
        for x in range(column(west), column(east) + 1):
            yield x, y, decoded(map_tiles.tile(copy, z, x, y))


def pixels_below(x: int, y: int, z: int, crs: str, transform: Affine) -> list[np.ndarray]:
    """The raster's (row, col) below the corners of each tile pixel, grown a little."""
    size, found = 2 * WORLD / 2**z / 256, []
    for right, down in ((-0.15, -0.15), (-0.15, 1.15), (1.15, -0.15), (1.15, 1.15)):
        eastings = -WORLD + (256 * x + np.arange(256) + right) * size
        northings = WORLD - (256 * y + np.arange(256) + down) * size
        grid = [axis.ravel() for axis in np.meshgrid(eastings, northings)]
        xs, ys = map(np.asarray, transform_points("EPSG:3857", crs, *grid))
        col, row = (~transform) @ (xs, ys)
        found.append(np.floor([row, col]).astype(int).reshape(2, 256, 256))
    return found


@pytest.mark.parametrize("place", PLACED.values(), ids=PLACED)
def test_each_tile_pixel_has_the_colour_of_the_ground_below_it(shown, place):
    made = shown(NOISE, place)
    transform = place.get("transform", UTM)
    for copy, pixels in ((made.before, NOISE), (made.after, made.result)):
        described = map_tiles.describe(copy, "")
        assert described["geographic"]
        z, (_, height, width) = described["maxzoom"], pixels.shape
        finer = transform @ Affine.scale(HEIGHT / height)
        compared = 0
        for x, y, tile in tiles_of(copy, z):
            corners = pixels_below(x, y, z, place["crs"], finer)
            row, col = corners[0]
            inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
            same = np.logical_and.reduce([(corner == corners[0]).all(0) for corner in corners])
            known = same & inside
            assert (tile[3][known] == 255).all()
            assert (tile[:3][:, known] == pixels[:, row[known], col[known]]).all()
            assert (tile[3][same & ~inside] == 0).all()
            compared += known.sum()
        assert compared > height * width / 20


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("place", NOWHERE.values(), ids=NOWHERE)
def test_a_raster_that_is_not_on_the_map_is_shown_pixel_by_pixel(shown, place, scale):
    made = shown(NOISE, place, scale)
    descriptions = [map_tiles.describe(copy, "") for copy in (made.before, made.after)]
    assert [one["geographic"] for one in descriptions] == [False, False]
    assert descriptions[0]["bounds"] == pytest.approx(descriptions[1]["bounds"])
    for copy, pixels, z in (
        (made.before, NOISE.repeat(scale, 1).repeat(scale, 2), descriptions[0]["maxzoom"]),
        (made.after, made.result, 22),
    ):
        middle, step = 1 << z - 1, 1 << 22 - z  # of the result's pixels, in a pixel of the tile
        tile = decoded(map_tiles.tile(copy, z, middle, middle))
        height, width = (length // step for length in pixels.shape[1:])
        parts = [
            pixels[:, row : step * height : step, col : step * width : step]
            for row in range(step)
            for col in range(step)
        ]
        whole = np.logical_and.reduce([(part == parts[0]).all(0) for part in parts])
        assert whole.mean() > 0.3
        assert (tile[:3, :height, :width] == parts[0])[:, whole].all()
        assert (tile[3, :height, :width] == 255).all()
        assert (tile[3, height + 1 :] == 0).all()
        assert (tile[3, :, width + 1 :] == 0).all()


def test_tiles_of_a_low_zoom_level_are_means(shown):
    made = shown(np.full((3, 300, 300), [[[10]], [[100]], [[200]]], np.uint8), PLACED["projected"])
    for copy in (made.before, made.after):
        with rasterio.open(copy) as file:
            expected = file.read([1, 2, 3]).mean((1, 2))
            assert file.overviews(1)
        (_, _, tile), *_ = tiles_of(copy, 8)
        seen = tile[:3, tile[3] == 255]
        assert seen.size
        assert np.abs(seen.mean(1) - expected).max() < 3


def test_input_and_result_have_the_same_bands_window_and_stretch(shown):
    pixels = np.random.default_rng(1).integers(500, 3000, (5, 32, 32)).astype(np.uint16)
    pixels[:, :4, :4] = 0
    made = shown(
        pixels, {"nodata": 0, **PLACED["projected"]}, bands=[4, 2, 1], window=[2, 3, 20, 16]
    )
    part = pixels[[3, 1, 0], 3:19, 2:22].astype(float)
    low, high = np.percentile(part[:, (part > 0).all(0)], (1, 99))
    for copy, values in ((made.before, part), (made.after, made.result)):
        with rasterio.open(copy) as file:
            seen, place = file.read(), file.transform
        expected = 255 * np.clip((values - low) / (high - low), 0, 1)
        there = seen[3] == 255
        assert (there == (values > 0).all(0)).all()
        assert not there.all()
        assert np.abs(seen[:3] - expected)[:, there].max() < 2
        assert place @ (0, 0) == pytest.approx(UTM @ (2, 3))


@pytest.mark.parametrize("bands", [1, 2])
def test_a_raster_without_colours_is_grey(shown, bands):
    made = shown(NOISE[:bands], {})
    tile = decoded(map_tiles.tile(made.before, 22, 1 << 21, 1 << 21))
    assert (tile[:3, : 2 * HEIGHT : 2, : 2 * WIDTH : 2] == NOISE[:1]).all()


def test_a_raster_larger_than_the_longest_side_is_halved(shown, monkeypatch):
    monkeypatch.setattr(display, "LONGEST", 32)
    made = shown(NOISE, PLACED["projected"])
    for copy, pixels, halvings in ((made.before, NOISE, 1), (made.after, made.result, 2)):
        edge = 2**halvings
        with rasterio.open(copy) as file:
            assert (file.width, file.height) == (
                -(-pixels.shape[2] // edge),
                pixels.shape[1] // edge,
            )
            assert file.transform @ (0, 0) == UTM @ (0, 0)
            size = (9 if copy == made.before else 4.5) * edge
            assert (file.transform.a, file.transform.e) == pytest.approx((size, -size))
            means = pixels[:, :edge, :edge].mean((1, 2))
            assert np.abs(file.read([1, 2, 3])[:, 0, 0] - means).max() <= halvings


def test_only_geotiffs_are_read_as_copies_and_nothing_beside_them(shown, tmp_path):
    made = shown(NOISE, PLACED["projected"])
    described = map_tiles.describe(made.before, "")
    place = "<PAMDataset><GeoTransform>0, 1, 0, 0, 0, -1</GeoTransform></PAMDataset>"
    (tmp_path / "before.tif.aux.xml").write_text(place)
    assert map_tiles.describe(made.before, "") == described
    with rasterio.open(made.after) as file:
        virtual = MemoryFile()
        rasterio.shutil.copy(file, virtual.name, driver="VRT")
    made.before.write_bytes(virtual.read())
    with pytest.raises(RasterioIOError, match="not recognized"):
        map_tiles.describe(made.before, "")


def test_copies_that_do_not_fit_on_the_disk_leave_nothing(shown, tmp_path):
    def full() -> None:
        raise NoSpace("full")

    with pytest.raises(NoSpace):
        shown(NOISE, {}, check=full)
    assert not [*tmp_path.glob("*before*"), *tmp_path.glob("*after*")]


@pytest.fixture(scope="module")
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture(scope="module")
def job(server: Server) -> str:
    job_id: str = server.execute(picture(), wait=False).json()["jobID"]
    assert server.ended(job_id)["status"] == "successful"
    return job_id


def test_the_server_describes_and_sends_tiles(server, job):
    described = server.client.get(f"/jobs/{job}/tiles/before").json()
    (template,) = described["tiles"]
    middle = 1 << 21
    tile = server.client.get(template.format(z=22, x=middle, y=middle))
    assert tile.headers["content-type"] == "image/png"
    shown = np.moveaxis(np.asarray(Image.open(io.BytesIO(picture()))), 2, 0)
    assert (decoded(tile.content)[:3, :48:2, :48:2] == shown).all()
    paths = [line["path"] for line in server.events("request")]
    assert f"/jobs/{job}/tiles/before" in paths
    assert not [path for path in paths if path.endswith(f"{middle}.png")]


@pytest.mark.parametrize(
    ("tile", "status"),
    [
        ("before/0/0/0.png", 200),
        ("before/22/0/0.png", 200),
        ("before/23/0/0.png", 404),
        ("before/0/1/0.png", 404),
        ("before/0/0/1.png", 404),
        ("before/25/16777216/16777216.png", 404),
        (f"before/{10**18}/0/0.png", 404),
        (f"before/{10**30}/0/0.png", 400),
        ("before/0/-1/0.png", 400),
        ("before/0/0/a.png", 400),
        ("before/0/0/0.jpg", 404),
        ("input/0/0/0.png", 404),
        ("..%2finput/0/0/0.png", 404),
        ("before.tif/0/0/0.png", 404),
    ],
)
def test_there_are_tiles_of_two_pictures_where_they_are(server, job, tile, status):
    assert server.client.get(f"/jobs/{job}/tiles/{tile}").status_code == status


def test_a_tile_beside_the_picture_is_transparent(server, job):
    tile = decoded(server.client.get(f"/jobs/{job}/tiles/after/22/0/0.png").content)
    assert tile.shape == (4, 256, 256)
    assert (tile == 0).all()


def test_only_successful_jobs_have_a_map(server):
    running = server.execute(picture(edge=400), wait=False, ensemble=True).json()["jobID"]
    for path in ("before", "after/0/0/0.png"):
        assert server.client.get(f"/jobs/{running}/tiles/{path}").status_code == 404
    server.client.delete(f"/jobs/{running}")
    failed = server.execute(b"no raster", wait=False).json()["jobID"]
    assert server.ended(failed)["status"] == "failed"
    for job_id in (running, failed, "none"):
        assert server.client.get(f"/jobs/{job_id}/tiles/after").status_code == 404
