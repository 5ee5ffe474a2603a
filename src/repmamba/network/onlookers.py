"""Who looks on while a network computes: then its layers run one by one, as torch's own operations, not in passes."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook


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


def hooked(module: nn.Module) -> bool:
    """Whether anybody has asked to be called with the module's inputs, results or gradients."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
