"""Editing with a trained model: ``ldm.inference.ImageEditor``."""

from typing import Any

__all__ = ["EditSettings", "ImageEditor"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when asked for: reading a recipe needs no torch
        from ldm.inference import editor

        return getattr(editor, name)
    raise AttributeError(f"module 'ldm.inference' has no attribute '{name}'")
