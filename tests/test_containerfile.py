"""The Containerfile copies what the package is made from. Building the image is not tested here."""

import re
import tomllib
from pathlib import PurePosixPath

import pytest

from .conftest import CHECKOUT

TEXT = (CHECKOUT / "Containerfile").read_text("utf-8")
COPIED = {name for names in re.findall(r"^COPY (.+) \S+$", TEXT, re.M) for name in names.split()}
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize(
    "needed",
    [
        *("pyproject.toml", "hatch_build.py", "constraints.txt", "src/repmamba/__init__.py"),
        *(PROJECT["readme"], *PROJECT["license-files"]),
    ],
)
def test_it_copies_what_the_package_is_made_from(needed):
    assert COPIED & {needed, *map(str, PurePosixPath(needed).parents)}
    assert all((CHECKOUT / name).exists() for name in COPIED)


def test_the_torch_that_it_installs_first_is_the_one_of_the_constraints():
    (pattern,) = re.findall(r"grep '(.+)' /source/constraints\.txt", TEXT)
    constraints = (CHECKOUT / "constraints.txt").read_text("utf-8").splitlines()
    assert len([line for line in constraints if re.search(pattern, line)]) == 1
