"""Saves: the states that an interrupted run goes on from, each a complete folder.

A save is written under a temporary name, synced, hashed and renamed; `latest` names the newest and
is replaced by a rename. One that does not match its checksum is renamed with a warning, and the one
before is used. Weights for `load` are written by network.checkpoint.
"""

import hashlib
import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from repmamba.durable import sync_folder, write_durable, write_errors, write_synced

logger = logging.getLogger(__name__)

PREFIX = "step-"
STATE = "state.pt"
DIGESTS = "digests.json"
LATEST = "latest"
ASIDE = ".corrupt"

State = dict[str, Any]


def write_save(folder: Path, step: int, state: State) -> Path:
    """Write the state of a run after `step` steps, synced; replaces a save of that step.

    state: tensors and plain values, readable by torch without running pickled code. Raises NoSpace
    for a full disk, otherwise TargetError; earlier saves are then unchanged.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    digests = {STATE: hashlib.sha256(content).hexdigest()}
    target = folder / f"{PREFIX}{step:08d}"
    part = folder / f".{target.name}.part"
    with write_errors(target):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            write_synced(part / STATE, content)
            write_synced(part / DIGESTS, json.dumps(digests).encode())
            sync_folder(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            write_durable(folder / LATEST, target.name.encode())
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def newest_save(folder: Path) -> tuple[Path, State] | None:
    """The newest save that matches its checksum, and its state on the CPU; None if there is none.

    Others are renamed with the ending `.corrupt`, with a warning.
    """
    for save in _newest_first(folder):
        fault = _fault(save)
        if fault is None:
            return save, torch.load(save / STATE, map_location="cpu", weights_only=True)
        aside = save.with_name(save.name + ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        save.rename(aside)
        logger.warning(
            "The save %s %s; it was renamed to %s, and the one before is used.",
            *(save, fault, aside.name),
        )
    return None


def saved_steps(folder: Path) -> list[int]:
    """The steps that have saves, in increasing order; nothing is verified."""
    names = (entry.name.removeprefix(PREFIX) for entry in folder.glob(f"{PREFIX}*"))
    return sorted(int(name) for name in names if name.isdecimal())


def prune_saves(folder: Path, keep: int, archived: Callable[[int], bool]) -> None:
    """Remove all saves but the `keep` newest and the archived ones; warn if that fails."""
    for step in saved_steps(folder)[:-keep]:
        if not archived(step):
            try:
                shutil.rmtree(folder / f"{PREFIX}{step:08d}")
            except OSError as fault:
                reason = fault.strerror or fault
                logger.warning("The old save of step %d could not be removed: %s.", step, reason)


def _newest_first(folder: Path) -> Iterator[Path]:
    saves = [folder / f"{PREFIX}{step:08d}" for step in reversed(saved_steps(folder))]
    try:
        latest = folder / (folder / LATEST).read_text().strip()
    except OSError:
        latest = folder / PREFIX
    # `latest` comes first: pointing it at an older save makes the run go on from there.
    yield from sorted(saves, key=lambda save: save != latest)


def _fault(save: Path) -> str | None:
    try:
        digests = json.loads((save / DIGESTS).read_text())
        for name, digest in digests.items():
            with (save / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"is corrupt: {name} does not match its checksum"
        return None if STATE in digests else f"is corrupt: {DIGESTS} has no {STATE}"
    except (OSError, ValueError, AttributeError) as fault:
        return f"is corrupt: {fault}"
