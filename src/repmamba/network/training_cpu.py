"""Training on a CPU in few passes over memory: an LPFM and its gradient as one function.

`with_fast_passes` replaces the blocks of a network (kernels/training.cpp); the learner does so.
Weights, names and results stay the same. A block uses torch's operations off the CPU, in evaluation
mode, with the statistics of some BatchNorms frozen but not of all, and in other types than float32
and bfloat16 under autocast. Hooks of a block's parts are not called.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repmamba.kernels.library import Kernel, fields, library
from repmamba.network.config import NetworkConfig
from repmamba.network.lpfm import LPFM
from repmamba.network.repconv import to_map, to_tokens
from repmamba.network.repmamba import RepMamba
from repmamba.scan.directions import visits
from repmamba.scan.threads import split_work

Gradients = tuple[Tensor | None, ...]

# elements of a block's input below which another thread costs more than it saves
WORK_FOR_THREADS = 1 << 16

HIDDEN_MULTIPLE = 16  # the ConvFFN's hidden width is a multiple of this: whole registers
MOMENTUM = 0.1  # of the running statistics, torch's default; other blocks use torch's operations

RMBS = 4
RMB_FORWARD = ("enter", "enter_fold", "middle", "middle_fold", "leave", "leave_fold")
RMB_BACKWARD = (
    "leave_back",
    "leave_back_fold",
    "middle_back",
    "middle_back_fold",
    "enter_back",
    "enter_back_fold",
)
# as in training.cpp
STAGES = ("sizes", "prepare", *RMB_FORWARD, "feed", "feed_back", "feed_back_fold", *RMB_BACKWARD)


class FastLPFM(LPFM):
    """An LPFM that trains by the compiled passes where they apply."""

    def forward(self, t: Tensor) -> Tensor:
        """t and result: (B, 64, H, W)."""
        if not _serves(self, t):
            return super().forward(t)
        result: Tensor = _Passes.apply(t.float(), self, *self.parameters())  # type: ignore[no-untyped-call]
        return result


def with_fast_passes(network: RepMamba) -> RepMamba:
    """The same network, with FastLPFM as the class of its unmodified blocks.

    Without kernels for this platform the blocks stay as they are.
    """
    try:
        library()
    except OSError:
        return network
    for block in network.modules():
        if _as_built(block):
            block.__class__ = FastLPFM
    return network


def _as_built(module: nn.Module) -> bool:
    """Whether a module is an LPFM of exactly our parts, as the kernels assume."""
    if type(module) is not LPFM or module.ffn.fc1.out_features % HIDDEN_MULTIPLE:
        return False
    with torch.device("meta"):
        built = LPFM(
            NetworkConfig(mlp_ratio=module.ffn.fc1.out_features / module.ffn.fc1.in_features)
        )
    return _description(module) == _description(built)


def _description(module: nn.Module) -> list[Any]:
    parts = [(name, type(part), part.extra_repr()) for name, part in module.named_modules()]
    return [
        *parts,
        *((name, tensor.shape, tensor.dtype) for name, tensor in module.state_dict().items()),
    ]


def _serves(block: LPFM, t: Tensor) -> bool:
    half = torch.is_autocast_enabled("cpu")
    return (
        t.device.type == "cpu"
        and (t.dtype == torch.float32 or (half and t.dtype == torch.bfloat16))
        and (not half or torch.get_autocast_dtype("cpu") == torch.bfloat16)
        and block.norm.weight.dtype == torch.float32
        and all(part.training for part in block.modules() if not _normalises(part))
        and len({part.training for part in block.modules() if _normalises(part)}) == 1
    )


def _frozen(block: LPFM) -> bool:
    """Whether the running statistics normalise, as in torch where a BatchNorm is in eval mode."""
    return not any(part.training for part in block.modules() if _normalises(part))


def _normalises(part: nn.Module) -> bool:
    return isinstance(part, nn.BatchNorm2d)


class _Arguments(ctypes.Structure):
    """struct Training of training.h."""

    _fields_ = fields(
        "batch height width hidden stage rmb frozen %momentum *parameters *buffers *gradients "
        "*visits *t *gradient *result *dt *kept *passing *sizes"
    )


class _Work:
    """One step of a block on a batch: the kernels' arguments, and the memory they point to."""

    def __init__(self, block: LPFM, t: Tensor, parameters: tuple[Tensor, ...]) -> None:
        batch, height, width, _ = t.shape
        self.batch, self.threads = batch, t.numel() >= WORK_FOR_THREADS
        self.kernel = _kernel(torch.is_autocast_enabled("cpu"))
        self.parameters = _addresses(parameters)
        self.buffers = _addresses(block.buffers())
        self.sizes = (ctypes.c_int64 * 3)()
        self.arguments = _Arguments(
            batch=batch,
            height=height,
            width=width,
            hidden=block.ffn.fc1.out_features,
            frozen=_frozen(block),
            momentum=MOMENTUM,
            parameters=ctypes.addressof(self.parameters),
            buffers=ctypes.addressof(self.buffers),
            gradients=ctypes.addressof(self.parameters),
            sizes=ctypes.addressof(self.sizes),
            visits=visits(height // 2, width // 2).ctypes.data,
            t=t.data_ptr(),
        )
        self.run("sizes")
        self.kept = _memory("kept", self.sizes[0])
        self.arguments.kept = self.kept.data_ptr()

    def run(self, stage: str, rmb: int = 0) -> None:
        """Run all units of a stage in torch's number of threads; the split changes no result."""
        self.arguments.stage, self.arguments.rmb = _NUMBERS[stage], rmb
        units = 1 if stage.endswith(("sizes", "prepare", "fold")) else self.batch
        threads = min(torch.get_num_threads(), units) if self.threads else 1

        def share(first: int, last: int) -> None:
            scratch = torch.empty(self.sizes[2], dtype=torch.float32, device="cpu")
            self.kernel(first, last, ctypes.byref(self.arguments), scratch.data_ptr())

        split_work(share, units, threads)


class _Passes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, block: LPFM, *parameters: Tensor) -> Tensor:
        tokens = to_tokens(t).contiguous()
        work, result = _Work(block, tokens, parameters), torch.empty_like(tokens)
        work.arguments.result = result.data_ptr()
        work.run("prepare")
        for rmb in range(RMBS):
            for stage in RMB_FORWARD:
                work.run(stage, rmb)
        work.run("feed", RMBS - 1)
        ctx.save_for_backward(tokens, *parameters)
        ctx.work = work
        return to_map(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        tokens, *parameters = ctx.saved_tensors
        if ctx.work is None:
            raise RuntimeError(
                "The gradients of a block can only be computed once: its memory has been reused."
            )
        work, ctx.work = ctx.work, None
        direct, dt = to_tokens(gradient).float().contiguous(), torch.empty_like(tokens)
        passing = _memory("passing", work.sizes[1])
        sizes = [parameter.numel() for parameter in parameters]
        found = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        gradients = [
            part.view(parameter.shape)
            for part, parameter in zip(torch.split(found, sizes), parameters, strict=True)
        ]
        addresses = _addresses(gradients)
        work.arguments.gradients, work.arguments.gradient = (
            ctypes.addressof(addresses),
            direct.data_ptr(),
        )
        work.arguments.dt, work.arguments.passing = dt.data_ptr(), passing.data_ptr()
        work.run("feed_back", RMBS - 1)
        work.run("feed_back_fold", RMBS - 1)
        for rmb in reversed(range(RMBS)):
            for stage in RMB_BACKWARD:
                work.run(stage, rmb)
        _FREE["kept"].append(work.kept)
        _FREE["passing"].append(passing)
        return to_map(dt), None, *gradients


_NUMBERS = {name: number for number, name in enumerate(STAGES)}

# memory of finished steps: new memory of the system costs a page fault for every 4 kB
_FREE: dict[str, list[Tensor]] = {"kept": [], "passing": []}


def _memory(kind: str, size: int) -> Tensor:
    """Memory of `size` bytes, reused from an earlier step; that of other sizes is released."""
    free = _FREE[kind]
    while free:
        found = free.pop()
        if len(found) == size:
            return found
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def _addresses(tensors: Any) -> Any:
    """An array of pointers to the tensors' data."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    return (ctypes.c_void_p * len(addresses))(*addresses)


@cache
def _kernel(half: bool) -> Kernel:
    kernels = library()
    return kernels.kernel(
        "training_bfloat16" if half else "training_float32", pairs=half and kernels.pairs
    )
