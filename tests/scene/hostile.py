"""Files made to do harm: each a name, how it is made, and words of the error that it has to end in;
and mutations.

Run as a script under caps of memory and time, so that what would take down a machine takes down a
process of its own:

    python tests/scene/hostile.py table              each file of the table, opened as a stranger's
    and read
    python tests/scene/hostile.py mutations SEED N   N damaged copies of true files, enlarged as
    strangers' files

It prints a line for whatever did not end as it should, and leaves with 1 if there was any.
"""

from __future__ import annotations

import re
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

UNREADABLE = r"cannot be read|corrupt or truncated"
NO_FORMAT = r"not in a format that"
TOO_LARGE = r"declares \d+ x \d+ pixels; at most \d+ are allowed"
TOO_EMPTY = r"declares \d+ x \d+ pixels in only \d+ bytes"
MOST_MEMORY = 6 << 30  # of address space: torch alone maps three gigabytes of libraries
MOST_SECONDS = 1200  # of CPU
SECONDS_OF_ONE = 5  # of CPU, since a clock goes on while other programs run
TYPES = {"byte": (1, "B"), "short": (3, "H"), "long": (4, "I")}


@dataclass(frozen=True)
class Hostile:
    """One file."""

    name: str
    content: Callable[[], bytes]
    words: str  # of the error, a pattern

    def __str__(self) -> str:
        return self.name


def tiff(
    entries: dict[int, tuple[str, list[int]]], data: bytes = b"", *, order: str = "<"
) -> bytes:
    """A TIFF of one directory: tag -> (type, values); strips or tiles are at offset 8."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    count = struct.pack(order + "H", len(entries))
    extra_at = 8 + len(data) + 2 + 12 * len(entries) + 4
    directory, extra = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        number, letter = TYPES[kind]
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            directory += struct.pack(
                order + "HHII", tag, number, len(values), extra_at + len(extra)
            )
            extra += packed
        else:
            directory += struct.pack(order + "HHI", tag, number, len(values)) + packed.ljust(
                4, b"\0"
            )
    return head + data + count + directory + struct.pack(order + "I", 0) + extra


def strips(width: int, height: int, **changes: tuple[str, list[int]]) -> bytes:
    """A grey 8-bit TIFF of one strip of 64 bytes, whatever it declares, with tags changed by
    name.
    """
    tags = {
        "width": (256, ("long", [width])),
        "height": (257, ("long", [height])),
        "bits": (258, ("short", [8])),
        "compression": (259, ("short", [1])),
        "photometric": (262, ("short", [1])),
        "offsets": (273, ("long", [8])),
        "samples": (277, ("short", [1])),
        "rows": (278, ("long", [height])),
        "sizes": (279, ("long", [64])),
        "format": (339, ("short", [1])),
    }
    entries = {number: changes.get(name, usual) for name, (number, usual) in tags.items()}
    return tiff({tag: value for tag, value in entries.items() if value[1]}, bytes(range(64)))


def tiles(width: int, height: int, edge: int, *, compression: int = 8) -> bytes:
    """A TIFF that declares tiles of edge x edge, of which one has 64 bytes."""
    return tiff(
        {
            256: ("long", [width]),
            257: ("long", [height]),
            258: ("short", [8]),
            259: ("short", [compression]),
            262: ("short", [1]),
            277: ("short", [1]),
            322: ("long", [edge]),
            323: ("long", [edge]),
            324: ("long", [8]),
            325: ("long", [64]),
        },
        zlib.compress(bytes(64)).ljust(64, b"\0"),
    )


def png(
    width: int,
    height: int,
    *,
    bits: int = 8,
    colour: int = 2,
    data: bytes | None = None,
    spoil: int = 0,
) -> bytes:
    """A PNG that declares a size and holds some data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body))
            + kind
            + body
            + struct.pack(">I", zlib.crc32(kind + body) ^ spoil)
        )

    body = zlib.compress(bytes(100)) if data is None else data
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def encoded(kind: str, edge: int = 128) -> bytes:
    """A true picture of noise."""
    from io import BytesIO

    noise = np.random.default_rng(1).integers(0, 256, (edge, edge, 3)).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def patched(content: bytes, at: int, new: bytes) -> bytes:
    """The content with bytes replaced."""
    return content[:at] + new + content[at + len(new) :]


