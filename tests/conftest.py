"""What all tests share: where the reference data is, and the end of the run that says what was skipped and why."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
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
        pytest.skip("the reference data is not here; REPMAMBA_REFERENCE names its folder")
    return folder


@pytest.fixture(scope="session")
def golden(reference: Path) -> Path:
    return reference / "golden"


@pytest.fixture(scope="session")
def geotiffs(reference: Path) -> Path:
    return reference / "data" / "geotiff"


@pytest.fixture(autouse=True)
def _repmambas_logger_as_it_was() -> Iterator[None]:
    """A verb sets the level of repmamba's logger for its process, which is here that of the next test, too."""
    logger = logging.getLogger("repmamba")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped, and why: a count for each reason, so that none hides behind a green line."""
    reasons = Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ") for report in terminalreporter.getreports("skipped")
    )
    terminalreporter.section(f"{reasons.total()} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4d}  {reason}")
