"""Parity: how far an exported network is from the original, in each installed runtime.

Every export is measured: on noise of several sizes, odd sizes and a batch included, and on a
picture (96 x 96 pixels of examples/colorado.tif, public domain). The reference is the network as
`load` returns it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from repmamba.errors import ExportError
from repmamba.inference.exported import Difference
from repmamba.inference.onnx_runner import open_session
from repmamba.inference.runners import Runner

logger = logging.getLogger(__name__)

Run: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]

PICTURE = Path(__file__).with_name("picture.png")

# batch, height and width, if a network takes any size
NOISE = ((2, 33, 50), (1, 1, 1), (1, 144, 160))

ODD_PART = (slice(5, 76), slice(0, 89))  # 71 x 89 pixels of the picture

# the largest allowed difference, by the type of the stored matrices
LIMITS = {"float32": 1e-4, "float16": 1 / 255}


@dataclass(frozen=True, slots=True)
class Sample:
    """An input, and the network's result."""

    words: str
    lr: Tensor  # (batch, bands, h, w), unit
    sr: Tensor


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that runs ONNX files. samples: how many it gets."""

    package: str
    open: Callable[[bytes], Run]
    samples: int | None


def samples_of(
    runner: Runner, size: tuple[int, int] | None, finished: Callable[[Tensor], Tensor]
) -> list[Sample]:
    """Inputs for an export, and the expected results: `finished` of the network's own."""
    inputs = _fixed(runner.bands, *size) if size else _any(runner.bands)
    return [Sample(words, lr, finished(runner.run(lr))) for words, lr in inputs]


def _any(bands: int) -> Iterator[tuple[str, Tensor]]:
    whole = picture(bands)
    yield "picture", whole
    for number, (batch, height, width) in enumerate(NOISE):
        yield _noise(number, batch, bands, height, width)
    yield "part of the picture", whole[..., *ODD_PART].contiguous()


def _fixed(bands: int, height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    repeats = [-(-length // 96) for length in (height, width)]
    yield (
        "picture, repeated",
        picture(bands).repeat(1, 1, *repeats)[..., :height, :width].contiguous(),
    )
    yield _noise(0, 1, bands, height, width)


def _noise(seed: int, *shape: int) -> tuple[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return f"noise, seed {seed}", torch.rand(shape, generator=generator)


def picture(bands: int) -> Tensor:
    """The picture, (1, bands, 96, 96), unit; its grey, unless there are three bands."""
    with Image.open(PICTURE) as opened:
        rgb = torch.from_numpy(np.asarray(opened, np.float32) / 255).permute(2, 0, 1)
    if bands != 3:
        rgb = rgb.mean(0, keepdim=True).expand(bands, -1, -1)
    return rgb[None].contiguous()


def measured(content: bytes, samples: Sequence[Sample]) -> list[Difference]:
    """Measure an ONNX file in all installed runtimes. Raises MissingExtra, CheckpointError."""
    found = []
    for runtime in RUNTIMES:
        if importlib.util.find_spec(runtime.package) is None and runtime.samples is not None:
            continue
        run = runtime.open(content)
        some = samples[: runtime.samples]
        found += differences(run, some, runtime.package, version(runtime.package))
    return found


def differences(
    run: Run, samples: Sequence[Sample], runtime: str, of_version: str
) -> list[Difference]:
    """The largest difference between each sample's result and the expected one."""
    found = []
    for sample in samples:
        result = run(sample.lr.numpy())
        largest = float("inf")
        if result.shape == tuple(sample.sr.shape):
            away = np.abs(result - sample.sr.numpy()).max()
            largest = float(away) if np.isfinite(away) else largest
        logger.info("%s, %s %s: %.1e", runtime, sample.words, tuple(sample.lr.shape), largest)
        found.append(Difference(runtime, of_version, sample.words, tuple(sample.lr.shape), largest))
    return found


def check(found: Sequence[Difference], precision: str) -> None:
    """Raise ExportError if a difference is too large for the precision."""
    limit = LIMITS[precision]
    worst = max(found, key=lambda each: each.largest)
    if not worst.largest <= limit:
        raise ExportError(
            f"{worst.runtime} {worst.version} gives results that differ by {worst.largest:.2g} "
            f"from the network's own ({worst.input}, {'x'.join(map(str, worst.shape))}); at most "
            f"{limit:.2g} is allowed. Nothing was written. Report these weights, or try another "
            "version of this runtime."
        )


def _onnx_runtime(content: bytes) -> Run:
    session = open_session(content)
    name = session.get_inputs()[0].name
    return lambda lr: session.run(None, {name: lr})[0]


def _openvino(content: bytes) -> Run:
    import openvino

    # otherwise it uses half precision where available
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", settings)

    def run(lr: NDArray[np.float32]) -> NDArray[np.float32]:
        result: Any = compiled([lr])[0]
        return np.array(result, np.float32)

    return run


# the first one is required, the others are measured if installed
RUNTIMES = (
    Runtime("onnxruntime", _onnx_runtime, None),
    # OpenVINO compiles its kernels for each size, which takes seconds.
    Runtime("openvino", _openvino, 2),
)
