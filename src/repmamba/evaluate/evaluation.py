"""evaluate_folders: score networks and other methods on folders of pairs, in one call.

This is what `repmamba evaluate` and `repmamba.evaluate_folders` run.
"""

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from repmamba.data.images import RASTERS
from repmamba.durable import check_local
from repmamba.errors import UsageError
from repmamba.evaluate import charts, cost, methods, metrics, page, report, run
from repmamba.evaluate.methods import Method
from repmamba.evaluate.scores import ImageSet, Scores
from repmamba.pixels.radiometry import check_range

RULES_OF_PICTURES = ["esr-rgb", "published"]
RULES_OF_RASTERS = ["bands", "consistency"]
COST_SIZE = 128  # lr pixels

Text: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation. The other methods are compared with its last one."""

    scores: Scores
    costs: dict[str, cost.Cost]  # of networks, by the name of the method

    def __repr__(self) -> str:
        return f"<Evaluation: {self.scores.heading}>"

    def _repr_html_(self) -> str:
        """The means and differences, for a notebook."""
        return page.tables(self.scores)

    def table(self) -> str:
        """Means, paired differences, costs and rules, for a terminal."""
        return report.table(self.scores, self.costs)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; infinities are the string "inf"."""
        return report.to_json(self.scores, self.costs)

    def as_csv(self) -> str:
        """CSV with one line per value of each image."""
        return report.to_csv(self.scores)

    def as_html(self, *, pictures: bool = True, others: Sequence[charts.Point] = ()) -> str:
        """A self-contained page: tables, charts, and excerpts of the largest gain and loss.

        Args:
            pictures: Whether to show excerpts; the images are read and enlarged again for them.
            others: Networks measured elsewhere, for the plot of cost; see `page.read_others`.

        Raises:
            RepmambaError: Reading or enlarging an image failed.
        """
        return page.page(self.scores, self.costs, pictures=pictures, others=others)


