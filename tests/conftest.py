"""What all tests share: where the reference data is, and small makers of real files."""

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def reference_folder() -> Path:
    """The reference data: REPMAMBA_REFERENCE, or a folder `shared` beside the checkout."""
    return Path(os.environ.get("REPMAMBA_REFERENCE", CHECKOUT.parent / "shared"))


@pytest.fixture(scope="session")
def reference() -> Path:
    folder = reference_folder()
    if not (folder / "golden" / "README.md").is_file():
        pytest.skip(f"reference data not found at {folder}; set REPMAMBA_REFERENCE to its folder")
    return folder


@pytest.fixture(scope="session")
def golden(reference: Path) -> Path:
    return reference / "golden"


@pytest.fixture(scope="session")
def geotiffs(reference: Path) -> Path:
    return reference / "data" / "geotiff"
