import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from repmamba.errors import TargetError, VerificationError
from repmamba.scene.result.job import JobIdentity, canonical_json, differences
from repmamba.scene.result.lock import TargetLock
from repmamba.scene.result.readback import squares
from repmamba.scene.result.tile_file import (
    Layout,
    decode_tile,
    encode_tile,
    read_header,
    tile_pixels,
)
from repmamba.scene.source.origin import identify_file

from .killing import wait_until, writer_of
from .made_scene import JOB, PLACE, MadeScene

SCENE = MadeScene(grid=replace(PLACE, width=150, height=130), tile=64, mask=True)


def test_canonical_json_does_not_depend_on_the_order_of_keys_and_spells_nan():
    assert canonical_json({"b": (1, 2.5), "a": float("nan")}) == '{"a":"nan","b":[1,2.5]}'


def test_the_id_of_a_job_changes_with_each_of_its_parts_and_with_nothing_else():
    same = JobIdentity(
        dict(reversed(JOB.source.items())), JOB.weights, dict(JOB.settings), JOB.version
    )
    assert same.id == JOB.id
    others = [
        replace(JOB, weights="x"),
        replace(JOB, source={}),
        replace(JOB, settings={"scale": 4}),
        replace(JOB, version="9"),
    ]
    assert len({job.id for job in others} | {JOB.id}) == 5


def test_differences_are_named_down_to_the_leaf():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}}) == [
        "a.c: 2 -> 5",
        "d: 3 -> None",
    ]


@pytest.mark.parametrize("size", [0, 10, 70 << 20])
def test_a_file_is_identified_by_its_content(tmp_path, size):
    path = tmp_path / "input.tif"
    with path.open("wb") as file:
        file.truncate(size)
    before = identify_file(path)
    with path.open("r+b") as file:
        file.seek(max(0, size - 5))
        file.write(b"x")
    os.utime(path, ns=(0, 0))
    assert identify_file(path) != before


@settings(max_examples=40)
@given(data=st.data())
def test_a_tile_comes_back_as_it_was_recorded(tmp_path_factory, data):
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]))
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)))
    pixels = data.draw(arrays.arrays(dtype, shape))
    valid = data.draw(st.none() | arrays.arrays(bool, shape[1:]))
    layout = Layout("ab", squares(shape[2], shape[1], 64), shape[0], dtype, mask=True)
    path = tmp_path_factory.mktemp("tiles") / "a.tile"
    path.write_bytes(b"".join(encode_tile(layout, 0, tile_pixels(layout, 0, pixels, valid))))
    back = decode_tile(path, layout, 0)
    assert back.data.tobytes() == pixels.tobytes()
    np.testing.assert_array_equal(back.mask, np.ones(shape[1:], bool) if valid is None else valid)


def recorded_tile(folder: Path) -> tuple[Path, Layout]:
    layout = Layout("ab", SCENE.windows, 3, "uint8", mask=True)
    rows, cols = SCENE.windows[4].slices
    pixels = tile_pixels(layout, 4, SCENE.data()[:, rows, cols], None)
    path = folder / "4.tile"
    path.write_bytes(b"".join(encode_tile(layout, 4, pixels)))
    return path, layout


def test_every_flipped_bit_of_a_tile_is_seen(tmp_path):
    path, layout = recorded_tile(tmp_path)
    content = path.read_bytes()
    for place in [*range(0, 400, 3), *range(400, len(content), 311), len(content) - 1]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(VerificationError):
            decode_tile(path, layout, 4)


@pytest.mark.parametrize("kept", [0, 7, 16, 100, 5000, -1])
def test_a_torn_tile_is_seen_by_its_header_and_size(tmp_path, kept):
    path, layout = recorded_tile(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VerificationError):
        read_header(path, layout, 4)


def test_a_tile_of_another_job_or_place_is_not_taken_up(tmp_path):
    path, layout = recorded_tile(tmp_path)
    for other, index in (
        (replace(layout, job="cd"), 4),
        (layout, 3),
        (replace(layout, count=1), 4),
    ):
        with pytest.raises(VerificationError, match="another job"):
            read_header(path, other, index)


def test_a_tile_of_missing_pixels_takes_next_to_no_room(tmp_path):
    layout = Layout("ab", squares(512, 512, 512), 3, "float32", mask=True)
    nothing = tile_pixels(
        layout, 0, np.zeros((3, 512, 512), np.float32), np.zeros((512, 512), bool)
    )
    assert sum(map(len, encode_tile(layout, 0, nothing))) < 20_000


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [20, -9], ids=["header", "pixels"])
def test_a_tile_that_was_damaged_between_two_runs_is_computed_anew(tmp_path, place):
    target = tmp_path / "scene.tif"
    with SCENE.writer(target) as writer:
        put_all(writer, SCENE)
    damage(next(tmp_path.glob(".scene.tif.*/000004.tile")), place)
    if place < 0:  # seen when the result is assembled, and dropped
        with pytest.raises(VerificationError, match="run the same command again"):
            SCENE.write(target)
        assert not target.exists()
    SCENE.write(target, before=(again := []).append)
    assert again == [4]


def put_all(writer: Any, scene: MadeScene) -> None:
    for index in writer.remaining():
        rows, cols = scene.windows[index].slices
        writer.put(index, scene.data()[:, rows, cols], scene.valid()[rows, cols])


def test_two_processes_do_not_work_on_one_target_and_a_dead_one_holds_nothing(tmp_path):
    target = tmp_path / "scene.tif"
    program = Path(__file__).with_name("made_scene.py")
    process = subprocess.Popen([sys.executable, program, target, "GTiff", "pause=30"])
    lock = TargetLock(target)
    try:
        wait_until(lambda: writer_of(target) != "", process)
        with pytest.raises(TargetError, match=f"process {process.pid} on .* is writing"):
            lock.acquire()
    finally:
        process.kill()
        process.wait()
    assert lock.path.exists()
    lock.acquire()
    lock.release()
    assert not lock.path.exists()


def test_a_tile_that_an_interruption_kept_from_being_counted_is_kept(tmp_path, monkeypatch):
    def interrupted(folder):
        if list(folder.glob("*.tile")):  # after the first tile has its name, before it is noted
            raise KeyboardInterrupt

    monkeypatch.setattr("repmamba.scene.result.journal.durable.sync_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SCENE.write(tmp_path / "scene.tif")
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".scene.tif.*/*.tile"))) == 1
    with SCENE.writer(tmp_path / "scene.tif") as writer:
        assert 0 not in writer.remaining()
