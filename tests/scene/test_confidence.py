"""The second raster: what it holds and says of itself, and that both files are absent or whole,
whatever happens.
"""

import errno
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from repmamba.errors import NoSpace, RepmambaError, TargetError, TargetExists, UsageError
from repmamba.inference.confidence import Calibration, doubt, rounded
from repmamba.inference.upscaler import Upscaler
from repmamba.pixels.resize import imresize_torch
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.result import space
from repmamba.scene.result.readback import verify_result
from repmamba.scene.result.receipt import read_receipt, receipt_path
from repmamba.scene.result.writer import SceneWriter
from repmamba.tiles.window import Window

from .conftest import bicubic_upscaler

TABLE = Calibration("0" * 32, "made pictures", (0.0, 0.05, 0.5), (0.004, 0.02, 0.3))


@dataclass(frozen=True)
class LeaningRunner:
    """Bicubic, and a pixel's left neighbour a little: what the eight do not agree on, and near
    pixels alone decide.
    """

    scale: int = 2
    bands: int = 3

    def run(self, unit: torch.Tensor) -> torch.Tensor:
        leaning = torch.cat([unit[..., :1], unit[..., :-1]], -1)
        return imresize_torch(unit, self.scale) + 0.2 * imresize_torch(leaning - unit, self.scale)


def leaning_upscaler(**changes: Any) -> Upscaler:
    return replace(bicubic_upscaler(), runner=LeaningRunner(), calibration=TABLE, **changes)


def both(
    path: Path, folder: Path, upscaler: Upscaler | None = None, **settings: Any
) -> tuple[Path, Path]:
    """The result and its confidence."""
    folder.mkdir(exist_ok=True)
    targets = folder / "out.tif", folder / "trust.tif"
    upscale_file(
        path, targets[0], upscaler or leaning_upscaler(), confidence=targets[1], **settings
    )
    return targets


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_it_holds_what_the_table_says_of_the_doubt_in_the_results_own_numbers(
    write_raster, smooth, tmp_path
):
    data = smooth(3, 40, 50, "uint16", 300, 4000)
    path = write_raster("in.tif", data, photometric="RGB")
    out, trust = both(path, tmp_path / "x", value_range=(300, 4300), consistent=False)
    unit = ((data - 300.0) / 4000).astype(np.float32)
    sr, variance = leaning_upscaler().enlarge_with_variance(unit)
    expected = 4000 * TABLE.expected_error(doubt(sr, variance).numpy())
    found = read(trust)
    assert found.shape == (1, 80, 100)
    assert np.ptp(found) > 10
    np.testing.assert_allclose(found[0], expected, rtol=1 / 1000)
    np.testing.assert_allclose(read(out), 300 + 4000 * sr.numpy(), atol=0.51)


def test_the_result_is_that_of_the_ensemble_to_the_byte(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 90, 70), photometric="RGB")
    out, _ = both(path, tmp_path / "x")
    upscale_file(path, tmp_path / "out.tif", leaning_upscaler(ensemble=True))
    assert out.read_bytes() == (tmp_path / "out.tif").read_bytes()
    assert receipt_path(out).read_bytes() == receipt_path(tmp_path / "out.tif").read_bytes()


def test_it_lies_on_the_grid_of_the_result_and_says_what_it_is(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(4, 30, 40, "int16", 0, 5000), photometric="RGB", nodata=-1)
    with rasterio.open(path, "r+") as file:
        file.units, file.scales = ("K",) * 4, (0.5,) * 4
    out, trust = both(path, tmp_path / "x")
    with rasterio.open(out) as result, rasterio.open(trust) as file:
        assert (file.shape, file.transform, file.crs) == (
            result.shape,
            result.transform,
            result.crs,
        )
        assert file.dtypes == ("float32", "float32")
        assert np.isnan(file.nodata)
        assert file.descriptions == (
            "expected absolute error of bands 1, 2, 3",
            "expected absolute error of band 4",
        )
        assert (file.units, file.scales, file.offsets) == (("K", "K"), (0.5, 0.5), (0.0, 0.0))
        tags = file.tags()
        assert tags["CONFIDENCE_OF"] == "out.tif"
        assert tags["CONFIDENCE_MEASURED_ON"] == "made pictures"
        assert "absolute error to expect" in tags["CONFIDENCE_IS"]
        assert tags["SUPER_RESOLUTION_SCALE"] == "2"
        assert tags["AREA_OR_POINT"] == result.tags()["AREA_OR_POINT"]
    verify_result(trust, read_receipt(receipt_path(trust)))


