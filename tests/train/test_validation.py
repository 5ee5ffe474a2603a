"""Validation: what can be scored, what a score is, and a full disk."""

import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from repmamba.errors import RecipeError, RepmambaWarning
from repmamba.network.repmamba import RepMamba
from repmamba.train.batches import training_files
from repmamba.train.loop import fit
from repmamba.train.validation import Validator, warn_of_shared


def picture(path: Path, seed: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(image).save(path)
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def raster(path: Path, bands: int, dtype: str, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 200, (bands, 32, 32)).astype(dtype)
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=32, width=32, dtype=dtype
    ) as file:
        file.write(pixels)
    return path


def network_of(recipe) -> RepMamba:
    torch.manual_seed(0)
    return RepMamba(recipe.network)


def test_images_of_one_name_in_two_folders_both_count(tiny, tmp_path):
    for number in range(2):
        picture(tmp_path / str(number) / "same.png", seed=number)
    folders = [str(tmp_path / str(number)) for number in range(2)]
    both, *alone = (
        Validator(recipe, tmp_path).validate(network_of(recipe), 1)
        for recipe in (tiny(data={"val": val}) for val in (folders, folders[:1], folders[1:]))
    )
    assert alone[0].psnr != alone[1].psnr
    assert both.psnr == pytest.approx((alone[0].psnr + alone[1].psnr) / 2)
    assert both.images == 2


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("bands", "dtype"), [(4, "uint8"), (3, "uint16")])
def test_other_bands_and_types_are_trained_and_validated_by_the_rule_bands_and_refused_at_once_by_another(
    tiny, tmp_path, bands, dtype
):
    for number in range(2):
        raster(tmp_path / "images" / f"{number}.tif", bands, dtype, seed=number)
    data = {"train": [str(tmp_path / "images")], "val": [str(tmp_path / "images")]}

    def recipe(rule: str):
        return tiny(steps=2, network={"in_chans": bands}, data=data, validation={"rule": rule})

    with pytest.raises(
        RecipeError,
        match=r"rule is esr-rgb, which cannot score an image: .*images/\d has .* take the rule "
        r"bands",
    ):
        fit(recipe("esr-rgb"), tmp_path / "run")
    # nothing had started: the folder accepts the corrected recipe
    result = fit(recipe("bands"), tmp_path / "run")
    assert result.finished
    assert result.rule == "bands"
    assert np.isfinite(result.psnr)


def test_a_picture_too_small_for_the_rule_is_named_before_training_begins(tiny, tmp_path):
    picture(tmp_path / "val" / "large.png", seed=0)
    picture(tmp_path / "val" / "small.png", seed=0, side=12)
    with pytest.raises(
        RecipeError, match=r"cannot score an image: .*val/small: SSIM needs at least 11x11"
    ):
        Validator(tiny(data={"val": [str(tmp_path / "val")]}), tmp_path)


NOISY = [{"name": "noise", "low": 20, "high": 20}, {"name": "jpeg", "low": 60, "high": 60}]


def test_a_recipe_that_degrades_validates_on_degraded_pairs_the_same_each_time(tiny, tmp_path):
    picture(tmp_path / "val" / "0.png", seed=0)
    data = {"val": [str(tmp_path / "val")]}
    plain, first, again, other = (
        Validator(recipe, tmp_path).pairs[0]
        for recipe in (
            tiny(data=data),
            tiny(data=data | {"degradations": NOISY}),
            tiny(data=data | {"degradations": NOISY}),
            tiny(data=data | {"degradations": NOISY}, seed=5),
        )
    )
    assert np.array_equal(first.hr, plain.hr)
    assert np.array_equal(first.lr, again.lr)
    assert not np.array_equal(first.lr, plain.lr)
    assert not np.array_equal(first.lr, other.lr)


def test_an_existing_lr_is_not_degraded_for_validation(tiny, tmp_path):
    picture(tmp_path / "val" / "GT" / "0.png", seed=0)
    lr = picture(tmp_path / "val" / "LR" / "0.png", seed=1, side=16)
    validator = Validator(
        tiny(data={"val": [str(tmp_path / "val")], "degradations": NOISY}), tmp_path
    )
    assert np.array_equal(validator.pairs[0].lr, np.asarray(Image.open(lr)))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("bands", "dtype", "text"), [(3, "uint16", "of uint16"), (4, "uint8", "one or three bands")]
)
def test_images_that_cannot_be_degraded_are_refused_before_training_begins(
    tiny, tmp_path, part, bands, dtype, text
):
    raster(tmp_path / "images" / "0.tif", bands, dtype)
    data = {part: [str(tmp_path / "images")], "degradations": NOISY}
    with pytest.raises(RecipeError, match=f"images/0.*cannot be degraded: .*{text}"):
        fit(
            tiny(data=data, network={"in_chans": bands}, validation={"rule": "bands"}),
            tmp_path / "run",
        )


def test_images_in_both_train_and_val_give_a_warning(tiny, tmp_path, recwarn):
    picture(tmp_path / "val" / "0.png", seed=0)
    (tmp_path / "val" / "1.png").symlink_to(Path(tiny().data.train[0]) / "1.png")
    recipe = tiny(data={"val": [str(tmp_path / "val")]})
    with pytest.warns(
        RepmambaWarning, match=r"1 images are in data.train and in data.val, such as .*1.png"
    ):
        warn_of_shared(training_files(recipe), recipe)
    recwarn.clear()
    warn_of_shared(training_files(recipe), tiny())
    assert not recwarn.list


def test_pictures_of_other_bands_than_the_network_takes_are_refused(tiny, tmp_path):
    raster(tmp_path / "val" / "0.tif", 4, "uint8")
    recipe = tiny(data={"val": [str(tmp_path / "val")]}, validation={"rule": "bands"})
    with pytest.raises(
        RecipeError, match=r"val/0, of data\.val, has 4 bands, but the network takes 3"
    ):
        Validator(recipe, tmp_path)


def test_a_picture_that_cannot_be_written_costs_only_the_picture(tiny, tmp_path, caplog):
    (tmp_path / "crops").write_text("in the way")
    recipe = tiny()
    validator, network = Validator(recipe, tmp_path), network_of(recipe)
    with caplog.at_level(logging.WARNING, "repmamba"):
        result = validator.validate(network, 1)
    assert "No picture of this validation: " in caplog.text
    assert np.isfinite(result.psnr)
