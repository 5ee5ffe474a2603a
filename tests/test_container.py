"""Limits of control groups, from files as a container and a host have them."""

import os

import pytest

from repmamba import container
from repmamba.cores import available_cores


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes files below a fake /sys/fs/cgroup, and the lines of /proc/self/cgroup."""
    monkeypatch.setattr(container, "MOUNTED", tmp_path / "cgroup")
    monkeypatch.setattr(container, "OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process=0: set(range(64)), raising=False)

    def write(own: str = "", **files: str) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = (
                tmp_path
                / "cgroup"
                / name.replace("__", "/").replace("cpu_", "cpu.").replace("memory_", "memory.")
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")

    return write


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("cores", "own", "files"),
    [
        (64, "0::/", {"cpu_max": "max 100000"}),
        (2, "0::/", {"cpu_max": "200000 100000"}),  # docker --cpus=2
        (2, "0::/", {"cpu_max": "150000 100000"}),
        (1, "0::/", {"cpu_max": "10000 100000"}),
        (64, "0::/", {"cpu_max": "9900000 100000"}),
        # a group on a host: its own limit, and that of its parent
        (3, "0::/user.slice/job", {"user.slice__job__cpu_max": "300000 100000"}),
        (
            2,
            "0::/user.slice/job",
            {"user.slice__job__cpu_max": "max 100000", "user.slice__cpu_max": "100000 50000"},
        ),
        # version 1: -1 is no limit; inside a container its group is the root, whatever /proc says
        (
            64,
            V1,
            {"cpu,cpuacct__cpu_cfs_quota_us": "-1", "cpu,cpuacct__cpu_cfs_period_us": "100000"},
        ),
        (
            5,
            V1,
            {"cpu,cpuacct__cpu_cfs_quota_us": "450000", "cpu,cpuacct__cpu_cfs_period_us": "100000"},
        ),
        (4, V1, {"cpu__cpu_cfs_quota_us": "400000", "cpu__cpu_cfs_period_us": "100000"}),
        (
            6,
            V1,
            {
                "cpu,cpuacct__docker__abc__cpu_cfs_quota_us": "600000",
                "cpu,cpuacct__docker__abc__cpu_cfs_period_us": "100000",
            },
        ),
        (64, "", {}),
        (64, "0::/", {"cpu_max": "nonsense"}),
    ],
)
def test_a_quota_of_cpu_time_counts_as_cores(made, cores, own, files):
    made(own, **files)
    assert available_cores() == cores


@pytest.mark.parametrize(
    ("left", "own", "files"),
    [
        (None, "0::/", {"memory_max": "max", "memory_current": "5000"}),
        (3000, "0::/", {"memory_max": "8000", "memory_current": "5000"}),
        (0, "0::/", {"memory_max": "4000", "memory_current": "5000"}),
        # files that the kernel can drop count as free
        (
            5500,
            "0::/",
            {
                "memory_max": "8000",
                "memory_current": "5000",
                "memory_stat": "anon 900\nfile 3000\ninactive_file 2500",
            },
        ),
        (
            2000,
            "0::/pod/one",
            {
                "pod__one__memory_max": "9000",
                "pod__one__memory_current": "1000",
                "pod__memory_max": "8000",
                "pod__memory_current": "6000",
            },
        ),
        (
            3700,
            V1,
            {
                "memory__memory_limit_in_bytes": "8000",
                "memory__memory_usage_in_bytes": "5000",
                "memory__memory_stat": "inactive_file 1\ntotal_inactive_file 700",
            },
        ),
        (
            6000,
            V1,
            {
                "memory__docker__abc__memory_limit_in_bytes": "7000",
                "memory__docker__abc__memory_usage_in_bytes": "1000",
            },
        ),
    ],
)
def test_memory_left_is_the_limit_minus_the_usage(made, left, own, files):
    made(own, **files)
    assert container.memory_left() == left
