import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from repmamba.data.images import write_png
from repmamba.data.pairs import Pair, pair_from_hr
from repmamba.errors import ShapeMismatch, SourceError, UsageError
from repmamba.evaluate.methods import (
    bicubic,
    distinct_names,
    nearest,
    network,
    results,
    with_distinct_names,
)
from repmamba.inference.loading import load
from repmamba.pixels.resize import imresize

HR = np.random.default_rng(5).integers(0, 256, (16, 24, 3), np.uint8)


@pytest.fixture(scope="module")
def upscaler(tiny_weights):
    return load(tiny_weights(), device="cpu")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory, tiny_weights):
    """The weights of two runs, with the same file name."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        (folder / f"run{seed}").mkdir()
        shutil.copy(tiny_weights(seed=seed), folder / f"run{seed}" / "best.safetensors")
    return [str(folder / f"run{seed}" / "best.safetensors") for seed in (1, 2)]


@pytest.fixture
def pair():
    return pair_from_hr("Airport/a_1", HR, 2)


def test_nearest_repeats_and_bicubic_is_neither_rounded_nor_clipped(pair):
    assert np.array_equal(nearest().enlarge(pair)[::2, ::2], pair.lr)
    edge = pair_from_hr(
        "x", np.where(np.arange(16)[:, None, None] < 8, 0, 255).repeat(16, 1).astype(np.uint8), 2
    )
    sr = bicubic().enlarge(edge)
    assert np.array_equal(sr, imresize(edge.lr / 255.0, 2))
    assert sr.min() < 0 < 1 < sr.max()


def test_a_network_gives_the_result_of_its_forward_pass(upscaler, pair):
    method = network(upscaler)
    unit = torch.from_numpy(pair.lr / 255.0).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = upscaler.network(unit)[0].permute(1, 2, 0).numpy()
    assert np.abs(method.enlarge(pair) - expected).max() < 1e-5
    assert (method.name, method.scale, method.passes) == ("small", 2, 1)


def test_a_network_takes_other_bands_and_types_and_refuses_another_scale(upscaler):
    thirteen = np.random.default_rng(6).integers(0, 65536, (8, 8, 13), np.uint16)
    sr = network(upscaler).enlarge(pair_from_hr("x", thirteen, 2))
    assert sr.shape == (8, 8, 13)
    assert np.issubdtype(sr.dtype, np.floating)
    with pytest.raises(ShapeMismatch, match="is an x4 pair, and small enlarges x2"):
        network(upscaler).enlarge(pair_from_hr("x", HR, 4))


def test_tiles_are_described_and_change_little(upscaler):
    tiled = network(upscaler, tile=8)
    assert (
        "tiles of 8 lr pixels, values over the type's whole range, without back-projection"
        in tiled.how
    )
    wide = pair_from_hr("x", np.tile(HR, (1, 3, 1)), 2)  # too wide for a tile to read all of it
    change = np.abs(tiled.enlarge(wide) - network(upscaler).enlarge(wide))
    assert change.shape == wide.hr.shape
    assert 0 < change.max() < 0.1


def test_an_odd_image_is_enlarged_in_one_pass_and_an_odd_tile_is_refused(upscaler):
    odd = pair_from_hr("x", HR[:14, :22], 2)  # lr 7 x 11
    with torch.no_grad():
        unit = torch.from_numpy(odd.lr / 255.0).float().permute(2, 0, 1)[None]
        expected = upscaler.network(unit)[0].permute(1, 2, 0).numpy()
    assert np.abs(network(upscaler).enlarge(odd) - expected).max() < 1e-5
    with pytest.raises(UsageError, match="tile=31: expected an even number"):
        network(upscaler, tile=31)


def test_the_ensemble_is_the_mean_over_flips_and_rotations(upscaler, pair):
    method = network(upscaler, ensemble=True)
    lr = (pair.lr / 255.0).astype(np.float32)
    once = network(upscaler).enlarge
    expected = []
    for turns in range(4):
        for flip in (lambda image: image, np.flipud):
            turned = np.rot90(flip(lr), turns)
            size = (2 * turned.shape[0], 2 * turned.shape[1], 3)
            expected.append(
                flip(np.rot90(once(Pair("x", turned, np.zeros(size, np.float32))), -turns))
            )
    assert np.abs(method.enlarge(pair) - np.mean(expected, 0)).max() < 1e-5
    assert (method.name, method.passes) == ("small+", 8)


def test_an_ensemble_in_tiles_equals_upscales(upscaler):
    wide = pair_from_hr("x", np.tile(HR, (1, 3, 1)), 2)
    lr = (wide.lr / 255.0).astype(np.float32)
    asked = replace(upscaler, ensemble=True, halo=4).upscale(lr, tile=8)
    assert np.array_equal(
        network(replace(upscaler, halo=4), ensemble=True, tile=8).enlarge(wide), asked
    )


@pytest.mark.parametrize("name", ["Airport/a_1.png", "a_1.png", "Airport/a_1_x2.png", "a_1_x2.png"])
def test_results_made_elsewhere_are_found_by_name(tmp_path, pair, name):
    write_png(tmp_path / name, HR)
    assert np.array_equal(results(tmp_path).enlarge(pair), HR)


def test_results_that_lack_an_image_or_have_another_size_are_refused(tmp_path, pair):
    write_png(tmp_path / "b.png", HR)
    with pytest.raises(SourceError, match="has no result for Airport/a_1"):
        results(tmp_path).enlarge(pair)
    write_png(tmp_path / "a_1.png", HR[:8])
    with pytest.raises(ShapeMismatch, match="result for Airport/a_1"):
        results(tmp_path).enlarge(pair)


def test_a_name_that_fits_two_results_is_refused(tmp_path, pair):
    write_png(tmp_path / "x" / "a_1.png", HR)
    write_png(tmp_path / "y" / "a_1.png", HR)
    with pytest.raises(UsageError, match="2 results named a_1"):
        results(tmp_path).enlarge(pair)


@pytest.mark.parametrize(
    ("origins", "names"),
    [
        (["/runs/a/best", "/runs/b/best"], ["a/best", "b/best"]),
        (["/p1/o/s", "/p2/o/s", "/p3/o/s"], ["p1/o/s", "p2/o/s", "p3/o/s"]),
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/o/s", "/p/o/s"], ["o/s", "p/o/s"]),
        (["/s", "/o/s", None], ["s", "o/s", "none"]),
        (["/runs/a/none", None], ["a/none", "none"]),
        (["/a/x", "/a/x"], ["a/x", "a/x"]),
    ],
)
def test_names_get_as_many_parent_folders_as_make_them_distinct(origins, names):
    paths = [origin and Path(origin) for origin in origins]
    assert distinct_names([path.name if path else "none" for path in paths], paths) == names


def test_weights_of_two_runs_get_distinct_names_and_packaged_ones_keep_theirs(two_runs, upscaler):
    methods = [
        network(load(name, device="cpu"), name, ensemble=ensemble)
        for name in two_runs
        for ensemble in (False, True)
    ]
    assert [method.name for method in with_distinct_names([*methods, bicubic()])] == [
        "run1/best",
        "run1/best+",
        "run2/best",
        "run2/best+",
        "bicubic",
    ]
    assert network(upscaler, "x4").origin is None


def test_results_in_the_current_folder_have_its_name(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    assert results(Path(".")).name == "theirs"
