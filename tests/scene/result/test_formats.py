from dataclasses import replace
from pathlib import Path

import pytest

from repmamba.errors import TargetError, UsageError
from repmamba.scene.result.formats import (
    FORMATS,
    check_fit,
    creation_options,
    format_of,
    is_lossless,
)
from repmamba.scene.result.output import OutputProfile
from repmamba.scene.source.grid import Grid

RGB = OutputProfile("GTiff", Grid(100, 80), 3, "uint8")
PER_BAND = ("colorinterp", "descriptions", "scales", "offsets", "units", "band_nodata", "band_tags")
TWO_BANDS, FOUR_BANDS, FIVE_BANDS = (
    {"count": count, **dict.fromkeys(PER_BAND, ())} for count in (2, 4, 5)
)
RGBA = {**FOUR_BANDS, "colorinterp": ("red", "green", "blue", "alpha")}


@pytest.mark.parametrize(
    ("name", "format_name"),
    [
        ("a.tif", "GTiff"),
        ("a.TIFF", "GTiff"),
        ("a.cog.tif", "COG"),
        ("a.png", "PNG"),
        ("a.jpg", "JPEG"),
        ("a.b.jpeg", "JPEG"),
    ],
)
def test_the_name_says_the_format(name, format_name):
    assert format_of(Path(name)).name == format_name


def test_a_format_that_is_asked_for_goes_before_the_name():
    assert format_of(Path("a.tif"), "cog").name == "COG"


@pytest.mark.parametrize(("name", "asked"), [("a.gif", None), ("a", None), ("a.tif", "GIF")])
def test_an_unknown_format_is_answered_with_the_known_ones(name, asked):
    with pytest.raises(UsageError, match=r"\.png|PNG"):
        format_of(Path(name), asked)


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        (
            {"format": "PNG", "dtype": "float32"},
            "PNG cannot hold float32 pixels. These can: GTiff, COG ",
        ),
        (
            {"format": "JPEG", "dtype": "uint16"},
            "JPEG cannot hold uint16 pixels. These can: GTiff, COG, PNG ",
        ),
        (
            {"format": "PNG", **FIVE_BANDS},
            "PNG cannot hold 5 bands of which none is alpha. These can: GTiff, COG ",
        ),
        (
            {"format": "PNG", **FOUR_BANDS},
            "PNG cannot hold 4 bands of which none is alpha. These can: GTiff, COG ",
        ),
        (
            {"format": "PNG", **TWO_BANDS},
            "PNG cannot hold 2 bands of which none is alpha. These can: GTiff, COG ",
        ),
        (
            {"format": "JPEG", **RGBA},
            "JPEG cannot hold 4 bands of which one is alpha. These can: GTiff, COG, PNG ",
        ),
        (
            {"format": "JPEG", "grid": Grid(70_000, 10)},
            "JPEG cannot hold 70000 x 10 pixels. These can: GTiff, COG, PNG ",
        ),
        (
            {"format": "PNG", "mask": True},
            "PNG cannot hold a mask besides the bands. These can: GTiff, COG, JPEG ",
        ),
        (
            {"format": "JPEG", "nodata": 0.0},
            "JPEG cannot hold a nodata value. These can: GTiff, COG, PNG ",
        ),
        (
            {"nodata": 0.0, "creation": (("COMPRESS", "JPEG"),)},
            "GTiff cannot hold a nodata value in pixels that its compression changes. These can: "
            "GTiff, COG, PNG ",
        ),
        ({"dtype": "complex64"}, "GTiff cannot hold complex64 pixels. No other format can either."),
    ],
)
def test_a_format_that_cannot_hold_it_is_refused_with_those_that_can(change, misfit):
    with pytest.raises(TargetError) as caught:
        check_fit(replace(RGB, **change))
    assert str(caught.value).startswith(misfit)


@pytest.mark.parametrize("name", FORMATS)
def test_the_defaults_of_every_format_are_options_that_a_user_could_ask_for(name):
    profile = replace(RGB, format=name)
    defaults = creation_options(profile)
    asked = tuple((key, value) for key, value in defaults.items() if key != "ALPHA")
    assert creation_options(replace(profile, creation=asked)) == defaults


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("COMPRES", "LZW"), "The creation option COMPRES of GTiff is not supported; these are: "),
        (("COMPRESS", "ZIP"), "COMPRESS=ZIP of GTiff: it takes one of NONE, LZW"),
        (
            ("BLOCKXSIZE", "100"),
            "BLOCKXSIZE=100 of GTiff: it takes a whole number from 64 to 4096, a multiple of 16",
        ),
        (("SPARSE_OK", "YES"), "SPARSE_OK=YES of GTiff: it takes one of NO"),
        (
            ("NUM_THREADS", "many"),
            "NUM_THREADS=MANY of GTiff: it takes one of ALL_CPUS or a whole number",
        ),
    ],
)
def test_a_creation_option_is_checked_before_the_first_pixel(asked, says):
    with pytest.raises(UsageError, match=says):
        check_fit(replace(RGB, creation=(asked,)))