def evaluate_folders(
    folders: Text | Iterable[Text],
    *,
    weights: Text | Iterable[Text] = (),
    sr: Text | Iterable[Text] = (),
    methods: str | Method | Iterable[str | Method] = (),
    ensemble: bool = False,
    rules: str | Iterable[str] = (),
    scale: int | None = None,
    tile: int | None = None,
    peak: float | None = None,
    value_range: tuple[float, float] | None = None,
    save: Text | None = None,
    cost: bool = False,
    cost_size: int = COST_SIZE,
    device: str | None = None,
    backend: str | None = None,
    precision: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score networks and other methods on the pairs in folders, by named rules.

    Arguments for several values also accept a single one. Memory is measured in a new process, so
    with `cost` a script must call this below `if __name__ == "__main__"`.

    Args:
        folders: Each with GT and LR, flat or in class folders, or with large images only, which are
            then downsampled with MATLAB's bicubic: uint8 pictures, or TIFFs of any type and number
            of bands.
        weights: Networks, as for `load`.
        sr: Folders of results made elsewhere, with the names of the pairs.
        methods: "nearest", "bicubic", or a Method, which makes sr (s h, s w, C) from a Pair's lr
            (h, w, C). The results list weights, sr and methods in this order; the others are
            compared with the last one.
        ensemble: Also score each network as the mean over the eight flips and rotations.
        rules: Names of rules, or of single metrics in metrics.METRICS; by default esr-rgb and
            published, and for TIFFs bands and consistency.
        scale: 2, 3 or 4, for folders without LR; by default that of the weights or of LR.
        tile: lr pixels that a network keeps of each tile, even; by default one pass over the image.
        peak: For PSNR and SSIM of the rules bands and consistency, instead of the type's largest
            value: 10000 for 16-bit reflectance.
        value_range: The values that are black and white to the networks; its width is the default
            of peak.
        save: Folder for the results, by set and method.
        cost: Also measure the seconds and bytes of each network.
        cost_size: Side of the lr image for the cost, in pixels.
        device: As for `load`.
        backend: As for `load`.
        precision: As for `load`.
        progress: Called with the number of images done and the number of all.

    Returns:
        Scores and costs, which print and export themselves.

    Raises:
        UsageError: The arguments do not fit together; ShapeMismatch if images do not.
        CheckpointError: Weights cannot be loaded.
        SourceError: Images or results are missing or damaged.
        OutOfMemory: Memory does not suffice.
        TargetError: Results cannot be saved.
    """
    if save is not None:
        check_local(save)
    if scale is not None and (scale := operator.index(scale)) not in (2, 3, 4):
        raise UsageError(f"scale={scale}: give 2, 3 or 4.")
    cost_size = operator.index(cost_size)
    if cost_size < 1:
        raise UsageError(f"cost_size={cost_size}: give a number of pixels from 1 up.")
    if value_range is not None:
        low, high = value_range
        check_range(low, high)
        peak = high - low if peak is None else peak
    chosen = _chosen(
        _texts(weights),
        _texts(sr),
        [methods] if isinstance(methods, str | Method) else list(methods),
        ensemble=ensemble,
        cut={"tile": tile, "value_range": value_range},
        load={"device": device, "backend": backend, "precision": precision},
    )
    shared = scale or next((one.scale for one in chosen if one.scale), None)
    sets = run.find_sets([Path(folder) for folder in _texts(folders)], shared)
    if not sets:
        raise UsageError("There is no folder to evaluate; name at least one.")
    measures = metrics.metrics_of(_texts(rules) or _usual_rules(sets), peak)
    costs = _costs(chosen, cost_size, backend, measure=cost)
    folder = None if save is None else Path(save)
    scores = run.evaluate(sets, chosen, measures, save=folder, progress=progress)
    return Evaluation(scores, costs)


def _chosen(
    weights: Sequence[str],
    sr: Sequence[str],
    others: Sequence[str | Method],
    *,
    ensemble: bool,
    cut: dict[str, Any],
    load: dict[str, Any],
) -> list[Method]:
    """The methods in order, with distinct names.

    cut: tile and value_range of `methods.network`. load: arguments of `load`.
    """
    found: list[Method] = []
    for name in weights:
        from repmamba.inference import loading

        upscaler = loading.load(name, **load)
        found += [methods.network(upscaler, name, **cut)]
        found += [methods.network(upscaler, name, **cut, ensemble=True)] if ensemble else []
    found += [methods.results(Path(folder)) for folder in sr]
    found += [_method(one) for one in others]
    if not found:
        raise UsageError("There is nothing to evaluate; name weights, sr or a method.")
    return methods.with_distinct_names(found)


def _method(given: str | Method) -> Method:
    if isinstance(given, Method):
        return given
    if given not in methods.CLASSICS:
        raise UsageError(
            f"There is no method {given!r:.60}; choose among {', '.join(methods.CLASSICS)}."
        )
    return methods.CLASSICS[given]()


def _usual_rules(sets: Sequence[ImageSet]) -> list[str]:
    tiffs = any(files.hr.suffix.lower() in RASTERS for one in sets for files in one.files)
    return RULES_OF_RASTERS if tiffs else RULES_OF_PICTURES


def _costs(
    chosen: Sequence[Method], size: int, backend: str | None, *, measure: bool
) -> dict[str, cost.Cost]:
    """The cost of each network by the method's name: counted, and on request measured."""
    costs = {}
    for method in chosen:
        if (upscaler := method.upscaler) and (weights := method.weights):
            passes = method.passes
            one = cost.cost_of(cost.config_of(upscaler), size, size, passes=passes)
            if measure:
                one = cost.measured(one, upscaler, weights, backend=backend, passes=passes)
            costs[method.name] = one
    return costs


def _texts(given: Text | Iterable[Text]) -> list[str]:
    """One or several paths or names, as text."""
    return [*map(os.fsdecode, [given] if isinstance(given, str | os.PathLike) else given)]
