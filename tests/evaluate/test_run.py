import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from repmamba.data.images import read_image, write_png
from repmamba.data.pairs import PairFiles, pair_from_hr
from repmamba.errors import NoSpace, ShapeMismatch, SourceError, TargetError, UsageError
from repmamba.evaluate.methods import Method, bicubic, nearest, results
from repmamba.evaluate.metrics import METRICS, metrics_of
from repmamba.evaluate.run import evaluate, find_sets, write_result

PSNR, BY_CLASS = METRICS["esr-rgb.psnr"], METRICS["published.psnr"]

# Rule, PSNR and SSIM by esr-rgb, PSNR by published: the table of bicubic in the reference data.
BASELINES = {
    ("rsscn7", 4): (26.7341, 0.66295, 26.7226),
    ("rsscn7", 3): (28.0477, 0.73990, 28.0391),
    ("rsscn7", 2): (30.5223, 0.84797, 30.5255),
    ("ucmerced", 4): (25.0035, 0.64880, 25.0106),
    ("ucmerced", 3): (26.8337, 0.74655, 26.8353),
    ("ucmerced", 2): (30.1653, 0.86942, 30.1660),
    ("epfl_road", 4): (20.1190, 0.46433, 20.1221),
    ("epfl_road", 3): (21.1143, 0.56061, 21.1173),
    ("epfl_road", 2): (23.1978, 0.72640, 23.2053),
    ("aid_tiny", 4): (22.1074, 0.57334, 22.1540),
    ("aid_tiny", 3): (23.3209, 0.66638, 23.3583),
    ("aid_tiny", 2): (25.7814, 0.80403, 25.8150),
    ("dota_sample", 4): (21.2637, 0.62248, 21.2973),
    ("dota_sample", 3): (22.8802, 0.72091, 22.9023),
    ("dota_sample", 2): (26.0788, 0.85989, 26.0924),
}
QUICK = {
    ("ucmerced", 4),
    ("epfl_road", 4),
    ("aid_tiny", 4),
    ("aid_tiny", 3),
    ("aid_tiny", 2),
    ("dota_sample", 3),
}


@pytest.mark.parametrize(
    ("name", "scale"),
    [pytest.param(*row, marks=() if row in QUICK else pytest.mark.long) for row in BASELINES],
)
def test_the_table_of_bicubic_is_reproduced_to_the_last_digit(reference, name, scale):
    folder = reference / "data" / "test" / name
    # Its AID pairs are x4; other scales, and all other sets, start from GT only.
    sets = find_sets([folder / "GT" if name == "aid_tiny" and scale != 4 else folder], scale)
    scores = evaluate(sets, [bicubic()], metrics_of(["esr-rgb", "published.psnr"]))
    psnr, ssim, published = (
        scores.summary(sets[0].name, "bicubic", metric).mean for metric in scores.metrics
    )
    assert (round(psnr, 4), round(ssim, 5), round(published, 4)) == BASELINES[name, scale]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(9)
    for name in ("a/1", "a/2", "a/3", "b/1"):
        pair = pair_from_hr(name, rng.integers(0, 256, (32, 40, 3), np.uint8), 2)
        write_png(tmp_path / "pairs" / "GT" / f"{name}.png", pair.hr)
        write_png(tmp_path / "pairs" / "LR" / f"{name}.png", pair.lr)
    return tmp_path / "pairs"


def test_every_image_is_scored_by_every_method_and_metric(folder):
    sets = find_sets([folder], None)
    scores = evaluate(sets, [bicubic(), nearest()], metrics_of(["esr-rgb", "published"]))
    rows = list(scores.rows())
    assert sets[0].scale == 2
    assert len(rows) == 4 * 2 * 4
    assert {(row.image_set, row.image) for row in rows} == {
        ("pairs", name) for name in ("a/1", "a/2", "a/3", "b/1")
    }
    assert set(scores.classes("pairs", "bicubic", PSNR)) == {"a", "b"}
    by_image = list(scores.of("pairs", "bicubic", "published.psnr").values())
    assert scores.summary("pairs", "bicubic", BY_CLASS).mean == pytest.approx(
        (np.mean(by_image[:3]) + by_image[3]) / 2
    )


