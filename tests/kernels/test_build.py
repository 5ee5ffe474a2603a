"""The build hook: what is built for which platform, when it is built again, and what is made where
it cannot be.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from repmamba.kernels.library import FOLDER, LANES, PATH, library

from ..conftest import CHECKOUT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources with one kernel, which is quickly compiled."""
    sources = tmp_path / "src" / "repmamba" / "kernels"
    sources.mkdir(parents=True)
    for name in ("sources.py", "levels.cpp", "kernels.h"):
        shutil.copy(FOLDER / name, sources)
    (sources / "one.cpp").write_text(
        '#include "kernels.h"\nKERNEL(one, float) { (void)first, (void)last, (void)a, '
        "(void)scratch; }"
    )
    return tmp_path


@pytest.fixture
def build(hatch_build: SimpleNamespace, checkout: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the hook on it; the number of compiler calls, and what the hook tells hatchling."""
    calls = Mock(side_effect=hatch_build.call)
    monkeypatch.setitem(hatch_build.build.__globals__, "call", calls)
    app = Mock()

    def run(version: str = "standard") -> SimpleNamespace:
        calls.reset_mock()
        app.reset_mock()
        data = {"pure_python": True, "force_include": {}}
        hook = hatch_build.Kernels(str(checkout), {}, None, None, "", "wheel", app)
        hook.initialize(version, data)
        return SimpleNamespace(
            calls=calls.call_count, data=data, warnings=app.display_warning.call_args_list
        )

    run.fails = lambda fault: calls.configure_mock(side_effect=fault)  # type: ignore[attr-defined]
    return run


def test_every_level_of_every_target_has_its_lanes(hatch_build):
    assert {level for target in hatch_build.TARGETS.values() for level in target.levels} == set(
        LANES
    )


def test_the_targets_are_those_that_pip_knows_by_their_tags(hatch_build):
    assert {name: target.tag for name, target in hatch_build.TARGETS.items()} == {
        "linux-x86_64": "manylinux_2_17_x86_64",
        "linux-aarch64": "manylinux_2_17_aarch64",
        "macos-arm64": "macosx_11_0_arm64",
        "macos-x86_64": "macosx_11_0_x86_64",
        "windows-x86_64": "win_amd64",
    }


@pytest.mark.parametrize(
    ("system", "machine", "expected"),
    [
        ("linux", "x86_64", "linux-x86_64"),
        ("linux", "aarch64", "linux-aarch64"),
        ("darwin", "arm64", "macos-arm64"),
        ("darwin", "x86_64", "macos-x86_64"),
        ("win32", "AMD64", "windows-x86_64"),
        ("linux", "riscv64", "linux-riscv64"),
    ],
)
def test_this_platform_is_named_as_the_targets_are(
    system, machine, expected, hatch_build, monkeypatch
):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert hatch_build.this_platform() == expected


def test_a_wheel_carries_the_library_and_the_platforms_tag_and_is_built_once(
    build, checkout, hatch_build
):
    target = hatch_build.TARGETS[hatch_build.this_platform()]
    first, second = build(), build()
    # levels.cpp, one.cpp for each level, and the linker
    assert first.calls == 2 + len(target.levels)
    assert second.calls == 0
    for result in (first, second):
        assert result.data["tag"] == f"py3-none-{target.tag}"
        assert not result.data["pure_python"]
        ((file, place),) = result.data["force_include"].items()
        assert place == f"repmamba/kernels/{PATH.name}"
        assert all(f"one_{level}".encode() in Path(file).read_bytes() for level in target.levels)
    (checkout / "src/repmamba/kernels/one.cpp").open("a").write("// changed")
    assert build().calls == first.calls


def test_an_editable_install_has_the_library_beside_its_sources(build, checkout):
    result = build("editable")
    assert (checkout / "src/repmamba/kernels" / PATH.name).exists()
    assert result.data["force_include"] == {}


@pytest.mark.parametrize("version", ["standard", "editable"])
@pytest.mark.parametrize(
    "fault",
    [subprocess.CalledProcessError(1, "zig"), FileNotFoundError("no python")],
    ids=["fails", "missing"],
)
def test_where_the_compiler_fails_the_wheel_is_pure_and_holds_no_older_library(
    version, fault, build, checkout
):
    build(version)
    (checkout / "src/repmamba/kernels/one.cpp").open("a").write("// changed")
    build.fails(fault)
    result = build(version)
    assert result.data == {"pure_python": True, "force_include": {}}
    (warning,) = result.warnings
    assert "could not be compiled" in warning.args[0]
    assert not list(checkout.rglob(PATH.name))


def test_without_the_ziglang_wheel_zig_on_the_path_compiles(
    hatch_build, build, checkout, monkeypatch, tmp_path
):
    import ziglang

    programs, used = tmp_path / "programs", tmp_path / "used"
    programs.mkdir()
    zig = programs / "zig"
    zig.write_text(
        f'#!/bin/sh\ntouch {used}\nexec {Path(ziglang.__file__).with_name("zig")} "$@"\n'
    )
    zig.chmod(0o700)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setitem(hatch_build.build.__globals__, "find_spec", lambda name: None)
    assert build().data["pure_python"] is False
    assert used.exists()
    assert list((checkout / "build").rglob(PATH.name))


def test_on_a_platform_without_a_target_the_wheel_is_pure(build, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    result = build()
    assert (result.calls, result.data["pure_python"]) == (0, True)
    assert "no compiled kernels for" in result.warnings[0].args[0]


def test_a_named_target_is_built_or_nothing_is(build, monkeypatch):
    monkeypatch.setenv("REPMAMBA_TARGET", "linux-x86_64")
    build.fails(subprocess.CalledProcessError(1, "zig"))
    with pytest.raises(subprocess.CalledProcessError):
        build()
    monkeypatch.setenv("REPMAMBA_TARGET", "amiga-m68k")
    with pytest.raises(
        ValueError, match="REPMAMBA_TARGET is amiga-m68k; it can be one of linux-x86_64"
    ):
        build()


def test_the_library_asks_for_no_newer_glibc_than_its_tag_says():
    if PATH.suffix != ".so":
        pytest.skip("this system has no glibc")
    versions = {
        tuple(map(int, found.split(b".")))
        for found in re.findall(rb"GLIBC_([0-9.]+)", PATH.read_bytes())
    }
    assert max(versions) <= (2, 17)


def test_every_level_has_every_kernel_that_is_built_for_it(hatch_build):
    """Whose names are in the sources: KERNEL(name, Arguments)."""
    target = hatch_build.TARGETS[hatch_build.this_platform()]
    beyond = [(file, level) for file, level, _ in hatch_build.BEYOND if "v4" in target.levels]
    only_beyond = {file for file, level in beyond if level in target.levels}
    files = {file.name for file in FOLDER.glob("*.cpp")} - only_beyond
    built = beyond + [(file, level) for file in files for level in target.levels]
    found = [
        f"{name}_{level}"
        for file, level in built
        for name in re.findall(
            r"^KERNEL\((\w+), ", (FOLDER / file).read_text("utf-8"), re.MULTILINE
        )
    ]
    assert {
        f"{name}_{level}" for name in ("scan_forward", "scan_backward") for level in target.levels
    } <= set(found)
    assert all(hasattr(library().handle, name) for name in found)


@pytest.mark.long
def test_no_function_of_one_level_can_take_the_place_of_anothers(hatch_build, tmp_path):
    """The linker takes one of several weak functions of a name, perhaps one that the processor
    cannot run.
    """
    if not shutil.which("nm"):
        pytest.skip("this system has no nm")
    target = hatch_build.TARGETS["linux-x86_64"]
    flags = [flag for flag in hatch_build.FLAGS if flag != "-O3"] + [
        "-O0",
        "-w",
        "-fPIC",
        "-DLEVEL=v4",
    ]
    flags += ["-mcpu=x86_64_v4+avx512bf16+amx_bf16+amx_tile"]
    for file in FOLDER.glob("*.cpp"):
        compiled = tmp_path / f"{file.name}.o"
        subprocess.run(
            [*hatch_build.compiler(target), *flags, "-c", file, "-o", compiled], check=True
        )
        symbols = subprocess.run(
            ["nm", "--defined-only", compiled], capture_output=True, text=True, check=True
        ).stdout
        assert symbols
        assert not re.findall(r"^\w+ [WV] .*", symbols, re.MULTILINE)


def test_make_wheels_is_told_of_every_target(hatch_build):
    listed = subprocess.run(
        [sys.executable, CHECKOUT / "hatch_build.py"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.split() == list(hatch_build.TARGETS)
