"""A whole editing job: which pictures, which instructions, where the results go; batches, sweeps and recipes."""

from __future__ import annotations

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.data import images
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import find_photos
from ldm.errors import MissingFileError, UserError
from ldm.files import check_writable
from ldm.inference.auto_cfg import candidates_sheet, choose_scales, scale_grid, total_steps
from ldm.inference.editor import ImageEditor
from ldm.inference.masking import check_mask
from ldm.inference.recipe import Recipe
from ldm.inference.settings import EditSettings
from ldm.models.build import ModelSource

logger = logging.getLogger(__name__)

LOSSLESS = ("PNG", "BMP", "TIFF")


@dataclass(frozen=True)
class Task:
    """One result: a photo, an instruction, a seed, and where it goes."""

    photo: Path
    instruction: str
    seed: int
    output: Path


@dataclass(frozen=True)
class EditJob:
    """Everything that is asked for. Make it with ``plan_job``, which checks it before a model is loaded."""

    tasks: tuple[Task, ...]
    settings: EditSettings
    sweep: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    mask: Path | None = None
    batch_size: int = 1
    grid: tuple[tuple[float, float], ...] = ()  # pairs of scales that --auto-cfg tries

    @property
    def total_steps(self) -> int:
        """The number of sampling steps in all, for a progress bar."""
        if self.grid:
            return len(self.tasks) * total_steps(self.settings, self.grid)
        cells = len(self.sweep[0]) * len(self.sweep[1]) if self.sweep else 1
        return len(self.tasks) * cells * self.settings.steps


@dataclass(frozen=True)
class EditRequest:
    """What ``edit_cli.py`` is asked for.

    source: the model. input: photos, folders or globs. edit: instructions, each applied to every photo by itself.
    output: a file for one result, a folder for several. seed: of the first result of each photo and edit.
    num_samples: results of each, seeds counting up. batch_size: results at once. mask: a picture of the photo's size,
    light where to edit. sweep_cfg_text, sweep_cfg_image: scales of one labelled sheet. auto_cfg: try scales (those of
    the sweep, if there is one) and take what the model finds best. settings: fields of ``EditSettings`` that are
    chosen, over what the checkpoint recommends.

    Raises UserError for what makes no sense by itself.
    """

    source: ModelSource
    input: tuple[str, ...]
    edit: tuple[str, ...]
    output: str
    seed: int
    num_samples: int = 1
    batch_size: int = 1
    mask: str | None = None
    sweep_cfg_text: tuple[float, ...] = ()
    sweep_cfg_image: tuple[float, ...] = ()
    auto_cfg: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, text in (("--output", self.output), ("--mask", self.mask)):
            if text == "":
                raise UserError(f"{name} is an empty name; give a path or leave it out")
        for text in self.edit:
            if not text.strip():
                raise UserError("the instruction is empty; say what to change, like --edit 'make it night'")
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise UserError(f"the instruction {text!a} is no UTF-8 text")
        if self.num_samples < 1 or self.batch_size < 1:
            raise UserError("--num-samples and --batch-size must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; 0 or more is expected")

    def sweep(self, settings: EditSettings) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return the sheet's text and image scales, None without a sweep; those not given are the settings'."""
        if not (self.sweep_cfg_text or self.sweep_cfg_image):
            return None
        return self.sweep_cfg_text or (settings.text_scale,), self.sweep_cfg_image or (settings.image_scale,)


def edit(request: EditRequest) -> tuple[list[Path], int]:
    """Do what is asked for; return the files written and the number of photos that could not be edited.

    Everything is checked, the checkpoint's header included, before a model is loaded. A progress bar goes to stderr.
    Raises UserError.
    """
    checkpoint = read_checkpoint(request.source.ckpt)
    job = plan_job(request, EditSettings.of_checkpoint(checkpoint.metadata, **request.settings))
    editor = ImageEditor.from_checkpoint(checkpoint, **request.source.options)
    with tqdm(total=job.total_steps, unit="step", disable=None) as bar:
        return run_job(editor, job, lambda: bar.update(1))


def plan_job(request: EditRequest, settings: EditSettings) -> EditJob:
    """Lay out a request's results and check that they can be written.

    One result goes to ``output`` if that names a file, otherwise into it as a folder; several need a folder, where
    they are called ``<photo>-<instruction>-<seed>.png``. Raises UserError before any work.
    """
    photos, sweep = find_photos(request.input), request.sweep(settings)
    wanted = [(p, t, request.seed + i) for p in photos for t in request.edit for i in range(request.num_samples)]
    several = sweep is not None or request.auto_cfg
    batch_size = _with_effect(request.batch_size, settings, len(wanted), several)
    outputs = _outputs(request.output, photos, wanted)
    mask = _mask_of(request, outputs, sweep is not None)
    sheets = [_sheet_beside(path) for path in outputs] if request.auto_cfg else []
    read = [*photos, *([mask] if mask else [])]
    same = {p.resolve() for p in [*read, *outputs]} & {p.resolve() for p in sheets}
    same |= {p.resolve() for p in read} & {p.resolve() for p in outputs}
    if same:
        raise UserError(f"the result would overwrite '{next(iter(same))}'; choose another --output")
    tasks = tuple(Task(*what, out) for what, out in zip(wanted, outputs, strict=True))
    grid = tuple(scale_grid(settings, *(sweep or ((), ())))) if request.auto_cfg else ()
    for text, image in grid or itertools.product(*(sweep or ((), ()))):
        replace(settings, text_scale=text, image_scale=image)  # refuses what cannot be
    return EditJob(tasks, settings, None if grid else sweep, mask, batch_size, grid)


def _outputs(output: str, photos: list[Path], wanted: list[tuple[Path, str, int]]) -> list[Path]:
    """Return where each result goes. Raises UserError if it could not be written there."""
    place = Path(output)
    if place.suffix != "" and not place.is_dir() and not output.endswith("/"):
        if len(wanted) > 1:
            raise UserError(f"{len(wanted)} results do not fit into the one file '{output}'; give a folder as --output")
        images.picture_format(place)
        outputs = [place]
    else:
        if len({p.name for p in photos}) < len(photos):
            raise UserError("two photos have the same name, their results would too; edit their folders one by one")
        outputs = [place / name for name in _names(wanted)]
    for path in {p.parent: p for p in outputs}.values():
        check_writable(path)
    return outputs


def _mask_of(request: EditRequest, outputs: list[Path], is_sheet: bool) -> Path | None:
    """Return the mask's path. Raises UserError if it is not there, or the result would not keep what is outside."""
    if request.mask is None:
        return None
    if not is_sheet and images.picture_format(outputs[0]) not in LOSSLESS:
        raise UserError(f"'{outputs[0]}' would not keep what is outside the mask bit for bit; end its name in .png")
    if not Path(request.mask).is_file():
        raise MissingFileError(f"mask '{request.mask}' does not exist")
    return Path(request.mask)


