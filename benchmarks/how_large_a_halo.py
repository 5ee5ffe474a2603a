"""How large must tiles and their halos be, for nobody to see where a scene was cut?

The network's scan reaches over the whole of what it is shown, so no halo makes a tiled result equal
to that of one pass over the whole image. Measured is what is left: decibels lost against the ground
truth, how many pixels are within one grey level of the one pass (in every band), and the largest
difference; and what a halo costs, as times the work: (tile + 2 halo)^2 / tile^2. The same with
`--consistent`, and with overlaps blended linearly in place of kept middles; and whether a seam is
there to be seen: by how much the difference steps where tiles meet, and at lines inside them.

Prediction: the difference falls with the halo at first, by the reach of the convolutions, and then
stops falling, since the scan's memory of far pixels is lost however large the halo is; larger tiles
lose less. Blending hides the step at a seam and moves no result nearer to the one pass than the
middles are.

Three real scenes, x4: aerial imagery, an orbiter's view of Mars, and one band of a satellite. Each
in two ways: its reduction by imresize, for which there is a ground truth, and itself, which is
large enough for whole tiles of 256 and has none. To save time, only some tiles on the diagonal of
the grid are computed, and compared on what they keep: up to three that are cut on all four sides,
or the first, which is cut on two, where the reduction has no such tile.

    python benchmarks/how_large_a_halo.py [--weights x4] [--reference FOLDER] [--json FILE]

The plot lies beside the JSON. The answer is docs/explanation/decisions/0005-how-large-a-halo.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

import answers
from repmamba.inference.consistency import make_consistent
from repmamba.inference.loading import load
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.resize import imresize, to_uint8
from repmamba.tiles.plan import Tile, plan_tiles
from repmamba.tiles.window import Window

TILES = (64, 128, 256)
HALOS = (0, 4, 8, 16, 32)
BLENDED_TILE, BLENDED_HALOS = 128, (8, 16)
EDGE = 1024  # of the part of a scene that is enlarged itself: one pass over it takes some gigabytes
SCENES = {  # file of the reference data -> what it shows, and where that part begins: row, column
    "data/test/dota_sample/images/P0706.png": ("aerial imagery", (0, 0)),
    "data/geotiff/cog_hirise_mars.tif": ("Mars", (0, 0)),
    "data/geotiff/cog.tif": ("one satellite band", (600, 600)),
}


@dataclass(frozen=True)
class Scene:
    """A scene, its truth where there is one, and its result in one pass; with and without
    consistency.
    """

    shows: str
    hr: NDArray[np.uint8] | None  # (3, 4 h, 4 w); None for a scene that is enlarged itself
    lr: Tensor  # unit (3, h, w)
    whole: dict[bool, NDArray[np.uint8]]  # consistent or not -> sr, (3, 4 h, 4 w)


def main() -> None:
    """Measure, print the table, write the JSON and the plot."""
    options = answers.options_on_imagery(
        __doc__, Path("docs", "explanation", "decisions", "how-large-a-halo.json")
    ).parse_args()
    torch.set_num_threads(1)
    upscaler = load(options.weights)
    begun = time.process_time()
    scenes: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    blended: list[dict[str, Any]] = []
    seams: list[dict[str, Any]] = []
    for name, (shows, place) in SCENES.items():
        pixels = read_pixels(options.reference / name)
        for scene in (reduced(shows, pixels, upscaler), itself(shows, pixels, place, upscaler)):
            scenes.append(
                {"shows": shows, "truth": scene.hr is not None, "lr": list(scene.lr.shape)}
            )
            rows += measure(scene, upscaler)
        blended += compare_blending(scene, upscaler)
        seams += look_for_a_seam(scene, upscaler)
        print(
            f"{shows}: done after {time.process_time() - begun:.0f} s of CPU time", file=sys.stderr
        )
    found = {
        "weights": answers.weights(upscaler),
        "cpu_seconds": round(time.process_time() - begun),
        "scenes": scenes,
        "tiled": rows,
        "blended": blended,
        "seams": seams,
    }
    answers.write(options.json, threads=1, clock="cpu", **found)
    print_tables(rows, blended, seams)
    plot(rows, options.json.with_suffix(".png"))


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """(3, H, W) in 8 bit; one band three times."""
    with rasterio.open(path) as file:
        raw = file.read(out_dtype="float64")[:3]
    if raw.max() > 255:
        low, high = np.percentile(raw, (0.5, 99.5))
        raw = 255 * (raw - low) / (high - low)
    return np.broadcast_to(to_uint8(raw / 255), (3, *raw.shape[1:]))


def reduced(shows: str, pixels: NDArray[np.uint8], upscaler: Upscaler) -> Scene:
    """The truth, cut to whole lr pixels, and its reduction enlarged in one pass."""
    scale = upscaler.scale
    height, width = (length // scale * scale for length in pixels.shape[1:])
    hr = pixels[:, :height, :width]
    small = to_uint8(imresize(np.moveaxis(hr, 0, 2) / 255, 1 / scale))
    return enlarged(shows, hr, np.moveaxis(small, 2, 0), upscaler)


def itself(
    shows: str, pixels: NDArray[np.uint8], place: tuple[int, int], upscaler: Upscaler
) -> Scene:
    """A part of the scene enlarged in one pass; there is no truth of it."""
    row, col = place
    return enlarged(shows, None, pixels[:, row : row + EDGE, col : col + EDGE], upscaler)


def enlarged(
    shows: str, hr: NDArray[np.uint8] | None, small: NDArray[np.uint8], upscaler: Upscaler
) -> Scene:
    """A scene with its result in one pass."""
    lr = torch.from_numpy(np.ascontiguousarray(small)).float() / 255
    return Scene(shows, hr, lr, both_ways(upscaler.run(lr[None])[0], lr, upscaler.scale))


def both_ways(sr: Tensor, lr: Tensor, scale: int) -> dict[bool, NDArray[np.uint8]]:
    """A result in 8 bit, without and with consistency."""
    known = torch.ones_like(lr, dtype=torch.bool)
    return {
        False: to_uint8(sr.numpy()),
        True: to_uint8(make_consistent(sr, lr, known, scale).numpy()),
    }


def measure(scene: Scene, upscaler: Upscaler) -> Iterator[dict[str, Any]]:
    """One row for each tile, halo and way."""
    height, width = scene.lr.shape[1:]
    for edge in TILES:
        for halo in HALOS:
            plan = plan_tiles(height, width, upscaler.scale, tile=edge, halo=halo)
            across, down = -(-width // edge), -(-height // edge)
            inner = range(1, min(across, down) - 1) or range(1)
            chosen = [plan[place * across + place] for place in inner[:: -(-len(inner) // 3)]]
            results = [
                (tile, both_ways(*of_tile(scene, tile, upscaler), upscaler.scale))
                for tile in chosen
            ]
            for way in (False, True):
                kept = [(tile, sr[way][:, *tile.keep.slices]) for tile, sr in results]
                yield {
                    "scene": scene.shows,
                    "truth": scene.hr is not None,
                    "tile": edge,
                    "tiles": len(chosen),
                    "halo": halo,
                    "consistent": way,
                    "work": (1 + 2 * halo / edge) ** 2,
                    **differences(scene, kept, way),
                }


def of_tile(scene: Scene, tile: Tile, upscaler: Upscaler) -> tuple[Tensor, Tensor]:
    """sr and lr of what a tile reads."""
    lr = scene.lr[:, *tile.read.slices]
    return upscaler.run(lr[None])[0], lr


def differences(
    scene: Scene, kept: list[tuple[Tile, NDArray[np.uint8]]], way: bool
) -> dict[str, Any]:
    """How the pixels of some tiles differ from those of the one pass, and from the truth."""

    def of_tiles(image: NDArray[np.uint8]) -> NDArray[Any]:
        return np.concatenate(
            [image[:, *tile.write.slices].reshape(3, -1) for tile, _ in kept], axis=1
        )

    tiled = np.concatenate([sr.reshape(3, -1) for _, sr in kept], axis=1)
    return against(
        tiled, of_tiles(scene.whole[way]), None if scene.hr is None else of_tiles(scene.hr)
    )


def against(tiled: NDArray[Any], whole: NDArray[Any], truth: NDArray[Any] | None) -> dict[str, Any]:
    """tiled, whole, truth: (3, pixels), 0 to 255."""
    tiled, whole = tiled.astype(int), whole.astype(int)
    step = np.abs(tiled - whole).max(0)
    lost = None
    if truth is not None:
        lost = float(10 * np.log10(np.mean((tiled - truth) ** 2) / np.mean((whole - truth) ** 2)))
    return {"db_lost": lost, "within_one": float((step <= 1).mean()), "largest": int(step.max())}


def compare_blending(scene: Scene, upscaler: Upscaler) -> Iterator[dict[str, Any]]:
    """Four tiles that meet, joined by their middles and by a linear blend of what they share,
    without consistency.
    """
    height, width = scene.lr.shape[1:]
    scale = upscaler.scale
    # Around the point where the four meet, and far from where a fifth would take part in the blend.
    area = Window(0, 0, 3 * BLENDED_TILE // 2, 3 * BLENDED_TILE // 2).scaled(scale)
    for halo in BLENDED_HALOS:
        plan = plan_tiles(height, width, scale, tile=BLENDED_TILE, halo=halo)
        four = [
            tile for tile in plan if tile.write.row < area.height and tile.write.col < area.width
        ]
        middles = np.zeros((3, scale * height, scale * width), np.float32)
        blend, weights = np.zeros_like(middles), np.zeros_like(middles[0])
        for tile in four:
            sr = of_tile(scene, tile, upscaler)[0].numpy()
            middles[:, *tile.write.slices] = sr[:, *tile.keep.slices]
            there = tile.read.scaled(scale).slices
            weight = ramps(tile.read, Window(0, 0, height, width), halo, scale)
            blend[:, *there] += weight * sr
            weights[there] += weight
        blend /= np.maximum(weights, 1e-9)
        for way, sr in (("middles", middles), ("blended", blend)):
            parts = (to_uint8(sr), scene.whole[False])
            tiled, whole = (part[:, *area.slices].reshape(3, -1) for part in parts)
            found = against(tiled, whole, None)
            yield {"scene": scene.shows, "tile": BLENDED_TILE, "halo": halo, "joined": way, **found}


def ramps(read: Window, scene: Window, halo: int, scale: int) -> NDArray[np.float32]:
    """The weight of a tile's result: from 0 at an edge that was cut to 1 two halos inside, 1 at the
    scene's edges.
    """
    weight = np.ones((1, 1), np.float32)
    for axis, first, length, end in (
        (0, read.row, read.height, scene.height),
        (1, read.col, read.width, scene.width),
    ):
        steps = (np.arange(scale * length) + 0.5) / (2 * halo * scale)
        rising = np.minimum(steps, 1) if first else np.ones_like(steps)
        falling = np.minimum(steps[::-1], 1) if first + length < end else np.ones_like(steps)
        weight = weight * np.expand_dims(np.minimum(rising, falling).astype(np.float32), 1 - axis)
    return weight


def look_for_a_seam(scene: Scene, upscaler: Upscaler) -> Iterator[dict[str, Any]]:
    """By how much the difference to the one pass steps up or down where two tiles meet, and at
    lines inside them.

    A step is that of the means of 4 x 64 result pixels on both sides of a line; four inner tiles as
    by default.
    """
    scale = upscaler.scale
    plan = plan_tiles(*scene.lr.shape[1:], scale)
    edge = plan[0].write.width
    four = [tile for tile in plan if {tile.write.row // edge, tile.write.col // edge} <= {1, 2}]
    difference = np.zeros((2 * edge, 2 * edge))
    for tile in four:
        sr = both_ways(*of_tile(scene, tile, upscaler), scale)[False][:, *tile.keep.slices].astype(
            float
        )
        row, col = tile.write.row - edge, tile.write.col - edge
        there = (slice(row, row + edge), slice(col, col + edge))
        difference[there] = (sr - scene.whole[False][:, *tile.write.slices]).mean(0)
    for where, lines in (
        ("where tiles meet", (edge,)),
        ("inside tiles", (edge // 2, 3 * edge // 2)),
    ):
        steps = np.concatenate(
            [_steps(way, line) for line in lines for way in (difference, difference.T)]
        )
        found = {
            "root_mean_square": float(np.sqrt(np.mean(steps**2))),
            "largest": float(np.abs(steps).max()),
        }
        yield {"scene": scene.shows, "where": where, **found}


def _steps(difference: NDArray[np.float64], line: int) -> NDArray[np.float64]:
    before, after = (difference[:, line + side : line + side + 4].mean(1) for side in (-4, 0))
    steps: NDArray[np.float64] = (
        (after - before)[: len(difference) // 64 * 64].reshape(-1, 64).mean(1)
    )
    return steps


def worst(rows: list[dict[str, Any]], tile: int, halo: int, way: bool) -> tuple[float, float, int]:
    """Of three scenes: dB lost by the reductions; within one level, and the largest step, of the
    scenes themselves.
    """
    these = [r for r in rows if (r["tile"], r["halo"], r["consistent"]) == (tile, halo, way)]
    large = [row for row in these if not row["truth"]]
    lost = max(row["db_lost"] for row in these if row["truth"])
    return lost, min(row["within_one"] for row in large), max(row["largest"] for row in large)


def print_tables(
    rows: list[dict[str, Any]], blended: list[dict[str, Any]], seams: list[dict[str, Any]]
) -> None:
    """The worst of the scenes for each tile and halo, without and with consistency; then middles
    against blends.
    """
    print(
        "| tile | halo | work | dB lost | within one level | largest | dB lost, consistent | "
        "within one, consistent |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tile in TILES:
        for halo in HALOS:
            (lost, within, largest), (lost_too, within_too, _) = (
                worst(rows, tile, halo, way) for way in (False, True)
            )
            numbers = f"{lost:.4f} | {within:.3%} | {largest} | {lost_too:.4f} | {within_too:.3%}"
            print(f"| {tile} | {halo} | {(1 + 2 * halo / tile) ** 2:.2f} | {numbers} |")
    print("\n| scene | halo | joined | within one level | largest |")
    print("| --- | ---: | --- | ---: | ---: |")
    for row in blended:
        numbers = f"{row['within_one']:.3%} | {row['largest']}"
        print(f"| {row['scene']} | {row['halo']} | {row['joined']} | {numbers} |")
    print("\n| scene | steps of the difference | root mean square | largest |")
    print("| --- | --- | ---: | ---: |")
    for row in seams:
        print(
            f"| {row['scene']} | {row['where']} | {row['root_mean_square']:.3f} | "
            f"{row['largest']:.3f} |"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Both bounds against the halo, a line for each tile, the worst of the scenes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for tile in TILES:
        for way, line in ((False, "-"), (True, "--")):
            found = [worst(rows, tile, halo, way) for halo in HALOS]
            label = f"tiles of {tile}{', consistent' if way else ''}"
            colour = f"C{TILES.index(tile)}"
            losses.plot(HALOS, [lost for lost, _, _ in found], line, color=colour, label=label)
            outside = [100 * (1 - within) for _, within, _ in found]
            shares.plot(HALOS, outside, line, color=colour, label=label)
    losses.axhline(0.02, color="grey", linewidth=0.8)
    losses.set(xlabel="halo (input pixels)", ylabel="dB lost, worst of three reductions")
    shares.axhline(0.1, color="grey", linewidth=0.8)
    shares.set(
        xlabel="halo (input pixels)",
        ylabel="% of pixels more than a level off, worst",
        yscale="log",
    )
    shares.legend(fontsize=8, loc="center right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
