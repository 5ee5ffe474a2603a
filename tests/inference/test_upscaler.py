"""Upscaler: arrays of every kind, and a result that depends on nothing but array, weights and
plan.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from repmamba import load
from repmamba.errors import (
    CheckpointError,
    OutsideTraining,
    ShapeMismatch,
    UndeclaredNodata,
    UsageError,
)
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba


@pytest.fixture
def random():
    """The same numbers for a test, in any order of tests."""
    return np.random.default_rng(11)


@pytest.fixture(scope="session")
def upscaler(small_weights):
    return load(small_weights)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 9), (8, 6, 1), (5, 5, 3), (6, 7, 4), (1, 1, 13)])
def test_an_array_comes_back_larger_and_of_its_type(upscaler, dtype, shape, random):
    image = (random.random(shape) * (1 if dtype.startswith("f") else 200)).astype(dtype)
    result = upscaler.upscale(image)
    assert result.dtype == dtype
    assert result.shape == (2 * shape[0], 2 * shape[1], *shape[2:])


def test_integers_are_the_whole_range_of_their_type(upscaler, random):
    eight = random.integers(0, 256, (12, 10, 3)).astype(np.uint8)
    unit = eight / np.float64(255)
    from_floats = upscaler.upscale(unit)
    np.testing.assert_array_equal(upscaler.upscale(eight), np.rint(from_floats.clip(0, 1) * 255))
    sixteen = upscaler.upscale(eight.astype(np.uint16) * 257)
    np.testing.assert_allclose(sixteen / 65535, from_floats.clip(0, 1), atol=1e-5)


def test_floats_are_not_clamped(upscaler, random):
    result = upscaler.upscale(np.where(random.random((16, 16, 3)) < 0.5, 0.0, 1.0))
    assert result.min() < 0 or result.max() > 1


@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 3, 6, 5), (1, 4, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_tensor_comes_back_larger_and_of_its_type(upscaler, shape, dtype):
    result = upscaler.upscale(torch.rand(shape).to(dtype))
    assert result.dtype == dtype
    assert result.shape == (*shape[:-2], 2 * shape[-2], 2 * shape[-1])


def test_a_tensor_may_be_any_view_of_its_numbers(upscaler):
    tensor = torch.rand(3, 10, 12)
    views = {
        "negative": (tensor, torch._neg_view(-tensor)),
        "expanded": (tensor[:, :1].repeat(1, 7, 1), tensor[:, :1].expand(3, 7, 12)),
        "turned": (tensor.mT.contiguous(), tensor.mT),
    }
    for plain, view in views.values():
        assert torch.equal(upscaler.upscale(view), upscaler.upscale(plain))


def test_tensors_arrays_and_the_network_itself_agree(upscaler, random):
    image = random.random((10, 12, 3)).astype(np.float32)
    tensor = torch.from_numpy(image).movedim(2, 0)
    by_array = upscaler.upscale(image)
    by_tensor = upscaler.upscale(tensor).movedim(0, 2).numpy()
    with torch.no_grad():
        by_network = upscaler.network(tensor[None])[0].movedim(0, 2).numpy()
    np.testing.assert_array_equal(by_array, by_tensor)
    np.testing.assert_allclose(by_array, by_network, atol=1e-5)


# four tiles, shared by workers, and one, shared by threads
@pytest.mark.parametrize("tile", [64, 96])
def test_any_number_of_workers_and_threads_gives_the_same_bytes(upscaler, tile, random):
    image = random.random((90, 70, 4)).astype(np.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads, workers in ((1, 1), (2, 1), (3, 3), (4, 2), (3, None)):
            torch.set_num_threads(threads)
            results.append(upscaler.upscale(image, tile=tile, halo=8, workers=workers))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_tiles_meet_without_a_seam(upscaler):
    """A flat image has to stay flat at each of the four places in a pixel: a cut would show as a
    line.
    """
    result = upscaler.upscale(np.full((80, 80, 3), 0.4, np.float32), tile=32, halo=8)
    places = result[20:-20, 20:-20].reshape(60, 2, 60, 2, 3)
    assert np.ptp(places, axis=(0, 2)).max() < 0.02


def test_nan_and_infinity_stay_in_place_and_affect_no_others(upscaler, random):
    image = random.random((40, 40, 3)).astype(np.float32)
    image[20, 20, 1], image[3, 5, 0] = np.nan, np.inf
    result = upscaler.upscale(image)
    expected = np.ones_like(result, bool)
    expected[40:42, 40:42, 1] = expected[6:8, 10:12, 0] = False
    np.testing.assert_array_equal(np.isfinite(result), expected)
    assert np.isnan(result[40:42, 40:42, 1]).all()
    assert (result[6:8, 10:12, 0] == np.inf).all()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_masked_pixels_stay_masked_with_their_value_and_affect_no_others(upscaler, dtype, random):
    numbers = (random.random((40, 44, 3)) * (1 if dtype == "float32" else 3000)).astype(dtype)
    masked = np.zeros(numbers.shape, bool)
    masked[20:22, 30:33] = masked[3, 5, 0] = True
    expected = masked.repeat(2, axis=0).repeat(2, axis=1)
    results = []
    for below in (-9999, 7):  # values under a mask are not measurements
        image = np.ma.masked_array(
            np.where(masked, below, numbers).astype(dtype), masked, fill_value=-9999
        )
        results.append(upscaler.upscale(image, tile=32))
        assert isinstance(results[-1], np.ma.MaskedArray)
        assert results[-1].dtype == dtype
        assert results[-1].flags.c_contiguous
        assert results[-1].fill_value == -9999
        np.testing.assert_array_equal(results[-1].mask, expected)
        assert (results[-1].data[expected] == below).all()
    np.testing.assert_array_equal(results[0].data[~expected], results[1].data[~expected])
    one_band = upscaler.upscale(np.ma.masked_equal(numbers[..., 0], numbers[1, 2, 0]))
    assert one_band.shape == (80, 88)
    assert one_band.mask[2:4, 4:6].all()
    plain = upscaler.upscale(np.ma.masked_array(numbers))
    np.testing.assert_array_equal(plain.data, upscaler.upscale(numbers))
    assert not plain.mask.any()


def test_an_outlier_keeps_its_size_and_affects_no_others(upscaler, random):
    image = random.random((60, 60)).astype(np.float32)
    spiked = image.copy()
    spiked[30, 30] = 1e6
    plain, result = upscaler.upscale(image), upscaler.upscale(spiked)
    assert result[60:62, 60:62].max() > 5e5
    far = np.ones(result.shape, bool)
    far[40:82, 40:82] = False
    assert np.abs(result - plain)[far].max() < 0.1


def test_floats_far_outside_0_to_1_give_a_warning_without_a_value_range(upscaler, random):
    image = random.random((20, 20)).astype(np.float32)
    image[0, 0] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        upscaler.upscale(image)  # an outlier
        upscaler.upscale(4000 * image, value_range=(0, 4000))
        upscaler.upscale(np.ma.masked_greater(4000 * image, 1))
    with pytest.warns(OutsideTraining, match=r"100% of these lie far outside.*value_range"):
        upscaler.upscale(4000 * image + 10)


def test_a_robust_range_holds_nearly_all_values_of_each_group(upscaler, random):
    image = (random.random((40, 40, 4)) * [4000, 4000, 4000, 90]).astype(np.uint16)
    image[3, 3, 0] = 65535
    result = upscaler.upscale(image, value_range="robust")
    colours, other = (
        np.percentile(image[..., bands], (0.5, 99.5)) for bands in (slice(3), slice(3, 4))
    )
    for bands, found in ((slice(3), colours), (slice(3, 4), other)):
        given = upscaler.upscale(image[..., bands], value_range=tuple(found))
        np.testing.assert_allclose(result[..., bands].astype(float), given, atol=0.01 * found[1])
    with pytest.raises(UsageError, match="'robust'"):
        upscaler.upscale(image, value_range="type")


@pytest.mark.parametrize(
    "image", [np.zeros((0, 4)), np.zeros(5), np.zeros((2, 2, 2, 2)), torch.zeros(3, 0, 4)]
)
def test_arrays_that_are_not_images_are_refused(upscaler, image):
    with pytest.raises(ShapeMismatch, match="is not an image"):
        upscaler.upscale(image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), complex),
        [[1, 2], [3, 4]],
        np.zeros((4, 4), bool),
        np.ones((4, 4), object),
        np.full((4, 4), "a"),
        np.zeros((4, 4), "f4,f4"),
        np.zeros((4, 4), "M8[s]"),
        torch.zeros(3, 4, 4).to_sparse(),
        torch.zeros(3, 4, 4, device="meta"),
        np.matrix([[1, 2], [3, 4]]),
    ],
)
def test_unsupported_types_are_refused(upscaler, image):
    with pytest.raises(UsageError):
        upscaler.upscale(image)


def test_weights_of_another_scale_are_refused(small_weights):
    with pytest.raises(CheckpointError, match=r"x2 checkpoint, but x4 was requested"):
        load(small_weights, scale=4)


def test_unknown_weights_are_refused_and_the_known_ones_named():
    with pytest.raises(CheckpointError, match="the packaged weights are"):
        load("x5")


def test_a_network_that_does_not_upscale_is_refused(tmp_path):
    path = tmp_path / "none.safetensors"
    write_checkpoint(
        path, Checkpoint.of(RepMamba(NetworkConfig(scale=1, upsampler="none", depths=(1,))))
    )
    with pytest.raises(CheckpointError, match="does not upscale"):
        load(path)


def test_equal_networks_have_equal_digests_whatever_their_files(small_weights, tmp_path, upscaler):
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes(small_weights.read_bytes())
    assert load(copy).digest == upscaler.digest
    assert load(copy).name == "renamed"


@pytest.mark.parametrize("halo", [24, 0])
def test_tile_and_halo_come_from_the_weights(tmp_path, halo):
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    write_checkpoint(
        tmp_path / "own.safetensors", Checkpoint.of(network, training={"tile": 192, "halo": halo})
    )
    upscaler = load(tmp_path / "own.safetensors")
    assert (upscaler.tile, upscaler.halo) == (192, halo)


@pytest.mark.parametrize(
    "facts", [{"tile": True}, {"tile": 10**12}, {"tile": 7}, {"halo": True}, {"halo": -2}]
)
def test_an_invalid_tile_or_halo_of_weights_is_refused(tmp_path, facts):
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    write_checkpoint(tmp_path / "own.safetensors", Checkpoint.of(network, training=facts))
    with pytest.raises(CheckpointError, match=r"own advises .*; an even number of pixels from"):
        load(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("facts", "denoises"),
    [
        ({}, False),
        ({"recipe": {"data": {"degrade": ""}}}, False),
        ({"recipe": {"data": {"degrade": "sensor"}}}, True),
        ({"recipe": "of my own"}, False),
    ],
)
def test_weights_trained_on_degraded_images_are_known_to_denoise(tmp_path, facts, denoises):
    network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
    write_checkpoint(tmp_path / "own.safetensors", Checkpoint.of(network, training=facts))
    assert load(tmp_path / "own.safetensors").denoises is denoises


@pytest.mark.parametrize(
    ("name", "length", "least"), [("tile", 31, 2), ("tile", 0, 2), ("halo", 7, 0)]
)
def test_an_odd_tile_or_halo_is_refused(upscaler, name, length, least):
    for asked, option in ((upscaler, {name: length}), (replace(upscaler, **{name: length}), {})):
        with pytest.raises(
            UsageError, match=f"{name}={length}: expected an even number of pixels from {least} up"
        ):
            asked.upscale(np.zeros((8, 8)), **option)


def test_weights_of_another_value_range_are_refused(tmp_path):
    checkpoint = Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,))))
    write_checkpoint(tmp_path / "own.safetensors", replace(checkpoint, value_range=(0.0, 255.0)))
    with pytest.raises(CheckpointError, match="values from 0 to 255; only networks for 0 to 1"):
        load(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    "option",
    [
        {"tile": 0},
        {"tile": True},
        {"halo": -1},
        {"workers": 0},
        {"value_range": "0,1"},
        {"nodata": "no"},
    ],
    ids=str,
)
def test_an_invalid_option_is_one_line(upscaler, option):
    with pytest.raises(UsageError) as refused:
        upscaler.upscale(np.zeros((8, 8)), **option)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "option",
    [{"tile": 16.0}, {"halo": "8"}, {"workers": "2"}, {"value_range": 255}, {"nodata": [None]}],
    ids=str,
)
def test_an_option_of_another_type_is_an_error_of_python(upscaler, option):
    with pytest.raises(TypeError):
        upscaler.upscale(np.zeros((8, 8)), **option)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_hub_weights_are_those_of_the_revision(small_weights, tmp_path, monkeypatch, revision):
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"], options["allow_patterns"]))
        (tmp_path / "model.safetensors").write_bytes(small_weights.read_bytes())
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    upscaler = load("someone/repmamba-x2", revision=revision)
    assert (upscaler.name, upscaler.scale) == ("someone/repmamba-x2", 2)
    assert asked == [("someone/repmamba-x2", revision, ["config.json", "model.safetensors"])]


def test_a_revision_of_local_weights_is_refused(small_weights):
    for weights in ("x4", small_weights):
        with pytest.raises(UsageError, match="is a local file and has no revision 'v1'"):
            load(weights, revision="v1")


def test_the_trained_and_the_fused_network_agree(small_weights, upscaler, random):
    image = random.random((20, 22, 3)).astype(np.float32)
    np.testing.assert_allclose(
        load(small_weights, fuse=False).upscale(image), upscaler.upscale(image), atol=1e-5
    )


@pytest.mark.parametrize(
    ("option", "value"), [("device", "abacus"), ("device", "cuda:77"), ("precision", "int4")]
)
def test_an_unavailable_device_or_precision_is_refused(small_weights, option, value):
    with pytest.raises(UsageError, match=r"choose|There is no"):
        load(small_weights, **{option: value})


@pytest.mark.parametrize("fuse", [True, False])
def test_the_scan_runs_on_the_requested_backend(small_weights, monkeypatch, fuse, random):
    from repmamba.network import fusion, rmb

    asked = []
    for module in (fusion, rmb):
        monkeypatch.setattr(
            module, "scan_map", lambda *maps, backend: asked.append(backend) or maps[0]
        )
    upscaler = load(small_weights, backend="chunked", fuse=fuse)
    assert upscaler.backend == "chunked"
    upscaler.upscale(random.random((8, 8, 3)).astype(np.float32))
    assert set(asked) == {"chunked"}


def test_an_unknown_backend_is_refused(small_weights):
    with pytest.raises(UsageError, match="requests the scan 'abacus'"):
        load(small_weights, backend="abacus")


def test_a_range_can_be_given_and_nothing_is_clipped_to_it(upscaler, random):
    unit = random.random((9, 11, 3))
    reflectance = (unit * 4000).astype(np.float32)
    result = upscaler.upscale(reflectance, value_range=(0, 4000))
    np.testing.assert_allclose(result / 4000, upscaler.upscale(unit), atol=1e-5)
    assert result.max() > 4000 or result.min() < 0


@pytest.mark.parametrize(
    "shape", [(1, 64, 64), (3, 20, 30), (4, 128, 128), (13, 100, 80), (16, 40, 50)]
)
def test_bands_first_as_rasterio_reads_is_refused_with_what_to_do(upscaler, shape):
    with pytest.raises(
        ShapeMismatch,
        match=r"looks like \(bands, rows, columns\).*layout='bands-first'.*np.moveaxis",
    ):
        upscaler.upscale(np.zeros(shape, np.uint16))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 18, 20), (3, 18, 20), (4, 18, 20), (2, 3, 4)])
def test_an_array_of_bands_first_comes_back_bands_first(upscaler, random, shape, masked):
    array = random.integers(0, 256, shape).astype(np.uint8)
    if masked:
        array = np.ma.masked_array(array, array < 20)
    result = upscaler.upscale(array, layout="bands-first")
    expected = upscaler.upscale(np.moveaxis(array, 0, 2), layout="bands-last")
    assert result.shape == (shape[0], 2 * shape[1], 2 * shape[2])
    np.testing.assert_array_equal(np.moveaxis(result, 0, 2), expected)
    if masked:
        np.testing.assert_array_equal(result.mask, array.mask.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize(
    "shape", [(40, 50, 3), (40, 50, 4), (40, 50, 13), (17, 20, 40), (1, 1, 13), (8, 9, 12)]
)
def test_an_ambiguous_array_counts_as_bands_last(upscaler, shape):
    assert upscaler.upscale(np.zeros(shape, np.uint8)).shape == (
        2 * shape[0],
        2 * shape[1],
        shape[2],
    )


def test_bands_last_can_be_given_for_a_strip_of_many_bands(upscaler):
    strip = np.zeros((4, 6, 40), np.uint8)
    assert upscaler.upscale(strip, layout="bands-last").shape == (8, 12, 40)


@pytest.mark.parametrize("layout", ["bands-first", "bands-last"])
def test_layout_is_only_for_numpy_arrays(upscaler, layout):
    with pytest.raises(UsageError, match="is for numpy arrays"):
        upscaler.upscale(torch.zeros(3, 8, 8), layout=layout)
    with pytest.raises(UsageError, match="give 'bands-first' or 'bands-last'"):
        upscaler.upscale(np.zeros((8, 8, 3)), layout="first")


def test_a_tensor_has_its_bands_first_whatever_its_size(upscaler):
    assert upscaler.upscale(torch.zeros(3, 40, 50)).shape == (3, 80, 100)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("int16", -9999), ("uint16", 0), ("float32", -9999.0), ("uint8", 255)]
)
def test_nodata_of_an_array_is_only_missing_in_its_band(upscaler, random, dtype, nodata):
    array = random.integers(50, 200, (24, 24, 2)).astype(dtype)
    array[:8, :, 1] = nodata
    other = array.copy()
    other[:8, :, 1] = 33
    value_range = (0, 255)
    result = upscaler.upscale(array, nodata=nodata, value_range=value_range)
    missing = (array == nodata).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(result == nodata, missing)
    expected = upscaler.upscale(other, nodata=33, value_range=value_range)
    # a step beside nodata
    np.testing.assert_allclose(result[~missing], expected[~missing], rtol=0, atol=1)
    of_bands = upscaler.upscale(array, nodata=(3, nodata), value_range=value_range)
    np.testing.assert_array_equal(of_bands[..., 1], result[..., 1])


def test_nodata_of_another_type_or_number_is_refused(upscaler):
    with pytest.raises(UsageError, match="Nodata -1 is not a number of type uint8"):
        upscaler.upscale(np.zeros((8, 8), np.uint8), nodata=-1)
    with pytest.raises(UsageError, match="nodata has 2 numbers, but the image has 3 bands"):
        upscaler.upscale(np.zeros((8, 8, 3)), nodata=(1, 2))


def test_the_robust_range_of_an_array_names_what_fills_it(upscaler, random):
    array = random.random((40, 40), np.float32)
    clean = upscaler.upscale(array, value_range="robust")
    array[:2] = -9999
    with pytest.warns(UndeclaredNodata, match=r"-9999.0 in 5 % of it, .*nodata=NUMBER") as told:
        result = upscaler.upscale(array, value_range="robust")
    assert told[0].filename == __file__
    np.testing.assert_allclose(result[40:], clean[40:], atol=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UndeclaredNodata)
        upscaler.upscale(array, value_range="robust", nodata=-9999)
        as_data = upscaler.upscale(array, value_range="robust", nodata="none")
    np.testing.assert_array_equal(as_data, result)
