"""What teaching a text-to-image model one subject (DreamBooth) gains and costs while it runs.

Three figures against the frozen model that the run began with, over pictures of the same seeds:

- subject: asked for the subject, how much of the way from the frozen model's pictures to the photos is gone.
- leak: asked for the class without the identifier, the same.
- prior: how far apart the plain class's pictures are, over the frozen model's (1: as diverse as before).

Pictures from text stand in no place that could be compared: likeness is the mean cosine between what is made and the
photos, of DINO features where a DINO is given, else of colours; 0 is the frozen model's, 1 what the photos have among
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab

from ldm.data.datamodule import PairDataModule
from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import TextSettings
from ldm.training.drift import Monitor, Row, described_by
from ldm.typed import settings as typed_settings

BINS = (4, 6, 6)  # of L*, a* and b*
RANGES = ((0.0, 100.0), (-90.0, 90.0), (-90.0, 90.0))
NEAR = 1e-3  # spread smaller than this is none
ROOM = 0.02  # at least this much likeness lies between the frozen model and the photos: less is noise, and as a divisor
# it would be all that counts
PRIOR_WEIGHT = 0.5  # in the score, a plain class that is half as diverse costs a quarter of the subject


def colour_shares(x: torch.Tensor) -> torch.Tensor:
    """Return the square roots of a picture's colour shares, ``n 144``: a histogram in CIELAB, the middle of the picture
    weighing most. The cosine of two is their Bhattacharyya coefficient. x: ``n 3 h w`` in [-1, 1]."""
    lab = rgb_to_lab(((x.float() + 1) / 2).clamp(0, 1))
    cell = torch.zeros_like(lab[:, 0], dtype=torch.long)
    for channel, (bins, (low, high)) in enumerate(zip(BINS, RANGES, strict=True)):
        place = ((lab[:, channel] - low) / (high - low) * bins).long().clamp(0, bins - 1)
        cell = cell * bins + place
    down, across = (torch.linspace(-2, 2, n, device=x.device) for n in x.shape[-2:])
    weight = torch.exp(-(down[:, None].square() + across.square()) / 2).expand_as(cell)
    shares = torch.zeros(len(x), int(np.prod(BINS)), device=x.device)
    shares.scatter_add_(1, cell.flatten(1), weight.flatten(1))
    return (shares / shares.sum(1, keepdim=True)).sqrt()


def likeness(a: torch.Tensor, b: torch.Tensor | None = None) -> float:
    """Return the mean cosine between rows of a and rows of b, or between different rows of a (``n d``, ``m d``)."""
    a = F.normalize(a.float(), dim=1)
    if b is not None:
        return (a @ F.normalize(b.float(), dim=1).T).mean().item()
    n = len(a)
    return ((a @ a.T).sum().item() - n) / (n * (n - 1))


class TextDriftMonitor(Monitor):
    """Log ``drift/subject``, ``drift/leak`` and ``drift/prior`` at set steps, and name the best kept step."""

    def __init__(
        self,
        data: PairDataModule,
        every: int,
        keep_at: list[int],
        folder: Path,
        suffix: str,
        pictures: int = 8,
        settings: dict[str, Any] | None = None,
        dino: str | None = None,
    ):
        """data: with photos of a subject (``PersonalizedImages``). every, keep_at, folder, suffix: see ``Monitor``.
        pictures: how many are made for each of the two sentences; settings: of the sampling, see ``TextSettings``;
        dino: a DINO ViT-S/16 by folder.

        Raises UserError for other data, fewer than two pictures, or unknown settings.
        """
        super().__init__(every, keep_at, folder, suffix)
        subject = getattr(data.streams["instance"], "dataset", data.streams["instance"])
        if hasattr(subject, "pairs") or not getattr(subject, "class_word", None):
            raise UserError("TextDriftMonitor needs photos of a subject (PersonalizedImages), not pairs")
        photos = [*subject.entries, *subject.held_out]
        if pictures < 2:
            raise UserError(f"training.drift.params.pictures is {pictures}; to compare likeness 2 are needed")
        self.settings, self.pictures = (
            typed_settings(TextSettings, settings, "training.drift.params.settings"),
            pictures,
        )
        shown = [subject.pictures(p, False, np.random.default_rng(0), subject.view.size)["edited"] for p in photos]
        self.prompts = [f"a {subject.identifier} {subject.class_word}", f"a {subject.class_word}"]
        self._describe = described_by(dino) or colour_shares
        self.photos = self._describe(torch.stack(shown))

    def measure(self, module: Any, step: int) -> Row:
        """Return subject, leak and prior of a text-to-image model."""
        generator = ImageGenerator(module)
        made = [
            self._describe(to_tensor(generator.generate([text] * self.pictures, self.settings)))
            for text in self.prompts
        ]
        alike = [likeness(x, self.photos) for x in made]
        row = {"with": alike[0], "without": alike[1], "spread": max(0.0, 1 - likeness(made[1]))}
        frozen = self.rows.get(0, row)
        among = likeness(self.photos) if len(self.photos) > 1 else 1.0

        def way(name: str) -> float:
            return (row[name] - frozen[name]) / max(among - frozen[name], ROOM)

        return {
            **row,
            "subject": way("with"),
            "leak": way("without"),
            "prior": row["spread"] / max(frozen["spread"], NEAR),
        }

    def score(self, row: Row) -> float:
        """Return the subject (no more than at the photos themselves), less the leak, less half of what the plain class
        lost of its diversity."""
        return min(1.0, row["subject"]) - max(0.0, row["leak"]) - PRIOR_WEIGHT * max(0.0, 1 - row["prior"])

    def describe(self, row: Row) -> str:
        """Return a step's figures in words."""
        return f"subject {row['subject']:.2f}, leak {row['leak']:.2f}, prior's diversity {row['prior']:.2f}"
