"""What a network costs: parameters and multiply-adds by count, time and memory by measurement.

Multiply-adds are counted from the configuration, scan included, as the specification counts them.
Tracing libraries do not know the scan and disagree about normalisations. COUNTED says what is
counted.
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
# per channel, direction and pixel: 4 per state, plus dt x and the skip
SCAN_OPERATIONS = 4 * STATE + 2
POOLED = 4  # pixels of the map per scanned pixel

Form = Literal["trained", "folded"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one lr image of a given size."""

    height: int  # lr pixels
    width: int
    parameters: int  # as trained
    parameters_folded: int  # each RepConv as one convolution
    multiply_adds: int  # RepConvs and BatchNorms folded
    scan_multiply_adds: int  # of these, the scan
    seconds: float | None = None  # median of several passes, after a warm-up
    seconds_least: float | None = None
    peak_memory: int | None = None  # bytes; `memory_of` says of what
    memory_of: str = ""
    device: str = ""


def parameters(config: NetworkConfig, form: Form = "trained") -> int:
    """Count the trainable parameters, as trained or with RepConvs folded (as papers count)."""
    import torch

    from repmamba.network.repmamba import RepMamba

    with torch.device("meta"):
        trained = sum(parameter.numel() for parameter in RepMamba(config).parameters())
    if form == "trained" or not config.repconv:
        return trained
    widths = sum(_widths(config)) * sum(config.depths)
    # 15 numbers per channel (3x3, 1x1 with bias, two BatchNorms) become 10, on 2C and C channels
    # of each RMB.
    return trained - 5 * 3 * widths


def multiply_adds(
    config: NetworkConfig, height: int, width: int, form: Form = "folded"
) -> dict[str, int]:
    """Multiply-adds of one pass over an lr image, by part of the network.

    Odd sizes count as the even ones that the network pads to.
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
    """The counted part of the cost of some passes over one lr image; nothing is run."""
    counted = multiply_adds(config, height, width)
    whole, scan = passes * sum(counted.values()), passes * counted["scan"]
    return Cost(height, width, parameters(config), parameters(config, "folded"), whole, scan)


def config_of(upscaler: "Upscaler") -> NetworkConfig:
    """The configuration of an Upscaler's network. Raises UsageError if it is not a RepMamba."""
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

    weights: What the Upscaler was loaded from; memory is measured in a new process.
    backend: What it was loaded with.  passes: Through the network for one image.
    Raises CheckpointError: the weights cannot be loaded again; OutOfMemory: memory does not suffice
    for an image of this size.
    """
    with _memory_errors(cost.height, cost.width):
        median, least = measure(upscaler, cost.height, cost.width)
        how = {"device": str(upscaler.device), "precision": upscaler.precision}
        most, whose = peak_memory(weights, cost.height, cost.width, backend=backend, **how)
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
    """Median and least seconds per pass over one lr image of this size, after a warm-up pass."""
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
    """The peak memory of enlarging one lr image, in bytes, and what it includes.

    On a GPU the memory that torch allocated; otherwise the resident memory of a new process,
    libraries included; None if the system does not report it. device, backend, precision: as for
    `load`.
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

    from repmamba.inference.loading import load

    upscaler = load(weights, device=device, backend=backend, precision=precision)
    upscaler.run(torch.rand(1, upscaler.bands, height, width))
    if upscaler.device.type == "cuda":
        return torch.cuda.max_memory_allocated(upscaler.device), "given out on the GPU"
    memory = process_memory()
    return memory, "" if memory is None else "resident in a fresh process, libraries included"


@contextmanager
def _memory_errors(height: int, width: int) -> Iterator[None]:
    """Turn what is raised for lack of memory into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on a CPU, torch has no own type
        ours = isinstance(error, MemoryError | BrokenProcessPool)
        if not ours and "memory" not in str(error):
            raise
        raise OutOfMemory(
            f"The cost of an LR image of {height}x{width} pixels cannot be measured: its process "
            "was killed or ran out of memory; use a smaller cost size, or leave the cost out."
        ) from error


def _place(upscaler: "Upscaler") -> str:
    """The name of a GPU, or the model of a CPU and the number of threads used."""
    import torch

    name = processor(upscaler.device)
    return name if upscaler.device.type == "cuda" else f"{name}, threads: {torch.get_num_threads()}"


def _widths(config: NetworkConfig) -> tuple[int, ...]:
    return RMB_WIDTHS if config.cssp else SPLIT


def _rmb(c: int, config: NetworkConfig, form: Form) -> int:
    """One RMB of width c without its scan, per lr pixel."""
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
    """Per lr pixel, whatever the size of the map that a convolution works on."""
    bands, s = config.in_chans, config.scale
    same = _conv(WIDTH, WIDTH)
    if config.upsampler == "pixelshuffledirect":
        return _conv(WIDTH, bands * s * s)
    if config.upsampler == "pixelshuffle":
        shuffles = {2: (1,), 3: (1,), 4: (1, 4)}[s]  # area of a map, in lr pixels
        step = 3 if s == 3 else 2
        between = sum(area * _conv(WIDTH, WIDTH * step * step) for area in shuffles)
        return same + between + s * s * _conv(WIDTH, bands)
    if config.upsampler == "nearest+conv":
        return same + 4 * same + 16 * same + 16 * same + 16 * _conv(WIDTH, bands)
    return _conv(WIDTH, bands)
