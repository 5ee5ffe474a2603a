"""The packaged weights: a table of names, and where any other weights are looked for.

The table is `weights/catalogue.toml`, beside the files it names, so that new weights are a line
there and a file. What is no name in it is a path; what is no path, but looks like owner/name, is
asked of the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping
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

    name: str  # what a user types: x4
    scale: int
    file: str  # in the folder of weights
    sha256: str  # SHA-256 of the file, hex
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
    return tuple(
        PackagedWeights(**entry) for entry in tomllib.loads(table.read_text("utf-8"))["weights"]
    )


def find_weights(weights: str | os.PathLike[str], *, revision: str | None = None) -> FoundWeights:
    """The file or folder that a name, a path or a hub id means. revision: branch, tag or commit, of
    a hub id alone.

    Raises CheckpointError, UsageError, MissingExtra.
    """
    # here: the names alone, for a shell, need no torch
    from repmamba.network.checkpoint import fetch, is_hub_name

    text = os.fspath(weights)
    packaged = {entry.name: entry for entry in packaged_weights()}
    path = Path(text)
    is_here = text in packaged or path.exists()
    if is_here and revision is not None:
        raise UsageError(
            f"{text} is here and has no revision '{revision}': leave it out, or name a hub "
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
        f"There are no weights '{text}': it is no file or folder, and the packaged ones are "
        f"{known}."
    )


def terms_of(path: Path, training: Mapping[str, Any]) -> str:
    """The terms of weights in a line; "" where nothing is known of any.

    path, training: of a checkpoint, its file and what it says of its training. Packaged weights
    have the terms of the table, under another name too; weights that begin with packaged ones have
    theirs; others say their own as "terms".
    """
    if path.is_file():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        own = [entry.terms for entry in packaged_weights() if entry.sha256 == digest]
        if own:
            return own[0]
    if told := training.get("terms"):
        return " ".join(str(told).split())
    begun = set(_begun_from(training))
    return "; ".join(
        f"begun from {entry.name}: {entry.terms}"
        for entry in packaged_weights()
        if entry.name in begun
    )


def _begun_from(training: Mapping[str, Any]) -> Iterator[str]:
    """The names of all weights that a training began with, and that those began with."""
    begun = training.get("begun_from")
    if isinstance(begun, Mapping):
        others = begun.get("mean_with", [])
        for one in [begun, *(others if isinstance(others, list) else [])]:
            if isinstance(one, Mapping):
                yield str(one.get("weights"))
                if isinstance(one.get("training"), Mapping):
                    yield from _begun_from(one["training"])


def from_pretrained(
    source: str | os.PathLike[str], *, revision: str | None = None, local_files_only: bool = False
) -> RepMamba:
    """The network in a folder or file, or of a repository of the Hugging Face hub named owner/name.

    A folder or file that exists is never asked of the hub, so that it opens offline. revision:
    branch, tag or commit of
    the repository.  local_files_only: take the hub's files from its cache on this machine only.
    Raises CheckpointError, which names the packaged weights where the source is neither;
    UsageError, MissingExtra.
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
            f"The packaged weights {entry.name} are not those of the table; install repmamba again."
        )
    return entry.path
