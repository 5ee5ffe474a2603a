"""Processes of a run, from the variables of torchrun and SLURM."""

import logging
import signal
import socket
import threading
from datetime import timedelta

import pytest
import torch

from repmamba.errors import TrainingStopped, UsageError
from repmamba.train import distributed
from repmamba.train.distributed import (
    Processes,
    find_processes,
    first_node,
    process_group,
    stop_signals,
)

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_JOB_ID": "4123456",
}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_one_process_without_variables():
    assert find_processes({}) == Processes()
    assert find_processes({"WORLD_SIZE": "1", "RANK": "0"}) == Processes()
    assert find_processes({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) == Processes()


def test_the_script_of_a_slurm_job_is_one_process_and_the_tasks_of_a_step_are_many():
    """sbatch gives its script SLURM_PROCID and the job's SLURM_NTASKS; only srun starts so many
    processes.
    """
    script = {name: value for name, value in SLURM.items() if "STEP" not in name} | {
        "SLURM_PROCID": "0"
    }
    assert find_processes(script) == Processes()
    assert find_processes(SLURM).world == 8


def test_torchrun_and_slurm_say_the_same():
    assert find_processes(TORCHRUN) == Processes(5, 8, 1, "node1", 29500)
    assert find_processes(SLURM) == Processes(5, 8, 1, "gpu07", 20000 + 4123456 % 20000)
    assert find_processes(SLURM | TORCHRUN).address == "node1"


@pytest.mark.parametrize(
    ("gpus", "index"), [(8, 1), (1, 0)], ids=["all GPUs are seen", "its own GPU alone is seen"]
)
def test_a_process_takes_its_own_gpu(monkeypatch, gpus, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert find_processes(SLURM).device(None) == torch.device("cuda", index)
    assert find_processes(SLURM).device("cpu") == torch.device("cpu")


def test_an_invalid_device_is_one_line():
    with pytest.raises(UsageError, match="no device 'teapot'"):
        Processes().device("teapot")


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_environment_is_an_error(missing):
    with pytest.raises(UsageError, match=missing):
        find_processes({name: value for name, value in TORCHRUN.items() if name != missing})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-09,12],cpu3", "gpu07"),
        ("rack[1,2]-node[04-05]", "rack1-node04"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"),
            TrainingStopped,
        ),
        (torch.distributed.DistBackendError("NCCL error"), TrainingStopped),
        (RuntimeError("shapes do not fit"), RuntimeError),
    ],
    ids=["gloo", "NCCL", "of our own"],
)
def test_the_end_of_another_process_is_one_line_and_other_errors_pass(monkeypatch, fault, seen):
    left = []
    monkeypatch.setattr(distributed, "rendezvous_store", lambda processes: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append("group"))
    with (
        pytest.raises(seen) as raised,
        process_group(find_processes(TORCHRUN), torch.device("cpu")),
    ):
        raise fault
    assert ("Another process of this run has ended" in str(raised.value)) == (
        seen is TrainingStopped
    )
    assert left == ["group"]


@pytest.mark.parametrize("rank", [0, 1], ids=["the others never come", "nobody listens"])
def test_processes_that_do_not_meet_report_the_address(monkeypatch, rank):
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=1))
    lonely = Processes(rank, 2, rank, "127.0.0.1", free_port())
    with pytest.raises(
        TrainingStopped, match=rf"^Process {rank} of 0 to 1 did not meet .* \(.+\)\."
    ):
        process_group(lonely, torch.device("cpu")).__enter__()
    assert not torch.distributed.is_initialized()


def test_if_one_of_three_processes_is_missing_the_other_two_report_it(monkeypatch):
    """The second is let into the store at once, and would wait for the third as long as for one
    that validates.
    """
    monkeypatch.setattr(distributed, "MEETING", timedelta(seconds=2))
    port, said = free_port(), []

    def look_for_the_others(rank: int) -> None:
        with pytest.raises(TrainingStopped) as stopped:
            process_group(
                Processes(rank, 3, rank, "127.0.0.1", port), torch.device("cpu")
            ).__enter__()
        said.append(str(stopped.value))

    threads = [threading.Thread(target=look_for_the_others, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(line[:36] for line in said) == [
        "Process 0 of 0 to 2 did not meet the",
        "Process 1 of 0 to 2 did not meet the",
    ]


def test_a_port_in_use_is_reported_at_once():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        first = Processes(0, 2, 0, "127.0.0.1", taken.getsockname()[1])
        with pytest.raises(TrainingStopped, match="name a free port"):
            process_group(first, torch.device("cpu")).__enter__()


def test_shares_are_disjoint_and_complete():
    for world in range(1, 6):
        shares = [Processes(rank, world).share(7) for rank in range(world)]
        assert sorted(index for share in shares for index in share) == list(range(7))


def test_a_second_ctrl_c_stops_at_once_but_a_second_sigterm_does_not(caplog):
    with caplog.at_level(logging.WARNING, "repmamba"), stop_signals() as stopped:
        assert not stopped()
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
            assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "Press Ctrl-C again to stop at once" in caplog.text


@pytest.mark.parametrize(("asked", "cores", "expected"), [(None, 2, 2), (None, 64, 3), (5, 2, 5)])
def test_torch_threads_stay_within_the_cpu_quota_unless_set(monkeypatch, asked, cores, expected):
    torch.set_num_threads(3)
    monkeypatch.setattr(distributed, "available_cores", lambda: cores)
    distributed.set_threads_and_niceness(asked, 0)
    assert torch.get_num_threads() == expected
