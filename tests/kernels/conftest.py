"""The build of the kernels, as the tests ask for it."""

import runpy
from types import SimpleNamespace

import pytest

from ..conftest import CHECKOUT


@pytest.fixture(scope="session")
def hatch_build() -> SimpleNamespace:
    """What hatch_build.py defines."""
    return SimpleNamespace(**runpy.run_path(str(CHECKOUT / "hatch_build.py")))
