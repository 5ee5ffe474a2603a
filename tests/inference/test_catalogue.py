"""Packaged weights: files that match the catalogue."""

import hashlib
import shutil

import pytest

from repmamba import load, save_pretrained
from repmamba.errors import CheckpointError
from repmamba.inference import catalogue
from repmamba.inference.catalogue import find_weights, packaged_weights


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Packaged weights named x2, and their catalogue."""
    path = tmp_path / "x2.safetensors"
    path.write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    entry = {
        "name": "x2",
        "scale": 2,
        "file": path.name,
        "sha256": digest,
        "training_data": "none",
        "terms": "none",
    }
    lines = [f"{key} = {value!r}" for key, value in entry.items()]
    (tmp_path / "catalogue.toml").write_text("\n".join(["[[weights]]", *lines]))
    monkeypatch.setattr(catalogue, "FOLDER", tmp_path)
    return path


def test_weights_are_found_by_their_name(packaged):
    assert find_weights("x2").path == packaged


def test_weights_that_do_not_match_the_catalogue_are_refused(packaged):
    packaged.write_bytes(b"Numbers")
    with pytest.raises(
        CheckpointError, match="x2 do not match the catalogue; install repmamba again"
    ):
        find_weights("x2")


def test_weights_that_are_missing_are_named(packaged):
    packaged.unlink()
    with pytest.raises(
        CheckpointError, match=r"x2 \(x2\.safetensors\) are missing; install repmamba again"
    ):
        find_weights("x2")


def test_packaged_weights_keep_their_terms_when_renamed(tmp_path):
    entry = packaged_weights()[0]
    assert load("x4", device="cpu").terms == entry.terms
    shutil.copy(entry.path, tmp_path / "mine.safetensors")
    copied = load(tmp_path / "mine.safetensors", device="cpu")
    assert copied.terms == entry.terms
    assert repr(copied) == "<Upscaler mine: x4, 3 bands, on cpu, float32, tiles of 256 + 8>"


def test_other_weights_state_their_own_terms_or_none(small_weights, tmp_path):
    upscaler = load(small_weights, fuse=False)
    assert upscaler.terms == ""
    save_pretrained(upscaler.module, tmp_path / "ours", training={"terms": "CC BY\n4.0"})
    assert load(tmp_path / "ours").terms == "CC BY 4.0"
