from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from repmamba.data.images import write_png
from repmamba.data.pairs import Pair, find_pairs, pair_from_hr, read_pairs
from repmamba.errors import ShapeMismatch, SourceError, UsageError
from repmamba.pixels.resize import imresize, to_uint8

HR = np.random.default_rng(2).integers(0, 256, (12, 18, 3), np.uint8)


def write_pair(hr_path, lr_path, scale=2):
    pair = pair_from_hr("x", HR, scale)
    write_png(hr_path, pair.hr)
    if lr_path:
        write_png(lr_path, pair.lr)


LAYOUTS = {
    "flat": ("GT/000.png", "LR/000.png", "000", ""),
    "class folders inside": ("GT/Airport/a_1.png", "LR/Airport/a_1.png", "Airport/a_1", "Airport"),
    "class folders around": ("Airport/GT/a_1.png", "Airport/LR/a_1.png", "Airport/a_1", "Airport"),
    "HR for GT": ("HR/000.png", "LR/000.png", "000", ""),
    "in lower case": ("hr/Airport/a_1.png", "lr/Airport/a_1.png", "Airport/a_1", "Airport"),
    "HR by class": ("Airport/HR/a_1.png", "Airport/LR/a_1.png", "Airport/a_1", "Airport"),
    "DIV2K's names": ("GT/0801.png", "LR/0801x2.png", "0801", ""),
    "names with an underscore": ("GT/a_1.png", "LR/a_1_x2.png", "a_1", ""),
    "scaled names by class": ("GT/Airport/a.png", "LR/Airport/aX2.png", "Airport/a", "Airport"),
    "folders by scale": ("HR/0801.png", "LR/X2/0801x2.png", "0801", ""),
    "folders by scale, plain names": ("HR/0801.png", "LR/x2/0801.png", "0801", ""),
    "DIV2K's folders": (
        "DIV2K_valid_HR/0801.png",
        "DIV2K_valid_LR_bicubic/X2/0801x2.png",
        "0801",
        "",
    ),
    "a name that ends so by itself": ("GT/box2.png", "LR/box2.png", "box2", ""),
    "large images alone": ("000.png", None, "000", ""),
    "large images by class": ("Airport/a_1.png", None, "Airport/a_1", "Airport"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_pair(tmp_path, layout):
    hr, lr, name, group = layout
    write_pair(tmp_path / hr, lr and tmp_path / lr)
    (found,) = find_pairs(tmp_path)
    pair = found.read(2)
    assert (found.name, found.group, pair.name, pair.scale) == (name, group, name, 2)
    assert np.array_equal(pair.hr, HR)
    assert np.array_equal(pair.lr, pair_from_hr("x", HR, 2).lr)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.9])
@pytest.mark.parametrize("scale", [2, 3])
def test_a_pair_with_a_reduction_equals_the_pair_of_the_downsampled_image(tmp_path, share, scale):
    write_pair(tmp_path / "GT" / "0.png", tmp_path / "LR" / "0.png", scale=1)
    (found,) = find_pairs(tmp_path)
    reduced = replace(found, lr=None, reduction=share)
    pair, expected = (
        reduced.read(scale),
        pair_from_hr("0", to_uint8(imresize(HR / 255.0, share)), scale),
    )
    assert np.array_equal(pair.hr, expected.hr)
    assert np.array_equal(pair.lr, expected.lr)
    blank = reduced.blank(scale)
    assert (blank.hr.shape, blank.lr.shape) == (pair.hr.shape, pair.lr.shape)


def test_the_published_pair_is_found(reference):
    (found,) = find_pairs(reference / "data" / "test" / "aid_tiny")
    pair = found.read(4)
    assert (pair.name, pair.scale, pair.hr.shape) == ("airport_285", 4, (512, 512, 3))
    assert np.array_equal(pair.lr, pair_from_hr("x", pair.hr, 4).lr)


def test_pairs_are_made_by_name_not_by_position(tmp_path):
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1.png")
    write_pair(tmp_path / "GT/2.png", tmp_path / "LR/3.png")
    with pytest.raises(UsageError, match="no partner in LR for 2"):
        find_pairs(tmp_path)
    (tmp_path / "GT/2.png").unlink()
    with pytest.raises(UsageError, match="no partner in GT for 3"):
        find_pairs(tmp_path)


def test_the_given_scale_is_used_if_there_are_several(tmp_path):
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1x2.png")
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1x3.png", scale=3)
    with pytest.raises(
        UsageError, match=r"LR of several scales \(1x2.png and 1x3.png\): give the scale"
    ):
        find_pairs(tmp_path)
    for scale in (2, 3):
        (found,) = find_pairs(tmp_path, scale)
        assert found.read(scale).scale == scale


def test_a_name_with_the_wrong_scale_is_refused(tmp_path):
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1x3.png", scale=2)
    with pytest.raises(
        ShapeMismatch, match=r"1x3.png is x3 by its name, but is not 3 times smaller than 1.png"
    ):
        find_pairs(tmp_path)


def test_a_folder_with_only_lr_is_reported(tmp_path):
    write_pair(tmp_path / "High/1.png", tmp_path / "LR/1.png")
    with pytest.raises(UsageError, match=r"has LR but none of GT or HR, which .*; found High, LR"):
        find_pairs(tmp_path)