def test_saved_results_score_as_the_method_if_the_rule_rounds(folder, tmp_path):
    sets = find_sets([folder], 2)
    first = evaluate(sets, [bicubic()], metrics_of(["esr-rgb", "esr-y"]), save=tmp_path / "saved")
    again = evaluate(
        sets, [results(tmp_path / "saved" / "pairs" / "bicubic")], metrics_of(["esr-rgb", "esr-y"])
    )
    for metric in first.metrics:
        assert first.of("pairs", "bicubic", metric.name) == again.of(
            "pairs", "bicubic", metric.name
        )


def test_progress_counts_images(folder):
    seen = []
    evaluate(
        find_sets([folder], 2),
        [bicubic()],
        [PSNR],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pairs_of_tiffs_with_any_bands_are_scored_and_saved(tmp_path):
    import rasterio

    hr = np.random.default_rng(10).integers(100, 4000, (32, 24, 13), np.uint16)
    pair = pair_from_hr("scene", hr, 2)
    for part, image in (("GT", pair.hr), ("LR", pair.lr)):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        height, width, count = image.shape
        with rasterio.open(
            tmp_path / "pairs" / part / "scene.tif",
            "w",
            driver="GTiff",
            height=height,
            width=width,
            count=count,
            dtype="uint16",
        ) as raster:
            raster.write(np.moveaxis(image, -1, 0))
    sets = find_sets([tmp_path / "pairs"], None)
    scores = evaluate(
        sets, [bicubic()], metrics_of(["bands", "consistency"]), save=tmp_path / "saved"
    )
    values = {
        metric.name: scores.of("pairs", "bicubic", metric.name)["scene"]
        for metric in scores.metrics
    }
    assert 0 < values["bands.sam"] < 90
    assert values["bands.ergas"] > 0
    assert values["consistency.psnr"] > values["bands.psnr"]
    saved = read_image(tmp_path / "saved" / "pairs" / "bicubic" / "scene.tif")
    assert (saved.shape, saved.dtype) == (hr.shape, np.uint16)


def test_methods_with_the_same_name_or_another_scale_are_refused(folder):
    sets = find_sets([folder], 2)
    with pytest.raises(UsageError, match="Two methods are named bicubic"):
        evaluate(sets, [bicubic(), bicubic()], [PSNR])
    with pytest.raises(ShapeMismatch, match="2 times as large as LR, not 4"):
        evaluate(find_sets([folder], 4), [bicubic()], [PSNR])


@pytest.mark.parametrize(
    ("missing", "error", "text"),
    [
        ("a/3", SourceError, "has no result for a/3"),
        ("a/1", UsageError, r"b/1\.png is the only result for a/1 and for b/1"),
    ],
)
def test_a_missing_result_is_reported_before_any_image_is_enlarged(
    folder, tmp_path, missing, error, text
):
    shutil.copytree(folder / "GT", tmp_path / "theirs")
    (tmp_path / "theirs" / f"{missing}.png").unlink()
    never = Method("never", "", lambda pair: pytest.fail("it computed"))
    with pytest.raises(error, match=text):
        evaluate(find_sets([folder], 2), [never, results(tmp_path / "theirs")], [PSNR])


def test_an_image_too_small_for_the_rule_is_reported_before_any_is_enlarged(folder):
    for part, edge in (("GT", 12), ("LR", 6)):
        write_png(folder / part / "b" / "2.png", np.zeros((edge, edge, 3), np.uint8))
    never = Method("never", "", lambda pair: pytest.fail("it computed"))
    with pytest.raises(
        ShapeMismatch, match=r"b/2: SSIM needs at least 11x11 pixels, and this image has 8x8"
    ):
        evaluate(find_sets([folder], 2), [never], metrics_of(["esr-rgb"]))


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("LR", "a/3: GT has 32x40 pixels and LR 16x16"),
        ("theirs", r"result for a/3 is \(16, 16, 3\)"),
    ],
)
def test_a_file_of_another_size_is_reported_before_any_image_is_enlarged(folder, where, text):
    shutil.copytree(folder / "GT", folder / "theirs")
    write_png(folder / where / "a" / "3.png", np.zeros((16, 16, 3), np.uint8))
    never = Method("never", "", lambda pair: pytest.fail("it computed"))
    with pytest.raises(ShapeMismatch, match=text):
        evaluate(find_sets([folder], 2), [never, results(folder / "theirs")], [PSNR])


