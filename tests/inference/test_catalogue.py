"""Packaged weights are the files whose digests the table has, or none."""

import hashlib

import pytest

from repmamba.errors import CheckpointError
from repmamba.inference import catalogue
from repmamba.inference.catalogue import find_weights


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The only packaged weights, under the name of x2; the file is what the table says."""
    path = tmp_path / "x2.safetensors"
    path.write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    entry = {"name": "x2", "scale": 2, "file": path.name, "digest": digest, "training_data": "none", "terms": "none"}
    lines = [f"{key} = {value!r}" for key, value in entry.items()]
    (tmp_path / "catalogue.toml").write_text("\n".join(["[[weights]]", *lines]))
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    return path


def test_weights_are_found_by_their_name(packaged):
    assert find_weights("x2").path == packaged


def test_weights_that_are_not_those_of_the_table_are_refused(packaged):
    packaged.write_bytes(b"Numbers")
    with pytest.raises(CheckpointError, match="x2 are not those of the table; install repmamba again"):
        find_weights("x2")


def test_weights_that_are_missing_are_named(packaged):
    packaged.unlink()
    with pytest.raises(CheckpointError, match=r"x2 \(x2\.safetensors\) are missing; install repmamba again"):
        find_weights("x2")
