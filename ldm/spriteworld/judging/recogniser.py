"""A small recogniser of the sprite world's animals and subjects, trained on what the renderer draws."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.save import save_checkpoint
from ldm.data.images import to_tensor
from ldm.errors import UserError
from ldm.spriteworld.world.scene import ANIMALS, COLOURS, SUBJECTS, Scene, coloured, draw, random_scene, subject_scene

LUMA = (0.299, 0.587, 0.114)


class Recogniser(nn.Module):
    """Which animal is in a picture, and which subject, if any."""

    def __init__(self, subjects: list[str], grey: bool = False, width: int = 24):
        """subjects: their names; grey: look at brightness only (a colour-blind twin: it must judge by the shape)."""
        super().__init__()
        self.subjects, self.grey = list(subjects), grey
        widths = [1 if grey else 3, width, 2 * width, 3 * width, 4 * width]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.SiLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(4, b), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2))
        self.animal = nn.Linear(widths[-1] * 16, len(ANIMALS))
        self.subject = nn.Linear(widths[-1] * 16, len(self.subjects) + 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits over ``ANIMALS`` and over (no subject, *subjects). x: ``b 3 64 64`` in [-1, 1]."""
        if self.grey:
            x = torch.einsum("bchw,c->bhw", x, x.new_tensor(LUMA))[:, None]
        features = self.features(x)
        return self.animal(features), self.subject(features)

    @torch.no_grad()
    def animals(self, x: torch.Tensor) -> list[str]:
        """Return the animal recognised in each picture."""
        return [ANIMALS[i] for i in self(x)[0].argmax(1).tolist()]

    @torch.no_grad()
    def described(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit features of pictures, ``b d``: what the recogniser sees before it names it."""
        if self.grey:
            x = torch.einsum("bchw,c->bhw", x, x.new_tensor(LUMA))[:, None]
        return F.normalize(self.features(x), dim=1)

    @torch.no_grad()
    def is_subject(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Return ``(b,)`` booleans: is the subject of that name in the picture. Raises UserError for another name."""
        if name not in self.subjects:
            raise UserError(f"the recogniser does not know the subject '{name}'; it knows {', '.join(self.subjects)}")
        return self(x)[1].argmax(1) == 1 + self.subjects.index(name)


def sample(rng: np.random.Generator) -> tuple[Scene, int, int]:
    """Return a scene with its animal's and its subject's number: a third subjects, some dyed animals."""
    names = list(SUBJECTS)
    if rng.random() < 1 / 3:
        k = int(rng.integers(len(names)))
        scene = subject_scene(rng, names[k])
        return scene, ANIMALS.index(scene.animal), 1 + k
    scene = random_scene(rng)
    if rng.random() < 0.2:
        scene = Scene(**{**scene.__dict__, "coat": coloured(scene.coat, str(rng.choice(tuple(COLOURS))))})
    return scene, ANIMALS.index(scene.animal), 0


def batch(seed: int, first: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pictures ``size 3 64 64`` with both labels; item i depends on (seed, first + i) alone."""
    samples = [sample(np.random.default_rng([seed, first + i])) for i in range(size)]
    pictures = to_tensor([draw(scene) for scene, _, _ in samples])
    return pictures, torch.tensor([a for _, a, _ in samples]), torch.tensor([s for _, _, s in samples])


def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, shift in colour and speckle pictures a little, each one differently, so that an edited picture's faults do
    not decide."""
    b = len(x)
    amount = torch.rand(b, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, amount * (torch.rand(b, 1, 1, 1, generator=generator) < 0.5))
    x = x + 0.05 * torch.randn(b, 3, 1, 1, generator=generator)
    strength = 0.08 * torch.rand(b, 1, 1, 1, generator=generator)
    return x + strength * torch.randn(x.shape, generator=generator)


def train_recognisers(
    steps: int = 1200,
    batch_size: int = 48,
    seed: int = 5,
    reconstruct: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[], None] | None = None,
) -> tuple[Recogniser, Recogniser]:
    """Train a recogniser and its colour-blind twin on the same fresh renders; return both in evaluation mode.

    reconstruct: a first stage's there and back; half of each batch is seen through it.
    """
    torch.manual_seed(seed)
    models = [Recogniser(list(SUBJECTS), grey).train() for grey in (False, True)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01) for model in models]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, 2e-3, total_steps=steps) for o in optimizers]
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        x, animal, subject = batch(seed, step * batch_size, batch_size)
        if reconstruct is not None:
            half = batch_size // 2
            x = torch.cat([x[:half], reconstruct(x[half:])])
        x = disturb(x, generator)
        for model, optimizer, schedule in zip(models, optimizers, schedules, strict=True):
            a, s = model(x)
            loss = F.cross_entropy(a, animal) + F.cross_entropy(s, subject)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if progress is not None:
            progress()
    return models[0].eval(), models[1].eval()


@torch.no_grad()
def accuracy(
    model: Recogniser, n: int = 1000, seed: int = 99, through: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> dict[str, float]:
    """Return the shares of unseen renders whose animal and whose subject are recognised, and how often a plain animal
    is taken for a subject. through: see the pictures through this first."""
    hits_animal = hits_subject = false_alarms = plain = 0
    for first in range(0, n, 100):
        x, animal, subject = batch(seed, first, min(100, n - first))
        a, s = model(x if through is None else through(x))
        hits_animal += int((a.argmax(1) == animal).sum())
        hits_subject += int((s.argmax(1) == subject).sum())
        plain += int((subject == 0).sum())
        false_alarms += int(((s.argmax(1) != 0) & (subject == 0)).sum())
    return {"animal": hits_animal / n, "subject": hits_subject / n, "false_alarms": false_alarms / plain, "pictures": n}


def save_recogniser(model: Recogniser, path: Path, results: dict) -> None:
    """Ship a recogniser in fp16 with its accuracy on unseen renders in its metadata."""
    metadata = {"recogniser": {"subjects": model.subjects, "grey": model.grey}, "accuracy": results}
    save_checkpoint(path, {k: v.half() for k, v in model.state_dict().items()}, metadata)


def load_recogniser(path: Path) -> Recogniser:
    """Load a shipped recogniser. Raises UserError if the file is none."""
    checkpoint = read_checkpoint(path)
    if "recogniser" not in checkpoint.metadata:
        raise UserError(f"'{path}' is no recogniser")
    model = Recogniser(**checkpoint.metadata["recogniser"])
    model.load_state_dict({k: v.float() for k, v in checkpoint.tensors.items()})
    return model.eval()


def load_judges(data: Path) -> tuple[Recogniser, Recogniser]:
    """Load the recogniser and its colour-blind twin from the folder of the shipped weights."""
    return load_recogniser(data / "recogniser.safetensors"), load_recogniser(data / "recogniser-grey.safetensors")
