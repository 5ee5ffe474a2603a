"""Does the scene engine's memory depend on the size of the scene?

Prediction: no. What is alive at once is a few tiles, a band of rows where the source is stored by rows, and GDAL's
caches. Measured: the largest resident memory of a fresh process above that of the imports, for one scene and one of
twice the rows, x4, uint8 RGB, with a bicubic stand-in for the network, whose own memory is a tile's whatever the scene;
and the time, with the stand-in's share of it.

    python benchmarks/does_memory_stay_flat.py [EDGE] [FOLDER]

Answer (two cores of a busy machine): 2048 x 2048 pixels took 367 MB above the imports, 2048 x 4096 took 374 MB, 2.1 %
more. Times of that run mean nothing, since other work shared the cores.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main(edge: int, folder: Path) -> None:
    """One line a scene: size, memory above the imports, seconds, and the share of them that is the stand-in's."""
    rows = []
    for height in (edge, 2 * edge):
        source = folder / f"scene{height}.tif"
        write_scene(source, height, edge)
        command = [sys.executable, __file__, "--one", str(source), str(folder / f"out{height}.tif")]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    print("| scene | MB above the imports | seconds | seconds of the stand-in, all workers |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        print(f"| {row['scene']} | {row['megabytes']:.0f} | {row['seconds']:.1f} | {row['network_seconds']:.1f} |")
    print(f"Twice the scene takes {rows[1]['megabytes'] / rows[0]['megabytes'] - 1:+.1%} memory.")


def write_scene(path: Path, height: int, width: int) -> None:
    """Soft noise in tiles of 512, written a row of tiles at a time."""
    import rasterio

    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "blockxsize": 512, "blockysize": 512}
    random = np.random.default_rng(0)
    with rasterio.open(path, "w", height=height, width=width, crs="EPSG:32633", **profile) as file:
        for row in range(0, height, 512):
            coarse = random.integers(0, 256, (3, 64, width // 8), dtype=np.uint8)
            file.write(coarse.repeat(8, 1).repeat(8, 2), window=((row, row + 512), (0, width)))


def one(source: Path, target: Path) -> None:
    """Enlarge one scene in this process, and print what it took."""
    import torch
    import torch.nn.functional as F

    from repmamba.inference.upscaler import Upscaler
    from repmamba.scene.engine import upscale_file

    spent = []

    class Bicubic:
        scale, bands = 4, 3

        def run(self, unit: torch.Tensor) -> torch.Tensor:
            begun = time.perf_counter()
            result = F.interpolate(unit, scale_factor=4, mode="bicubic", antialias=False)
            spent.append(time.perf_counter() - begun)
            return result

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = upscale_file(source, target, Upscaler(torch.nn.Identity(), Bicubic(), "bicubic", "0" * 32))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "scene": f"{result.grid.width // 4} x {result.grid.height // 4}",
                "megabytes": (after - before) / 1000,
                "seconds": result.seconds,
                "network_seconds": sum(spent),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096, Path(sys.argv[2] if len(sys.argv) > 2 else temporary))
