"""Write the generated parts of the pages, between two marks; run by `make docs`.

docs/reference/cli/VERB.md gets the output of `repmamba VERB --help`, docs/reference/formats.md the
table of output formats, docs/explanation/map.md the rooms and the first paragraph of every module.
The rest of a page is written by hand. tests/cli/test_docs.py fails if a page is out of date.
"""

import ast
from importlib import import_module
from pathlib import Path

import click

import repmamba
from repmamba.cli.main import VERBS, cli
from repmamba.scene.result.formats import FORMATS

DOCS = Path(__file__).parent
PACKAGE = Path(repmamba.__file__).parent
BEGIN, END = "<!-- written by make docs -->", "<!-- until here -->"

ROOMS = (  # name, what it is, what it needs beside the standard library
    (
        "kernels",
        "what a CPU computes with: C++, compiled when the package is built, and its loader",
        "nothing",
    ),
    (
        "scan",
        "the selective scan: one definition and the ways to compute it",
        "torch, NumPy; on GPUs Triton",
    ),
    ("tiles", "cutting and joining as integer geometry; nothing is read or computed", "NumPy"),
    ("pixels", "what the numbers of an image mean; arrays in, arrays out", "NumPy"),
    ("network", "RepMamba, named as in the paper", "torch, NumPy"),
    (
        "inference",
        "a trained network made useful on arrays of any size and number of bands",
        "torch, NumPy",
    ),
    ("scene", "raster file in, raster file out", "rasterio"),
    ("scene/source", "how a raster is opened and read", "rasterio"),
    ("scene/result", "how a raster is written, checked and resumed", "rasterio"),
    ("data", "imagery to learn from and to be judged on", "NumPy, Pillow"),
    ("evaluate", "numbers one can defend", "NumPy"),
    ("exporting", "a trained network as a file that other programs run", "onnx"),
    ("train", "one recipe, one step, one loop", "torch, NumPy"),
    ("finetuning", "weights trained further on scenes, and kept where they gain", "rasterio"),
    (
        "service",
        "upscale over HTTP: a queue of jobs, a process for each, OGC API - Processes",
        "Starlette, uvicorn, rio-tiler",
    ),
    ("cli", "one file per verb, thin over the rooms", "click"),
)


def main() -> None:
    """Rewrite the marked part of every page."""
    for verb in VERBS:
        command: click.Command = getattr(import_module(verb.module), verb.name)
        write_between_marks(DOCS / "reference" / "cli" / f"{verb.name}.md", help_of(command))
    write_between_marks(DOCS / "explanation" / "map.md", rooms())
    write_between_marks(DOCS / "reference" / "formats.md", formats(), as_code=False)


def write_between_marks(page: Path, text: str, *, as_code: bool = True) -> None:
    """Replace the text between the marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    part = f"```text\n{text}\n```" if as_code else f"\n{text}\n"
    page.write_text(f"{before}{BEGIN}\n{part}\n{END}{after}", "utf-8")


def formats() -> str:
    """The output formats as a table: what each can store, and its creation options."""
    rows = ["| | " + " | ".join(f"**{name}**" for name in FORMATS) + " |"]
    rows.append("| --- |" + " --- |" * len(FORMATS))
    cells = {
        "extension": [", ".join(f"`{s}`" for s in one.suffixes) for one in FORMATS.values()],
        "types": [", ".join(one.dtypes) for one in FORMATS.values()],
        "bands besides alpha": [
            "any" if one.colours.stop > 99 else " or ".join(map(str, one.colours))
            for one in FORMATS.values()
        ],
        "largest edge, pixels": [f"{one.largest:,}" for one in FORMATS.values()],
        "lossless by default": ["yes" if one.lossless else "no" for one in FORMATS.values()],
        "missing pixels by": [
            ", ".join(way for way in ("nodata", "mask", "alpha") if getattr(one, way))
            for one in FORMATS.values()
        ],
        "position": [
            "inside" if one.placed else f"`.aux.xml` and `{one.world}`" for one in FORMATS.values()
        ],
        "`--co`": [
            ", ".join(f"`{name}`" for name, kind in one.options.items() if not kind.ignored)
            for one in FORMATS.values()
        ],
    }
    return "\n".join(rows + [f"| {what} | {' | '.join(row)} |" for what, row in cells.items()])


def help_of(command: click.Command) -> str:
    """The help of a verb as a terminal of 100 columns shows it."""
    group = click.Context(cli, info_name="repmamba")
    context = click.Context(
        command,
        parent=group,
        info_name=command.name,
        max_content_width=100,
        terminal_width=100,
        help_option_names=["-h", "--help"],
    )
    return command.get_help(context).rstrip()


def rooms() -> str:
    """The package as a tree, with the first line of every module."""
    beside = sorted(PACKAGE.glob("[!_]*.py"))
    lines = ["src/repmamba/", *(_line(file, 2) for file in (PACKAGE / "__init__.py", *beside))]
    for room, purpose, needs in ROOMS:
        lines += ["", f"  {room + '/':<22}{purpose}  [{needs}]"]
        lines += [_line(file, 4) for file in sorted((PACKAGE / room).glob("[!_]*.py"))]
    return "\n".join(lines)


def _line(file: Path, indent: int) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    first = " ".join(docstring.partition("\n\n")[0].split())
    return f"{' ' * indent}{file.name:<{24 - indent}}{first}"


if __name__ == "__main__":
    main()
