"""The field's benchmarks: folder layout, the part of an image that counts, and the bicubic for LR.

A benchmark finds its originals in the folders that its authors' archive, or a known repackaging,
unpacks to. An unknown layout is an error that states the expected one. Nothing is decoded here;
pair_files.py crops and writes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from repmamba.data.images import find_images
from repmamba.data.pairs import HR_FOLDER
from repmamba.errors import SourceError, UsageError

AID_CLASSES = tuple(
    """
    Airport BareLand BaseballField Beach Bridge Center Church Commercial DenseResidential Desert
    Farmland Forest Industrial Meadow MediumResidential Mountain Park Parking Playground Pond Port
    RailwayStation Resort River School SparseResidential Square Stadium StorageTanks Viaduct
    """.split()
)
NWPU_CLASSES = tuple(
    """
    airplane airport baseball_diamond basketball_court beach bridge chaparral church
    circular_farmland cloud commercial_area dense_residential desert forest freeway golf_course
    ground_track_field harbor industrial_area intersection island lake meadow medium_residential
    mobile_home_park mountain overpass palace parking_lot railway railway_station
    rectangular_farmland river roundabout runway sea_ice ship snowberg sparse_residential stadium
    storage_tank tennis_court terrace thermal_power_station wetland
    """.split()
)

DOTA_PARTS = ("train", "val", "test")
DIOR_PARTS = {
    "trainval": ("JPEGImages-trainval", "Images/trainval"),
    "test": ("JPEGImages-test", "Images/test"),
}

Bicubic = Literal["matlab", "pillow"]


@dataclass(frozen=True, slots=True)
class Original:
    """An image of the archive."""

    name: str  # inside the prepared folder, class folder included, no suffix: "Airport/airport_1"
    path: Path

    @property
    def group(self) -> str:
        """The class folder; "" in a flat set."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The layout and the rules of one benchmark."""

    name: str  # on the command line
    title: str
    # (source, part or None for all) -> its originals
    find: Callable[[Path, str | None], list[Original]]
    terms: str
    bicubic: Bicubic  # what made LR
    parts: tuple[str, ...] = ()  # the splits that it comes with
    size: tuple[int, int] | None = None  # rows and columns of every original, if all are the same
    cut: int | None = None  # side of the square crop, in pixels; None keeps the whole image
    corner: tuple[int, int] | None = None  # first row and column of the crop; None is the centre
    drawn: tuple[int, int] | None = None  # training and test images drawn per class

    @property
    def rule(self) -> str:
        """How GT, LR and Bicubic are made, in one line for the manifest."""
        place = "at the centre"
        if self.corner is not None:
            place = f"from row {self.corner[0]} and column {self.corner[1]}"
        gt = "whole images" if self.cut is None else f"{self.cut}x{self.cut} {place}"
        if self.bicubic == "matlab":
            return (
                f"GT {gt}; LR by MATLAB's imresize, rounded to 8 bit; Bicubic enlarged from the LR "
                "before rounding"
            )
        return f"GT {gt}; LR by Pillow's bicubic on 8 bit; Bicubic by the same from the 8-bit LR"


def _find_classes(
    title: str, classes: tuple[str, ...], source: Path, part: str | None
) -> list[Original]:
    """The images of the class folders in source, or in the archive's folder inside it."""
    root = source / title if (source / title).is_dir() else source
    missing = [name for name in classes if not (root / name).is_dir()]
    if missing:
        raise _unknown_layout(
            source,
            f"{title}/ with {len(classes)} class folders ({classes[0]}/, {classes[1]}/, ...)",
            f"without {', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}",
        )
    return [
        Original(f"{name}/{path.stem}", path)
        for name in classes
        for path in find_images(root / name, deep=False)
    ]


def _find_dota(source: Path, part: str | None) -> list[Original]:
    wanted = DOTA_PARTS if part is None else (part,)
    folders = [source / name / "images" for name in wanted if (source / name / "images").is_dir()]
    if not folders and part is None:  # a single split, or its images
        folders = [source / "images"] if (source / "images").is_dir() else [source]
    originals = _flat(folders)
    if not originals:
        raise _unknown_layout(
            source, "train/images/P0000.png, val/images/ and test/images/, or images/ of one split"
        )
    return originals


