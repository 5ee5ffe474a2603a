import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from repmamba.cli.prepare import prepare as command
from repmamba.data.benchmarks import AID_CLASSES, BENCHMARKS
from repmamba.data.degradations import Stage
from repmamba.data.draw import Settings, draw_items
from repmamba.data.images import read_image
from repmamba.data.pair_files import make_item
from repmamba.data.pairs import find_pairs, pair_from_hr
from repmamba.data.prepare import prepare
from repmamba.errors import JobChanged, SourceError, TargetError, UsageError, VerificationError


def picture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(
        0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8
    )
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write(folder, sizes):
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(height, width, seed)).save(folder / name)
    return folder


def settings(name="folder", scale=4, **others):
    return Settings(BENCHMARKS[name], scale, **others)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def originals(tmp_path):
    return write(
        tmp_path / "originals",
        {f"{group}/{n:02}.png": (33, 47) for group in ("a", "b") for n in range(6)},
    )


@pytest.fixture
def aid(tmp_path):
    """AID in its real layout, three images per class; all images have the same pixels."""
    jpeg = tmp_path / "one.jpg"
    Image.fromarray(picture(600, 600)).save(jpeg)
    for name in AID_CLASSES:
        (tmp_path / "AID" / name).mkdir(parents=True)
        for number in (1, 2, 3):
            os.link(jpeg, tmp_path / "AID" / name / f"{name.lower()}_{number}.jpg")
    return tmp_path / "AID"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_folder_is_prepared_with_its_class_folders(tmp_path, originals, scale):
    prepared = prepare(originals, tmp_path / "pairs", settings(scale=scale), workers=1)
    assert (prepared.made, prepared.kept, prepared.skipped) == (12, 0, ())
    pairs = find_pairs(tmp_path / "pairs")
    assert [pair.name for pair in pairs] == [f"{group}/{n:02}" for group in "ab" for n in range(6)]
    pair = pairs[3].read(scale)
    expected = pair_from_hr("x", read_image(originals / "a/03.png"), scale)
    assert np.array_equal(pair.hr, expected.hr)
    assert np.array_equal(pair.lr, expected.lr)


def test_the_published_aid_pair_is_reproduced_from_its_original(tmp_path, reference):
    published = reference / "data" / "test" / "aid_tiny"
    prepare(published / "GT", tmp_path / "pairs", settings())
    for part in ("GT", "LR", "Bicubic"):
        made = read_image(tmp_path / "pairs" / part / "airport_285.png")
        assert np.array_equal(made, read_image(published / part / "airport_285.png"))


def test_aid_training_and_test_images_are_drawn_per_class(aid):
    items, _ = draw_items(aid, settings("aid", drawn=(2, 1)))
    train, test = ([item for item in items if item.part == part] for part in ("train", "test"))
    assert (len(train), len(test)) == (60, 30)
    assert {Path(item.name).parent.name for item in train} == {""}
    assert {Path(item.name).parent.name for item in test} == set(AID_CLASSES)
    assert {item.source for item in train}.isdisjoint(item.source for item in test)
    assert len({item.name[-1] for item in test}) > 1  # not the same number in each class
    other, _ = draw_items(aid, settings("aid", drawn=(2, 1), seed=1))
    assert items != other
    with pytest.raises(
        UsageError, match="Airport of AID has 3 suitable images, and 130 are to be drawn"
    ):
        draw_items(aid, settings("aid"))


def test_validation_images_are_in_no_other_part_and_leave_the_draw_unchanged(aid, originals):
    drawn, held = (draw_items(aid, settings("aid", drawn=(1, 1), val=val))[0] for val in (None, 1))
    assert [item for item in held if item.part != "val"] == drawn
    assert {Path(item.name).parent.name for item in held if item.part == "val"} == set(AID_CLASSES)
    assert len({item.source for item in held}) == len(held) == 3 * len(AID_CLASSES)
    items, _ = draw_items(originals, settings(val=2))
    assert sorted(item.part for item in items) == ["train"] * 8 + ["val"] * 4
    assert len({item.source for item in items}) == 12
    for others in ({"count": 5, "val": 2}, {"val": 6}):
        with pytest.raises(
            UsageError, match="7 are to be drawn; ask for fewer with --count or --val"
        ):
            draw_items(originals, settings(**others))


