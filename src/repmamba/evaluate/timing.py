"""How fast a network is on this machine: passes timed, the memory of the process, and what ran
them.
"""

import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
    # highest so far, libraries and weights included; None where the system does not tell
    process_memory: float | None
    device_memory: float | None  # highest that torch took on a CUDA device; None elsewhere
    device: str
    processor: str  # its name
    backend: str
    why_backend: str
    precision: str
    threads: int

    @property
    def output_megapixels(self) -> float:
        """Pixels that one pass gives, in millions."""
        return self.batch * (self.scale * self.size) ** 2 / 1e6

    def to_dict(self) -> dict[str, object]:
        """The fields, the two rates and what was installed, for JSON."""
        return asdict(self) | {
            "versions": {name: version(name) for name in ("repmamba", "torch")},
            "megapixels_per_second": self.output_megapixels / self.fastest,
            "megapixels_per_second_median": self.output_megapixels / self.median,
        }

    def __str__(self) -> str:
        memory = (
            [f"{self.process_memory:.0f} MB in the process"]
            if self.process_memory is not None
            else []
        )
        memory += (
            [f"{self.device_memory:.0f} MB on the device"] if self.device_memory is not None else []
        )
        lines = {
            "network": f"weights {self.weights}, scale {self.scale}, {self.precision}",
            "input": f"{self.batch} x {self.size} x {self.size} pixels, {self.passes} "
            f"pass{'es' * (self.passes > 1)}",
            "device": f"{self.device} ({self.processor}), {self.threads} "
            f"thread{'s' * (self.threads > 1)}",
            "scan": f"{self.backend}: {self.why_backend}",
            "time": f"{1e3 * self.fastest:.1f} ms at the fastest, {1e3 * self.median:.1f} ms "
            "median",
            "speed": f"{self.output_megapixels / self.fastest:.3g} megapixels of output per second "
            f"({self.output_megapixels / self.median:.3g} median)",
            "memory": " and ".join(memory) + ", at the highest"
            if memory
            else "not told by this system",
        }
        return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


def time_network(
    upscaler: "Upscaler", *, size: int, batch: int, passes: int, backend: str | None = None
) -> Timing:
    """Time passes of (batch, bands, size, size) noise. backend: of the scan, as `load` was asked
    for it.
    """
    import torch

    from repmamba.inference.onnx_runner import ExportedNetwork
    from repmamba.scan.backends import BackendChoice, explain

    unit = torch.rand(batch, upscaler.bands, size, size, generator=torch.Generator().manual_seed(0))
    seconds = seconds_of(upscaler, unit, passes)
    exported = isinstance(upscaler.module, ExportedNetwork)
    choice = BackendChoice("exported", "ONNX Runtime, in which the scan is part of the graph.")
    choice = choice if exported else explain(upscaler.device, backend)
    on_cuda, memory = upscaler.device.type == "cuda", process_memory()
    return Timing(
        weights=upscaler.name,
        scale=upscaler.scale,
        size=size,
        batch=batch,
        passes=passes,
        fastest=min(seconds),
        median=statistics.median(seconds),
        process_memory=None if memory is None else memory / 1e6,
        device_memory=torch.cuda.max_memory_allocated(upscaler.device) / 1e6 if on_cuda else None,
        device=str(upscaler.device),
        processor=processor(upscaler.device),
        backend=choice.name,
        why_backend=choice.why,
        precision=upscaler.precision,
        threads=torch.get_num_threads(),
    )


def seconds_of(upscaler: "Upscaler", unit: "torch.Tensor", passes: int) -> list[float]:
    """The seconds of each pass over unit, after one that is not counted: it compiles and fills
    caches.
    """
    seconds = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        upscaler.run(unit)  # a result on the CPU: a GPU has finished when it is there
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def process_memory() -> int | None:
    """The most bytes that this process had resident so far, libraries included; None where the
    system does not tell.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest * (1 if sys.platform == "darwin" else 1024)  # bytes there, KiB on Linux


def processor(device: "torch.device") -> str:
    """The name of a GPU, or the model of the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    if described.is_file():  # Linux has no other place that names the model
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
