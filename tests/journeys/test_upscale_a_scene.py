"""The first journey, by the command: a file in, the same file larger, in its place; one line for
whatever is wrong.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from repmamba.cli.main import FAILED, MISUSED, run
from repmamba.network.checkpoint import Checkpoint, write_checkpoint
from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SHOWN = (
    "rgb_lzw.tif",
    "cog_hirise_mars.tif",
    "pix4d_alpha_nodata.tif",
    "201404_13SED190110_201404_0x1500m_CL_1_mask.tif",
)


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """An x4 network of one block; the first journey does not ask whether it is a good one."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_checkpoint(path, Checkpoint.of(RepMamba(NetworkConfig(depths=(1,)))))
    return path


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize("name", SHOWN)
def test_a_real_scene_comes_back_four_times_larger_in_its_place(
    geotiffs, tmp_path, weights, name, capsys
):
    window = (32, 64, 150, 130)  # column, row, width, height
    arguments = ["--weights", weights, "--window", ",".join(map(str, window)), "--json", "--quiet"]
    assert (
        run(
            [
                str(part)
                for part in ("upscale", geotiffs / name, "-o", tmp_path / "out.tif", *arguments)
            ]
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    col, row, width, height = window
    with rasterio.open(geotiffs / name) as before, rasterio.open(tmp_path / "out.tif") as after:
        assert (
            (said["width"], said["height"])
            == (after.width, after.height)
            == (4 * width, 4 * height)
        )
        assert after.crs == before.crs
        assert after.dtypes == before.dtypes
        for right, down in ((0, 0), (width, 0), (0, height), (width, height)):
            found = ~before.transform @ (after.transform @ (4 * right, 4 * down))
            np.testing.assert_allclose(found, (col + right, row + down), rtol=0, atol=1e-6)
        mask = before.dataset_mask(window=((row, row + height), (col, col + width))) != 0
        np.testing.assert_array_equal(after.dataset_mask() != 0, mask.repeat(4, 0).repeat(4, 1))


def test_several_inputs_go_into_a_folder_and_keep_their_names(tmp_path, picture, weights):
    Image.open(picture).save(tmp_path / "other.webp")
    target = tmp_path / "larger"
    arguments = [
        "upscale",
        picture,
        tmp_path / "other.webp",
        "-o",
        target,
        "--weights",
        weights,
        "-q",
    ]
    assert run([str(part) for part in arguments]) == 0
    names = {path.name for path in target.iterdir() if path.suffix in (".png", ".tif")}
    assert names == {"picture_x4.png", "other_x4.tif"}


def test_without_a_terminal_there_are_sober_lines_on_stderr_and_the_result_on_stdout(
    tmp_path, picture, weights
):
    command = [
        sys.executable,
        "-m",
        "repmamba.cli",
        "upscale",
        picture,
        "-o",
        tmp_path / "out.png",
        "--weights",
        weights,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        f"{tmp_path / 'out.png'}: 96 x 80 pixels, 3 bands, x4 with tiny, not made consistent"
    )
    assert "100 % of 0.0 megapixels" in done.stderr
    assert "not made consistent with its input, because the picture" in done.stderr
    assert "\r" not in done.stderr


def test_a_dry_run_tells_the_plan_and_does_nothing(tmp_path, picture, weights, capsys):
    target = tmp_path / "out.png"
    assert (
        run(["upscale", str(picture), "-o", str(target), "--weights", str(weights), "--dry-run"])
        == 0
    )
    assert "1 tile of 256 + 8 input pixels" in capsys.readouterr().out
    assert not target.exists()


def test_a_dry_run_of_several_plans_a_folder_that_is_not_there_yet(
    tmp_path, picture, weights, capsys
):
    Image.open(picture).save(tmp_path / "other.png")
    target = tmp_path / "new" / "larger"
    arguments = [
        "upscale",
        picture,
        tmp_path / "other.png",
        "-o",
        target,
        "--weights",
        weights,
        "--dry-run",
    ]
    assert run([str(part) for part in arguments]) == 0
    said = capsys.readouterr().out
    for name in ("picture", "other"):
        assert f"{name}.png -> {target / name}_x4.png" in said
    assert not (tmp_path / "new").exists()


def made(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def image(path: Path) -> Path:
    Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(path)
    return path


def truncated(path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    return made(path, path.read_bytes()[:90_000])


def other_scale(path: Path) -> Path:
    write_checkpoint(path, Checkpoint.of(RepMamba(NetworkConfig(scale=2, depths=(1,)))))
    return path


def cut_weights(path: Path) -> Path:
    return made(path, other_scale(path).read_bytes()[:100_000])


class Bad:
    """One line of the table: what is wrong, the command's arguments in a folder of its own, and
    words of the error.
    """

    def __init__(self, name: str, arguments, words: str, code: int = FAILED) -> None:
        self.name, self.arguments, self.words, self.code = name, arguments, words, code

    def __str__(self) -> str:
        return self.name


BAD_INPUTS = (
    Bad("missing file", lambda at: [at / "nowhere.tif"], "does not exist"),
    Bad("folder", lambda at: [at], "a folder is among the inputs", MISUSED),
    Bad("empty file", lambda at: [made(at / "empty.tif", b"")], "is empty"),
    Bad("truncated file", lambda at: [truncated(at / "cut.png")], "corrupt or truncated"),
    Bad("not an image", lambda at: [made(at / "text.tif", b"hello\n" * 50)], "cannot be read"),
    Bad("zero size", lambda at: [made(at / "zero.png", ZERO_SIZED_PNG)], "cannot be read"),
    Bad("unknown scale", lambda at: [image(at / "in.png"), "--scale", "5"], "--scale", MISUSED),
    Bad(
        "weights of another scale",
        lambda at: [image(at / "in.png"), "--scale", "3"],
        "x3 was requested",
    ),
    Bad(
        "corrupt weights",
        lambda at: [image(at / "in.png"), "--weights", cut_weights(at / "cut.safetensors")],
        "truncated",
    ),
    Bad(
        "no such weights",
        lambda at: [image(at / "in.png"), "--weights", at / "none.safetensors"],
        "no weights",
    ),
    Bad("output is input", lambda at: [image(at / "out.png")], "is the input", MISUSED),
    Bad(
        "output is there",
        lambda at: [image(at / "in.png"), "-o", image(at / "there.png")],
        "--overwrite",
    ),
    Bad(
        "output in no folder",
        lambda at: [image(at / "in.png"), "-o", at / "no" / "out.png"],
        "does not exist",
    ),
    Bad(
        "unknown format",
        lambda at: [image(at / "in.png"), "-o", at / "out.xyz"],
        "does not end in the suffix of a format",
        MISUSED,
    ),
    Bad(
        "window outside",
        lambda at: [image(at / "in.png"), "--window", "20,0,11,5"],
        "does not lie inside",
        MISUSED,
    ),
    Bad(
        "window of words",
        lambda at: [image(at / "in.png"), "--window", "all"],
        "4 comma-separated numbers",
        MISUSED,
    ),
    Bad(
        "bbox of no number",
        lambda at: [image(at / "in.png"), "--bbox", "nan,0,1,1"],
        "four finite numbers",
        MISUSED,
    ),
    Bad("odd tile", lambda at: [image(at / "in.png"), "--tile", "31"], "even number", MISUSED),
)
ZERO_SIZED_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000000000000000802000000e4f4d3a50000000049454e44ae426082"
)


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=str)
def test_bad_input_is_one_clear_line_and_nothing_half_written(tmp_path, weights, capsys, bad):
    arguments = [str(part) for part in bad.arguments(tmp_path)]
    before = listed(tmp_path)
    if "--weights" not in arguments:
        arguments += ["--weights", str(weights)]
    if "-o" not in arguments:
        arguments += ["-o", str(tmp_path / "out.png")]
    assert run(["upscale", *arguments, "-q"]) == bad.code
    said = capsys.readouterr()
    assert said.out == ""
    error = said.err.strip().splitlines()[-1]
    assert error.startswith("Error: ")
    assert bad.words in error
    if bad.code == FAILED:
        assert len(said.err.strip().splitlines()) == 1
    left = {name for name in listed(tmp_path) - before if not name.startswith(".")}
    assert not left


def listed(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which those above tmp_path do not let them."""
    with TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, who may write everywhere; another user stays who they are."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_written_is_one_clear_line(open_folder, weights, capsys):
    (open_folder / "closed").mkdir(mode=0o555)
    source, network = image(open_folder / "in.png"), shutil.copy(weights, open_folder)
    arguments = ["upscale", str(source), "--weights", str(network), "-q", "-o"]
    assert run([*arguments, str(open_folder / "out.png")]) == 0  # and what it imports has been read
    with as_nobody():
        code = run([*arguments, str(open_folder / "closed" / "out.png")])
    assert code == FAILED
    assert "cannot be written to" in capsys.readouterr().err
    assert not list((open_folder / "closed").iterdir())


def test_a_full_disk_is_one_clear_line_and_leaves_no_result(small_disk, tmp_path, weights, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "in.png")
    target = small_disk(192) / "out.tif"
    arguments = [
        "upscale",
        str(tmp_path / "in.png"),
        "-o",
        str(target),
        "--weights",
        str(weights),
        "-q",
    ]
    assert run(arguments) == FAILED
    assert "free space" in capsys.readouterr().err
    assert not target.exists()
