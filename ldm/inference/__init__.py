"""Editing with a trained model: ``ImageEditor`` and its ``EditSettings``; text to image: ``ImageGenerator``."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "EditSettings": "ldm.inference.settings",
    "ImageEditor": "ldm.inference.editor",
    "ImageGenerator": "ldm.inference.generator",
    "TextSettings": "ldm.inference.settings",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:  # imported when asked for: reading a recipe needs no torch
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'ldm.inference' has no attribute '{name}'")