def test_it_is_missing_where_the_result_is_and_where_a_band_of_its_group_is(
    write_raster, smooth, tmp_path
):
    data = smooth(3, 40, 40, "float32", 0, 1)
    mask = np.ones((40, 40), bool)
    mask[5:15, 20:33] = False
    data[1, 30, 7] = np.nan
    path = write_raster("in.tif", data, mask=mask, photometric="RGB")
    _, trust = both(path, tmp_path / "x")
    known = mask.copy()
    known[30, 7] = False
    np.testing.assert_array_equal(np.isfinite(read(trust)[0]), known.repeat(2, 0).repeat(2, 1))


def test_neither_workers_nor_a_window_change_a_number(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 130, 150), photometric="RGB")
    one, five = (both(path, tmp_path / str(workers), workers=workers) for workers in (1, 5))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in five]
    _, part = both(path, tmp_path / "part", window=Window(50, 20, 70, 90))
    np.testing.assert_array_equal(read(part), read(one[1])[:, 100:240, 40:220])


def test_a_stopped_run_goes_on_with_both(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 130, 150), photometric="RGB")
    whole = both(path, tmp_path / "whole")

    def stop_half_way(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        both(path, tmp_path / "again", progress=stop_half_way)
    assert not list((tmp_path / "again").glob("[!.]*"))
    result = upscale_file(
        path,
        tmp_path / "again" / "out.tif",
        leaning_upscaler(),
        confidence=tmp_path / "again" / "trust.tif",
    )
    assert 0 < result.resumed < result.tiles
    assert contents(tmp_path / "again") == contents(whole[0].parent)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_before_any_step_of_the_end_both_are_absent_or_whole_and_the_same_call_ends_the_job(
    write_raster, smooth, tmp_path, overwrite
):
    path = write_raster("in.tif", smooth(3, 24, 30), photometric="RGB")
    whole = contents(both(path, tmp_path / "whole")[0].parent)
    for number in itertools.count(1):
        folder, stops = tmp_path / str(number), itertools.count(1)

        def stop_or_go_on(real: Any, number: int = number, stops: itertools.count = stops) -> Any:
            def step(*arguments: Any, **keywords: Any) -> Any:
                if next(stops) == number:
                    raise KeyboardInterrupt
                return real(*arguments, **keywords)

            return step

        with pytest.MonkeyPatch.context() as patch:
            for name in ("put", "land", "clear"):
                patch.setattr(SceneWriter, name, stop_or_go_on(getattr(SceneWriter, name)))
            try:
                both(path, folder, overwrite=overwrite)
            except KeyboardInterrupt:
                assert {path.name for path in folder.glob("[!.]*.tif")} <= {"out.tif", "trust.tif"}
                for target in folder.glob("[!.]*.tif"):
                    assert target.read_bytes() == whole[target.name]
            else:
                break
        both(path, folder, overwrite=overwrite)
        assert contents(folder) == whole
    assert number == 1 + 2 * 3


@pytest.mark.parametrize(
    "calls", [("fsync",), ("replace", "link", "rename", "unlink")], ids=lambda calls: calls[0]
)
def test_whichever_call_fails_both_are_absent_or_whole_and_the_next_run_finishes(
    write_raster, smooth, tmp_path, calls
):
    from .result.test_faults import FailingCalls, is_whole, visible

    path = write_raster("in.tif", smooth(3, 24, 30), photometric="RGB")
    whole = visible(both(path, tmp_path / "whole")[0].parent)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            failing = FailingCalls(patch, calls, number, errno.ENOSPC)
            try:
                both(path, folder)
                stopped = False
            except RepmambaError:
                stopped = True
        if failing.count < number:
            break
        for target in (folder / "out.tif", folder / "trust.tif"):
            is_whole(target)
        if stopped:
            both(path, folder)
            assert list(folder.glob(".*")) == []
        assert visible(folder) == whole, f"call {number}"
    assert number > 8


def test_a_confidence_that_is_there_already_is_kept_unless_it_may_be_replaced(
    write_raster, smooth, tmp_path
):
    path = write_raster("in.tif", smooth(3, 20, 20), photometric="RGB")
    (tmp_path / "trust.tif").write_bytes(b"of somebody else")
    with pytest.raises(TargetExists, match=r"trust\.tif"):
        both(path, tmp_path)
    assert not list(tmp_path.glob(".*"))
    both(path, tmp_path, overwrite=True)
    assert read(tmp_path / "trust.tif").shape == (1, 40, 40)


def test_what_cannot_be_is_refused_before_the_first_pixel(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 20, 20), photometric="RGB")

    def refused(
        error: type[Exception], match: str, trust: str = "trust.tif", **changes: Any
    ) -> None:
        with pytest.raises(error, match=match):
            upscale_file(
                path, tmp_path / "out.tif", leaning_upscaler(**changes), confidence=tmp_path / trust
            )
        assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]

    refused(UsageError, "only available with precision=float32", precision="bfloat16")
    refused(UsageError, "two names", "out.tif")
    refused(UsageError, "is the input", "in.tif")
    refused(TargetError, "PNG cannot hold float32", "trust.png")
    refused(UsageError, "does not end in the suffix of a format", "trust")
    with pytest.raises(UsageError, match="were not measured for bicubic"):
        upscale_file(
            path, tmp_path / "out.tif", bicubic_upscaler(), confidence=tmp_path / "trust.tif"
        )


