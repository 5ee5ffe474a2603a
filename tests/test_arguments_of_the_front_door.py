"""The front door: a value that makes no sense is a UsageError of one line, a wrong type is Python's
own error, and neither writes anything.
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
        ({"scale": 7}, "scale=7: give 2, 3 or 4"),
        ({"scale": True}, "scale=True: give 2, 3 or 4"),
        ({"device": 3}, "no device '3'"),
        ({"backend": "abacus"}, "requests the scan 'abacus'"),
        ({"precision": 32}, "no precision '32'"),
    ],
    ids=str,
)
def test_load(wrong, said):
    with pytest.raises(UsageError, match=said):
        repmamba.load(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"weights": 3}, {"weights": b"x4"}, {"weights": ["x4"]}, {"scale": "2"}, {"scale": 2.0}],
    ids=str,
)
def test_load_leaves_wrong_types_to_python(wrong):
    with pytest.raises(TypeError):
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
    ],
    ids=str,
)
def test_upscale_file(tmp_path, monkeypatch, wrong, said):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("a.png")
    with pytest.raises(UsageError, match=said):
        repmamba.upscale_file(**{"source": "a.png", "target": "b.png"} | wrong)
    with pytest.raises(TypeError):
        repmamba.upscale_file("a.png", "b.png", weights=3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_networks(tmp_path):
    for wrong in (3, None, b"x4"):
        with pytest.raises(TypeError):
            repmamba.from_pretrained(wrong)
    with pytest.raises(UsageError, match="network is a Linear; expected a RepMamba"):
        repmamba.save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    network = repmamba.from_pretrained(find_weights("x2").path)
    with pytest.raises(UsageError, match="is not a local path"):
        repmamba.save_pretrained(network, "s3://bucket/net")
    for wrong in ({"folder": 3}, {"training": 3}):
        with pytest.raises(TypeError):
            repmamba.save_pretrained(network, **{"folder": tmp_path / "net"} | wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x4", "x5"])
def test_from_pretrained_names_the_packaged_weights(name):
    with pytest.raises(
        CheckpointError, match=r"Packaged weights, which are x4, x3, x2, x4-real, open by"
    ):
        repmamba.from_pretrained(name)
