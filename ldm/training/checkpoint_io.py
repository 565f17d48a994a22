"""How a run's full checkpoints are written and read: straight to and from the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm.errors import MissingFileError


class DirectCheckpointIO(TorchCheckpointIO):
    """Lightning's own puts a checkpoint together in memory and copies it once more before it is written: for the
    full-size model 24 GB beside the training. This one writes tensor by tensor, and maps what it reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, whose folder is made. Raises TypeError for storage options, which have no
        effect here, and what writing raises: OSError, or RuntimeError for a full disk."""
        if storage_options is not None:
            raise TypeError("storage_options have no effect: checkpoints are written to local files")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the checkpoint at ``path``, its tensors mapped (a page is private memory only once it is changed).

        Raises MissingFileError if there is none.
        """
        if not Path(path).is_file():
            raise MissingFileError(f"checkpoint '{path}' is not there")
        return torch.load(path, map_location=map_location, weights_only=bool(weights_only), mmap=True)
