"""Rasters in memory: bytes, file objects and open datasets in; /vsimem/ and file objects out.

The engine works on files: to resume, to identify inputs and to verify results. So inputs in memory
are copied to a temporary folder (TMPDIR) first, and results are copied out of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar, cast

from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter, MemoryFile
from rasterio.shutil import copy as gdal_copy
from rasterio.shutil import copyfiles, delete, exists
from rasterio.vrt import WarpedVRT

from repmamba.errors import RepmambaError, SourceError, TargetError, UsageError
from repmamba.scene.result.formats import format_of
from repmamba.scene.result.target import refuse_existing

Named: TypeAlias = str | os.PathLike[str]
Source: TypeAlias = Named | Any  # bytes, a binary file object, a dataset of rasterio
Target: TypeAlias = Named | Any  # a binary file object
Function = TypeVar("Function", bound=Callable[..., Any])

IN_MEMORY = "/vsimem/"  # prefix of GDAL's files in memory
INPUT = "the input in memory"  # in messages


def through_memory(field: str) -> Callable[[Function], Function]:
    """Let a function of two paths, source and target, also take sources and targets in memory.

    field: of its result that names the target; None if the target is a file object.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def run(source: Source, target: Target, *args: Any, **kwargs: Any) -> Any:
            with _source(source) as read, _target(target, kwargs) as (written, name):
                result = function(read, written, *args, **kwargs)
            return result if written is target else replace(result, **{field: name})

        return cast(Function, run)

    return decorate


@contextmanager
def _source(source: Source) -> Iterator[Named]:
    """The path of a file that holds the source. Raises UsageError for other objects."""
    if isinstance(source, str | os.PathLike) and not str(source).startswith(IN_MEMORY):
        yield source
        return
    if isinstance(source, DatasetReader | DatasetWriter) and _can_be_opened_again(source):
        yield source.name
        return
    with TemporaryDirectory(prefix="repmamba-") as folder:
        name = os.path.join(folder, "input")
        try:
            _put(source, name)
            yield name
        except RepmambaError as error:
            if name not in str(error):
                raise
            raise type(error)(str(error).replace(name, INPUT)) from error


def _can_be_opened_again(dataset: Any) -> bool:
    """Whether the name of an open dataset opens the same pixels, unlike an overview."""
    if dataset.closed:
        raise UsageError(f"The dataset {dataset.name} is closed: give an open one, or its name.")
    if dataset.mode != "r":
        raise UsageError(
            f"The dataset {dataset.name} is open for writing: close it, and give its name."
        )
    return _shows_its_file(dataset) and not dataset.name.startswith(IN_MEMORY)


def _shows_its_file(dataset: Any) -> bool:
    """Whether a dataset was opened without options (such as an overview) or warping."""
    return type(dataset) is DatasetReader and not any(
        value is not None for value in dataset.options.values()
    )


def _put(source: Source, name: str) -> None:
    """Write a source in memory to a file."""
    try:
        if isinstance(source, str | os.PathLike):
            copyfiles(os.fspath(source), name)
        elif isinstance(source, DatasetReader | WarpedVRT):
            if _shows_its_file(source):
                copyfiles(source.name, name)
            else:
                gdal_copy(source, name, driver="GTiff", BIGTIFF="IF_SAFER")
        else:
            Path(name).write_bytes(_bytes_of(source))
    except RasterioError as error:
        raise SourceError(
            f"{INPUT.capitalize()} cannot be read: {' '.join(str(error).split())}"
        ) from error


def _bytes_of(source: Any) -> bytes | bytearray | memoryview:
    """The bytes of a source, or of a file object from its current position."""
    if isinstance(source, MemoryFile):
        return bytes(source.getbuffer())
    content = source.read() if callable(getattr(source, "read", None)) else source
    if isinstance(content, str):
        raise UsageError("The input is a text file object: open it in binary mode, 'rb'.")
    if not isinstance(content, bytes | bytearray | memoryview):
        raise UsageError(
            f"The input is a {type(source).__name__}: give a path, bytes, a binary file object or "
            "an open rasterio dataset. Upscaler.upscale takes arrays."
        )
    return content


@contextmanager
def _target(target: Target, arguments: dict[str, Any]) -> Iterator[tuple[Named, Path | None]]:
    """The path of a file to write, and the name of the target that it is copied to at the end."""
    if isinstance(target, str | os.PathLike) and not str(target).startswith(IN_MEMORY):
        yield target, Path(target)
        return
    name = os.fspath(target) if isinstance(target, str | os.PathLike) else None
    if name is None and not callable(getattr(target, "write", None)):
        raise UsageError(
            f"The output is a {type(target).__name__}: give a path, a name under {IN_MEMORY}, or a "
            "binary file object."
        )
    if name is not None and exists(name) and not arguments.get("overwrite"):
        refuse_existing(name)
    with TemporaryDirectory(prefix="repmamba-") as folder:
        written = Path(folder, _file_name(target, name, arguments.get("format")))
        yield written, None if name is None else Path(name)
        if written.exists():  # plan_file writes nothing
            _deliver(written, target, name)


def _file_name(target: Any, name: str | None, format: str | None) -> str:
    """A file name with the suffix of the format; GeoTIFF if nothing says which."""
    own = os.path.basename(
        name or (target.name if isinstance(getattr(target, "name", None), str) else "")
    )
    try:
        return "output" + format_of(Path(own), format).suffixes[0]
    except UsageError:
        if format is not None or name is not None:
            raise
        return "output.tif"


def _deliver(written: Path, target: Any, name: str | None) -> None:
    try:
        if name is None:
            target.write(written.read_bytes())
            return
        if exists(name):
            delete(name)
        copyfiles(str(written), name)
    except (OSError, TypeError, ValueError, RasterioError) as error:
        where = "The file object" if name is None else name
        raise TargetError(
            f"{where} cannot be written to: {' '.join(str(error).split())}"
        ) from error
