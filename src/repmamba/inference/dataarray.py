"""xarray.DataArray to planes (bands, h, w), and the result back to a DataArray.

xarray is only imported if the caller has an array of it; rioxarray is needed for georeferencing and
nodata. A dask array stays lazy: its blocks are computed on demand, on the tile grid of the whole
array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import MissingExtra, ShapeMismatch, UsageError
from repmamba.pixels.nodata import as_nodata
from repmamba.tiles.window import Window

# share of a step by which coordinates may deviate: they are written with a few digits
UNEVEN = 0.002
UNEVEN_AT_MOST = 0.25  # the same for large float32 values; a dropped row makes half a step


def is_dataarray(array: object) -> bool:
    """Whether it is an xarray.DataArray, found without importing xarray.

    Raises UsageError for an xarray.Dataset.
    """
    if type(array).__module__.partition(".")[0] != "xarray":
        return False
    if hasattr(array, "data_vars"):
        raise UsageError(
            f"A {type(array).__name__} has several arrays: give one, dataset[name] or "
            "dataset.to_array()."
        )
    return hasattr(array, "dims")


def planes_of_dataarray(array: Any) -> tuple[NDArray[Any], float | None]:
    """The values of a DataArray as (bands, h, w), and its nodata if its type can store it.

    One dimension besides y and x may be the bands. Lazy values stay a dask array. Raises
    ShapeMismatch, and UsageError if the coordinates are not a grid.
    """
    rows, cols = _spatial(array)
    others = [name for name in array.dims if name not in (rows, cols)]
    if len(others) > 1 or 0 in array.shape:
        raise ShapeMismatch(
            f"A DataArray with dimensions {', '.join(map(str, array.dims))} is not an image; "
            f"besides {rows} and {cols} it may have one dimension of bands, none of them 0."
        )
    # refuse coordinates that are not a grid before computing anything
    _transform(array, rows, cols)
    ordered = array.transpose(*others, rows, cols)
    ordered = ordered.data if is_lazy(array) else ordered.values
    return ordered if others else ordered[None], _nodata(array)


def is_lazy(array: Any) -> bool:
    """Whether the values of a DataArray are a dask array."""
    return array.chunks is not None


def blockwise(
    planes: Any,
    scale: int,
    tile: int,
    halo: int,
    enlarge: Callable[[NDArray[Any], Window, Window], NDArray[Any]],
) -> Any:
    """planes: a dask array (bands, h, w) -> a dask array (bands, scale h, scale w), lazy.

    enlarge: called with the values read for a block, (bands, h, w), and two windows in planes, lr:
    read and block. Blocks are as large as the chunks of planes, in whole tiles.
    """
    import dask.array
    from dask.delayed import delayed

    joined: Any = dask.array
    bands, height, width = planes.shape
    scene = Window(0, 0, height, width)
    later, rows = delayed(enlarge), []
    edges = [max(tile, size // tile * tile) for size in planes.chunksize[1:]]
    for row in range(0, height, edges[0]):
        blocks = []
        for col in range(0, width, edges[1]):
            block = Window(row, col, *edges).clipped(scene)
            read = block.grown(halo).clipped(scene)
            shape = (bands, scale * block.height, scale * block.width)
            result = later(planes[:, *read.slices], read, block)
            blocks.append(joined.from_delayed(result, shape, planes.dtype))
        rows.append(blocks)
    return joined.block([rows])


def dataarray_like(
    array: Any,
    planes: NDArray[Any],
    scale: int,
    nodata: tuple[float, ...] | Literal["none"] | None = None,
) -> Any:
    """planes: (bands, scale h, scale w) -> a DataArray with dimensions and attributes of `array`.

    Coordinates of rows and columns are interpolated; statistics of pixels are dropped. nodata:
    replaces that of the array, for all bands or each; "none" removes it.
    """
    from affine import Affine

    place = _rioxarray(array)
    rows, cols = _spatial(array)
    others = [name for name in array.dims if name not in (rows, cols)]
    along = {rows, cols}
    coords = {name: value for name, value in array.coords.items() if not along & set(value.dims)}
    transform = _transform(array, rows, cols) @ Affine.scale(1 / scale)
    # otherwise no row has a single y, and only the transform gives positions
    if transform.b == transform.d == 0:
        if cols in array.coords:
            coords[cols] = transform.c + transform.a * (np.arange(planes.shape[2]) + 0.5)
        if rows in array.coords:
            coords[rows] = transform.f + transform.e * (np.arange(planes.shape[1]) + 0.5)
    dropped = ("STATISTICS_",) if nodata is None else ("STATISTICS_", "_FillValue", "missing_value")
    attrs = {name: one for name, one in array.attrs.items() if not str(name).startswith(dropped)}
    values, dims = planes if others else planes[0], (*others, rows, cols)
    result = type(array)(values, dims=dims, coords=coords, name=array.name, attrs=attrs)
    result = result.rio.set_spatial_dims(x_dim=cols, y_dim=rows)
    if {rows, cols} & set(coords) or place.transform() != Affine.identity():
        result = result.rio.write_transform(transform)
    if place.crs is not None:
        result = result.rio.write_crs(place.crs)
    if nodata is not None:
        if nodata != "none" and len(set(map(str, nodata))) == 1:
            result = result.rio.write_nodata(as_nodata(nodata[0], planes.dtype.name))
    elif place.encoded_nodata is not None:
        result = result.rio.write_nodata(place.encoded_nodata, encoded=True)
    elif _nodata(array) is not None:
        result = result.rio.write_nodata(place.nodata)
    return result.transpose(*array.dims)


def _transform(array: Any, rows: Any, cols: Any) -> Any:
    """The affine transform, from the coordinates: slicing does not update the stored one.

    The stored transform is used without coordinates, for the step of an axis of one pixel, and for
    rotated rasters.
    """
    from affine import Affine

    for name in {rows, cols} & set(array.coords):
        _centres(name, array.coords[name].values)  # rioxarray fails on values that are not numbers
    kept = array.rio.transform()
    if kept.b or kept.d:
        return kept
    left, width = _first_edge(array, cols, kept.c, kept.a)
    top, height = _first_edge(array, rows, kept.f, kept.e)
    return Affine(width, 0, left, 0, height, top)


def _first_edge(array: Any, name: Any, edge: float, step: float) -> tuple[float, float]:
    """Start and step of an axis; `edge` and `step` if the coordinates do not give them."""
    if name not in array.coords:
        return edge, step
    centres = _centres(name, array.coords[name].values)
    if len(centres) > 1:
        step = (centres[-1] - centres[0]) / (len(centres) - 1)
        _check_even(name, centres, step)
    return centres[0] - step / 2, step


def _centres(name: Any, values: NDArray[Any]) -> NDArray[np.float64]:
    """The coordinates of pixel centres as numbers. Raises UsageError if they are not."""
    if values.dtype.kind not in "iuf":
        raise UsageError(
            f"The coordinates {name} are {values.dtype}, but numbers are expected: drop or replace "
            "them."
        )
    centres = values.astype(np.float64)
    if not np.isfinite(centres).all():
        place = int(np.argmin(np.isfinite(centres)))
        raise UsageError(
            f"The coordinates {name} are not a grid: number {place + 1} of {len(centres)} is "
            f"{centres[place]}. Fill it in, or drop them (array.drop_vars)."
        )
    return centres


def _check_even(name: Any, centres: NDArray[np.float64], step: float) -> None:
    """Raise UsageError with the first jump unless the coordinates are evenly spaced."""
    allowed = UNEVEN
    if (centres == centres.astype(np.float32)).all():  # they may have been rounded
        rounding = np.finfo(np.float32).eps * np.abs(centres).max()
        allowed = min(UNEVEN_AT_MOST, UNEVEN + rounding / max(abs(step), 1e-300))
    astray = np.abs(centres - centres[0] - step * np.arange(len(centres)))
    if step != 0 and astray.max() <= allowed * abs(step):
        return
    steps = np.diff(centres)
    if (steps == 0).all():
        raise UsageError(
            f"The coordinates {name} are not a grid: all of them are {centres[0]:.10g}."
        )
    changes = np.abs(np.diff(steps))
    large = changes > allowed * np.abs(np.median(steps))
    first = int(np.argmax(large if large.any() else changes))
    raise UsageError(
        f"The coordinates {name} are not evenly spaced: the step is {steps[first]:.6g}, then "
        f"{steps[first + 1]:.6g} after {name}={centres[first + 1]:.10g}. Sort them, unwrap "
        "longitudes, interpolate to an even grid (array.interp), or drop them (array.drop_vars)."
    )


def _nodata(array: Any) -> float | None:
    """The nodata that an array declares, or None if its type cannot store it."""
    try:
        nodata = array.rio.nodata
        return None if nodata is None else as_nodata(float(nodata), array.dtype.name)
    except (OverflowError, ValueError):  # from rioxarray and from as_nodata
        return None


def _spatial(array: Any) -> tuple[Any, Any]:
    """The names of the dimensions of rows and columns."""
    place = _rioxarray(array)
    from rioxarray.exceptions import DimensionError

    try:
        return place.y_dim, place.x_dim
    except DimensionError as unknown:
        raise UsageError(
            f"Cannot tell which of the dimensions {', '.join(map(str, array.dims))} are rows and "
            "columns: set them with array.rio.set_spatial_dims(x_dim=..., y_dim=...)."
        ) from unknown


def _rioxarray(array: Any) -> Any:
    try:
        import rioxarray  # noqa: F401  gives every DataArray its .rio
    except ImportError as missing:
        raise MissingExtra(
            "A DataArray needs rioxarray: pip install 'repmamba[xarray]'."
        ) from missing
    return array.rio
