"""How fast a network is on this machine: timed passes, memory, and what ran them."""

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
    """Passes of a network over tiles of one size. Times in seconds, memory in MB (10^6 bytes)."""

    weights: str
    scale: int
    size: int  # side of a tile, in lr pixels
    batch: int
    passes: int
    fastest: float
    median: float
    # peak, libraries and weights included; None if the system does not report it
    process_memory: float | None
    device_memory: float | None  # peak allocated by torch on a CUDA device, else None
    device: str
    processor: str  # its name
    backend: str
    why_backend: str
    precision: str
    threads: int

    @property
    def output_megapixels(self) -> float:
        """Output of one pass in millions of pixels."""
        return self.batch * (self.scale * self.size) ** 2 / 1e6

    def to_dict(self) -> dict[str, object]:
        """The fields, both rates and the installed versions, for JSON."""
        return asdict(self) | {
            "versions": {name: version(name) for name in ("repmamba", "torch")},
            "megapixels_per_second": self.output_megapixels / self.fastest,
            "megapixels_per_second_median": self.output_megapixels / self.median,
        }

    def __str__(self) -> str:
        parts = ((self.process_memory, "in the process"), (self.device_memory, "on the device"))
        memory = [f"{size:.0f} MB {where}" for size, where in parts if size is not None]
        lines = {
            "network": f"weights {self.weights}, scale {self.scale}, {self.precision}",
            "input": f"{self.batch} x {self.size} x {self.size} pixels, {self.passes} "
            f"pass{'es' * (self.passes > 1)}",
            "device": f"{self.device} ({self.processor}), {self.threads} "
            f"thread{'s' * (self.threads > 1)}",
            "scan": f"{self.backend}: {self.why_backend}",
            "time": f"{1e3 * self.fastest:.1f} ms fastest, {1e3 * self.median:.1f} ms median",
            "speed": f"{self.output_megapixels / self.fastest:.3g} megapixels of output per second "
            f"({self.output_megapixels / self.median:.3g} median)",
            "memory": " and ".join(memory) + ", peak" if memory else "not reported by this system",
        }
        return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


def time_network(
    upscaler: "Upscaler", *, size: int, batch: int, passes: int, backend: str | None = None
) -> Timing:
    """Time passes over (batch, bands, size, size) noise. backend: as given to `load`."""
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
    """The seconds of each pass over unit, after a warm-up pass that compiles and fills caches."""
    seconds = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        upscaler.run(unit)  # waits for a GPU, as the result is on the CPU
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def process_memory() -> int | None:
    """Peak resident memory of this process in bytes; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


def processor(device: "torch.device") -> str:
    """The name of a GPU, or the model of the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")
    if described.is_file():  # Linux names the model only here
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
