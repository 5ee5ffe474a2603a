"""What every benchmark shares: its options, and its answer as JSON, with the machine and the
versions it is of.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from repmamba.cores import available_cores
from repmamba.evaluate.timing import processor
from repmamba.inference.upscaler import Upscaler

ROOT = Path(__file__).parents[1]
PACKAGES = ("repmamba", "torch", "numpy", "rasterio", "transformers", "openvino", "onnxruntime")


def options(description: str | None, answer: Path | None = None) -> argparse.ArgumentParser:
    """The options of a benchmark, its docstring their introduction; --json, where its answer goes.

    answer: where it goes by itself, from the root of the checkout; by default a file of its name in
    benchmarks/results.
    """
    answer = answer or Path("benchmarks", "results", f"{Path(sys.argv[0]).stem}.json")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=ROOT / answer, help=f"the answer [{answer}]"
    )
    return parser


def options_on_imagery(
    description: str | None, answer: Path | None = None
) -> argparse.ArgumentParser:
    """`options`, and --weights and --reference, what is measured and on which data."""
    parser = options(description, answer)
    parser.add_argument(
        "--weights", metavar="NAME|FILE", default="x4", help="what is measured [%(default)s]"
    )
    reference = os.environ.get("REPMAMBA_REFERENCE", str(ROOT.parent / "shared"))
    parser.add_argument(
        "--reference",
        type=_existing,
        metavar="FOLDER",
        default=reference,
        help="imagery [%(default)s]",
    )
    return parser


def count(text: str) -> int:
    """A number of rounds, threads, pixels or pictures, at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)


def _existing(name: str) -> Path:
    if not Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"{name} is no folder: name that of the reference data")
    return Path(name)


def weights(upscaler: Upscaler) -> dict[str, str]:
    """Which weights were measured."""
    return {"name": upscaler.name, "digest": upscaler.digest}


def write(path: Path, *, threads: int, clock: str = "wall", **results: Any) -> None:
    """The results as JSON, with the machine and the versions they were measured with. clock: "wall"
    or "cpu".
    """
    machine = {
        "processor": processor(torch.device("cpu")),
        "cores": available_cores(),
        "threads": threads,
        "clock": clock,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    versions = {name: _version(name) for name in PACKAGES}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine, "versions": versions, **results}, indent=1) + "\n", "utf-8"
    )
    print(f"The answer as JSON: {path}", file=sys.stderr)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
