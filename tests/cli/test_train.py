"""What the verb train does beside calling fit."""

import logging

import pytest

from repmamba.cli.train import spoken


@pytest.fixture
def logger(monkeypatch):
    """The logger of the room train, at its own level only while the test lasts."""
    logger = logging.getLogger("repmamba.train")
    monkeypatch.setattr(logging.getLogger("repmamba"), "level", logging.WARNING)
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.manager._clear_cache()
    yield logger
    logger.manager._clear_cache()


def says(logger: logging.Logger) -> bool:
    return logger.isEnabledFor(logging.INFO)


def test_a_run_speaks_unless_it_is_to_be_quiet(logger):
    with spoken(quiet=True):
        assert not says(logger)
    with spoken(quiet=False):
        assert says(logger)


def test_of_several_processes_the_first_one_speaks(logger, monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with spoken(quiet=False):
        assert not says(logger)
    monkeypatch.setenv("RANK", "0")
    with spoken(quiet=False):
        assert says(logger)
