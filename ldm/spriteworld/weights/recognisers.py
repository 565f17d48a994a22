"""The shipped recognisers: trained through the shipped first stage, and kept with their accuracy."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from ldm.spriteworld.judging.recogniser import accuracy, save_recogniser, train_recognisers
from ldm.spriteworld.weights.first_stage import reconstruction_of


def make_recognisers(data: Path, steps: int) -> dict[str, dict[str, float]]:
    """Train and ship the recogniser and its colour-blind twin; return their accuracies on unseen renders.

    data: the folder that they are put into; where it holds a first stage, half of what they learn from is seen through
    it. steps: of the training.
    """
    stage = data / "first-stage.safetensors"
    reconstruct = reconstruction_of(stage) if stage.is_file() else None
    accuracies = {}
    with tqdm(total=steps, desc="recognisers", disable=None) as bar:
        models = train_recognisers(steps, reconstruct=reconstruct, progress=lambda: bar.update(1))
    for name, model in zip(("recogniser", "recogniser-grey"), models, strict=True):
        accuracies[name] = accuracy(model)
        if reconstruct is not None:
            rebuilt = accuracy(model, through=reconstruct)
            accuracies[name] |= {f"{key} (through the first stage)": value for key, value in rebuilt.items()}
        save_recogniser(model, data / f"{name}.safetensors", accuracies[name])
    return accuracies
