"""The methods that a suite compares: which weights each one has, and the pictures it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm.checkpoint.inspect import without_checkpoints
from ldm.checkpoint.read import Checkpoint, read_checkpoint
from ldm.config import instantiate_from_config
from ldm.data.images import open_rgb, save_image
from ldm.errors import UserError
from ldm.evaluation.suites import METHODS, TEXT_METHODS, Suite
from ldm.files import fingerprint
from ldm.inference.editor import ImageEditor
from ldm.inference.generator import ImageGenerator
from ldm.inference.recipe import KEY, read_recipe
from ldm.inference.settings import EditSettings, TextSettings
from ldm.models.build import config_for
from ldm.models.devices import choose_device, choose_precision
from ldm.typed import nearest


@dataclass(frozen=True)
class Method:
    """One method with its weights. subject: the only one it has learned, "" for every subject of the suite."""

    name: str
    subject: str
    path: Path
    checkpoint: Checkpoint
    settings: EditSettings | TextSettings
    fingerprint: str

    @property
    def about(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "method": self.name,
            "subject": self.subject or "all",
            "weights": str(self.path),
            "hash": self.fingerprint,
            "recipe": self.checkpoint.metadata.get("recipe") or {},
            "step": self.checkpoint.metadata.get("step"),
            "settings": asdict(self.settings),
        }


@dataclass(frozen=True)
class PictureToMake:
    """One picture to be made. input: None for text to image."""

    prompt: str
    seed: int
    input: Image.Image | None
    input_name: str
    path: Path


def read_methods(given: Sequence[str], suite: Suite) -> list[Method]:
    """Return the methods that NAME=PATH or NAME:SUBJECT=PATH name; only the files' headers are read.

    Raises UserError for unknown names, missing runs, duplicates, or weights of another kind.
    """
    methods: list[Method] = []
    opened: dict[str, Checkpoint] = {}
    for text in given:
        key, equals, path = text.partition("=")
        name, _, subject = key.partition(":")
        if not equals or not path:
            raise UserError(f"--methods: '{text}' is not NAME=RUN (or NAME:SUBJECT=RUN)")
        if name not in METHODS:
            raise UserError(f"unknown method '{name}'{nearest(name, list(METHODS))}; known: {', '.join(METHODS)}")
        if subject and subject not in suite.subjects:
            raise UserError(f"--methods {key}: unknown subject; the suite has {', '.join(suite.subjects)}")
        if any(m.name == name and (not m.subject or not subject or m.subject == subject) for m in methods):
            raise UserError(f"method '{key}' is given twice; compare two runs of one method with --compare")
        checkpoint = opened[path] = opened[path] if path in opened else read_checkpoint(path)
        file = checkpoint.path
        _check_kind(name, checkpoint)
        _check_learned(name, subject, checkpoint, suite)
        kind = TextSettings if name in TEXT_METHODS else EditSettings
        settings = kind.of_checkpoint(checkpoint.metadata, **suite.settings.get(name, {}))
        _check_sides(name, checkpoint, settings, suite)
        methods.append(Method(name, subject, file, checkpoint, settings, fingerprint(file)))
    return methods


def _check_sides(name: str, checkpoint: Checkpoint, settings: EditSettings | TextSettings, suite: Suite) -> None:
    """Raise UserError now if the suite wants pictures of sides that the method's network cannot make."""
    if isinstance(settings, TextSettings) and {"width", "height"} & set(suite.settings.get(name, {})):
        with torch.device("meta"):
            grid = instantiate_from_config(without_checkpoints(config_for(checkpoint)["model"])).grid()
        try:
            settings.check_grid(grid)
        except UserError as error:
            raise UserError(f"{name} in settings of suite '{suite.name}': {error}") from error


