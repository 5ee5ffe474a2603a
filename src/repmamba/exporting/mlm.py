"""An export as a STAC item, with the Machine Learning Model extension.

The item is in the metadata of the exported file, and its asset is the file itself. What the
extension has no field for, such as tile and halo, is in mlm:hyperparameters.
Source: https://github.com/stac-extensions/mlm, version 1.5.2.
"""

from __future__ import annotations

import re
from typing import Any

from repmamba.inference.exported import LR, SR, ExportedFacts

ENTRY = "stac"  # the metadata entry with the item, as JSON

EXTENSION = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
FILE_EXTENSION = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

RGB = ("red", "green", "blue")

# prefix of the multihash of a SHA-256: the kind of digest, and its length of 32 bytes
SHA256 = "1220"

ARTIFACTS = {  # ending of the name -> framework, its version, kind of artifact, media type
    ".onnx": ("ONNX", "onnx.save", "application/octet-stream; framework=onnx"),
    ".pt2": ("PyTorch", "torch.export.save", "application/octet-stream; framework=pytorch"),
}


def item(facts: ExportedFacts, file_name: str, parameters: int) -> dict[str, Any]:
    """The STAC item of a file. parameters: count of the exported network."""
    ending = file_name[file_name.rindex(".") :]
    framework, artifact, media_type = ARTIFACTS[ending]
    bands = RGB if facts.bands == len(RGB) else tuple(f"band{n + 1}" for n in range(facts.bands))
    low, high = facts.value_range
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [EXTENSION, FILE_EXTENSION],
        "id": re.sub(r"[^\w.-]", "-", file_name[: -len(ending)]),
        "geometry": None,
        "properties": {
            "description": f"Super-resolution of optical imagery, x{facts.scale}.",
            "datetime": None,
            "start_datetime": "1900-01-01T00:00:00Z",
            "end_datetime": "9999-12-31T23:59:59Z",
            "license": "other",
            "bands": [{"name": band} for band in bands],
            "mlm:name": f"repmamba {facts.name}",
            "mlm:architecture": "Rep-Mamba",
            "mlm:tasks": ["super-resolution"],
            "mlm:framework": framework,
            "mlm:total_parameters": parameters,
            "mlm:pretrained": True,
            "mlm:pretrained_source": facts.training_data or "unknown",
            "mlm:batch_size_suggestion": 1,
            "mlm:accelerator": None,
            "mlm:input": [
                {
                    "name": LR,
                    "description": f"From {low:g} (black) to {high:g} (white).",
                    "bands": list(bands),
                    "input": _structure(facts, 1),
                    "value_scaling": None,
                    "resize_type": None,
                }
            ],
            "mlm:output": [
                {
                    "name": SR,
                    "description": f"In the range of the input, x{facts.scale}.",
                    "tasks": ["super-resolution"],
                    "bands": list(bands),
                    "result": _structure(facts, facts.scale),
                }
            ],
            "mlm:hyperparameters": {
                "scale": facts.scale,
                "value_range": [low, high],
                "tile": facts.tile,
                "halo": facts.halo,
                "largest_difference": max((each.largest for each in facts.parity), default=None),
                "terms": facts.terms,
                "written_by": facts.written_by,
            },
        },
        "assets": {
            "model": {
                "href": f"./{file_name}",
                "title": f"repmamba {facts.name}, exported",
                "type": media_type,
                "roles": ["mlm:model", "mlm:compiled"],
                "mlm:artifact_type": artifact,
            },
            **_weights(facts),
        },
        "links": [],
    }


def _structure(facts: ExportedFacts, scale: int) -> dict[str, Any]:
    height, width = facts.size or (None, None)
    batch = -1 if facts.size is None else 1
    sides = [-1 if length is None else scale * length for length in (height, width)]
    return {
        "shape": [batch, facts.bands, *sides],
        "dim_order": ["batch", "bands", "height", "width"],
        "data_type": "float32",
    }


def _weights(facts: ExportedFacts) -> dict[str, Any]:
    """The file of weights that was exported, if it was a single file."""
    if not facts.weights:
        return {}
    return {
        "weights": {
            "href": f"./{facts.name}.safetensors",
            "title": "The weights that were exported",
            "roles": ["mlm:weights"],
            "file:checksum": SHA256 + facts.weights,
        }
    }
