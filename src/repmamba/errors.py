"""Every error and warning of repmamba, in one tree.

RepmambaError
├── UsageError          an option, an argument or a combination of them
│   ├── MissingExtra    a feature whose optional package is not installed
│   ├── ShapeMismatch   arrays whose shapes do not fit each other or the network
│   └── RecipeError     a key or value of a training recipe
├── CheckpointError     weights that cannot be used, and why
├── SourceError         an input that cannot be read, or must not be
│   └── CorruptSource   an input whose bytes contradict themselves or its header
├── TargetError         an output that cannot be written
│   ├── TargetExists    an output that is there already
│   └── NoSpace         a disk too small for what is to be written
├── JobChanged          a stopped run whose input, weights or options are not those of now
├── VerificationError   a result that is not what its receipt says
├── MethodFailed        a method of the caller's own that failed while images were scored
├── ExportError         an exported network that does not give the network's own results
├── TrainingStopped     a training run that must not go on
├── ClusterError        a cluster that cannot be reached, was lost, or would give other pixels
└── OutOfMemory         a plan that the memory of this machine does not hold

Each class is also the built-in it resembles, so code that knows nothing of repmamba can catch it. A
message is one line: what was found, what was expected, what to do. This module imports nothing, so
every room may import it.
"""


class RepmambaError(Exception):
    """Whatever repmamba raises on purpose; its text is one line meant for the user."""


class UsageError(RepmambaError, ValueError):
    """An option, an argument or a combination of them that cannot be served."""


class MissingExtra(UsageError, ImportError):
    """A feature whose optional package is not installed; the text says how to install it."""


class ShapeMismatch(UsageError):
    """Arrays whose shapes do not fit each other, or the network."""


class RecipeError(UsageError):
    """A key or a value of a training recipe that is not allowed."""


class CheckpointError(RepmambaError, ValueError):
    """Weights that cannot be used: not found, corrupt, of another network or another scale."""


class SourceError(RepmambaError, OSError):
    """An input that cannot be read, or must not be."""


class CorruptSource(SourceError):
    """An input whose bytes contradict themselves or its own header."""


class TargetError(RepmambaError, OSError):
    """An output that cannot be written."""


class TargetExists(TargetError, FileExistsError):
    """An output that is there already and is not to be replaced."""


class NoSpace(TargetError):
    """A disk too small for what is to be written."""


class JobChanged(RepmambaError, RuntimeError):
    """A stopped run whose input, weights or options are not those of now."""


class VerificationError(RepmambaError, ValueError):
    """A result that is not what its receipt says."""


class MethodFailed(RepmambaError, RuntimeError):
    """A method of the caller's own that failed while images were scored; the text names it and the
    image.
    """


class ExportError(RepmambaError, ArithmeticError):
    """An exported network whose results are too far from the network's own."""


class TrainingStopped(RepmambaError, RuntimeError):
    """A training run that must not go on: its loss is not finite or diverges, or one of its
    processes is missing.
    """


class ClusterError(RepmambaError, ConnectionError):
    """A cluster that cannot be reached, was lost, or whose workers would give other pixels."""


class OutOfMemory(RepmambaError, MemoryError):
    """A plan that the memory of this machine does not hold."""


class RepmambaWarning(UserWarning):
    """Whatever repmamba warns of: the result is right, but the user may want to know."""


class BackendFallback(RepmambaWarning):
    """A scan backend could not start, and the next one in order was taken."""


class UndeclaredNodata(RepmambaWarning):
    """One number fills a scene and lies far from all others, as nodata does that nobody
    declared.
    """


class OutsideTraining(RepmambaWarning):
    """Imagery of a kind that the weights have never seen (radar, say)."""
