"""Metadata of exported networks: written by `repmamba.export`, read here.

It is JSON in the metadata of the file, beside a checksum of the whole file, so that damaged files
and graphs of other programs are refused before a runtime opens them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repmamba import __version__
from repmamba.errors import CheckpointError
from repmamba.network.config import NetworkConfig

FORMAT = 1  # version of the metadata; later ones are refused
FACTS = "repmamba"  # metadata entry with the facts, as JSON

# metadata entry with the SHA-256 of the file, hex, computed with zeros in its own place
CHECKSUM = "repmamba.checksum"
BLANK = "0" * 64
LR, SR = "lr", "sr"  # names of a graph's input and output

# In an ONNX file an entry is its name, then a tag and a length of one byte each, then its text.
_STORED_CHECKSUM = re.compile(re.escape(CHECKSUM).encode() + rb"\x12\x40([0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a runtime's result is from the original network's, for one input."""

    runtime: str
    version: str
    input: str  # description
    shape: tuple[int, ...]  # (batch, bands, height, width)
    largest: float  # in units of the value range, over all pixels


@dataclass(frozen=True, slots=True)
class ExportedFacts:
    """The metadata of an exported network."""

    config: NetworkConfig
    name: str  # of the weights
    network: str  # Upscaler.digest
    weights: str  # SHA-256 of the file of weights, hex; "" for a folder
    terms: str  # of the weights
    training_data: str
    tile: int  # lr pixels, recommended
    halo: int
    size: tuple[int, int] | None  # fixed height and width of the input, or None
    precision: str  # of the stored matrices
    purpose: str  # the program that the export is for, or ""
    nodes: int
    parity: tuple[Difference, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    denoises: bool = False  # as Upscaler.denoises
    written_by: str = f"repmamba {__version__}"

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        return self.config.scale

    @property
    def bands(self) -> int:
        """How many bands go through the network together."""
        return self.config.in_chans

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain values, ready for JSON."""
        return asdict(self) | {
            "format_version": FORMAT,
            "config": self.config.to_dict(),
            "scale": self.scale,
            "bands": self.bands,
            "parity": [asdict(each) for each in self.parity],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExportedFacts:
        """The reverse of `to_dict`. Raises KeyError, TypeError, ValueError for other values."""
        known = dict(values)
        for derived in ("format_version", "scale", "bands"):
            del known[derived]
        size, parity = known["size"], known["parity"]
        known |= {
            "config": NetworkConfig.from_dict(known["config"]),
            "size": None if size is None else tuple(map(int, size)),
            "parity": tuple(Difference(**one | {"shape": tuple(one["shape"])}) for one in parity),
            "value_range": tuple(map(float, known["value_range"])),
        }
        return cls(**known)


def sealed(content: bytes) -> bytes:
    """Replace BLANK in the content of a file by its checksum."""
    checksum = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b"\x12\x40" + BLANK.encode(), b"\x12\x40" + checksum)


def read_sealed(path: Path) -> bytes:
    """The content of an exported ONNX file, its checksum verified. Raises CheckpointError."""
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise CheckpointError(f"{path} cannot be read: {failure.strerror}.") from failure
    found = _STORED_CHECKSUM.search(content)
    if found is None:
        raise CheckpointError(
            f"{path} was not written by `repmamba export`; other ONNX files cannot be run here."
        )
    checksum = found[1]
    blank = content[: found.start(1)] + BLANK.encode() + content[found.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum does not match. Export it again.")
    return content


def read_facts(text: str, path: Path) -> ExportedFacts:
    """The facts in the metadata of a file. Raises CheckpointError."""
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version <= FORMAT:
            return ExportedFacts.from_dict(values)
    except (ValueError, TypeError, KeyError) as failure:
        raise CheckpointError(f"{path} has no readable metadata.") from failure
    raise CheckpointError(
        f"{path} has format version {version}, but this repmamba reads up to {FORMAT}: install a "
        "newer repmamba, or export it again."
    )
