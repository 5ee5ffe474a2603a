"""GDAL beside other users in the same process: global settings are restored after each call.

rasterio warns about every dataset without georeferencing, and about nodata beside alpha, and
`warnings.catch_warnings` is not thread-safe. So datasets are opened by classes that do not warn.

`rasterio.Env` sets GDAL's options for all threads, and clears them when the first of two
overlapping ones ends: another thread would read without its side-car files. So options are set for
one thread. GDAL has one block cache for all datasets and threads; its size is set while a call is
in progress, and restored by the last one.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import rasterio
from rasterio import _env
from rasterio.env import ensure_env_with_credentials, get_gdal_config, set_gdal_config
from rasterio.io import DatasetReader, DatasetWriter

CACHE = "GDAL_CACHEMAX"  # rasterio always passes this one in bytes
CACHE_BYTES = 64 << 20  # more was not faster, and memory grows by 1.8 times as much

_guard = threading.Lock()
_writing = threading.Lock()
_inside, _bytes_outside = 0, 0  # calls in progress, and the cache size before the first of them


class _Reader(DatasetReader):  # type: ignore[misc]
    _reads_masks = False

    def _has_gcps_or_rpcs(self) -> bool:
        return True  # rasterio only uses this to decide whether to warn

    @property
    def mask_flag_enums(self) -> Any:
        # read_masks of rasterio only uses this to decide whether to warn of nodata beside alpha
        return () if self._reads_masks else super().mask_flag_enums

    def read_masks(self, *args: Any, **options: Any) -> Any:
        self._reads_masks = True
        try:
            return super().read_masks(*args, **options)
        finally:
            self._reads_masks = False


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
def settings(options: Mapping[str, str]) -> Iterator[None]:
    """A rasterio.Env with these GDAL options for the calling thread only.

    On Windows, where GDAL's functions cannot be found through rasterio, they apply to all threads.
    """
    functions = _options_of_threads()
    if functions is None:
        with rasterio.Env(**options):
            yield
        return
    get, put = functions
    with rasterio.Env():
        before = {name.encode(): get(name.encode(), None) for name in options}
        try:
            for name, value in options.items():
                put(name.encode(), value.encode())
            yield
        finally:
            for known, value in before.items():
                put(known, value)


@cache
def _options_of_threads() -> tuple[Any, Any] | None:
    """GDAL's functions to get and set an option of the calling thread; None if not found."""
    library = ctypes.CDLL(_env.__file__)
    try:
        get, put = library.CPLGetThreadLocalConfigOption, library.CPLSetThreadLocalConfigOption
    except AttributeError:
        return None
    get.argtypes = put.argtypes = ctypes.c_char_p, ctypes.c_char_p
    get.restype, put.restype = ctypes.c_char_p, None
    return get, put


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
