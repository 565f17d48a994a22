"""Ablations in the sprite world: the same training with one thing changed, over subjects and seeds, as one table."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ldm.checkpoint.read import read_checkpoint
from ldm.checkpoint.runs import kept_weights
from ldm.config import anchored, load_config, nearest
from ldm.config import plain as plain_config
from ldm.data.images import save_image
from ldm.dataset_generation.class_images import make_class_images
from ldm.dataset_generation.generate import make_dataset
from ldm.dataset_generation.request import PairRequest
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.methods import read_methods
from ldm.evaluation.suite_file import read_suite
from ldm.files import replacing
from ldm.inference.generator import ImageGenerator
from ldm.inference.settings import TextSettings
from ldm.models.build import ModelSource
from ldm.project import CONFIGS
from ldm.spriteworld.experiments.subject import compare_subject, measure_subject, plain
from ldm.spriteworld.world.scene import SUBJECTS
from ldm.training.run import finished, train
from ldm.training.settings import load_training_config

logger = logging.getLogger(__name__)

KEYS = ("subjects", "seeds", "scenes", "pairs", "class_images", "suite", "config", "steps", "runs", "measures")
LISTS = ("source_words", "source_edits", "reg_edits", "subject_edits")
PAIRS = ("num_reg", "per_photo", "num_subject_edits", *LISTS)
FROZEN = "frozen editor"
OPTIONAL = {"scenes": 60, "pairs": None, "class_images": None, "suite": None}


@dataclass(frozen=True)
class Ablation:
    """What is to be compared: runs by name with their overrides, over subjects and seeds.

    Editors learn from ``pairs`` and are measured as ``spriteworld.py subject`` does, over ``scenes``; text-to-image
    models learn with so many ``class_images`` and are measured by a ``suite``, whose measures are called
    "<group>: <measure>".
    """

    subjects: list[str]
    seeds: list[int]
    config: str
    steps: list[int]
    runs: dict[str, list[str]]
    measures: list[str]
    scenes: int
    pairs: dict[str, Any] | None
    class_images: int | None
    suite: str | None


def read_ablation(path: Path) -> Ablation:
    """Return the ablation that a YAML file describes.

    Raises ValueError for missing or unknown keys or subjects, and for one sentence where a list of them is expected.
    """
    content = plain_config(load_config(path))
    for key in content:
        if key not in KEYS:
            raise UserError(f"unknown key '{key}' in {path}{nearest(key, list(KEYS))}")
    missing = [key for key in KEYS if key not in content and key not in OPTIONAL]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    if (content.get("pairs") is None) == (content.get("class_images") is None):
        raise UserError(f"{path} needs either pairs (an editor's data) or class_images (a text-to-image model's)")
    if (content.get("class_images") is None) != (content.get("suite") is None):
        raise UserError(f"{path}: class_images and suite go together")
    for key, value in (content.get("pairs") or {}).items():
        if key not in PAIRS:
            raise UserError(f"unknown key 'pairs.{key}' in {path}{nearest(key, list(PAIRS))}")
        if key in LISTS and isinstance(value, str):
            raise UserError(f"pairs.{key} in {path} is '{value}'; a list is expected, [{value}]")
    unknown = sorted(set(content["subjects"]) - set(SUBJECTS))
    if unknown:
        raise UserError(f"unknown subject '{unknown[0]}' in {path}{nearest(unknown[0], list(SUBJECTS))}")
    return Ablation(**{**OPTIONAL, **content})


Rows = dict[tuple[str, int], dict[str, list[float]]]  # (run, step) -> measure -> one value a training


def run_ablation(
    ablation: Ablation, root: Path, work: Path, output: Path, name: str = "ablations", processes: int = 1
) -> str:
    """Make the data, train every run that is not there yet, measure it, and write ``<name>.md`` and ``<name>.png`` to
    ``output``, anew after every seed; return the table.

    root: of the project; work: where data, runs and their figures are kept, so that a second call goes on.
    processes: how many trainings run at once, each with its share of the CPU's cores (small networks gain by it).
    Raises ValueError for fewer than one, or more than there are cores.
    """
    cores = os.cpu_count() or 1
    if not 1 <= processes <= cores:
        raise UserError(f"{processes} processes were asked for; 1 to {cores} (this machine's cores) are possible")
    data = root / "data" / "spriteworld"
    make = _pairs if ablation.pairs else _class_images
    given = {subject: make(ablation, subject, data, work) for subject in ablation.subjects}
    rows: Rows = {}
    text = ""
    with _workers(processes, cores // processes) as call:
        seeds = [(seed, _jobs(call, ablation, seed, given, root, work, data)) for seed in ablation.seeds]
        for count, (_, jobs) in enumerate(seeds, 1):
            for title, result in jobs:
                figures = result()
                for step in ablation.steps if title != FROZEN else [0]:
                    _note(rows, ablation, (title, step), figures[f"step {step}"] if step else figures)
            text = table(ablation, rows, count)
            output.mkdir(parents=True, exist_ok=True)
            (output / f"{name}.md").write_text(text + "\n", encoding="utf-8")
            save_image(plot(ablation, rows), output / f"{name}.png")
    return text


Result = Callable[[], dict[str, Any]]


def _jobs(
    call: Callable[..., Result], ablation: Ablation, seed: int, given: dict[str, list[str]], root: Path, *folders: Path
) -> list[tuple[str, Result]]:
    """Return (row, its figures when they are asked for) of one seed, over all subjects."""
    jobs = []
    for subject, overrides in given.items():
        if ablation.pairs:
            jobs.append((FROZEN, call(_frozen, ablation, subject, seed, *folders)))
        for title, changes in ablation.runs.items():
            jobs.append((title, call(_trained, ablation, title, changes, subject, seed, overrides, root, *folders)))
    return jobs


@contextmanager
def _workers(processes: int, threads: int) -> Iterator[Callable[..., Result]]:
    """Give a way to call functions in other processes, or, for one process, here and only when the result is wanted."""
    if processes == 1:
        yield partial
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin_worker, (threads,))
    try:
        yield lambda function, *args: pool.submit(function, *args).result
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(threads: int) -> None:
    torch.set_num_threads(threads)


def _note(rows: Rows, ablation: Ablation, row: tuple[str, int], results: dict[str, Any]) -> None:
    for measure in ablation.measures:
        if measure not in results:
            raise UserError(f"there is no measure '{measure}'{nearest(measure, list(results))}")
        value = results[measure]
        value = value["mean"] if isinstance(value, dict) else value
        rows.setdefault(row, {}).setdefault(measure, []).append(value)


def _frozen(ablation: Ablation, subject: str, seed: int, work: Path, data: Path) -> dict[str, Any]:
    """Return the untaught editor's figures on the scenes of a subject and seed; measure them once."""
    path = work / "frozen" / f"{subject}-{seed}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not set(ablation.measures) <= set(known):
        words = tuple(ablation.pairs["source_words"])
        figures, _, _ = measure_subject(data / "editor.safetensors", subject, data, ablation.scenes, seed, words)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(plain({FROZEN: figures})[FROZEN], indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def _class_images(ablation: Ablation, subject: str, data: Path, work: Path) -> list[str]:
    """Make the frozen model's pictures of the subject's class; return the overrides that name the data."""
    word = SUBJECTS[subject].class_word
    folder = work / "class-images" / word
    checkpoint = read_checkpoint(data / "text-to-image.safetensors")
    generator = ImageGenerator.from_checkpoint(checkpoint)
    settings = TextSettings.of_checkpoint(checkpoint.metadata)
    make_class_images(generator, f"a {word}", folder, ablation.class_images, settings, seed=0, batch_size=25)
    return [
        f"dataset.instance={data / 'subjects' / subject}",
        f"dataset.class_images={folder}",
        f"dataset.class_word={word}",
    ]


def _pairs(ablation: Ablation, subject: str, data: Path, work: Path) -> list[str]:
    """Make the subject's pairs; return the overrides that name them."""
    folder = work / "pairs" / subject
    words = list(ablation.pairs["source_words"])
    given = ablation.pairs
    request = PairRequest(
        source=ModelSource(data / "editor.safetensors"),
        photos=(str(data / "subjects" / subject),),
        class_word=SUBJECTS[subject].class_word,
        source_words=tuple(words),
        output=folder,
        config=CONFIGS / "spriteworld" / "pairs.yaml",
        source_edits=tuple(given.get("source_edits") or ()),
        reg_photos=tuple(f"{word}={data / 'pictures' / word}" for word in words),
        num_reg=int(given["num_reg"]),
        reg_edits=tuple(given.get("reg_edits") or ()),
        subject_edits=tuple(given.get("subject_edits") or ()),
        num_subject_edits=given.get("num_subject_edits"),
        per_photo=int(given["per_photo"]),
        batch_size=25,
    )
    make_dataset(request)
    return [f"dataset.root={folder}"]


def _trained(
    ablation: Ablation,
    name: str,
    changes: list[str],
    subject: str,
    seed: int,
    given: list[str],
    root: Path,
    work: Path,
    data: Path,
) -> dict[str, Any]:
    """Return a run's figures by step; train and measure what is not there yet."""
    logs = work / "runs" / f"{subject}-{seed}-{name.replace(' ', '-')}"
    runs = sorted(logs.iterdir()) if logs.is_dir() else []
    steps = [f"step {step}" for step in ablation.steps]
    measured = [
        results
        for results in map(_results, runs)
        if all(step in results and set(ablation.measures) <= set(results[step]) for step in steps)
    ]
    if measured:
        return measured[0]
    last = max(ablation.steps)
    overrides = [*given, f"training.max_steps={last}", f"training.seed={seed}"]
    overrides += [f"data.params.seed={seed}", f"training.keep_at={ablation.steps}", "training.sheet_every=0"]
    config = anchored(load_training_config(root / ablation.config, [*overrides, *changes]), root)
    run = next((run for run in runs if finished(run)), None)
    begun = next((run for run in runs if (run / "checkpoints" / "last.ckpt").is_file()), None)
    if run is None:
        logger.info("training '%s' on %s, seed %d", name, subject, seed)
        run = train(config, subject, logs) if begun is None else train(_kept(begun, root), "", logs, resume=begun)
    if not finished(run):  # told to stop
        raise KeyboardInterrupt
    if ablation.suite:
        _by_suite(root / ablation.suite, run, subject, root)
    else:
        compare_subject(None, run, subject, data, ablation.scenes, seed)
    return _results(run)


def _results(run: Path) -> dict[str, Any]:
    """Return what was measured of a run, by step; nothing if nothing was."""
    file = run / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _kept(run: Path, root: Path) -> Any:
    return anchored(load_training_config(run / "config.yaml"), root)


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
    with replacing(run / "results.json") as temporary:
        temporary.write_text(json.dumps(means, indent=1), encoding="utf-8")


def table(ablation: Ablation, results: Rows, seeds: int) -> str:
    """Return mean and spread (standard deviation over subjects and seeds) of every run and step as Markdown.

    seeds: how many of the ablation's seeds are in ``found``.
    """
    runs = len(ablation.subjects) * seeds
    whole = "" if seeds == len(ablation.seeds) else f" of {len(ablation.seeds)} so far"
    lines = [
        f"Subjects: {', '.join(ablation.subjects)}; seeds: {seeds}{whole}. Mean ± standard deviation over {runs} "
        "trainings a row, "
        + (f"measured by {ablation.suite}." if ablation.suite else f"{ablation.scenes} fresh scenes a figure."),
        "",
        f"| run | steps | {' | '.join(ablation.measures)} |",
        "|---" * (len(ablation.measures) + 2) + "|",
    ]
    for (name, step), figures in results.items():
        cells = [_spread(figures[measure]) for measure in ablation.measures]
        lines.append(f"| {name} | {step or ''} | {' | '.join(cells)} |")
    if len(ablation.subjects) > 1:
        lines += ["", "By subject, over the seeds:", "", lines[2].replace("| steps |", "| steps | subject |"), lines[3]]
        lines[-1] += "---|"
        for (name, step), figures in results.items():
            for i, subject in enumerate(ablation.subjects):  # the figures of every seed are in the subjects' order
                cells = [_spread(figures[measure][i :: len(ablation.subjects)]) for measure in ablation.measures]
                lines.append(f"| {name} | {step or ''} | {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3g} ± {stdev(values):.2g}" if len(values) > 1 else f"{values[0]:.3g}"


def plot(ablation: Ablation, results: Rows, width: int = 560) -> Image.Image:
    """Return bars of every measure for the frozen editor and every run at its last step, the trainings as dots."""
    last = max(ablation.steps)
    shown = {name: step for name, step in results if step in (0, last)}
    names = list(shown)
    font, line = ImageFont.load_default(size=14), 22
    height = (len(names) + 2) * line
    picture = Image.new("RGB", (2 * width, -(-len(ablation.measures) // 2) * height), "white")
    pen = ImageDraw.Draw(picture)
    for k, measure in enumerate(ablation.measures):
        left, top = (k % 2) * width + 10, (k // 2) * height + 6
        pen.text((left, top), measure, (20, 20, 20), font)
        values = {name: results[(name, shown[name])][measure] for name in names}
        most = max(max(v) for v in values.values()) or 1.0
        for i, name in enumerate(names):
            y = top + (i + 1) * line
            pen.text((left, y), name, (60, 60, 60), font)
            zero, full = left + 190, width - 260
            pen.rectangle((zero, y + 2, zero + full * mean(values[name]) / most, y + line - 6), (150, 180, 220))
            for value in values[name]:
                x = zero + full * value / most
                pen.ellipse((x - 2, y + 6, x + 2, y + 10), (30, 60, 120))
            pen.text((zero + full + 6, y), f"{mean(values[name]):.3g}", (20, 20, 20), font)
    return picture
