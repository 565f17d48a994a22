"""Train the shipped weights again: stages that go on where they were stopped, and are not trained twice.

The order: the first stage on whole pictures, on windows of 32 and 48 pixels around the animal (its latents made white
before), where the details are, and on whole pictures again; its channels scaled by what each means to the picture; the
recognisers, which see pictures through it; text to image; the editor; text to image again, from the editor without its
picture, which has seen the animals for longer; the decoder alone, on latents that the editor makes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ldm.config import load_config, with_shipped_paths
from ldm.errors import UserError
from ldm.files import content_hash, file_hash, read_json, replacing, write_json
from ldm.models.export import export
from ldm.project import ROOT
from ldm.spriteworld.experiments.measure import measure_checkpoint
from ldm.spriteworld.weights.conversions import editor_without_picture, follow_first_stage
from ldm.spriteworld.weights.edited_latents import write_edited_latents
from ldm.spriteworld.weights.first_stage import latent_scale, whiten_first_stage
from ldm.spriteworld.weights.recognisers import make_recognisers
from ldm.spriteworld.world.photos import all_photos
from ldm.training.run import train
from ldm.training.settings import load_training_config
from ldm.typed import plain

logger = logging.getLogger(__name__)

CKPT = "model.params.ckpt_path"
STAGE_CKPT = "model.params.first_stage_config.params.ckpt_path"
SCENES, SEED = 200, 1  # of the figures at the end
VARIABLES = {  # environment variable -> the fields of Lengths that it sets
    "STEPS_FIRST_STAGE": ("plain", "whole"),
    "STEPS_WINDOWS": ("windows",),
    "STEPS_RECOGNISER": ("recogniser",),
    "STEPS_TEXT": ("text",),
    "STEPS_EDIT": ("edit",),
    "STEPS_TEXT_AGAIN": ("text_again",),
    "SCENES_LATENTS": ("latents",),
    "STEPS_DECODER": ("decoder",),
}


@dataclass(frozen=True)
class Lengths:
    """Optimiser steps of each part (latents: scenes). Raises UserError for a number below 1."""

    plain: int = 3600
    windows: int = 2600
    whole: int = 9000
    recogniser: int = 1200
    text: int = 4000
    edit: int = 14000
    text_again: int = 1200
    latents: int = 6000
    decoder: int = 4000

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"{field.name} is {getattr(self, field.name)}; a whole number from 1 is expected")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Lengths:
        """Return those that environment variables set, the others by default. Raises UserError for no whole number."""
        given = {}
        for variable, names in VARIABLES.items():
            text = environment.get(variable, "")
            if text and not text.isdecimal():
                raise UserError(f"{variable} is '{text}'; a whole number is expected")
            given.update(dict.fromkeys(names, int(text)) if text else {})
        return cls(**given)


@dataclass(frozen=True)
class Places:
    """Folders. configs: of the recipes; data: of the shipped weights; runs: of the trainings and what lies between
    them; results: of the figures at the end."""

    configs: Path
    data: Path
    runs: Path
    results: Path


@dataclass(frozen=True)
class Stage:
    """One training: name, recipe (YAML), steps, where its weights go, what they are made from, and overrides.

    parent: a file whose contents belong to the recipe, None for none. scale: a file with the latents' scale, for
    diffusion models. own_data: overrides of ``data.params.train`` that were given for every stage are not for this one.
    """

    name: str
    config: str
    steps: int
    output: Path
    parent: Path | None = None
    overrides: tuple[str, ...] = ()
    scale: Path | None = None
    own_data: bool = False


@dataclass(frozen=True)
class Job:
    """A file made by one call, once for each content of its source and each ``settings`` (two calls may differ in a
    bit, and what follows would be trained anew); one that was stopped is made anew."""

    output: Path
    source: Path
    make: Callable[[], Any]
    settings: str = ""


@dataclass(frozen=True)
class Copy:
    """A file that is put in its place, whole or not at all."""

    source: Path
    place: Path


class _Stopped(Exception):
    """A training was stopped before its end."""


def train_weights(lengths: Lengths, places: Places, overrides: Sequence[str], command: str) -> bool:
    """Train everything and put it in its place; return False if it was stopped before its end.

    overrides: ``key.sub=value``, for every stage after its own. command: the command line, for the figures' head.
    Raises UserError for what does not fit.
    """
    for text in overrides:
        if text.startswith(("training.devices=", "training.num_nodes=")):
            raise UserError(f"'{text}': these weights are trained by one process on one device")
    places.runs.mkdir(parents=True, exist_ok=True)
    do: dict[type, Callable[[Any], None]] = {
        Stage: lambda stage: _train(stage, places, overrides),
        Job: lambda job: _make_once(job, places.runs),
        Copy: _copy,
    }
    try:
        for part in plan(lengths, places):
            do[type(part)](part)
    except _Stopped:
        return False
    _take_the_decoder_along(places)
    all_photos(places.data)
    editor, results = places.data / "editor.safetensors", places.results / "shipped-weights.md"
    measure_checkpoint(editor, places.data, SCENES, SEED, results, command)
    _tell_scale(places)
    return True


def plan(lengths: Lengths, places: Places) -> list[Stage | Job | Copy]:
    """Return all parts in their order."""
    return [*_first_stage(lengths, places), *_models(lengths, places), *_decoder(lengths, places)]


def _first_stage(lengths: Lengths, places: Places) -> list[Stage | Job | Copy]:
    runs, config, train_data = places.runs, "first-stage.yaml", "data.params.train.params"
    plain_, white, small, large, whole, scaled = (
        runs / f"{name}.safetensors" for name in ("plain", "white", "windows-32", "windows-48", "whole", "first-stage")
    )
    loss = "model.params.lossconfig.params"
    easy = (f"{loss}.whiten=0", f"{loss}.kl=1.0e-5", f"{train_data}.low_contrast=1", f"{train_data}.any_coat=0.5")

    def windows(side: int, batch_size: int, seed: int, source: Path) -> tuple[str, ...]:
        cut = (f"{train_data}.crop={side}", f"{train_data}.seed={seed}")
        return (f"{CKPT}={source}", f"data.params.batch_size={batch_size}", *cut)

    shipped = places.data / "first-stage.safetensors"
    return [
        Stage("first-stage-plain", config, lengths.plain, plain_, None, (*easy, f"{train_data}.seed=1")),
        Job(white, plain_, lambda: whiten_first_stage(plain_, white)),
        Stage("first-stage-32", config, lengths.windows, small, white, windows(32, 32, 11, white)),
        Stage("first-stage-48", config, lengths.windows, large, small, windows(48, 24, 12, small)),
        Stage("first-stage", config, lengths.whole, whole, large, (f"{CKPT}={large}",)),
        Job(scaled, whole, lambda: whiten_first_stage(whole, scaled, power=0.8), "power 0.8"),
        Copy(scaled, shipped),
        Job(_scale_file(runs), scaled, lambda: write_json(_scale_file(runs), round(latent_scale(scaled), 5))),
        Job(
            places.data / "recogniser-grey.safetensors",
            shipped,
            lambda: make_recognisers(places.data, lengths.recogniser),
            f"{lengths.recogniser} steps",
        ),
    ]


def _models(lengths: Lengths, places: Places) -> list[Stage | Job | Copy]:
    stage, text, editor = (places.data / f"{name}.safetensors" for name in ("first-stage", "text-to-image", "editor"))
    without = places.runs / "without-picture.safetensors"
    own, scale = f"{STAGE_CKPT}={stage}", _scale_file(places.runs)
    recipe, again = "text-to-image.yaml", (own, f"{CKPT}={without}")
    return [
        Stage("text-to-image", recipe, lengths.text, text, stage, (own,), scale),
        Stage("instruct-pix2pix", "instruct-pix2pix.yaml", lengths.edit, editor, text, (own, f"{CKPT}={text}"), scale),
        Job(without, editor, lambda: editor_without_picture(editor, without)),
        Stage("text-to-image-again", recipe, lengths.text_again, text, without, again, scale),
    ]


def _decoder(lengths: Lengths, places: Places) -> list[Stage | Job | Copy]:
    stage, editor = (places.data / f"{name}.safetensors" for name in ("first-stage", "editor"))
    latents, decoder = places.runs / "latents.safetensors", places.runs / "decoder.safetensors"
    overrides = (f"{CKPT}={stage}", f"data.params.train.params.files={latents}")
    config = "first-stage-decoder.yaml"
    return [
        Job(
            latents,
            editor,
            lambda: write_edited_latents(editor, latents, lengths.latents, seed=50),
            f"{lengths.latents} scenes",
        ),
        Stage("decoder", config, lengths.decoder, decoder, latents, overrides, own_data=True),
        Copy(decoder, stage),
    ]


def _scale_file(runs: Path) -> Path:
    return runs / "scale.json"


def _train(stage: Stage, places: Places, given: Sequence[str]) -> None:
    """Train a stage, or go on with it, and put its weights in their place.

    A run of another number of steps is another run. So is one by another recipe, from other weights or with other
    overrides: the one before is then put aside as RUN.before-TIME.
    """
    name, runs = f"{stage.name}-{stage.steps}", places.runs
    config = _config(stage, places, given)
    _put_other_recipes_aside(name, _origin(config, stage, places), runs)
    run = newest_run(runs, name)
    kept = f"checkpoints/step={stage.steps}.safetensors"
    if run is not None and (run / kept).is_file():
        logger.info("%s is done (%s)", name, run)
    else:
        if run is not None and (run / "checkpoints" / "last.ckpt").is_file():
            logger.info("%s goes on (%s)", name, run)
            run = train(load_training_config(run / "config.yaml"), "", runs, resume=run)
        else:
            logger.info("%s begins", name)
            run = train(config, name, runs)
        if run is None or not (run / kept).is_file():
            raise _Stopped
    _copy(Copy(run / kept, stage.output))


def _config(stage: Stage, places: Places, given: Sequence[str]) -> Any:
    """Return a stage's whole config; what was given comes after the stage's own overrides."""
    if stage.own_data:
        given = [text for text in given if not text.startswith(("data.params.train.", "data.params.train="))]
    scale = [] if stage.scale is None else [f"model.params.scale_factor={read_json(stage.scale)}"]
    overrides = [f"training.max_steps={stage.steps}", *stage.overrides, *scale, *given]
    return with_shipped_paths(load_training_config(places.configs / stage.config, overrides), ROOT)


def _origin(config: Any, stage: Stage, places: Places) -> str:
    """Return a hash of the recipe and the parent's contents, which is the same wherever the folders are."""
    text = json.dumps(plain(config), sort_keys=True)
    text = text.replace(str(places.runs), "runs").replace(str(places.data), "data")
    return content_hash(text + (file_hash(stage.parent) if stage.parent else ""))


