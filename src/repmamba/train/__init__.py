"""The room of training. Called, as `repmamba.train(...)`, it is the function `call.train`: the two
share a name.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See `repmamba.train.call.train`."""
        from repmamba.train.call import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
