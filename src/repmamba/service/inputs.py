"""The inputs of the process as JSON schemas, checked here; they become keywords of upscale_file.

What a valid value means for a scene is checked by the engine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repmamba.errors import UsageError
from repmamba.inference.catalogue import packaged_weights

Json = Any
MEDIA_TYPES = ("image/tiff; application=geotiff", "image/png", "image/jpeg", "image/jp2")


@dataclass(frozen=True, slots=True)
class Output:
    """A format of results: the suffix of its files, and its media type."""

    suffix: str
    media_type: str


OUTPUTS = {
    "GTiff": Output(".tif", "image/tiff; application=geotiff"),
    "COG": Output(".cog.tif", "image/tiff; application=geotiff; profile=cloud-optimized"),
    "PNG": Output(".png", "image/png"),
    "JPEG": Output(".jpg", "image/jpeg"),
}

_NUMBER = {"type": "number"}
_BAND = {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string", "maxLength": 100}]}


def _several(items: Json, least: int, most: int) -> Json:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SCHEMAS: dict[str, Json] = {  # keyword of upscale_file -> JSON schema; all are optional
    "scale": {"type": "integer", "enum": [2, 3, 4]},
    "weights": {"type": "string"},  # the names are those that the service offers
    "format": {"type": "string", "enum": list(OUTPUTS), "default": "GTiff"},
    "window": _several({"type": "integer", "minimum": 0}, 4, 4),
    "bbox": _several(_NUMBER, 4, 4),
    "bands": _several(_BAND, 1, 200),
    "rgb": _several(_BAND, 3, 3),
    "nodata": {
        "oneOf": [_NUMBER, {"type": "string", "enum": ["none", "nan"]}, _several(_NUMBER, 1, 200)]
    },
    "alpha": {"type": "boolean", "default": True},
    "value_range": {
        "oneOf": [{"type": "string", "enum": ["robust", "type"]}, _several(_NUMBER, 2, 2)]
    },
    "consistent": {"type": "boolean"},
    "ensemble": {"type": "boolean", "default": False},
    "expand_palette": {"type": "boolean", "default": False},
}

_TYPES: dict[str, Any] = {
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    ),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
}


def schemas(weights: Mapping[str, str]) -> dict[str, Json]:
    """The schemas of the inputs besides the scene. weights: the names that a service offers."""
    default = default_weights(weights)
    schema = {"type": "string", "enum": list(weights)}
    return SCHEMAS | {"weights": schema if default is None else schema | {"default": default}}


def default_weights(weights: Mapping[str, str]) -> str | None:
    """The name of the weights for a request that names none: the first that are offered.

    None: the engine chooses among the packaged weights, since all of them are offered.
    """
    packaged = {entry.name for entry in packaged_weights()}
    return None if packaged <= set(weights) else next(iter(weights))


def keywords(inputs: Mapping[str, Json], weights: Mapping[str, str]) -> dict[str, Any]:
    """Keywords of upscale_file from the inputs of a request. Raises UsageError."""
    table = schemas(weights)
    for name, value in inputs.items():
        if name not in table:
            raise UsageError(
                f"There is no input {name!r:.100}; there are scene, {', '.join(table)}."
            )
        if not fits(value, table[name]):
            raise UsageError(f"{name} is {value!r:.100}; its JSON schema is {table[name]}.")
    found = dict(inputs)
    found.setdefault("format", "GTiff")
    chosen = found.get("weights", default_weights(weights))
    if chosen is not None:
        found["weights"] = weights[chosen]
    if found.get("nodata") == "nan":
        found["nodata"] = math.nan
    return found


def value_of(given: Json) -> Json:
    """The value of an input that is given as {"value": ...}, or as it is."""
    return given["value"] if isinstance(given, dict) and "value" in given else given


def format_of(media_type: Json) -> str:
    """The name of the first output format of a media type. Raises UsageError."""
    asked = set(str(media_type).lower().replace(" ", "").split(";"))
    for name, output in OUTPUTS.items():
        if asked <= set(output.media_type.replace(" ", "").split(";")):
            return name
    types = ", ".join(output.media_type for output in OUTPUTS.values())
    raise UsageError(f"The media type of the output is {media_type!r:.100}; there are {types}.")


def fits(value: Json, schema: Json) -> bool:
    """Whether a JSON value is valid by a schema of this table (a small part of JSON Schema)."""
    if "oneOf" in schema:
        return any(fits(value, one) for one in schema["oneOf"])
    if not _TYPES[schema["type"]](value):
        return False
    if schema["type"] == "array":
        counts = schema["minItems"] <= len(value) <= schema["maxItems"]
        return counts and all(fits(item, schema["items"]) for item in value)
    return (
        ("enum" not in schema or value in schema["enum"])
        and ("minimum" not in schema or value >= schema["minimum"])
        and ("maxLength" not in schema or len(value) <= schema["maxLength"])
    )
