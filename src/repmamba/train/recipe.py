"""Recipe: everything that a training run depends on, frozen and checked when made.

Each table of a recipe file is a dataclass here; its docstring explains the keys and their units,
and a missing key has the field's default. Threads, niceness and progress cannot change a sample and
are arguments of `fit`. recipe_file.py reads and writes recipes as TOML.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from repmamba.data.degradations import Stage
from repmamba.data.patches import Phase
from repmamba.data.sensors import SENSORS
from repmamba.errors import RecipeError
from repmamba.evaluate.metrics import METRICS, rule_names
from repmamba.network.config import NetworkConfig

Augmentation = Literal["flips", "transpose", "rotations"]


@dataclass(frozen=True, slots=True)
class Data:
    """The images to train on and to validate with.

    train, val: folders, each with GT/ and LR/, or class folders of these, or hr images only, whose
    lr is made by imresize.
    patches: one or more phases, ordered by their start.
    augment: drawn independently for each patch. flips are top-bottom and left-right, transpose
    swaps rows and columns, rotations are by 0, 90, 180 or 270 degrees.
    draw: an epoch takes one patch of each of the "images", as published, or patches of images drawn
    by their "area".
    short_batch: "keep" ends each epoch with the remaining images, as published; "fill" continues
    into the next epoch.
    cache: where decoded images are stored: "memory", "disk" (one memory-mapped file in the run's
    folder) or "device".
    degradations: stages of data.degradations besides downsampling, drawn for each patch; none for
    plain downsampling, as in the benchmarks.
    degrade: the name of a chain of data.sensors instead.
    reductions: also train on each image downsampled to these shares of its size, which makes it
    sharper, where the largest patch still fits.
    """

    train: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    patches: tuple[Phase, ...] = (Phase(),)
    augment: tuple[Augmentation, ...] = ("flips", "transpose")
    draw: Literal["images", "area"] = "images"
    short_batch: Literal["keep", "fill"] = "fill"
    cache: Literal["memory", "disk", "device"] = "memory"
    degradations: tuple[Stage, ...] = ()
    degrade: str = ""
    reductions: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shares = all(0 < share < 1 for share in self.reductions)
        must(shares, "data.reductions", self.reductions, "between 0 and 1")
        distinct = len(set(self.reductions)) == len(self.reductions)
        must(distinct, "data.reductions", self.reductions, "different from each other")
        known, one_of = self.degrade in ("", *SENSORS), f"one of {', '.join(SENSORS)}"
        must(known, "data.degrade", self.degrade, one_of)
        alone = not (self.degrade and self.degradations)
        must(alone, "data.degrade", self.degrade, "empty beside data.degradations")
        for phase in self.patches:
            at_least("data.patches.size", phase.size, 2)
            at_least("data.patches.batch", phase.batch, 1)
        starts = [phase.start for phase in self.patches]
        ordered = bool(starts) and starts[0] == 0 and all(a < b for a, b in pairwise(starts))
        must(ordered, "data.patches.start", starts, "0 for the first phase, and increasing")


@dataclass(frozen=True, slots=True)
class Optimiser:
    """The options of the optimiser.

    kind: "adamw", or "muon": Muon for the matrices of the body and AdamW for all else.
    lr: the learning rate, above 0.
    betas, eps, weight_decay: as in AdamW.
    decay: "all" parameters, as published, or only weight "matrices" and convolutions.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["all", "matrices"] = "all"

    def __post_init__(self) -> None:
        must(self.lr > 0, "optimiser.lr", self.lr, "above 0")
        below_1 = all(0 <= beta < 1 for beta in self.betas)
        must(below_1, "optimiser.betas", list(self.betas), "two numbers from 0 to below 1")
        must(self.eps > 0, "optimiser.eps", self.eps, "above 0")
        at_least("optimiser.weight_decay", self.weight_decay, 0)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The learning rate over the run, as a share of the optimiser's.

    warmup: steps (or epochs) of a linear rise from 0.
    kind: after that, "constant" is multiplied by `factor` at each of the `milestones`; "cosine"
    falls from 1 to `floor` at the run's end by half a cosine.
    descent: the last steps (or epochs) of a constant rate, in which it falls to the share `floor`
    by 1 - sqrt(t), t from 0 to 1. Source: Haegele et al. 2024, "Scaling Laws and Compute-Optimal
    Training Beyond Fixed Training Durations", where this shape was better than a linear one.
    """

    kind: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    factor: float = 0.5
    floor: float = 0.0
    descent: int = 0

    def __post_init__(self) -> None:
        at_least("schedule.warmup", self.warmup, 0)
        at_least("schedule.descent", self.descent, 0)
        constant = self.kind == "constant" or self.descent == 0
        must(constant, "schedule.descent", self.descent, "0 for a cosine, which descends anyway")
        growing = sorted(self.milestones) == list(self.milestones)
        must(growing, "schedule.milestones", self.milestones, "growing")
        must(self.factor > 0, "schedule.factor", self.factor, "above 0")
        must(0 <= self.floor <= 1, "schedule.floor", self.floor, "from 0 to 1")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the optimiser.

    clip: largest norm of the gradient; 0 for none.
    accumulate: parts that a batch is computed in, one after another.
    precision: "bf16" runs forward passes under autocast; on a CPU only if a short trial shows that
    it is faster.
    ema: decay of the moving average of weights and buffers that is validated and saved; 0 for none.
    batch_norm: statistics of the batch in each "process", or "synchronised" over all (GPUs only),
    or the running ones of the weights that training starts from, "frozen".
    compile: use torch.compile.
    surplus_step: reproduce the published loop's extra optimiser step at the end of each epoch, on
    the same gradients.
    """

    clip: float = 0.0
    accumulate: int = 1
    precision: Literal["float32", "bf16"] = "float32"
    ema: float = 0.0
    batch_norm: Literal["process", "synchronised", "frozen"] = "process"
    compile: bool = False
    surplus_step: bool = False

    def __post_init__(self) -> None:
        at_least("step.clip", self.clip, 0)
        at_least("step.accumulate", self.accumulate, 1)
        must(0 <= self.ema < 1, "step.ema", self.ema, "from 0 to below 1")


