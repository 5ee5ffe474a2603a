"""The processes of one run: alone, or as torchrun or SLURM start them; what they tell each other
and what ends them.

Plain torch.distributed: what a run needs of it is a rank, a mean and a wait.
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

PATIENCE = timedelta(hours=6)
"""How long processes wait for one that reads images or validates. PyTorch ends a run of GPUs after
ten minutes.
"""

MEETING = timedelta(minutes=10)
"""How long a process looks for the others when a run starts: they may come late, or never, or look
elsewhere.
"""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all of a run.

    rank: from 0, of `world` processes.  local_rank: among those of this machine; chooses the GPU.
    address, port: where rank 0 listens; empty for one process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things are this process's: every world-th, from its rank on."""
        return range(self.rank, count, self.world)

    def device(self, asked: str | None) -> torch.device:
        """The device asked for, or this process's own GPU, or the CPU. Raises UsageError where it
        is not there.
        """
        chosen = choose_device(asked)
        if chosen.type != "cuda" or chosen.index is not None:
            return chosen
        # SLURM's --gpus-per-task shows each task its own GPU alone; that one is then number 0 in
        # each of them.
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a scalar over all processes, on each of them."""
        if self.world > 1:
            dist.all_reduce(value)
            value = value / self.world
        return value

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def agree(self, value: bool) -> bool:
        """What rank 0 says, on each of them."""
        if self.world == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]


def find_processes(environment: Mapping[str, str]) -> Processes:
    """What torchrun's variables say, else SLURM's, else one process alone. Raises UsageError."""
    try:
        if int(environment.get("WORLD_SIZE", 1)) > 1:
            return Processes(
                rank=int(environment["RANK"]),
                world=int(environment["WORLD_SIZE"]),
                local_rank=int(environment.get("LOCAL_RANK", environment["RANK"])),
                address=environment["MASTER_ADDR"],
                port=int(environment["MASTER_PORT"]),
            )
        # Of a step, as srun starts it: the script of a job has its SLURM_NTASKS too, and is one
        # process all the same.
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
            f"The environment of a run of several processes is incomplete: {fault}."
        ) from fault
    return Processes()


def first_node(nodes: str) -> str:
    """The first machine of a SLURM list: "gpu[07-09,12],gpu20" -> "gpu07"."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[Processes]:
    """All processes of the run connected, by NCCL between GPUs and gloo between CPUs; alone,
    nothing is done.

    Raises TrainingStopped where the others are not found, or one of them has ended meanwhile.
    """
    if processes.world == 1:
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = met(processes)
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
        # which has no class of its own
        if isinstance(fault, dist.DistError) or "gloo" in str(fault):
            raise TrainingStopped(
                "Another process of this run has ended, and its own lines say why. Started again, "
                "the run goes on from "
                "its last save."
            ) from fault
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def met(processes: Processes) -> Store:
    """The store through which the processes find each other. Raises TrainingStopped if they do not
    within MEETING.
    """
    from torch.distributed.rendezvous import rendezvous  # not there in a torch without distributed

    place = f"{processes.address}:{processes.port}"
    store: Store
    try:
        store, _, _ = next(
            rendezvous(f"tcp://{place}", processes.rank, processes.world, timeout=MEETING)
        )
        # Only the one that keeps the store has waited for all, and under torchrun that is none of
        # them.
        if store.add("here", 1) == processes.world:
            store.set("all", "here")
        store.wait(["all"], MEETING)
    except dist.DistError as fault:
        why = str(fault).splitlines()[0].rstrip(".")
        raise TrainingStopped(
            f"Process {processes.rank} of 0 to {processes.world - 1} does not meet the others at "
            f"{place} ({why}). All "
            "have to be started, and MASTER_ADDR and MASTER_PORT have to name a free port on the "
            "machine of process 0."
        ) from fault
    store.set_timeout(PATIENCE)
    return store


def set_threads_and_niceness(threads: int | None, nice: int) -> None:
    """Set this process's torch threads (by default within a container's CPU quota) and niceness."""
    if nice and hasattr(os, "nice"):
        os.nice(nice)
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Whether a request to end (SIGTERM, as a cluster's queue sends it, or the first Ctrl-C) has
    come meanwhile.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        logger.warning(
            "Asked to stop: the run is saved after this step. Ctrl-C, from now on, stops it at "
            "once."
        )
        asked.set()
        # SIGTERM only ever asks: where torchrun and a queue both send it, the second must not end
        # what the first saves.
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