@pytest.mark.parametrize(("scale", "edge"), [(4, 512), (3, 510)])
def test_aid_is_cropped_from_row_and_column_43(tmp_path, aid, scale, edge):
    items, _ = draw_items(aid, settings("aid", drawn=(1, 1)))
    for item in (items[0], items[-1]):
        made = make_item(item, aid, tmp_path / "pairs", settings("aid", scale=scale))
        assert made.cut == (43, 43, edge, edge)
    assert [pair.name for pair in find_pairs(tmp_path / "pairs" / "test")] == [items[0].name]
    pair = find_pairs(tmp_path / "pairs" / "train")[0].read(scale)
    assert np.array_equal(
        pair.hr, read_image(aid / items[-1].source)[43 : 43 + edge, 43 : 43 + edge]
    )


def test_a_manifest_repeats_a_draw_at_another_scale(tmp_path, originals):
    first, second, again = (tmp_path / name for name in ("first", "second", "again"))
    prepare(originals, first, settings(count=2))
    prepare(originals, second, settings(count=2, seed=1))
    prepare(originals, again, settings(scale=3), manifest=first / "manifest.json")
    names = [[pair.name for pair in find_pairs(folder)] for folder in (first, second, again)]
    assert names[0] != names[1]
    assert names[0] == names[2]
    assert find_pairs(again)[0].read(3).hr.shape == (33, 45, 3)


def test_the_manifest_of_a_repeated_draw_records_that_draw(tmp_path, originals):
    prepare(originals, tmp_path / "first", settings(count=2, val=1, seed=5), workers=1)
    first = tmp_path / "first" / "manifest.json"
    prepare(originals, tmp_path / "again", settings(scale=3), manifest=first, workers=1)
    before, again = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("first", "again")
    )
    assert (again["count"], again["val"], again["seed"], again["scale"]) == (2, 1, 5, 3)
    assert again["images_sha256"] == before["images_sha256"]
    for others, text in (({"count": 2}, "leave out --count"), ({"val": 1}, "leave out --val")):
        with pytest.raises(UsageError, match=text):
            prepare(originals, tmp_path / "more", settings(**others), manifest=first)
    with pytest.raises(UsageError, match=r"manifest.json is of the benchmark 'folder', not nwpu"):
        prepare(originals, tmp_path / "more", settings("nwpu"), manifest=first)


def test_pixels_that_differ_from_the_manifest_are_reported(tmp_path, originals):
    prepare(originals, tmp_path / "first", settings(), workers=1)
    manifest = tmp_path / "first" / "manifest.json"
    assert (
        prepare(originals, tmp_path / "again", settings(), manifest=manifest, workers=1).changed
        == ()
    )
    listed = json.loads(manifest.read_text())
    listed["images"][3]["lr_sha256"] = "0"
    manifest.write_text(json.dumps(listed))
    prepared = prepare(originals, tmp_path / "other", settings(), manifest=manifest, workers=1)
    assert prepared.changed == ("a/03",)
    assert "pixels differ from the given manifest: 1, first a/03" in prepared.summary()
    assert (
        prepare(originals, tmp_path / "x3", settings(scale=3), manifest=manifest, workers=1).changed
        == ()
    )


@pytest.mark.parametrize("inside", [".", "GT", "a/GT"])
def test_pairs_are_not_accepted_as_originals(tmp_path, originals, inside):
    if inside == "a/GT":
        (originals / "a").rename(originals / "GT")
        (originals / "a").mkdir()
        (originals / "GT").rename(originals / "a" / "GT")
        source, expected = originals, originals / "a" / "GT"
    else:
        prepare(originals, tmp_path / "pairs", settings(), workers=1)
        source, expected = tmp_path / "pairs" / inside, tmp_path / "pairs" / "GT"
    if inside == "GT":
        assert prepare(source, tmp_path / "more", settings(scale=2), workers=1).made == 12
        return
    with pytest.raises(UsageError, match=f"already holds pairs.*give {expected}"):
        prepare(source, tmp_path / "more", settings())