def test_a_dry_run_counts_the_second_raster(write_raster, smooth, tmp_path):
    path = write_raster("in.tif", smooth(3, 60, 40), photometric="RGB")
    made = plan_file(
        path, tmp_path / "out.tif", leaning_upscaler(), confidence=tmp_path / "trust.tif"
    )
    without = plan_file(path, tmp_path / "out.tif", leaning_upscaler())
    assert made.output_bytes == without.output_bytes + 120 * 80 * 4
    # What the process had before changes from call to call.
    assert made.memory_bytes - made.program_bytes > without.memory_bytes - without.program_bytes
    assert "confidence: " in made.summary()
    assert made.as_json()["confidence"].endswith("trust.tif")
    assert without.as_json()["confidence"] is None


@pytest.mark.parametrize("attempt", [plan_file, upscale_file])
def test_room_for_either_raster_is_not_enough_for_both(
    write_raster, smooth, tmp_path, monkeypatch, attempt
):
    path = write_raster("in.tif", smooth(3, 60, 40), photometric="RGB")
    files = {"target": tmp_path / "out.tif", "confidence": tmp_path / "trust.tif"}
    needed = plan_file(path, weights=leaning_upscaler(), **files).disk_bytes
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed - 1)
    with pytest.raises(NoSpace, match=r"tiles and result of out\.tif and trust\.tif may need"):
        attempt(path, weights=leaning_upscaler(), **files)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.tif"]
    monkeypatch.setattr(space, "free_bytes", lambda folder: needed)
    attempt(path, weights=leaning_upscaler(), **files)


def test_rounding_keeps_three_digits():
    numbers = np.random.default_rng(2).lognormal(0, 5, 10_000).astype(np.float32)
    np.testing.assert_allclose(rounded(numbers), numbers, rtol=1 / 1000)
    assert len(np.unique(rounded(np.linspace(1, 2, 10_000, dtype=np.float32)))) == 513
    np.testing.assert_array_equal(rounded(np.array([0], np.float32)), [0])
