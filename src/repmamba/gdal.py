"""GDAL in a process that others use as well: nothing here changes what holds for the whole process
after a call.

rasterio warns of every dataset without a place, and `warnings.catch_warnings` is not for threads:
two that overlap leave their filters behind. So datasets are opened by classes that do not warn.
GDAL has one block cache for all datasets and threads; its size is set while a call of ours is in
progress, and put back by the last one that ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rasterio.env import ensure_env_with_credentials, get_gdal_config, set_gdal_config
from rasterio.io import DatasetReader, DatasetWriter

CACHE = "GDAL_CACHEMAX"  # rasterio hands this one to GDAL in bytes, always
CACHE_BYTES = 64 << 20  # more was not faster, and memory grows by 1.8 times of it

_guard = threading.Lock()
_writing = threading.Lock()
# calls in progress, and the size of the cache before the first of them
_inside, _bytes_outside = 0, 0


class _Reader(DatasetReader):  # type: ignore[misc]
    def _has_gcps_or_rpcs(self) -> bool:
        return True  # rasterio asks this to decide whether to warn, and for nothing else


class _Writer(DatasetWriter):  # type: ignore[misc]
    def _has_gcps_or_rpcs(self) -> bool:
        return True


@ensure_env_with_credentials  # type: ignore[untyped-decorator]
def opened(name: str | os.PathLike[str], *, driver: str | None = None, **options: Any) -> Any:
    """A raster opened for reading, as `rasterio.open` does, without a warning where it has no
    place.
    """
    return _Reader(os.fspath(name), driver=driver, sharing=False, **options)


@ensure_env_with_credentials  # type: ignore[untyped-decorator]
def created(name: str | os.PathLike[str], *, driver: str = "GTiff", **profile: Any) -> Any:
    """A raster opened for writing, as `rasterio.open` does, without a warning where it has no
    place.
    """
    return _Writer(os.fspath(name), "w", driver=driver, **profile)


@contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL's block cache has CACHE_BYTES while any thread is in here; the last one out puts the
    size before back.
    """
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
    """One thread at a time is in here, where a file is written from its creation to its end.

    GDAL's block cache is one for all threads, and a thread that needs room in it writes out the
    blocks of any dataset, also a block of which not all bands are there yet, which is then written
    twice: the same pixels would give files of other bytes.
    """
    with _writing:
        yield


def write_out_blocks() -> None:
    """Have GDAL write what its cache holds of all datasets, the blocks written first before those
    written later.
    """
    with _guard:
        size = get_gdal_config(CACHE)
        set_gdal_config(CACHE, 0)
        set_gdal_config(CACHE, size)
