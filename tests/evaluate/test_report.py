import base64
import csv
import hashlib
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from repmamba.cli.evaluate import evaluate as command
from repmamba.data.images import write_png
from repmamba.data.pairs import pair_from_hr
from repmamba.errors import OutOfMemory, SourceError, TargetError, UsageError
from repmamba.evaluate.charts import GREY, Point, bars, complexity, scatter
from repmamba.evaluate.cost import Cost, cost_of
from repmamba.evaluate.excerpts import _window
from repmamba.evaluate.methods import bicubic, nearest, results
from repmamba.evaluate.metrics import metrics_of
from repmamba.evaluate.page import page, read_others
from repmamba.evaluate.report import cost_table, number, table, to_csv, to_json, write_text
from repmamba.evaluate.run import evaluate, find_sets
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import PUBLISHED, NetworkConfig
from repmamba.network.repmamba import RepMamba

# a legal name of a file
HOSTILE = "=<img src=x onerror=alert(1)>\"'&\x1b[31m</script><script>alert(2)<"


def make_pairs(folder, names):
    rng = np.random.default_rng(13)
    for name in names:
        pair = pair_from_hr(name, rng.integers(0, 256, (32, 40, 3), np.uint8), 2)
        write_png(folder / "GT" / f"{name}.png", pair.hr)
        write_png(folder / "LR" / f"{name}.png", pair.lr)
    return folder


@pytest.fixture
def scores(tmp_path):
    folder = make_pairs(tmp_path / "pairs", ["a/1", "a/2", "b/1", "b/2"])
    return evaluate(
        find_sets([folder], 2), [bicubic(), nearest()], metrics_of(["esr-rgb", "published"])
    )


