"""repmamba prepare: the pairs of a benchmark from its originals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from repmamba.cli import options
from repmamba.cli.progress import counting
from repmamba.cli.terminal import printable

Command = TypeVar("Command", bound=Callable[..., Any])


def _range(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(f"--{name}", nargs=2, type=float, metavar="LOW HIGH", help=text)


@click.command()
@click.argument("benchmark", type=click.Choice(["aid", "dota", "dior", "nwpu", "folder"]))
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--scale", type=click.IntRange(2, 4), required=True, help="How many times smaller LR is."
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of every random choice.  [default: 0]"
)
@click.option(
    "--split",
    "part",
    metavar="NAME",
    help="Only one split of the archive: train, val, test or trainval.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Number of images to draw, from each class folder if there are any.",
)
@click.option(
    "--drawn",
    nargs=2,
    type=int,
    metavar="TRAIN TEST",
    help="AID: images per class.  [default: 100 30]",
)
@click.option(
    "--val",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images held out for validation, in val/, from each class folder if there are any.  "
    "[default: none]",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    help="Repeat the draw of an earlier run with its seed; originals are verified by digest.",
)
@_range("blur", "Gaussian blur of GT before downsampling, sigma in its pixels.")
@_range("noise", "Gaussian noise on LR, standard deviation in levels of 255.")
@_range("jpeg", "JPEG compression of LR, quality from 1 to 100.")
@click.option(
    "--degrade",
    metavar="NAME",
    help="Make LR with a chain of these and other degradations, as a camera does: mild, middle, "
    "strong, or sensor (all strengths, a quarter clean).",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Number of processes.  [default: one per core]"
)
@options.quiet
def prepare(
    benchmark: str,
    source: Path,
    target: Path,
    scale: int,
    seed: int | None,
    part: str | None,
    count: int | None,
    drawn: tuple[int, int] | None,
    val: int | None,
    manifest: Path | None,
    blur: tuple[float, float] | None,
    noise: tuple[float, float] | None,
    jpeg: tuple[float, float] | None,
    degrade: str | None,
    jobs: int | None,
    quiet: bool,
) -> None:
    """Create GT, LR and Bicubic in DST from a benchmark's unpacked originals in SRC.

    Each benchmark is cropped and downsampled by its own rule, which the manifest in DST records:
    aid, nwpu and folder by MATLAB's bicubic, dota and dior by Pillow's. A stopped run continues
    with the same command. Broken images are named, counted and left out; if no image is left, the
    exit code is 1.

    With --val, training, validation and test images are disjoint: train/, val/ and test/.

    \b
    Examples:
      repmamba prepare aid AID/ aid_x4 --scale 4 --val 10
      repmamba prepare aid AID/ aid_x2 --scale 2 --manifest aid_x4/manifest.json
      repmamba prepare dota DOTA/ dota_x4 --scale 4 --split val --count 900 --seed 1
      repmamba prepare folder pictures/ pairs --scale 4 --blur 0.5 2 --noise 0 5 --jpeg 60 95
      repmamba prepare folder pictures/ pairs --scale 4 --degrade middle
    """
    from repmamba.data.benchmarks import BENCHMARKS
    from repmamba.data.degradations import Stage
    from repmamba.data.draw import Settings
    from repmamba.data.prepare import prepare as prepare_pairs
    from repmamba.errors import UsageError

    if manifest and seed is not None:
        raise UsageError(f"The seed comes from {manifest}: leave --seed or --manifest out.")
    stages = tuple(
        Stage(name, *limits)
        for name, limits in (("blur", blur), ("noise", noise), ("jpeg", jpeg))
        if limits
    )
    settings = Settings(
        BENCHMARKS[benchmark], scale, seed or 0, count, part, drawn, val, stages, degrade
    )
    with counting("Preparing", quiet=quiet) as progress:
        prepared = prepare_pairs(
            source, target, settings, manifest=manifest, workers=jobs, progress=progress
        )
    for line in prepared.summary().splitlines():
        click.echo(line[: len(line) - len(line.lstrip())] + printable(line))
    if prepared.made + prepared.kept == 0:
        raise click.exceptions.Exit(1)
