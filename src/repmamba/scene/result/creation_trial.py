"""A trial of creation options: a small raster is written with them in memory and read again.

Many options exclude each other, this differs between GDAL versions, and GDAL only reports it when
it creates the file, after all tiles are computed. A trial finds it in milliseconds, before the
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
from repmamba.gdal import created, opened, settings
from repmamba.scene.result.formats import FORMATS, creation_options, is_lossless
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.readback import GDAL_FAILURES, OWN_FILES
from repmamba.scene.source.grid import Grid

NAME = "trial"  # of the files in memory
EDGE = 96  # pixels, more than one block
# mean difference that no compression causes in numbers of 100 or more; lost blocks read as 0
LOST = 60.0
# the options may ask for blocks of 4096 x 4096
SMALL_BLOCKS = {"BLOCKXSIZE": "64", "BLOCKYSIZE": "64", "BLOCKSIZE": "128"}


def check_options(profile: OutputProfile) -> None:
    """Raise UsageError if GDAL rejects the creation options for the profile's type and bands."""
    asked = ", ".join(f"{name}={value}" for name, value in profile.creation)
    try:
        with settings({"GDAL_TIFF_INTERNAL_MASK": "YES", **OWN_FILES}):
            fault = _fault(replace(profile, grid=Grid(EDGE, EDGE)))
    except GDAL_FAILURES as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        fault = reason.rpartition(f"{NAME}: ")[2]
    if fault is not None:
        raise UsageError(
            f"{profile.format} cannot hold {profile.count} bands of {profile.dtype} with "
            f"{asked or 'the default options'} ({fault}): change or remove creation=."
        )


def _fault(profile: OutputProfile) -> str | None:
    """What is wrong with the small file as read back; None if nothing is."""
    chosen, options = FORMATS[profile.format], creation_options(profile)
    options |= {name: edge for name, edge in SMALL_BLOCKS.items() if name in options}
    # values that fit every type and that no lossy compression turns into 0
    ramp = np.linspace(100, 120, EDGE).astype(profile.dtype)
    pattern = np.broadcast_to(ramp, (profile.count, EDGE, EDGE))
    with MemoryFile(filename=NAME) as first, MemoryFile(filename=NAME) as second:
        direct = chosen.driver == "GTiff"
        _write(first, profile, pattern, options if direct else {})
        if not direct:
            gdal_copy(first.name, second.name, driver=chosen.driver, **options)
        with opened((first if direct else second).name) as file:
            found = file.read()
            if (file.count, file.dtypes[0]) != (profile.count, profile.dtype):
                return f"it reads back as {file.count} bands of {file.dtypes[0]}"
            error = np.abs(found.astype(np.float64) - pattern)
            if error.max() > 0 if is_lossless(profile) else error.mean() > LOST:
                return "its pixels read back differently"
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