def jpeg_sized(width: int, height: int) -> bytes:
    """A true JPEG whose header declares another size."""
    content = encoded("JPEG")
    frame = content.index(b"\xff\xc0")
    return patched(content, frame + 5, struct.pack(">HH", height, width))


def jpeg2000_sized(width: int, height: int) -> bytes:
    """A true JPEG 2000 code stream whose header declares another size."""
    content = encoded("JPEG2000")
    size = content.index(b"\xff\x51")
    return patched(content, size + 6, struct.pack(">II", width, height))


VRT = (
    b'<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" '
    b'band="1"><SimpleSource>'
    b"<SourceFilename>%s</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
)


def all_files() -> Iterator[Hostile]:
    """The table."""
    for name, start in {
        "text": b"hello",
        "shell": b"#!/bin/sh\nrm -rf /\n",
        "html": b"<html>",
        "svg": b"<svg xmlns='x'/>",
        "pdf": b"%PDF-1.7\n",
        "zip": b"PK\x03\x04",
        "gzip": b"\x1f\x8b\x08\0",
        "elf": b"\x7fELF",
        "gif": b"GIF89a",
        "hdf": b"\x89HDF\r\n\x1a\n",
        "netcdf": b"CDF\x01",
        "pickle": b"\x80\x04\x95",
        "nitf": b"NITF02.10",
        "zeros": b"\0" * 12,
        "one byte": b"I",
    }.items():
        yield Hostile(f"{name} by another name", lambda start=start: start * 20, NO_FORMAT)
    yield Hostile("vrt that reads a system file", lambda: VRT % b"/etc/passwd", NO_FORMAT)
    yield Hostile(
        "vrt that asks an address", lambda: VRT % b"/vsicurl/http://127.0.0.1:9/x", NO_FORMAT
    )
    yield Hostile(
        "service description", lambda: b"<GDAL_WMS><Service name='TMS'/></GDAL_WMS>", NO_FORMAT
    )
    yield Hostile("nothing", lambda: b"", r"is empty")
    for kind, magic in (
        ("tiff", b"II*\0"),
        ("big tiff", b"II+\0"),
        ("png", b"\x89PNG"),
        ("jpeg", b"\xff\xd8\xff\xe0"),
    ):
        yield Hostile(f"{kind}: magic alone", lambda magic=magic: magic, UNREADABLE)
        yield Hostile(
            f"{kind}: magic and rubbish", lambda magic=magic: magic + b"\xa5" * 300, UNREADABLE
        )
    yield Hostile(
        "tiff: directory beyond the end", lambda: b"II*\0" + struct.pack("<I", 10**9), UNREADABLE
    )
    yield Hostile(
        "tiff: directory that is itself",
        lambda: b"II*\0" + struct.pack("<IHI", 8, 0, 8),
        UNREADABLE,
    )
    yield Hostile("tiff: no tags", lambda: tiff({}), UNREADABLE)
    yield Hostile("tiff: zero width", lambda: strips(0, 8), UNREADABLE)
    yield Hostile("tiff: 2^31 wide", lambda: strips(2**31 - 1, 2**31 - 1), TOO_LARGE)
    yield Hostile("tiff: 40000 x 40000 in 64 bytes", lambda: strips(40000, 40000), TOO_LARGE)
    yield Hostile("tiff: 9000 x 9000 in 64 bytes", lambda: strips(9000, 9000), TOO_EMPTY)
    yield Hostile("tiff: one tile of 32768 x 32768", lambda: tiles(32768, 32768, 32768), TOO_LARGE)
    yield Hostile(
        "tiff: one tile of 16384 for 64 pixels", lambda: tiles(64, 64, 16384), r"blocks of"
    )
    yield Hostile("tiff: tiles of zero", lambda: tiles(64, 64, 0), UNREADABLE)
    yield Hostile(
        "tiff: 60000 samples",
        lambda: strips(8, 8, samples=("short", [60000])),
        r"declares 60000 bands",
    )
    yield Hostile("tiff: no samples", lambda: strips(8, 8, samples=("short", [0])), UNREADABLE)
    yield Hostile("tiff: 77 bits", lambda: strips(8, 8, bits=("short", [77])), UNREADABLE)
    yield Hostile(
        "tiff: unknown compression",
        lambda: strips(8, 8, compression=("short", [31337])),
        UNREADABLE,
    )
    yield Hostile(
        "tiff: lzw of rubbish", lambda: strips(99, 99, compression=("short", [5])), UNREADABLE
    )
    yield Hostile(
        "tiff: deflate of rubbish", lambda: strips(99, 99, compression=("short", [8])), UNREADABLE
    )
    yield Hostile(
        "tiff: jpeg of rubbish", lambda: strips(99, 99, compression=("short", [7])), UNREADABLE
    )
    yield Hostile(
        "tiff: strip beyond the end", lambda: strips(99, 99, offsets=("long", [10**6])), UNREADABLE
    )
    yield Hostile("tiff: strip shorter than declared", lambda: strips(99, 99), UNREADABLE)
    yield Hostile(
        "tiff: complex numbers",
        lambda: strips(2, 2, bits=("short", [64]), format=("short", [6])),
        r"type complex",
    )
    yield Hostile("png: zero size", lambda: png(0, 0), UNREADABLE)
    yield Hostile("png: 2^31 wide", lambda: png(2**31 - 1, 2**31 - 1), UNREADABLE)
    yield Hostile("png: 60000 x 60000 in 100 bytes", lambda: png(60000, 60000), TOO_LARGE)
    yield Hostile("png: 5000 x 5000 in 100 bytes", lambda: png(5000, 5000), TOO_EMPTY)
    yield Hostile("png: less data than pixels", lambda: png(200, 200), UNREADABLE)
    yield Hostile("png: data of rubbish", lambda: png(20, 20, data=b"\xa5" * 90), UNREADABLE)
    yield Hostile("png: wrong checksums", lambda: png(20, 20, spoil=1), UNREADABLE)
    yield Hostile("png: 3 bits a sample", lambda: png(20, 20, bits=3), UNREADABLE)
    yield Hostile("png: colour type 5", lambda: png(20, 20, colour=5), UNREADABLE)
    yield Hostile("png: half of it", lambda: encoded("PNG")[:20000], UNREADABLE)
    yield Hostile("jpeg: 65500 x 65500 in 20 kB", lambda: jpeg_sized(65500, 65500), TOO_LARGE)
    yield Hostile("jpeg: 12000 x 12000 in 20 kB", lambda: jpeg_sized(12000, 12000), TOO_EMPTY)
    yield Hostile("jpeg: half of it", lambda: encoded("JPEG")[:6000], UNREADABLE)
    yield Hostile("jpeg: zero size", lambda: jpeg_sized(0, 0), UNREADABLE)
    yield Hostile(
        "jpeg 2000: 60000 x 60000 in 30 kB", lambda: jpeg2000_sized(60000, 60000), UNREADABLE
    )
    yield Hostile("jpeg 2000: half of it", lambda: encoded("JPEG2000")[:9000], UNREADABLE)
    yield Hostile("jpeg 2000: header alone", lambda: encoded("JPEG2000")[:90], UNREADABLE)


