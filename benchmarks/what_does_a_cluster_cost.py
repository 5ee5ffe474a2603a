"""What does a Dask cluster cost beside one process, and how many cores can one run feed?

Prediction: a cluster of as many processes as cores, on this machine, takes at most 1.15 times as
long as as many threads of one process, since a tile's arrays, some 7 MB, travel while others are
computed. A run feeds 30 cores or more: reading, scheduling, the way of the results and durable
tiles take a thirtieth of what a tile's network does. The second is the processor time of the run's
process, the scheduler in it, with nearest neighbour in place of the network: some of it may
overlap, so that it is a lower bound. A made scene, RGB of 16 bit, x4, the packaged weights.

    python benchmarks/what_does_a_cluster_cost.py [--edge 1024] [--rounds 3] [--json FILE]

The answer is in docs/how-to/large-areas.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import cloudpickle
import numpy as np
import rasterio
import torch
from affine import Affine
from torch import Tensor

import answers
from repmamba.cores import available_cores
from repmamba.inference.loading import load
from repmamba.scene.engine import upscale_file

LIMIT, FED = 1.15, 30


@dataclass(frozen=True)
class Nearest:
    """In the network's place, and next to nothing to compute; with noise, since tiles that shrink
    are packed.
    """

    scale: int
    bands: int

    def run(self, unit: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, scale h, scale w)."""
        larger = torch.nn.functional.interpolate(unit, scale_factor=self.scale)
        return larger + torch.rand_like(larger) / 10


def main() -> None:
    """Two lines, and the JSON."""
    parser = answers.options(__doc__)
    parser.add_argument(
        "--edge",
        type=answers.count,
        metavar="N",
        default=1024,
        help="rows and columns [%(default)s]",
    )
    parser.add_argument(
        "--rounds", type=answers.count, metavar="N", default=3, help="rounds counted [%(default)s]"
    )
    options = parser.parse_args()
    from distributed import LocalCluster

    # its workers cannot import this file
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cores = available_cores()
    network = load()
    nearest = replace(network, runner=Nearest(network.scale, network.bands))
    with (
        TemporaryDirectory() as folder,
        LocalCluster(n_workers=cores, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        enlarge = partial(
            upscale_file,
            made_scene(Path(folder) / "scene.tif", options.edge),
            Path(folder) / "out.tif",
            overwrite=True,
            value_range=(0, 65535),
            consistent=False,
        )
        there = cluster.scheduler_address
        runs: dict[str, Callable[[], object]] = {
            "one process": partial(enlarge, weights=network, workers=cores),
            "cluster": partial(enlarge, weights=network, cluster=there),
            "cluster, nearest neighbour": partial(enlarge, weights=nearest, cluster=there),
        }
        spans: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for counted in range(options.rounds + 1):
            for name, run in runs.items():
                span = computing(run)
                if counted:  # in the first, the workers compile
                    spans[name].append(span)
    megapixels = (options.edge * network.scale) ** 2 / 1e6
    middle = {name: statistics.median(wall for wall, _ in found) for name, found in spans.items()}
    ratio = statistics.median(
        there / here
        for (there, _), (here, _) in zip(spans["cluster"], spans["one process"], strict=True)
    )
    fed = (
        cores
        * middle["one process"]
        / statistics.median(used for _, used in spans["cluster, nearest neighbour"])
    )
    for name, found in middle.items():
        print(f"{name:<28} {found:>7.1f} s {megapixels / found:>8.2f} megapixels/s")
    print(
        f"a cluster takes {ratio:.2f} times as long as one process; one run feeds at least "
        f"{fed:.0f} cores"
    )
    answers.write(
        options.json, threads=cores, megapixels=megapixels, spans=spans, ratio=ratio, fed=fed
    )
    if ratio > LIMIT or fed < FED:
        sys.exit("Not as predicted.")


def computing(run: Callable[..., object]) -> tuple[float, float]:
    """Seconds, by the clock and of this process, from the first tile read to the last one
    durable.
    """
    told: list[tuple[float, float]] = []
    run(progress=lambda done, total: told.append((time.perf_counter(), time.process_time())))
    return told[-1][0] - told[0][0], told[-1][1] - told[0][1]


def made_scene(path: Path, edge: int) -> Path:
    """Noise in tiles of 512: what it shows changes no time."""
    numbers = np.random.default_rng(0).integers(0, 4000, (3, edge, edge)).astype(np.uint16)
    profile = {
        "driver": "GTiff",
        "height": edge,
        "width": edge,
        "count": 3,
        "dtype": "uint16",
        "tiled": True,
    }
    place = {
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 500000, 0, -10, 4100000),
        "photometric": "RGB",
    }
    with rasterio.open(path, "w", blockxsize=512, blockysize=512, **profile, **place) as file:
        file.write(numbers)
    return path


if __name__ == "__main__":
    main()
