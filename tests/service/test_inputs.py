"""Inputs: which JSON values their schemas admit, and the keywords they become."""

import math

import pytest

from repmamba.errors import UsageError
from repmamba.inference.catalogue import packaged_weights
from repmamba.service.inputs import format_of, keywords, schemas

PACKAGED = {entry.name: entry.name for entry in packaged_weights()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile", 32),
        ("scale", 5),
        ("scale", "2"),
        ("scale", 2.5),
        ("weights", "/etc/passwd"),
        ("format", "ENVI"),
        ("window", [0, 0, 8]),
        ("window", [0, 0, 8, 8, 8]),
        ("window", [-1, 0, 8, 8]),
        ("window", [0, 0, 8, True]),
        ("window", {}),
        ("bbox", [0, 0, 1, math.nan]),
        ("bbox", [0, 0, 1, math.inf]),
        ("bbox", [0, 0, 1, 10**400]),
        ("bbox", [0, 0, 1, False]),
        ("bbox", [0, 0, 1, "1"]),
        ("bands", []),
        ("bands", [1] * 201),
        ("bands", [0]),
        ("bands", ["a" * 101]),
        ("rgb", [1, 2]),
        ("nodata", "zero"),
        ("nodata", True),
        ("alpha", 1),
        ("value_range", [1, "a"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_value_outside_its_schema_is_refused_in_one_line(name, value):
    with pytest.raises(UsageError, match=f"{name} is|no input '{name}'") as refused:
        keywords({name: value}, PACKAGED)
    assert len(str(refused.value)) < 600
    assert "\n" not in str(refused.value)


def test_values_inside_their_schemas_become_keywords():
    given = {"scale": 4, "bbox": [0, 1.5, 2, 3], "bands": ["red", 2], "value_range": [0, 1]}
    assert keywords(given, PACKAGED) == {**given, "format": "GTiff"}
    assert math.isnan(keywords({"nodata": "nan"}, PACKAGED)["nodata"])


def test_a_request_that_names_no_weights_gets_only_weights_that_are_offered():
    offered = {"mine": "/data/mine.safetensors", "x4": "x4"}
    assert keywords({}, offered)["weights"] == "/data/mine.safetensors"
    assert schemas(offered)["weights"] == {
        "type": "string",
        "enum": ["mine", "x4"],
        "default": "mine",
    }
    assert "weights" not in keywords({}, PACKAGED)
    assert "default" not in schemas(PACKAGED)["weights"]


@pytest.mark.parametrize(
    ("media_type", "name"),
    [
        ("image/tiff", "GTiff"),
        ("image/tiff;application=geotiff", "GTiff"),
        ("image/tiff; application=geotiff; profile=cloud-optimized", "COG"),
        ("IMAGE/PNG", "PNG"),
        ("image/jpeg", "JPEG"),
    ],
)
def test_a_media_type_names_a_format(media_type, name):
    assert format_of(media_type) == name


@pytest.mark.parametrize("media_type", ["image/webp", "", ["image/png"], 1])
def test_a_media_type_without_a_format_is_refused(media_type):
    with pytest.raises(UsageError, match="The media type of the output is"):
        format_of(media_type)
