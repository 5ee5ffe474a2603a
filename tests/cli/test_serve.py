"""serve: the weights that clients may choose."""

import pytest

from repmamba.cli.serve import _offered
from repmamba.errors import UsageError


def test_weights_are_offered_by_the_name_of_their_file(tmp_path):
    (tmp_path / "mine.safetensors").touch()
    found = _offered((str(tmp_path / "mine.safetensors"), "x4"))
    assert found == {"mine": str(tmp_path / "mine.safetensors"), "x4": "x4"}
    assert {"x2", "x3", "x4"} <= set(_offered(()))


def test_weights_of_one_name_or_without_a_file_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x4.safetensors").touch()
    first, second = (str(tmp_path / folder / "x4.safetensors") for folder in ("a", "b"))
    for given in ((first, second), (first, "x4")):
        with pytest.raises(UsageError, match="Two of the weights are called x4"):
            _offered(given)
    with pytest.raises(UsageError, match="There are no weights"):
        _offered((str(tmp_path / "none"),))