def _with_effect(batch_size: int, settings: EditSettings, results: int, several_scales: bool) -> int:
    """Warn of options that change nothing; return the batch size that is left. several_scales: a sweep, --auto-cfg."""
    if settings.negative and settings.text_scale == settings.image_scale == 1 and not several_scales:
        logger.warning("--negative has no effect where both scales are 1: nothing is guided; raise --cfg-text")
    if batch_size > 1 and several_scales:
        logger.warning("--batch-size has no effect with a sweep or --auto-cfg, which edit one picture at a time")
        return 1
    if batch_size > 1 and results == 1:
        logger.warning("--batch-size has no effect on a single result")
    return batch_size


def _sheet_beside(output: Path) -> Path:
    """Return where the sheet of all scales that --auto-cfg tried goes."""
    return output.with_name(f"{output.stem}-scales.png")


def _names(wanted: list[tuple[Path, str, int]]) -> list[str]:
    """Return one file name per result; those that would be equal are numbered."""
    names: list[str] = []
    stems = Counter(photo.stem for photo in dict.fromkeys(photo for photo, _, _ in wanted))
    for photo, instruction, seed in wanted:
        slug = re.sub(r"[^a-z0-9]+", "-", instruction.lower()).strip("-")[:48].strip("-") or "edit"
        stem = photo.stem if stems[photo.stem] == 1 else f"{photo.stem}-{photo.suffix[1:]}"
        plain, n = f"{stem}-{slug}-{seed}", 1
        name = plain
        while f"{name}.png" in names:
            n += 1
            name = f"{plain}-{n}"
        names.append(f"{name}.png")
    return names


