"""Exports: measured, sealed, self-describing, and refused if they differ from the network."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import repmamba
from repmamba.errors import (
    CheckpointError,
    ExportError,
    TargetError,
    TargetExists,
    UsageError,
)
from repmamba.exporting import parity
from repmamba.exporting.export import export
from repmamba.inference.exported import CHECKSUM, FACTS
from repmamba.inference.onnx_runner import open_session
from repmamba.tiles.plan import HALO, TILE


def test_the_file_contains_measurements_and_usage(small_export, small_weights):
    facts = json.loads(
        open_session(small_export.path.read_bytes()).get_modelmeta().custom_metadata_map[FACTS]
    )
    assert facts == json.loads(json.dumps(small_export.facts.to_dict()))
    assert (facts["scale"], facts["bands"], facts["value_range"]) == (2, 3, [0.0, 1.0])
    assert (facts["tile"], facts["halo"], facts["size"]) == (TILE, HALO, None)
    assert facts["network"] == repmamba.load(small_weights).digest
    assert len({tuple(each["shape"]) for each in facts["parity"]}) == len(facts["parity"]) == 5
    assert all(0 < each["largest"] < 1e-5 for each in facts["parity"])
    assert facts["written_by"] == f"repmamba {repmamba.__version__}"


def test_the_graph_is_valid_and_its_opset_is_read_by_old_runtimes(small_export):
    model = onnx.load(small_export.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 17)]
    assert model.ir_version <= 9  # the latest for onnxruntime 1.17
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.graph.node) == small_export.facts.nodes


def test_the_whole_network_is_small_and_opens_quickly(in_onnx_runtime_only, monkeypatch, tmp_path):
    monkeypatch.setattr(parity, "NOISE", ((1, 7, 8),))
    written = export("x4", tmp_path / "x4.onnx")
    assert written.size < 6e6
    assert written.facts.nodes < 7000
    assert "Apache-2.0" in written.facts.terms
    start = time.process_time()
    open_session(written.path.read_bytes())
    assert time.process_time() - start < 2
    assert max(each.largest for each in written.facts.parity) < 1e-5


DENORMALS = """
import sys
from pathlib import Path
import numpy as np
import torch
from repmamba.inference.onnx_runner import open_session

def flushed():
    return float((np.array([1e-40], np.float32) * np.float32(1))[0]) == 0

