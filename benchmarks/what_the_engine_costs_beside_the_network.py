"""What does a scene cost beside its network: reading, consistency, rounding, durable tiles,
assembling, reading back?

Prediction: less than 15 % of the network's processor time on the same tiles, whatever the type and
format; and nine tenths of the reading and of the writing of tiles go on while another tile is
computed. Real scenes, x4, the packaged weights, fused. Processor time of the whole process, from
the opening of the scene to the renamed result, less that of the network's passes, which is measured
in the thread that computes them; the machine may be busy with other work. The overlap is by the
clock, on as many workers as cores.

    python benchmarks/what_the_engine_costs_beside_the_network.py [--weights x4] [--reference
    FOLDER] [--json FILE]

The answer is in docs/explanation/decisions/0002-one-compute-thread-a-tile.md.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from torch import Tensor

import answers
from repmamba.inference.loading import load
from repmamba.inference.runners import Runner
from repmamba.inference.upscaler import Upscaler
from repmamba.inference.workers import choose_workers
from repmamba.scene import engine
from repmamba.scene.result.writer import SceneWriter
from repmamba.scene.source.raster import Raster

LIMIT, OVERLAP = 0.15, 0.9
# file of the reference data -> what it is, the ending, options
SCENES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "rgb_lzw.tif": ("RGB uint8", ".tif", {}),
    # the file does not say that its bands are colours
    "mosaic_cog1.tif": ("RGB uint16", ".tif", {"rgb": (1, 2, 3)}),
    "pix4d_alpha_nodata.tif": ("RGB and alpha uint8", ".cog.tif", {}),
    "cog_nodata_nan.tif": ("one band float32", ".tif", {}),
}

Span = tuple[float, float]


@dataclass
class Clock:
    """Who did what, when: spans by the wall clock, and seconds of the processor, by the name of the
    step.
    """

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed at each call."""

        def run(*arguments: Any, **named: Any) -> Any:
            begun, used = time.perf_counter(), time.thread_time()
            result = function(*arguments, **named)
            with self._guard:
                self.spans[name].append((begun, time.perf_counter()))
                self.cpu[name] += time.thread_time() - used
            return result

        return run


class TimedRunner:
    """A network whose passes are timed."""

    def __init__(self, runner: Runner, clock: Clock) -> None:
        self.scale, self.bands = runner.scale, runner.bands
        self._run = clock.timed("network", runner.run)

    def run(self, unit: Tensor) -> Tensor:
        """One pass."""
        result: Tensor = self._run(unit)
        return result


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """The steps of the engine, timed."""
    steps = {
        "read": (Raster, "read"),
        "tile": (engine, "upscale_tile"),
        "put": (SceneWriter, "put"),
    }
    patches = [
        patch.object(place, name, clock.timed(step, getattr(place, name)))
        for step, (place, name) in steps.items()
    ]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def main() -> None:
    """One line a scene, and the JSON."""
    options = answers.options_on_imagery(__doc__).parse_args()
    folder = options.reference / "data" / "geotiff"
    upscaler = load(options.weights)
    first, (_, ending, how) = next(iter(SCENES.items()))
    # compiles, and loads what is loaded once; not counted
    costs(folder / first, ending, upscaler, how)
    rows = []
    print("CPU seconds a tile:")
    print(
        "| scene | written as | tiles | network | engine | of the network's | read | tile | put | "
        "rest | overlap |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (kind, ending, how) in SCENES.items():
        row = {
            "scene": name,
            "kind": kind,
            "written": ending,
            **costs(folder / name, ending, upscaler, how),
        }
        rows.append(row)
        cells = [
            f"{name} ({kind})",
            ending,
            f"{row['tiles']}",
            *(f"{row[step]:.3f}" for step in ("network", "engine")),
        ]
        cells += [
            f"{row['ratio']:.1%}",
            *(f"{row[step]:.3f}" for step in ("read", "tile", "put", "rest")),
        ]
        print(f"| {' | '.join(cells)} | {row['overlap']:.0%} |", flush=True)
    answers.write(
        options.json,
        threads=rows[0]["workers"],
        clock="cpu",
        weights=answers.weights(upscaler),
        rows=rows,
    )
    if any(row["ratio"] > LIMIT or row["overlap"] < OVERLAP for row in rows):
        sys.exit("Not as predicted.")


def costs(source: Path, ending: str, upscaler: Upscaler, how: dict[str, Any]) -> dict[str, Any]:
    """Processor seconds of a tile of a scene, by step, and how much of reading and writing overlaps
    computing.

    The rest is what is done once: the range found, the file assembled, read back and compared.
    """
    clock = Clock()
    timed = replace(upscaler, runner=TimedRunner(upscaler.runner, clock))
    workers = choose_workers(None, upscaler.device)
    with TemporaryDirectory() as folder, watched(clock):
        used = time.process_time()
        result = engine.upscale_file(
            source, Path(folder) / f"out{ending}", timed, workers=workers, **how
        )
        used = time.process_time() - used
    network, tiles = clock.cpu["network"], result.tiles
    aside = clock.spans["read"] + clock.spans["put"]
    engine_cpu = (used - network) / tiles
    steps = {
        "read": clock.cpu["read"],
        "tile": clock.cpu["tile"] - network,
        "put": clock.cpu["put"],
    }
    found = {name: seconds / tiles for name, seconds in steps.items()}
    return {
        "tiles": tiles,
        "workers": workers,
        "network": network / tiles,
        "engine": engine_cpu,
        "ratio": (used - network) / network,
        **found,
        "rest": engine_cpu - sum(found.values()),
        "overlap": shared(aside, clock.spans["tile"]) / sum(end - begin for begin, end in aside),
    }


def shared(some: list[Span], others: list[Span]) -> float:
    """Seconds of some spans in which at least one of the others goes on."""
    joined: list[list[float]] = []
    for begin, end in sorted(others):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return sum(
        max(0.0, min(end, last) - max(begin, first))
        for begin, end in some
        for first, last in joined
    )


if __name__ == "__main__":
    main()
