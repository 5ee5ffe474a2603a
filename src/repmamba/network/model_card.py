"""The model card beside saved weights: what they are, how to use them, how they were trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repmamba import __version__
from repmamba.network.config import NetworkConfig

NAME = "README.md"
WRITTEN = "<!-- written by repmamba; remove this line, and the card stays as you change it -->"
PAPER = (
    "Rep-Mamba: Re-parameterization in Vision Mamba for Lightweight Remote Sensing Image "
    "Super-Resolution, IEEE TGRS 63, 2025, doi 10.1109/TGRS.2025.3597745"
)


def is_ours_to_write(folder: Path) -> bool:
    """Whether a folder has no card, or one that was not edited since it was written here."""
    try:
        return WRITTEN in (folder / NAME).read_text("utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def card(name: str, config: NetworkConfig, origin: str, training: Mapping[str, Any]) -> str:
    """The card as Markdown, with the Hugging Face metadata header. name: of the folder."""
    terms = training.get("terms")
    facts = {
        "scale": f"x{config.scale}",
        "bands": str(config.in_chans),
        "origin": origin or "not told",
        "terms of the weights": str(terms) if terms else "unknown: ask the authors",
        "written by": f"repmamba {__version__}",
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    told = {key: value for key, value in training.items() if key != "terms"}
    return f"""---
library_name: repmamba
pipeline_tag: image-to-image
tags:
- super-resolution
- remote-sensing
- mamba
---
{WRITTEN}

# {_cell(name)}

A Rep-Mamba network that enlarges satellite and aerial imagery {config.scale} times.

| | |
| --- | --- |
{rows}

## Use

    pip install repmamba
    repmamba upscale scene.tif -o enlarged.tif --weights THIS_FOLDER

```python
import repmamba

upscaler = repmamba.load("THIS_FOLDER")  # or owner/name on the hub
large = upscaler.upscale(array)
```

The result shows what is likely, not what was measured.

## Training

{_training(told)}

## Reference

{PAPER}.
"""


def _training(told: Mapping[str, object]) -> str:
    if not told:
        return "Unknown. Describe the imagery, the recipe and the accuracy of the weights here."
    text = json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False).replace("```", "'''")
    return f"```json\n{text}\n```"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
