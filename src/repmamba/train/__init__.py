"""The training room. `repmamba.train(...)` calls `train.train`, which has the same name."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `repmamba.train.train.train`."""
        from repmamba.train.train import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
