"""The STAC item of an export has the fields that the extension requires."""

import hashlib
import json

from repmamba.exporting.mlm import ENTRY, EXTENSION
from repmamba.inference.onnx_runner import open_session


def test_the_item_has_the_fields_of_the_extension(small_export, small_weights):
    metadata = open_session(small_export.path.read_bytes()).get_modelmeta().custom_metadata_map
    item = json.loads(metadata[ENTRY])
    assert (item["type"], item["stac_version"], item["id"]) == ("Feature", "1.1.0", "small")
    assert EXTENSION in item["stac_extensions"]
    properties, assets = item["properties"], item["assets"]
    assert properties["mlm:tasks"] == ["super-resolution"]
    assert properties["mlm:name"] == "repmamba small"
    assert properties["mlm:total_parameters"] > 1e5
    (given,), (result,) = properties["mlm:input"], properties["mlm:output"]
    for structure in (given["input"], result["result"]):
        assert structure["shape"] == [-1, 3, -1, -1]
        assert structure["dim_order"] == ["batch", "bands", "height", "width"]
        assert structure["data_type"] == "float32"
    assert given["bands"] == result["bands"] == [band["name"] for band in properties["bands"]]
    settings = properties["mlm:hyperparameters"]
    assert (settings["scale"], settings["tile"], settings["halo"]) == (2, 256, 8)
    assert 0 < settings["largest_difference"] < 1e-5
    assert assets["model"]["href"] == "./small.onnx"
    assert "mlm:model" in assets["model"]["roles"]
    digest = hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert assets["weights"]["file:checksum"] == "1220" + digest
