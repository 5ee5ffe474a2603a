import pytest

from repmamba.errors import CheckpointError
from repmamba.network.config import NetworkConfig
from repmamba.network.published import (
    check_names_and_shapes,
    difference,
    expected_shapes,
    published_names,
    read_config,
)

CONFIGS = (
    NetworkConfig(),
    NetworkConfig(scale=2, depths=(1, 2, 1)),
    NetworkConfig(scale=3, in_chans=13, mlp_ratio=1.5),
    NetworkConfig(patch_norm=False),
    NetworkConfig(upsampler="pixelshuffle", scale=2),
    NetworkConfig(upsampler="pixelshuffle", scale=3),
    NetworkConfig(upsampler="pixelshuffle", scale=4),
    NetworkConfig(upsampler="nearest+conv"),
    NetworkConfig(upsampler="none", scale=1),
    NetworkConfig(resi_connection="3conv", depths=(2,)),
)


def published_shapes(config):
    names = published_names(config)
    return {names[name]: shape for name, shape in expected_shapes(config).items()}


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_configuration_is_found_from_its_shapes(config):
    shapes = published_shapes(config)
    assert len(shapes) == len(expected_shapes(config))
    assert read_config(shapes) == config


def test_the_range_cannot_be_found_from_the_shapes():
    assert read_config(published_shapes(NetworkConfig()), img_range=255.0) == NetworkConfig(
        img_range=255.0
    )


def test_a_position_embedding_is_refused_in_one_line():
    shapes = published_shapes(NetworkConfig()) | {"absolute_pos_embed": (1, 4096, 64)}
    with pytest.raises(CheckpointError, match=r"absolute_pos_embed.*fits one input size"):
        read_config(shapes)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)},
        {"conv_first.weight": (64, 3, 3, 3)},
        {"conv_first.weight": (), "layers.0.residual_group.blocks.0.norm2.weight": (64,)},
    ],
)
def test_weights_of_another_network_are_reported_as_such(shapes):
    with pytest.raises(CheckpointError, match="weights of another network"):
        read_config(shapes)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("upsample.0.weight", (40, 64, 3, 3)),
        ("upsample.0.weight", (75, 64, 3, 3)),
        ("conv_first.weight", (64, 0, 3, 3)),
        ("layers.0.residual_group.blocks.0.mlp.fc1.weight", (1 << 60, 64)),
        ("layers.999.residual_group.blocks.999.norm2.weight", (64,)),
    ],
)
def test_impossible_shapes_are_refused(name, shape):
    with pytest.raises(CheckpointError):
        read_config(published_shapes(NetworkConfig()) | {name: shape})


def test_ablated_networks_have_no_published_names():
    with pytest.raises(CheckpointError, match="RepConv or CSSP switched off"):
        published_names(NetworkConfig(cssp=False))


def fault(found, expected=None, **options):
    with pytest.raises(CheckpointError) as refused:
        check_names_and_shapes(
            found,
            expected or expected_shapes(NetworkConfig()),
            origin="a.pth",
            network="b",
            **options,
        )
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_first_wrong_names_are_listed_with_their_number():
    expected = expected_shapes(NetworkConfig())
    names = list(expected)
    found = {name: shape for name, shape in expected.items() if name not in names[10:15]} | {
        "extra": (1,)
    }
    found[names[0]] = (1, 2)
    text = fault(found)
    assert f"5 missing ({names[10]}, {names[11]}, {names[12]} and 2 more)" in text
    assert "1 unexpected (extra)" in text
    assert (
        f"1 of another shape ({names[0]} of shape (1, 2) instead of {expected[names[0]]})" in text
    )


def test_the_reason_is_guessed():
    expected = expected_shapes(NetworkConfig())
    assert "weights of another network" in fault({"a": (1,)})
    assert "incomplete" in fault(dict(list(expected.items())[:-2]))
    assert "has more than this network" in fault(expected | {"extra": (1,)})
    assert "modified version" in fault(expected | {"norm.weight": (65,)})


def test_batch_counts_may_be_missing():
    expected = expected_shapes(NetworkConfig())
    found = {
        name: shape for name, shape in expected.items() if not name.endswith("num_batches_tracked")
    }
    check_names_and_shapes(found, expected, origin="a", network="b")


def test_unusual_names_are_escaped():
    text = fault(expected_shapes(NetworkConfig()) | {"\x1b[2Jevil\n" + "x" * 1000: (1,)})
    assert "\x1b" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (NetworkConfig(scale=2), "This is an x2 checkpoint, but x4 is expected"),
        (NetworkConfig(resi_connection="3conv"), "It has the 3conv connection"),
        (NetworkConfig(upsampler="pixelshuffle"), "It has the upsampler pixelshuffle"),
        (NetworkConfig(in_chans=4), "It takes 4 bands, but 3 are expected"),
        (NetworkConfig(depths=(1,)), "depths"),
        (NetworkConfig(cssp=False), "cssp"),
    ],
    ids=str,
)
def test_another_kind_of_checkpoint_is_named(found, words):
    assert words in difference(found, NetworkConfig())
    assert difference(found, found) is None
