"""Ablations in the sprite world: the same training with one thing changed, over subjects and seeds, as one table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import kept_weights
from ldm.config import load_config, with_shipped_paths
from ldm.dataset_generation.class_images import make_class_images
from ldm.dataset_generation.generate import make_dataset
from ldm.dataset_generation.request import PairRequest
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.methods import read_methods
from ldm.evaluation.suite_file import read_suite
from ldm.evaluation.tables import Provenance, write_table
from ldm.files import read_json, write_json
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import TextSettings
from ldm.models.build import ModelSource
from ldm.project import CONFIGS
from ldm.spriteworld.experiments.ablation_table import FROZEN, Rows, plot, table
from ldm.spriteworld.experiments.subject import compare_subject, measure_subject, plain
from ldm.spriteworld.world.scene import SUBJECTS
from ldm.training.run import finished, train
from ldm.training.settings import load_training_config
from ldm.typed import check_type, nearest, settings
from ldm.typed import plain as plain_node

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AblationPairs:
    """The pairs that every editor learns from: fields of ``PairRequest``, which explains them."""

    num_reg: int
    per_photo: int
    source_words: tuple[str, ...]
    source_edits: tuple[str, ...] = ()
    reg_edits: tuple[str, ...] = ()
    subject_edits: tuple[str, ...] = ()
    num_subject_edits: int | None = None


@dataclass(frozen=True)
class Ablation:
    """What is to be compared, over subjects and seeds.

    config: of the training, relative to the project. steps: whose weights are kept and measured. runs: name ->
    overrides of the config. measures: the table's columns. scenes: of each figure. pairs: what editors learn from; they
    are measured as ``spriteworld.py subject`` does. class_images: how many a text-to-image model learns with; it is
    measured by the ``suite`` (a YAML file, relative to the project), whose measures are called "<group>: <measure>".

    Raises UserError for an unknown subject, both or neither of pairs and class_images, and one override where a list of
    them is expected.
    """

    subjects: tuple[str, ...]
    seeds: tuple[int, ...]
    config: str
    steps: tuple[int, ...]
    runs: dict[str, Any]
    measures: tuple[str, ...]
    scenes: int = 60
    pairs: AblationPairs | None = None
    class_images: int | None = None
    suite: str | None = None

    def __post_init__(self) -> None:
        if (self.pairs is None) == (self.class_images is None):
            raise UserError("either pairs (an editor's data) or class_images (a text-to-image model's) are needed")
        if (self.class_images is None) != (self.suite is None):
            raise UserError("class_images and suite go together")
        for subject in self.subjects:
            if subject not in SUBJECTS:
                raise UserError(f"unknown subject '{subject}'{nearest(subject, list(SUBJECTS))}")
        for name, overrides in self.runs.items():
            check_type(list[str], overrides, f"runs.{name}")

    @property
    def weights(self) -> str:
        """The name of the shipped weights that every training starts from."""
        return "editor.safetensors" if self.pairs else "text-to-image.safetensors"

    @property
    def measured_by(self) -> str:
        """What the figures are of, in words."""
        return f"measured by {self.suite}" if self.suite else f"{self.scenes} fresh scenes a figure"


@dataclass(frozen=True)
class Folders:
    """root: the project. work: where data, runs and their figures are kept, so that a second call goes on."""

    root: Path
    work: Path

    @property
    def data(self) -> Path:
        """The shipped weights and photos."""
        return self.root / "data" / "spriteworld"


def read_ablation(path: Path) -> Ablation:
    """Return the ablation that a YAML file describes. Raises UserError for what makes no sense in it."""
    content = plain_node(load_config(path))
    if content.get("pairs") is not None:
        content["pairs"] = settings(AblationPairs, content["pairs"], "pairs")
    return settings(Ablation, content, str(path))


def run_ablation(
    ablation: Ablation, folders: Folders, output: Path, name: str, command: str, processes: int = 1
) -> str:
    """Make the data, train and measure every run that is not there yet, and write the table; return it.

    output: the folder for ``<name>.md`` and ``<name>.png``; until every seed is there they stand in the work folder,
    written anew after each. command: the command line, for the table's head. processes: how many trainings run at once,
    each with its share of the CPU's cores (small networks gain by it). Raises UserError for fewer than one, or more
    than there are cores.
    """
    cores = os.cpu_count() or 1
    if not 1 <= processes <= cores:
        raise UserError(f"{processes} processes were asked for; 1 to {cores} (this machine's cores) are possible")
    made_by = Provenance.of([folders.data / ablation.weights], command)
    make = _pairs if ablation.pairs else _class_images
    data = {subject: make(ablation, subject, folders) for subject in ablation.subjects}
    rows: Rows = {}
    text = ""
    with _workers(processes, cores // processes) as call:
        seeds = [_jobs(call, ablation, seed, data, folders) for seed in ablation.seeds]
        for count, jobs in enumerate(seeds, 1):
            for title, result in jobs:
                figures = result()
                for step in ablation.steps if title != FROZEN else [0]:
                    _add(rows, ablation, (title, step), figures[f"step {step}"] if step else figures)
            text = table(rows, ablation.measures, ablation.subjects, ablation.seeds[:count], ablation.measured_by)
            picture = plot(rows, ablation.measures, max(ablation.steps))
            place = output if count == len(seeds) else folders.work
            write_table(place / f"{name}.md", f"Ablation: {name}", text, made_by, picture, "The same as bars")
    return text


Result = Callable[[], dict[str, Any]]


def _jobs(
    call: Callable[..., Result], ablation: Ablation, seed: int, data: dict[str, list[str]], folders: Folders
) -> list[tuple[str, Result]]:
    """Return (row, its figures when they are asked for) of one seed, over all subjects."""
    jobs = []
    for subject, overrides in data.items():
        if ablation.pairs:
            jobs.append((FROZEN, call(_frozen, ablation, subject, seed, folders)))
        for title in ablation.runs:
            jobs.append((title, call(_trained, ablation, title, subject, seed, overrides, folders)))
    return jobs


@contextmanager
def _workers(processes: int, threads: int) -> Iterator[Callable[..., Result]]:
    """Give a way to call functions in other processes, or, for one process, here and only when the result is wanted."""
    if processes == 1:
        yield partial
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,))
    try:
        yield lambda function, *args: pool.submit(function, *args).result
    finally:
        pool.shutdown(cancel_futures=True)


def _add(rows: Rows, ablation: Ablation, row: tuple[str, int], results: dict[str, Any]) -> None:
    for measure in ablation.measures:
        if measure not in results:
            raise UserError(f"there is no measure '{measure}'{nearest(measure, list(results))}")
        value = results[measure]
        value = value["mean"] if isinstance(value, dict) else value
        rows.setdefault(row, {}).setdefault(measure, []).append(value)


def _frozen(ablation: Ablation, subject: str, seed: int, folders: Folders) -> dict[str, Any]:
    """Return the untaught editor's figures on the scenes of a subject and seed; measure them once."""
    path = folders.work / "frozen" / f"{subject}-{seed}.json"
    if not path.is_file() or not set(ablation.measures) <= set(read_json(path)):
        sources = ablation.pairs.source_words if ablation.pairs else ()
        editor = folders.data / ablation.weights
        measured = measure_subject(editor, subject, folders.data, ablation.scenes, seed, sources)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plain(measured.figures), indent=1)
    return read_json(path)


