"""Build the compiled kernels into the package, with zig's C++ compiler.

One library holds the kernels for every level of a processor family; the package chooses at run
time. zig is that of the ziglang wheel, or without it (in conda) the program on the PATH.
REPMAMBA_TARGET names another platform to build a wheel for. If there is no compiler, or it fails,
the wheel is made without a library, and torch's operations run.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/repmamba/kernels")
ONCE = ("levels.cpp", "plan.cpp")  # compiled once; the other files once per level
# (file, level in the names, CPU features): for processors with more than v4.
BEYOND = (
    ("pairs.cpp", "v4", "+avx512bf16"),
    ("amx.cpp", "v4", "+avx512bf16+amx_bf16+amx_tile"),
    ("training.cpp", "pairs", "+avx512bf16"),
)
FLAGS = [
    *("-O3", "-std=c++20", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden"),
    *("-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-signed-zeros"),
    *("-fno-trapping-math", "-ffp-contract=fast"),
    "-fno-sanitize=undefined",  # zig's default
]


@dataclass(frozen=True)
class Target:
    """A platform that wheels are built for."""

    triple: str  # zig's name for it
    tag: str  # the wheel's
    suffix: str  # the library's
    levels: dict[str, str]  # zig's -mcpu for each level, lowest first


X86 = {"v2": "x86_64_v2", "v3": "x86_64_v3", "v4": "x86_64_v4"}
TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", ".so", X86),
    "linux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", ".so", {"neon": "generic"}
    ),
    "macos-arm64": Target(
        "aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib", {"neon": "apple_m1"}
    ),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", ".dylib", X86),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", ".dll", X86),
}


def this_platform() -> str:
    """The name of this machine as in TARGETS, which may have no such target."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(
        sys.platform, sys.platform
    )
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64" if system == "macos" else "aarch64"}.get(
        machine, machine
    )
    return f"{system}-{machine}"


def compiler(target: Target) -> list[str]:
    """The command that compiles and links for a target."""
    zig = [sys.executable, "-m", "ziglang"] if find_spec("ziglang") else ["zig"]
    return [*zig, "cc", "-target", target.triple]


def build(target: Target, sources: Path, library: Path, flags: list[str] = FLAGS) -> None:
    """Compile all sources for all levels and link one library.

    Raises:
        CalledProcessError: If the compiler fails.
    """
    cc = [*compiler(target), *flags, *([] if target.suffix == ".dll" else ["-fPIC"])]
    # Only for what is compiled once: zig keeps the other objects until their own sources change.
    origin = f'-DSOURCES="{digest(sources)}"'
    files = sorted(file.name for file in sources.glob("*.cpp"))
    lowest, *_ = target.levels.values()
    jobs = [(file, lowest, "") for file in files if file in ONCE]
    others = {*ONCE, *(file for file, level, _ in BEYOND if level == "v4")}
    per_level = [file for file in files if file not in others]
    jobs += [(file, cpu, level) for file in per_level for level, cpu in target.levels.items()]
    if v4 := target.levels.get("v4"):
        jobs += [(file, v4 + more, level) for file, level, more in BEYOND if file in files]
    with TemporaryDirectory() as made, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(Path(made) / f"{file}.{level}.o") for file, _, level in jobs]

        def compiled(job: tuple[str, str, str], result: str) -> None:
            file, cpu, level = job
            defined = f"-DLEVEL={level}" if level else origin
            call([*cc, f"-mcpu={cpu}", defined, "-c", str(sources / file), "-o", result])

        list(pool.map(compiled, jobs, objects))
        linked = Path(made) / library.name
        call([*compiler(target), "-shared", "-s", *objects, "-o", str(linked)])
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_name(f"{library.name}.{os.getpid()}")
        shutil.copy(linked, unfinished)
        unfinished.replace(library)  # processes that have the old one loaded keep it


def call(command: list[str]) -> None:
    """Run the compiler; its messages are passed on."""
    subprocess.run(command, check=True)


def digest(sources: Path) -> str:
    """The digest of the sources that the library carries."""
    found: str = runpy.run_path(str(sources / "sources.py"))["digest"](sources)
    return found


def is_current(library: Path, sources: Path) -> bool:
    """Whether the library exists, is newer than this file, and was built from these sources."""
    if not library.exists() or library.stat().st_mtime < Path(__file__).stat().st_mtime:
        return False
    return digest(sources).encode() in library.read_bytes()


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Put the library into a wheel, or beside the sources of an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build if anything has changed; add the library and the platform's tag to the wheel."""
        wanted = os.environ.get("REPMAMBA_TARGET")
        name = wanted or this_platform()
        if wanted and wanted not in TARGETS:
            raise ValueError(f"REPMAMBA_TARGET is {wanted}; it can be one of {', '.join(TARGETS)}.")
        if name not in TARGETS:
            self.app.display_warning(
                f"repmamba has no compiled kernels for {name}; operations of torch are used."
            )
            return
        target, sources = TARGETS[name], Path(self.root) / SOURCES
        file = f"_kernels{target.suffix}"
        editable = version == "editable"
        library = (
            sources / file if editable else Path(self.root) / "build" / "kernels" / name / file
        )
        try:
            if not is_current(library, sources):
                build(target, sources, library)
        except (OSError, subprocess.CalledProcessError) as fault:
            library.unlink(missing_ok=True)
            if wanted:
                raise
            self.app.display_warning(
                f"The kernels could not be compiled ({fault}); operations of torch are used."
            )
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.tag}"
        if not editable:
            build_data["force_include"][str(library)] = f"repmamba/kernels/{file}"


if __name__ == "__main__":
    print(*TARGETS)  # for `make wheels`
