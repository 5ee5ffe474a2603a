"""The working folder of one job: which tiles are done, so that a stopped run continues.

A job is what decides the pixels: input, weights, settings. Its hash names a folder beside the target, and in it every
finished tile is a file of its own that can be checked without any other. A process that holds the target's lock is the
only one to write there; the lock is the operating system's, so that it ends with its process, however that ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import socket
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from repmamba.errors import JobChanged, ShapeMismatch, TargetError, VerificationError
from repmamba.scene import durable
from repmamba.tiles.window import Window

logger = logging.getLogger(__name__)

Json: TypeAlias = Any  # what JSON can hold; floats that it cannot (NaN) are spelt out
FORMAT = 1  # of the working folder and its files; a folder of another one is another job's
SUFFIX = ".repmamba"


def canonical_json(value: Json) -> str:
    """The one spelling of a value as JSON: keys sorted, no spaces, NaN and infinities as strings."""
    return json.dumps(_spelt(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _spelt(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _spelt(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelt(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def digest(*parts: bytes | memoryview) -> str:
    """The first 128 bits of SHA-256, as hex: enough against chance, short enough for a receipt of 100 000 tiles."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What decides every pixel of a result. Equal identities give equal pixels; nothing else is in it.

    Values are those of JSON. The way a result is stored (format, compression) is not part of it.
    """

    source: Mapping[str, Json]  # the input: name, bytes, digest ... (see identify_file)
    weights: str  # digest of the network's numbers
    settings: Mapping[str, Json] = field(default_factory=dict)  # scale, tile, halo, range, bands, precision ...
    version: str = ""  # of repmamba: another one may compute other pixels

    @property
    def id(self) -> str:
        """32 hex digits, the hash of all of it."""
        return digest(canonical_json(self.as_json()).encode())

    def as_json(self) -> dict[str, Json]:
        """All of it as JSON values."""
        values: dict[str, Json] = _spelt(
            {"source": self.source, "weights": self.weights, "settings": self.settings, "version": self.version}
        )
        return values


def differences(before: Json, now: Json, name: str = "") -> list[str]:
    """Where two JSON values differ, as "name: before -> now", leaf by leaf."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before.keys() | now.keys())
        lists = [differences(before.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys]
        return [line for lines in lists for line in lines]
    return [] if before == now else [f"{name}: {before} -> {now}"]


def identify_file(path: Path) -> dict[str, Json]:
    """The identity of an input file: name, size, digest; of one over 64 MiB, a digest of its two ends and its time."""
    end = 1 << 20
    status = path.stat()
    state = hashlib.sha256()
    with path.open("rb") as file:
        if status.st_size <= 64 * end:
            while piece := file.read(end):
                state.update(piece)
            return {"name": path.name, "bytes": status.st_size, "digest": state.hexdigest()[:32]}
        state.update(file.read(end))
        file.seek(-end, os.SEEK_END)
        state.update(file.read(end))
    return {
        "name": path.name,
        "bytes": status.st_size,
        "ends": state.hexdigest()[:32],
        "mtime_ns": status.st_mtime_ns,
    }


@dataclass(frozen=True, slots=True)
class Layout:
    """What a durable tile must fit: the shape of the result and how it is cut."""

    job: str  # JobIdentity.id
    tiles: tuple[Window, ...]  # hr
    count: int
    dtype: str
    mask: bool

    def as_json(self) -> dict[str, Json]:
        """What a stopped run must share with this one; the windows as one digest."""
        windows = [[window.row, window.col, window.height, window.width] for window in self.tiles]
        return {
            "tiles": len(self.tiles),
            "windows": digest(canonical_json(windows).encode()),
            "count": self.count,
            "dtype": self.dtype,
            "mask": self.mask,
        }


@dataclass(frozen=True, slots=True)
class TilePixels:
    """One finished tile. Rows outermost, so that a reader who goes row by row meets the bytes in the digest's order."""

    rows: NDArray[Any]  # (h, count, w)
    valid: NDArray[np.bool_] | None  # (h, w), True where there is data; None: everywhere

    @property
    def data(self) -> NDArray[Any]:
        """(count, h, w), a view."""
        return self.rows.transpose(1, 0, 2)

    @property
    def digest(self) -> str:
        """Of the pixels, in rows of all bands."""
        return digest(self.rows.data)

    @property
    def valid_digest(self) -> str:
        """Of the mask, each row packed to bits."""
        return digest(packed_rows(self.mask).data)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), also where everything is valid."""
        height, _, width = self.rows.shape
        return np.ones((height, width), bool) if self.valid is None else self.valid


def packed_rows(valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask (h, w) as bits, each row filled up to whole bytes."""
    return np.ascontiguousarray(np.packbits(valid, axis=1))


_PREFIX = struct.Struct("<8sII")  # magic, length of the header, CRC-32 of the header
_MAGIC = b"rmtile1\n"
_PROBE = 1 << 16