def _class_images(ablation: Ablation, subject: str, folders: Folders) -> list[str]:
    """Make the frozen model's pictures of the subject's class; return the overrides that name the data."""
    word = SUBJECTS[subject].class_word
    folder = folders.work / "class-images" / word
    checkpoint = read_checkpoint(folders.data / ablation.weights)
    generator = ImageGenerator.from_checkpoint(checkpoint)
    chosen = TextSettings.of_checkpoint(checkpoint.metadata)
    make_class_images(generator, f"a {word}", folder, ablation.class_images, chosen, seed=0, batch_size=25)
    return [
        f"dataset.instance={folders.data / 'subjects' / subject}",
        f"dataset.class_images={folder}",
        f"dataset.class_word={word}",
    ]


def _pairs(ablation: Ablation, subject: str, folders: Folders) -> list[str]:
    """Make the subject's pairs; return the overrides that name them."""
    folder, data = folders.work / "pairs" / subject, folders.data
    request = PairRequest(
        source=ModelSource(data / ablation.weights),
        photos=(str(data / "subjects" / subject),),
        class_word=SUBJECTS[subject].class_word,
        output=folder,
        config=CONFIGS / "spriteworld" / "pairs.yaml",
        reg_photos=tuple(f"{word}={data / 'pictures' / word}" for word in ablation.pairs.source_words),
        batch_size=25,
        **vars(ablation.pairs),
    )
    make_dataset(request)
    return [f"dataset.root={folder}"]


def _trained(
    ablation: Ablation, name: str, subject: str, seed: int, data: list[str], folders: Folders
) -> dict[str, Any]:
    """Return a run's figures by step; train and measure what is not there yet. data: overrides that name the data."""
    logs = folders.work / "runs" / f"{subject}-{seed}-{name.replace(' ', '-')}"
    runs = sorted(logs.iterdir()) if logs.is_dir() else []
    steps = [f"step {step}" for step in ablation.steps]
    for results in map(_results, runs):
        if all(step in results and set(ablation.measures) <= set(results[step]) for step in steps):
            return results
    run = next((run for run in runs if finished(run)), None)
    if run is None:
        logger.info("training '%s' on %s, seed %d", name, subject, seed)
        started = next((run for run in runs if (run / "checkpoints" / "last.ckpt").is_file()), None)
        if started is not None:
            config = load_training_config(started / "config.yaml")
        else:
            config = load_training_config(folders.root / ablation.config, _overrides(ablation, name, seed, data))
        run = train(with_shipped_paths(config, folders.root), subject, logs, resume=started)
    if not finished(run):  # it was stopped
        raise KeyboardInterrupt
    if ablation.suite:
        _by_suite(folders.root / ablation.suite, run, subject, folders.root)
    else:
        compare_subject(None, run, subject, folders.data, ablation.scenes, seed, command=f"ablation, run '{name}'")
    return _results(run)


def _overrides(ablation: Ablation, name: str, seed: int, data: list[str]) -> list[str]:
    steps = list(ablation.steps)
    run = [f"training.max_steps={max(steps)}", f"training.seed={seed}", f"data.params.seed={seed}"]
    return [*data, *run, f"training.keep_at={steps}", "training.sheet_every=0", *ablation.runs[name]]


def _results(run: Path) -> dict[str, Any]:
    """Return what was measured of a run, by step; nothing if nothing was."""
    file = run / "results.json"
    return read_json(file) if file.is_file() else {}


def _by_suite(path: Path, run: Path, subject: str, root: Path) -> None:
    """Evaluate every kept step of a text-to-image run by a suite; write the means to the run's ``results.json``."""
    suite = read_suite(path, root)
    means = {}
    for weights in kept_weights(run):
        methods = read_methods([f"dreambooth:{subject}={weights}"], suite)
        summary = evaluate(suite, methods, {}, {}, run / "evaluation" / weights.stem).summary()
        means[weights.stem.replace("=", " ")] = {
            f"{group}: {measure}": value.mean
            for group, rows in summary.items()
            for measure, value in rows.get("dreambooth", {}).items()
        }
    write_json(run / "results.json", means, indent=1)
