"""What all tests share: an environment of their own, where the reference data is, and what may be
skipped.
"""

import logging
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

from repmamba.network.config import NetworkConfig
from repmamba.network.repmamba import RepMamba

CHECKOUT = Path(__file__).resolve().parents[1]

GOOD_REASONS = (  # how the reason of a skip may begin; CONTRIBUTING.md says the same
    "no CUDA device",
    "the reference data is not here",
    "no right to",
    "this system has no",
    "this processor has no",
    "the page is not built",
)

# What the caller's shell says to repmamba, to a launcher's processes or to curl is not said to the
# tests.
for name in list(os.environ):
    ours = name.startswith("REPMAMBA_") and name != "REPMAMBA_REFERENCE"
    if ours or name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE"):
        del os.environ[name]
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

settings.register_profile("no limit of time", deadline=None)  # a busy machine is no failure
settings.load_profile("no limit of time")

gpu_is_available = torch.cuda.is_available
# CUDA reads which GPUs it may see once, now, before the variable is emptied for other tests
gpu_is_available()
VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")


def pytest_configure() -> None:
    """A folder that was named and is not the reference data is a slip, and no reason to skip."""
    if (
        "REPMAMBA_REFERENCE" in os.environ
        and not (reference_folder() / "golden" / "README.md").is_file()
    ):
        raise pytest.UsageError(
            f"REPMAMBA_REFERENCE is {reference_folder()}; there is no golden/README.md in it."
        )


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


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Weights of one block, drawn by their seed, as a user would save them: small.safetensors, one
    file for each.
    """
    from repmamba.network.checkpoint import Checkpoint, write_checkpoint
    from repmamba.network.config import NetworkConfig
    from repmamba.network.repmamba import RepMamba

    @cache
    def weights(scale: int = 2, seed: int = 0) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = RepMamba(NetworkConfig(scale=scale, depths=(1,)))
        return write_checkpoint(
            tmp_path_factory.mktemp("weights") / "small.safetensors", Checkpoint.of(network)
        )

    return weights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A filesystem of so many kB, of its own kind and really full when it is; skips where none can
    be mounted.
    """
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no right to mount a filesystem")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=False)


@pytest.fixture
def limit_file_size() -> Callable[[int], AbstractContextManager[None]]:
    """Within it, no file that this process writes grows beyond so many bytes: the fault of a full
    disk, without one.
    """
    import resource

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def disk_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced ("fsync"), renamed ("replace") and removed ("unlink") from now on, each with
    its (new) name.
    """
    events: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def noted(event: str, path: str | os.PathLike[str]) -> None:
        events.append((event, Path(path).name))

    monkeypatch.setattr(
        os, "fsync", lambda fd: (noted("fsync", os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        os, "replace", lambda source, target: (noted("replace", target), replace(source, target))
    )
    monkeypatch.setattr(
        os, "unlink", lambda path, **options: (noted("unlink", path), unlink(path, **options))
    )
    return events


@pytest.fixture(autouse=True)
def _the_same_numbers_every_time() -> None:
    """What a test draws from torch depends neither on those before it nor on the run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _repmambas_logger_as_it_was() -> Iterator[None]:
    """A verb sets the level of repmamba's logger for its process, which is here that of the next
    test, too.
    """
    logger = logging.getLogger("repmamba")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers


def pytest_runtest_setup(item: pytest.Item) -> None:
    """There is a GPU for tests marked gpu alone; the others, and the processes that they start, are
    about the CPU.
    """
    if item.get_closest_marker("gpu") is None:
        torch.cuda.is_available = lambda: False
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    torch.cuda.is_available = gpu_is_available
    if VISIBLE_GPUS is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = VISIBLE_GPUS
    if not gpu_is_available():
        pytest.skip("no CUDA device")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was skipped for another than a good reason was not tested: the run has failed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter
        and session.exitstatus == pytest.ExitCode.OK
        and not all(map(is_good, reasons(reporter)))
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped, and why: a count for each reason, so that none hides behind a
    green line.
    """
    counts = reasons(terminalreporter)
    terminalreporter.section(f"{counts.total()} skipped")
    for reason, count in counts.most_common():
        terminalreporter.line(
            f"{count:4d}  {reason}{'' if is_good(reason) else '  NO GOOD REASON: see CONTRIBUTING.md'}"
        )


def reasons(reporter: pytest.TerminalReporter) -> Counter[str]:
    """Why tests were skipped, and how many for each reason."""
    return Counter(
        str(report.longrepr[2]).removeprefix("Skipped: ")
        for report in reporter.getreports("skipped")
    )


def is_good(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    return reason.startswith(GOOD_REASONS)


def _shaken(
    config: NetworkConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> RepMamba:
    """A network with random statistics and affines, as after training, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    torch.manual_seed(seed)
    network = RepMamba(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.3, 2.0)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                uniform(module.weight, 0.4, 1.6)
                uniform(module.bias, -0.4, 0.4)
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.weight.mul_(1.5)
                if module.bias is not None:
                    uniform(module.bias, -0.2, 0.2)
        for name, parameter in network.named_parameters():
            if name.endswith((".D", ".A_log")):
                uniform(parameter, 0.2, 1.5)
    return network.to(dtype).eval()


@pytest.fixture(scope="session")
def shaken() -> Callable[..., RepMamba]:
    """Networks whose every value is away from its start, so that a forgotten one shows."""
    return _shaken
