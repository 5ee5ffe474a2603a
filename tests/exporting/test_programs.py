"""Deepness, a QGIS plugin: what it reads from a file, and how it uses the results.

The file is read as by src/deepness/processing/models of PUTvision/qgis-plugin-deepness: an ONNX
Runtime session, its shapes and its metadata.
"""

import json

import numpy as np
import pytest
import torch

import repmamba
from repmamba.exporting.export import export
from repmamba.inference.onnx_runner import open_session


@pytest.fixture(scope="module")
def written(small_weights, in_onnx_runtime_only, tmp_path_factory):
    target = tmp_path_factory.mktemp("deepness") / "small.onnx"
    return export(small_weights, target, program="deepness", size=(24, 24))


def test_the_plugin_finds_the_kind_of_network_and_its_tiles(written):
    session = open_session(written.path.read_bytes())
    assert len(session.get_inputs()) == len(session.get_outputs()) == 1
    assert session.get_inputs()[0].shape == [1, 3, 24, 24]
    assert session.get_outputs()[0].shape == [1, 3, 48, 48]
    metadata = session.get_modelmeta().custom_metadata_map
    assert str(json.loads(metadata["model_type"])).capitalize() == "Superresolution"
    assert int(json.loads(metadata["tile_size"])) == 24
    assert int(json.loads(metadata["tiles_overlap"])) == 0
    assert [float(each) for each in json.loads(metadata["standardization_mean"])] == [0, 0, 0]
    assert [float(each) for each in json.loads(metadata["standardization_std"])] == [1, 1, 1]


def test_the_plugin_writes_the_rounded_results(written, small_weights):
    tile = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), np.uint8)
    tile[:, :12] = 255 * (tile[:, :12] > 127)  # results beyond black and white
    seen = np.transpose(np.float32(tile * 1.0 / 255.0), (0, 3, 1, 2))
    session = open_session(written.path.read_bytes())
    result = session.run(None, {session.get_inputs()[0].name: seen})[0]
    result *= 255.0  # "Output scaling"
    pasted = np.zeros((48, 48, 3), np.uint8)
    pasted[:] = result[0].transpose(1, 2, 0)
    own = repmamba.load(small_weights).run(torch.from_numpy(seen))[0].permute(1, 2, 0)
    assert own.min() < 0
    assert own.max() > 1
    expected = (own.clamp(0, 1) * 255).round().numpy()
    assert np.abs(pasted - expected).max() <= 1
    assert (pasted == expected).mean() > 0.999


def test_the_default_tile_size_is_256(small_weights):
    from repmamba.exporting.programs import DEEPNESS, size_for

    assert size_for(DEEPNESS, None) == (256, 256)