class Page(HTMLParser):
    """The page as a browser parses it: its elements with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.policy = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_table_names_and_explains_the_rule_of_each_number(scores):
    text = table(scores, {"x4": cost_of(PUBLISHED["x4"], 128, 128)})
    for metric in scores.metrics:
        assert metric.name in text
        assert metric.how in text
    for expected in (
        "pairs, x2, 4 images",
        "785,184",
        "11.354",
        "128x128",
        "the scan",
        "95% interval of 10,000",
    ):
        assert expected in text
    assert "\nDifference from nearest on the same images, with" in text


def test_json_contains_everything_and_is_valid_with_infinities(tmp_path):
    folder = make_pairs(tmp_path / "pairs", ["1", "2"])
    scores = evaluate(
        find_sets([folder], 2),
        [results(folder / "GT"), bicubic()],
        metrics_of(["esr-rgb", "published"]),
    )
    read = json.loads(json.dumps(to_json(scores, {}), allow_nan=False))
    perfect = read["sets"]["pairs"]["methods"]["GT"]
    assert perfect["esr-rgb.psnr"] == {
        "mean": "inf",
        "infinite": 2,
        "mean_of_classes": None,
        "classes": {},
        "images": {"1": "inf", "2": "inf"},
    }
    assert perfect["published.psnr"]["mean"] == 100
    assert read["sets"]["pairs"]["paired"][0]["left_out"] == 2
    assert "inf" in table(scores, {})
    assert page(scores, {}).count("inf") >= 1


@pytest.fixture
def uneven(tmp_path):
    """Three images of one class and one of another, so that the two means differ."""
    folder = make_pairs(tmp_path / "uneven", ["a/1", "a/2", "a/3", "b/1"])
    return evaluate(
        find_sets([folder], 2), [bicubic(), nearest()], metrics_of(["esr-rgb", "published"])
    )


def test_the_mean_of_class_means_is_in_json_table_and_page(uneven):
    values = list(uneven.of("uneven", "bicubic", "esr-rgb.psnr").values())
    expected = (np.mean(values[:3]) + values[3]) / 2
    bicubics = to_json(uneven, {})["sets"]["uneven"]["methods"]["bicubic"]
    assert bicubics["esr-rgb.psnr"]["mean_of_classes"] == pytest.approx(expected)
    assert bicubics["esr-rgb.psnr"]["mean"] == pytest.approx(np.mean(values))
    assert bicubics["published.psnr"]["mean_of_classes"] == bicubics["published.psnr"]["mean"]
    lines = table(uneven, {}).splitlines()
    place = lines.index("  mean of the class means")
    assert lines[0] == "uneven, x2, 4 images in 2 classes"
    assert f"{np.mean(values):.4f}" in lines[2]
    assert lines[place + 1].split()[:2] == ["bicubic", f"{expected:.4f}"]
    words = Page(page(uneven, {}, pictures=False)).words
    assert words[words.index("mean of the class means") :][1:3] == ["bicubic", f"{expected:.4f}"]


def test_means_of_class_means_are_printed_only_if_there_are_classes(tmp_path):
    for name, images, rule in (
        ("flat", ["1", "2"], "esr-rgb"),
        ("one", ["a/1"], "esr-rgb"),
        ("own", ["a/1", "b/1"], "published"),
    ):
        scores = evaluate(
            find_sets([make_pairs(tmp_path / name, images)], 2),
            [bicubic(), nearest()],
            metrics_of([rule]),
        )
        assert "\n  mean of the class means" not in table(scores, {})
        assert ">mean of the class means<" not in page(scores, {}, pictures=False)


def test_csv_has_one_line_per_value_in_full_precision(scores):
    rows = list(csv.DictReader(io.StringIO(to_csv(scores))))
    assert len(rows) == 4 * 2 * 4
    first = rows[0]
    assert (first["set"], first["image"], first["method"], first["metric"]) == (
        "pairs",
        "a/1",
        "bicubic",
        "esr-rgb.psnr",
    )
    assert float(first["value"]) == scores.of("pairs", "bicubic", "esr-rgb.psnr")["a/1"]


def test_the_page_is_self_contained_and_allows_only_its_own_script(scores):
    text = page(scores, {"x4": cost_of(PUBLISHED["x4"], 128, 128)})
    parsed = Page(text)
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.of("img"))
    assert not any(
        name in attributes
        for _, attributes in parsed.elements
        for name in ("href", "srcset", "action")
    )
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(meta["content"] for meta in parsed.of("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "http://" not in text
    assert "https://" not in text


def test_the_page_has_its_tables_charts_excerpts_error_maps_and_sliders(scores):
    text = page(scores, {})
    parsed = Page(text)
    words = " ".join(parsed.words)
    for expected in (
        "Summary",
        "Classes, esr-rgb.psnr [dB]",
        "one mark per image",
        "Largest gain over nearest",
        "Smallest gain over nearest",
        "error of bicubic",
        "GT",
        "LR",
        "Rules",
    ):
        assert expected in words
    assert len(parsed.of("svg")) == 2
    assert len([one for one in parsed.of("input") if one["type"] == "range"]) == 4
    assert len(parsed.of("circle")) == 4
    # LR, two methods, GT and two error maps of four images, and two pictures in each slider
    assert len(parsed.of("img")) == 4 * (6 + 2)


def test_gt_is_next_to_lr_and_both_sides_of_a_slider_can_be_chosen(scores):
    text = page(scores, {})
    section = text.partition('<section class="shown">')[2].partition("</section>")[0]
    pictures = re.findall(r'<img alt="([^"]+)"', section)
    assert pictures[:4] == ["LR", "GT", *(method.name for method in scores.methods)]
    choices = re.findall(r"<select[^>]*>(.*?)</select>", section)
    assert [re.findall(r"<option[^>]*>([^<]+)", choice) for choice in choices] == [pictures[:4]] * 2
    chosen = [re.search(r"<option value=(\d) selected", choice)[1] for choice in choices]
    assert chosen == ["2", "3"]


def test_columns_without_measurements_are_left_out(scores):
    counted = Cost(128, 128, 10, 9, 5_000_000_000, 1_000_000)
    measured = replace(counted, seconds=0.1, peak_memory=5_000_000, device="a processor")
    assert " ms " not in cost_table({"net": counted})
    assert "-" not in cost_table({"net": counted}).splitlines()[2]
    assert "<th>ms</th>" not in page(scores, {"bicubic": counted})
    for costs in ({"net": measured}, {"net": counted, "other": measured}):
        assert "  ms  peak MB" in cost_table(costs)
        assert "<th>ms</th>" in page(scores, {"bicubic": measured})


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_excerpt_is_the_square_in_which_two_methods_differ_most(scale):
    telling = np.zeros((40 * scale, 70 * scale))
    telling[3, 69 * scale] = 1
    rows, cols = _window(telling, scale)
    assert rows.stop - rows.start == cols.stop - cols.start == min(40 * scale, 96 // scale * scale)
    assert rows.start % scale == cols.start % scale == 0
    assert telling[rows, cols].sum() == 1


def test_the_page_can_leave_out_all_pictures(scores):
    assert not Page(page(scores, {}, pictures=False)).of("img")


@pytest.mark.parametrize("place", ["image", "class", "set", "method"])
def test_a_hostile_name_injects_nothing(tmp_path, place):
    set_name = HOSTILE.replace("/", "") if place == "set" else "pairs"
    names = {
        "image": [HOSTILE.replace("/", ""), "1"],
        "class": [HOSTILE.replace("/", "") + "/1", "b/1"],
    }.get(place, ["1", "2"])
    folder = make_pairs(tmp_path / set_name, names)
    methods = [bicubic(), nearest()]
    if place == "method":
        (tmp_path / HOSTILE.replace("/", "")).symlink_to(folder / "GT")
        methods = [bicubic(), results(tmp_path / HOSTILE.replace("/", ""))]
    scores = evaluate(find_sets([folder], 2), methods, metrics_of(["esr-rgb"]))
    harmless = Page(page(evaluate_plain(tmp_path, len(names), place), {}))
    parsed = Page(page(scores, {}))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in harmless.elements]
    assert not any(
        name.startswith("on") for _, attributes in parsed.elements for name in attributes
    )
    assert "\x1b" not in table(scores, {})
    cells = [cell for row in csv.reader(io.StringIO(to_csv(scores))) for cell in row]
    assert not any(cell.startswith("=") for cell in cells)
    json.dumps(to_json(scores, {}), allow_nan=False)


def evaluate_plain(tmp_path, count, place):
    """The same run with harmless names."""
    names = ["a/1", "b/1"] if place == "class" else ["1", "2"][:count]
    folder = make_pairs(tmp_path / "plain", names)
    other = results(folder / "GT") if place == "method" else nearest()
    return evaluate(find_sets([folder], 2), [bicubic(), other], metrics_of(["esr-rgb"]))


def test_charts_keep_their_marks_inside_and_escape_their_labels():
    drawn = scatter([Point(20.0, 30.0, "<b>"), Point(25.0, 24.0, "y")], "<x>", "y")
    assert "<b>" not in drawn
    assert "<x>" not in drawn
    for x, y in re.findall(r'<circle cx="([\d.-]+)" cy="([\d.-]+)"', drawn):
        assert 70 <= float(x) <= 470
        assert 16 <= float(y) <= 416
    bar = bars({"one": {"m": 25.0, "n": 25.0}, "two": {"m": 31.5, "n": 31.5}}, "dB")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', bar)]
    assert len(widths) == 4
    assert 0 < min(widths) < max(widths) <= 760
    plot = complexity(
        [Point(11.354, 28.1, "x4"), Point(0.2, 27.0, "small")], {"bicubic": 26.7}, "cost", "PSNR"
    )
    assert len(re.findall("<circle", plot)) == 2
    assert "bicubic" in plot


@pytest.mark.parametrize("values", [(30.0, 30.0 + 1e-12), (0.0, 1e-12), (25.0, 25.0)])
def test_nearly_equal_values_are_drawn(values):
    low, high = values
    assert "<circle" in scatter([Point(low, high, "a")], "x", "y")
    assert "<rect" in bars({"one": {"m": low}, "two": {"m": high}}, "dB")


def test_a_page_says_if_it_marks_only_some_images(scores, monkeypatch):
    assert "one mark per image" in page(scores, {}, pictures=False)
    monkeypatch.setattr("repmamba.evaluate.charts.LARGEST_SCATTER", 1)
    text = page(scores, {}, pictures=False)
    count = len(scores.sets[0].files)
    assert f"one in {count} of {count} images marked" in text
    assert "one mark per image" not in text


def test_networks_measured_elsewhere_are_grey_and_an_invalid_line_is_reported(tmp_path):
    path = tmp_path / "others.csv"
    path.write_text('# measured elsewhere\nIMDN, 18.18, 27.98\n"A, B", 5, 26\n')
    points = read_others(path)
    assert [(point.label, point.x, point.y, point.fill) for point in points] == [
        ("IMDN", 18.18, 27.98, GREY),
        ("A, B", 5.0, 26.0, GREY),
    ]
    for line in ("IMDN, many, 3", "IMDN, 5", "IMDN, 0, 3", "IMDN, 5, nan"):
        path.write_text(f"good, 1, 2\n{line}\n")
        with pytest.raises(SourceError, match="Line 2 of"):
            read_others(path)
    path.write_text('good, 1, 2\n"two\nlines", 1, 2\nbad, 1\n')
    with pytest.raises(SourceError, match="Line 4 of"):
        read_others(path)


@pytest.mark.parametrize(
    "content", [None, b"IMDN, \xff, 1\n", b'"' + 200_000 * b"x"], ids=["none", "bytes", "long"]
)
def test_an_invalid_csv_of_other_networks_is_one_clear_error(tmp_path, content):
    if content:
        (tmp_path / "others.csv").write_bytes(content)
    with pytest.raises(SourceError, match=r"others\.csv cannot be read"):
        read_others(tmp_path / "others.csv")


def test_a_list_of_other_networks_may_come_from_a_spreadsheet(tmp_path):
    (tmp_path / "others.csv").write_bytes("\ufeff# from elsewhere\r\nIMDN,18.18,27.98\r\n".encode())
    assert [point.label for point in read_others(tmp_path / "others.csv")] == ["IMDN"]


@pytest.mark.parametrize(
    "values", [(30.0, 30.0), (0.0, 0.0), (29.99, 30.01), (-5.0, 100.0), (0.61, 0.66)]
)
def test_axes_span_their_values_with_a_few_round_numbers(values):
    from repmamba.evaluate.charts import _ticks

    ticks = _ticks(*values)
    assert ticks[0] <= values[0]
    assert ticks[-1] >= values[1]
    assert 3 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))


def test_numbers_have_the_digits_of_their_unit():
    assert [
        number(26.73405, "dB"),
        number(0.66295, ""),
        number(math.inf, "dB"),
        number(math.nan, "dB"),
    ] == [
        "26.7340",
        "0.66295",
        "inf",
        "-",
    ]


def test_a_report_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="cannot be written"):
        write_text(tmp_path / "file" / "report.html", "x")
    write_text(tmp_path / "new" / "report.html", "x")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_the_command_prints_a_table_and_writes_the_requested_files(tmp_path):
    folder = make_pairs(tmp_path / "pairs", ["a/1", "b/1"])
    outputs = [str(tmp_path / name) for name in ("page.html", "values.json", "values.csv")]
    arguments = [
        str(folder),
        "--method",
        "bicubic",
        "--method",
        "nearest",
        "--rule",
        "esr-rgb",
        "-q",
    ]
    arguments += [
        "--report",
        outputs[0],
        "--json",
        outputs[1],
        "--csv",
        outputs[2],
        "--save",
        str(tmp_path / "saved"),
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "pairs, x2, 2 images" in result.stdout
    assert json.loads((tmp_path / "values.json").read_text())["sets"]["pairs"]["scale"] == 2
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "saved" / "pairs" / "bicubic" / "a" / "1.png").is_file()


def test_a_page_that_fails_loses_none_of_the_other_results(tmp_path, monkeypatch):
    folder = make_pairs(tmp_path / "pairs", ["1", "2"])
    monkeypatch.setattr("repmamba.evaluate.page._part", lambda *arguments, **options: 1 / 0)
    outputs = [str(tmp_path / name) for name in ("page.html", "values.json", "values.csv")]
    arguments = [
        str(folder),
        "--method",
        "bicubic",
        "-q",
        "--report",
        outputs[0],
        "--json",
        outputs[1],
    ]
    result = CliRunner().invoke(command, [*arguments, "--csv", outputs[2]])
    assert isinstance(result.exception, ZeroDivisionError)
    assert "pairs, x2, 2 images" in result.stdout
    assert json.loads((tmp_path / "values.json").read_text())["sets"]
    assert len((tmp_path / "values.csv").read_text().splitlines()) == 1 + 2 * 4


@pytest.mark.parametrize("option", ["--report", "--json", "--csv"])
def test_targets_and_costs_that_fail_are_reported_before_an_image_is_scored(
    tmp_path, monkeypatch, option
):
    folder = make_pairs(tmp_path / "pairs", ["1"])
    monkeypatch.setattr(
        "repmamba.evaluate.run.evaluate", lambda *arguments, **options: pytest.fail("it was scored")
    )
    (tmp_path / "file").write_text("")
    for target in (tmp_path, tmp_path / "file" / "out"):
        result = CliRunner().invoke(
            command, [str(folder), "--method", "bicubic", "-q", option, str(target)]
        )
        assert isinstance(result.exception, TargetError)


def test_a_cost_that_cannot_be_measured_is_reported_before_an_image_is_scored(
    tmp_path, monkeypatch
):
    def killed(*arguments, **options):
        raise OutOfMemory("killed")

    weights = tmp_path / "small.safetensors"
    write_checkpoint(weights, Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,)))))
    folder = make_pairs(tmp_path / "pairs", ["1"])
    monkeypatch.setattr(
        "repmamba.evaluate.run.evaluate", lambda *arguments, **options: pytest.fail("it was scored")
    )
    monkeypatch.setattr("repmamba.evaluate.cost.measured", killed)
    result = CliRunner().invoke(command, [str(folder), "--weights", str(weights), "--cost", "-q"])
    assert isinstance(result.exception, OutOfMemory)


def test_weights_of_two_runs_are_compared_under_distinct_names(tmp_path):
    arguments = [
        str(make_pairs(tmp_path / "pairs", ["1"])),
        "-q",
        "--json",
        str(tmp_path / "values.json"),
    ]
    for run in ("one", "two"):
        weights = tmp_path / run / "best.safetensors"
        weights.parent.mkdir()
        write_checkpoint(weights, Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,)))))
        arguments += ["--weights", str(weights)]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    methods = json.loads((tmp_path / "values.json").read_text())["methods"]
    assert set(methods) == {"one/best", "two/best"}
    assert all(method["cost"]["parameters"] for method in methods.values())


def test_other_networks_without_a_page_are_refused(tmp_path):
    folder = make_pairs(tmp_path, ["1"])
    result = CliRunner().invoke(
        command, [str(folder), "--method", "bicubic", "-q", "--others", "others.csv"]
    )
    assert isinstance(result.exception, UsageError)
    assert "add --report" in str(result.exception)


def test_without_a_terminal_progress_is_logged(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("repmamba.cli.progress.LINES_EVERY", 0.0)
    folder = make_pairs(tmp_path, ["1", "2"])
    with caplog.at_level("INFO", logger="repmamba"):
        CliRunner().invoke(command, [str(folder), "--method", "bicubic"], catch_exceptions=False)
    assert "Scoring: 2 of 2." in caplog.text


def test_a_command_without_a_method_says_what_to_give(tmp_path):
    folder = make_pairs(tmp_path / "pairs", ["1"])
    result = CliRunner().invoke(command, [str(folder), "-q"])
    assert "nothing to evaluate" in str(result.exception)