def _find_dior(source: Path, part: str | None) -> list[Original]:
    wanted = tuple(DIOR_PARTS) if part is None else (part,)
    candidates = [source / folder for name in wanted for folder in DIOR_PARTS[name]]
    originals = _flat([folder for folder in candidates if folder.is_dir()])
    if not originals:
        expected = " and ".join(DIOR_PARTS[name][0] for name in wanted)
        other = " and ".join(DIOR_PARTS[name][1] for name in wanted)
        raise _unknown_layout(source, f"{expected} with 00001.jpg and so on, or {other}")
    return originals


def _find_folder(source: Path, part: str | None) -> list[Original]:
    originals = [
        Original(path.relative_to(source).with_suffix("").as_posix(), path)
        for path in find_images(source)
    ]
    if not originals:
        raise _unknown_layout(source, "images, flat or in folders")
    inside = [f"/{one.name}".partition(f"/{HR_FOLDER}/") for one in originals]
    pairs = {source / f"{before}/{HR_FOLDER}".lstrip("/") for before, found, _ in inside if found}
    if pairs:  # otherwise LR and Bicubic would become originals too
        raise UsageError(
            f"{source} already holds pairs: evaluate and train take them as they are. To make "
            f"others of the same images, give {min(pairs)}."
        )
    return originals


def _flat(folders: list[Path]) -> list[Original]:
    return [
        Original(path.stem, path) for folder in folders for path in find_images(folder, deep=False)
    ]


def _unknown_layout(source: Path, expected: str, remark: str = "") -> SourceError:
    if not source.is_dir():
        return SourceError(f"{source} is not a folder; expected there: {expected}.")
    names = sorted(child.name + "/" * child.is_dir() for child in source.iterdir())
    found = ", ".join(names[:6]) + f" and {len(names) - 6} more" * (len(names) > 6) or "nothing"
    rest = f", {remark}" * bool(remark)
    return SourceError(f"{source} is not laid out as expected: {expected}; found {found}{rest}.")


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "aid",
            "AID",
            partial(_find_classes, "AID", AID_CLASSES),
            "Google Earth imagery, research use only",
            "matlab",
            size=(600, 600),
            cut=512,
            corner=(43, 43),
            drawn=(100, 30),
        ),
        Benchmark(
            "dota",
            "DOTA",
            _find_dota,
            "academic purposes only; Google Earth's terms for its imagery",
            "pillow",
            parts=DOTA_PARTS,
            cut=512,
        ),
        Benchmark(
            "dior",
            "DIOR",
            _find_dior,
            "Google Earth imagery, research use only",
            "pillow",
            parts=tuple(DIOR_PARTS),
            cut=512,
        ),
        Benchmark(
            "nwpu",
            "NWPU-RESISC45",
            partial(_find_classes, "NWPU-RESISC45", NWPU_CLASSES),
            "Google Earth imagery, research use only",
            "matlab",
        ),
        Benchmark("folder", "a folder of images", _find_folder, "those of the images", "matlab"),
    )
}


def find_originals(benchmark: Benchmark, source: Path, part: str | None = None) -> list[Original]:
    """Find the originals of a benchmark.

    benchmark: One of BENCHMARKS.  source: The unpacked archive.
    part: One of the benchmark's own splits; None takes all that are there.
    Returns the originals, sorted by name. Raises SourceError: the layout is not known; UsageError:
    the benchmark does not have this split, or two files would get the same name.
    """
    if part is not None and part not in benchmark.parts:
        has = f"has {', '.join(benchmark.parts)}" if benchmark.parts else "comes without splits"
        raise UsageError(f"{benchmark.title} has no split {part}; it {has}.")
    originals = sorted(benchmark.find(source, part), key=lambda original: original.name)
    for one, other in pairwise(originals):
        if one.name == other.name:
            raise UsageError(
                f"{one.path} and {other.path} would both be {one.name}; keep one of them."
            )
    return originals