def encode_tile(layout: Layout, index: int, pixels: TilePixels) -> tuple[bytes, bytes]:
    """A finished tile as (header, payload) of its file: the same pixels give the same bytes."""
    window = layout.tiles[index]
    payload = pixels.rows.tobytes()
    if pixels.valid is not None:
        payload += packed_rows(pixels.valid).tobytes()
    codec = "zlib" if _is_worth_packing(payload) else "raw"
    if codec == "zlib":
        payload = zlib.compress(payload, 1)
    header = canonical_json(
        {
            "job": layout.job,
            "index": index,
            "window": [window.row, window.col, window.height, window.width],
            "count": layout.count,
            "dtype": layout.dtype,
            "all_valid": pixels.valid is None,
            "codec": codec,
            "bytes": len(payload),
            "digest": digest(payload),
        }
    ).encode()
    return _PREFIX.pack(_MAGIC, len(header), zlib.crc32(header)) + header, payload


def _is_worth_packing(payload: bytes) -> bool:
    # Imagery shrinks by a tenth for 30 ms a megabyte; a tile of missing pixels shrinks to nothing. A sample tells.
    middle = max(0, len(payload) // 2 - _PROBE // 2)
    probe = payload[middle : middle + _PROBE]
    return 2 * len(zlib.compress(probe, 1)) < len(probe)


def read_header(path: Path, layout: Layout, index: int) -> dict[str, Json]:
    """The header of a tile's file, checked against the layout and the file's size. Raises VerificationError."""
    with path.open("rb") as file:
        magic, length, crc = _prefix(file.read(_PREFIX.size))
        header = file.read(length)
    if magic != _MAGIC or zlib.crc32(header) != crc or len(header) != length:
        raise VerificationError(f"{path} does not begin as a finished tile does.")
    fields: dict[str, Json] = json.loads(header)
    window = layout.tiles[index]
    expected = {
        "job": layout.job,
        "index": index,
        "window": [window.row, window.col, window.height, window.width],
        "count": layout.count,
        "dtype": layout.dtype,
    }
    if unlike := differences(expected, {name: fields.get(name) for name in expected}):
        raise VerificationError(f"{path} is a tile of another job ({'; '.join(unlike)}).")
    if path.stat().st_size != _PREFIX.size + length + fields["bytes"]:
        raise VerificationError(f"{path} has {path.stat().st_size} bytes, and its header tells of another number.")
    return {**fields, "start": _PREFIX.size + length}


def _prefix(head: bytes) -> tuple[bytes, int, int]:
    if len(head) < _PREFIX.size:
        return b"", 0, 0
    magic, length, crc = _PREFIX.unpack(head)
    return magic, min(length, _PROBE), crc


def decode_tile(path: Path, layout: Layout, index: int) -> TilePixels:
    """A tile read back from its file, every byte checked. Raises VerificationError."""
    fields = read_header(path, layout, index)
    with path.open("rb") as file:
        file.seek(fields["start"])
        payload = file.read(fields["bytes"])
    if digest(payload) != fields["digest"]:
        raise VerificationError(f"{path}: its pixels are not those that were written.")
    if fields["codec"] == "zlib":
        payload = zlib.decompress(payload)
    window, dtype = layout.tiles[index], np.dtype(layout.dtype)
    samples = window.height * layout.count * window.width
    rows = np.frombuffer(payload, dtype, samples).reshape(window.height, layout.count, window.width)
    if fields["all_valid"]:
        return TilePixels(rows, None)
    bits = np.frombuffer(payload, np.uint8, offset=samples * dtype.itemsize).reshape(window.height, -1)
    return TilePixels(rows, np.unpackbits(bits, axis=1, count=window.width).astype(bool))


def tile_pixels(layout: Layout, index: int, data: NDArray[Any], valid: NDArray[np.bool_] | None) -> TilePixels:
    """What an engine hands over, data (count, h, w) and valid (h, w) or None, checked. Raises ShapeMismatch."""
    window = layout.tiles[index]
    expected = (layout.count, window.height, window.width)
    if data.shape != expected or data.dtype != np.dtype(layout.dtype):
        raise ShapeMismatch(f"Tile {index} is {data.dtype} {data.shape}; the plan has {layout.dtype} {expected}.")
    if valid is not None and valid.shape != expected[1:]:
        raise ShapeMismatch(f"The valid mask of tile {index} is {valid.shape}; the plan has {expected[1:]}.")
    kept = None if not layout.mask or valid is None or valid.all() else valid.astype(bool)
    return TilePixels(np.ascontiguousarray(data.transpose(1, 0, 2)), kept)


class Journal:
    """The tiles that are done, in a folder of their own. Thread-safe: any number of threads may record tiles."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder = folder
        self.layout = layout
        self._guard = threading.Lock()
        self._done: set[int] = set()

    def open(self, job: JobIdentity) -> None:
        """Make the folder, or take up what a stopped run of the same job left in it. Raises JobChanged."""
        with durable.storage_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            durable.sync_folder(self.folder.parent)
            for draft in self.folder.glob("*.part"):
                durable.remove(draft)
            note = self.folder / "job.json"
            now = {"format": FORMAT, "job": job.as_json(), "layout": self.layout.as_json()}
            before = read_note(note)
            if before is None:
                durable.write_durable(note, (canonical_json(now) + "\n").encode())
            elif unlike := differences(before, _spelt(now)):
                raise JobChanged(_changed(self.folder, unlike))
        self._done = {index for index in range(len(self.layout.tiles)) if self._is_done(index)}

    def remaining(self) -> list[int]:
        """The tiles that are not on the disk yet, in order."""
        with self._guard:
            return [index for index in range(len(self.layout.tiles)) if index not in self._done]

    def stored_bytes(self) -> int:
        """What the finished tiles take on the disk."""
        return sum(self.path(index).stat().st_size for index in sorted(self._done))

    def path(self, index: int) -> Path:
        """Where a finished tile lies."""
        return self.folder / f"{index:06d}.tile"

    def record(self, index: int, pixels: TilePixels) -> None:
        """Make a tile durable. A second arrival must bring the same bytes: VerificationError if it does not."""
        header, payload = encode_tile(self.layout, index, pixels)
        path = self.path(index)
        draft = path.with_name(f"{path.name}.{threading.get_ident()}.part")
        with durable.storage_errors(path):
            try:
                durable.write_synced(draft, header, payload)
                with self._guard:
                    if index in self._done:
                        self._compare(path, header + payload)
                        durable.remove(draft)
                    else:
                        os.replace(draft, path)
            except BaseException:
                durable.remove(draft)
                raise
            durable.sync_folder(self.folder)
        with self._guard:
            self._done.add(index)

    def read(self, index: int) -> TilePixels:
        """A finished tile, checked; a damaged one is dropped, so that the next run computes it anew."""
        try:
            return decode_tile(self.path(index), self.layout, index)
        except VerificationError as damage:
            durable.remove(self.path(index))
            with self._guard:
                self._done.discard(index)
            raise VerificationError(
                f"{damage} The tile was dropped: run the same command again to compute it anew."
            ) from damage

    def _compare(self, path: Path, content: bytes) -> None:
        if path.read_bytes() != content:
            raise VerificationError(
                f"{path.name} was computed twice with different results. A result must not depend on when or where "
                "a tile is computed; nothing was replaced. Please report this."
            )

    def _is_done(self, index: int) -> bool:
        path = self.path(index)
        if not path.is_file():
            return False
        try:
            read_header(path, self.layout, index)
        except VerificationError as damage:
            logger.warning("%s It is computed anew.", damage)
            durable.remove(path)
            return False
        return True


def work_folder(target: Path, job_id: str) -> Path:
    """The working folder of a job at a target: hidden, beside it, on the same filesystem."""
    return target.with_name(f".{target.name}.{job_id[:16]}{SUFFIX}")


def other_jobs(target: Path, job_id: str) -> list[Path]:
    """Working folders that runs of other jobs left at the same target, in the order of their names."""
    name = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{16}" + re.escape(SUFFIX))
    folders = [path for path in target.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]
    return sorted(folder for folder in folders if folder != work_folder(target, job_id))


def read_note(path: Path) -> Json | None:
    """The job.json of a working folder; None where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def refuse_changed_job(target: Path, job: JobIdentity, others: Sequence[Path]) -> None:
    """Raise JobChanged: a stopped run at this target had another input, other weights or other settings."""
    latest = max(others, key=lambda folder: folder.stat().st_mtime)
    note = read_note(latest / "job.json") or {}
    raise JobChanged(_changed(latest, differences(note.get("job", {}), job.as_json())))


def _changed(folder: Path, unlike: Sequence[str]) -> str:
    return (
        f"A stopped run left {folder}, and since then this changed: {'; '.join(unlike)}. "
        "Run it as before to continue it, or start anew with --restart (the folder stays, and may be deleted)."
    )


class TargetLock:
    """At most one process works on a target. A dead process holds nothing: the system releases what it held."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(f".{target.name}.lock{SUFFIX}")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take it, or raise TargetError that names the holder."""
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _lock(descriptor):
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                raise TargetError(
                    f"Another repmamba ({holder or 'just started'}) is writing the same file ({self.path} is locked). "
                    "Wait for it, or stop it and run this again."
                )
            if _is_at(descriptor, self.path):
                self._descriptor = descriptor
            else:  # the holder before us removed the name between our open and our lock
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        if self._descriptor is not None:
            durable.remove(self.path)
            os.close(self._descriptor)
            self._descriptor = None


def _lock(descriptor: int) -> bool:
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("This filesystem has no locks (%s): do not run two jobs on one target.", error.strerror)
    return True


def _lock_on_windows(descriptor: int) -> bool:
    import msvcrt

    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
