"""What a network costs: parameters and multiply-adds by the specification's count, time and memory
by measurement.

Multiply-adds are counted from the configuration, the scan included, and not from a trace: tracing
libraries do not know the scan, and count or leave out normalisations as they like. How it is
counted is part of the answer (COUNTED).
"""

import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Literal

from repmamba.errors import OutOfMemory, UsageError
from repmamba.evaluate.timing import process_memory, processor, seconds_of
from repmamba.network.config import RMB_WIDTHS, SPLIT, WIDTH, NetworkConfig, dt_rank
from repmamba.scan.sizes import DIRECTIONS, STATE

if TYPE_CHECKING:
    from repmamba.inference.upscaler import Upscaler

COUNTED = (
    "multiply-adds of convolutions, linear layers and the scan (66 for each channel, direction and "
    "pooled pixel); normalisations, activations, gates, pooling, interpolation and exponentials "
    "are not counted"
)
# a channel, direction and pixel: 4 for each state; dt x and the skip
SCAN_OPERATIONS = 4 * STATE + 2
POOLED = 4  # pixels of the map for each one that is scanned

Form = Literal["trained", "folded"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one network costs for one lr image of a stated size."""

    height: int  # lr pixels
    width: int
    parameters: int  # as trained
    parameters_folded: int  # every RepConv one convolution
    multiply_adds: int  # RepConvs and BatchNorms folded
    scan_multiply_adds: int  # of these, the scan
    seconds: float | None = None  # median of several passes, after one that warms up
    seconds_least: float | None = None
    peak_memory: int | None = None  # bytes; what is meant, `memory_of` says
    memory_of: str = ""
    device: str = ""


def parameters(config: NetworkConfig, form: Form = "trained") -> int:
    """Trainable numbers of a network, as trained or with every RepConv folded (the count that
    papers print).
    """
    import torch

    from repmamba.network.repmamba import RepMamba

    with torch.device("meta"):
        trained = sum(parameter.numel() for parameter in RepMamba(config).parameters())
    if form == "trained" or not config.repconv:
        return trained
    widths = sum(_widths(config)) * sum(config.depths)
    # 15 numbers a channel (3x3, 1x1 with bias, two BatchNorms) become 10, on 2C and on C channels
    # of each RMB.
    return trained - 5 * 3 * widths


def multiply_adds(
    config: NetworkConfig, height: int, width: int, form: Form = "folded"
) -> dict[str, int]:
    """Multiply-adds of one pass over an lr image, part by part. Odd sizes count as the even ones
    the network makes.

    Source: section 8 of the specification.
    """
    pixels = (height + height % 2) * (width + width % 2)
    blocks, groups = sum(config.depths), len(config.depths)
    cssp = sum(_rmb(c, config, form) for c in _widths(config))
    scan = sum(SCAN_OPERATIONS * c * DIRECTIONS // POOLED for c in _widths(config))
    hidden = config.hidden
    connection = _conv(WIDTH, WIDTH) if config.resi_connection == "1conv" else _bottleneck()
    per_pixel = {
        "conv_first": _conv(config.in_chans, WIDTH),
        "CSSP without scan": blocks * cssp,
        "scan": blocks * scan,
        "ConvFFN": blocks * (2 * WIDTH * hidden + 25 * hidden),
        "group convolutions": groups * connection,
        "conv_after_body": connection,
        "upsampler": _upsampler(config),
    }
    return {part: count * pixels for part, count in per_pixel.items()}


def cost_of(config: NetworkConfig, height: int, width: int, *, passes: int = 1) -> Cost:
    """The counted part of a network's cost, of so many passes over one image; nothing is run."""
    counted = multiply_adds(config, height, width)
    whole, scan = passes * sum(counted.values()), passes * counted["scan"]
    return Cost(height, width, parameters(config), parameters(config, "folded"), whole, scan)


def config_of(upscaler: "Upscaler") -> NetworkConfig:
    """The configuration of the network that an Upscaler runs. Raises UsageError if it is none of
    ours.
    """
    config = getattr(upscaler.module, "config", None)
    if not isinstance(config, NetworkConfig):
        raise UsageError(
            f"{upscaler.name} is not a RepMamba network, so its cost cannot be counted."
        )
    return config


def measured(
    cost: Cost, upscaler: "Upscaler", weights: str, *, backend: str | None = None, passes: int = 1
) -> Cost:
    """The cost with time and memory added, on the Upscaler's device and in its precision.

    weights, backend: what the Upscaler was loaded from and with, as memory is measured in a process
    of its own. Raises CheckpointError, OutOfMemory.
    """
    with _memory_errors(cost.height, cost.width):
        median, least = measure(upscaler, cost.height, cost.width)
        most, whose = peak_memory(
            weights,
            cost.height,
            cost.width,
            device=str(upscaler.device),
            backend=backend,
            precision=upscaler.precision,
        )
    return replace(
        cost,
        seconds=passes * median,
        seconds_least=passes * least,
        peak_memory=most,
        memory_of=whose,
        device=f"{upscaler.device} ({_place(upscaler)}), {upscaler.precision}",
    )


def measure(
    upscaler: "Upscaler", height: int, width: int, *, passes: int = 5
) -> tuple[float, float]:
    """Median and least seconds of a pass over one lr image of that size, after one pass that warms
    up.
    """
    import torch

    unit = torch.rand(1, upscaler.bands, height, width, generator=torch.Generator().manual_seed(0))
    taken = seconds_of(upscaler, unit, passes)
    return statistics.median(taken), min(taken)


def peak_memory(
    weights: str,
    height: int,
    width: int,
    *,
    device: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> tuple[int | None, str]:
    """Most bytes in use while one lr image is enlarged, and whose bytes they are.

    device, backend, precision: as for `load`. On a GPU what its allocator gave out; else the
    resident memory of a fresh process, libraries included; None where the system does not tell.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(
            _peak_in_this_process, weights, height, width, device, backend, precision
        ).result()


def _peak_in_this_process(
    weights: str,
    height: int,
    width: int,
    device: str | None,
    backend: str | None,
    precision: str | None,
) -> tuple[int | None, str]:
    import torch

    from repmamba.inference.upscaler import load

    upscaler = load(weights, device=device, backend=backend, precision=precision)
    upscaler.run(torch.rand(1, upscaler.bands, height, width))
    if upscaler.device.type == "cuda":
        return torch.cuda.max_memory_allocated(upscaler.device), "given out on the GPU"
    memory = process_memory()
    return memory, "" if memory is None else "resident in a fresh process, libraries included"


@contextmanager
def _memory_errors(height: int, width: int) -> Iterator[None]:
    """Turn what is raised where memory does not suffice into OutOfMemory, one line."""
    try:
        yield
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # BrokenProcessPool is one, and torch has no kind of its own on a CPU
        if (
            isinstance(error, RuntimeError)
            and not isinstance(error, BrokenProcessPool)
            and "memory" not in str(error)
        ):
            raise
        raise OutOfMemory(
            f"The cost of an LR image of {height}x{width} pixels cannot be measured: its process "
            "was ended from outside or had too little memory; take a smaller cost size, or leave "
            "the cost out."
        ) from error


def _place(upscaler: "Upscaler") -> str:
    """The name of a GPU; of a CPU its model, and how many threads of it are used."""
    import torch

    name = processor(upscaler.device)
    return name if upscaler.device.type == "cuda" else f"{name}, threads: {torch.get_num_threads()}"


def _widths(config: NetworkConfig) -> tuple[int, ...]:
    return RMB_WIDTHS if config.cssp else SPLIT


def _rmb(c: int, config: NetworkConfig, form: Form) -> int:
    """One RMB of width c without its scan, for each lr pixel."""
    rank = dt_rank(c)
    taps = 10 if form == "trained" and config.repconv else 9
    depthwise = taps * (2 * c + c)
    projections = 4 * c * c + 2 * c * c + DIRECTIONS * (c * (rank + 2 * STATE) + c * rank) // POOLED
    affine = c if form == "trained" else 0
    return projections + depthwise + affine


def _conv(inputs: int, outputs: int, size: int = 3) -> int:
    return inputs * outputs * size * size


def _bottleneck() -> int:
    narrow = WIDTH // 4
    return _conv(WIDTH, narrow) + _conv(narrow, narrow, 1) + _conv(narrow, WIDTH)


def _upsampler(config: NetworkConfig) -> int:
    """For each lr pixel, whatever the size of the map that a convolution works on."""
    bands, s = config.in_chans, config.scale
    same = _conv(WIDTH, WIDTH)
    if config.upsampler == "pixelshuffledirect":
        return _conv(WIDTH, bands * s * s)
    if config.upsampler == "pixelshuffle":
        shuffles = {2: (1,), 3: (1,), 4: (1, 4)}[s]  # lr pixels are 1; a map twice as large has 4
        step = 3 if s == 3 else 2
        return (
            same
            + sum(area * _conv(WIDTH, WIDTH * step * step) for area in shuffles)
            + s * s * _conv(WIDTH, bands)
        )
    if config.upsampler == "nearest+conv":
        return same + 4 * same + 16 * same + 16 * same + 16 * _conv(WIDTH, bands)
    return _conv(WIDTH, bands)