@pytest.mark.parametrize("name", ["GTiff", "COG"])
@pytest.mark.parametrize(
    "asked", ["NUM_THREADS=4", "num_threads=all_cpus", "STATISTICS=NO", "SPARSE_OK=FALSE"]
)
def test_an_option_that_changes_nothing_is_taken_and_left_out(name, asked):
    profile = replace(RGB, format=name)
    option = tuple(asked.split("="))
    assert creation_options(replace(profile, creation=(option,))) == creation_options(profile)


def test_yes_and_no_are_said_in_gdals_other_words_too():
    for word in ("TRUE", "true", "on", "1", "yes"):
        assert creation_options(replace(RGB, creation=(("TILED", word),))) == creation_options(RGB)
    lossless = (("COMPRESS", "WEBP"), ("WEBP_LOSSLESS", "true"))
    assert is_lossless(replace(RGB, creation=lossless))
    assert creation_options(replace(RGB, creation=(("PREDICTOR", "1"),)))["PREDICTOR"] == "1"


@pytest.mark.parametrize(
    ("change", "compression", "says"),
    [
        ({"dtype": "uint16"}, "JPEG", "JPEG takes 1, 3, 4 bands of uint8, not 3 of uint16"),
        ({**FIVE_BANDS}, "JPEG", "JPEG takes 1, 3, 4 bands of uint8, not 5 of uint8"),
        ({**TWO_BANDS}, "WEBP", "WEBP takes 3, 4 bands of uint8, not 2 of uint8"),
    ],
)
def test_compressions_of_pictures_take_pictures_only(change, compression, says):
    with pytest.raises(UsageError, match=says):
        check_fit(replace(RGB, **change, creation=(("COMPRESS", compression),)))


def test_webp_is_not_given_bands_one_after_the_other():
    with pytest.raises(UsageError, match="INTERLEAVE=BAND"):
        check_fit(replace(RGB, creation=(("COMPRESS", "WEBP"), ("INTERLEAVE", "BAND"))))


def test_a_compression_that_would_change_alpha_is_refused():
    with pytest.raises(UsageError, match="JPEG would change alpha"):
        check_fit(replace(RGB, **RGBA, creation=(("COMPRESS", "JPEG"),)))
    check_fit(replace(RGB, **RGBA, creation=(("COMPRESS", "WEBP"),)))


@pytest.mark.parametrize(
    ("change", "predictor"),
    [({}, "2"), ({"dtype": "float64"}, "3"), ({"creation": (("compress", "zstd"),)}, "2")],
)
def test_compression_comes_with_the_predictor_of_the_type(change, predictor):
    assert creation_options(replace(RGB, **change))["PREDICTOR"] == predictor


def test_no_predictor_is_set_where_none_is_compressed():
    assert "PREDICTOR" not in creation_options(replace(RGB, creation=(("COMPRESS", "NONE"),)))


def test_deflate_is_quick_unless_a_level_is_asked_for():
    assert creation_options(RGB)["ZLEVEL"] == "4"
    assert creation_options(replace(RGB, creation=(("ZLEVEL", "9"),)))["ZLEVEL"] == "9"
    assert creation_options(replace(RGB, format="COG"))["LEVEL"] == "4"
    assert "LEVEL" not in creation_options(
        replace(RGB, format="COG", creation=(("COMPRESS", "ZSTD"),))
    )


@pytest.mark.parametrize(("edge", "big"), [(20_000, "NO"), (30_000, "YES")])
def test_a_tiff_is_big_where_its_offsets_may_need_64_bits(edge, big):
    assert creation_options(replace(RGB, grid=Grid(edge, edge)))["BIGTIFF"] == big


def test_the_overviews_of_a_cog_count_for_its_size():
    edge = 25_500  # 1.95e9 bytes, with a third more beyond 2 GiB
    assert creation_options(replace(RGB, grid=Grid(edge, edge)))["BIGTIFF"] == "NO"
    assert creation_options(replace(RGB, grid=Grid(edge, edge), format="COG"))["BIGTIFF"] == "YES"


@pytest.mark.parametrize(
    ("change", "lossless"),
    [
        ({}, True),
        ({"format": "JPEG"}, False),
        ({"creation": (("COMPRESS", "JPEG"),)}, False),
        ({"creation": (("COMPRESS", "WEBP"),)}, False),
        ({"creation": (("COMPRESS", "WEBP"), ("WEBP_LOSSLESS", "YES"))}, True),
        ({"format": "COG", "creation": (("COMPRESS", "JPEG"),)}, False),
    ],
)
def test_it_is_known_which_options_lose_something(change, lossless):
    assert is_lossless(replace(RGB, **change)) is lossless


def test_a_profile_has_an_entry_for_each_band():
    with pytest.raises(UsageError, match="3 bands but 2 descriptions"):
        replace(RGB, descriptions=("a", "b"))
