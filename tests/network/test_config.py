import dataclasses
import json
import math

import pytest

from repmamba.errors import UsageError
from repmamba.network.config import PUBLISHED, NetworkConfig


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_configuration_survives_json(config):
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", 5),
        ("scale", 1),
        ("scale", "4"),
        ("scale", True),
        ("scale", 4.0),
        ("in_chans", 0),
        ("in_chans", 1 << 40),
        ("depths", ()),
        ("depths", (1, 0)),
        ("depths", (1, True)),
        ("depths", 6),
        ("depths", (1,) * 1000),
        ("mlp_ratio", 0.001),
        ("mlp_ratio", math.inf),
        ("mlp_ratio", math.nan),
        ("mlp_ratio", 1e9),
        ("img_range", 0.0),
        ("img_range", math.inf),
        ("img_range", math.nan),
        ("patch_norm", 1),
        ("upsampler", "bilinear"),
        ("upsampler", ["pixelshuffle"]),
        ("resi_connection", "2conv"),
        ("repconv", None),
        ("cssp", "no"),
    ],
)
def test_a_wrong_option_is_named_in_one_line(option, value):
    with pytest.raises(UsageError, match=option) as refused:
        NetworkConfig(**{option: value})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


def test_nearest_conv_has_scale_4_only():
    with pytest.raises(
        UsageError, match="scale is 2; expected 4 with the upsampler nearest\\+conv"
    ):
        NetworkConfig(scale=2, upsampler="nearest+conv")


def test_an_unknown_option_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="no option 'embed_dim'; its options are scale, in_chans"):
        NetworkConfig.from_dict({"embed_dim": 64})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        NetworkConfig().scale = 2  # type: ignore[misc]
