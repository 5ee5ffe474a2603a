"""The conda recipe: it is what rattler-build reads, and it asks for what pyproject.toml asks for."""

import shutil
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler_build import RenderConfig, Stage0Recipe, VariantConfig

import repmamba

from .conftest import CHECKOUT

RECIPE = CHECKOUT / "recipe"
PYPROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
NAMES = {"pytorch": "torch"}  # of conda-forge, where they differ from PyPI's


def rendered(python: str) -> dict:
    recipe = Stage0Recipe.from_file(str(RECIPE / "recipe.yaml"))
    (variant,) = recipe.render(VariantConfig({"python": [python]}), RenderConfig())
    return variant.recipe.to_dict()


def bounds(specs: list[str]) -> dict[str, SpecifierSet]:
    pairs = [spec.partition(" ")[::2] for spec in specs]
    return {
        canonicalize_name(NAMES.get(name, name)): SpecifierSet(bound)
        for name, bound in pairs
        if name != "python"
    }


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_package_depends_on_what_pip_would_install(python):
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    assert bounds(rendered(python)["requirements"]["run"]) == {
        canonicalize_name(one.name): one.specifier
        for one in wanted
        if one.marker is None or one.marker.evaluate({"python_version": python})
    }


def test_the_package_is_built_with_the_same_backend_and_compiler():
    requirements = rendered("3.12")["requirements"]
    hatchling, ziglang = (Requirement(text) for text in PYPROJECT["build-system"]["requires"])
    assert bounds(requirements["host"])["hatchling"] == hatchling.specifier
    assert bounds(requirements["build"]) == {"zig": ziglang.specifier}


def test_version_licence_and_oldest_python_are_those_of_the_project():
    recipe = rendered("3.12")
    assert recipe["package"] == {"name": PROJECT["name"], "version": repmamba.__version__}
    assert recipe["about"]["license"] == PROJECT["license"]
    assert recipe["about"]["license_file"] == PROJECT["license-files"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert f'match(python, "<{oldest}")' in (RECIPE / "recipe.yaml").read_text("utf-8")


def test_conda_forges_linter_only_misses_what_a_release_brings():
    if shutil.which("conda-smithy") is None:
        pytest.skip("this system has no conda-smithy")
    done = subprocess.run(
        ["conda-smithy", "recipe-lint", RECIPE], capture_output=True, text=True, check=False
    )
    lints = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert lints == [
        "The homepage item is expected in the about section.",
        "The recipe could do with some maintainers listed in the `extra/recipe-maintainers` "
        "section.",
    ], done.stdout + done.stderr
