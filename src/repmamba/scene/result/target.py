"""Whether a result may be written at a target: its name and folder, and what exists there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from repmamba.durable import check_local
from repmamba.errors import TargetError, TargetExists, UsageError, VerificationError
from repmamba.scene.result.formats import FORMATS, creation_options
from repmamba.scene.result.job import JobIdentity, differences
from repmamba.scene.result.journal import check_name, other_jobs, refuse_changed_job, work_folder
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.result.receipt import Receipt, file_sha256, read_receipt, receipt_path

# GDAL reads these as parts of a raster; the suffixes are added to its name
_GDAL_SIDECARS = (".aux.xml", ".ovr", ".msk")
_NO_JOB = "0" * 32  # the id of no job, so that every working folder belongs to another one


def check_target(source: str | os.PathLike[str], target: Path, *, overwrite: bool) -> None:
    """Refuse a target that is the source, or exists. Raises UsageError, TargetExists."""
    if target.exists() and os.path.exists(source) and target.samefile(source):
        raise UsageError(f"{target} is the input: give the output another name.")
    if target.exists() and not overwrite:
        refuse_existing(target)


def check_place(target: Path) -> None:
    """Refuse a target whose name or folder allows no file. Raises UsageError, TargetError."""
    check_local(target)
    check_name(target)
    folder = Path(os.path.realpath(target)).parent if os.path.islink(target) else target.parent
    if not os.path.isdir(folder):  # methods of Path raise for names that are too long
        raise TargetError(f"The folder {folder} does not exist: create it first.")
    if target.is_dir():
        raise TargetError(f"{target} is a folder: name a file in it.")
    # Windows can only check the rights of the user that started the process.
    as_now = os.access in os.supports_effective_ids
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=as_now):
        raise TargetError(f"The folder {folder} cannot be written to: choose another one.")


def refuse_existing(target: str | Path, made: str = "") -> NoReturn:
    """Raise TargetExists. made: how the file that exists differs, for the message."""
    raise TargetExists(
        f"{target} exists already{made}: choose another name, or replace it with overwrite=True."
    )


def was_left_by_a_stopped_run(target: Path) -> bool:
    """Whether a run at this target was stopped; it would have removed its lock last."""
    return bool(other_jobs(target, _NO_JOB)) or TargetLock(target).path.exists()


def standing_result(
    target: Path,
    profile: OutputProfile,
    job: JobIdentity,
    *,
    lock_was_left: bool,
    overwrite: bool,
    restart: bool,
    keep_finished: bool,
) -> Receipt | None:
    """The receipt if the complete result of this job is in place; None if a run may write it.

    target: links resolved.
    lock_was_left: a run was stopped before it removed its lock.
    Raises TargetExists and JobChanged for files that are in the way.
    """
    resumed = work_folder(target, job.id).is_dir()
    ours = resumed or lock_was_left or keep_finished
    if ours and not restart and (receipt := finished_receipt(target, profile, job)) is not None:
        return receipt
    if not overwrite:
        if target.exists():
            refuse_existing(target, _made_otherwise(target, profile, job))
        if not resumed:  # else they may be ours, and are compared when they are replaced
            for path in sidecars(target, profile):
                if path.exists():
                    refuse_sidecar(path)
    others = other_jobs(target, job.id)
    if others and not resumed and not restart:
        refuse_changed_job(target, job, others)
    return None


def finished_receipt(target: Path, profile: OutputProfile, job: JobIdentity) -> Receipt | None:
    """The receipt of a target that is the complete result of this job and profile; else None.

    target: links resolved. A run stopped in its last step left the receipt in the working folder.
    """
    for path in (work_folder(target, job.id) / "receipt.json", receipt_path(target)):
        try:
            receipt = read_receipt(path)
            size = target.stat().st_size
        except (VerificationError, OSError):
            continue
        ours = size == receipt.bytes and not _differences(receipt, profile, job)
        if ours and file_sha256(target) == receipt.sha256:
            return receipt
    return None


def _made_otherwise(target: Path, profile: OutputProfile, job: JobIdentity) -> str:
    """How the result at a target was made differently, where its receipt shows that."""
    try:
        unlike = _differences(read_receipt(receipt_path(target)), profile, job)
    except VerificationError:
        return ""
    return f", made otherwise ({unlike[0]}{' and more' * (len(unlike) > 1)})" if unlike else ""


def _differences(receipt: Receipt, profile: OutputProfile, job: JobIdentity) -> list[str]:
    """How a receipt differs from the one that this job and profile would have."""
    return [
        *differences(dict(receipt.job), job.as_json()),
        *differences(receipt.format, profile.format, "format"),
        *differences(dict(receipt.creation), dict(creation_options(profile)), "creation"),
    ]


def sidecars(target: Path, profile: OutputProfile) -> list[Path]:
    """The files that readers take for parts of the result. A writer creates or removes them."""
    world = FORMATS[profile.format].world
    names = [target.with_name(target.name + suffix) for suffix in _GDAL_SIDECARS]
    return names if world is None else [*names, target.with_suffix(world)]


def refuse_sidecar(path: Path) -> NoReturn:
    """Raise TargetExists for a file that would be read as part of the result."""
    raise TargetExists(
        f"{path} exists already and would be read as part of the result: remove it, or give "
        "overwrite=True."
    )
