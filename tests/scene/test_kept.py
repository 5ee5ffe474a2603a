"""The pages of promises name tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "at_least"),
    [("reference/what-is-kept.md", 31), ("explanation/never-half-a-result.md", 21)],
)
def test_every_test_that_a_page_of_promises_names_exists(page, at_least):
    named = set(re.findall(r"`(test_\w+)`", (TESTS.parent / "docs" / page).read_text()))
    there = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) >= at_least
    assert named <= there, sorted(named - there)
