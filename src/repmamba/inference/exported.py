"""Exported files: what a network's graph for other programs says of itself, written and read.

`repmamba.export` writes them; onnx_runner.py runs those of ONNX. What they say is JSON in the
metadata of the file, beside a checksum of the whole file, so that a damaged one is refused before
a runtime sees it, and so is a graph that is none of ours.
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

FORMAT = 1
"""Version of what is said. A reader refuses a later one."""

FACTS = "repmamba"
"""The entry of the metadata that holds the facts, as JSON."""

CHECKSUM = "repmamba.checksum"
"""The entry that holds the SHA-256 of the file, as hex, taken with zeros in its own place."""

BLANK = "0" * 64

LR, SR = "lr", "sr"
"""Names of a graph's input and output."""

# In a file of ONNX an entry is its name, then a tag and a length, both of one byte, then its text.
_STORED_CHECKSUM = re.compile(re.escape(CHECKSUM).encode() + rb"\x12\x40([0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a runtime's result is from the network's own, for one input."""

    runtime: str
    version: str
    input: str  # in words
    shape: tuple[int, ...]  # (batch, bands, height, width)
    largest: float  # in units of the value range, of all pixels


@dataclass(frozen=True, slots=True)
class ExportedFacts:
    """What a file says of itself."""

    config: NetworkConfig
    name: str  # of the weights
    network: str  # digest of the network's numbers, as Upscaler.digest
    weights: str  # SHA-256 of the file of weights, hex; "" where it was a folder
    terms: str  # of the weights
    training_data: str
    tile: int  # lr pixels, advised
    halo: int
    size: tuple[int, int] | None  # height and width of the input; None: any
    precision: str  # in which matrices are stored
    purpose: str  # "", or the program that it is for and whose rules it follows
    nodes: int
    parity: tuple[Difference, ...]
    value_range: tuple[float, float] = (0.0, 1.0)
    written_by: str = f"repmamba {__version__}"

    @property
    def scale(self) -> int:
        """How many times larger the result is."""
        return self.config.scale

    @property
    def bands(self) -> int:
        """How many go through the network together."""
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
        """What `to_dict` gave. Raises KeyError, TypeError, ValueError for anything else."""
        known = dict(values)
        for derived in ("format_version", "scale", "bands"):
            del known[derived]
        size = known["size"]
        return cls(
            **known
            | {
                "config": NetworkConfig.from_dict(known["config"]),
                "size": None if size is None else tuple(map(int, size)),
                "parity": tuple(
                    Difference(**each | {"shape": tuple(each["shape"])}) for each in known["parity"]
                ),
                "value_range": tuple(map(float, known["value_range"])),
            }
        )


def sealed(content: bytes) -> bytes:
    """The content of a file whose checksum is BLANK, with its checksum in that place."""
    checksum = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b"\x12\x40" + BLANK.encode(), b"\x12\x40" + checksum)


def read_sealed(path: Path) -> bytes:
    """The content of an exported file of ONNX, as it was sealed. Raises CheckpointError."""
    try:
        content = path.read_bytes()
    except OSError as failure:
        raise CheckpointError(f"{path} cannot be read: {failure.strerror}.") from failure
    found = _STORED_CHECKSUM.search(content)
    if found is None:
        raise CheckpointError(
            f"{path} is not a network that `repmamba export` has written; only those are run here."
        )
    checksum = found[1]
    blank = content[: found.start(1)] + BLANK.encode() + content[found.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != checksum:
        raise CheckpointError(f"{path} is damaged: its checksum is not its own. Export it again.")
    return content


def read_facts(text: str, path: Path) -> ExportedFacts:
    """The facts in the metadata of a file. Raises CheckpointError."""
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version <= FORMAT:
            return ExportedFacts.from_dict(values)
    except (ValueError, TypeError, KeyError) as failure:
        raise CheckpointError(f"{path} says nothing of its network that can be read.") from failure
    raise CheckpointError(
        f"{path} is of format version {version}, and this repmamba reads up to {FORMAT}: install a "
        "newer repmamba, or export it again."
    )
