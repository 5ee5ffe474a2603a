"""A picture of bicubic enlargement beside a result of repmamba, with the pixels of the input before
them.

    python examples/compare.py examples/colorado.tif demo/colorado_x4.tif -o demo/comparison.png

For scenes of 8-bit RGB. The scale is found from the sizes of the two rasters; bicubic is MATLAB's,
the yardstick of the literature. --window takes columns and rows of the input, so that single
details can be looked at.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.windows import Window

from repmamba.pixels.resize import imresize

GAP, CAPTION = 8, 30  # pixels between the panels, and above them
# input pixels read around the window, so that bicubic meets no edge that the scene does not have
MARGIN = 8


def main() -> None:
    """Read the command line, draw, and say where the picture is."""
    parser = argparse.ArgumentParser(
        description="Draw input, bicubic and a result of repmamba beside each other."
    )
    parser.add_argument("lr", type=Path, help="the input")
    parser.add_argument("sr", type=Path, help="what repmamba made of it")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture, PNG or JPEG")
    parser.add_argument(
        "--window",
        default="16,64,104,76",
        help="COL,ROW,WIDTH,HEIGHT of the input (default %(default)s)",
    )
    arguments = parser.parse_args()

    col, row, width, height = (int(number) for number in arguments.window.split(","))
    panels = read_panels(arguments.lr, arguments.sr, Window(col, row, width, height))
    draw(panels).save(arguments.output)
    print(arguments.output)


def read_panels(lr_path: Path, sr_path: Path, window: Window) -> dict[str, NDArray[np.uint8]]:
    """Caption -> (s h, s w, 3) uint8 for the input, its bicubic enlargement and the result, all of
    the same ground.
    """
    with rasterio.open(lr_path) as lr, rasterio.open(sr_path) as sr:
        scale = sr.width // lr.width
        grown = Window(
            window.col_off - MARGIN,
            window.row_off - MARGIN,
            window.width + 2 * MARGIN,
            window.height + 2 * MARGIN,
        )
        raw = read_rgb(lr, grown.intersection(Window(0, 0, lr.width, lr.height)))
        result = read_rgb(sr, Window(*(scale * edge for edge in window.flatten())))
    top, left = (scale * min(MARGIN, offset) for offset in (window.row_off, window.col_off))
    inside = np.s_[top : top + scale * window.height, left : left + scale * window.width]
    pixels = raw.repeat(scale, axis=0).repeat(scale, axis=1)[inside]
    bicubic = np.clip(np.floor(255 * imresize(raw / 255, scale) + 0.5), 0, 255).astype(np.uint8)[
        inside
    ]
    return {"input": pixels, f"bicubic x{scale}": bicubic, f"repmamba x{scale}": result}


def read_rgb(raster: rasterio.DatasetReader, window: Window) -> NDArray[np.uint8]:
    """The first three bands of a window, (h, w, 3)."""
    return np.moveaxis(raster.read((1, 2, 3), window=window), 0, -1)


def draw(panels: dict[str, NDArray[np.uint8]]) -> Image.Image:
    """The panels in a row, each under its caption."""
    height, width, _ = next(iter(panels.values())).shape
    picture = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION), "white")
    pen = ImageDraw.Draw(picture)
    for place, (caption, pixels) in enumerate(panels.items()):
        left = place * (width + GAP)
        pen.text((left + 2, 5), caption, fill="black", font=ImageFont.load_default(18))
        picture.paste(Image.fromarray(pixels), (left, CAPTION))
    return picture


if __name__ == "__main__":
    main()
