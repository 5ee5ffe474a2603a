"""The sensor chains: each fault against a simple form of it, and properties of every chain."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from scipy.ndimage import gaussian_filter

from repmamba.data.degradations import generator_for, jpeg
from repmamba.data.pairs import pair_from_hr
from repmamba.data.sensors import (
    BLURS,
    IDENTITY,
    KERNELS,
    SENSORS,
    Draw,
    Sensor,
    SensorChain,
    reduced,
    sharpened,
)
from repmamba.data.stock import MARGIN
from repmamba.errors import ShapeMismatch, UsageError
from repmamba.pixels.resize import imresize

SCALES = (2, 3, 4)
HR = np.random.default_rng(3).integers(0, 256, (60, 72, 3), np.uint8)
NONE = Draw(0, 0, 0)
CLEAN = Sensor(NONE, NONE, NONE, NONE)


def always(strength):
    return Draw(1, strength, strength)


def lr_of(sensor, hr=HR, scale=2, seed=0):
    return sensor.degrade(hr, scale, generator_for(seed, "x"))


@pytest.mark.parametrize("scale", SCALES)
def test_the_bicubic_kernel_is_matlabs(scale):
    ours = reduced(HR.astype(np.float32), KERNELS["bicubic"](scale), IDENTITY, scale)
    assert np.abs(ours - imresize(HR, 1 / scale)).max() < 1e-3


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("scale", SCALES)
def test_the_area_kernel_is_gdals_average(scale):
    ours = reduced(HR.astype(np.float32), KERNELS["area"](scale), IDENTITY, scale)
    height, width = HR.shape[:2]
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", height=height, width=width, count=3, dtype="float32"
        ) as raster:
            raster.write(np.moveaxis(HR, 2, 0).astype(np.float32))
        with file.open() as raster:
            shape = (3, height // scale, width // scale)
            theirs = np.moveaxis(raster.read(out_shape=shape, resampling=Resampling.average), 0, 2)
    assert np.abs(ours - theirs).max() < 1e-3


@pytest.mark.parametrize("scale", SCALES)
def test_the_lanczos_kernel_is_pillows_away_from_the_edges(scale):
    ours = reduced(HR.astype(np.float32), KERNELS["lanczos"](scale), IDENTITY, scale)
    band = Image.fromarray(HR[..., 1].astype(np.float32))
    size = (HR.shape[1] // scale, HR.shape[0] // scale)
    theirs = np.asarray(band.resize(size, Image.Resampling.LANCZOS))
    assert np.abs(ours[..., 1] - theirs)[3:-3, 3:-3].max() < 0.02


@pytest.mark.parametrize("name", BLURS)
@pytest.mark.parametrize("sigma", [0.0, 0.4, 1.5, 6.4])
def test_a_blur_has_its_sigma_keeps_a_constant_image_and_does_not_shift(name, sigma):
    kernel = sum(np.outer(rows, cols) for rows, cols in BLURS[name](sigma, np.array([0.5, 0.2])))
    reach = len(kernel) // 2
    places = np.arange(-reach, reach + 1)
    assert kernel.shape == (2 * reach + 1, 2 * reach + 1)
    assert kernel.sum() == pytest.approx(1, abs=1e-4)
    assert np.allclose(kernel, kernel[::-1, ::-1], atol=1e-3 * kernel.max())  # symmetric
    spread = [
        [(kernel * a * b).sum() for a in (places[:, None], places)]
        for b in (places[:, None], places)
    ]
    widest = np.sqrt(np.linalg.eigvalsh(np.array(spread))[-1])
    # A box includes the width of a pixel, 0.29; a Gaussian is cut off.
    assert widest == pytest.approx(sigma, rel=0.06, abs=0.3 if sigma < 1 else 0.0)


def test_a_stretched_blur_is_narrower_across():
    kernel = sum(
        np.outer(rows, cols) for rows, cols in BLURS["stretched"](4.0, np.array([0.0, 0.0]))
    )
    places = np.arange(len(kernel)) - len(kernel) // 2
    spreads = [np.sqrt((kernel.sum(axis) * places**2).sum()) for axis in (1, 0)]
    assert spreads == pytest.approx([1.0, 4.0], rel=0.05)  # rows, columns


def test_blur_and_downsampling_in_one_pass_equal_two_passes():
    blurred = gaussian_filter(HR.astype(float), (3, 3, 0), mode="reflect", radius=9)
    ours = reduced(
        HR.astype(np.float32), KERNELS["bicubic"](4), BLURS["gaussian"](3.0, np.zeros(2)), 4
    )
    assert np.abs(ours - imresize(blurred, 1 / 4)).max() < 1e-2


def test_a_patch_with_its_margin_equals_the_whole_image_there():
    sensor = replace(CLEAN, blur=always(1.6))
    rows, cols = slice(4 * 20, 4 * 50), slice(4 * 30, 4 * 60)
    hr = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    for seed in range(12):  # all shapes and kernels
        whole = lr_of(sensor, hr, 4, seed)[20:50, 30:60][MARGIN:-MARGIN, MARGIN:-MARGIN]
        patch = lr_of(sensor, hr[rows, cols], 4, seed)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        assert np.abs(whole.astype(int) - patch).max() <= 1


def test_noise_has_its_standard_deviation_and_is_grey_in_half_of_the_images():
    flat, grey = np.full((256, 256, 3), 120, np.uint8), []
    for seed in range(40):
        lr = lr_of(replace(CLEAN, noise=always(6)), flat, seed=seed).astype(float) - 120
        assert lr.std() == pytest.approx(6, rel=0.03)
        shared = np.corrcoef(lr.reshape(-1, 3).T)[0, 1]
        assert np.ptp(lr, axis=2).max() == 0 if shared > 0.5 else abs(shared) < 0.03
        grey.append(shared > 0.5)
    assert 10 < sum(grey) < 30


def test_halos_overshoot_at_an_edge_and_leave_constant_areas_unchanged():
    edge = np.full((64, 64, 1), 0.3, np.float32)
    edge[:, 32:] = 0.6
    result = sharpened(edge, 0.8, 1.0)
    assert 0.6 + 0.05 < result.max() < 0.6 + 0.8 * 0.3
    assert np.abs(result[:, :24] - 0.3).max() < 1e-4
    smooth = gaussian_filter(edge.astype(float), (1, 1, 0), mode="reflect", radius=3)
    assert np.abs(result - (edge + 0.8 * (edge - smooth))).max() < 1e-5


def test_jpeg_subsamples_chroma_as_pillow_does():
    for halved, subsampling in ((False, 0), (True, 2)):
        packed = io.BytesIO()
        Image.fromarray(HR).save(packed, "JPEG", quality=50, subsampling=subsampling)
        assert np.array_equal(jpeg(HR, 50, subsample=halved), np.asarray(Image.open(packed)))


def test_jpeg_blocks_may_begin_at_any_pixel():
    sensor = replace(CLEAN, quality=always(10))
    ramp = np.broadcast_to(np.linspace(0, 255, 160)[None, :, None], (160, 160, 3)).astype(np.uint8)
    first = {
        int(
            np.abs(np.diff(lr_of(sensor, ramp, seed=seed)[..., 0].astype(int), axis=1))
            .sum(0)[8:]
            .argmax()
            % 8
        )
        for seed in range(24)
    }
    assert len(first) > 4


@pytest.mark.parametrize("name", SENSORS)
@pytest.mark.parametrize("bands", [1, 3])
def test_a_chain_keeps_shape_and_type_and_is_reproducible(name, bands):
    chain, hr = SensorChain(name, 3), HR[..., :bands]
    for seed in range(6):
        lr = chain(hr, generator_for(seed, "x"))
        assert (lr.shape, lr.dtype) == ((20, 24, bands), np.uint8)
        assert np.array_equal(lr, chain(hr, generator_for(seed, "x")))
    assert not np.array_equal(chain(hr, generator_for(0, "x")), chain(hr, generator_for(1, "x")))


def test_a_quarter_of_the_training_images_is_plain_bicubic():
    plain = pair_from_hr("x", HR, 4).lr
    clean = [
        np.array_equal(SensorChain("sensor", 4)(HR, generator_for(0, str(n))), plain)
        for n in range(400)
    ]
    assert 0.19 < np.mean(clean) < 0.31
    for name in ("mild", "middle", "strong"):
        assert SENSORS[name].clean == 0


def test_the_three_strengths_are_ordered():
    ground = gaussian_filter(np.random.default_rng(0).normal(120, 300, (256, 256, 3)), (3, 3, 0))
    hr = ground.clip(0, 255).astype(np.uint8)
    plain = pair_from_hr("x", hr, 4).lr.astype(float)
    errors = [
        np.mean(
            [(SensorChain(name, 4)(hr, generator_for(0, str(n))) - plain).std() for n in range(20)]
        )
        for name in ("mild", "middle", "strong")
    ]
    assert errors[2] > 1.2 * errors[1] > 1.2**2 * errors[0]


def test_unsuitable_images_and_unknown_chains_are_refused():
    with pytest.raises(ShapeMismatch, match="multiples of 4"):
        SensorChain("mild", 4)(HR[:58], generator_for(0, "x"))
    with pytest.raises(ShapeMismatch, match=r"of uint16 .* give \(H, W, C\) uint8"):
        SensorChain("mild", 4)(HR.astype(np.uint16), generator_for(0, "x"))
    with pytest.raises(ShapeMismatch, match=r"give \(H, W, 1\) or \(H, W, 3\)"):
        SensorChain("mild", 4)(HR[..., [0, 1, 2, 0]], generator_for(0, "x"))
    with pytest.raises(
        UsageError, match="no chain 'fog'; choose among sensor, mild, middle, strong"
    ):
        SensorChain("fog", 4)
