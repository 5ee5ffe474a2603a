"""Image files as arrays (H, W, C), and 8-bit arrays as PNG files.

PNG, JPEG, WebP and BMP are read through Pillow as 8-bit RGB; TIFFs through rasterio, with all bands
in their own type. Georeferencing, missing pixels and windows are handled in scene/: an image here
is complete and fits into memory.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from repmamba.durable import whole_file
from repmamba.errors import CorruptSource, SourceError, UsageError

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

BANDS_OF_PNG = ((), (1,), (3,))  # last part of a shape
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
RASTERS = (".tif", ".tiff")
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
# What Pillow raises on damaged files; only OSError is documented.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError),
    *(struct.error, Image.DecompressionBombError),
)


def find_images(folder: Path, *, deep: bool = True) -> list[Path]:
    """List the image files of a folder, sorted by path; hidden files and folders are left out.

    deep: Whether to look in the folders inside, too.
    Raises SourceError: it is not a folder.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; give one that holds images.")
    files = folder.rglob("*") if deep else folder.glob("*")
    return sorted(
        path
        for path in files
        if path.suffix.lower() in PICTURES + RASTERS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_image(path: Path) -> NDArray[np.generic]:
    """Read an image file.

    Returns (H, W, C): pictures as uint8 RGB (grey repeated, alpha dropped), TIFFs with all bands in
    their own type. Raises CorruptSource: the file cannot be decoded; SourceError: it is missing, or
    has pictures of more than 8 bit, complex numbers, missing pixels, or values that are not finite.
    """
    if not path.is_file():
        raise SourceError(f"{path} is not a file; give an image.")
    image = _read_raster(path) if path.suffix.lower() in RASTERS else _read_picture(path)
    if not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise SourceError(
            f"{path.name} has {count} values that are not finite; fill or remove those pixels "
            "first."
        )
    return image


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises SourceError if the file cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path.name} cannot be read: {error.strerror or error}.") from error


def blank_image(path: Path) -> NDArray[np.generic]:
    """Zeros of the shape and type that read_image would return, from the header, without memory.

    Raises CorruptSource if the header is damaged, SourceError for pictures of more than 8 bit.
    """
    if path.suffix.lower() in RASTERS:
        with _raster(path) as raster:
            shape, dtype = (raster.height, raster.width, raster.count), np.dtype(raster.dtypes[0])
    else:
        with _picture(path) as picture:
            shape, dtype = (picture.height, picture.width, 3), np.dtype(np.uint8)
    return np.broadcast_to(np.zeros((), dtype), shape)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an 8-bit image as PNG; the file appears only when it is complete.

    Parent folders are created. The file is not synced: after a power cut, check is_whole_png.

    image: (H, W), (H, W, 1) or (H, W, 3), uint8.
    Raises UsageError: the image has another shape or type; TargetError: the file cannot be written;
    NoSpace if the disk is full.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in BANDS_OF_PNG:
        raise UsageError(
            f"A PNG stores one or three 8-bit bands; this image is {image.dtype} of shape "
            f"{image.shape}."
        )
    with whole_file(path) as unfinished:
        picture = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        # slower levels gain little on aerial images
        picture.save(unfinished, "PNG", compress_level=3)


def is_whole_png(path: Path) -> bool:
    """Whether a PNG file is complete, by its checksums; no pixel is decoded."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except BROKEN:
        return False
    return True


def _read_picture(path: Path) -> NDArray[np.uint8]:
    with _picture(path) as picture:
        return np.asarray(picture.convert("RGB"))


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    """An open 8-bit picture. Raises CorruptSource, SourceError."""
    try:
        with Image.open(path) as picture:
            mode = picture.mode
            if mode in EIGHT_BIT_MODES:
                yield picture
                return
    except BROKEN as error:
        raise CorruptSource(f"{path.name} cannot be read as a picture: {error}.") from error
    raise SourceError(
        f"{path.name} has pixels of mode {mode}, and 8-bit pixels are expected; save it as TIFF."
    )


def _read_raster(path: Path) -> NDArray[np.generic]:
    from rasterio.enums import MaskFlags

    with _raster(path) as raster:
        bands: NDArray[np.generic] = np.moveaxis(raster.read(), 0, -1)
        # Alpha counts as a band here, as GDAL often takes a fourth band for alpha.
        tells = MaskFlags.alpha not in raster.mask_flag_enums[0]
        missing = np.count_nonzero(raster.dataset_mask() == 0) if tells else 0
    if bands.dtype.kind not in "uif":
        raise SourceError(
            f"{path.name} is of type {bands.dtype}, and integers or floats are expected."
        )
    if missing:  # they would be trained on and scored as data
        raise SourceError(
            f"{path.name} has {missing} missing pixels, by nodata or a mask; fill them, or crop to "
            "a part without them."
        )
    return np.ascontiguousarray(bands)


@contextmanager
def _raster(path: Path) -> Iterator["DatasetReader"]:
    """An open TIFF. Raises CorruptSource."""
    from rasterio.errors import RasterioError

    from repmamba.gdal import opened

    try:
        with opened(path) as raster:
            yield raster
    except (RasterioError, OSError, SystemError) as error:
        raise CorruptSource(f"{path.name} cannot be read as a TIFF: {error}.") from error