def test_two_files_with_the_same_name_are_refused(tmp_path):
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1.png")
    (tmp_path / "GT/1.jpg").write_bytes((tmp_path / "GT/1.png").read_bytes())
    with pytest.raises(UsageError, match=r"1\.jpg and 1\.png"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (["train/GT/1.png", "test/GT/1.png"], "give .*aid/test or .*aid/train[.]"),
        (["train/GT/1.png"], "give .*aid/train[.]"),
        (["trainval/GT/a/1.png", "test/GT/a/1.png"], "give .*aid/test or .*aid/trainval[.]"),
        (["train/1.png", "val/1.png", "test/a/1.png"], "aid holds test, train, val: splits"),
    ],
    ids=str,
)
def test_splits_of_a_benchmark_are_not_read_as_classes(tmp_path, layout, named):
    for hr in layout:
        path = tmp_path / "aid" / hr
        write_pair(path, tmp_path / "aid" / hr.replace("GT", "LR") if "GT" in hr else None)
    with pytest.raises(UsageError, match=named):
        find_pairs(tmp_path / "aid")


def test_pairs_further_down_are_not_read_as_large_images(tmp_path):
    write_pair(tmp_path / "aid/test/GT/1.png", tmp_path / "aid/test/LR/1.png")
    with pytest.raises(UsageError, match="holds GT further down, in aid/test; give"):
        find_pairs(tmp_path)


@pytest.mark.parametrize("inside", ["", "GT/"])
def test_one_class_among_others_may_have_the_name_of_a_split(tmp_path, inside):
    for group in ("plane", "ship", "train"):
        write_pair(
            tmp_path / f"{group}/{inside}1.png", tmp_path / f"{group}/LR/1.png" if inside else None
        )
    assert [pair.group for pair in find_pairs(tmp_path)] == ["plane", "ship", "train"]


def test_a_pair_of_another_scale_is_refused(tmp_path):
    write_pair(tmp_path / "GT/1.png", tmp_path / "LR/1.png", scale=3)
    with pytest.raises(ShapeMismatch, match="3 times as large as LR, not 2"):
        find_pairs(tmp_path)[0].read(2)


@pytest.mark.parametrize(
    ("lr", "hr"),
    [
        ((5, 5, 3), (10, 11, 3)),
        ((5, 5, 3), (10, 15, 3)),
        ((5, 5, 3), (4, 4, 3)),
        ((5, 5, 1), (10, 10, 3)),
        ((5, 5), (5, 5)),
    ],
)
def test_sizes_that_are_not_a_multiple_are_refused(lr, hr):
    with pytest.raises(ShapeMismatch, match=r"rows, columns|whole multiple"):
        Pair("x", np.zeros(lr, np.uint8), np.zeros(hr, np.uint8))


def test_a_pair_of_two_types_is_refused():
    with pytest.raises(ShapeMismatch, match="uint16 and GT uint8"):
        Pair("x", np.zeros((2, 2, 1), np.uint16), np.zeros((4, 4, 1), np.uint8))


def test_a_folder_without_images_is_an_error_that_states_what_was_expected_and_found(tmp_path):
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(SourceError, match=r"expected GT and LR.*found readme.txt"):
        find_pairs(tmp_path)
    with pytest.raises(SourceError, match="not a folder"):
        find_pairs(tmp_path / "none")


def test_a_large_image_is_cropped_at_the_lower_right():
    pair = pair_from_hr("x", HR[:11, :17], 4)
    assert pair.hr.shape == (8, 16, 3)
    assert np.array_equal(pair.hr, HR[:8, :16])
    with pytest.raises(ShapeMismatch, match="too few"):
        pair_from_hr("x", HR[:3], 4)


def test_other_types_are_downsampled_in_their_own_range():
    deep = pair_from_hr("x", HR.astype(np.uint16) * 257, 2)
    assert deep.lr.dtype == np.uint16
    assert np.abs(deep.lr / 257.0 - pair_from_hr("x", HR, 2).lr).max() <= 0.502
    assert pair_from_hr("x", np.full((4, 4, 2), -2.5, np.float32), 2).lr.dtype == np.float32


@pytest.mark.parametrize("count", [0, 1, 40])
def test_pairs_are_prefetched_in_order_and_counted(tmp_path, count):
    for number in range(count):
        write_png(tmp_path / f"{number:02}.png", np.full((8, 8, 3), number, np.uint8))
    files = find_pairs(tmp_path) if count else []
    seen: list[tuple[int, int]] = []
    pairs = list(read_pairs(files, 2, progress=lambda done, total: seen.append((done, total))))
    assert [int(pair.lr[0, 0, 0]) for pair in pairs] == list(range(count))
    assert seen == [(done, count) for done in range(1, count + 1)]


def test_a_slow_consumer_does_not_hold_a_whole_benchmark_in_memory(tmp_path, monkeypatch):
    for number in range(40):
        write_png(tmp_path / f"{number:02}.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3})
    asked: list[object] = []
    submit = ThreadPoolExecutor.submit
    monkeypatch.setattr(
        ThreadPoolExecutor, "submit", lambda pool, *work: asked.append(work) or submit(pool, *work)
    )
    reading = read_pairs(find_pairs(tmp_path), 2)
    next(reading)
    assert 1 < len(asked) <= 4
    reading.close()
