"""repmamba: super-resolution of satellite and aerial scenes with Rep-Mamba.

The front door. Each name is fetched on first use, so that `import repmamba` loads neither torch nor rasterio; errors,
which import nothing, are there at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from repmamba import errors

__version__ = "0.1.0"

_HOME = {  # name -> the module it lives in
    "load": "repmamba.inference.upscaler",
    "Upscaler": "repmamba.inference.upscaler",
    "upscale_file": "repmamba.scene.engine",
    "export": "repmamba.exporting.export",
    "evaluate_folders": "repmamba.evaluate.evaluation",
    "fuse": "repmamba.network.fusion",
    "from_pretrained": "repmamba.inference.catalogue",
    "save_pretrained": "repmamba.network.checkpoint",
}

__all__ = [
    "Upscaler",
    "__version__",
    "errors",
    "evaluate_folders",
    "export",
    "from_pretrained",
    "fuse",
    "load",
    "save_pretrained",
    "upscale_file",
]

if TYPE_CHECKING:
    from repmamba.evaluate.evaluation import evaluate_folders
    from repmamba.exporting.export import export
    from repmamba.inference.catalogue import from_pretrained
    from repmamba.inference.upscaler import Upscaler, load
    from repmamba.network.checkpoint import save_pretrained
    from repmamba.network.fusion import fuse
    from repmamba.scene.engine import upscale_file


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'repmamba' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
