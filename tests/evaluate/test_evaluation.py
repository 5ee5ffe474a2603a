"""A whole evaluation in one call, as from Python and from the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from repmamba import evaluate_folders, load
from repmamba.cli.evaluate import evaluate as command
from repmamba.data.images import read_image, write_png
from repmamba.data.pairs import Pair, pair_from_hr
from repmamba.errors import CheckpointError, MethodFailed, ShapeMismatch, UsageError
from repmamba.evaluate.methods import Method, network
from repmamba.evaluate.metrics import METRICS, Metric, in_levels, register_metric
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two folders of pairs, results for them, and two checkpoints, x2."""
    place = tmp_path_factory.mktemp("evaluation")
    draw = np.random.default_rng(14)
    for folder, names in (("towns", ["a/1", "b/2"]), ("fields", ["3"])):
        for name in names:
            pair = pair_from_hr(name, draw.integers(0, 256, (32, 40, 3), np.uint8), 2)
            write_png(place / folder / "GT" / f"{name}.png", pair.hr)
            write_png(place / folder / "LR" / f"{name}.png", pair.lr)
            write_png(place / "theirs" / f"{name}.png", pair.hr // 2)
    for run in ("one", "two"):
        (place / run).mkdir()
        network = RepMamba(NetworkConfig(scale=2, depths=(1,)))
        write_checkpoint(place / run / "best.safetensors", Checkpoint.of(network))
    return place


def test_folders_networks_results_and_methods_are_scored_together(place, tmp_path):
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_folders(
        [place / "towns", str(place / "fields")],
        weights=[place / "one" / "best.safetensors", str(place / "two" / "best.safetensors")],
        sr=[place / "theirs"],
        methods=["nearest", "bicubic"],
        ensemble=True,
        rules=["esr-rgb", "published.psnr"],
        tile=8,
        save=tmp_path / "saved",
        cost_size=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    names = ["one/best", "one/best+", "two/best", "two/best+", "theirs", "nearest", "bicubic"]
    assert [method.name for method in evaluation.scores.methods] == names
    assert [one.name for one in evaluation.scores.sets] == ["towns", "fields"]
    assert [metric.name for metric in evaluation.scores.metrics] == [
        "esr-rgb.psnr",
        "esr-rgb.ssim",
        "published.psnr",
    ]
    assert {
        name: (cost.height, cost.seconds) for name, cost in evaluation.costs.items()
    } == dict.fromkeys(names[:4], (64, None))
    assert (
        evaluation.costs["one/best+"].multiply_adds
        == 8 * evaluation.costs["one/best"].multiply_adds
    )
    assert (tmp_path / "saved" / "fields" / "one/best+" / "3.png").is_file()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert "tiles of 8 lr pixels" in evaluation.scores.methods[0].how


def test_the_call_and_the_command_line_give_the_same_results(place, tmp_path):
    weights = place / "one" / "best.safetensors"
    outputs = {name: tmp_path / f"values.{name}" for name in ("json", "csv", "report")}
    arguments = [
        str(place / "towns"),
        "--weights",
        str(weights),
        "--method",
        "bicubic",
        "-q",
        "--no-pictures",
    ]
    result = CliRunner().invoke(
        command, [*arguments, *(f"--{name}={path}" for name, path in outputs.items())]
    )
    assert result.exit_code == 0, result.output
    evaluation = evaluate_folders(place / "towns", weights=weights, methods="bicubic")
    assert result.stdout == f"{evaluation.table()}\n"
    assert json.loads(outputs["json"].read_text()) == evaluation.as_json()
    assert outputs["csv"].read_text() == evaluation.as_csv()
    assert outputs["report"].read_text() == evaluation.as_html(pictures=False)
    assert len(evaluation.as_html()) > 2 * len(evaluation.as_html(pictures=False))


def test_a_single_value_is_accepted_for_several(place):
    one = evaluate_folders(
        str(place / "towns"), sr=str(place / "theirs"), methods="bicubic", rules="esr-rgb.psnr"
    )
    several = evaluate_folders(
        [place / "towns"], sr=[place / "theirs"], methods=["bicubic"], rules=["esr-rgb.psnr"]
    )
    assert list(one.scores.rows()) == list(several.scores.rows())


def test_a_custom_method_is_scored_with_the_others(place):
    def repeated(pair):
        return pair.lr.repeat(2, axis=0).repeat(2, axis=1)

    ours = [
        Method("twice", "repeated", repeated),
        network(load(place / "one" / "best.safetensors")),
    ]
    scores = evaluate_folders(
        place / "towns", methods=[*ours, "nearest"], rules="esr-rgb.psnr"
    ).scores
    twice, nearest = (scores.of("towns", name, "esr-rgb.psnr") for name in ("twice", "nearest"))
    assert twice == nearest
    assert scores.of("towns", "best", "esr-rgb.psnr")
    assert evaluate_folders(place / "towns", methods=ours[0]).scores.methods == (ours[0],)


def test_large_images_without_lr_are_downsampled_by_the_given_scale(place, tmp_path):
    shutil.copytree(place / "towns" / "GT", tmp_path / "large")
    (one,) = evaluate_folders(tmp_path / "large", methods="bicubic", scale=4).scores.sets
    assert one.scale == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "nothing to evaluate; name weights, sr or a method"),
        ({"methods": "bicubic", "folders": []}, "no folder to evaluate"),
        ({"methods": "lanczos"}, "There is no method 'lanczos'; choose among nearest, bicubic"),
        ({"methods": "bicubic", "rules": "psnr"}, "There is no rule psnr"),
        ({"methods": "bicubic", "scale": 5}, "scale=5: give 2, 3 or 4"),
        ({"methods": "bicubic", "cost_size": 0}, "cost_size=0: give a number of pixels from 1 up"),
        (
            {"methods": "bicubic", "peak": 4000},
            "for the rules bands and consistency; the others are for 8 bit",
        ),
        (
            {"methods": "bicubic", "rules": "bands", "peak": 0},
            "The peak is 0; give a number above 0",
        ),
        (
            {"methods": "bicubic", "rules": "bands", "value_range": (5, 5)},
            "A range from 5 to 5 holds no values",
        ),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(place, wrong, said):
    with pytest.raises(UsageError, match=said):
        evaluate_folders(**{"folders": place / "towns"} | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"folders": 3},
        {"weights": 5},
        {"sr": [None]},
        {"methods": 3},
        {"methods": [["x"]]},
        {"rules": 3},
        {"scale": 4.0},
        {"save": 3},
        {"peak": "4000", "rules": "bands"},
        {"value_range": 4000},
        {"progress": 3},
        {"cost_size": "a"},
        {"cost_size": 1.5},
    ],
    ids=str,
)
def test_a_value_of_another_type_is_an_error_of_python(place, wrong):
    with pytest.raises(TypeError):
        evaluate_folders(**{"folders": place / "towns", "methods": "bicubic"} | wrong)


