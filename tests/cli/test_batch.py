"""Several inputs: which are meant, where results go, and the same command again."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from repmamba.cli import batch
from repmamba.cli.batch import Input, Job
from repmamba.cli.main import FAILED, MISUSED, run
from repmamba.errors import SourceError, TargetError, UsageError

SCENE = Path(__file__).resolve().parents[2] / "examples" / "colorado.tif"


def planned(sources, target, scale=2, *, dry_run=False):
    jobs = batch.plan_outputs(
        [Input(str(source)) for source in sources],
        str(target),
        scale,
        folders=False,
        dry_run=dry_run,
    )
    return [job.target for job in jobs]


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    """A folder in/ of two small scenes, one more below it, and what is none; it is the working
    folder's.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "below").mkdir(parents=True)
    for number, name in enumerate(("a.tif", "b.tif", "below/a.tif")):
        z = np.random.default_rng(number).integers(20, 230, (1, 24, 32), np.uint8)
        with rasterio.open(
            tmp_path / "in" / name,
            "w",
            driver="GTiff",
            width=32,
            height=24,
            count=1,
            dtype="uint8",
            crs="EPSG:32632",
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        ) as file:
            file.write(z)
    (tmp_path / "in" / "notes.txt").write_text("not a raster")
    (tmp_path / "in" / ".hidden.tif").write_text("not to be seen")
    return tmp_path / "in"


def upscale(*arguments):
    return run(["upscale", *map(str, arguments), "--scale", "2"])


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("scene.tif", "scene_x4.tif"),
        ("folder/PHOTO.JPG", "PHOTO_x4.JPG"),
        ("scene.cog.tif", "scene_x4.cog.tif"),
        ("a.b.jp2", "a.b_x4.tif"),
        ("noending", "noending_x4.tif"),
        # one of several rasters in a file
        ('NETCDF:"data/a.nc":heat', "a_heat_x4.tif"),
        ("NETCDF:data/a.nc:heat", "a_heat_x4.tif"),
        ('HDF5:"a.h5"://group/albedo', "a_group_albedo_x4.tif"),
        ('HDF4_EOS:EOS_GRID:"MOD.hdf":grid:band 1', "MOD_EOS_GRID_grid_band_1_x4.tif"),
        ("GTIFF_DIR:2:pages.tif", "pages_2_x4.tif"),
        ("SENTINEL2_L2A:/data/MTD_MSIL2A.xml:10m:EPSG_32632", "MTD_MSIL2A_10m_EPSG_32632_x4.tif"),
        ('ZARR:"cube.zarr":/red', "cube_red_x4.tif"),
        # in archives and at addresses
        ("/vsizip/archive.zip/inside/b.tif", "b_x4.tif"),
        ("https://host/path/c.tif?token=1/2", "c_x4.tif"),
        ("/vsicurl/https://host/c.tif?token=x.y", "c_x4.tif"),
        ("s3://bucket/d.jp2", "d_x4.tif"),
    ],
)
def test_a_result_in_a_folder_keeps_the_name_of_its_input(source, name):
    assert batch.named_larger(source, 4) == name


def test_subdatasets_of_one_file_have_names_of_their_own(tmp_path):
    (tmp_path / "a.nc").write_text("")
    sources = [f'NETCDF:"{tmp_path}/a.nc":{name}' for name in ("heat", "wind")]
    assert [path.name for path in planned(sources, tmp_path)] == ["a_heat_x2.tif", "a_wind_x2.tif"]


def test_one_input_goes_to_the_file_and_several_into_the_folder(tmp_path):
    assert planned(["a.tif"], tmp_path / "b.tif") == [tmp_path / "b.tif"]
    assert planned(["a.tif"], tmp_path) == [tmp_path / "a_x2.tif"]
    new = tmp_path / "new" / "folder"
    assert planned(["a.tif", "c.png"], new, 3, dry_run=True) == [new / "a_x3.tif", new / "c_x3.png"]
    assert not new.exists()
    planned(["a.tif", "c.png"], new, 3)
    assert new.is_dir()


def test_a_name_that_ends_in_a_slash_is_a_folder_for_one_input_too(tmp_path):
    assert planned(["a.tif"], f"{tmp_path}/new.tif/") == [tmp_path / "new.tif" / "a_x2.tif"]
    assert (tmp_path / "new.tif").is_dir()


def test_inputs_of_one_name_and_a_file_for_several_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"would be written to .*out/a_x2.tif \(one/a.tif, two/a.tif\)"
    ):
        planned(["one/a.tif", "two/a.tif"], tmp_path / "out")
    (tmp_path / "file.tif").write_text("")
    with pytest.raises(UsageError, match="is a file, and there are 2 inputs: give a folder"):
        planned(["a.tif", "b.tif"], tmp_path / "file.tif")