def _put_other_recipes_aside(name: str, origin: str, runs: Path) -> None:
    record = runs / f"{name}.origin"
    if record.is_file() and record.read_text() == origin:
        return
    for run in _runs(runs, name):
        run.rename(run.with_name(f"{run.name}.before-{time.time_ns()}"))
    record.write_text(origin)


def newest_run(runs: Path, name: str) -> Path | None:
    """Return the newest run folder of that name, None if there is none."""
    return max(_runs(runs, name), default=None)


def _runs(runs: Path, name: str) -> list[Path]:
    return [path for path in runs.iterdir() if path.is_dir() and path.name.partition("_")[2] == name]


def _make_once(job: Job, runs: Path) -> None:
    record = runs / f"{job.output.name}.of"
    origin = f"{file_hash(job.source)} {job.settings}"
    if job.output.is_file() and record.is_file() and record.read_text() == origin:
        return
    record.unlink(missing_ok=True)
    logger.info("making %s", job.output)
    job.make()
    record.write_text(origin)


def _copy(copy: Copy) -> None:
    with replacing(copy.place) as temporary:
        temporary.write_bytes(copy.source.read_bytes())


def _take_the_decoder_along(places: Places) -> None:
    """Give both models the new decoder, whose latents are the same, and put them in their place in fp16."""
    followed, exported = (places.runs / f"{name}.safetensors" for name in ("followed", "exported"))
    for name in ("text-to-image", "editor"):
        model = places.data / f"{name}.safetensors"
        logger.info(follow_first_stage(model, places.data / "first-stage.safetensors", followed))
        exported.unlink(missing_ok=True)
        export(followed, exported)
        _copy(Copy(exported, model))


def _tell_scale(places: Places) -> None:
    """Say so if the config that trainings from these weights read has another scale of the latents."""
    scale, path = read_json(_scale_file(places.runs)), places.configs / "model.yaml"
    written = load_config(path).model.params.scale_factor
    if abs(scale - written) > 5e-6:
        logger.warning(
            "the latents' scale is %.5f, but scale_factor in %s is %.5f: write it there", scale, path, written
        )
