"""LPIPS and DISTS against the authors' packages, on networks with random weights."""

import numpy as np
import pytest
import torch

from repmamba.data.images import write_png
from repmamba.data.pairs import pair_from_hr
from repmamba.errors import MissingExtra, ShapeMismatch
from repmamba.evaluate import perceptual
from repmamba.evaluate.evaluation import evaluate_folders
from repmamba.evaluate.metrics import METRICS

ALEXNET = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))
VGG16 = tuple(
    (place, before, after, 3)
    for place, before, after in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        strict=True,
    )
)


def features(layers, seed):
    draw = np.random.default_rng(seed)
    numbers = {}
    for place, before, after, edge in layers:
        weight = draw.normal(0, (2 / (before * edge * edge)) ** 0.5, (after, before, edge, edge))
        numbers[f"features.{place}.weight"] = torch.from_numpy(weight.astype(np.float32))
        numbers[f"features.{place}.bias"] = torch.from_numpy(
            draw.normal(0, 0.1, after).astype(np.float32)
        )
    return numbers


def heads(package, ending):
    if package == "lpips":
        counts = (64, 192, 384, 256, 256)
        return {
            f"lin{n}.model.1.weight": torch.linspace(0, 1, c).view(1, c, 1, 1)
            for n, c in enumerate(counts)
        }
    return {name: torch.linspace(0.05, 0.2, 1475).view(1, -1, 1, 1) for name in ("alpha", "beta")}


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """Random networks in torch's cache, and known heads in place of the packages'."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for name, layers in (("alexnet", ALEXNET), ("vgg16", VGG16)):
        torch.save(
            features(layers, seed=5), tmp_path / "hub" / "checkpoints" / perceptual.BACKBONES[name]
        )
    monkeypatch.setattr(perceptual, "_head", heads)
    yield
    torch.hub.set_dir(before)
    forget()


def forget():
    perceptual._lpips_network.cache_clear()
    perceptual._dists_network.cache_clear()


def images(height, width):
    draw = np.random.default_rng(1)
    hr = draw.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return np.clip(hr + draw.normal(0, 20, hr.shape), 0, 255), hr


# Of lpips 0.1.4 (net="alex") and DISTS-pytorch 0.1 with the numbers above.
@pytest.mark.parametrize(
    ("size", "lpips", "dists"),
    [((64, 80), 0.06048395, 0.00667906), ((33, 47), 0.05255548, 0.00734288)],
)
def test_the_distances_match_the_authors_packages(numbers, size, lpips, dists):
    sr, hr = images(*size)
    assert perceptual.lpips(sr, hr) == pytest.approx(lpips, rel=1e-4)
    assert perceptual.dists(sr, hr) == pytest.approx(dists, rel=1e-3)


def test_equal_images_have_distance_0_and_noise_increases_it(numbers):
    sr, hr = images(48, 48)
    for measure in (perceptual.lpips, perceptual.dists):
        assert measure(hr, hr) == pytest.approx(0, abs=1e-6)
        assert 0 < measure((hr + 0.25 * (sr - hr)), hr) < measure(sr, hr)
        with pytest.raises(ShapeMismatch, match="at least 32x32 pixels, and this one has 31x48"):
            measure(sr[:31], hr[:31])


def test_they_can_be_used_in_an_evaluation(numbers, tmp_path):
    pair = pair_from_hr("one", images(64, 64)[1], 2)
    write_png(tmp_path / "pairs" / "one.png", pair.hr)
    scores = evaluate_folders(
        tmp_path / "pairs", methods="nearest", scale=2, rules="perceptual"
    ).scores
    assert [metric.name for metric in scores.metrics] == ["perceptual.lpips", "perceptual.dists"]
    nearest = pair.lr.repeat(2, 0).repeat(2, 1)
    found = scores.of("pairs", "nearest", "perceptual.lpips")["one"]
    assert found == pytest.approx(perceptual.lpips(nearest, pair.hr), rel=1e-5)
    assert not METRICS["perceptual.dists"].higher_is_better


def test_missing_weights_are_reported_before_anything_is_enlarged(numbers, tmp_path, monkeypatch):
    forget()
    (tmp_path / "hub" / "checkpoints" / perceptual.BACKBONES["alexnet"]).unlink()
    pair = pair_from_hr("one", images(64, 64)[1], 2)
    write_png(tmp_path / "pairs" / "one.png", pair.hr)
    with pytest.raises(
        MissingExtra, match=r"alexnet-owt-7be5be79\.pth is missing.*torchvision\.models\.alexnet"
    ):
        evaluate_folders(tmp_path / "pairs", methods="nearest", scale=2, rules="perceptual.lpips")
    (tmp_path / "hub" / "checkpoints" / perceptual.BACKBONES["alexnet"]).write_bytes(
        b"half a download"
    )
    with pytest.raises(MissingExtra, match="cannot be read as weights"):
        perceptual.lpips(*images(64, 64))
    monkeypatch.undo()
    with pytest.raises(MissingExtra, match=r"pip install 'repmamba\[perceptual\]'"):
        perceptual._head("no-such-package", "weights.pt")
