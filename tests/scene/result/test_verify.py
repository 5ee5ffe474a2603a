import json
from pathlib import Path

import pytest
import rasterio
from click.testing import CliRunner

from repmamba.cli.verify import verify
from repmamba.errors import VerificationError
from repmamba.scene.result.readback import missing_block, open_level, verify_result
from repmamba.scene.result.receipt import read_receipt, receipt_path

from .made_scene import SCENES


@pytest.fixture(params=SCENES)
def result(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, scene = SCENES[request.param]
    scene.write(tmp_path / name)
    return tmp_path / name


def flip(path: Path, place: int) -> bytes:
    before = path.read_bytes()
    path.write_bytes(before[:place] + bytes([before[place] ^ 4]) + before[place + 1 :])
    return before


def test_a_receipt_comes_back_as_it_was_written(result):
    text = receipt_path(result).read_text()
    assert read_receipt(receipt_path(result)).as_text() == text


def test_a_result_is_what_its_receipt_says(result):
    receipt = read_receipt(receipt_path(result))
    assert verify_result(result, receipt) == sum(len(level.pieces) for level in receipt.levels)


def test_one_flipped_bit_anywhere_in_the_file_is_seen(result):
    receipt = read_receipt(receipt_path(result))
    size = result.stat().st_size
    for place in range(0, size, size // 23):
        before = flip(result, place)
        with pytest.raises(VerificationError):
            verify_result(result, receipt)
        result.write_bytes(before)
    verify_result(result, receipt)


def test_a_file_that_was_cut_short_is_seen(result):
    receipt = read_receipt(receipt_path(result))
    with result.open("r+b") as file:
        file.truncate(result.stat().st_size - 7)
    with pytest.raises(VerificationError):
        verify_result(result, receipt)


def place_of_block(path: Path, level: int, col: int, row: int) -> int:
    with rasterio.open(path) as file:
        tag = file.get_tag_item(
            f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1, ovr=None if level == 0 else level - 1
        )
        return int(tag) + 40


def test_the_tile_at_fault_is_named(tmp_path):
    name, scene = SCENES["GTiff"]
    receipt = scene.write(tmp_path / name)
    with rasterio.open(tmp_path / name, "r+") as file:
        pixel = rasterio.windows.Window(300, 301, 1, 1)
        file.write(file.read(window=pixel) ^ 1, window=pixel)
    with pytest.raises(
        VerificationError, match=r"tile 4 \(rows 256 to 512, columns 256 to 512\) is not what was"
    ):
        verify_result(tmp_path / name, receipt)


def test_the_place_of_a_tile_that_cannot_be_decoded_is_named(tmp_path):
    name, scene = SCENES["GTiff"]
    receipt = scene.write(tmp_path / name)
    with (tmp_path / name).open("r+b") as file:
        file.seek(place_of_block(tmp_path / name, 0, col=1, row=1))
        file.write(b"\xff" * 400)
    with pytest.raises(
        VerificationError, match=r"rows 256 to 512, columns 256 to 512 cannot be decoded"
    ):
        verify_result(tmp_path / name, receipt)


def test_the_overview_at_fault_is_named(tmp_path):
    name, scene = SCENES["COG"]
    receipt = scene.write(tmp_path / name)
    assert len(receipt.levels) == 4
    flip(tmp_path / name, place_of_block(tmp_path / name, 2, col=0, row=0))
    with pytest.raises(VerificationError, match="overview 2"):
        verify_result(tmp_path / name, receipt)


def test_changed_metadata_is_told_from_changed_pixels(tmp_path):
    name, scene = SCENES["GTiff"]
    receipt = scene.write(tmp_path / name)
    with rasterio.open(tmp_path / name, "r+") as file:
        file.update_tags(NOTE="by another program")
    with pytest.raises(VerificationError, match="all 9 tiles have the right pixels"):
        verify_result(tmp_path / name, receipt)


def test_a_missing_side_car_is_named(tmp_path):
    name, scene = SCENES["PNG"]
    receipt = scene.write(tmp_path / name)
    (tmp_path / "scene.pgw").unlink()
    with pytest.raises(VerificationError, match=r"scene\.pgw"):
        verify_result(tmp_path / name, receipt)


def test_every_block_of_a_whole_file_has_its_bytes(tmp_path):
    name, scene = SCENES["COG"]
    receipt = scene.write(tmp_path / name)
    with open_level(tmp_path / name) as dataset:
        assert [missing_block(dataset, level) for level in range(len(receipt.levels))] == [None] * 4


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"receipt": 2}', '{"receipt": 1, "levels": 3}'])
def test_a_receipt_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "a.receipt.json").write_text(text)
    with pytest.raises(VerificationError):
        read_receipt(tmp_path / "a.receipt.json")


