"""Folders of pairs, weights and other methods -> Evaluation: scores and costs, and what is printed
and written of them.

The whole of an evaluation in one call, `evaluate_folders`: what the command line offers, and what
the front door does.
"""

import math
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
from repmamba.inference.options import (
    CALLED,
    FLAG,
    PIXELS,
    RANGE,
    WHOLE,
    Kind,
    checked,
    number,
    several,
)

RULES_OF_PICTURES = ["esr-rgb", "published"]
RULES_OF_RASTERS = ["bands", "consistency"]
COST_SIZE = 128  # lr pixels

Text: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a run has found. Its last method is the one that the others are compared with."""

    scores: Scores
    costs: dict[str, cost.Cost]  # by the name of the method; of networks alone

    def __repr__(self) -> str:
        return f"<Evaluation: {self.scores.heading}>"

    def _repr_html_(self) -> str:
        """The means and the differences, for a notebook."""
        return page.tables(self.scores)

    def table(self) -> str:
        """Means, paired differences, costs and the rules behind the numbers, for a terminal."""
        return report.table(self.scores, self.costs)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values; infinities are the text "inf"."""
        return report.to_json(self.scores, self.costs)

    def as_csv(self) -> str:
        """One line for each value of each image."""
        return report.to_csv(self.scores)

    def as_html(self, *, pictures: bool = True, others: Sequence[charts.Point] = ()) -> str:
        """One page that needs nothing beside it: tables, charts, and the pictures of largest gain
        and loss.

        pictures: excerpts of these images, which are read and enlarged again for them; False leaves
        them out. others: networks measured elsewhere, for the plot of cost, as `page.read_others`
        reads them. Raises what reading and enlarging raise.
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
    """Score networks and other methods on the pairs in folders, by named rules. One value will do
    for several.

    folders: each with GT and LR inside, flat or in class folders, or with large images alone, which
    are then reduced as the benchmarks do: uint8 pictures, or TIFFs of any type and number of bands.
    weights: networks, as `load` takes them.  sr: folders of results made elsewhere, with the names
    of the pairs.
    methods: "nearest", "bicubic", or a Method of one's own, which makes of a Pair's lr (h, w, C)
    its sr (s h, s w, C). In this order they stand in the result, and the last is the one that the
    others are compared with.
    ensemble: each network also as the mean over the eight flips and rotations.  tile: lr pixels
    that a network keeps of
    each tile, even; one pass over the whole image unless given.  device, backend, precision: as for
    `load`.
    rules: names of rules, or of single measures in metrics.METRICS, each of which says its unit:
    dB, degrees or none; unless given esr-rgb and published, and for TIFFs bands and consistency.
    scale: 2, 3 or 4, of folders without LR; that of the weights or of LR unless given. peak: what
    PSNR and SSIM of the rules bands and consistency are relative to, instead of the type's largest
    value:
    10000 for reflectance in 16 bit.  value_range: what is black and white to the networks; its
    width is the peak unless
    that is given too.
    save: a folder that gets each result, below its set and method.
    cost: measure seconds and bytes of each network, too, for an lr image of cost_size x cost_size
    pixels. Memory is measured in a process of its own, so in a script the call belongs below `if
    __name__ == "__main__"`. progress: called with the number of images done and that of all. What
    can fail does so before the first image is scored. Raises RepmambaError of the kinds Usage
    (ShapeMismatch among them), Checkpoint, Source, OutOfMemory, and Target where results are saved.
    """
    several_of = {
        "folders": folders,
        "weights": weights,
        "sr": sr,
        "methods": methods,
        "rules": rules,
    }
    one_of: dict[str, Any] = {
        "scale": scale,
        "tile": tile,
        "save": save,
        "cost_size": cost_size,
        "progress": progress,
    }
    one_of |= {"ensemble": ensemble, "cost": cost, "peak": peak, "value_range": value_range}
    asked = checked(several_of | one_of, KINDS)
    if save is not None:
        check_local(save)
    value_range, peak = asked.get("value_range"), asked.get("peak")
    if value_range is not None:
        low, high = value_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(
                f"A range from {low:g} to {high:g} holds no values; give two numbers, the lower "
                "first."
            )
        peak = high - low if peak is None else peak
    scale, tile, cost_size = (
        asked.get("scale"),
        asked.get("tile"),
        asked.get("cost_size", COST_SIZE),
    )
    if scale not in (None, 2, 3, 4):
        raise UsageError(f"A scale of {scale} is not evaluated; take 2, 3 or 4.")
    if cost_size < 1:
        raise UsageError(
            f"The cost of an LR image of {cost_size} pixels cannot be told; give 1 or more."
        )
    named = (asked.get(name, ()) for name in ("weights", "sr", "methods"))
    cut: dict[str, Any] = {"tile": tile, "value_range": value_range}
    chosen = _chosen(
        *named, ensemble=ensemble, cut=cut, device=device, backend=backend, precision=precision
    )
    shared = scale or next((method.scale for method in chosen if method.scale), None)
    sets = run.find_sets([Path(folder) for folder in asked.get("folders", ())], shared)
    if not sets:
        raise UsageError("There is no folder to evaluate on; name one or several.")
    measures = metrics.metrics_of(asked.get("rules") or _usual_rules(sets), peak)
    costs = _costs(chosen, cost_size, backend, measure=cost)
    scores = run.evaluate(sets, chosen, measures, save=asked.get("save"), progress=progress)
    return Evaluation(scores, costs)


def _chosen(
    weights: Sequence[str],
    sr: Sequence[str],
    others: Sequence[str | Method],
    *,
    ensemble: bool,
    cut: dict[str, Any],
    device: str | None,
    backend: str | None,
    precision: str | None,
) -> list[Method]:
    """The methods in their order, by names that differ; parameters as for `evaluate_folders`.

    cut: tile and value_range.
    """
    found: list[Method] = []
    for name in weights:
        from repmamba.inference.loading import load

        upscaler = load(name, device=device, backend=backend, precision=precision)
        found += [methods.network(upscaler, name, **cut)]
        found += [methods.network(upscaler, name, **cut, ensemble=True)] if ensemble else []
    found += [methods.results(Path(folder)) for folder in sr]
    found += [_method(one) for one in others]
    if not found:
        raise UsageError("There is nothing to evaluate; name weights, sr or a method.")
    return methods.told_apart(found)


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
    """What each network costs, by the method's name: counted, and measured where that is asked
    for.
    """
    costs = {}
    for method in chosen:
        if method.upscaler and method.weights:
            counted = cost.cost_of(
                cost.config_of(method.upscaler), size, size, passes=method.passes
            )
            costs[method.name] = (
                cost.measured(
                    counted, method.upscaler, method.weights, backend=backend, passes=method.passes
                )
                if measure
                else counted
            )
    return costs


def _texts(given: Any) -> tuple[str, ...]:
    """One or several, as text."""
    return several(os.fsdecode)([given] if isinstance(given, str | os.PathLike) else given)


def _methods(given: Any) -> tuple[str | Method, ...]:
    """One or several."""
    return several(_name_or_method)([given] if isinstance(given, str | Method) else given)


def _name_or_method(given: Any) -> str | Method:
    if not isinstance(given, str | Method):
        raise TypeError("This is neither.")
    return given


NAMES = Kind("a name or a path, one or several", _texts)
KINDS = {
    "folders": NAMES,
    "weights": NAMES,
    "sr": NAMES,
    "methods": Kind("a name or a Method, one or several", _methods),
    "rules": NAMES,
    "scale": WHOLE,
    "tile": PIXELS,
    "save": Kind("a path", Path),
    "cost_size": PIXELS,
    "peak": Kind("a number", number),
    "value_range": RANGE,
    "ensemble": FLAG,
    "cost": FLAG,
    "progress": CALLED,
}
"""What evaluate_folders takes; the other arguments are `load`'s, or True and False."""
