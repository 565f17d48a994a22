"""PersonalizedImages: captioned photos for text-to-image DreamBooth, of the subject or of its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ldm.data import instructions as words
from ldm.data.augment import JointCrop, Size
from ldm.data.entries import EntryDataset
from ldm.data.images import SUFFIXES, open_rgb, pictures_in, to_tensor
from ldm.errors import MissingFileError, UserError

INSTANCE_CAPTIONS = ("a {identifier} {class_word}",)
CLASS_CAPTIONS = ("a {class_word}",)


class PersonalizedImages(EntryDataset):
    """Photos of one stream: ``edited`` (the picture to aim at) and a caption."""

    def __init__(
        self,
        data_root: str,
        class_word: str,
        identifier: str = "sks",
        templates: Sequence[str] | None = None,
        reg: bool = False,
        repeats: int = 1,
        size: int = 256,
        min_resize: int | None = None,
        max_resize: int | None = None,
        crop: str = "center",
        flip: float = 0.5,
        seed: int = 0,
        held_out: float = 0.0,
        limit: int | None = None,
        aspect_buckets: int | None = None,
    ):
        """data_root: a folder of pictures. class_word: what they show. templates: captions with {identifier} and
        {class_word}, default "a {identifier} {class_word}". reg: these are class pictures: no identifier. The rest is
        as in ``PersonalizedEdit``.

        Raises UserError for what is missing or makes no sense.
        """
        folder = Path(data_root)
        if not folder.is_dir():
            raise MissingFileError(f"folder of photos '{folder}' does not exist")
        files = pictures_in(folder)
        if not files:
            raise MissingFileError(f"folder '{folder}' holds no pictures ({', '.join(SUFFIXES)})")
        if not class_word or not class_word.strip():
            raise UserError("the class word is empty; say what the subject is, like dog")
        if not reg and not identifier.strip():
            raise UserError("the identifier is empty; give a rare word such as sks")
        self.class_word, self.identifier, self.source_word = class_word, "" if reg else identifier, None
        default = CLASS_CAPTIONS if reg else INSTANCE_CAPTIONS
        self.templates = words.check_templates(templates or default, () if reg else ("identifier",))
        view = JointCrop(size, min_resize, max_resize, crop, flip, aspect_buckets)
        super().__init__(files, [path.name for path in files], view, reg, repeats, seed, held_out, limit)

    def sentence(self, photo: Path, rng: np.random.Generator) -> str:
        """Return a caption, the same kind for all photos."""
        template = self.templates[int(rng.random() * len(self.templates))]
        return words.fill(template, self.identifier, self.class_word)

    def pictures(
        self, photo: Path, flip: bool, rng: np.random.Generator, size: Size | None = None
    ) -> dict[str, torch.Tensor]:
        """Return ``edited``: the photo as one view shows it, ``3 h w`` in [-1, 1]."""
        image = open_rgb(photo)
        view = self.view.draw(image.width / image.height, rng, flip, size)
        return {"edited": to_tensor(self.view.apply(image, view))[0]}

    def files(self, photo: Path) -> list[Path]:
        """Return the photo's path."""
        return [photo]
