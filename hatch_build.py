"""Builds the compiled kernels into the package, with the C++ compiler that the ziglang wheel brings.

One library holds the kernels for every level of a processor family; the package chooses among them
at run time. No system compiler is used. REPMAMBA_TARGET names another platform to build for.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path("src/repmamba/kernels")
BY_LEVEL = ("scan.cpp", "inference.cpp", "training.cpp")
PAIRS = "training.cpp", "x86_64_v4+avx512bf16", "pairs"  # once more, with products of pairs of bfloat16
ONCE = ("levels.cpp",)
FLAGS = (
    "-O3 -std=c++20 -fno-exceptions -fno-rtti -fno-math-errno -fno-signed-zeros -fno-trapping-math "
    "-ffp-contract=fast -fno-sanitize=undefined -fvisibility=hidden -Wall -Wextra -g0"
).split()


@dataclass(frozen=True)
class Target:
    """A platform: zig's name for it, the wheel's tag, the library's suffix, zig's -mcpu of each level."""

    triple: str
    tag: str
    suffix: str
    levels: dict[str, str]


X86 = {"v2": "x86_64_v2", "v3": "x86_64_v3", "v4": "x86_64_v4"}
TARGETS = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", ".so", X86),
    "linux-aarch64": Target("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", ".so", {"neon": "generic"}),
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", ".dylib", {"neon": "apple_m1"}),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", ".dylib", X86),
    "windows-x86_64": Target("x86_64-windows-gnu", "win_amd64", ".dll", X86),
}


def this_platform() -> str:
    """The name in TARGETS of the machine that builds."""
    system = {"linux": "linux", "darwin": "macos", "win32": "windows"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64", "aarch64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{system}-{machine}"


def build(target: Target, root: Path, library: Path) -> None:
    """Compile all sources for all levels and link them into one library."""
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target.triple, *FLAGS]
    with TemporaryDirectory() as made, ThreadPoolExecutor(os.cpu_count()) as pool:
        oldest = next(iter(target.levels.values()))
        jobs = [(source, oldest, "") for source in ONCE]
        by_level = [source for source in BY_LEVEL if (root / SOURCES / source).exists()]
        jobs += [(source, cpu, level) for source in by_level for level, cpu in target.levels.items()]
        jobs += [PAIRS] if target.levels is X86 else []
        objects = [str(Path(made) / f"{Path(source).stem}_{level}.o") for source, _, level in jobs]

        def compiled(job: tuple[str, str, str], result: str) -> None:
            source, cpu, level = job
            defined = [f"-DLEVEL={level}"] if level else []
            subprocess.run(
                [*compiler, f"-mcpu={cpu}", *defined, "-fPIC", "-c", str(root / SOURCES / source), "-o", result],
                check=True,
            )

        list(pool.map(compiled, jobs, objects))
        subprocess.run([*compiler, "-shared", "-s", *objects, "-o", str(library)], check=True)


class Kernels(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook: wheels and editable installs get the library, beside its sources."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, and let the wheel carry the library and the platform's tag."""
        target = TARGETS[os.environ.get("REPMAMBA_TARGET") or this_platform()]
        root = Path(self.root)
        library = root / SOURCES / f"_kernels{target.suffix}"
        build(target, root, library)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{target.tag}"
        build_data["artifacts"].append(f"/{SOURCES}/{library.name}")
