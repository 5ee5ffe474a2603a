"""A trial of creation options: a few small blocks are written with them, in memory, and read again.

Options that exclude each other are many, differ among GDAL's versions, and show when a file is
made: which would be after every tile is computed. Here they show in a few milliseconds, before the
first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.shutil import copy as gdal_copy

from repmamba.errors import UsageError
from repmamba.gdal import created, opened
from repmamba.scene.result.formats import FORMATS, creation_options, is_lossless
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import GDAL_FAILURES, OWN_FILES
from repmamba.scene.source.grid import Grid

NAME = "trial"  # of the files in memory
EDGE = 96  # pixels, of more than one block
# grey levels on average that no compression changes, of numbers of 100 or more; lost blocks read as
# 0
LOST = 60.0
# blocks asked for may take 4096 x 4096
SMALL_BLOCKS = {"BLOCKXSIZE": "64", "BLOCKYSIZE": "64", "BLOCKSIZE": "128"}


def check_options(profile: OutputProfile) -> None:
    """Raise UsageError where GDAL does not take the profile's creation options for its type and
    bands.
    """
    asked = ", ".join(f"{name}={value}" for name, value in profile.creation)
    try:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES", **OWN_FILES):
            fault = _fault(replace(profile, grid=Grid(EDGE, EDGE)))
    except GDAL_FAILURES as error:
        fault = (
            " ".join(str(error.__cause__ or error).split()).rstrip(".").rpartition(f"{NAME}: ")[2]
        )
    if fault is not None:
        raise UsageError(
            f"{profile.format} cannot hold {profile.count} bands of {profile.dtype} with "
            f"{asked or 'its usual options'} ({fault}): leave out or change what was asked for "
            "with creation=."
        )


def _fault(profile: OutputProfile) -> str | None:
    """What is wrong with a small file as it is read again; None when nothing is."""
    chosen, options = FORMATS[profile.format], creation_options(profile)
    options |= {name: edge for name, edge in SMALL_BLOCKS.items() if name in options}
    pattern = _pattern(profile)
    with MemoryFile(filename=NAME) as first, MemoryFile(filename=NAME) as second:
        direct = chosen.driver == "GTiff"
        _write(first, profile, pattern, options if direct else {})
        if not direct:
            gdal_copy(first.name, second.name, driver=chosen.driver, **options)
        with opened((first if direct else second).name) as file:
            found = file.read()
            if (file.count, file.dtypes[0]) != (profile.count, profile.dtype):
                return f"it comes back as {file.count} bands of {file.dtypes[0]}"
            error = np.abs(found.astype(np.float64) - pattern)
            if error.max() > 0 if is_lossless(profile) else error.mean() > LOST:
                return "its pixels do not come back"
    return None


def _write(
    memory: MemoryFile, profile: OutputProfile, pattern: NDArray[Any], options: dict[str, str]
) -> None:
    shape = {"width": EDGE, "height": EDGE, "count": profile.count, "dtype": profile.dtype}
    with created(memory.name, nodata=profile.nodata, **shape, **options) as file:
        file.colorinterp = tuple(rasterio.enums.ColorInterp[name] for name in profile.colorinterp)
        file.write(pattern)
        if profile.mask:
            file.write_mask(np.ones((EDGE, EDGE), bool))


def _pattern(profile: OutputProfile) -> NDArray[Any]:
    """Numbers that every type holds and no loss makes look like 0: (count, EDGE, EDGE)."""
    ramp = np.linspace(100, 120, EDGE).astype(profile.dtype)
    return np.broadcast_to(ramp, (profile.count, EDGE, EDGE))
