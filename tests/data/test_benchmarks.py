import pytest

from repmamba.data.benchmarks import AID_CLASSES, BENCHMARKS, NWPU_CLASSES, find_originals
from repmamba.errors import SourceError, UsageError


def lay_out(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


AID = [f"AID/{name}/{name.lower()}_{number}.jpg" for name in AID_CLASSES for number in (1, 2)]
NWPU = [f"NWPU-RESISC45/{name}/{name}_001.jpg" for name in NWPU_CLASSES]
DOTA = [
    "train/images/P0000.png",
    "train/labelTxt/P0000.txt",
    "val/images/P0003.png",
    "test/images/P0006.png",
]
DOTA_REPACKED = [
    "train/images/P0000.png",
    "train/annotations/version1.0/P0000.txt",
    "val/images/P0003.png",
]
DIOR = [
    "JPEGImages-trainval/00001.jpg",
    "JPEGImages-test/11726.jpg",
    "Annotations/Horizontal Bounding Boxes/00001.xml",
    "Main/train.txt",
]
DIOR_REPACKED = [
    "Images/trainval/00001.jpg",
    "Images/test/11726.jpg",
    "Annotations/trainval/00001.xml",
]

LAYOUTS = {
    "aid": ("aid", AID, None, 60, "Airport/airport_1"),
    "aid, from inside": ("aid", [name[4:] for name in AID], None, 60, "Airport/airport_1"),
    "nwpu": ("nwpu", NWPU, None, 45, "airplane/airplane_001"),
    "dota": ("dota", DOTA, None, 3, "P0000"),
    "dota, one split": ("dota", DOTA, "val", 1, "P0003"),
    "dota, from inside": ("dota", ["images/P0706.png", "labelTxt/P0706.txt"], None, 1, "P0706"),
    "dota, images alone": ("dota", ["P0706.png", "P0707.png"], None, 2, "P0706"),
    "dota, repacked": ("dota", DOTA_REPACKED, None, 2, "P0000"),
    "dior": ("dior", DIOR, None, 2, "00001"),
    "dior, one split": ("dior", DIOR, "test", 1, "11726"),
    "dior, repacked": ("dior", DIOR_REPACKED, None, 2, "00001"),
    "folder": ("folder", ["b.png", "a/c.jpg"], None, 2, "a/c"),
}


@pytest.mark.parametrize(("name", "files", "part", "count", "first"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_without_moving_a_file(tmp_path, name, files, part, count, first):
    originals = find_originals(BENCHMARKS[name], lay_out(tmp_path, *files), part)
    assert len(originals) == count
    assert originals[0].name == first
    assert all(original.path.is_file() for original in originals)


def test_the_real_names_of_aid_are_read(reference):
    originals = find_originals(BENCHMARKS["aid"], reference / "data" / "archives" / "aid_150px")
    assert len(originals) == 30
    assert {original.group for original in originals} == set(AID_CLASSES)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_unknown_layout_is_an_error_that_states_what_was_expected_and_found(tmp_path, name):
    lay_out(tmp_path, "pictures.zip", "notes/readme.txt")
    with pytest.raises(
        SourceError, match=r"not laid out as expected: .*; found notes/, pictures.zip"
    ):
        find_originals(BENCHMARKS[name], tmp_path)
    with pytest.raises(SourceError, match="is not a folder"):
        find_originals(BENCHMARKS[name], tmp_path / "none")


def test_a_missing_class_is_reported(tmp_path):
    lay_out(tmp_path, *(name for name in AID if "Pond" not in name))
    with pytest.raises(SourceError, match="without Pond"):
        find_originals(BENCHMARKS["aid"], tmp_path)


def test_two_files_with_the_same_name_and_unknown_splits_are_refused(tmp_path):
    lay_out(tmp_path, "a.png", "a.jpg")
    with pytest.raises(UsageError, match="both be a"):
        find_originals(BENCHMARKS["folder"], tmp_path)
    with pytest.raises(UsageError, match="DOTA has no split trainval; it has train, val, test"):
        find_originals(BENCHMARKS["dota"], tmp_path, "trainval")
    with pytest.raises(UsageError, match="comes without splits"):
        find_originals(BENCHMARKS["aid"], tmp_path, "train")