@pytest.mark.parametrize("save", [".", "pairs", "pairs/GT", "above"])
def test_results_are_never_saved_among_the_scored_images(folder, tmp_path, save):
    below = tmp_path / "above" / "pairs" / "pairs"  # inside `--save above`
    shutil.copytree(folder, below)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="would mix with the images of"):
        evaluate(
            find_sets([below if save == "above" else folder], 2),
            [bicubic()],
            [PSNR],
            save=tmp_path / save,
        )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("save", "text"),
    [
        ("file", "file is a file; name a folder"),
        ("file/below", "cannot be written"),
        ("read_only", "read_only cannot be written: Read-only"),
    ],
)
def test_an_unwritable_folder_is_reported_before_any_image_is_enlarged(
    folder, tmp_path, monkeypatch, save, text
):
    (tmp_path / "file").write_text("")
    if save == "read_only":
        monkeypatch.setattr("repmamba.evaluate.run.TemporaryFile", no_file)
    never = Method("never", "", lambda pair: pytest.fail("it computed"))
    with pytest.raises(TargetError, match=text):
        evaluate(find_sets([folder], 2), [never], [PSNR], save=tmp_path / save)


def no_file(dir):
    raise OSError(errno.EROFS, "Read-only file system", str(dir))


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "one/../../x", "/x"])
def test_a_method_whose_results_would_leave_their_folder_is_refused(folder, tmp_path, name):
    never = Method(name, "", lambda pair: pytest.fail("it computed"))
    with pytest.raises(UsageError, match=f"The name of a method is {name!r}; it must be"):
        evaluate(find_sets([folder], 2), [never], [PSNR], save=tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_folders_with_the_same_name_get_distinct_names_and_one_given_twice_is_refused(
    folder, tmp_path
):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pairs").symlink_to(folder / "GT")
    assert [one.name for one in find_sets([folder / "GT", folder], 2)] == ["GT", "pairs"]
    with pytest.raises(UsageError, match="is named twice"):
        find_sets([folder, folder, folder], 2)


def test_any_number_of_folders_with_the_same_name_get_distinct_names(folder, tmp_path):
    places = [tmp_path / place / "o" / "s" for place in ("p1", "p2", "p3")]
    for place in places:
        shutil.copytree(folder / "GT", place)
    assert [one.name for one in find_sets(places, 2)] == ["p1/o/s", "p2/o/s", "p3/o/s"]


@pytest.mark.parametrize("failing", ["target", "disk"])
def test_a_tiff_result_that_cannot_be_written_is_one_clear_error_and_leaves_nothing(
    tmp_path, failing, monkeypatch
):
    image = np.random.default_rng(14).integers(0, 4000, (8, 8, 5), np.uint16)
    pair = pair_from_hr("scene", image, 2)
    if failing == "target":
        (tmp_path / "saved").write_text("")
        expected = TargetError
    else:
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        expected = NoSpace
    with pytest.raises(expected, match=r"scene\.tif cannot be written"):
        write_result(tmp_path / "saved", PairFiles("scene", Path("scene.tif"), None), image, pair)
    assert not list(tmp_path.rglob("*scene*"))


def full_disk(path, data):
    with path.open("wb") as file:
        file.write(data[:10])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_folder_without_lr_needs_a_scale(folder):
    with pytest.raises(UsageError, match="give a scale of 2, 3 or 4"):
        find_sets([folder / "GT"], None)


def test_an_lr_as_large_as_its_gt_is_refused(tmp_path):
    for part in ("GT", "LR"):
        write_png(tmp_path / part / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(
        ShapeMismatch, match="GT and LR of a have the same size; LR must be 2, 3 or 4 times smaller"
    ):
        find_sets([tmp_path], None)
