"""A whole editing job: which pictures, which instructions, where the results go; batches, sweeps and recipes."""

from __future__ import annotations

import argparse
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.data import images
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import find_photos
from ldm.inference.auto_cfg import candidates_sheet, choose_scales, scale_grid, total_steps
from ldm.inference.editor import ImageEditor
from ldm.inference.masking import check_mask
from ldm.inference.recipe import Recipe
from ldm.inference.settings import EditSettings

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


def plan_job(
    patterns: list[str],
    instructions: list[str],
    output: str,
    settings: EditSettings,
    seed: int,
    num_samples: int = 1,
    sweep: tuple[list[float], list[float]] | None = None,
    mask: str | None = None,
    batch_size: int = 1,
    auto_cfg: bool = False,
) -> EditJob:
    """Check a job and lay out its results.

    One result goes to ``output`` if that names a file, otherwise into it as a folder; several need a folder, where
    they are called ``<photo>-<instruction>-<seed>.png``. auto_cfg: choose the scales, of the sweep's if there is one.
    Raises FileNotFoundError or ValueError before any work.
    """
    for name, text in (("--output", output), ("--mask", mask)):
        if text == "":
            raise ValueError(f"{name} is an empty name; give a path or leave it out")
    photos = find_photos(patterns)
    if any(not text.strip() for text in instructions):
        raise ValueError("the instruction is empty; say what to change, like --edit 'make it night'")
    for text in instructions:
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(f"the instruction {text!a} is no UTF-8 text")
    if num_samples < 1 or batch_size < 1:
        raise ValueError("--num-samples and --batch-size must be at least 1")
    _check_effects(settings, batch_size, len(photos) * len(instructions) * num_samples, bool(sweep or auto_cfg))
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; 0 or more is expected")
    for text, image in [(t, i) for t in (sweep or ([], []))[0] for i in sweep[1]]:
        replace(settings, text_scale=text, image_scale=image).checked()
    wanted = [(p, t, seed + i) for p in photos for t in instructions for i in range(num_samples)]
    place = Path(output)
    single_file = place.suffix != "" and not place.is_dir() and not output.endswith("/")
    if single_file and len(wanted) > 1:
        raise ValueError(f"{len(wanted)} results do not fit into the one file '{output}'; give a folder as --output")
    if single_file:
        outputs = [place]
    else:
        if len({p.name for p in photos}) < len(photos):
            raise ValueError("two photos have the same name, their results would too; edit their folders one by one")
        outputs = [place / name for name in _names(wanted)]
    for path in {p.parent: p for p in outputs}.values():
        images.check_writable(path)
    kind = images.picture_format(place) if single_file else "PNG"
    if mask and not sweep and kind not in LOSSLESS:
        raise ValueError(f"'{place}' would not keep what is outside the mask bit for bit; end its name in .png")
    read = [*photos, *([Path(mask)] if mask else [])]
    if mask and not Path(mask).is_file():
        raise FileNotFoundError(f"mask '{mask}' does not exist")
    sheets = [_sheet_beside(path) for path in outputs] if auto_cfg else []
    same = {p.resolve() for p in [*read, *outputs]} & {p.resolve() for p in sheets}
    same |= {p.resolve() for p in read} & {p.resolve() for p in outputs}
    if same:
        raise ValueError(f"the result would overwrite '{next(iter(same))}'; choose another --output")
    tasks = tuple(Task(*what, out) for what, out in zip(wanted, outputs, strict=True))
    masked = None if mask is None else Path(mask)
    if auto_cfg:
        grid = tuple(scale_grid(settings, *(sweep or ((), ()))))
        for text, image in grid:
            replace(settings, text_scale=text, image_scale=image).checked()
        return EditJob(tasks, settings.checked(), None, masked, 1, grid)
    table = (tuple(sweep[0]), tuple(sweep[1])) if sweep else None
    return EditJob(tasks, settings.checked(), table, masked, batch_size)


def _check_effects(settings: EditSettings, batch_size: int, results: int, several_scales: bool) -> None:
    """Raise ValueError for an option that would change nothing. several_scales: of a sweep or --auto-cfg."""
    if batch_size > 1 and several_scales:
        raise ValueError("--batch-size has no effect with a sweep or --auto-cfg, which edit one picture at a time")
    if batch_size > 1 and results == 1:
        raise ValueError("--batch-size has no effect on a single result")
    if settings.negative and settings.text_scale == settings.image_scale == 1 and not several_scales:
        raise ValueError("--negative has no effect where both scales are 1: nothing is guided; raise --cfg-text")


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

    A job of a single photo raises its ValueError instead.
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


def edit_pictures(args: argparse.Namespace) -> tuple[list[Path], int]:
    """Do what ``edit_cli.py``'s parsed command line asks for; return what ``run_job`` returns.

    Everything is checked, the checkpoint's header included, before a model is loaded. A progress bar goes to stderr.
    """
    checkpoint = read_checkpoint(args.ckpt)
    names = ("steps", "sampler", "spacing", "resolution", "keep_size", "guidance_interval", "negative")
    chosen = {"text_scale": args.cfg_text, "image_scale": args.cfg_image}
    chosen |= {name: getattr(args, name) for name in names}
    settings = EditSettings.of_checkpoint(checkpoint.metadata, **chosen)
    sweep = None
    if args.sweep_cfg_text or args.sweep_cfg_image:
        sweep = (args.sweep_cfg_text or [settings.text_scale], args.sweep_cfg_image or [settings.image_scale])
    plan = (args.input, args.edit, args.output, settings, args.seed, args.num_samples, sweep, args.mask)
    job = plan_job(*plan, batch_size=args.batch_size, auto_cfg=args.auto_cfg)
    editor = ImageEditor.from_checkpoint(
        checkpoint, args.config, args.vae_ckpt, args.weights, args.device, args.precision
    )
    with tqdm(total=job.total_steps, unit="step", disable=None) as bar:
        return run_job(editor, job, lambda: bar.update(1))


def _batches(job: EditJob, single: bool, mask: Image.Image | None) -> Iterator:
    """Yield (tasks, photos) of one working size, at most batch_size long; a ValueError for a photo that fails."""
    tasks: list[Task] = []
    photos: list[Image.Image] = []
    opened: tuple[Path, Image.Image] | None = None
    broken: Path | None = None
    limit = 1 if job.sweep or job.grid else job.batch_size
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
                yield ValueError(f"{task.photo}: {error}")
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
    found = choose_scales(editor, photo, task.instruction, job.settings, task.seed, job.grid, mask, progress)
    best = found[0].settings
    logger.info("%s: text scale %g, image scale %g", task.output.name, best.text_scale, best.image_scale)
    recipe = recipe_of(editor, task, replace(job, settings=best))
    images.save_image(found[0].picture, task.output, recipe.chunks())
    sheet = _sheet_beside(task.output)
    images.save_image(candidates_sheet(photo, task.instruction, found), sheet)
    return sheet


def recipe_of(editor: ImageEditor, task: Task, job: EditJob) -> Recipe:
    """Return the recipe of one result."""
    s = job.settings
    return Recipe(
        instruction=task.instruction,
        seed=task.seed,
        text_scale=s.text_scale,
        image_scale=s.image_scale,
        sampler=s.sampler,
        spacing=s.spacing,
        steps=s.steps,
        resolution=s.resolution,
        precision=editor.precision,
        checkpoint=Path(editor.checkpoint).name,
        checkpoint_hash=editor.checkpoint_hash,
        weights=editor.weights,
        vae_hash=editor.vae_hash,
        config=editor.config,
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
