"""repmamba info: what is installed, or what a file is. Collects facts first, then prints them."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repmamba import __version__
from repmamba.cli import options
from repmamba.cli.terminal import in_flags, printable
from repmamba.errors import CorruptSource, SourceError

if TYPE_CHECKING:
    from rasterio.crs import CRS

    from repmamba.scene.source.grid import Grid
    from repmamba.scene.source.raster import Raster, RasterFacts

Facts = dict[str, Any]

LIBRARIES = ("torch", "numpy", "rasterio", "Pillow")


@click.command()
@click.argument("file", required=False, type=options.PackagedWeightsOrPath())
@click.option(
    "--scale",
    type=click.IntRange(2, 4),
    default=4,
    show_default=True,
    help="For a raster: the scale of the result.",
)
@click.option(
    "--device",
    help="Without FILE: the device to describe.  [default: cuda if there is one, else cpu]",
)
@options.as_json
def info(file: str | None, scale: int, device: str | None, as_json: bool) -> None:
    """Show what is installed and what runs, or what FILE is.

    FILE is a raster, a checkpoint (file or folder), an export (.onnx) or the name of packaged
    weights.

    \b
    Examples:
      repmamba info
      repmamba info scene.tif
      repmamba info x4
      repmamba info mine.safetensors --json
    """
    if file is None:
        shown = facts = environment_facts(device)
    elif file.lower().endswith(".onnx"):
        shown = facts = export_facts(file)
    elif _names_weights(file):
        facts = checkpoint_facts(file)
        shown = _in_short(file, facts)
    else:
        _refuse_unknown_name(file)
        shown = facts = raster_facts(file, scale)
    click.echo(json.dumps(facts, indent=2, default=str) if as_json else "\n".join(lines(shown)))


def environment_facts(device: str | None = None) -> Facts:
    """Versions, the device, the scan that runs on it and why, and the packaged weights."""
    import rasterio

    from repmamba.cores import available_cores
    from repmamba.evaluate.timing import processor
    from repmamba.inference.catalogue import packaged_weights
    from repmamba.inference.device import choose_device
    from repmamba.scan.backends import explain, survey

    place = choose_device(device)
    scan = explain(place)
    return {
        "repmamba": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": {name: version(name) for name in LIBRARIES}
        | {"GDAL": rasterio.__gdal_version__},
        "device": {"chosen": str(place), "name": processor(place), "cores": available_cores()},
        "scan": {"backend": scan.name, "why": scan.why, "there are": survey(place)},
        "weights": {
            entry.name: {
                "scale": entry.scale,
                "trained on": entry.training_data,
                "terms": entry.terms,
            }
            for entry in packaged_weights()
        },
    }


def checkpoint_facts(weights: str) -> Facts:
    """Configuration, size, origin and training of a network given by name, file or folder."""
    from repmamba.evaluate.cost import parameters
    from repmamba.inference.catalogue import find_weights
    from repmamba.network.checkpoint import read_checkpoint
    from repmamba.network.fusion import fuse

    found = find_weights(weights)
    checkpoint = read_checkpoint(found.path)
    network = checkpoint.network()
    return {
        "checkpoint": str(found.path),
        "origin": checkpoint.origin,
        "scale": checkpoint.config.scale,
        "parameters": {
            "as trained": parameters(checkpoint.config),
            "RepConvs folded, as papers count": parameters(checkpoint.config, "folded"),
            "all folded, as it runs": sum(one.numel() for one in fuse(network).parameters()),
        },
        "value range": list(checkpoint.value_range),
        "configuration": checkpoint.config.to_dict(),
        "training": dict(checkpoint.training),
    }


def export_facts(file: str) -> Facts:
    """What a file of `repmamba export` contains. Raises CheckpointError, MissingExtra."""
    from repmamba.inference.onnx_runner import read_export

    facts = read_export(Path(file)).facts
    size = "any size"
    if facts.size is not None:
        size = f"{facts.size[1]} x {facts.size[0]} pixels, one at a time"
    largest = {each.runtime: 0.0 for each in facts.parity}
    for each in facts.parity:
        largest[each.runtime] = max(largest[each.runtime], each.largest)
    return {
        "export": file,
        "weights": facts.name,
        "terms": facts.terms,
        "scale": facts.scale,
        "bands": facts.bands,
        "input": size,
        "value range": list(facts.value_range),
        "tile and halo": f"{facts.tile} and {facts.halo} pixels of the input",
        "matrices": facts.precision,
        "for": facts.purpose or "any program",
        "nodes": facts.nodes,
        "largest difference": {name: f"{value:.1e}" for name, value in largest.items()},
        "written by": facts.written_by,
    }


def raster_facts(source: str, scale: int) -> Facts:
    """What a raster is, and how `repmamba upscale` treats it. Raises SourceError, UsageError."""
    from repmamba.scene.band_selection import describe_grey_bands, usual_bands
    from repmamba.scene.source.describe import describe_alpha, describe_colours, describe_missing
    from repmamba.scene.source.raster import open_raster
    from repmamba.scene.value_range import describe_usual_range
    from repmamba.tiles.plan import TILE, plan_tiles

    with open_raster(source) as raster:
        facts, between = raster.facts, describe_usual_range(raster)
        weights = _weights(raster, f"x{scale}")
    grid, together = facts.grid, usual_bands(facts).together
    described = zip(facts.colorinterp, facts.descriptions, strict=True)
    bands = (f"{colour}, {text}" if text else colour for colour, text in described)
    alone = describe_grey_bands(together, facts)
    return {
        "raster": facts.name,
        "format": facts.driver,
        "size": f"{grid.width} x {grid.height} pixels",
        "bands": dict(sorted(zip(facts.numbers, bands, strict=True))),
        "type": facts.dtype,
        "missing pixels": describe_missing(facts),
        "alpha": in_flags(describe_alpha(facts)),
        "colours": describe_colours(together),
        "value range": between,
        "place": _place(facts),
        **({} if alone is None else {"through the network": in_flags(alone)}),
        "enlarged": {
            "scale": scale,
            "size": f"{scale * grid.width} x {scale * grid.height} pixels",
            "tiles": f"{len(plan_tiles(grid.height, grid.width, scale))}, of up to {TILE} x {TILE} "
            "pixels of the input",
            **_pixel(grid.refined(scale)),
            "weights": weights,
        },
    }


def _in_short(weights: str, facts: Facts) -> Facts:
    """The most useful facts of a checkpoint in ten lines; the JSON has all of them."""
    from repmamba.inference.catalogue import packaged_weights

    entry = next((entry for entry in packaged_weights() if entry.name == weights), None)
    config, counts, training = facts["configuration"], facts["parameters"], facts["training"]
    given = [f"{name} {training[name]}" for name in ("tile", "halo", "steps") if name in training]
    return {
        "checkpoint": facts["checkpoint"],
        "origin": facts["origin"],
        "scale": facts["scale"],
        "parameters": ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        "network": f"{config['upsampler']}, {len(config['depths'])} groups, {config['in_chans']} "
        "bands",
        "value range": "{:g} to {:g}".format(*facts["value range"]),
        **({} if entry is None else {"trained on": entry.training_data, "terms": entry.terms}),
        **({"training": ", ".join(given)} if given else {}),
        "more": f"repmamba info {weights} --json",
    }


def _refuse_unknown_name(file: str) -> None:
    """Raise SourceError for a name that is neither packaged weights nor a file."""
    from repmamba.inference.catalogue import packaged_weights

    if re.fullmatch(r"[\w-]+", file) and not os.path.exists(file):
        names = ", ".join(entry.name for entry in packaged_weights())
        raise SourceError(f"{file} is neither a file nor the name of packaged weights: {names}.")


def _weights(raster: Raster, usual: str) -> str:
    """The weights that upscale uses by default, and why."""
    from repmamba.scene.choice import choose

    try:
        choice = choose(raster, usual)
    except CorruptSource as fault:  # everything else is still known
        return f"{usual}, if the pixels can be read: {fault}"
    return usual if choice is None else f"{choice.weights}: the scene is {choice.why}"


def lines(facts: Mapping[str, Any], indent: int = 0) -> list[str]:
    """Facts as aligned lines, nested tables indented. Text from files is made printable."""
    width = max((len(str(name)) for name in facts), default=0) + 2
    result = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            result.append(" " * indent + printable(name) + ("" if value else "  none"))
            result += lines(value, indent + 2)
        else:
            result.append(" " * indent + f"{printable(name):<{width}}{printable(_words(value))}")
    return result


def _place(facts: RasterFacts) -> Facts:
    if facts.gcps:
        return {"ground control points": len(facts.gcps[0]), "crs": _crs(facts.gcps[1])}
    if facts.rpcs:
        return {"rational polynomials (RPC)": "in the tags"}
    if not facts.has_place:
        return {}
    corners = [f"({x:.10g}, {y:.10g})" for x, y in facts.grid.corners()]
    return {"crs": _crs(facts.grid.crs), "corners": corners, **_pixel(facts.grid)}


def _pixel(grid: Grid) -> Facts:
    """The size of a pixel in units of the CRS, also of a rotated grid."""
    if grid.transform is None:
        return {}
    place = grid.transform
    return {"pixel": f"{math.hypot(place.a, place.d):.10g} x {math.hypot(place.b, place.e):.10g}"}


def _crs(crs: CRS | None) -> str:
    """The code of a coordinate system, or its name if it has none."""
    if crs is None:
        return "none"
    if code := crs.to_epsg():
        return f"EPSG:{code}"
    name: str = crs.wkt.partition('"')[2].partition('"')[0]
    return f"{name}, without a code"


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value)
    if type(value) is int:
        return f"{value:,}"
    return "-" if value is None or value == "" else str(value)


def _names_weights(file: str) -> bool:
    from repmamba.inference.catalogue import packaged_weights
    from repmamba.network.checkpoint import WEIGHTS_ENDINGS
    from repmamba.scene.source.admission import RASTER_FOLDERS

    path = Path(file)
    packaged = file in {entry.name for entry in packaged_weights()} and not path.exists()
    folder = os.path.isdir(file) and path.suffix.upper() not in RASTER_FOLDERS
    return packaged or folder or file.lower().endswith(WEIGHTS_ENDINGS)
