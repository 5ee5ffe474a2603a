"""The kernels' own test program, program.cpp, at each level: on this processor, and on others where
they are emulated.

And all kernels under sanitizers: in the program, and in the tests of the rooms that call them.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from repmamba.kernels.library import FOLDER, PATH, VARIABLE, levels, library

from ..conftest import CHECKOUT

PROGRAM = Path(__file__).with_name("program.cpp")
FEATURES = library().handle.features()
# AddressSanitizer as the compiler's own front end has it: zig's keeps no runtime for it. Undefined
# behaviour ends the process by an illegal instruction, without a runtime.
SANITIZED = [
    "-O1",
    "-g",
    "-Xclang",
    "-fsanitize=address",
    "-fsanitize=undefined",
    "-fsanitize-trap=undefined",
]


def compile_program(
    hatch_build, target, level: str, result: Path, *, sanitized: bool = False
) -> None:
    command = [
        *hatch_build.compiler(target),
        *flags(hatch_build, sanitized),
        f"-I{FOLDER}",
        f"-DLEVEL={level}",
    ]
    objects = [result.with_suffix(f".{n}.o") for n in range(2)]
    for source, made in zip((PROGRAM, FOLDER / "scan.cpp"), objects, strict=True):
        subprocess.run(
            [*command, f"-mcpu={target.levels[level]}", "-c", source, "-o", made], check=True
        )
    link = ["gcc", "-fsanitize=address"] if sanitized else hatch_build.compiler(target)
    static = ["-static"] if "musl" in target.triple else []
    math = [] if "windows" in target.triple else ["-lm"]
    subprocess.run([*link, *static, *objects, "-o", result, *math], check=True)


def flags(hatch_build, sanitized: bool) -> list[str]:
    if not sanitized:
        return hatch_build.FLAGS
    return [
        flag for flag in hatch_build.FLAGS if flag not in ("-O3", "-g0", "-fno-sanitize=undefined")
    ] + SANITIZED


def run(*command: str | Path, **environment: str) -> str:
    process = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.strip()


@pytest.mark.parametrize("level", levels(FEATURES))
def test_the_program_finds_no_fault_at_any_level_of_this_processor(level, hatch_build, tmp_path):
    target = hatch_build.TARGETS[hatch_build.this_platform()]
    compile_program(hatch_build, target, level, tmp_path / "program")
    assert run(tmp_path / "program") == "all hold"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "level", "emulator"),
    [
        ("linux-aarch64", "neon", "qemu-aarch64"),
        ("windows-x86_64", "v2", "wine"),
        ("windows-x86_64", "v3", "wine"),
        ("windows-x86_64", "v4", "wine"),
    ],
)
def test_the_program_finds_no_fault_on_another_platform(
    name, level, emulator, hatch_build, tmp_path
):
    if not (path := shutil.which(emulator)):
        pytest.skip(f"this system has no {emulator}")
    if emulator == "wine" and level not in levels(FEATURES):
        pytest.skip(f"this processor has no {level}")
    target = hatch_build.TARGETS[name]
    # The emulator is given no C library, and zig links only musl's into the program.
    target = replace(target, triple=target.triple.replace("linux-gnu.2.17", "linux-musl"))
    compile_program(hatch_build, target, level, tmp_path / "program.exe")
    assert (
        run(path, tmp_path / "program.exe", WINEPREFIX=str(tmp_path), WINEDEBUG="-all")
        == "all hold"
    )


@pytest.fixture(scope="module")
def address_sanitizer() -> str:
    """What a process loads first: the runtime of AddressSanitizer, of GCC, and what that looks up
    in C++'s.
    """
    found = []
    if sys.platform == "linux" and shutil.which("gcc"):
        found = [
            run("gcc", f"-print-file-name={name}") for name in ("libasan.so", "libstdc++.so.6")
        ]
    if not found or not all(Path(file).is_absolute() for file in found):
        pytest.skip("this system has no AddressSanitizer of GCC")
    return " ".join(found)


@pytest.mark.long
@pytest.mark.parametrize("level", levels(FEATURES))
def test_the_program_runs_clean_under_sanitizers(level, hatch_build, address_sanitizer, tmp_path):
    target = hatch_build.TARGETS[hatch_build.this_platform()]
    compile_program(hatch_build, target, level, tmp_path / "program", sanitized=True)
    assert run(tmp_path / "program") == "all hold"


WITH_ANOTHER_LIBRARY = """
import sys
from pathlib import Path
from repmamba.kernels import library

library.PATH = Path(sys.argv[1])
assert library.library().handle._name == sys.argv[1]
import pytest
sys.exit(pytest.main(["-q", "-x", "-s", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""
TESTS_OF_KERNELS = (
    ["tests/scan/test_selective.py", "-k", "native"],
    ["tests/scan/test_native_cpu.py", "-k", "threads or disturb or operators or finite"],
    ["tests/network/test_training_cpu.py"],
    ["tests/inference/test_compiled_runner.py"],
)


@pytest.mark.long
@pytest.mark.parametrize("tests", TESTS_OF_KERNELS, ids=lambda tests: tests[0])
@pytest.mark.parametrize("level", levels(FEATURES))
def test_the_rooms_tests_run_clean_under_sanitizers(
    level, tests, hatch_build, address_sanitizer, tmp_path_factory
):
    sanitized = tmp_path_factory.getbasetemp() / "sanitized" / PATH.name
    target = hatch_build.TARGETS[hatch_build.this_platform()]
    if not sanitized.exists():
        hatch_build.build(target, FOLDER, sanitized, flags(hatch_build, sanitized=True))
    environment = {
        VARIABLE: level,
        "LD_PRELOAD": address_sanitizer,
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    process = subprocess.run(
        [sys.executable, "-c", WITH_ANOTHER_LIBRARY, sanitized, *tests],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-5000:]