@dataclass(frozen=True, slots=True)
class LossTerm:
    """One term of the loss: an entry of train.losses.LOSSES and its weight."""

    name: str = "l1"
    weight: float = 1.0

    def __post_init__(self) -> None:
        # imports torch, which a recipe needs for nothing else
        from repmamba.train.losses import LOSSES

        must(self.name in LOSSES, "losses.name", self.name, f"one of {', '.join(LOSSES)}")
        must(self.weight > 0, "losses.weight", self.weight, "above 0")


@dataclass(frozen=True, slots=True)
class Validation:
    """When and how the network is validated.

    every: steps (or epochs) between validations.
    rule: of evaluate.metrics.METRICS, with psnr and ssim; "bands" for anything but 8-bit RGB.
    images: number of validation images to use, evenly spread; 0 for all.
    crops: number of images in the picture.
    """

    every: int = 1000
    rule: str = "esr-rgb"
    images: int = 0
    crops: int = 4

    def __post_init__(self) -> None:
        known = METRICS.keys()
        rules = [rule for rule in rule_names() if {f"{rule}.psnr", f"{rule}.ssim"} <= known]
        must(self.rule in rules, "validation.rule", self.rule, f"one of {', '.join(rules)}")
        at_least("validation.every", self.every, 1)
        at_least("validation.images", self.images, 0)
        at_least("validation.crops", self.crops, 0)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Which states of the run are kept.

    every: steps (or epochs) between saves.
    keep: how many of the latest are kept.
    archive: also keep those at multiples of this, and their weights as step-N.safetensors; 0 for
    none.
    """

    every: int = 1000
    keep: int = 2
    archive: int = 0

    def __post_init__(self) -> None:
        at_least("checkpoints.every", self.every, 1)
        must(self.keep >= 2, "checkpoints.keep", self.keep, "at least 2: one to fall back on")
        at_least("checkpoints.archive", self.archive, 0)


@dataclass(frozen=True, slots=True)
class Start:
    """Where the weights start.

    kind: "random", as published, or "bilinear", where the untrained network upscales bilinearly.
    weights: a checkpoint or packaged weights to start from instead; for another scale, the body is
    kept and the upsampler resampled.
    mean_with: more checkpoints; the run starts from the mean of all, which is often better than
    each if all were trained from the same weights.
    ema: a checkpoint that the EMA starts from; default the same.
    """

    kind: Literal["random", "bilinear"] = "random"
    weights: str = ""
    mean_with: tuple[str, ...] = ()
    ema: str = ""

    def __post_init__(self) -> None:
        fits = bool(self.weights) or not self.mean_with
        must(fits, "start.mean_with", self.mean_with, "none without start.weights")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training run.

    steps: length of the run.
    unit: what start, warmup, milestones, every, archive and steps count.
    seed: of the weights, the samples and the augmentations.
    divergence: stop the run when its smoothed loss exceeds this many times its own minimum.
    """

    name: str
    steps: int
    unit: Literal["step", "epoch"] = "step"
    seed: int = 1234
    divergence: float = 10.0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: Data = field(default_factory=Data)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    step: Step = field(default_factory=Step)
    losses: tuple[LossTerm, ...] = field(default_factory=lambda: (LossTerm(),))
    validation: Validation = field(default_factory=Validation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    start: Start = field(default_factory=Start)

    def __post_init__(self) -> None:
        must(bool(self.name), "name", self.name, "not empty")
        at_least("steps", self.steps, 1)
        must(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 - 1")
        must(self.divergence > 1, "divergence", self.divergence, "above 1")
        must(bool(self.losses), "losses", [], "at least one")
        losses = [term.name for term in self.losses]
        must(len(set(losses)) == len(losses), "losses.name", losses, "different names")
        parts = self.step.accumulate
        for phase in self.data.patches:
            even, multiple = phase.batch % parts == 0, f"a multiple of step.accumulate, {parts}"
            must(even, "data.patches.batch", phase.batch, multiple)
        descent = self.schedule.descent
        must(descent <= self.steps, "schedule.descent", descent, f"at most steps, {self.steps}")
        for key, number in _numbers(asdict(self), ""):
            must(math.isfinite(number), key, number, "finite")

    def in_steps(self, epoch: int) -> "Recipe":
        """The same run counted in steps, with `epoch` steps per epoch."""
        if self.unit == "step":
            return self
        patches = tuple(replace(phase, start=phase.start * epoch) for phase in self.data.patches)
        milestones = tuple(milestone * epoch for milestone in self.schedule.milestones)
        return replace(
            self,
            unit="step",
            steps=self.steps * epoch,
            data=replace(self.data, patches=patches),
            schedule=replace(
                self.schedule,
                warmup=self.schedule.warmup * epoch,
                milestones=milestones,
                descent=self.schedule.descent * epoch,
            ),
            validation=replace(self.validation, every=self.validation.every * epoch),
            checkpoints=replace(
                self.checkpoints,
                every=self.checkpoints.every * epoch,
                archive=self.checkpoints.archive * epoch,
            ),
        )

    def never_reached(self) -> list[str]:
        """What would only start after the end of the run, as "key: value" each."""
        starts = [("data.patches.start", phase.start) for phase in self.data.patches]
        constant = self.schedule.kind == "constant"
        milestones = self.schedule.milestones if constant else ()
        stops = [("schedule.milestones", one) for one in milestones]
        named = [("schedule.warmup", self.schedule.warmup), *starts, *stops]
        return [f"{key}: {value}" for key, value in named if value >= self.steps]

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0; for a recipe in steps."""
        schedule = self.schedule
        if schedule.kind == "constant":
            passed = sum(milestone <= step for milestone in schedule.milestones)
            share = schedule.factor**passed
            into = step - (self.steps - schedule.descent)
            if into > 0:
                falling = 1 - math.sqrt(into / schedule.descent)
                share *= schedule.floor + (1 - schedule.floor) * falling
        else:
            done = max(step - schedule.warmup, 0) / max(self.steps - schedule.warmup, 1)
            share = schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * done)) / 2
        if step < schedule.warmup:
            share *= (step + 1) / schedule.warmup
        return self.optimiser.lr * share

    def same_until(self, other: "Recipe", step: int) -> bool:
        """Whether a run by `other` with `step` steps done can go on by this recipe; both in steps.

        They may only differ in the end of the run and the descent to it, and no step done may
        depend on that.
        """
        end = {"steps", "schedule.descent", "schedule.floor"}
        changed = {line.partition(":")[0] for line in self.differences(other)}
        alike = changed <= end and step <= self.steps
        return alike and all(self.rate(done) == other.rate(done) for done in range(step))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML; `build` reverses it."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    def differences(self, other: "Recipe") -> list[str]:
        """Differences to another recipe, "key: ours -> theirs" each; empty for equal recipes."""
        ours, theirs = _flat(self.to_dict()), _flat(other.to_dict())
        keys = sorted(ours.keys() | theirs.keys())
        return [
            f"{key}: {ours.get(key)} -> {theirs.get(key)}"
            for key in keys
            if ours.get(key) != theirs.get(key)
        ]


def must(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise a RecipeError with key, value and what is allowed, unless the condition holds."""
    if not condition:
        raise RecipeError(f"{key} is {value!r}; it must be {allowed}.")


def at_least(key: str, value: float, least: float) -> None:
    """Raise a RecipeError unless the value is at least this."""
    must(value >= least, key, value, f"at least {least:g}")


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{where}{key}.")
        else:
            flat[where + key] = value
    return flat


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """Every float in nested tables and lists, with its dotted key."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _numbers(one, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _numbers(one, key)
    elif isinstance(value, float):
        yield key, value
