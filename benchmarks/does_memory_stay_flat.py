"""Does the scene engine's memory depend on the size of the scene?

Prediction: no. What is alive at once is a few tiles, a band of rows where the source is stored by
rows, and GDAL's caches; less than 1.5 GB in all. Measured: the largest resident memory of a fresh
process above that of the imports, x4, uint8 RGB, with a bicubic stand-in for the network, whose own
memory is a tile's whatever the scene. The scenes: one, and one of twice the rows, stored in tiles
and written as GeoTIFF; the smaller also stored by rows and written as COG.

    python benchmarks/does_memory_stay_flat.py [--edge 8192] [--folder DIR] [--json FILE]

The largest result has 3.2 GB and takes twice that on the disk while it is assembled. The answer is
in docs/explanation/decisions/0002-one-compute-thread-a-tile.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import answers
from repmamba.evaluate.timing import process_memory

LAYOUTS = {
    "tiles": {"tiled": True, "blockxsize": 512, "blockysize": 512},
    "rows": {"blockysize": 16},
}
LIMIT = 1.5e9
GROWTH = 0.05


@dataclass(frozen=True)
class Case:
    """A scene, how it is stored, and what is made of it."""

    height: int
    width: int
    layout: str
    ending: str


def main() -> None:
    """One line a scene, and the JSON."""
    parser = answers.options(__doc__)
    parser.add_argument(
        "--edge",
        type=answers.count,
        metavar="N",
        default=8192,
        help="rows and columns of the largest scene [%(default)s]",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="for scenes and results [a temporary one]"
    )
    # the fresh process of one scene
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(one(*options.one)))
        return
    if process_memory() is None:
        sys.exit(
            "This question needs a system that tells how much memory a process took: Linux or "
            "macOS."
        )
    edge = options.edge
    cases = [
        Case(edge // 2, edge, "tiles", ".tif"),
        Case(edge, edge, "tiles", ".tif"),
        Case(edge // 2, edge, "rows", ".cog.tif"),
    ]
    rows = []
    print(
        "| scene | stored by | written as | MB above the imports | seconds | of them the "
        "stand-in's, a worker |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for case in cases:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            row = fresh(case, Path(folder))
        rows.append(row)
        numbers = (
            f"{row['megabytes']:.0f} | {row['seconds']:.0f} | "
            f"{row['network_seconds'] / row['workers']:.0f}"
        )
        print(
            f"| {case.height} x {case.width} | {case.layout} | {case.ending} | {numbers} |",
            flush=True,
        )
    growth = rows[1]["megabytes"] / rows[0]["megabytes"] - 1
    print(f"Twice the scene takes {growth:+.1%} memory.")
    answers.write(options.json, threads=rows[0]["workers"], growth=growth, rows=rows)
    if growth > GROWTH or max(row["megabytes"] for row in rows) * 1e6 > LIMIT:
        sys.exit("Not as predicted.")


def fresh(case: Case, folder: Path) -> dict[str, Any]:
    """What one scene takes in a process of its own."""
    source = folder / "scene.tif"
    write_scene(source, case)
    command = [sys.executable, __file__, "--one", str(source), str(folder / f"out{case.ending}")]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return {
        "height": case.height,
        "width": case.width,
        "layout": case.layout,
        "written": case.ending,
        **found,
    }


def write_scene(path: Path, case: Case) -> None:
    """Soft noise, written 512 rows at a time."""
    import rasterio

    # it has no place, and needs none
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    profile = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint8",
        "crs": "EPSG:32633",
        **LAYOUTS[case.layout],
    }
    random = np.random.default_rng(0)
    with rasterio.open(path, "w", height=case.height, width=case.width, **profile) as file:
        for row in range(0, case.height, 512):
            rows = min(512, case.height - row)
            coarse = random.integers(0, 256, (3, 64, -(-case.width // 8)), dtype=np.uint8)
            noise = coarse.repeat(8, 1).repeat(8, 2)[:, :rows, : case.width]
            file.write(noise, window=((row, row + rows), (0, case.width)))


def one(source: Path, target: Path) -> dict[str, Any]:
    """Enlarge one scene in this process, and tell what it took."""
    import torch
    import torch.nn.functional as F

    from repmamba.inference.upscaler import Upscaler
    from repmamba.inference.workers import choose_workers
    from repmamba.scene.engine import upscale_file

    spent = []

    class Bicubic:
        scale, bands = 4, 3

        def run(self, unit: torch.Tensor) -> torch.Tensor:
            begun = time.perf_counter()
            result = F.interpolate(unit, scale_factor=4, mode="bicubic", antialias=False)
            spent.append(time.perf_counter() - begun)
            return result

    before = process_memory()
    upscaler = Upscaler(torch.nn.Identity(), Bicubic(), "bicubic", "0" * 32)
    result = upscale_file(source, target, upscaler)
    after = process_memory()
    return {
        "megabytes": (after - before) / 1e6,
        "megabytes_of_imports": before / 1e6,
        "result_bytes": target.stat().st_size,
        "tiles": result.tiles,
        "seconds": result.seconds,
        "network_seconds": sum(spent),
        "workers": choose_workers(None, upscaler.device),
    }


if __name__ == "__main__":
    main()