def true_files(folder: Path) -> list[Path]:
    """One small file of each kind that is taken from strangers."""
    import rasterio

    pixels = np.random.default_rng(2).integers(0, 256, (3, 80, 90)).astype(np.uint8)
    image = Image.fromarray(np.moveaxis(pixels, 0, 2))
    paths = []
    for compression, layout in (
        ("deflate", {"tiled": True, "blockxsize": 32, "blockysize": 32}),
        ("lzw", {}),
        ("jpeg", {}),
        ("zstd", {}),
        ("packbits", {}),
        ("none", {}),
    ):
        paths.append(folder / f"true_{compression}.tif")
        profile = {
            "driver": "GTiff",
            "count": 3,
            "height": 80,
            "width": 90,
            "dtype": "uint8",
            "crs": "EPSG:32633",
        }
        with rasterio.open(
            paths[-1], "w", compress=compression, nodata=0, **profile, **layout
        ) as file:
            file.write(pixels)
    for suffix in ("png", "jpg", "jp2"):
        paths.append(folder / f"true.{suffix}")
        image.save(paths[-1])
    return paths


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A damaged copy: flipped bits (most often near the header), a run of zeros, a cut, or bytes
    put in.
    """
    damaged = bytearray(content)
    kind = random.integers(4)
    if kind == 0:
        reach = len(damaged) if random.random() < 0.5 else min(400, len(damaged))
        for at in random.integers(0, reach, random.integers(1, 9)):
            damaged[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        at = int(random.integers(len(damaged)))
        damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
    elif kind == 2:
        del damaged[int(random.integers(4, len(damaged))) :]
    else:
        at = int(random.integers(len(damaged)))
        damaged[at:at] = random.bytes(int(random.integers(1, 40)))
    return bytes(damaged)


def check_table(folder: Path) -> Iterator[str]:
    """A line for each file of the table that does not end in its error."""
    from repmamba.errors import RepmambaError
    from repmamba.scene.source.admission import ReadOptions
    from repmamba.scene.source.raster import open_raster

    for hostile in all_files():
        path = folder / "upload"
        path.write_bytes(hostile.content())
        begun = time.process_time()
        try:
            with open_raster(path, ReadOptions(untrusted=True)) as raster:
                for strip in raster.strips():
                    raster.read(strip)
            yield f"{hostile.name}: was read"
        except RepmambaError as error:
            if not re.search(hostile.words, str(error)) or "\n" in str(error):
                yield f"{hostile.name}: {error}"
        except Exception as error:
            yield f"{hostile.name}: {error!r}"
        if (took := time.process_time() - begun) > SECONDS_OF_ONE:
            yield f"{hostile.name}: took {took:.1f} s"


def check_mutations(folder: Path, seed: int, count: int) -> Iterator[str]:
    """A line for each damaged file that does not end in a whole result or in one line and no
    result.
    """
    import torch

    from repmamba.errors import RepmambaError
    from repmamba.inference.upscaler import Upscaler
    from repmamba.scene.engine import upscale_file

    class Nearest:
        scale, bands = 2, 3

        def run(self, unit: torch.Tensor) -> torch.Tensor:
            return unit.repeat_interleave(2, -1).repeat_interleave(2, -2)

    upscaler = Upscaler(torch.nn.Identity(), Nearest(), "nearest", "0" * 32)
    random = np.random.default_rng(seed)
    originals = [path.read_bytes() for path in true_files(folder)]
    for number in range(count):
        path, target = folder / "upload", folder / "out.tif"
        path.write_bytes(mutated(originals[number % len(originals)], random))
        try:
            upscale_file(
                path, target, upscaler, untrusted=True, workers=1, restart=True, max_pixels=10**6
            )
            if not target.exists():
                yield f"mutation {number} of seed {seed}: no result and no error"
        except RepmambaError as error:
            if target.exists() or "\n" in str(error):
                yield f"mutation {number} of seed {seed}: {error}"
        except Exception as error:
            yield f"mutation {number} of seed {seed}: {error!r}"
        for left in (target, target.with_name("out.tif.receipt.json")):
            left.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    """See the module's first lines."""
    import resource
    import tempfile

    for limit, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CPU, MOST_SECONDS)):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(
            limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
        )
    with tempfile.TemporaryDirectory() as folder:
        if arguments[0] == "table":
            lines = list(check_table(Path(folder)))
        else:
            lines = list(check_mutations(Path(folder), int(arguments[1]), int(arguments[2])))
    print("\n".join(lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
