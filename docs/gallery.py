"""Make the pictures of the gallery and write its page; run by `make gallery`.

Each picture is an input, its bicubic enlargement and the result of `x4`. A sheet shows `x4` beside
`x4-real` on noisy and compressed inputs. The imagery is in the public domain: the test pictures of
UC Merced Land Use and the rasters that docs/gallery.md names. They are in the reference data
(REPMAMBA_REFERENCE, or `shared` beside the checkout), except the two of examples/.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.windows import Window

import repmamba
from repmamba.data.degradations import Chain, Stage, generator_for
from repmamba.pixels.resize import imresize

DOCS = Path(__file__).parent
FOLDER = DOCS / "gallery"
REFERENCE = Path(os.environ.get("REPMAMBA_REFERENCE", DOCS.parents[1] / "shared")) / "data"
BEGIN, END = "<!-- written by make gallery -->", "<!-- until here -->"
SCALE, WIDTH, HEIGHT = 4, 120, 84  # of the input's crops, pixels
MARGIN = 16  # input pixels enlarged around a crop and cut off again

USGS = "USGS National Map Urban Area Imagery, 30 cm, from UC Merced Land Use"


@dataclass(frozen=True, slots=True)
class Piece:
    """One picture of the gallery: a crop of a raster, from its upper left pixel col, row."""

    name: str
    caption: str
    source: str
    raster: Path
    col: int
    row: int


def of_uc_merced(name: str, number: int, caption: str, col: int, row: int) -> Piece:
    """A crop of a test picture of UC Merced Land Use."""
    raster = REFERENCE / "test" / "ucmerced" / name / f"{name}{number:02d}.webp"
    return Piece(name, caption, USGS, raster, col, row)


EXAMPLES, RASTERS = DOCS.parent / "examples", REFERENCE / "geotiff"
PIECES = (
    Piece("street", "Street crossing", USGS, EXAMPLES / "intersection.png", 60, 60),
    of_uc_merced("airplane", 40, "Airport", 60, 20),
    of_uc_merced("harbor", 52, "Harbour", 60, 60),
    of_uc_merced("denseresidential", 73, "Dense housing", 68, 80),
    of_uc_merced("agricultural", 8, "Farmland: fine rows are guessed", 60, 60),
    Piece(
        "colorado",
        "Aerial, 15 cm",
        "USGS orthoimagery, Colorado",
        EXAMPLES / "colorado.tif",
        16,
        64,
    ),
    Piece("landsat", "Coast, 300 m", "USGS, Landsat 7, Bahamas", RASTERS / "rgb_lzw.tif", 320, 330),
    Piece("mars", "Mars from orbit", "NASA/JPL, HiRISE", RASTERS / "cog_hirise_mars.tif", 476, 852),
)

SHEET = FOLDER / "noisy.webp"
# fault -> name of a piece, and what to do to it
FAULTS = {
    "noise, 6 levels": ("street", (Stage("noise", 6, 6),)),
    "JPEG, quality 50": ("denseresidential", (Stage("jpeg", 50, 50),)),
    "JPEG, as delivered": ("mars", ()),
}
CAPTION, GAP = 26, 8  # pixels above each row of the sheet, and between its pictures


def main() -> None:
    """Write the pictures and the page."""
    if missing := [str(piece.raster) for piece in PIECES if not piece.raster.is_file()]:
        sys.exit(f"The gallery needs the reference data (REPMAMBA_REFERENCE): no {missing[0]}.")
    FOLDER.mkdir(exist_ok=True)
    upscaler = repmamba.load("x4")
    for piece in PIECES:
        for kind, pixels in panels(piece, upscaler).items():
            path = FOLDER / f"{piece.name}-{'result' if kind == upscaler.name else kind}.webp"
            Image.fromarray(pixels).save(path, lossless=kind == "input", quality=82, method=6)
    sheet(upscaler, repmamba.load("x4-real")).save(SHEET, quality=82, method=6)
    page = DOCS / "gallery.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    figures = "\n\n".join(map(figure, PIECES))
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}", "utf-8")


def panels(
    piece: Piece, *upscalers: repmamba.Upscaler, stages: tuple[Stage, ...] = ()
) -> dict[str, NDArray[np.uint8]]:
    """Input (HEIGHT, WIDTH, 3), bicubic and results at SCALE times its size; all uint8.

    stages: degradations of the input.
    """
    with rasterio.open(piece.raster) as raster:
        crop = Window(
            piece.col - MARGIN, piece.row - MARGIN, WIDTH + 2 * MARGIN, HEIGHT + 2 * MARGIN
        )
        crop = crop.intersection(Window(0, 0, raster.width, raster.height))
        around = np.moveaxis(raster.read((1, 2, 3), window=crop), 0, -1)
    around = Chain(1, stages)(around, generator_for(0, piece.name))
    top, left = piece.row - crop.row_off, piece.col - crop.col_off
    inside = np.s_[top : top + HEIGHT, left : left + WIDTH]
    larger = np.s_[SCALE * top : SCALE * (top + HEIGHT), SCALE * left : SCALE * (left + WIDTH)]
    bicubic = np.clip(np.rint(255 * imresize(around / 255, SCALE)), 0, 255).astype(np.uint8)
    return {
        "input": around[inside],
        "bicubic": bicubic[larger],
        **{upscaler.name: upscaler.upscale(around)[larger] for upscaler in upscalers},
    }


def sheet(*upscalers: repmamba.Upscaler) -> Image.Image:
    """Rows of input, bicubic and results, of pictures with the faults of real ones."""
    font = ImageFont.load_default(18)
    width, height = SCALE * WIDTH, SCALE * HEIGHT
    columns = 2 + len(upscalers)
    size = (columns * (width + GAP) - GAP, len(FAULTS) * (CAPTION + height))
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    for row, (fault, (name, stages)) in enumerate(FAULTS.items()):
        (piece,) = (piece for piece in PIECES if piece.name == name)
        for col, (kind, pixels) in enumerate(panels(piece, *upscalers, stages=stages).items()):
            place = (col * (width + GAP), row * (CAPTION + height))
            pen.text(
                (place[0] + 2, place[1] + 3),
                f"{kind}: {fault}" if col == 0 else kind,
                "black",
                font,
            )
            shown = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(shown, (place[0], place[1] + CAPTION))
    return picture


def figure(piece: Piece) -> str:
    """The picture as HTML: the result, and the other one over it up to the slider."""
    width, height = SCALE * WIDTH, SCALE * HEIGHT
    image = f'width="{width}" height="{height}" loading="lazy"'
    name, caption = f"gallery/{piece.name}", piece.caption
    return f"""<figure class="compare">
<div class="panels">
<img src="{name}-result.webp" alt="{caption}, repmamba" {image}>
<img src="{name}-bicubic.webp" alt="{caption}, bicubic" class="over bicubic" {image}>
<img src="{name}-input.webp" alt="{caption}, input" class="over input" {image} hidden>
</div>
<input type="range" min="0" max="100" value="50" aria-label="{caption}: left and right of the line">
<figcaption><span><b>{caption}.</b> <small>{piece.source}.</small></span>
<button type="button">show the input</button></figcaption>
</figure>"""


if __name__ == "__main__":
    main()
