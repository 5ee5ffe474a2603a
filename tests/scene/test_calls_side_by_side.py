"""Calls side by side in one process: the same bytes as alone, and nothing of the process is changed
after them.
"""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import rasterio
from rasterio.env import get_gdal_config, set_gdal_config

from repmamba import upscale_file
from repmamba.gdal import CACHE, CACHE_BYTES, bounded_cache, settings, write_out_blocks
from repmamba.scene.source.admission import ReadOptions
from repmamba.scene.source.raster import open_raster


@pytest.fixture
def masked_scene(write_raster, smooth):
    """uint8 RGB with an internal mask: its result, at x2, is written in several windows."""
    mask = np.ones((300, 1200), bool)
    mask[:40, :70] = False
    return write_raster("scene.tif", smooth(3, 300, 1200), mask=mask)


def bytes_of(folder, scene, upscaler, **options):
    folder.mkdir(exist_ok=True)
    target = folder / ("out" + options.pop("suffix", ".tif"))
    upscale_file(scene, target, upscaler, overwrite=True, **options)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("suffix", [".tif", ".cog.tif", ".jpg"])
def test_a_cache_that_others_fill_changes_no_byte_of_a_result(
    masked_scene, bicubic, tmp_path, suffix
):
    alone = bytes_of(tmp_path / "alone", masked_scene, bicubic, suffix=suffix)
    flushed = bytes_of(
        tmp_path / "flushed",
        masked_scene,
        bicubic,
        suffix=suffix,
        assembling=lambda *_: write_out_blocks(),
    )

    def no_cache(*_):
        set_gdal_config(CACHE, 64)

    without = bytes_of(
        tmp_path / "without", masked_scene, bicubic, suffix=suffix, assembling=no_cache
    )
    assert alone == flushed == without


def test_threads_that_share_an_upscaler_write_the_same_bytes_and_leave_the_process_as_it_was(
    masked_scene, bicubic, tmp_path
):
    options = ("GDAL_TIFF_INTERNAL_MASK", "GDAL_PAM_ENABLED", "GDAL_DISABLE_READDIR_ON_OPEN", CACHE)
    alone = bytes_of(tmp_path / "alone", masked_scene, bicubic)
    filters, before = list(warnings.filters), [get_gdal_config(name) for name in options]
    found = {}
    threads = [
        threading.Thread(
            target=lambda n=n: found.update({n: bytes_of(tmp_path / str(n), masked_scene, bicubic)})
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] == alone for n in range(4)] == [True] * 4
    assert list(warnings.filters) == filters
    assert [get_gdal_config(name) for name in options] == before


def in_another_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_a_strangers_file_takes_side_cars_from_no_other_thread(write_raster, smooth):
    data = smooth(1, 40, 40, "uint16", 300, 4000)
    path = write_raster("scene.tif", data)
    path.with_name("scene.tif.aux.xml").write_text(
        f"<PAMDataset><PAMRasterBand band='1'><NoDataValue>{data[0, 3, 5]}</NoDataValue>"
        "</PAMRasterBand></PAMDataset>"
    )

    def missing(raster):
        return int((~raster.read(raster.whole)[1]).sum())

    def opened_and_read():
        with open_raster(path) as raster:
            return raster.facts.nodata, missing(raster)

    alone = opened_and_read()
    assert alone[1] > 0
    with open_raster(path, ReadOptions(untrusted=True)) as strangers:
        assert strangers.facts.nodata is None
        assert in_another_thread(opened_and_read) == alone
        assert in_another_thread(lambda: missing(strangers)) == missing(strangers) == 0
    assert opened_and_read() == alone


def test_options_of_gdal_hold_for_one_thread_and_until_its_own_end():
    name = "GDAL_PNG_WHOLE_IMAGE_OPTIM"
    assert get_gdal_config(name) is None
    with ExitStack() as first, settings({name: "NO"}):
        first.enter_context(settings({name: "YES"}))
        assert in_another_thread(lambda: get_gdal_config(name, normalize=False)) is None
        assert get_gdal_config(name, normalize=False) == "YES"

        def overlapping():
            with settings({name: "MAYBE"}):
                in_another_thread(lambda: settings({name: "NO"}).__enter__())
                return get_gdal_config(name, normalize=False)

        assert in_another_thread(overlapping) == "MAYBE"
        first.close()
        assert get_gdal_config(name, normalize=False) == "NO"
    assert get_gdal_config(name) is None


def test_the_size_of_the_cache_is_put_back_by_the_last_one_out():
    before = get_gdal_config(CACHE)
    first, second = bounded_cache(), bounded_cache()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert get_gdal_config(CACHE) == CACHE_BYTES
    write_out_blocks()
    assert get_gdal_config(CACHE) == CACHE_BYTES
    second.__exit__(None, None, None)
    assert get_gdal_config(CACHE) == before


def test_nodata_beside_alpha_is_no_reason_to_warn(write_raster, smooth, bicubic):
    data = smooth(4, 40, 40)
    data[:, :10] = 0
    path = write_raster("in.tif", data, photometric="RGB", alpha="YES", nodata=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in (".tif", ".cog.tif"):
            upscale_file(path, path.with_name(f"out{suffix}"), bicubic, alpha=False)
    with rasterio.open(path.with_name("out.tif")) as file:
        assert file.nodata == 0
        np.testing.assert_array_equal(
            file.read_masks(4) == 0, np.arange(80)[:, None].repeat(80, 1) < 20
        )


def test_a_picture_without_a_place_is_no_reason_to_warn(bicubic, smooth, tmp_path):
    from PIL import Image

    Image.fromarray(np.moveaxis(smooth(3, 40, 40), 0, -1)).save(tmp_path / "in.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in (".png", ".tif", ".jpg", ".cog.tif"):
            upscale_file(tmp_path / "in.png", tmp_path / f"out{suffix}", bicubic)