@pytest.mark.parametrize(
    "name", ["result.tif", "result.COG.TIF", "result.png", "result.jp2", "result.vrt"]
)
def test_a_name_of_a_file_is_no_folder_for_several(tmp_path, name):
    with pytest.raises(
        UsageError, match="looks like a file name, and there are 2 inputs: give a folder"
    ):
        planned(["a.tif", "b.tif"], tmp_path / name)
    assert os.listdir(tmp_path) == []
    assert planned(["a.tif", "b.tif"], f"{tmp_path / name}/")[0] == tmp_path / name / "a_x2.tif"
    assert planned(["a.tif", "b.tif"], tmp_path / "v1.2")[0] == tmp_path / "v1.2" / "a_x2.tif"


def test_no_result_replaces_an_input_even_where_others_are_missing(tmp_path):
    (tmp_path / "a.tif").write_text("")
    assert planned([tmp_path / "a.tif", "gone.tif"], tmp_path, dry_run=True)[0].name == "a_x2.tif"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=r"file/out cannot be created: Not a directory\. Choose"):
        planned(["a.tif", "b.tif"], tmp_path / "file" / "out", 4)


def test_of_several_inputs_one_that_fails_is_named_and_the_others_go_on(capsys):
    enlarged = []

    def enlarge(job):
        if job.source.startswith("bad"):
            raise SourceError("it is empty")
        enlarged.append(job.source)

    jobs = [Job(name, Path("out", name)) for name in ("a.tif", "bad1.tif", "b.tif", "bad2.tif")]
    assert batch.one_by_one(enlarge, jobs) == ["bad1.tif", "bad2.tif"]
    assert enlarged == ["a.tif", "b.tif"]
    assert capsys.readouterr().err.splitlines() == [
        "Error: bad1.tif: it is empty",
        "Error: bad2.tif: it is empty",
    ]
    with pytest.raises(SourceError, match=r"^it is empty$"):
        batch.one_by_one(enlarge, jobs[1:2])


def test_a_folder_stands_for_the_rasters_in_it(scenes, tmp_path):
    found = batch.find_inputs(["in"], "out", recursive=False)
    assert found == [Input("in/a.tif", "."), Input("in/b.tif", ".")]
    found = batch.find_inputs(["in", "more.tif"], "out", recursive=True)
    assert found == [
        Input("in/a.tif", "."),
        Input("in/b.tif", "."),
        Input("in/below/a.tif", "below"),
        Input("more.tif"),
    ]
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(SourceError, match=r"empty contains no rasters; --recursive also searches"):
        batch.find_inputs(["empty"], "out", recursive=False)
    with pytest.raises(SourceError, match=r"empty contains no rasters\. Suffixes: \.tif"):
        batch.find_inputs(["empty"], "out", recursive=True)


def test_results_are_no_inputs_of_the_same_command(scenes):
    """Results beside their inputs, and in a folder below them."""
    assert upscale("in", "-o", "in") == 0
    assert upscale("in", "-o", "in/results/", "--recursive") == 0
    assert upscale("in", "-o", "in") == upscale("in", "-o", "in/results/", "--recursive") == 0
    names = sorted(
        str(path.relative_to(scenes)) for path in scenes.rglob("*.tif") if "_x2" in path.name
    )
    assert names == [
        "a_x2.tif",
        "b_x2.tif",
        "results/a_x2.tif",
        "results/b_x2.tif",
        "results/below/a_x2.tif",
    ]


def test_the_same_command_again_does_what_is_left(scenes, tmp_path, capsys):
    shutil.copy(scenes / "a.tif", scenes / "c.tif")
    (scenes / "d.tif").write_bytes((scenes / "a.tif").read_bytes()[:200])
    assert upscale("in", "-o", "out") == FAILED
    said = capsys.readouterr()
    assert (
        "1 of 4 inputs were not upscaled: in/d.tif. The same command tries them again." in said.err
    )
    assert "4 inputs: 3 upscaled" in said.out
    assert said.out.rstrip().splitlines()[-1] == "  x2 with x2, made consistent"
    (tmp_path / "out" / "b_x2.tif").unlink()
    shutil.copy(scenes / "a.tif", scenes / "d.tif")
    before = (tmp_path / "out" / "a_x2.tif").stat().st_mtime_ns
    assert upscale("in", "-o", "out") == 0
    said = capsys.readouterr()
    assert "2 of 4 were already done" in said.out
    assert "out/a_x2.tif: already done" in said.out
    assert (tmp_path / "out" / "a_x2.tif").stat().st_mtime_ns == before
    assert upscale("in", "-o", "out", "--dry-run") == 0
    assert "4 inputs; 4 of 4 were already done" in capsys.readouterr().out
    assert upscale("in", "-o", "out", "--overwrite", "-q") == 0
    assert (tmp_path / "out" / "a_x2.tif").stat().st_mtime_ns != before