def test_numpy_numbers_are_accepted(place):
    towns = place / "towns"
    given = evaluate_folders(towns, methods=["bicubic"], scale=np.int64(2), cost_size=np.uint8(8))
    assert evaluate_folders(towns, methods="bicubic", scale=2).as_json() == given.as_json()
    json.dumps(given.as_json())


@pytest.fixture(scope="module")
def reflectance(tmp_path_factory) -> Path:
    """A folder of one pair of 16 bit, with reflectances from 300 to 4000."""
    folder = tmp_path_factory.mktemp("reflectance")
    draw = np.random.default_rng(3).integers(300, 4000, (48, 64, 3)).astype(np.uint16)
    pair = pair_from_hr("scene", draw, 2)
    for name, image in (("GT", pair.hr), ("LR", pair.lr)):
        (folder / name).mkdir()
        with rasterio.open(
            folder / name / "scene.tif",
            "w",
            driver="GTiff",
            dtype="uint16",
            count=3,
            height=image.shape[0],
            width=image.shape[1],
        ) as file:
            file.write(np.moveaxis(image, 2, 0))
    return folder


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_rules_for_bands_are_relative_to_the_peak(reflectance):
    def values(**options):
        scores = evaluate_folders(reflectance, methods="bicubic", **options).scores
        return {
            metric.name: scores.of(reflectance.name, "bicubic", metric.name)["scene"]
            for metric in scores.metrics
        }

    usual, told = values(), values(peak=4000)
    for name in ("bands.psnr", "consistency.psnr"):
        assert told[name] == pytest.approx(usual[name] - 20 * np.log10(65535 / 4000))
    assert told["bands.ssim"] < usual["bands.ssim"]
    assert (told["bands.sam"], told["bands.ergas"]) == (usual["bands.sam"], usual["bands.ergas"])
    assert values(value_range=(200, 4200)) == told
    assert values(value_range=(200, 4200), peak=65535) == usual
    table = evaluate_folders(reflectance, methods="bicubic", peak=4000).table()
    assert "bands.psnr: all bands, border kept, SR not rounded" in table
    assert "; here relative to 4000" in table


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_range_is_black_and_white_to_networks(reflectance):
    """Equal to upscale with that range, up to float32 rounding."""
    upscaler = load("x2")
    with rasterio.open(reflectance / "LR" / "scene.tif") as file:
        lr = np.moveaxis(file.read(), 0, 2)
    with rasterio.open(reflectance / "GT" / "scene.tif") as file:
        hr = np.moveaxis(file.read(), 0, 2)
    sr = network(upscaler, value_range=(200, 4200)).enlarge(Pair("scene", lr, hr)) * 65535
    expected = upscaler.upscale(lr, value_range=(200, 4200), tile=32, halo=0)
    assert np.abs(np.clip(sr, 0, 65535) - expected).max() <= 0.51
    assert "values over 200 to 4200" in network(upscaler, value_range=(200, 4200)).how


