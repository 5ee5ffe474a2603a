"""A value of another type, or one that means nothing, is a UsageError of one line, wherever in the
front door.
"""

import numpy as np
import pytest
import torch

import repmamba
from repmamba.errors import CheckpointError, UsageError
from repmamba.inference.catalogue import find_weights


@pytest.fixture(scope="module")
def upscaler():
    return repmamba.load("x2")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weights": 3}, "weights is 3; it takes a path"),
        ({"weights": b"x4"}, "weights is b'x4'; it takes a path"),
        ({"weights": ["x4"]}, r"weights is \['x4'\]; it takes a path"),
        ({"scale": "2"}, "scale is '2'; it takes 2, 3 or 4"),
        ({"scale": 2.0}, "scale is 2.0; it takes 2, 3 or 4"),
        ({"scale": 7}, "scale is 7; it takes 2, 3 or 4"),
        ({"scale": True}, "scale is True; it takes 2, 3 or 4"),
        ({"device": 3}, "no device '3'"),
        ({"backend": 3}, "backend is 3; it takes a name"),
        ({"precision": 32}, "precision is 32; it takes a name"),
        ({"fuse": "yes"}, "fuse is 'yes'; it takes True or False"),
        ({"ensemble": 1}, "ensemble is 1; it takes True or False"),
        ({"weights": "a/b", "revision": 3}, "revision is 3; it takes a name"),
    ],
    ids=str,
)
def test_load(wrong, said):
    with pytest.raises(UsageError, match=said):
        repmamba.load(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"source": 3}, "The input is a int: give a path"),
        ({"source": None}, "The input is a NoneType: give a path"),
        ({"target": 3}, "The output is a int: give a path"),
        ({"target": b"a.tif"}, "The output is a bytes: give a path"),
        ({"target": "folder/"}, "folder/ is a folder: name a file in it"),
        ({"target": "s3://bucket/a.tif"}, "s3://bucket/a.tif is not a local path"),
        ({"weights": 3}, "weights is 3; it takes a path"),
        ({"weights": np.zeros(3)}, "weights is array.*; it takes a path"),
    ],
    ids=str,
)
def test_upscale_file(tmp_path, monkeypatch, wrong, said):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("a.png")
    with pytest.raises(UsageError, match=said):
        repmamba.upscale_file(**{"source": "a.png", "target": "b.png"} | wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_networks(tmp_path):
    for wrong in (3, None, b"x4"):
        with pytest.raises(UsageError, match=r"source is .*; it takes a path"):
            repmamba.from_pretrained(wrong)
    with pytest.raises(UsageError, match="revision is 3; it takes a branch"):
        repmamba.from_pretrained("a/b", revision=3)
    with pytest.raises(UsageError, match="network is a Linear; expected a RepMamba"):
        repmamba.save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    network = repmamba.from_pretrained(find_weights("x2").path)
    for wrong, said in (
        ({"folder": 3}, "folder is 3; it takes a path"),
        ({"folder": "s3://bucket/net"}, "is not a local path"),
        ({"training": 3}, "training a dict"),
        ({"origin": 3}, "origin must be a line of text"),
    ):
        with pytest.raises(UsageError, match=said):
            repmamba.save_pretrained(network, **{"folder": tmp_path / "net"} | wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x4", "x5"])
def test_from_pretrained_names_the_packaged_weights(name):
    with pytest.raises(
        CheckpointError, match=r"Packaged weights, which are x4, x3, x2, open by load"
    ):
        repmamba.from_pretrained(name)
