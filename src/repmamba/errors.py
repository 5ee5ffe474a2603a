"""Every error and warning of repmamba, in one tree.

RepmambaError
├── UsageError          an option, an argument or a combination of them
│   ├── MissingExtra    a feature whose optional package is not installed
│   ├── ShapeMismatch   arrays whose shapes do not fit each other or the network
│   └── RecipeError     a key or value of a training recipe
├── CheckpointError     weights that cannot be used
├── SourceError         an input that cannot be read
│   └── CorruptSource   an input with corrupt content or a wrong header
├── TargetError         an output that cannot be written
│   ├── TargetExists    an output that already exists
│   └── NoSpace         a disk that is too small for the output
├── JobChanged          a stopped run with other input, weights or options than now
├── VerificationError   a result that does not match its receipt
├── MethodFailed        a method of the caller that failed during an evaluation
├── ExportError         an exported network with other results than the original
├── TrainingStopped     a training run that cannot go on
├── ClusterError        a cluster that cannot be reached, was lost, or would give other pixels
└── OutOfMemory         a plan that does not fit into the memory of this machine

Each class also derives from the built-in that it resembles, so that code without repmamba can catch
it. A message is one line: what was found, what was expected, what to do. This module imports
nothing of repmamba, so every room may import it.
"""

import sys
import warnings


class RepmambaError(Exception):
    """The base of all errors; the text is one line for the user."""


class UsageError(RepmambaError, ValueError):
    """An option, an argument or a combination of them that is not allowed."""


class MissingExtra(UsageError, ImportError):
    """A feature whose optional package is not installed; the text says how to install it."""


class ShapeMismatch(UsageError):
    """Arrays whose shapes do not fit each other, or the network."""


class RecipeError(UsageError):
    """A key or value of a training recipe that is not allowed."""


class CheckpointError(RepmambaError, ValueError):
    """Weights that cannot be used: not found, corrupt, of another network or another scale."""


class SourceError(RepmambaError, OSError):
    """An input that cannot be read."""


class CorruptSource(SourceError):
    """An input with corrupt content, or content that contradicts its header."""


class TargetError(RepmambaError, OSError):
    """An output that cannot be written."""


class TargetExists(TargetError, FileExistsError):
    """An output that already exists and may not be replaced."""


class NoSpace(TargetError):
    """A disk that is too small for the output."""


class JobChanged(RepmambaError, RuntimeError):
    """A stopped run with other input, weights or options than now."""


class VerificationError(RepmambaError, ValueError):
    """A result that does not match its receipt."""


class MethodFailed(RepmambaError, RuntimeError):
    """A method of the caller that failed during an evaluation; the text names it and the image."""


class ExportError(RepmambaError, ArithmeticError):
    """An exported network whose results are too far from the network's own."""


class TrainingStopped(RepmambaError, RuntimeError):
    """A training run that cannot go on: the loss diverges or a process is missing."""


class ClusterError(RepmambaError, ConnectionError):
    """A cluster that cannot be reached, was lost, or whose workers would give other pixels."""


class OutOfMemory(RepmambaError, MemoryError):
    """A plan that does not fit into the memory of this machine."""


class RepmambaWarning(UserWarning):
    """The base of all warnings: the result is right, but the user may want to know."""


class BackendFallback(RepmambaWarning):
    """A scan backend could not start; the next one was used."""


class UndeclaredNodata(RepmambaWarning):
    """One value fills part of a scene, far from all others: probably undeclared nodata."""


class OutsideTraining(RepmambaWarning):
    """Imagery of a kind that the weights were not trained on, such as radar."""


# packages whose frames lie between the user's code and a warning
_BETWEEN = {"repmamba", "contextlib", "click"}


def warn(text: str, category: type[RepmambaWarning] = RepmambaWarning) -> None:
    """Warn at the line of the user's code that called repmamba."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
