"""Several inputs: which files are meant, where each result goes, and one after the other."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repmamba.cli.terminal import say_error
from repmamba.durable import check_local
from repmamba.errors import RepmambaError, SourceError, TargetError, UsageError

RASTER_ENDINGS = (  # suffixes of the files to find in a folder
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".jpx", ".webp", ".bmp", ".gif"),
    *(".vrt", ".img", ".ntf", ".nitf", ".bil", ".bip", ".bsq", ".asc", ".dem", ".nc", ".kea"),
    ".ecw",
)
# prefix of one of several rasters in a file: NETCDF:"a.nc":heat
_DRIVER = re.compile(r"[A-Za-z]\w+:(?!//)")
# parts of such a name: quoted, or between colons
_PARTS = re.compile(r'"([^"]*)"|([^:"]+)')
_ADDRESS = re.compile(r"(?:/vsi\w+/)*\w+://")


@dataclass(frozen=True, slots=True)
class Input:
    """One raster to upscale."""

    source: str  # GDAL's name
    inside: str = ""  # its folder, relative to the folder that was named as an input


@dataclass(frozen=True, slots=True)
class Job:
    """One raster, and where its result goes."""

    source: str
    target: Path
    makes_folder: bool = False  # whether the target lies in a folder that a run creates


def find_inputs(named: Sequence[str], target: str, *, recursive: bool) -> list[Input]:
    """The rasters named by files and folders, those of a folder sorted by name.

    recursive: search subfolders too. Hidden files, results with a receipt and the folder of the
    results are left out. Raises SourceError for a folder without rasters.
    """
    found: list[Input] = []
    for name in named:
        if _is_folder(name):
            found += _rasters_in(Path(name), Path(target), recursive=recursive)
        else:
            found.append(Input(name))
    return found


def names_folders(named: Sequence[str]) -> bool:
    """Whether a folder is among the inputs, so that the results need one too."""
    return any(map(_is_folder, named))


def check_output(target: str, inputs: int, *, folders: bool) -> None:
    """Refuse an output that cannot be written, before anything is read. Raises UsageError.

    folders: whether a folder is among the inputs.
    """
    check_local(target)
    if _is_for_several(target, inputs, folders) and not os.path.isdir(target):
        what = "a folder is" if folders else f"there are {inputs} inputs"
        what = f"{what} among the inputs" if folders else what
        if os.path.exists(target):
            raise UsageError(f"{target} is a file, and {what}: give a folder.")
        if not _ends_in_slash(target) and _ends_as_a_raster(target):
            raise UsageError(
                f"{target} looks like a file name, and {what}: give a folder, such as results/."
            )


def plan_outputs(
    inputs: Sequence[Input], target: str, scale: int, *, folders: bool, dry_run: bool
) -> list[Job]:
    """Where each result goes: to the target for one input, else into that folder, which is created.

    An existing folder or a name that ends in a slash is a folder for one input too. Files found in
    a folder keep their subfolders. Raises UsageError, TargetError.
    """
    check_output(target, len(inputs), folders=folders)
    if not _is_for_several(target, len(inputs), folders):
        return [Job(inputs[0].source, Path(target))]
    jobs = [
        Job(one.source, Path(target) / one.inside / named_larger(one.source, scale), True)
        for one in inputs
    ]
    targets = [job.target for job in jobs]
    for job in jobs:
        if targets.count(job.target) > 1:
            alike = [other.source for other in jobs if other.target == job.target]
            raise UsageError(
                f"Several inputs would be written to {job.target} ({', '.join(alike[:3])}): "
                "upscale them one by one."
            )
    refuse_inputs(jobs)
    if not dry_run:
        for folder in dict.fromkeys(path.parent for path in targets):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TargetError(
                    f"The folder {folder} cannot be created: {error.strerror}. Choose another one."
                ) from error
    return jobs


def refuse_inputs(jobs: Sequence[Job]) -> None:
    """Raise UsageError if any result would replace any input, even one already upscaled."""
    inputs = {_file_at(job.source): job.source for job in jobs}
    for job in jobs:
        place = _file_at(job.target)
        if place is not None and place in inputs:
            raise UsageError(
                f"{job.target}, the result of {job.source}, would replace the input "
                f"{inputs[place]}: choose another folder."
            )


def one_by_one(function: Callable[[Job], None], jobs: Sequence[Job]) -> list[str]:
    """Run a function for each job. Of several, failures are reported and their names returned."""
    failed = []
    for job in jobs:
        try:
            function(job)
        except RepmambaError as error:
            if len(jobs) == 1:
                raise
            say_error(error, source=job.source)
            failed.append(job.source)
    return failed


def named_larger(source: str, scale: int) -> str:
    """The name of a result in a folder: scene.tif becomes scene_x4.tif.

    The suffix is .tif for formats that are not written. A raster inside a file adds its own name:
    NETCDF:"a.nc":heat becomes a_heat_x4.tif.
    """
    from repmamba.scene.result.formats import FORMATS

    name, *others = _names_in(source)
    endings = sorted(
        (end for entry in FORMATS.values() for end in entry.suffixes), key=len, reverse=True
    )
    ending = next((end for end in endings if name.lower().endswith(end)), None)
    stem = name[: -len(ending)] if ending else Path(name).stem
    kept = name[-len(ending) :] if ending else ".tif"
    return "_".join([stem, *others, f"x{scale}{kept}"])


class ShowOnce(logging.Filter):
    """Hides log lines about an input that are the same as for the previous input."""

    def __init__(self) -> None:
        super().__init__()
        self.source = ""
        self._shown: dict[tuple[str, str], str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show the record; warnings always are."""
        if record.levelno != logging.INFO or not record.name.startswith("repmamba.scene."):
            return True
        kind, text = (record.name, str(record.msg)), record.getMessage().replace(self.source, "", 1)
        repeats = self._shown.get(kind) == text
        self._shown[kind] = text
        return not repeats


