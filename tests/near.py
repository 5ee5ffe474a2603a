"""How near the numbers of a scan have to be to those they are held against."""

from torch import Tensor

# of the largest value of the tensor: the bounds of the golden numbers
VALUE, GRADIENT, DOUBLE = 1e-5, 1e-4, 1e-9


def assert_near(found: Tensor, expected: Tensor, bound: float, name: str = "") -> None:
    """Of one shape, and nowhere further apart than this part of the largest value that is
    expected.
    """
    assert found.shape == expected.shape, name
    assert (found.double() - expected).abs().max() <= bound * expected.abs().max() + 1e-300, name
