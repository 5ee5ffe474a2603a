"""repmamba bench: how fast a network is on this machine, and what it runs on."""

from __future__ import annotations

import json
from typing import Any

import click

from repmamba.cli import options


@click.command()
@options.weights
@options.scale
@options.device
@options.backend
@options.precision
@click.option(
    "--size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Edge of the input, in pixels.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Inputs in one pass."
)
@click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Passes that are timed.",
)
@options.as_json
def bench(
    backend: str | None,
    size: int,
    batch: int,
    passes: int,
    as_json: bool,
    **arguments: Any,  # of repmamba.load
) -> None:
    """Time a network on this machine.

    Prints megapixels of output per second, the memory taken and what runs: device, scan backend,
    precision, threads. As JSON, times are in seconds and memory in MB (10^6 bytes).

    \b
    Examples:
      repmamba bench
      repmamba bench --size 256 --precision bfloat16
      repmamba bench --weights mine.safetensors --device cuda --batch 16 --json
    """
    from repmamba.evaluate.timing import time_network
    from repmamba.inference.loading import load

    upscaler = load(backend=backend, **arguments)
    timing = time_network(upscaler, size=size, batch=batch, passes=passes, backend=backend)
    click.echo(json.dumps(timing.to_dict(), indent=2) if as_json else str(timing))