def test_a_manifest_states_the_rule_and_checks_the_originals(tmp_path, originals):
    prepare(originals, tmp_path / "pairs", settings())
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert "MATLAB" in manifest["rule"]
    assert manifest["images"][0]["cut"] == [0, 0, 32, 44]
    assert len(manifest["images"][0]["source_sha256"]) == 64
    write(originals, {"a/00.png": (33, 46)})
    with pytest.raises(
        VerificationError, match=r"00\.png is not the image that the manifest lists"
    ):
        prepare(
            originals, tmp_path / "again", settings(), manifest=tmp_path / "pairs" / "manifest.json"
        )
    (originals / "b" / "05.png").unlink()
    with pytest.raises(SourceError, match=r"lacks 1 images of manifest.json, b/05.png"):
        prepare(
            originals, tmp_path / "more", settings(), manifest=tmp_path / "pairs" / "manifest.json"
        )


@pytest.mark.parametrize(
    ("key", "text"), [("name", "../../x"), ("source", "/etc/passwd"), ("part", ".."), ("name", 3)]
)
def test_a_manifest_cannot_name_files_outside_its_folders(tmp_path, originals, key, text):
    entry = {"part": "", "name": "x", "source": "a/00.png", "source_sha256": "0"} | {key: text}
    entry |= {"cut": [0, 0, 4, 4], "gt_sha256": "0", "lr_sha256": "0"}
    (tmp_path / "evil.json").write_text(json.dumps({"images": [entry]}))
    with pytest.raises(SourceError, match="which leaves its folder"):
        prepare(originals, tmp_path / "pairs", settings(), manifest=tmp_path / "evil.json")


def test_a_file_that_is_not_a_manifest_is_refused(tmp_path, originals):
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(SourceError, match="is not a manifest"):
        prepare(originals, tmp_path / "pairs", settings(), manifest=tmp_path / "list.json")


@pytest.mark.parametrize("name", ["dota", "dior"])
def test_dota_and_dior_are_cropped_at_the_centre_and_downsampled_by_pillow(tmp_path, name):
    folder = {"dota": "train/images", "dior": "JPEGImages-test"}[name]
    source = write(
        tmp_path / name, {f"{folder}/0001.png": (601, 702), f"{folder}/0002.png": (511, 900)}
    )
    prepared = prepare(source, tmp_path / "pairs", settings(name, scale=3))
    assert prepared.made == 1
    assert prepared.skipped[0].reason == "511x900 pixels; at least 512x512 are needed."
    pair = find_pairs(tmp_path / "pairs")[0].read(3)
    assert np.array_equal(
        pair.hr, read_image(source / folder / "0001.png")[44 : 44 + 510, 95 : 95 + 510]
    )
    lr = Image.fromarray(pair.hr).resize((170, 170), Image.Resampling.BICUBIC)
    assert np.array_equal(pair.lr, np.asarray(lr))
    bicubic = read_image(tmp_path / "pairs" / "Bicubic" / "0001.png")
    assert np.array_equal(bicubic, np.asarray(lr.resize((510, 510), Image.Resampling.BICUBIC)))


def test_a_count_is_drawn_with_a_seed_from_images_that_are_large_enough(tmp_path):
    sizes = {f"images/P{n:04}.png": (520, 520) if n % 2 else (100, 900) for n in range(8)}
    source = write(tmp_path / "DOTA", sizes)
    prepared = prepare(source, tmp_path / "pairs", settings("dota", count=2, seed=5))
    again = prepare(source, tmp_path / "again", settings("dota", count=2, seed=5))
    assert (prepared.made, len(prepared.skipped)) == (2, 4)
    assert prepared.skipped == again.skipped
    assert contents(tmp_path / "pairs") == contents(tmp_path / "again")
    with pytest.raises(UsageError, match="DOTA has 4 suitable images, and 5 are to be drawn"):
        prepare(source, tmp_path / "more", settings("dota", count=5))


def test_a_count_is_drawn_per_class(tmp_path, originals):
    prepare(originals, tmp_path / "pairs", settings(count=2))
    assert [pair.group for pair in find_pairs(tmp_path / "pairs")] == ["a", "a", "b", "b"]


