"""The packaged weights, a table of names, and how other weights are found.

The table is `weights/catalogue.toml`, beside the weights. A name that is not in it is a path; if
that does not exist and looks like owner/name, it is looked up on the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repmamba.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from repmamba.network.repmamba import RepMamba

FOLDER = Path(__file__).parent / "weights"


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """One entry of the table."""

    name: str  # as the user types it: x4
    scale: int
    file: str  # in the folder of weights
    sha256: str  # SHA-256 of the file, hex
    training_data: str
    terms: str

    @property
    def path(self) -> Path:
        """Path of the file."""
        return FOLDER / self.file


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A file or folder of weights, and its name for the user."""

    name: str
    path: Path


def packaged_weights() -> tuple[PackagedWeights, ...]:
    """The table, the default first."""
    table = FOLDER / "catalogue.toml"
    if not table.is_file():
        return ()
    return tuple(
        PackagedWeights(**entry) for entry in tomllib.loads(table.read_text("utf-8"))["weights"]
    )


def find_weights(weights: str | os.PathLike[str], *, revision: str | None = None) -> FoundWeights:
    """The file or folder for a name, a path or a hub id.

    revision: branch, tag or commit, only for a hub id. Raises CheckpointError, UsageError,
    MissingExtra.
    """
    # imported here: shell completion needs only the names, without torch
    from repmamba.network.checkpoint import fetch, is_hub_name

    text = os.fspath(weights)
    packaged = {entry.name: entry for entry in packaged_weights()}
    path = Path(text)
    is_here = text in packaged or path.exists()
    if is_here and revision is not None:
        raise UsageError(
            f"{text} is a local file and has no revision '{revision}': leave it out, or name a hub "
            "repository."
        )
    if text in packaged:
        return FoundWeights(text, _verified_path(packaged[text]))
    if is_here:
        return FoundWeights(path.stem if path.is_file() else path.resolve().name, path)
    if isinstance(weights, str) and is_hub_name(text):
        return FoundWeights(text, fetch(text, revision=revision))
    known = ", ".join(packaged) or "none yet"
    raise CheckpointError(
        f"There are no weights '{text}': not a file or folder, and the packaged weights are "
        f"{known}."
    )


def terms_of(path: Path, training: Mapping[str, Any]) -> str:
    """The terms of weights in a line: the catalogue's, or "terms" of the training facts, or ""."""
    if path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        for entry in packaged_weights():
            if entry.sha256 == digest:
                return entry.terms
    return " ".join(str(training.get("terms", "")).split())


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> RepMamba:
    """Load a network from a file, a folder or a Hugging Face repository.

    A file or folder that exists is never looked up on the hub, so that it opens offline.

    Args:
        source: A checkpoint file, a folder, or a repository named owner/name.
        revision: Branch, tag or commit of the repository.
        local_files_only: Only use files of the hub that are cached on this machine.

    Returns:
        The network, in evaluation mode, float32 on the CPU.

    Raises:
        CheckpointError: Nothing found, or not a checkpoint.
        UsageError: An argument that is not allowed.
        MissingExtra: An optional package is not installed.
    """
    from repmamba.network import checkpoint

    if isinstance(source, str) and not Path(source).exists() and not checkpoint.is_hub_name(source):
        packaged = [entry.name for entry in packaged_weights()]
        name = source if source in packaged else "x4"
        raise CheckpointError(
            f"{source} is no file or folder, and no name of a hub repository (owner/name) either. "
            "Packaged weights, "
            f'which are {", ".join(packaged)}, open by load: repmamba.load("{name}", '
            "fuse=False).module."
        )
    return checkpoint.from_pretrained(source, revision=revision, local_files_only=local_files_only)


def _verified_path(entry: PackagedWeights) -> Path:
    if not entry.path.is_file():
        raise CheckpointError(
            f"The packaged weights {entry.name} ({entry.file}) are missing; install repmamba again."
        )
    if hashlib.sha256(entry.path.read_bytes()).hexdigest() != entry.sha256:
        raise CheckpointError(
            f"The packaged weights {entry.name} do not match the catalogue; install repmamba again."
        )
    return entry.path
