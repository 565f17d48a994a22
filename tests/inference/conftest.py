"""A small editor."""

import pytest

from ldm.inference.editor import ImageEditor


@pytest.fixture(scope="module")
def editor(tiny_ckpt) -> ImageEditor:
    return ImageEditor.from_checkpoint(tiny_ckpt, device="cpu", precision="fp32")
