"""Tiles of a display copy for web maps, by rio-tiler, which is loaded at the first of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from repmamba.service.inputs import Json

GEOGRAPHIC = "GEOGRAPHIC"  # tag of a copy that is where it is on Earth
DEEPEST = 24  # zoom level


def describe(copy: Path, tiles: str) -> dict[str, Json]:
    """A copy as TileJSON, and whether it is where it is on Earth. tiles: the URL of its tiles."""
    with _opened(copy) as reader:
        from rio_tiler.constants import WGS84_CRS

        return {
            "tilejson": "3.0.0",
            "tiles": [tiles],
            "bounds": list(reader.get_geographic_bounds(WGS84_CRS)),
            "minzoom": 0,
            "maxzoom": _deepest(reader),
            "geographic": GEOGRAPHIC in reader.dataset.tags(),
        }


def tile(copy: Path, z: int, x: int, y: int) -> bytes | None:
    """A tile of 256 x 256 pixels as PNG, transparent where the copy is not; None if there is none.

    That is outside of the Earth, and at zoom levels that show no more than the one before.
    """
    with _opened(copy) as reader:
        if z > _deepest(reader) or max(x, y) >= 1 << z:
            return None
        if not reader.tile_exists(x, y, z):
            return _transparent()
        # "average" is the nearest pixel where tiles are finer than the copy. The options make
        # rio-tiler warp also what is in Web Mercator already, which may be rotated.
        image = reader.tile(
            x, y, z, reproject_method="average", vrt_options={"add_alpha": False}, tilesize=256
        )
        content: bytes = image.render(img_format="PNG")
        return content


@cache
def _transparent() -> bytes:
    content = io.BytesIO()
    Image.new("LA", (256, 256)).save(content, "PNG")
    return content.getvalue()


def _deepest(reader: Any) -> int:
    """The first zoom level whose pixels are not larger than those of the copy."""
    return min(int(reader.maxzoom) + 1, DEEPEST)


@contextmanager
def _opened(copy: Path) -> Iterator[Any]:
    from rio_tiler.io import Reader

    from repmamba.gdal import bounded_cache, opened, settings
    from repmamba.scene.source.admission import UNTRUSTED_SETTINGS

    with (
        bounded_cache(),
        settings(UNTRUSTED_SETTINGS),
        opened(copy, driver="GTiff") as dataset,
        Reader(None, dataset=dataset) as reader,
    ):
        yield reader
