"""xarray.DataArray in and out: its numbers as (bands, h, w), and the result as a DataArray in the same place.

xarray is imported by whoever made the array; here only rioxarray is, which says where it lies and what is missing. An
array that dask computes later stays one: its blocks are enlarged when they are wanted, on the tile grid of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import MissingExtra, ShapeMismatch, UsageError
from repmamba.tiles.window import Window


def is_dataarray(array: object) -> bool:
    """Whether it is an xarray.DataArray, found without importing xarray. Raises UsageError for an xarray.Dataset."""
    if type(array).__module__.partition(".")[0] != "xarray":
        return False
    if hasattr(array, "data_vars"):
        raise UsageError(
            f"A {type(array).__name__} holds several arrays: give one, dataset[name] or dataset.to_array()."
        )
    return hasattr(array, "dims")


def planes_of(array: Any) -> tuple[NDArray[Any], float | None]:
    """The numbers of a DataArray as (bands, h, w), and its nodata. One dimension beside y and x may hold bands.

    The numbers are an array of dask where they are one in the DataArray.
    """
    place = _rioxarray(array)
    rows, cols = _spatial(array)
    others = [name for name in array.dims if name not in (rows, cols)]
    if len(others) > 1 or 0 in array.shape:
        raise ShapeMismatch(
            f"A DataArray of dimensions {', '.join(map(str, array.dims))} is no image; beside {rows} and {cols} it may "
            "have one of bands, none of them 0."
        )
    ordered = array.transpose(*others, rows, cols)
    ordered = ordered.data if is_lazy(array) else ordered.values
    return ordered if others else ordered[None], place.nodata


def is_lazy(array: Any) -> bool:
    """Whether the numbers of a DataArray are computed by dask, later."""
    return array.chunks is not None


def blockwise(
    planes: Any, scale: int, tile: int, halo: int, enlarge: Callable[[NDArray[Any], Window, Window], NDArray[Any]]
) -> Any:
    """planes: an array of dask, (bands, h, w) -> likewise, (bands, scale h, scale w); nothing is computed here.

    enlarge: of what is read for a block, (bands, h, w), and the two windows in planes, lr: read and block. Blocks are
    as large as the chunks of planes, in whole tiles.
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


def like(array: Any, planes: NDArray[Any], scale: int) -> Any:
    """planes: (bands, scale h, scale w) as a DataArray with the dimensions, attributes and the place of array.

    Coordinates along rows and columns come along where they are these dimensions' own; statistics of pixels do not.
    """
    from affine import Affine

    place = _rioxarray(array)
    rows, cols = _spatial(array)
    others = [name for name in array.dims if name not in (rows, cols)]
    coords = {name: value for name, value in array.coords.items() if not {rows, cols} & set(value.dims)}
    transform = _transform(array, rows, cols) @ Affine.scale(1 / scale)
    if transform.b == transform.d == 0:  # else no row has one y, and the transform alone says where pixels are
        if cols in array.coords:
            coords[cols] = transform.c + transform.a * (np.arange(planes.shape[2]) + 0.5)
        if rows in array.coords:
            coords[rows] = transform.f + transform.e * (np.arange(planes.shape[1]) + 0.5)
    attrs = {name: value for name, value in array.attrs.items() if not str(name).startswith("STATISTICS_")}
    result = type(array)(
        planes if others else planes[0], dims=(*others, rows, cols), coords=coords, name=array.name, attrs=attrs
    )
    result = result.rio.set_spatial_dims(x_dim=cols, y_dim=rows)
    if {rows, cols} & set(coords) or place.transform() != Affine.identity():
        result = result.rio.write_transform(transform)
    if place.crs is not None:
        result = result.rio.write_crs(place.crs)
    if place.encoded_nodata is not None:
        result = result.rio.write_nodata(place.encoded_nodata, encoded=True)
    elif place.nodata is not None:
        result = result.rio.write_nodata(place.nodata)
    return result.transpose(*array.dims)


def _transform(array: Any, rows: Any, cols: Any) -> Any:
    """Where pixels lie: as the coordinates say, since what selects or sorts leaves the transform of a file as it was.

    That transform counts where there are no coordinates, for the step of an axis of one pixel, and in rotated rasters.
    """
    from affine import Affine

    kept = array.rio.transform()
    if kept.b or kept.d:
        return kept
    left, width = _first_edge(array, cols, kept.c, kept.a)
    top, height = _first_edge(array, rows, kept.f, kept.e)
    return Affine(width, 0, left, 0, height, top)


def _first_edge(array: Any, name: Any, edge: float, step: float) -> tuple[float, float]:
    """Where an axis begins, and how far it is from pixel to pixel; edge and step where no coordinates tell."""
    if name not in array.coords:
        return edge, step
    centres = array.coords[name].values.astype(np.float64)
    if len(centres) > 1:
        step = (centres[-1] - centres[0]) / (len(centres) - 1)
    return centres[0] - step / 2, step


def _spatial(array: Any) -> tuple[Any, Any]:
    """The names of the dimensions of rows and columns."""
    from rioxarray.exceptions import DimensionError

    try:
        return array.rio.y_dim, array.rio.x_dim
    except DimensionError as unknown:
        raise UsageError(
            f"Which of the dimensions {', '.join(map(str, array.dims))} are rows and columns cannot be told: say so by "
            "array.rio.set_spatial_dims(x_dim=..., y_dim=...)."
        ) from unknown


def _rioxarray(array: Any) -> Any:
    try:
        import rioxarray  # noqa: F401  gives every DataArray its .rio
    except ImportError as missing:
        raise MissingExtra("A DataArray needs rioxarray: pip install 'repmamba[xarray]'.") from missing
    return array.rio
