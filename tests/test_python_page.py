"""The tables of docs/reference/python.md have every argument, every name and every error."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import repmamba

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "reference" / "python.md").read_text("utf-8")


def arguments_in(section: str) -> set[str]:
    """What the tables of a section have in their first column."""
    text = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (found,) = [part for part in text if part.startswith(section)]
    rows = re.findall(r"^\| (`[^|]*) \|", found, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_tables_have_every_argument_and_no_other():
    def of(function: Callable[..., object], *, but: set[str]) -> set[str]:
        return set(inspect.signature(function).parameters) - but

    assert arguments_in("Weights: load") == of(repmamba.load, but=set())
    assert arguments_in("Arrays: Upscaler.upscale") == of(
        repmamba.Upscaler.upscale, but={"self", "array"}
    )
    assert arguments_in("Other programs: export") == of(repmamba.export, but=set())
    assert arguments_in("Benchmarks: evaluate_folders") == of(repmamba.evaluate_folders, but=set())
    of_files = of(repmamba.upscale_file, but={"source", "target", "weights"})
    assert arguments_in("Files: upscale_file") == of_files


def test_the_page_names_every_name_of_the_front_door_and_every_error():
    errors = {name for name, found in vars(repmamba.errors).items() if isinstance(found, type)}
    for name in {*repmamba.__all__, *errors} - {"__version__"}:
        assert f"`{name}`" in PAGE, name