def test_the_command_says_ok_with_counts_or_names_the_fault(tmp_path):
    name, scene = SCENES["COG"]
    scene.write(tmp_path / name)
    said = CliRunner().invoke(verify, [str(tmp_path / name)])
    assert (said.exit_code, said.stdout) == (
        0,
        f"{tmp_path / name}: OK, 9 tiles and 3 overviews as written\n",
    )
    said = CliRunner().invoke(verify, ["--json", str(tmp_path / name)])
    assert json.loads(said.stdout)["ok"] is True
    flip(tmp_path / name, place_of_block(tmp_path / name, 0, 0, 0))
    said = CliRunner().invoke(verify, [str(tmp_path / name)])
    assert said.exit_code == 1
    assert isinstance(said.exception, VerificationError)
    assert isinstance(
        CliRunner().invoke(verify, [str(tmp_path / "other.tif")]).exception, VerificationError
    )


def test_a_result_that_was_moved_is_checked_against_the_receipt_named(tmp_path):
    name, scene = SCENES["GTiff"]
    scene.write(tmp_path / name)
    moved = (tmp_path / name).rename(tmp_path / "moved.tif")
    said = CliRunner().invoke(
        verify, [str(moved), "--receipt", str(receipt_path(tmp_path / name)), "--quiet"]
    )
    assert (said.exit_code, said.output) == (0, "")
    said = CliRunner().invoke(
        verify, [str(moved), str(moved), "--receipt", str(receipt_path(tmp_path / name))]
    )
    assert said.exit_code == 2


def test_a_link_to_a_result_is_checked_where_it_leads(tmp_path):
    name, scene = SCENES["PNG"]  # with a side-car
    (tmp_path / "there").mkdir()
    scene.write(tmp_path / "there" / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "there" / name)
    said = CliRunner().invoke(verify, [str(tmp_path / "link.png")])
    assert (said.exit_code, said.stdout) == (
        0,
        f"{tmp_path / 'link.png'}: OK, 9 tiles as written\n",
    )


def test_of_several_results_those_at_fault_are_named_and_the_others_checked(tmp_path):
    name, scene = SCENES["GTiff"]
    scene.write(tmp_path / name)
    said = CliRunner().invoke(
        verify, [str(tmp_path / "none.tif"), str(tmp_path / name), str(tmp_path / "no.tif")]
    )
    assert said.exit_code == 1
    assert said.stdout == f"{tmp_path / name}: OK, 9 tiles as written\n"
    assert said.stderr.count("Error: There is no receipt") == 2
    assert str(said.exception).startswith("2 of 3 files are not what was written")


DAMAGES = {
    "unknown format": lambda values: values.update(format="XYZ"),
    "no side-cars": lambda values: values.update(sidecars=None),
    "no levels": lambda values: values.update(levels=[]),
    "no pieces": lambda values: values["levels"][0].update(pieces=[]),
    "a piece left out": lambda values: values["levels"][0]["pieces"].pop(),
    "a side-car elsewhere": lambda values: values.update(sidecars={"../x": "00"}),
    "text in a window": lambda values: values["levels"][0]["pieces"][0][0].__setitem__(0, "a"),
    "text for bytes": lambda values: values.update(bytes="1"),
    "a number for the digest": lambda values: values.update(sha256=1),
    "text for a mean": lambda values: values["levels"][0]["pieces"][0].__setitem__(3, ["a"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_receipt_is_one_line_and_never_ok(tmp_path, damage):
    name, scene = SCENES["JPEG"]
    scene.write(tmp_path / name)
    values = json.loads(receipt_path(tmp_path / name).read_text())
    DAMAGES[damage](values)
    receipt_path(tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(VerificationError, match=r"is not a valid receipt"):
        read_receipt(receipt_path(tmp_path / name))
