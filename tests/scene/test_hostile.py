"""Strangers' files: whatever they are, one line or a whole result, within bounds of memory and
time.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from .hostile import all_files

SCRIPT = Path(__file__).with_name("hostile.py")


def outcome(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)


def test_the_table_has_sixty_files_of_different_names():
    names = [hostile.name for hostile in all_files()]
    assert len(set(names)) == len(names) >= 60


def test_every_hostile_file_ends_in_its_error():
    done = outcome("table")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 90), *(pytest.param(seed, 1000, marks=pytest.mark.long) for seed in range(2, 12))],
)
def test_a_damaged_file_ends_in_one_line_or_in_a_whole_result(seed, count):
    done = outcome("mutations", str(seed), str(count))
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
