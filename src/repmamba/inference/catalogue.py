"""The packaged weights: a table of names, and where any other weights are looked for.

The table is `weights/catalogue.toml`, beside the files it names, so that new weights are a line there and a file. What
is no name in it is a path; what is no path, but looks like owner/name, is asked of the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from repmamba.errors import CheckpointError, MissingExtra

FOLDER = Path(__file__).parent / "weights"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """One entry of the table."""

    name: str  # what a user types: x4
    scale: int
    file: str  # in the folder of weights
    digest: str  # SHA-256 of the file, hex
    training_data: str
    terms: str

    @property
    def path(self) -> Path:
        """Where the file is."""
        return FOLDER / self.file


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """Where weights are, and what to call them."""

    name: str
    path: Path


def packaged_weights() -> tuple[PackagedWeights, ...]:
    """The table, the default first."""
    table = FOLDER / "catalogue.toml"
    if not table.is_file():
        return ()
    return tuple(PackagedWeights(**entry) for entry in tomllib.loads(table.read_text("utf-8"))["weights"])


def find_weights(weights: str | os.PathLike[str]) -> FoundWeights:
    """The file or folder that a name, a path or a hub id means. Raises CheckpointError."""
    text = os.fspath(weights)
    packaged = {entry.name: entry for entry in packaged_weights()}
    if text in packaged:
        return FoundWeights(text, _checked(packaged[text]))
    path = Path(text)
    if path.exists():
        return FoundWeights(path.stem if path.is_file() else path.resolve().name, path)
    if isinstance(weights, str) and _HUB_ID.fullmatch(text) and path.suffix not in (".safetensors", ".pth"):
        return FoundWeights(text, _from_hub(text))
    known = ", ".join(packaged) or "none yet"
    raise CheckpointError(f"There are no weights '{text}': it is no file or folder, and the packaged ones are {known}.")


def _checked(entry: PackagedWeights) -> Path:
    if not entry.path.is_file():
        raise CheckpointError(f"The packaged weights {entry.name} ({entry.file}) are missing; install repmamba again.")
    if hashlib.sha256(entry.path.read_bytes()).hexdigest() != entry.digest:
        raise CheckpointError(f"The packaged weights {entry.name} are not those of the table; install repmamba again.")
    return entry.path


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as missing:
        raise MissingExtra("Weights of the hub need huggingface_hub: pip install huggingface_hub.") from missing
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.safetensors", "*.pth", "*.bin", "config.json"]))
    except Exception as failure:  # the hub's client raises errors of several libraries, all of which mean this
        raise CheckpointError(
            f"The weights '{repository}' are no file or folder here, and the hub does not give them "
            f"({type(failure).__name__}). Check the name and the connection, or download them and name the folder."
        ) from failure
