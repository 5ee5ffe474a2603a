"""Saves: complete or missing, with the one before as fallback."""

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from repmamba.errors import NoSpace, TargetError
from repmamba.train.saves import newest_save, prune_saves, saved_steps, write_save


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((1000,), float(step))}


class Killed(BaseException):
    """Stands for a process that ends at once: no code of ours catches it."""


@pytest.mark.parametrize("moment", range(13))
def test_a_kill_at_any_moment_of_writing_leaves_the_old_save_or_the_new_one(
    tmp_path, monkeypatch, moment
):
    write_save(tmp_path, 1, state(1))
    calls = 0

    def dying(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as dangerous:
        for name in ("fsync", "mkdir", "rename", "replace", "write"):
            dangerous.setattr(os, name, dying(getattr(os, name)))
        try:
            write_save(tmp_path, 2, state(2))
        except Killed:
            assert calls == moment + 1
        else:
            assert moment >= 12, "the parameter no longer reaches the last call"

    found = newest_save(tmp_path)
    assert found is not None
    assert found[1]["step"] in (1, 2)
    assert torch.equal(found[1]["weights"], state(found[1]["step"])["weights"])
    write_save(tmp_path, 2, state(2))  # what the kill left behind does no harm
    assert newest_save(tmp_path)[1]["step"] == 2


def flip_a_bit(save: Path) -> None:
    content = bytearray((save / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (save / "state.pt").write_bytes(content)


def cut_short(save: Path) -> None:
    os.truncate(save / "state.pt", 100)


def lose_the_state(save: Path) -> None:
    (save / "state.pt").unlink()


def lose_the_digests(save: Path) -> None:
    (save / "digests.json").unlink()


def garble_the_digests(save: Path) -> None:
    (save / "digests.json").write_text("[]")


@pytest.mark.parametrize(
    "harm",
    [flip_a_bit, cut_short, lose_the_state, lose_the_digests, garble_the_digests],
    ids=lambda harm: harm.__name__.replace("_", " "),
)
def test_a_corrupt_save_is_renamed_with_a_warning_and_the_one_before_is_used(
    tmp_path, caplog, harm
):
    write_save(tmp_path, 1, state(1))
    harm(write_save(tmp_path, 2, state(2)))
    with caplog.at_level(logging.WARNING, "repmamba"):
        save, found = newest_save(tmp_path)
    assert found["step"] == 1
    assert save.name == "step-00000001"
    assert "step-00000002 is corrupt" in caplog.text
    assert (tmp_path / "step-00000002.corrupt").is_dir()
    assert saved_steps(tmp_path) == [1]


def test_without_a_good_save_there_is_none(tmp_path):
    assert newest_save(tmp_path) is None
    flip_a_bit(write_save(tmp_path, 1, state(1)))
    assert newest_save(tmp_path) is None


def test_latest_names_the_newest_and_can_be_pointed_back(tmp_path):
    write_save(tmp_path, 1, state(1))
    write_save(tmp_path, 2, state(2))
    assert (tmp_path / "latest").read_text() == "step-00000002"
    (tmp_path / "latest").write_text("step-00000001")
    assert newest_save(tmp_path)[1]["step"] == 1


def test_a_folder_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "saves").write_text("in the way")
    with pytest.raises(TargetError, match=r"step-00000002 cannot be written: File exists"):
        write_save(tmp_path / "saves", 2, state(2))


def test_a_save_that_cannot_be_removed_gives_a_warning(tmp_path, monkeypatch, caplog):
    for step in range(1, 4):
        write_save(tmp_path, step, state(step))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING, "repmamba"):
        prune_saves(tmp_path, 2, lambda step: False)
    assert "The old save of step 1 could not be removed: Permission denied." in caplog.text
    assert saved_steps(tmp_path) == [1, 2, 3]


def test_a_full_disk_is_an_error_and_keeps_the_save_before(tmp_path, limit_file_size):
    write_save(tmp_path, 1, state(1))
    with limit_file_size(1000), pytest.raises(NoSpace, match="step-00000002 cannot be written"):
        write_save(tmp_path, 2, state(2))
    assert newest_save(tmp_path)[1]["step"] == 1
    assert not list(tmp_path.glob(".*"))


def test_pruning_keeps_the_newest_and_the_archived(tmp_path):
    for step in range(1, 7):
        write_save(tmp_path, step, state(step))
    prune_saves(tmp_path, 2, lambda step: step % 2 == 0)
    assert saved_steps(tmp_path) == [2, 4, 5, 6]


def test_reading_a_save_runs_no_code(tmp_path):
    save = write_save(tmp_path, 1, {"bad": print})
    assert save.is_dir()
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        newest_save(tmp_path)
