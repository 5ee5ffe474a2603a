"""What steps train on, and that a run only goes on with its own images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repmamba.data.pairs import find_pairs
from repmamba.data.stock import load_stock
from repmamba.errors import JobChanged
from repmamba.train.batches import check_images, checksums
from repmamba.train.loop import fit
from repmamba.train.saves import newest_save, write_save


def darker(path: Path) -> None:
    with Image.open(path) as picture:
        image = np.array(picture)
    image[3, 4] //= 2
    Image.fromarray(image).save(path)


@pytest.fixture
def copied(images, tmp_path) -> Path:
    return shutil.copytree(images / "train", tmp_path / "images")


def test_a_run_only_goes_on_with_its_own_images(tiny, copied, tmp_path, whole_run, seen):
    recipe, run = tiny(data={"train": [str(copied)]}), tmp_path / "run"
    for _ in range(2):
        fit(recipe, run, log_every=1, minutes=0)
    kept = (copied / "3.png").read_bytes()
    darker(copied / "3.png")
    with pytest.raises(
        JobChanged,
        match=r"1 of 5 have other pixels or sizes, the first is .*images/3\.png\. Restore",
    ):
        fit(recipe, run, log_every=1)
    (copied / "3.png").rename(tmp_path / "3.png")
    with pytest.raises(JobChanged, match="there were 5, now there are 4"):
        fit(recipe, run, log_every=1)
    (copied / "3.png").write_bytes(kept)
    assert fit(recipe, run, log_every=1, cache=tmp_path / "cache").finished
    assert seen(run) == seen(whole_run)


def test_an_older_save_without_images_can_be_resumed(tiny, copied, tmp_path):
    recipe, run = tiny(data={"train": [str(copied)]}), tmp_path / "run"
    fit(recipe, run, minutes=0)
    _, state = newest_save(run / "saves")
    del state["images"]
    write_save(run / "saves", 1, state)
    darker(copied / "3.png")
    assert fit(recipe, run).finished


def test_checksums_are_the_same_wherever_the_pixels_are(copied, tmp_path):
    files = find_pairs(copied)
    expected = checksums(load_stock(files, 2), files)
    assert expected.shape == (5, 3)
    assert len(expected[:, 2].unique()) == 5
    for stock in (
        load_stock(files, 2, cache=tmp_path / "cache"),
        load_stock(files, 2, device=torch.device("cpu")),
    ):
        assert torch.equal(checksums(stock, files), expected)
        # without files for a stock that was passed in
        assert torch.equal(checksums(stock, []), expected)


def test_small_images_count_where_they_have_files_of_their_own(copied, tmp_path):
    pairs = tmp_path / "pairs"
    shutil.copytree(copied, pairs / "GT")
    (pairs / "LR").mkdir()
    for one in find_pairs(copied):
        Image.fromarray(one.read(2).lr).save(pairs / "LR" / f"{one.name}.png")
    files = find_pairs(pairs)
    before = checksums(load_stock(files, 2), files)
    darker(pairs / "LR" / "1.png")
    with pytest.raises(JobChanged, match=r"1 of 5 .*GT/1\.png"):
        check_images(before, checksums(load_stock(files, 2), files), files)
    with pytest.raises(JobChanged, match=r"1 of 5 .* the first is number 2\."):
        check_images(before, checksums(load_stock(files, 2), files), [])
