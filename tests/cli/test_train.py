"""What the verb train does beside calling fit."""

import os

from repmamba.cli.train import give_way


def test_a_run_that_gives_way_lets_waiting_threads_sleep_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    give_way(0)
    assert "OMP_WAIT_POLICY" not in os.environ
    give_way(10)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    give_way(10)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
