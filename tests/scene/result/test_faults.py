"""Never half a result: what kills, full disks and failing calls leave behind, and that the same
call continues.

Each test ends with the same three claims: the target's name was never there before the result was
whole, the same call then finishes, and what it finishes is byte for byte the uninterrupted result.
"""

import errno
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from repmamba.errors import NoSpace, RepmambaError, TargetError, TargetExists, VerificationError
from repmamba.scene.result import assembly
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.readback import squares, verify_result
from repmamba.scene.result.receipt import read_receipt, receipt_path

from .killing import DEADLINE, LONGEST_DELAY, killed_at, tiles_of
from .made_scene import PLACE, SCENES, MadeScene

PROGRAM = Path(__file__).with_name("made_scene.py")


def is_whole(target: Path) -> bool:
    """Whether the result is there; if so it must be right, receipt or not (a kill may come between
    the two).
    """
    if not target.exists():
        return False
    receipts = [receipt_path(target), *target.parent.glob(f".{target.name}.*/receipt.json")]
    receipt = read_receipt(next(path for path in receipts if path.exists()))
    verify_result(target, receipt)
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[MadeScene, str], dict[str, bytes]]:
    """All files of a run that nothing disturbed, by name; each scene is written once."""
    known: dict[str, dict[str, bytes]] = {}

    def files(scene: MadeScene, name: str) -> dict[str, bytes]:
        if name not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            scene.write(folder / name)
            known[name] = contents(folder)
        return known[name]

    return files


# ---- kills


def kill_until_done(folder: Path, name: str, kills: int, seed: int) -> None:
    """Kill runs at moments spread over a whole one, begin anew after each that got to its end; let
    the last finish.
    """
    target = folder / SCENES[name][0]
    command = [sys.executable, PROGRAM, target, name, "pause=0.03"]
    rng, killed = random.Random(seed), 0
    for _ in range(10 * kills):
        if is_whole(target) and not any(folder.glob(".*")):
            for path in folder.iterdir():
                path.unlink()
        tiles = min(tiles_of(target) + rng.randint(0, 6), len(SCENES[name][1].windows))
        killed += killed_at(command, target, tiles, rng.uniform(0, LONGEST_DELAY))
        if killed == kills:
            break
    assert killed == kills
    if not is_whole(target) or any(folder.glob(".*")):
        subprocess.run(command, check=True, timeout=DEADLINE)


@pytest.mark.parametrize("name", ["GTiff", "COG", "PNG"])
@pytest.mark.parametrize("kills", [3, pytest.param(67, marks=pytest.mark.long)])
def test_a_killed_process_leaves_nothing_half_and_the_next_one_continues(
    tmp_path, uninterrupted, name, kills
):
    kill_until_done(tmp_path, name, kills, seed=20240 + kills)
    assert contents(tmp_path) == uninterrupted(SCENES[name][1], SCENES[name][0])


def test_a_run_killed_when_only_its_lock_was_left_to_remove_is_ended_by_the_next_one(
    tmp_path, uninterrupted
):
    target, scene = tmp_path / SCENES["GTiff"][0], SCENES["GTiff"][1]
    receipt = scene.write(target)
    TargetLock(target).path.write_text("process 1 on nowhere\n")
    assert scene.write(target) == receipt
    assert contents(tmp_path) == uninterrupted(scene, target.name)
    TargetLock(target).path.write_text("process 1 on nowhere\n")
    target.write_bytes(b"of somebody else")
    with pytest.raises(TargetExists):
        scene.write(target)


# ---- calls that fail

TINY = {
    "GTiff": (
        "tiny.tif",
        MadeScene(grid=PLACE.__class__(96, 80, PLACE.transform, PLACE.crs), tile=64, mask=True),
    ),
    "PNG": (
        "tiny.png",
        MadeScene("PNG", grid=PLACE.__class__(96, 80, PLACE.transform, PLACE.crs), tile=64),
    ),
}


