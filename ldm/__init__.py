"""Personalised instruction-based image editing. From Python: ``load_config``, ``load_model``, ``ImageEditor``,
``ImageGenerator``, each imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "load_config": "ldm.config",
    "load_model": "ldm.models.build",
    "ImageEditor": "ldm.inference.editor",
    "ImageGenerator": "ldm.inference.generator",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ldm' has no attribute '{name}'")