torch.set_flush_denormal(sys.argv[2] == "True")
open_session(Path(sys.argv[1]).read_bytes())
print(flushed())
"""


@pytest.mark.parametrize("flushed", ["False", "True"])
def test_a_session_does_not_change_the_threads_arithmetic(small_export, flushed):
    command = [sys.executable, "-c", DENORMALS, str(small_export.path), flushed]
    # the first one of a process
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == flushed


def test_the_same_weights_give_the_same_bytes(small_weights, small_export, tmp_path):
    again = export(small_weights, tmp_path / "small.onnx")
    assert again.path.read_bytes() == small_export.path.read_bytes()


def test_a_runtime_with_other_results_is_refused_and_nothing_is_written(
    small_weights, monkeypatch, tmp_path
):
    def off_by(error: float):
        def opened(content):
            run = parity._onnx_runtime(content)
            return lambda lr: run(lr) + np.float32(error)

        return parity.Runtime("onnxruntime", opened, None)

    monkeypatch.setattr(parity, "NOISE", ((1, 7, 8),))
    target = tmp_path / "small.onnx"
    for error, precision in ((2e-4, "float32"), (float("nan"), "float32"), (5e-3, "float16")):
        monkeypatch.setattr(parity, "RUNTIMES", (off_by(error),))
        with pytest.raises(ExportError, match="from the network's own"):
            export(small_weights, target, precision=precision)
        assert not target.exists()
    monkeypatch.setattr(parity, "RUNTIMES", (off_by(5e-5),))
    assert export(small_weights, target).path.exists()


def test_openvino_gives_the_results_for_changing_sizes(small_export, small_weights):
    pytest.importorskip("openvino", reason="this system has no OpenVINO")
    samples = parity.samples_of(repmamba.load(small_weights).runner, None, lambda sr: sr)[:2]
    run = parity._openvino(small_export.path.read_bytes())
    found = parity.differences(run, samples, "openvino", "")
    assert [each.shape for each in found] == [(1, 3, 96, 96), (2, 3, 33, 50)]
    assert max(each.largest for each in found) < 1e-5


def test_matrices_in_float16_make_a_smaller_file_within_a_grey_level(
    small_weights, small_export, in_onnx_runtime_only, tmp_path
):
    half = export(small_weights, tmp_path / "half.onnx", precision="float16")
    assert half.size < 0.8 * small_export.size
    worst = max(each.largest for each in half.facts.parity)
    assert 1e-6 < worst < 1 / 255
    lr = torch.rand(1, 3, 16, 16)
    sr = repmamba.load(half.path).run(lr)
    assert (sr - repmamba.load(small_weights).run(lr)).abs().max() < 1 / 255


def test_a_fixed_size_takes_one_image_of_that_size(small_weights, in_onnx_runtime_only, tmp_path):
    written = export(small_weights, tmp_path / "fixed.onnx", size=(20, 31))
    session = open_session(written.path.read_bytes())
    assert session.get_inputs()[0].shape == [1, 3, 20, 31]
    assert session.get_outputs()[0].shape == [1, 3, 40, 62]
    assert written.facts.size == (20, 31)
    with pytest.raises(CheckpointError, match=r"31x20 pixels.*--size dynamic"):
        repmamba.load(written.path)


@pytest.mark.parametrize(
    ("target", "options", "error", "words"),
    [
        ("x.tflite", {}, UsageError, "use the ending .onnx or .pt2"),
        ("x.onnx", {"size": (0, 4)}, UsageError, "height and width"),
        ("x.onnx", {"size": (4,)}, UsageError, "height and width"),
        ("x.onnx", {"precision": "int8"}, UsageError, "float32 or float16"),
        ("x.onnx", {"program": "photoshop"}, UsageError, "deepness"),
        ("x.onnx", {"program": "deepness", "size": (4, 6)}, UsageError, "square"),
        ("x.pt2", {"precision": "float16"}, UsageError, "use .onnx"),
        ("x.pt2", {"program": "deepness"}, UsageError, "use .onnx"),
        ("x.pt2", {"size": (2, 40)}, UsageError, "from 3 to 4096"),
        ("missing/x.onnx", {}, TargetError, "create it first"),
    ],
)
def test_invalid_exports_are_refused_at_once(
    small_weights, tmp_path, target, options, error, words
):
    with pytest.raises(error, match=words):
        export(small_weights, tmp_path / target, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_on_request(small_weights, tmp_path):
    target = tmp_path / "x.onnx"
    target.write_bytes(b"mine")
    with pytest.raises(TargetExists, match="already exists"):
        export(small_weights, target)
    assert target.read_bytes() == b"mine"


def test_an_export_is_not_exported_again(small_export, tmp_path):
    with pytest.raises(UsageError, match="already an export"):
        export(small_export.path, tmp_path / "again.onnx")


def test_a_torch_program_gives_the_results(small_weights, tmp_path):
    written = export(small_weights, tmp_path / "small.pt2", size=(9, 12))
    extra = {FACTS: ""}
    program = torch.export.load(written.path, extra_files=extra)
    facts = json.loads(extra[FACTS])
    assert max(each["largest"] for each in facts["parity"]) < 1e-5
    lr = torch.rand(1, 3, 9, 12)
    with torch.inference_mode():
        sr = program.module()(lr)
    assert (sr - repmamba.load(small_weights).run(lr)).abs().max() < 1e-5
    with pytest.raises(CheckpointError, match=r"torch\.export\.load"):
        repmamba.load(written.path)


def changed(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_damaged_and_foreign_files_are_refused_before_a_runtime_opens_them(
    small_export, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    content = small_export.path.read_bytes()
    strange = tmp_path / "strange.onnx"
    monkeypatch.setattr("repmamba.inference.onnx_runner.open_session", None)
    for place in (10, len(content) // 2, content.index(CHECKSUM.encode()) + 30, len(content) - 3):
        strange.write_bytes(changed(content, place))
        with pytest.raises(CheckpointError, match=r"damaged|not a network"):
            repmamba.load(strange)
    for other in (b"", b"\x08\x08nonsense", content[: len(content) // 2]):
        strange.write_bytes(other)
        with pytest.raises(CheckpointError, match=r"damaged|not a network"):
            repmamba.load(strange)


@pytest.fixture
def picture(tmp_path) -> Callable[[], Path]:
    import rasterio

    path = tmp_path / "scene.tif"
    numbers = np.random.default_rng(3).integers(0, 256, (3, 37, 50), np.uint8)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=50,
        height=37,
        count=3,
        dtype="uint8",
        crs="EPSG:32613",
        transform=rasterio.Affine(2, 0, 4e5, 0, -2, 4e6),
    ) as raster:
        raster.write(numbers)
    return path


def test_the_whole_engine_gives_the_same_raster_within_a_grey_level(
    small_export, small_weights, picture, tmp_path
):
    import rasterio

    results = []
    for name, weights in (("exported", small_export.path), ("own", small_weights)):
        target = tmp_path / f"{name}.tif"
        repmamba.upscale_file(picture, target, weights, tile=16)
        with rasterio.open(target) as raster:
            results.append((raster.read().astype(int), raster.transform, raster.crs))
    (exported, *place), (own, *own_place) = results
    assert place == own_place
    assert exported.shape == (3, 74, 100)
    assert np.abs(exported - own).max() <= 1
    assert exported.std() > 10


def test_an_export_is_evaluated_timed_and_described_like_weights(
    small_export, small_weights, tmp_path, capsys
):
    from repmamba.cli.main import run
    from repmamba.data.images import write_png

    noise = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), np.uint8)
    write_png(tmp_path / "pairs" / "GT" / "1.png", noise[0])
    write_png(tmp_path / "pairs" / "LR" / "1.png", noise[1, :16, :16])
    scores = repmamba.evaluate_folders(
        tmp_path / "pairs", weights=[str(small_export.path), str(small_weights)]
    ).scores
    values = {
        method.name: {
            metric: images
            for (_, name, metric), images in scores.values.items()
            if name == method.name
        }
        for method in scores.methods
    }
    exported, own = values.values()
    assert exported.keys() == own.keys()
    assert all(abs(exported[metric]["1"] - own[metric]["1"]) < 1e-3 for metric in own)
    assert run(["bench", "--weights", str(small_export.path), "--size", "16", "--passes", "1"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out
    assert run(["info", str(small_export.path)]) == 0
    assert f"{small_export.facts.nodes:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [{"device": "cuda:7"}, {"backend": "numba"}, {"precision": "bfloat16"}, {"scale": 3}]
)
def test_unsupported_options_of_an_export_are_one_clear_error(small_export, options):
    with pytest.raises(
        (UsageError, CheckpointError), match=next(iter(options)) if "scale" not in options else "x2"
    ):
        repmamba.load(small_export.path, **options)
