"""repmamba finetune: weights trained further on your own scenes, kept only if they improve."""

from pathlib import Path
from typing import Any

import click

from repmamba.cli import options
from repmamba.cli.progress import training
from repmamba.cli.train import one_voice


@click.command()
@click.argument(
    "scenes", metavar="SCENE...", nargs=-1, required=True, type=click.Path(path_type=str)
)
@click.option(
    "--weights",
    default="x4",
    show_default=True,
    metavar="NAME|FILE|FOLDER",
    type=options.PackagedWeightsOrPath(),
    help="Weights to start from.",
)
@click.option(
    "-o",
    "--output",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder of the run; the same command continues a run in it.  [default: runs/finetune- and "
    "the first scene's name]",
)
@click.option(
    "--steps",
    type=click.IntRange(min=20),
    default=600,
    show_default=True,
    help="Number of training steps.",
)
@click.option("--rate", type=float, default=1e-4, show_default=True, help="Peak learning rate.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1234,
    show_default=True,
    help="Seed of samples and held-out blocks.",
)
@options.nodata
@options.device
@options.threads
@options.nice
@options.minutes
@options.quiet
def finetune(
    scenes: tuple[str, ...],
    folder: Path | None,
    quiet: bool,
    **arguments: Any,  # of repmamba.finetune
) -> None:
    """Train weights further on each SCENE, a raster like those to upscale later.

    The scene downsampled by the scale of the weights is the input, the scene itself the truth. A
    quarter of its blocks is held out; new weights are only written if they gain on these blocks,
    with an interval above zero.

    \b
    Examples:
      repmamba finetune june.tif july.tif -o runs/our_sensor
      repmamba upscale august.tif -o august_x4.tif --weights runs/our_sensor/finetuned.safetensors
    """
    from repmamba.finetuning.finetune import finetune as train_further

    folder = folder or Path("runs") / f"finetune-{Path(scenes[0]).stem}"
    with one_voice(quiet=quiet) as say, training(quiet=quiet) as progress:
        say(train_further(scenes, folder, progress=progress, **arguments).summary())