def _check_kind(name: str, checkpoint: Checkpoint) -> None:
    """Raise UserError if weights make pictures from text alone and the method edits, or the other way round."""
    first, last = (checkpoint.tensors.get(f"model.diffusion_model.{k}.weight") for k in ("input_blocks.0.0", "out.2"))
    if first is None or last is None:
        return  # what else is wrong with it, loading says
    edits = first.shape[1] > last.shape[0]
    if edits == (name in TEXT_METHODS):
        kind = "edits pictures" if edits else "makes pictures from text alone"
        raise UserError(
            f"method {name}, '{checkpoint.path}': it {kind} ({first.shape[1]} input channels for {last.shape[0]} of a "
            "latent); give the weights of the other kind"
        )


def _check_learned(name: str, subject: str, checkpoint: Checkpoint, suite: Suite) -> None:
    """Raise UserError if weights say that they learned another subject than the suite asks them for."""
    learned = checkpoint.metadata.get("recipe") or {}
    for asked in (suite.subjects[subject],) if subject else suite.subjects.values():
        theirs = tuple(learned.get(key, getattr(asked, key)) for key in ("identifier", "class_word"))
        if theirs != (asked.identifier, asked.class_word):
            raise UserError(
                f"method {name}, '{checkpoint.path}': it learned “{' '.join(theirs)}”, but subject {asked.name} of the "
                f"suite is “{asked.identifier} {asked.class_word}”; for one subject of several say {name}:SUBJECT=RUN"
            )


def make_pictures(
    method: Method,
    wanted: Sequence[PictureToMake],
    batch_size: int,
    device: str = "auto",
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> None:
    """Make and write every wanted picture that is not there yet with just this recipe; the model is loaded only if one
    is missing. progress: called with how many pictures are done.

    Raises UserError for a device or a precision that is not there.
    """
    precision = choose_precision(precision, choose_device(device))
    recipes = [{**_recipe(method, w), "precision": precision} for w in wanted]
    todo = [i for i, w in enumerate(wanted) if not _is_there(w.path, recipes[i])]
    if progress is not None:
        progress(len(wanted) - len(todo))
    if not todo:
        return
    text = method.name in TEXT_METHODS
    load = ImageGenerator.from_checkpoint if text else ImageEditor.from_checkpoint
    try:
        model: Any = load(method.checkpoint, device=device, precision=precision)
    except UserError as error:
        raise UserError(f"method {method.name}, '{method.path}': {error}") from error
    for batch in _batches(todo, wanted, batch_size):
        prompts, seeds = [wanted[i].prompt for i in batch], [wanted[i].seed for i in batch]
        if text:
            made = model.generate(prompts, method.settings, seeds)
        else:
            made = model.edit([wanted[i].input for i in batch], prompts, method.settings, seeds)
        for i, picture in zip(batch, made, strict=True):
            save_image(picture, wanted[i].path, {KEY: json.dumps(recipes[i], ensure_ascii=False)})
        if progress is not None:
            progress(len(batch))


def _batches(todo: Sequence[int], wanted: Sequence[PictureToMake], size: int) -> list[list[int]]:
    """Consecutive pictures of one shape, at most ``size`` of them."""
    batches: list[list[int]] = []
    for i in todo:
        shape = None if wanted[i].input is None else wanted[i].input.size
        if batches and len(batches[-1]) < size:
            other = wanted[batches[-1][0]].input
            if shape == (None if other is None else other.size):
                batches[-1].append(i)
                continue
        batches.append([i])
    return batches


def _recipe(method: Method, wanted: PictureToMake) -> dict[str, Any]:
    return {
        "method": method.name,
        "prompt": wanted.prompt,
        "seed": wanted.seed,
        "input": wanted.input_name,
        "checkpoint": method.path.name,
        "checkpoint_hash": method.fingerprint,
        **asdict(method.settings),
    }


def _is_there(path: Path, recipe: dict[str, Any]) -> bool:
    try:
        return read_recipe(path) == json.loads(json.dumps(recipe))
    except (FileNotFoundError, ValueError):
        return False


def read_pictures(wanted: Sequence[PictureToMake]) -> list[Image.Image]:
    """Return the pictures that were made."""
    return [open_rgb(w.path) for w in wanted]
