"""repmamba: super-resolution of satellite and aerial imagery with Rep-Mamba.

Each public name is imported on first use, so that `import repmamba` loads neither torch nor
rasterio; only errors, which import nothing, are loaded at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repmamba import errors

__version__ = "0.1.0"

# name -> the module it lives in
_HOME = {
    "load": "repmamba.inference.loading",
    "Upscaler": "repmamba.inference.upscaler",
    "upscale_file": "repmamba.scene.engine",
    "set_tiles_in_flight": "repmamba.inference.workers",
    "export": "repmamba.exporting.export",
    "evaluate_folders": "repmamba.evaluate.evaluation",
    "train": "repmamba.train.train",
    "finetune": "repmamba.finetuning.finetune",
    "Callback": "repmamba.train.callbacks",
    "register_loss": "repmamba.train.losses",
    "register_degradation": "repmamba.data.degradations",
    "register_metric": "repmamba.evaluate.metrics",
    "fuse": "repmamba.network.fusion",
    "from_pretrained": "repmamba.inference.catalogue",
    "save_pretrained": "repmamba.network.checkpoint",
}

__all__ = [
    "Callback",
    "Upscaler",
    "__version__",
    "errors",
    "evaluate_folders",
    "export",
    "finetune",
    "from_pretrained",
    "fuse",
    "load",
    "register_degradation",
    "register_loss",
    "register_metric",
    "save_pretrained",
    "set_tiles_in_flight",
    "train",
    "upscale_file",
]

if TYPE_CHECKING:
    from repmamba import train
    from repmamba.data.degradations import register_degradation
    from repmamba.evaluate.evaluation import evaluate_folders
    from repmamba.evaluate.metrics import register_metric
    from repmamba.exporting.export import export
    from repmamba.finetuning.finetune import finetune
    from repmamba.inference.catalogue import from_pretrained
    from repmamba.inference.loading import load
    from repmamba.inference.upscaler import Upscaler
    from repmamba.inference.workers import set_tiles_in_flight
    from repmamba.network.checkpoint import save_pretrained
    from repmamba.network.fusion import fuse
    from repmamba.scene.engine import upscale_file
    from repmamba.train.callbacks import Callback
    from repmamba.train.losses import register_loss


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'repmamba' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
