"""The library of kernels: found, chosen by level, refused with a reason."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from repmamba.errors import UsageError
from repmamba.kernels import library as module
from repmamba.kernels.library import LANES, PATH, VARIABLE, levels, library
from repmamba.kernels.sources import digest

FEATURES = library().handle.features()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch):
    """library() as a process asks for it the first time."""
    monkeypatch.delenv(VARIABLE, raising=False)
    return library.__wrapped__


def test_the_highest_level_that_the_processor_runs_is_taken(fresh):
    assert fresh().level == levels(FEATURES)[-1]
    assert fresh().lanes == LANES[levels(FEATURES)[-1]]


@pytest.mark.parametrize("level", levels(FEATURES))
def test_a_level_can_be_asked_for_and_brings_its_kernels(level, fresh, monkeypatch):
    monkeypatch.setenv(VARIABLE, level)
    found = fresh()
    assert found.level == level
    assert found.kernel("scan_forward").__name__ == f"scan_forward_{level}"
    assert (found.pairs, found.amx) == (False, False) or level == "v4"


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", 0, ("v2",)),
        ("AMD64", 1, ("v2", "v3")),
        ("x86_64", 15, ("v2", "v3", "v4")),
        ("arm64", 0, ("neon",)),
        ("aarch64", 0, ("neon",)),
    ],
)
def test_the_levels_follow_from_the_processors_features(machine, features, expected, monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    assert levels(features) == expected


def test_the_features_are_those_that_the_system_tells_of():
    if sys.platform != "linux" or levels(FEATURES) == ("neon",):
        pytest.skip("this system has no list of the processor's features in /proc/cpuinfo")
    flags = next(
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
    ).split()
    v3 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"} <= set(flags)
    v4 = v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= set(flags)
    pairs = v4 and "avx512_bf16" in flags
    amx = pairs and {"amx_tile", "amx_bf16"} <= set(flags)
    assert v3 + 2 * v4 + 4 * pairs + 8 * amx == FEATURES


@pytest.mark.parametrize("level", ["v9", "v4"])
def test_a_level_that_the_processor_lacks_is_refused_with_those_it_has(level, fresh, monkeypatch):
    monkeypatch.setenv(VARIABLE, level)
    monkeypatch.setattr(module, "levels", lambda features: ("v2", "v3"))
    with pytest.raises(
        UsageError, match=f"'{level}'; this processor runs v2, v3: name one of them"
    ):
        fresh()


def test_an_unknown_level_ends_a_command_with_one_line():
    process = subprocess.run(
        [sys.executable, "-m", "repmamba.cli", "bench", "--size", "32"],
        env=os.environ | {VARIABLE: "v9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode != 0
    (line,) = process.stderr.strip().splitlines()
    assert f"{VARIABLE} asks for kernels of the level 'v9'" in line


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "this installation has no"),
        (b"", "file too short"),
        (b"no library at all" * 99, "invalid ELF header"),
    ],
    ids=["missing", "empty", "damaged"],
)
def test_a_library_that_cannot_be_loaded_is_told_by_an_error_with_the_reason(
    content, reason, fresh, tmp_path, monkeypatch
):
    path = tmp_path / PATH.name
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(module, "PATH", path)
    with pytest.raises(OSError, match=reason if sys.platform == "linux" else ""):
        fresh()


def test_a_library_of_something_else_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(module, "PATH", Path(sys.modules["_ctypes"].__file__))
    with pytest.raises(OSError, match="is not a library of kernels"):
        fresh()


def test_sources_that_have_changed_since_the_library_was_built_are_noticed(
    fresh, tmp_path, monkeypatch
):
    for file in module.FOLDER.glob("*.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    assert fresh().level
    (tmp_path / "scan.cpp").write_text("// changed\n")
    with pytest.raises(
        OSError, match=r"older than its sources: run `pip install --editable \.` again"
    ):
        fresh()


def test_an_installation_without_sources_has_none_to_compare(tmp_path):
    assert digest(tmp_path) == ""
    (tmp_path / "one.cpp").write_text("1")
    one = digest(tmp_path)
    (tmp_path / "one.cpp").rename(tmp_path / "two.cpp")
    assert len({"", one, digest(tmp_path)}) == 3


def test_threads_that_ask_at_once_get_the_same_library():
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from repmamba.kernels.library import library\n"
        "with ThreadPoolExecutor(8) as pool: found = set(pool.map(lambda _: library().level, "
        "range(64)))\n"
        "assert len(found) == 1, found\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def level_in_a_fork() -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: library().level).result()


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_uses_the_library_of_its_parent():
    with multiprocessing.get_context("fork").Pool(1) as forked:
        assert forked.apply_async(level_in_a_fork).get(timeout=600) == library().level


@pytest.mark.skipif(
    sys.platform != "linux", reason="this system has no permission of tiles to ask for"
)
@pytest.mark.parametrize("refusal", [0, -1], ids=["granted", "refused"])
def test_tiles_are_used_only_where_the_system_grants_them(refusal, fresh, monkeypatch):
    system = SimpleNamespace(syscall=Mock(return_value=refusal))
    monkeypatch.setattr(
        module, "_loaded", lambda: SimpleNamespace(features=Mock(return_value=15), take_part=Mock())
    )
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: system)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    assert fresh().amx == (refusal == 0)
    system.syscall.assert_called_once_with(158, 0x1023, 18)