def test_broken_images_are_reported_and_left_out(tmp_path, originals):
    (originals / "a" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (originals / "b" / "deep.tif").write_bytes(b"II*\0")
    write(originals, {"b/tiny.png": (3, 40)})
    prepared = prepare(originals, tmp_path / "pairs", settings(), workers=2)
    assert prepared.made == 11
    assert {one.source for one in prepared.skipped} == {"a/00.png", "b/deep.tif", "b/tiny.png"}
    assert "a/00.png: 00.png cannot be read as a picture" in prepared.summary()
    assert "3 left out" in prepared.summary()
    assert len(json.loads(prepared.manifest.read_text())["skipped"]) == 3


def test_an_unreadable_original_is_reported_and_left_out(tmp_path, originals, monkeypatch):
    plain = Path.read_bytes

    def denied(path):
        if path.name == "03.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    prepared = prepare(originals, tmp_path / "pairs", settings(), workers=1)
    assert prepared.made == 10
    assert [one.source for one in prepared.skipped] == ["a/03.png", "b/03.png"]
    assert "left out a/03.png: 03.png cannot be read: Permission denied." in prepared.summary()


def test_the_number_of_workers_does_not_change_the_output(tmp_path, originals):
    chosen = settings(stages=(Stage("blur", 0.3, 2), Stage("noise", 0, 9), Stage("jpeg", 30, 90)))
    prepare(originals, tmp_path / "one", chosen, workers=1)
    prepare(originals, tmp_path / "three", chosen, workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_no_process_is_started_if_only_one_core_may_be_used(tmp_path, originals, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3})
    monkeypatch.setattr(
        "repmamba.data.prepare.ProcessPoolExecutor", lambda *_, **__: pytest.fail("started")
    )
    assert prepare(originals, tmp_path / "pairs", settings()).made == 12


def test_degradations_change_only_lr_and_the_manifest_records_them(tmp_path, originals):
    prepare(originals, tmp_path / "plain", settings())
    prepare(originals, tmp_path / "noisy", settings(stages=(Stage("noise", 5, 5),)))
    plain, noisy = (find_pairs(tmp_path / name)[0].read(4) for name in ("plain", "noisy"))
    assert np.array_equal(plain.hr, noisy.hr)
    assert 3 < (noisy.lr.astype(float) - plain.lr).std() < 7
    assert "noise 5 to 5" in json.loads((tmp_path / "noisy" / "manifest.json").read_text())["rule"]


def test_a_named_chain_makes_lr_and_the_manifest_describes_it(tmp_path, originals):
    prepare(originals, tmp_path / "plain", settings())
    prepare(originals, tmp_path / "middle", settings(degrade="middle"))
    prepare(originals, tmp_path / "again", settings(degrade="middle"), workers=2)
    plain, made, again = (
        find_pairs(tmp_path / name)[0].read(4) for name in ("plain", "middle", "again")
    )
    assert np.array_equal(plain.hr, made.hr)
    assert not np.array_equal(plain.lr, made.lr)
    assert np.array_equal(again.lr, made.lr)
    manifest = json.loads((tmp_path / "middle" / "manifest.json").read_text())
    assert (manifest["degrade"], manifest["seed"]) == ("middle", 0)
    assert (
        "LR by the chain middle: blur (gaussian, stretched, box, disk) 0.5 to 0.9 lr pixels"
        in manifest["rule"]
    )
    assert "JPEG (colours whole, halved) 60 to 80 quality in 100%" in manifest["rule"]
    with pytest.raises(JobChanged, match="made with another degrade"):
        prepare(originals, tmp_path / "middle", settings(degrade="mild"))


def test_an_unknown_chain_and_a_chain_with_further_stages_are_refused():
    with pytest.raises(
        UsageError, match="no chain 'fog'; choose among sensor, mild, middle, strong"
    ):
        settings(degrade="fog")
    with pytest.raises(UsageError, match="The chain mild already includes blur, noise and JPEG"):
        settings(degrade="mild", stages=(Stage("noise", 5, 5),))


def test_a_second_run_keeps_complete_images_and_makes_missing_ones(tmp_path, originals):
    prepare(originals, tmp_path / "pairs", settings())
    before = contents(tmp_path / "pairs")
    (tmp_path / "pairs" / "LR" / "a" / "02.png").unlink()
    prepared = prepare(originals, tmp_path / "pairs", settings())
    assert (prepared.made, prepared.kept) == (1, 11)
    assert contents(tmp_path / "pairs") == before


def empty(content):
    return b""


def cut_short(content):
    return content[:-20]


def with_a_hole(content):
    return content[:100] + bytes(100) + content[200:]


@pytest.mark.parametrize("harm", [empty, cut_short, with_a_hole], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("folder", ["GT", "LR", "Bicubic"])
def test_an_image_damaged_by_a_power_cut_is_made_again(tmp_path, originals, folder, harm):
    prepare(originals, tmp_path / "pairs", settings(), workers=1)
    before = contents(tmp_path / "pairs")
    harmed = tmp_path / "pairs" / folder / "a" / "02.png"
    harmed.write_bytes(harm(harmed.read_bytes()))
    prepared = prepare(originals, tmp_path / "pairs", settings(), workers=1)
    assert (prepared.made, prepared.kept) == (1, 11)
    assert contents(tmp_path / "pairs") == before


def test_the_manifest_is_on_the_disk_before_the_journal_is_removed(
    tmp_path, originals, disk_events
):
    prepare(originals, tmp_path / "pairs", settings(), workers=1)
    (synced, draft), *others = disk_events[-4:]
    assert (synced, draft.startswith(".manifest.json")) == ("fsync", True)
    assert others == [
        ("replace", "manifest.json"),
        ("fsync", "pairs"),
        ("unlink", ".prepare.jsonl"),
    ]


def test_results_of_other_settings_or_other_originals_never_mix(tmp_path, originals):
    prepare(originals, tmp_path / "pairs", settings())
    with pytest.raises(JobChanged, match="another scale"):
        prepare(originals, tmp_path / "pairs", settings(scale=2))
    write(originals, {"a/99.png": (33, 47)})
    with pytest.raises(JobChanged, match="another images_sha256"):
        prepare(originals, tmp_path / "pairs", settings())


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.long)])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, kills):
    source = write(tmp_path / "originals", {f"{n:03}.png": (192, 192) for n in range(40)})
    prepare(source, tmp_path / "whole", settings(), workers=1)
    whole = contents(tmp_path / "whole")
    line = [
        sys.executable,
        "-c",
        "import sys; from repmamba.cli.main import main; main(sys.argv[1:])",
        "prepare",
        "folder",
        str(source),
        str(tmp_path / "killed"),
        "--scale",
        "4",
        "--jobs",
        "1",
    ]
    for kill in range(kills):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = (kill + 1) * 36 // kills
        while (
            len(list((tmp_path / "killed" / "LR").glob("*.png"))) < wanted
            and process.poll() is None
        ):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    journal = tmp_path / "killed" / ".prepare.jsonl"
    with journal.open("a") as file:
        file.write('{"part": "", "na')  # an incomplete line, as a kill leaves it
    prepared = prepare(source, tmp_path / "killed", settings(), workers=1)
    assert prepared.kept > 0
    assert contents(tmp_path / "killed") == whole


def test_nested_folders_and_impossible_targets_are_refused(tmp_path, originals):
    for target in (originals, originals / "pairs", tmp_path):
        with pytest.raises(UsageError, match="contain each other"):
            prepare(originals, target, settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match="cannot be written"):
        prepare(originals, tmp_path / "file" / "pairs", settings())


@pytest.mark.parametrize(
    "others",
    [
        {"scale": 5},
        {"seed": -1},
        {"count": 0},
        {"drawn": (1, 1)},
        {"name": "aid", "count": 3},
        {"name": "aid", "drawn": (0, 0)},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(others):
    with pytest.raises(UsageError):
        settings(**others)


def test_the_command_prints_a_summary(tmp_path, originals):
    arguments = [
        "folder",
        str(originals),
        str(tmp_path / "pairs"),
        "--scale",
        "4",
        "--jpeg",
        "50",
        "90",
        "-q",
    ]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert "12 images made" in result.stdout
