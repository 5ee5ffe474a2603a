"""repmamba bench: how fast a network is on this machine, and what runs it there."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from repmamba.cli import options

if TYPE_CHECKING:
    from repmamba.inference.upscaler import Upscaler


@dataclass(frozen=True, slots=True)
class Timing:
    """Passes of one network over tiles of one size. Times in seconds, memory in MB (10^6 bytes)."""

    weights: str
    scale: int
    size: int  # lr pixels of a tile's edge
    batch: int
    passes: int
    fastest: float
    median: float
    process_memory: float | None  # highest so far, libraries and weights included; None where the system does not tell
    device_memory: float | None  # highest that torch took on a CUDA device; None elsewhere
    device: str
    backend: str
    why_backend: str
    precision: str
    threads: int

    @property
    def output_megapixels(self) -> float:
        """Pixels that one pass gives, in millions."""
        return self.batch * (self.scale * self.size) ** 2 / 1e6

    def to_dict(self) -> dict[str, object]:
        """The fields and the two rates, for JSON."""
        return asdict(self) | {
            "megapixels_per_second": self.output_megapixels / self.fastest,
            "megapixels_per_second_median": self.output_megapixels / self.median,
        }

    def __str__(self) -> str:
        memory = [f"{self.process_memory:.0f} MB in the process"] if self.process_memory is not None else []
        memory += [f"{self.device_memory:.0f} MB on the device"] if self.device_memory is not None else []
        lines = {
            "network": f"{self.weights}, x{self.scale}, {self.precision}",
            "input": f"{self.batch} x {self.size} x {self.size} pixels, {self.passes} pass{'es' * (self.passes > 1)}",
            "device": f"{self.device}, {self.threads} thread{'s' * (self.threads > 1)}",
            "scan": f"{self.backend}: {self.why_backend}",
            "time": f"{1e3 * self.fastest:.1f} ms at the fastest, {1e3 * self.median:.1f} ms median",
            "speed": f"{self.output_megapixels / self.fastest:.2f} megapixels of output per second "
            f"({self.output_megapixels / self.median:.2f} median)",
            "memory": " and ".join(memory) + ", at the highest" if memory else "not told by this system",
        }
        return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


@click.command()
@options.weights
@options.scale
@options.device
@options.backend
@options.precision
@click.option(
    "--size", type=click.IntRange(min=1), default=128, show_default=True, help="Edge of the input, in pixels."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Inputs in one pass.")
@click.option("--passes", type=click.IntRange(min=1), default=10, show_default=True, help="Passes that are timed.")
@options.as_json
def bench(
    weights: str | None,
    scale: int | None,
    device: str | None,
    backend: str | None,
    precision: str | None,
    size: int,
    batch: int,
    passes: int,
    as_json: bool,
) -> None:
    """Time a network on this machine.

    Prints megapixels of output per second, the memory taken and what runs: device, scan backend, precision, threads.

    \b
    Examples:
      repmamba bench
      repmamba bench --size 256 --precision bfloat16
      repmamba bench --weights mine.safetensors --device cuda --batch 16 --json
    """
    from repmamba.inference.upscaler import load

    upscaler = load(weights, scale=scale, device=device, backend=backend, precision=precision)
    timing = time_network(upscaler, size=size, batch=batch, passes=passes, backend=backend)
    click.echo(json.dumps(timing.to_dict(), indent=2) if as_json else str(timing))


def time_network(upscaler: Upscaler, *, size: int, batch: int, passes: int, backend: str | None = None) -> Timing:
    """Time passes of (batch, bands, size, size) noise after one that is not counted: it compiles and fills caches."""
    import torch

    from repmamba.scan.backends import explain

    unit = torch.rand(batch, upscaler.bands, size, size, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        upscaler.run(unit)
        seconds.append(time.perf_counter() - start)
    timed = seconds[1:]
    choice = explain(upscaler.device, backend)
    on_cuda = upscaler.device.type == "cuda"
    return Timing(
        weights=upscaler.name,
        scale=upscaler.scale,
        size=size,
        batch=batch,
        passes=passes,
        fastest=min(timed),
        median=statistics.median(timed),
        process_memory=_process_memory(),
        device_memory=torch.cuda.max_memory_allocated(upscaler.device) / 1e6 if on_cuda else None,
        device=torch.cuda.get_device_name(upscaler.device) if on_cuda else str(upscaler.device),
        backend=choice.name,
        why_backend=choice.why,
        precision=upscaler.precision,
        threads=torch.get_num_threads(),
    )


def _process_memory() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest / 1e6 if sys.platform == "darwin" else highest * 1024 / 1e6  # bytes there, KiB on Linux
