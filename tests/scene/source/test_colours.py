"""Red, green and blue by the names and wavelengths of bands; --rgb and --bands by names; what the
result says.
"""

import pytest
import rasterio

from repmamba.errors import UsageError
from repmamba.scene.band_selection import describe_grey_bands, usual_bands
from repmamba.scene.engine import plan_file, upscale_file
from repmamba.scene.source.colours import known_colours, numbers_of
from repmamba.scene.source.raster import open_raster


@pytest.fixture
def named(write_raster, smooth):
    """Writes a raster of 16 bit whose bands have names, and tags of their own."""

    def write(names, *, tags=(), name="in.tif", **dataset_tags):
        path = write_raster(
            name, smooth(len(names), 20, 24, "uint16", 300, 4000), photometric="MINISBLACK"
        )
        with rasterio.open(path, "r+") as file:
            for band, text in enumerate(names, 1):
                if text:
                    file.set_band_description(band, text)
            for band, items in enumerate(tags, 1):
                file.update_tags(band, **items)
            file.update_tags(**dataset_tags)
        return path

    return write


def colours(path):
    with open_raster(path) as raster:
        return known_colours(raster.facts)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["B02", "B03", "B04", "B08"], (3, 2, 1)),
        (["B01", "B02", "B03", "B04", "B05", "B8A", "B11"], (4, 3, 2)),
        (["B2", "B3", "B4", "B8", "B8A"], (3, 2, 1)),
        (
            [
                "B4, central wavelength 665 nm",
                "B3, central wavelength 560 nm",
                "B2, central wavelength 490 nm",
            ],
            (1, 2, 3),
        ),
        (["blue", "green", "red", "nir"], (3, 2, 1)),
        (["Blue", "Green", "Red", "Red Edge", "Near Infrared"], (3, 2, 1)),
        # two greens
        (["coastal", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"], None),
        (["Band 4 - Red", "Band 3 - Green", "Band 2 - Blue"], (1, 2, 3)),
        (["443 nm", "490 nm", "560 nm", "665 nm", "705 nm", "842 nm"], (4, 3, 2)),
        (["0.49 um", "0.56 um", "0.665 um"], (3, 2, 1)),
        # numbers that other sensors have for other colours, and names of no colours
        (["B2", "B3", "B4"], None),
        (["SR_B1", "SR_B2", "SR_B3", "SR_B4"], None),
        (["VV", "VH", "angle"], None),
        (["B11", "B12", "B8A"], None),
        ([None, None, None, None], None),
    ],
)
def test_names_tell_which_bands_are_colours(named, names, told):
    assert colours(named(names)) == told


@pytest.mark.parametrize(
    ("sensor", "told"),
    [
        ("LANDSAT_8", (4, 3, 2)),
        ("Landsat 9", (4, 3, 2)),
        ("LANDSAT_7", (3, 2, 1)),
        ("LANDSAT_5", (3, 2, 1)),
    ],
)
def test_where_the_sensor_is_told_numbers_do(named, sensor, told):
    assert colours(named([f"SR_B{number}" for number in range(1, 6)], SPACECRAFT_ID=sensor)) == told


def test_wavelengths_among_the_tags_tell(named):
    lengths = (400, 450, 485, 530, 556, 600, 655, 690, 800)
    tags = [{"wavelength": str(length), "wavelength_units": "Nanometers"} for length in lengths]
    assert colours(named([None] * 9, tags=tags)) == (7, 5, 3)
    tags = [
        {"wavelength": str(length / 1000), "wavelength_units": "Micrometers"} for length in lengths
    ]
    assert colours(named([None] * 9, tags=tags, name="um.tif")) == (7, 5, 3)


def test_the_order_that_is_advised_is_that_of_the_names(named):
    def advised(path):
        with open_raster(path) as raster:
            return describe_grey_bands(usual_bands(raster.facts).together, raster.facts)

    alone = "bands 1, 2, 3, 4 one by one as grey (4 passes)"
    assert advised(named(["B02", "B03", "B04", "B08"])) == (
        f"{alone}; bands 3, 2, 1 are red, green and blue by name: give rgb=(3, 2, 1)"
    )
    assert advised(named(["B2", "B3", "B4", "B5"])) == (
        f"{alone}; if some are red, green and blue, give rgb=(R, G, B), by number or name"
    )
    assert (
        advised(named([None] * 4)) == f"{alone}; if the first three are colours, give rgb=(1, 2, 3)"
    )


@pytest.mark.parametrize(
    "asked", [("B04", "B03", "B02"), ("b4", "B3", 2), ("red", "green", "blue"), (4, 3, 2)]
)
def test_bands_are_asked_for_by_name_and_the_result_says_which_are_colours(
    named, tmp_path, bicubic, asked
):
    path = named(["B01", "B02", "B03", "B04", "B08"])
    upscale_file(path, tmp_path / "out.tif", bicubic, rgb=asked)
    with rasterio.open(tmp_path / "out.tif") as result:
        assert [colour.name for colour in result.colorinterp] == [
            "undefined",
            "blue",
            "green",
            "red",
            "undefined",
        ]
        assert result.descriptions == ("B01", "B02", "B03", "B04", "B08")
    upscale_file(path, tmp_path / "three.tif", bicubic, rgb=asked, bands=("B04", 3, "B02"))
    with rasterio.open(tmp_path / "three.tif") as result:
        assert [colour.name for colour in result.colorinterp] == ["red", "green", "blue"]
        assert result.descriptions == ("B04", "B03", "B02")


def test_other_bands_that_were_called_colours_are_so_no_more(
    write_raster, smooth, tmp_path, bicubic
):
    path = write_raster("in.tif", smooth(4, 20, 24), photometric="RGB", alpha="NO")
    # false colours, as of the infrared
    upscale_file(path, tmp_path / "out.tif", bicubic, rgb=(4, 1, 2))
    with rasterio.open(tmp_path / "out.tif") as result:
        assert [colour.name for colour in result.colorinterp] == [
            "green",
            "blue",
            "undefined",
            "red",
        ]


def test_a_name_that_no_band_has_or_two_have_is_one_line(named, tmp_path, bicubic):
    path = named(["B02", "B03", "B04", None])
    with pytest.raises(UsageError, match=r"has no band named B99; it has 1 B02, 2 B03, 3 B04, 4\."):
        plan_file(path, tmp_path / "out.tif", bicubic, rgb=("B99", "B03", "B02"))
    with pytest.raises(UsageError, match="has 2 bands named red: give their numbers"):
        plan_file(
            named(["red", "red", "blue"], name="two.tif"),
            tmp_path / "out.tif",
            bicubic,
            rgb=("red", 2, 3),
        )
    with open_raster(path) as raster:
        assert numbers_of(raster.facts, ("3", "B02", 4)) == (3, 1, 4)
