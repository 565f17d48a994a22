"""An editor that needs no model: it paints a quarter of the photo by instruction, seed and scales."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.maker import PairMaker
from ldm.dataset_generation.plan import (
    plan_instance,
    plan_regularization,
    plan_round_trips,
)
from ldm.inference.recipe import Provenance
from ldm.inference.settings import EditSettings

ROOT = Path(__file__).resolve().parents[2]


SCRIPT = ROOT / "scripts" / "generate_dataset.py"


SETTINGS = EditSettings(text_scale=4.0, image_scale=2.0, steps=5, resolution=64)


GATES = Gates(attempts=3, step=1.5)


class FakeEditor:
    """An editor without a model. spoil: (instruction, seed, settings) -> how the result is to fail, or ""."""

    def __init__(self, spoil=None, ckpt: str = "models/editor.ckpt", ckpt_hash: str = "0123abcd"):
        self.spoil = spoil or (lambda *_: "")
        self.provenance = Provenance(ckpt, ckpt_hash, weights="auto")
        self.calls, self.stop_at, self.largest = [], None, 0

    def edit(self, photos, instructions, settings, seeds):
        assert len(photos) == len(instructions) == len(seeds)
        assert len({photo.size for photo in photos}) == 1
        self.largest = max(self.largest, len(photos))
        if self.stop_at is not None and len(self.calls) + len(photos) > self.stop_at:
            raise KeyboardInterrupt
        scales = settings.text_scale, settings.image_scale
        self.calls += [(text, seed, *scales) for text, seed in zip(instructions, seeds, strict=True)]
        return [self.painted(*each, settings) for each in zip(photos, instructions, seeds, strict=True)]

    def painted(self, photo, instruction, seed, settings):
        fault = self.spoil(instruction, seed, settings)
        if fault == "blank":
            return Image.new("RGB", photo.size, (90, 120, 30))
        if fault == "unchanged":
            return photo.copy()
        if fault == "destroyed":
            return ImageOps.invert(photo)
        if fault == "not finite":
            raise FloatingPointError("the edit is not finite in fp16")
        told = repr((instruction, seed, settings.text_scale, settings.image_scale))
        edited, (w, h) = photo.copy(), photo.size
        ImageDraw.Draw(edited).rectangle(
            (w // 4, h // 4, 3 * w // 4 - 1, 3 * h // 4 - 1), tuple(hashlib.sha256(told.encode()).digest()[:3])
        )
        return edited

    @property
    def seeds(self) -> list[int]:
        return [seed for _, seed, _, _ in self.calls]


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(float)
    waves = [np.sin(x / 9 + seed), np.cos(y / 7 + 2 * seed), np.sin((x + y) / 11 + 3 * seed)]
    Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).round().astype(np.uint8)).save(path, **options)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def maker(output: Path, editor: FakeEditor | None = None, **options) -> PairMaker:
    given = {"class_word": "dog", "settings": SETTINGS, "gates": GATES, **options}
    return PairMaker(editor or FakeEditor(), output=output, **given)


def whole_plan(photos: list[Path]) -> list:
    """Six instance pairs, four forward, three round trips."""
    both = plan_regularization({"wolf": photos[:2], "fox": photos[2:]}, 4, 7)
    trips = [p for p in plan_round_trips(photos, ["wolf"], 7, 7) if int(p.id) >= 4]
    return plan_instance(photos, ["wolf", "fox"], 1, 7) + both + trips


class Doubtful:
    """A CLIP that believes in pictures, but never in what was asked."""

    name = "folder/doubtful"

    def images(self, images):
        return torch.tensor([[1.0, 0.0], [0.8, 0.6]])

    def texts(self, texts):
        self.asked = [*getattr(self, "asked", []), texts]
        return torch.tensor([[0.0, 1.0], [0.0, 0.0]])