def test_the_notebook_view_of_an_evaluation_contains_no_file_name(place):
    evaluation = evaluate_folders(place / "towns", methods="bicubic")
    assert "towns" in repr(evaluation)
    assert ".png" not in repr(evaluation)


def failing(pair):
    raise KeyError("no model for this")


@pytest.mark.parametrize(
    ("enlarge", "error", "text"),
    [
        (failing, MethodFailed, r"^The method mine failed on a/1\. KeyError: 'no model for this'$"),
        (lambda pair: load("x5"), CheckpointError, r"^mine, on a/1: There are no weights 'x5'"),
        (
            lambda pair: pair.lr,
            ShapeMismatch,
            r"^The method mine gave an array of shape \(16, 20, 3\) for a/1; ",
        ),
        (lambda pair: None, ShapeMismatch, r"^The method mine gave a NoneType for a/1; "),
    ],
)
def test_a_failing_method_is_reported_with_its_image(place, enlarge, error, text):
    with pytest.raises(error, match=text):
        evaluate_folders(
            place / "towns", methods=Method("mine", "of my own", enlarge), rules="esr-rgb.psnr"
        )


def test_an_evaluation_has_a_repr_and_a_notebook_view(place):
    evaluation = evaluate_folders(
        [place / "towns", place / "fields"],
        weights=place / "one" / "best.safetensors",
        methods=[Method("<b>mine</b>", "of my own", lambda pair: pair.hr), "bicubic"],
        rules="esr-rgb",
    )
    said = (
        "3 methods (best, <b>mine</b>, bicubic) on 3 images of 2 sets (towns, fields), by 2 "
        "measures"
    )
    assert repr(evaluation) == f"<Evaluation: {said}>"
    assert repr(evaluation.scores) == f"<Scores: {said}>"
    assert (
        repr(evaluation.scores.methods[-1])
        == "<Method bicubic: MATLAB's imresize of LR as it is on disk>"
    )
    assert repr(evaluation.scores.metrics[0]) == "<Metric esr-rgb.psnr [dB]>"
    assert all(len(repr(one)) < 200 and "\n" not in repr(one) for one in evaluation.scores.methods)
    html = evaluation._repr_html_()
    assert html.count("<table>") == 3  # two sets, the differences
    assert "&lt;b&gt;mine" in html
    assert "<b>" not in html
    assert "script" not in html


@pytest.fixture
def mae():
    yield register_metric(
        Metric(
            "mine.mae",
            "levels",
            False,
            "images",
            "mean absolute error, nothing rounded",
            lambda sr, pair: float(np.abs(in_levels(sr, pair.hr) - pair.hr).mean()),
        )
    )
    del METRICS["mine.mae"]


def test_a_custom_measure_is_used_by_name(place, mae):
    evaluation = evaluate_folders(
        place / "towns", methods=["nearest", "bicubic"], rules=["mine", "esr-rgb.psnr"]
    )
    pair = pair_from_hr("a/1", read_image(place / "towns" / "GT" / "a" / "1.png"), 2)
    nearest = pair.lr.repeat(2, 0).repeat(2, 1).astype(float)
    assert (
        evaluation.scores.of("towns", "nearest", "mine.mae")["a/1"]
        == np.abs(nearest - pair.hr).mean()
    )
    assert "mine.mae [levels]" in evaluation.table()
    assert "mean absolute error, nothing rounded" in evaluation.as_html(pictures=False)
    assert evaluation.as_json()["metrics"]["mine.mae"]["unit"] == "levels"
    with pytest.raises(UsageError, match=r"A metric mine\.mae already exists"):
        register_metric(mae)
    for name in ("mae", "mine.", "my rule.mae"):
        with pytest.raises(UsageError, match=r"name it as 'rule\.measure'"):
            register_metric(replace(mae, name=name))
