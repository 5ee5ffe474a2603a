"""Who looks on while a network computes, and parts of somebody else in it.

Then its layers run one by one, as torch's own operations: the compiled passes call no layer, they read its weights.
"""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from repmamba.network.repconv import EPS

LAYERS = frozenset(
    {
        *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.LeakyReLU, nn.PixelShuffle, nn.Identity),
        *(nn.Sequential, nn.ModuleList),
    }
)
"""Of torch, in our networks."""


def watched() -> bool:
    """Whether torch records or transforms operations: compiles, exports or traces a program, counts, or maps them."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def plain(module: nn.Module) -> bool:
    """Whether a module is what the passes take it for: known, and with no hooks."""
    return known(module) and not hooked(module)


def known(module: nn.Module) -> bool:
    """Whether a module is ours or torch's own, with no forward set on it: whether its weights say what it computes.

    Adapters, parametrisations and quantisation put parts of somebody else in its place, of types derived from it.
    """
    kind = type(module)
    return (
        (kind in LAYERS or kind.__module__.startswith("repmamba."))
        and "forward" not in vars(module)
        and (not isinstance(module, nn.LayerNorm) or (module.eps == EPS and isinstance(module.bias, nn.Parameter)))
    )


def hooked(module: nn.Module) -> bool:
    """Whether anybody has asked to be called with the module's inputs, results or gradients."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
