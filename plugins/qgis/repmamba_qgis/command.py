"""The command of repmamba as this plugin calls it: where it is, what it is asked, how far it has
come.

Nothing of QGIS is imported here, and nothing of repmamba: torch and the network live in an
environment of their own, which QGIS starts as a program. So neither can break the other's
libraries.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# set by QGIS for its own Python, GDAL and PROJ; a program of another environment would break on
# them
FOREIGN = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONEXECUTABLE"),
    *("GDAL_DATA", "GDAL_DRIVER_PATH", "GDAL_PYTHON_DRIVER_PATH"),
    *("PROJ_LIB", "PROJ_DATA", "GEOTIFF_CSV"),
)
LOOKED_AT_EVERY = 0.2  # seconds between two looks at whether the user wants to stop
# no window of its own, and a group, which alone can be asked to stop there
if sys.platform == "win32":
    FLAGS, STOP = (
        subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP,
        signal.CTRL_BREAK_EVENT,
    )
else:
    FLAGS, STOP = 0, signal.SIGINT
PERCENT = re.compile(r": +(\d+) ?% of ")


class CommandError(Exception):
    """What the user should know, in one line."""


@dataclass(frozen=True)
class Request:
    """What is to be enlarged, and how; None leaves it to repmamba."""

    source: str  # by its name in GDAL
    target: str
    scale: int
    weights: str | None = None  # a name or a file
    # left, bottom, right, top, in the raster's CRS
    bbox: tuple[float, float, float, float] | None = None
    rgb: str | None = None  # "4,3,2": the bands that are red, green and blue
    value_range: str | None = None  # "0,4000", "robust" or "type"
    ensemble: bool = False
    confidence: str | None = None  # the file for the errors to expect

    def arguments(self) -> list[str]:
        """Of `repmamba`."""
        said = ["upscale", "-o", self.target, f"--scale={self.scale}", "--overwrite"]
        options = {
            "weights": self.weights,
            "rgb": self.rgb,
            "range": self.value_range,
            "confidence": self.confidence,
        }
        said += [f"--{name}={value}" for name, value in options.items() if value]
        if self.bbox is not None:
            said.append("--bbox=" + ",".join(map(repr, self.bbox)))
        if self.ensemble:
            said.append("--ensemble")
        return [*said, "--", self.source]


def find_command(setting: str) -> str:
    """The program: the one of the setting, else the first on the PATH. Raises CommandError."""
    wanted = setting.strip()
    found = shutil.which(os.path.expanduser(wanted) or "repmamba")
    if found is None:
        where = (
            f"There is no program {wanted}"
            if wanted
            else "The command repmamba is not on the PATH of QGIS"
        )
        raise CommandError(
            f"{where}: install repmamba into a Python environment, and name its command in "
            "Settings, Options, "
            "Processing, Providers, Rep-Mamba."
        )
    return found


def environment() -> dict[str, str]:
    """That of QGIS without what is meant for its own libraries."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN}


def percent(line: str) -> float | None:
    """How much of the raster is computed, where a line says so."""
    found = PERCENT.search(line)
    return float(found[1]) if found else None


def run(command: Sequence[str], told: Callable[[str], None], stopped: Callable[[], bool]) -> None:
    """Run a command to its end; told gets each line that it writes.

    stopped is asked five times a second; when it says so, the command is asked to stop, which
    leaves what is finished for the same call to go on with. Raises CommandError with the command's
    own last line when it fails.
    """
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment() | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"},
        creationflags=FLAGS,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reading = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reading.start()
    last, asked = "", False
    try:
        while (line := _next(lines)) is not None:
            if line:
                last = line
                told(line)
            if not asked and stopped():
                asked = True
                child.send_signal(STOP)
    except BaseException:
        child.kill()
        raise
    finally:
        status = child.wait()
    if status and not asked:
        raise CommandError(
            last.removeprefix("Error: ") or f"{Path(command[0]).name} ended with status {status}."
        )


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line.rstrip())
    lines.put(None)


def _next(lines: queue.Queue[str | None]) -> str | None:
    """The next line, "" where none has come for a while, None at the end."""
    try:
        return lines.get(timeout=LOOKED_AT_EVERY)
    except queue.Empty:
        return ""
