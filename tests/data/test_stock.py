"""A batch is cut as NumPy would cut it, wherever the pixels are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, sampled_from
from PIL import Image

from repmamba.data.degradations import Chain, Stage
from repmamba.data.pairs import Pair, find_pairs, pair_from_hr
from repmamba.data.patches import Phase, Sample, Sampler
from repmamba.data.stock import load_stock, stock_of
from repmamba.errors import CorruptSource, ShapeMismatch, TargetError, UsageError


def noise_pair(name: str, height: int, width: int, scale: int, seed: int) -> Pair:
    """A pair whose lr is unrelated to its hr, so that swapping them is detected."""
    draw = np.random.default_rng(seed)
    lr = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Pair(
        name, lr, draw.integers(0, 256, (scale * height, scale * width, 3)).astype(np.uint8)
    )


def laid(image: np.ndarray, row: int, col: int, size: int, sample: Sample) -> np.ndarray:
    """The patch of a sample in the simplest form: mirror, crop, flip, transpose."""
    mirrored = np.pad(image, ((0, size), (0, size), (0, 0)), mode="symmetric")
    patch = mirrored[row : row + size, col : col + size]
    patch = patch[::-1] if sample.flipped_rows else patch
    patch = patch[:, ::-1] if sample.flipped_cols else patch
    return patch.transpose(1, 0, 2) if sample.transposed else patch


@settings(max_examples=60)
@given(
    height=integers(2, 12),
    width=integers(2, 12),
    scale=sampled_from([2, 3, 4]),
    size=integers(2, 8),
    flipped_rows=booleans(),
    flipped_cols=booleans(),
    transposed=booleans(),
    seed=integers(0, 1000),
)
def test_a_patch_equals_numpys_crop_flip_and_transpose_for_any_shape(
    height, width, scale, size, flipped_rows, flipped_cols, transposed, seed
):
    pairs = [
        noise_pair("other", 3, 5, scale, seed + 1),
        noise_pair("this", height, width, scale, seed),
    ]
    row, col = max(height - size, 0), max(width - size, 0) // 2
    sample = Sample(1, row, col, flipped_rows, flipped_cols, transposed, (0, 0, 0))

    lr, hr = stock_of(pairs, scale).batch([sample], size)

    assert lr.shape == (1, 3, size, size)
    np.testing.assert_array_equal(
        (lr[0] * 255).permute(1, 2, 0).numpy(), laid(pairs[1].lr, row, col, size, sample)
    )
    expected = laid(pairs[1].hr, scale * row, scale * col, scale * size, sample)
    np.testing.assert_array_equal((hr[0] * 255).permute(1, 2, 0).numpy(), expected)


@settings(max_examples=40)
@given(height=integers(2, 12), width=integers(2, 12), size=integers(2, 9), seed=integers(0, 99))
def test_lr_and_hr_show_the_same_ground_even_if_a_patch_is_larger_than_its_image(
    height, width, size, seed
):
    lr = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    stock = stock_of([Pair("blocks", lr, lr.repeat(2, axis=0).repeat(2, axis=1))], 2)
    sampler = Sampler(
        seed, stock.sizes, (Phase(size=size, batch=4),), ("flips", "transpose", "rotations")
    )

    small, large = stock.batch(sampler.samples(0), size)

    assert torch.equal(small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), large)


def test_rotations_equal_numpys():
    lr = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
    stock = stock_of([Pair("square", lr, lr.repeat(2, axis=0).repeat(2, axis=1))], 2)
    sampler = Sampler(3, stock.sizes, (Phase(size=4, batch=1),), ("rotations",))
    seen = {
        stock.batch(sampler.samples(step), 4)[0][0, 0].mul(255).byte().numpy().tobytes()
        for step in range(40)
    }
    assert seen == {np.rot90(lr[..., 0], turns).tobytes() for turns in range(4)}


def pictures(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for number in range(count):
        draw = np.random.default_rng(number)
        Image.fromarray(draw.integers(0, 256, (21 + number, 30, 3)).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


def test_a_mapped_stock_equals_one_in_memory_and_is_not_decoded_twice(tmp_path):
    files = find_pairs(pictures(tmp_path / "images"))
    cache = tmp_path / "cache"
    memory, first = load_stock(files, 4), load_stock(files, 4, cache=cache)
    written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    again = load_stock(files, 4, cache=cache)
    samples = Sampler(1, memory.sizes, (Phase(size=4, batch=8),), ("flips", "transpose")).samples(0)

    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == written
    for stock in (first, again):
        assert all(
            torch.equal(a, b)
            for a, b in zip(stock.batch(samples, 4), memory.batch(samples, 4), strict=True)
        )


def test_progress_counts_decoded_images_and_is_not_called_for_cached_ones(tmp_path):
    files, seen = find_pairs(pictures(tmp_path / "images")), []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        seen.append([])
        load_stock(
            files, 2, cache=cache, progress=lambda done, total: seen[-1].append((done, total))
        )
    assert seen == [[(done, 4) for done in range(1, 5)]] * 2 + [[]]


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    pictures(tmp_path / "images", 2)
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(CorruptSource):
        load_stock(find_pairs(tmp_path / "images"), 2, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(TargetError, match="cannot be written"):
        load_stock(
            find_pairs(pictures(tmp_path / "others")),
            2,
            cache=tmp_path / "others" / "0.png" / "cache",
        )


def test_the_index_of_a_cache_is_renamed_after_the_pixels_are_on_the_disk(tmp_path, disk_events):
    load_stock(find_pairs(pictures(tmp_path / "images", 1)), 2, cache=tmp_path / "cache")
    named = [name for event, name in disk_events if event == "replace"]
    assert [Path(name).suffix for name in named] == [".lr", ".hr", ".json"]
    before = disk_events[: disk_events.index(("replace", named[2]))]
    synced = [name for event, name in before if event == "fsync"]
    assert [name.removesuffix(".part").rpartition(".")[0] for name in synced[:3]] == named
    assert before[-1] == ("fsync", "cache")
    assert [event for event in disk_events if event[0] != "unlink"][-1] == ("fsync", "cache")


def test_a_changed_file_is_decoded_again(tmp_path):
    folder = pictures(tmp_path / "images", 1)
    first = load_stock(find_pairs(folder), 2, cache=tmp_path / "cache")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "0.png")
    assert first.sizes == ((10, 15),)
    assert load_stock(find_pairs(folder), 2, cache=tmp_path / "cache").sizes == ((20, 20),)


def test_a_file_of_the_same_length_with_other_bytes_is_decoded_again(tmp_path):
    path, lengths, levels = pictures(tmp_path / "images", 1) / "0.png", set(), []
    for level in (10, 200):
        Image.fromarray(np.full((40, 40, 3), level, np.uint8)).save(path, compress_level=0)
        os.utime(path, ns=(level, level))
        lengths.add(path.stat().st_size)
        stock = load_stock(find_pairs(path.parent), 2, cache=tmp_path / "cache")
        _, hr = stock.batch([Sample(0, 0, 0, False, False, False, (0, 0, 0))], 4)
        levels.append(round(255 * hr.max().item()))
    assert (len(lengths), levels) == (1, [10, 200])


def test_a_degraded_patch_depends_only_on_its_sample():
    stock = stock_of([noise_pair("a", 12, 14, 2, 0), noise_pair("b", 9, 30, 2, 1)], 2)
    chain = Chain(2, (Stage("blur", 0.5, 2), Stage("noise", 2, 9)))
    samples = Sampler(5, stock.sizes, (Phase(size=6, batch=4),), ("flips",)).samples(0)
    lr, hr = stock.batch(samples, 6, seed=5, degrade=chain)
    alone, _ = stock.batch(samples[2:3], 6, seed=5, degrade=chain)
    assert torch.equal(lr[2:3], alone)
    assert lr.shape == (4, 3, 6, 6)
    assert hr.shape == (4, 3, 12, 12)


def test_a_chain_without_stages_equals_bicubic_of_the_whole_image():
    hr = np.random.default_rng(0).integers(0, 256, (80, 96, 3)).astype(np.uint8)
    stock = stock_of([pair_from_hr("a", hr, 4)], 4)
    samples = [Sample(0, 5, 6, False, False, False, (0, 0, 0))]
    plain, _ = stock.batch(samples, 8)
    degraded, _ = stock.batch(samples, 8, degrade=Chain(4))
    assert torch.equal(plain, degraded)


def test_16_bit_images_become_unit():
    hr = np.full((8, 8, 2), 65535, np.uint16)
    lr, _ = stock_of([pair_from_hr("a", hr, 2)], 2).batch(
        [Sample(0, 0, 0, False, False, False, (0, 0, 0))], 4
    )
    assert lr.shape == (1, 2, 4, 4)
    assert torch.equal(lr, torch.ones_like(lr))


def test_mixed_kinds_of_images_and_no_images_are_refused():
    with pytest.raises(ShapeMismatch, match="b has scale 2, 1 bands"):
        stock_of(
            [noise_pair("a", 4, 4, 2, 0), pair_from_hr("b", np.zeros((8, 8, 1), np.uint8), 2)], 2
        )
    with pytest.raises(UsageError, match="no images"):
        load_stock([], 2)
