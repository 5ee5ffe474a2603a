"""The processes of a run: a single one, or those started by torchrun or SLURM.

Plain torch.distributed: a run only needs a rank, a mean and a barrier.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from repmamba.cores import available_cores
from repmamba.errors import TrainingStopped, UsageError
from repmamba.inference.device import choose_device

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger(__name__)

# how long processes wait for one that reads images or validates; PyTorch's own limit for GPUs is
# ten minutes
PATIENCE = timedelta(hours=6)
MEETING = timedelta(minutes=10)  # how long a process waits for the others at the start


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all processes of a run.

    rank: from 0, of `world` processes.
    local_rank: on this machine; chooses the GPU.
    address, port: where rank 0 listens; empty for one process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This process's share of `count` items: every world-th index, starting at its rank."""
        return range(self.rank, count, self.world)

    def device(self, asked: str | None) -> torch.device:
        """The requested device, or by default this process's GPU or the CPU. Raises UsageError."""
        chosen = choose_device(asked)
        if chosen.type != "cuda" or chosen.index is not None:
            return chosen
        # With SLURM's --gpus-per-task each task only sees its own GPU, always as number 0.
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
            value = value / self.world
        return value

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, value: bool) -> bool:
        """The value that rank 0 passes, in all processes."""
        if self.world == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]


def find_processes(environment: Mapping[str, str]) -> Processes:
    """The processes, from torchrun's variables, or SLURM's, or only this one. Raises UsageError."""
    try:
        if int(environment.get("WORLD_SIZE", 1)) > 1:
            return Processes(
                rank=int(environment["RANK"]),
                world=int(environment["WORLD_SIZE"]),
                local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
                address=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
            )
        # Variables of a step, as srun starts it: a job's script also has SLURM_NTASKS, but is one
        # process.
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return Processes(
                rank=int(environment["SLURM_PROCID"]),
                world=int(environment["SLURM_STEP_NUM_TASKS"]),
                local_rank=int(environment["SLURM_LOCALID"]),
                address=environment.get("MASTER_ADDR")
                or first_node(environment["SLURM_STEP_NODELIST"]),
                port=int(
                    environment.get("MASTER_PORT")
                    or 20000 + int(environment["SLURM_JOB_ID"]) % 20000
                ),
            )
    except (KeyError, ValueError) as fault:
        raise UsageError(
            f"The environment of a run with several processes is incomplete: {fault}."
        ) from fault
    return Processes()


def first_node(nodes: str) -> str:
    """The first machine of a SLURM list: "gpu[07-09,12],gpu20" -> "gpu07"."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


@contextmanager
def process_group(processes: Processes, device: torch.device) -> Iterator[Processes]:
    """Connect all processes, with NCCL for GPUs and gloo for CPUs; does nothing for one process.

    Raises TrainingStopped if the others are not found, or one of them ends meanwhile.
    """
    if processes.world == 1:
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = rendezvous_store(processes)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=processes.rank,
            world_size=processes.world,
            timeout=PATIENCE,
        )
        yield processes
    except RuntimeError as fault:
        # gloo has no error class of its own
        if isinstance(fault, dist.DistError) or "gloo" in str(fault):
            raise TrainingStopped(
                "Another process of this run has ended; see its output for the reason. Started "
                "again, the run goes on from its last save."
            ) from fault
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def rendezvous_store(processes: Processes) -> Store:
    """The store through which processes find each other. Raises TrainingStopped after MEETING."""
    from torch.distributed.rendezvous import rendezvous  # missing in a torch without distributed

    place = f"{processes.address}:{processes.port}"
    store: Store
    try:
        meeting = rendezvous(f"tcp://{place}", processes.rank, processes.world, timeout=MEETING)
        store, _, _ = next(meeting)
        # Only the process that hosts the store has waited for all, and under torchrun none of them
        # does.
        if store.add("here", 1) == processes.world:
            store.set("all", "here")
        store.wait(["all"], MEETING)
    except dist.DistError as fault:
        why = str(fault).splitlines()[0].rstrip(".")
        raise TrainingStopped(
            f"Process {processes.rank} of 0 to {processes.world - 1} did not meet the others at "
            f"{place} ({why}). Start all of them, and let MASTER_ADDR and MASTER_PORT name a free "
            "port on the machine of process 0."
        ) from fault
    store.set_timeout(PATIENCE)
    return store


def set_threads_and_niceness(threads: int | None, nice: int) -> None:
    """Set torch threads (by default at most the CPUs this process may use) and niceness."""
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGTERM or the first Ctrl-C has arrived meanwhile."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        logger.warning(
            "Stopping: the run is saved after this step. Press Ctrl-C again to stop at once."
        )
        asked.set()
        # Only Ctrl-C stops at once: a queue and torchrun may both send SIGTERM, and the second must
        # not interrupt the save.
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
