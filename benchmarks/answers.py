"""What every benchmark shares: where the reference data lies, and its answer as JSON, with the machine it is of."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from repmamba.evaluate.timing import processor

ROOT = Path(__file__).parents[1]
PACKAGES = ("repmamba", "torch", "numba", "numpy", "rasterio", "transformers")


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark, its docstring their introduction; --json, where its answer goes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / f"{Path(sys.argv[0]).stem}.json")
    return parser


def options_on_imagery(description: str | None) -> argparse.ArgumentParser:
    """`options`, and --weights and --reference, what is measured and on which data."""
    parser = options(description)
    parser.add_argument("--weights", default="x4")
    reference = Path(os.environ.get("REPMAMBA_REFERENCE", ROOT.parent / "shared"))
    parser.add_argument("--reference", type=_existing, default=reference)
    return parser


def _existing(name: str | Path) -> Path:
    if not Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"{name} is no folder: name that of the reference data")
    return Path(name)


def write(path: Path, *, threads: int, clock: str = "wall", **results: Any) -> None:
    """The results as JSON, with the machine and the versions they were measured with. clock: "wall" or "cpu"."""
    machine = {
        "processor": processor(torch.device("cpu")),
        "cores": os.cpu_count(),
        "threads": threads,
        "clock": clock,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    versions = {name: _version(name) for name in PACKAGES}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "versions": versions, **results}, indent=1) + "\n", "utf-8")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
