"""Durable files: after a power failure, a kill or a full disk, and the errors."""

import errno
import os

import pytest

from repmamba.durable import whole_file, write_durable, write_errors
from repmamba.errors import NoSpace, TargetError


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "replace"])
def test_a_failed_durable_write_keeps_the_old_file_and_no_draft(tmp_path, monkeypatch, failing):
    path = tmp_path / "a.json"
    write_durable(path, b"be", b"fore")

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, failing, fail)
        with pytest.raises(OSError, match="Input/output error"):
            write_durable(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_the_rename_and_the_rename_before_returning(tmp_path, disk_events):
    write_durable(tmp_path / "a.json", b"content")
    (synced, draft), *others = disk_events
    assert synced == "fsync"
    assert draft.endswith(".part")
    assert others == [("replace", "a.json"), ("fsync", tmp_path.name)]


def test_a_whole_file_appears_if_the_block_succeeds_and_leaves_nothing_otherwise(
    tmp_path,
):
    path = tmp_path / "folder" / "a.png"
    with whole_file(path) as draft:
        draft.write_bytes(b"whole")
        assert not path.exists()

    def stopped() -> None:
        with whole_file(path) as draft:
            draft.write_bytes(b"ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert path.read_bytes() == b"whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, NoSpace, True),
        (errno.EDQUOT, NoSpace, True),
        (errno.EFBIG, NoSpace, False),
        (errno.EROFS, TargetError, False),
    ],
)
def test_the_error_only_advises_freeing_space_if_that_helps(tmp_path, number, kind, advice):
    with pytest.raises(kind, match="cannot be written") as caught, write_errors(tmp_path / "a.png"):
        raise OSError(number, os.strerror(number))
    assert ("Free some space." in str(caught.value)) == advice
