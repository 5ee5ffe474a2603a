"""repmamba evaluate: methods scored against the truth, by named rules."""

import json
from pathlib import Path
from typing import Any

import click

from repmamba.cli import options
from repmamba.cli.progress import counting


def _rule_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from repmamba.evaluate.metrics import METRICS, rule_names

    return [name for name in (*rule_names(), *METRICS) if name.startswith(incomplete)]


@click.command()
@click.argument(
    "folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--weights",
    multiple=True,
    metavar="NAME|FILE|FOLDER",
    type=options.PackagedWeightsOrPath(),
    help="A network: a packaged one, or a checkpoint.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(["nearest", "bicubic"]),
    help="A method without a network.",
)
@click.option(
    "--sr", multiple=True, type=click.Path(path_type=Path), help="Results made elsewhere."
)
@click.option(
    "--ensemble", is_flag=True, help="Each network also as the mean over eight flips and rotations."
)
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME",
    shell_complete=_rule_names,
    help="published, ttst-y, haunet-rgb, esr-rgb, esr-y, bands, consistency, or one measure: "
    "esr-rgb.psnr.  "
    "[default: esr-rgb and published; bands and consistency for TIFFs]",
)
@click.option(
    "--scale",
    type=click.IntRange(2, 4),
    help="Of folders without LR.  [default: that of the weights or LR]",
)
@click.option("--save", type=click.Path(path_type=Path), help="Keep every result in this folder.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="Write a page with tables, charts and pictures.",
)
@click.option("--no-pictures", is_flag=True, help="The page without excerpts of the images.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write everything as JSON."
)
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(path_type=Path),
    help="Write every value of every image as CSV.",
)
@click.option(
    "--cost",
    is_flag=True,
    help="Also measure time and peak memory of each network (takes a moment).",
)
@click.option(
    "--cost-size",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Edge of LR for the cost.",
)
@click.option(
    "--others",
    type=click.Path(path_type=Path),
    help="Networks measured elsewhere, for the page's plot of cost: CSV of name, 10^9 "
    "multiply-adds, value.",
)
@options.device
@options.backend
@options.precision
@click.option(
    "--tile",
    type=click.IntRange(min=1),
    metavar="PIXELS",
    help="Enlarge in tiles that keep this edge, in LR pixels, an even number.  [default: one pass "
    "over the whole "
    "image, as published]",
)
@click.option(
    "--peak",
    type=float,
    metavar="VALUE",
    help="What PSNR and SSIM of the rules bands and consistency are relative to: 10000 for "
    "reflectance in 16 bit.  "
    "[default: the type's largest value]",
)
@click.option(
    "--range",
    "value_range",
    metavar="LOW,HIGH",
    callback=options.numbers(float, 2),
    help="What is black and white to the networks, as of upscale; its width is the peak.  "
    "[default: the type's range]",
)
@options.quiet
def evaluate(
    folders: tuple[Path, ...],
    report: Path | None,
    no_pictures: bool,
    json_file: Path | None,
    csv_file: Path | None,
    others: Path | None,
    quiet: bool,
    **arguments: Any,  # of evaluate_folders
) -> None:
    """Score networks and other methods on the pairs in each DIR, by named rules.

    DIR contains GT/ (or HR/) and LR/, flat or in class folders, or only large images, which are
    then downsampled as in the benchmarks. Names in LR may end in the scale, as DIV2K's 0801x4.png.
    The other methods are compared with the last one (weights, then --sr, then --method).

    \b
    Examples:
      repmamba evaluate aid_x4/test --weights x4 --method bicubic --report aid.html
      repmamba evaluate rsscn7 ucmerced --scale 4 --weights mine.safetensors --weights x4
      repmamba evaluate sentinel2 --weights x4 --method bicubic --range 0,4000
      repmamba evaluate pairs --sr results_of_another_network --method bicubic --csv values.csv
    """
    from repmamba.errors import UsageError
    from repmamba.evaluate.evaluation import evaluate_folders
    from repmamba.evaluate.page import read_others
    from repmamba.evaluate.report import check_target, write_text

    if others and not report:
        raise UsageError(
            "--others are only drawn in the page: add --report, or leave --others out."
        )
    # Checks that may fail come before the scores, which take long.
    elsewhere = read_others(others) if others else []
    for target in (report, json_file, csv_file):
        if target:
            check_target(target)
    with counting("Scoring", quiet=quiet) as progress:
        evaluation = evaluate_folders(folders, progress=progress, **arguments)
    click.echo(evaluation.table())
    if json_file:
        write_text(json_file, json.dumps(evaluation.as_json(), indent=1) + "\n")
    if csv_file:
        write_text(csv_file, evaluation.as_csv())
    if report:
        write_text(report, evaluation.as_html(pictures=not no_pictures, others=elsewhere))