def _rasters_in(folder: Path, target: Path, *, recursive: bool) -> list[Input]:
    from repmamba.scene.result.receipt import receipt_path

    found, below = [], []
    results = Path(os.path.realpath(target))
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
        except OSError as error:
            raise SourceError(f"{place} cannot be read: {error.strerror}.") from error
        for entry in entries:
            if entry.is_dir() and not _is_raster_folder(entry):
                below.append(entry)
                seen_elsewhere = entry.is_symlink() or Path(os.path.realpath(entry)) == results
                if recursive and not seen_elsewhere:
                    waiting.append(entry)
            elif entry.name.lower().endswith(RASTER_ENDINGS) or entry.is_dir():
                if receipt_path(entry).exists():  # a result
                    continue
                found.append(Input(str(entry), str(place.relative_to(folder))))
    if not found:
        hint = "; --recursive also searches its subfolders" if below and not recursive else ""
        raise SourceError(
            f"The folder {folder} contains no rasters{hint}. Suffixes: {', '.join(RASTER_ENDINGS)}."
        )
    return sorted(found, key=lambda one: one.source)


def _is_folder(name: str) -> bool:
    return os.path.isdir(name) and not _is_raster_folder(Path(name))


def _is_raster_folder(path: Path) -> bool:
    from repmamba.scene.source.admission import RASTER_FOLDERS

    return path.suffix.upper() in RASTER_FOLDERS and path.is_dir()


def _is_for_several(target: str, inputs: int, folders: bool) -> bool:
    return inputs != 1 or folders or _ends_in_slash(target) or os.path.isdir(target)


def _ends_in_slash(target: str) -> bool:
    return target.endswith(("/", os.sep))


def _ends_as_a_raster(target: str) -> bool:
    from repmamba.scene.result.formats import FORMATS

    written = tuple(suffix for entry in FORMATS.values() for suffix in entry.suffixes)
    return target.lower().endswith((*written, *RASTER_ENDINGS))


def _names_in(source: str) -> list[str]:
    """The name of the file behind a source, then the names of parts inside it."""
    if os.path.exists(source):
        return [Path(source).name]
    if _ADDRESS.match(source) or source.startswith("/vsi"):
        return [Path(re.split(r"[?#]", source)[0]).name]
    if not _DRIVER.match(source):
        return [Path(source).name]
    parts = [quoted or plain for quoted, plain in _PARTS.findall(source.partition(":")[2])]
    path = next((part for part in parts if os.path.exists(part)), None)
    path = path or next(
        (part for part in parts if Path(part).suffix), parts[0] if parts else source
    )
    others = [re.sub(r"[^\w.-]+", "_", part).strip("_") for part in parts if part != path]
    return [Path(path).name, *filter(None, others)]


def _file_at(path: str | Path) -> tuple[int, int] | None:
    """Identifies a file whatever its name is; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def common(values: Sequence[Any]) -> str:
    """One text for several inputs: the value if all have the same, else each with its count."""
    kinds = list(dict.fromkeys(map(str, values)))
    if len(kinds) == 1:
        return kinds[0]
    return "; ".join(
        f"{sum(str(value) == kind for value in values)} of {len(values)}: {kind}" for kind in kinds
    )
