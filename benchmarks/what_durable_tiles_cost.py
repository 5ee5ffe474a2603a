"""What do durable tiles and a second reader cost, beside a writer that hopes for the best?

Prediction: less than a second a gigabyte of pixels each for syncing and for digests; the
compression of the final file, which both ways pay, costs more than all of it. Timed in one process,
the least of several rounds, by the clock and by the processor's time, which a busy machine disturbs
less:

    hopeful   GDAL alone, each tile written as it comes (GeoTIFF), or a GeoTIFF and GDAL's own COG
    driver and overviews
    durable   the scene writer: put() of every tile, then finish(): assembled, read back, compared,
    renamed

    python benchmarks/what_durable_tiles_cost.py [PICTURE] [--edge 4096] [--rounds 3] [--folder DIR]
    [--json FILE]
"""

import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.shutil import copy
from rasterio.windows import Window as GdalWindow

import answers
from repmamba.scene.result.formats import creation_options
from repmamba.scene.result.job import JobIdentity, digest128
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import squares
from repmamba.scene.result.writer import SceneWriter
from repmamba.scene.source.grid import Grid

TILE = 1024
EXAMPLE = Path(__file__).parents[1] / "examples" / "colorado.tif"


def picture_of(path: Path, edge: int) -> NDArray[np.uint8]:
    """(3, edge, edge): the picture, mirrored until it fills the square."""
    with rasterio.open(path) as file:
        data = file.read([1, 2, 3] if file.count >= 3 else [1, 1, 1])
    mirrored = np.concatenate([data, data[:, ::-1]], axis=1)
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]], axis=2)
    times = (1, -(-edge // mirrored.shape[1]), -(-edge // mirrored.shape[2]))
    square: NDArray[np.uint8] = np.tile(mirrored, times)[:, :edge, :edge].astype(np.uint8)
    return square


def profile_of(name: str, edge: int) -> OutputProfile:
    return OutputProfile(
        name, Grid(edge, edge, Affine(1, 0, 5e5, 0, -1, 4e6), CRS.from_epsg(32633)), 3, "uint8"
    )


def hopeful(folder: Path, name: str, data: NDArray[np.uint8]) -> dict[str, float]:
    edge = data.shape[1]
    start, used = time.perf_counter(), time.process_time()
    profile = profile_of("GTiff", edge)
    options = creation_options(profile) | ({} if name == "GTiff" else {"COMPRESS": "ZSTD"})
    options |= {"transform": profile.grid.transform, "crs": profile.grid.crs}
    target = folder / "hopeful.tif"
    with (
        rasterio.Env(GDAL_CACHEMAX=64 << 20),
        rasterio.open(
            target, "w", driver="GTiff", width=edge, height=edge, count=3, dtype="uint8", **options
        ) as file,
    ):
        for window in squares(edge, edge, TILE):
            rows, cols = window.slices
            file.write(
                data[:, rows, cols],
                window=GdalWindow(window.col, window.row, window.width, window.height),
            )
    if name == "COG":
        with rasterio.Env(GDAL_CACHEMAX=64 << 20):
            copy(
                target,
                folder / "hopeful.cog.tif",
                driver="COG",
                **creation_options(profile_of(name, edge)),
            )
    return {"all": time.perf_counter() - start, "cpu": time.process_time() - used}


def durable(folder: Path, name: str, data: NDArray[np.uint8]) -> dict[str, float]:
    edge = data.shape[1]
    windows = squares(edge, edge, TILE)
    job = JobIdentity({"name": "benchmark"}, "none")
    start, used = time.perf_counter(), time.process_time()
    with SceneWriter(
        folder / "durable.tif", profile_of(name, edge), job, windows, overwrite=True
    ) as writer:
        for index, window in enumerate(windows):
            rows, cols = window.slices
            writer.put(index, data[:, rows, cols])
        between = time.perf_counter()
        writer.finish()
    end = time.perf_counter()
    return {
        "put": between - start,
        "finish": end - between,
        "all": end - start,
        "cpu": time.process_time() - used,
    }


def least(rounds: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
    results = [run() for _ in range(rounds)]
    return {name: min(result[name] for result in results) for name in results[0]}


def tile_costs(data: NDArray[np.uint8]) -> dict[str, float]:
    """Seconds of processor time for a tile of the picture, by what is done to it; printed."""
    payload = np.ascontiguousarray(data[:, :TILE, :TILE]).tobytes()
    works: dict[str, Callable[[], Any]] = {
        "SHA-256": lambda: digest128(payload),
        "zlib 1": lambda: zlib.compress(payload, 1),
    }
    found = {name: least(5, partial(timed, work))["cpu"] for name, work in works.items()}
    for name, seconds in found.items():
        print(
            f"| {name} of a tile | {1000 * seconds:.1f} ms | {len(payload) / seconds / 1e6:.0f} "
            "MB/s |"
        )
    print(f"zlib 1 leaves {len(zlib.compress(payload, 1)) / len(payload):.2f} of a tile")
    return found


def timed(work: Callable[[], Any]) -> dict[str, float]:
    used = time.process_time()
    work()
    return {"cpu": time.process_time() - used}


def main() -> None:
    """Time, print the tables, write the JSON."""
    parser = answers.options(__doc__)
    parser.add_argument(
        "picture", type=Path, metavar="PICTURE", nargs="?", default=EXAMPLE, help="[%(default)s]"
    )
    parser.add_argument(
        "--edge",
        type=answers.count,
        metavar="N",
        default=4096,
        help="pixels to which it is mirrored [%(default)s]",
    )
    parser.add_argument(
        "--rounds",
        type=answers.count,
        metavar="N",
        default=3,
        help="of which the least counts [%(default)s]",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where to write [a temporary one]"
    )
    options = parser.parse_args()
    data = picture_of(options.picture, options.edge)
    tiles = tile_costs(data)
    rows = []
    print(
        f"\n{data.nbytes / 1e6:.0f} MB of pixels, {len(squares(options.edge, options.edge, TILE))} "
        "tiles"
    )
    print(
        "\n| format | hopeful, s (CPU) | durable, s (CPU) | of it put, s | of it finish, s "
        "|\n|---|---|---|---|---|"
    )
    for name in ("GTiff", "COG"):
        with TemporaryDirectory(dir=options.folder) as folder:
            plain = least(options.rounds, partial(hopeful, Path(folder), name, data))
            sure = least(options.rounds, partial(durable, Path(folder), name, data))
        rows.append({"format": name, "hopeful": plain, "durable": sure})
        both = " | ".join(f"{way['all']:.1f} ({way['cpu']:.1f})" for way in (plain, sure))
        print(f"| {name} | {both} | {sure['put']:.2f} | {sure['finish']:.1f} |")
    answers.write(options.json, threads=1, bytes=data.nbytes, tiles=tiles, rows=rows)


if __name__ == "__main__":
    main()