def test_a_target_of_another_job_or_of_anybody_is_in_the_way(scenes, tmp_path, capsys):
    assert upscale("in/a.tif", "-o", "a.tif") == 0
    assert upscale("in/a.tif", "-o", "a.tif") == 0
    assert "a.tif: already done by the same command" in capsys.readouterr().out
    assert upscale("in/a.tif", "-o", "a.tif", "--tile", "16") == FAILED
    assert "exists already, made otherwise (settings.tile: 256 -> 16)" in capsys.readouterr().err
    with (tmp_path / "a.tif").open("r+b") as file:  # no more what the receipt says
        file.seek(-8, os.SEEK_END)
        file.write(b"damaged!")
    assert upscale("in/a.tif", "-o", "a.tif") == FAILED
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "mine.tif").write_text("mine")
    assert upscale("in/a.tif", "-o", "mine.tif") == FAILED
    assert (tmp_path / "mine.tif").read_text() == "mine"


def test_a_result_that_is_stored_otherwise_is_in_the_way_until_it_is_replaced(
    scenes, tmp_path, capsys
):
    usual = ("in/a.tif", "-o", "a.tif", "-q")
    assert upscale(*usual) == 0
    assert upscale(*usual, "--co", "NUM_THREADS=2", "--co", "compress=deflate") == 0
    other = (*usual, "--co", "COMPRESS=LZW")
    for more in ((), ("--dry-run",)):
        assert upscale(*other, *more) == FAILED
        said = capsys.readouterr().err
        assert "exists already, made otherwise (creation.COMPRESS: DEFLATE -> LZW" in said
    assert upscale(*usual, "--format", "COG") == FAILED
    assert "format: GTiff -> COG" in capsys.readouterr().err
    assert upscale(*other, "--overwrite") == 0
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.profile["compress"] == "lzw"
    assert upscale(*other) == 0


def test_a_dry_run_of_several_says_what_they_take_together(scenes, capsys):
    assert upscale("in", "-o", "out", "--recursive", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" -> ")[0] for line in said[:3]] == [
        "in/a.tif",
        "in/b.tif",
        "in/below/a.tif",
    ]
    assert said[2].startswith(
        "in/below/a.tif -> out/below/a_x2.tif: 64 x 48 pixels, 1 band of uint8, GTiff"
    )
    assert said[3].startswith("3 inputs: 0.0 megapixels, about")
    assert "of disk space" in said[3]
    assert said[4].startswith("  x2 with x2, tiles of 256 + 8 input pixels")
    assert len(said) == 5
    assert not Path("out").exists()


def test_the_log_names_the_place_among_several_and_says_once_what_holds_for_all(scenes, capsys):
    assert upscale("in", "-o", "out", "--recursive") == 0
    said = capsys.readouterr().err
    assert said.count("made consistent with its input") == 1
    assert "3 of 3: a.tif: 100 %" in said


def test_as_json_every_line_is_an_event(scenes, capsys):
    (scenes / "c.tif").write_bytes((scenes / "a.tif").read_bytes()[:200])
    assert upscale("in", "-o", "out", "--json") == FAILED
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("result") == 2
    assert kinds[-2:] == ["summary", "error"]
    result = next(event for event in events if event["event"] == "result")
    assert (result["source"], result["epsg"], result["done_already"]) == ("in/a.tif", 32632, False)
    progress = [
        event for event in events if event["event"] == "progress" and event["source"] == "in/a.tif"
    ]
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["unit"]) == (
        64 * 48,
        64 * 48,
        "pixels",
    )
    wrong = next(event for event in events if event["event"] == "error")
    assert (wrong["source"], wrong["error"]) == ("in/c.tif", "CorruptSource")
    assert upscale("in/a.tif", "-o", "out/", "--json", "-q") == 0
    (only,) = capsys.readouterr().out.splitlines()
    assert json.loads(only)["done_already"] is True


@pytest.mark.parametrize(
    "arguments", [["--scale", "9", "--json"], ["--json", "--nonsense"], ["--json"]]
)
def test_misuse_is_an_event_too(arguments, capsys):
    assert run(["upscale", "a.tif", *arguments]) == MISUSED
    shown = capsys.readouterr()
    assert json.loads(shown.out)["event"] == "error"
    assert shown.err == ""
    assert run(["upscale", "a.tif", "--scale", "9"]) == MISUSED
    assert capsys.readouterr().out == ""


STORES = (
    "s3://bucket/",
    "s3://bucket/one.tif",
    "gs://bucket/",
    "az://c/",
    "/vsis3/bucket/",
    "/vsigs/bucket/x.tif",
)


@pytest.mark.parametrize(
    "target", [*STORES, "abfs://c/x.tif", "https://host/x.tif", "/vsizip/a.zip/x.tif"]
)
def test_an_output_that_is_not_on_this_machine_is_refused_before_anything_is_read(
    scenes, tmp_path, capsys, monkeypatch, target
):
    monkeypatch.setattr(
        "repmamba.inference.loading.load", lambda **network: pytest.fail("weights were read")
    )
    for sources in (["in/a.tif"], ["in/a.tif", "in/b.tif"], ["gone.tif"], ["in"]):
        for dry in ([], ["--dry-run"]):
            assert upscale(*sources, "-o", target, *dry) == MISUSED
            said = capsys.readouterr().err
            assert said.startswith(
                f"Error: {target} is not a local path, and only local files are written: name a"
            )
            assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["in"]