def run_job(editor: ImageEditor, job: EditJob, progress: Callable[[], None] | None = None) -> tuple[list[Path], int]:
    """Do the job; return the files written and the number of photos that could not be edited (each is logged).

    A job of a single photo raises its UserError instead.
    """
    written, failed = [], 0
    mask = None if job.mask is None else images.open_rgb(job.mask)
    single = len({task.photo for task in job.tasks}) == 1
    for batch in _batches(job, single, mask):
        if isinstance(batch, ValueError):
            logger.warning("%s (left out)", batch)
            failed += 1
            continue
        tasks, photos = batch
        if job.sweep:
            sheet = _sweep_sheet(editor, job, tasks[0], photos[0], mask, progress)
            recipe = recipe_of(editor, tasks[0], job).chunks(text_scale=job.sweep[0], image_scale=job.sweep[1])
            images.save_image(sheet, tasks[0].output, recipe)
        elif job.grid:
            written.append(_edit_by_choice(editor, job, tasks[0], photos[0], mask, progress))
        else:
            _edit_batch(editor, job, tasks, photos, mask, progress)
        written += [task.output for task in tasks]
    return written, failed


def _batches(job: EditJob, single: bool, mask: Image.Image | None) -> Iterator:
    """Yield (tasks, photos) of one working size, at most batch_size long; a UserError for a photo that fails."""
    tasks: list[Task] = []
    photos: list[Image.Image] = []
    opened: tuple[Path, Image.Image] | None = None
    broken: Path | None = None
    limit = job.batch_size
    for task in job.tasks:
        if task.photo == broken:
            continue
        if opened is None or opened[0] != task.photo:
            try:
                photo = images.open_rgb(task.photo)
                images.check_aspect(photo.size)
                check_mask(mask, photo.size)
                opened = (task.photo, photo)
            except ValueError as error:
                if single:
                    raise
                broken = task.photo
                yield UserError(f"{task.photo}: {error}")
                continue
        photo = opened[1]
        if tasks and (len(tasks) >= limit or photo.size != photos[0].size):
            yield tasks, photos
            tasks, photos = [], []
        tasks.append(task)
        photos.append(photo)
    if tasks:
        yield tasks, photos


def _edit_batch(editor, job, tasks, photos, mask, progress) -> None:
    instructions, seeds = [task.instruction for task in tasks], [task.seed for task in tasks]
    results = editor.edit(photos, instructions, job.settings, seeds, mask, progress)
    for task, result in zip(tasks, results, strict=True):
        images.save_image(result, task.output, recipe_of(editor, task, job).chunks())


def _edit_by_choice(editor, job, task, photo, mask, progress) -> Path:
    """Edit with the scales that suit best; write the result, and beside it the sheet of all that was tried."""
    candidates = choose_scales(editor, photo, task.instruction, job.settings, task.seed, job.grid, mask, progress)
    best = candidates[0].settings
    logger.info("%s: text scale %g, image scale %g", task.output.name, best.text_scale, best.image_scale)
    recipe = recipe_of(editor, task, replace(job, settings=best))
    images.save_image(candidates[0].picture, task.output, recipe.chunks())
    sheet = _sheet_beside(task.output)
    images.save_image(candidates_sheet(photo, task.instruction, candidates), sheet)
    return sheet


def recipe_of(editor: ImageEditor, task: Task, job: EditJob) -> Recipe:
    """Return the recipe of one result."""
    s, made_by = job.settings, editor.provenance
    return Recipe(
        instruction=task.instruction,
        seed=task.seed,
        text_scale=s.text_scale,
        image_scale=s.image_scale,
        sampler=s.sampler,
        spacing=s.noise_spacing,
        steps=s.steps,
        resolution=s.resolution,
        precision=made_by.precision,
        checkpoint=made_by.file,
        checkpoint_hash=made_by.checkpoint_hash,
        weights=made_by.weights,
        vae_hash=made_by.vae_hash,
        config=made_by.config,
        input=task.photo.name,
        negative=s.negative,
        guidance_interval=s.guidance_interval,
        keep_size=s.keep_size,
        mask="" if job.mask is None else job.mask.name,
    )


def _sweep_sheet(editor, job, task, photo, mask, progress) -> Image.Image:
    """Return one photo edited under every pair of scales: text scales down, image scales across."""
    texts, pictures = job.sweep
    rows = []
    for text in texts:
        row = [photo] if not rows else [None]
        for picture in pictures:
            settings = replace(job.settings, text_scale=text, image_scale=picture)
            row += editor.edit(photo, task.instruction, settings, [task.seed], mask, progress)
        rows.append(row)
    title = f"“{task.instruction}”  seed {task.seed}, {job.settings.sampler}, {job.settings.steps} steps"
    columns = ["input", *(f"image {value:g}" for value in pictures)]
    return contact_sheet(rows, [f"text {value:g}" for value in texts], columns, title)
