"""`import repmamba`: what it offers, and that version, metadata and CHANGELOG agree."""

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

import repmamba

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", repmamba.__all__)
def test_every_name_of_the_front_door_opens(name: str):
    assert getattr(repmamba, name) is not None
    assert name in dir(repmamba)


def test_errors_are_available_before_anything_else_is_imported():
    code = "import repmamba; print(repmamba.errors.RepmambaError.__name__)"
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert process.stdout.strip() == "RepmambaError", process.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="enlarge"):
        repmamba.enlarge  # noqa: B018


def test_version_metadata_and_changelog_agree():
    released = re.findall(
        r"^## (\d+\.\d+\.\d+)", (CHECKOUT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    assert released[0] == repmamba.__version__ == metadata("repmamba")["Version"]


def test_the_metadata_names_the_terms_of_code_and_weights():
    facts = metadata("repmamba")
    assert facts["License-Expression"] == "Apache-2.0"
    files = {"LICENSE", "ATTRIBUTION.md"}
    assert {Path(name).name for name in facts.get_all("License-File")} == files