class FailingCalls:
    """Makes the n-th call of some functions of `os` fail, and counts them."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], number: int, code: int
    ) -> None:
        self.count = 0
        for name in names:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name), number, code))

    def _failing(
        self, real: Callable[..., object], number: int, code: int
    ) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            self.count += 1
            if self.count == number:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **keywords)

        return call


def failure_of(scene: MadeScene, target: Path) -> RepmambaError | None:
    try:
        scene.write(target)
    except RepmambaError as error:
        return error
    return None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "calls", [("write",), ("fsync",), ("replace", "link", "rename", "unlink")], ids=lambda c: c[0]
)
@pytest.mark.parametrize("name", TINY)
def test_whichever_call_fails_the_result_is_absent_or_whole_and_the_next_run_finishes(
    tmp_path, uninterrupted, name, calls, code
):
    file, scene = TINY[name]
    expected = NoSpace if code == errno.ENOSPC else TargetError
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            failing = FailingCalls(patch, calls, number, code)
            error = failure_of(scene, folder / file)
        if failing.count < number:
            break
        is_whole(folder / file)
        if error is not None:
            assert isinstance(error, expected)
            assert "\n" not in str(error)
            scene.write(folder / file)
            assert [path.name for path in folder.glob(".*")] == []
        # Without an error, it was the removal of a temporary file that failed: that may stay,
        # hidden.
        assert visible(folder) == uninterrupted(scene, file), f"call {number}"
    assert number > 4


@pytest.mark.parametrize("order", [1, -1])
def test_tiles_that_were_done_when_a_disk_was_full_are_not_computed_again(tmp_path, order):
    scene, computed = SCENES["GTiff"][1], []

    def full(index: int) -> None:
        computed.append(index)
        if len(computed) == 6:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        scene.write(tmp_path / "scene.tif", before=full, order=order)
    again: list[int] = []
    scene.write(tmp_path / "scene.tif", before=again.append)
    assert sorted(again + computed[:5]) == list(range(len(scene.windows)))


# ---- full disks


@pytest.mark.parametrize("name", ["GTiff", "COG", "PNG"])
@pytest.mark.parametrize("limit", [100, 3_000, 150_000, 400_000, 700_000])
def test_a_limit_on_file_sizes_is_one_line_and_no_result(tmp_path, uninterrupted, name, limit):
    file, scene = SCENES[name]
    run = subprocess.run(
        [sys.executable, PROGRAM, tmp_path / file, name, f"limit={limit}"],
        capture_output=True,
        text=True,
    )
    reference = uninterrupted(scene, file)
    if limit < len(reference[file]):
        # libtiff prints its own
        errors = [line for line in run.stderr.splitlines() if not line.startswith("_tiff")]
        assert run.returncode == 3
        assert len(errors) == 1, run.stderr
        assert errors[0].startswith(("NoSpace", "TargetError"))
        assert not (tmp_path / file).exists()
    scene.write(tmp_path / file)
    assert contents(tmp_path) == reference


@pytest.mark.parametrize("name", ["GTiff", "COG", "PNG", "JPEG"])
def test_a_full_disk_is_no_space_at_every_size_and_no_result(
    small_disk, monkeypatch, uninterrupted, name
):
    file, scene = SCENES[name]
    reference = uninterrupted(scene, file)
    # so that it really fills up
    monkeypatch.setattr("repmamba.scene.result.writer.check_space", lambda *arguments: None)
    outcomes = set()
    for size in range(200, 6000, 700):
        folder = small_disk(size)
        try:
            scene.write(folder / file)
            outcomes.add("whole")
            assert contents(folder) == reference
        except NoSpace:
            outcomes.add("full")
            assert not (folder / file).exists()
    assert outcomes == {"whole", "full"}


def test_a_disk_that_is_too_small_is_refused_before_the_first_tile(small_disk):
    folder = small_disk(1500)
    with pytest.raises(NoSpace, match=r"free, and tiles and result of scene.tif may need"):
        SCENES["GTiff"][1].write(
            folder / "scene.tif", before=lambda index: pytest.fail("a tile was computed")
        )
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["GTiff", "COG"])
def test_without_the_second_reader_a_loss_would_pass_unseen(
    tmp_path, monkeypatch, limit_file_size, name
):
    """The counter-proof: tiles written across blocks, nothing read back: for some limit GDAL does
    not say a word.
    """
    file, scene = SCENES[name][0], replace(SCENES[name][1], tile=200, mask=name == "COG")
    monkeypatch.setattr(assembly, "_writing_order", lambda tiles, *others: tiles)
    monkeypatch.setattr(assembly, "write_out_blocks", lambda: None)
    monkeypatch.setattr(
        assembly, "read_back", lambda path, profile, expected, mosaic, progress: tuple(expected)
    )
    monkeypatch.setattr(assembly, "check_intermediates", lambda files, levels, profile: None)
    monkeypatch.setattr(assembly, "check_description", lambda path, profile: None)
    for size in range(300_000, 1_200_000, 30_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        try:
            with limit_file_size(size):
                receipt = scene.write(folder / file)
        except RepmambaError:
            continue
        try:
            verify_result(folder / file, receipt)
        except VerificationError:
            return
    pytest.fail("GDAL reported every loss: the second reader would not be needed")


@pytest.mark.parametrize("compression", ["JPEG", "WEBP"])
@pytest.mark.parametrize("lost", ["mask", "overview"])
def test_a_lossy_result_that_lost_its_mask_or_an_overview_is_noticed(
    tmp_path, monkeypatch, lost, compression
):
    copy = assembly.gdal_copy

    def losing_copy(base: Path, *arguments: object, **options: object) -> None:
        with rasterio.open(base if lost == "mask" else f"{base}.ovr", "r+") as file:
            if lost == "mask":
                file.write_mask(np.full((file.height, file.width), 255, np.uint8))
            else:
                file.write(np.zeros((file.count, file.height, file.width), np.uint8))
        copy(base, *arguments, **options)

    scene = replace(
        SCENES["COG"][1], creation=(*SCENES["COG"][1].creation, ("COMPRESS", compression))
    )
    receipt = scene.write(tmp_path / "whole.cog.tif")
    verify_result(tmp_path / "whole.cog.tif", receipt)
    monkeypatch.setattr(assembly, "gdal_copy", losing_copy)
    words = {
        "mask": "of level 0 .* did not reach the disk",
        "overview": "of level 1 .* has other means",
    }
    with pytest.raises(VerificationError, match=words[lost]):
        scene.write(tmp_path / "scene.cog.tif")
    assert not (tmp_path / "scene.cog.tif").exists()


def test_a_block_that_never_reached_the_disk_is_seen_though_the_file_opens(tmp_path):
    """A sparse file is what a kill or a full disk leaves: it opens, and reads as zeros."""
    scene = MadeScene(mask=False)
    receipt = scene.write(tmp_path / "scene.tif")
    profile = {
        "driver": "GTiff",
        "width": 700,
        "height": 600,
        "count": 3,
        "dtype": "uint8",
        "sparse_ok": True,
    }
    with rasterio.open(tmp_path / "scene.tif", "w", tiled=True, **profile) as file:
        first = squares(700, 600, 256)[0]
        file.write(
            scene.data()[(slice(None), *first.slices)],
            window=rasterio.windows.Window(0, 0, 256, 256),
        )
    with rasterio.open(tmp_path / "scene.tif") as file:
        assert not np.any(file.read()[:, 300:])
    with pytest.raises(VerificationError, match="never written"):
        verify_result(tmp_path / "scene.tif", receipt)
