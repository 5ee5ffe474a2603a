"""How fast is it on a GPU, and do the tests that need one pass?

Prediction, for one H200 in bfloat16: 100 megapixels of output per second at x4, a training step of
16 patches of 64x64 in 25 ms, and the scan at 80 % of what the memory allows.

`make gpu` runs it, in at most ten minutes. First the tests marked `gpu` run. Then, each after a
warm-up: copying a large tensor, which gives the bandwidth of the memory; the scan forward and with
gradients, against the bytes that it must at least read and write; the network on batches of tiles;
training steps as they are and compiled; and a scene from file to file. What fails is named in the
answer, and the rest is still measured. With --device cpu everything runs on small inputs, to
rehearse.

    python benchmarks/how_fast_is_a_gpu.py [--device cuda] [--json FILE]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from torch import Tensor

import answers
from repmamba.evaluate.timing import processor, time_network
from repmamba.inference.loading import load
from repmamba.scan.selective import scan_map
from repmamba.scene.engine import upscale_file
from repmamba.train.distributed import Processes
from repmamba.train.learner import Learner
from repmamba.train.recipe_file import read_recipe
from repmamba.train.step import Batch
from which_scan_at_which_length import make_inputs

Row = dict[str, Any]

SCENE = answers.ROOT / "examples" / "colorado.tif"
PATIENCE = 300  # seconds for the tests
ROUNDS = 10


def main() -> None:
    """Test, measure, print the table, write the JSON."""
    parser = answers.options(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu [%(default)s]")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device. Rehearse with --device cpu.")
    rehearsal = device.type == "cpu"
    rows: list[Row] = [tests()]
    print(line(rows[0]), flush=True)
    for part in (scans, networks, steps, scene):
        try:
            for row in part(device, rehearsal):
                rows.append(row)
                print(line(row), flush=True)
        except Exception as error:  # the other parts are still worth their time
            rows.append({"what": part.__name__, "failed": f"{type(error).__name__}: {error}"})
            print(line(rows[-1]), flush=True)
    answers.write(
        options.json, threads=torch.get_num_threads(), device=processor(device), rows=rows
    )
    sys.exit(int(any("failed" in row for row in rows)))


def tests() -> Row:
    """The tests marked `gpu`, and their last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    try:
        run = subprocess.run(
            command, cwd=answers.ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return {"what": "tests", "failed": f"not finished after {PATIENCE} s"}
    print(run.stdout, run.stderr, sep="\n")
    last = (run.stdout.strip().splitlines() or [run.stderr.strip()])[-1].strip("= ")
    return {"what": "tests", "failed" if run.returncode else "result": last}


def scans(device: torch.device, rehearsal: bool) -> Iterator[Row]:
    """The scan, and the share of the memory's bandwidth that it reaches."""
    bandwidth = bandwidth_of_copying(1 << (24 if rehearsal else 30), device)
    yield {"what": "copy", "GB/s": bandwidth / 1e9}
    batch, side = (1, 32) if rehearsal else (16, 128)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(device) for x in make_inputs(64, side, batch)]
        inputs[:2] = [x.to(dtype) for x in inputs[:2]]
        leaves = [x.clone().requires_grad_() for x in inputs]
        forward = scan_map(*inputs)
        read, written = sum(x.nbytes for x in inputs), forward.nbytes
        weights = torch.rand_like(forward)

        def with_gradients(leaves: list[Tensor] = leaves, weights: Tensor = weights) -> object:
            return torch.autograd.grad(scan_map(*leaves), leaves, weights)

        def value(inputs: list[Tensor] = inputs) -> object:
            return scan_map(*inputs)

        # with gradients, the inputs are read twice, dy once, and each input's gradient is written
        for name, run, least in (
            ("forward", value, read + written),
            ("with gradients", with_gradients, 3 * read + 2 * written),
        ):
            taken = seconds(run, device)
            yield {
                "what": f"scan {name}, {batch} x 64 x {side}x{side}, {dtype}",
                "ms": 1e3 * taken,
                "share of bandwidth": least / taken / bandwidth,
            }


def bandwidth_of_copying(size: int, device: torch.device) -> float:
    """Bytes read and written per second when a tensor of `size` bytes is copied."""
    block = torch.empty(size, dtype=torch.uint8, device=device)
    copy = torch.empty_like(block)
    return 2 * size / seconds(lambda: copy.copy_(block), device)


def networks(device: torch.device, rehearsal: bool) -> Iterator[Row]:
    """The network on batches of tiles."""
    for precision in ("float32", "bfloat16"):
        upscaler = load("x4", device=device, precision=precision)
        for size, batch in ((32, 2),) if rehearsal else ((128, 16), (128, 64), (256, 8), (256, 16)):
            timing = time_network(upscaler, size=size, batch=batch, passes=ROUNDS)
            yield {
                "what": f"network, {batch} tiles of {size}x{size}, {precision}",
                "ms": 1e3 * timing.median,
                "output megapixels/s": timing.output_megapixels / timing.median,
            }


def steps(device: torch.device, rehearsal: bool) -> Iterator[Row]:
    """Training steps of the recipe x4."""
    count, side = (2, 16) if rehearsal else (16, 64)
    batch = Batch(
        torch.rand(count, 3, side, side, device=device),
        torch.rand(count, 3, 4 * side, 4 * side, device=device),
    )
    recipe = read_recipe("x4")
    for compiled in (False,) if rehearsal else (False, True):
        step = replace(recipe.step, compile=compiled)
        learner = Learner(
            replace(recipe, step=step, start=replace(recipe.start, weights="")), device, Processes()
        )
        precision = learner.choose_precision(Processes())
        name = f"training step, {count} x {side}x{side}, {precision}"
        taken = seconds(lambda learner=learner: learner.step(batch, 1e-4), device)
        yield {"what": name + ", compiled" * compiled, "ms": 1e3 * taken}


def scene(device: torch.device, rehearsal: bool) -> Iterator[Row]:
    """A scene from file to file: the bundled one, repeated."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "scene.tif"), Path(folder, "result.tif")
        with rasterio.open(SCENE) as bundled:
            pixels, profile = bundled.read(), bundled.profile
        pixels = np.tile(pixels[:, :512, :512], (1, 1, 1) if rehearsal else (1, 8, 8))
        profile.update(height=pixels.shape[1], width=pixels.shape[2], tiled=True)
        profile.update(blockxsize=256, blockysize=256)
        with rasterio.open(source, "w", **profile) as made:
            made.write(pixels)
        for precision in ("float32", "bfloat16"):
            begun = time.perf_counter()
            upscale_file(source, target, device=device, precision=precision, overwrite=True)
            taken = time.perf_counter() - begun
            yield {
                "what": f"scene of {pixels.shape[2]}x{pixels.shape[1]}, {precision}",
                "s": taken,
                "output megapixels/s": 16 * pixels[0].size / 1e6 / taken,
            }


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of a few runs, each waited for, after three that are not counted."""
    times = []
    for _ in range(ROUNDS + 3):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def line(row: Row) -> str:
    """A row of the table."""
    values = [
        f"{value:.3g} {name}" if isinstance(value, float) else str(value)
        for name, value in row.items()
        if name not in ("what", "failed")
    ]
    failed = [f"FAILED: {row['failed']}"] if "failed" in row else []
    return f"{row['what']:<52} {', '.join(values + failed)}"


if __name__ == "__main__":
    main()
