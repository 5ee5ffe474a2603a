"""GDAL beside other users in the same process: global settings are restored after each call.

rasterio warns about every dataset without georeferencing, and `warnings.catch_warnings` is not
thread-safe. So datasets are opened by classes that do not warn. GDAL has one block cache for all
datasets and threads; its size is set while a call is in progress, and restored by the last one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rasterio.env import ensure_env_with_credentials, get_gdal_config, set_gdal_config
from rasterio.io import DatasetReader, DatasetWriter

# rasterio always passes this one in bytes
CACHE = "GDAL_CACHEMAX"

# more was not faster, and memory grows by 1.8 times as much
CACHE_BYTES = 64 << 20

_guard = threading.Lock()
_writing = threading.Lock()
# calls in progress, and the cache size before the first of them
_inside, _bytes_outside = 0, 0


class _Reader(DatasetReader):  # type: ignore[misc]
    def _has_gcps_or_rpcs(self) -> bool:
        return True  # rasterio only uses this to decide whether to warn


class _Writer(DatasetWriter):  # type: ignore[misc]
    def _has_gcps_or_rpcs(self) -> bool:
        return True


@ensure_env_with_credentials  # type: ignore[untyped-decorator]
def opened(name: str | os.PathLike[str], *, driver: str | None = None, **options: Any) -> Any:
    """Open a raster for reading, as `rasterio.open`, without a warning about georeferencing."""
    return _Reader(os.fspath(name), driver=driver, sharing=False, **options)


@ensure_env_with_credentials  # type: ignore[untyped-decorator]
def created(name: str | os.PathLike[str], *, driver: str = "GTiff", **profile: Any) -> Any:
    """Open a raster for writing, as `rasterio.open`, without a warning about georeferencing."""
    return _Writer(os.fspath(name), "w", driver=driver, **profile)


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Limit GDAL's block cache to CACHE_BYTES; the last thread to leave restores the size."""
    global _inside, _bytes_outside
    with _guard:
        if not _inside:
            _bytes_outside = get_gdal_config(CACHE)
            set_gdal_config(CACHE, CACHE_BYTES)
        _inside += 1
    try:
        yield
    finally:
        with _guard:
            _inside -= 1
            if not _inside:
                set_gdal_config(CACHE, _bytes_outside)


@contextmanager
def writing_alone() -> Iterator[None]:
    """Let one thread at a time write a file, from its creation to its end.

    GDAL's block cache is shared: a thread that needs space in it writes out blocks of any dataset,
    also blocks of which some bands are still missing, which are then written twice. The same pixels
    would give files of different bytes.
    """
    with _writing:
        yield


def write_out_blocks() -> None:
    """Make GDAL write all cached blocks, in the order in which they were written to the cache."""
    with _guard:
        size = get_gdal_config(CACHE)
        set_gdal_config(CACHE, 0)
        set_gdal_config(CACHE, size)
