"""A whole dataset of pairs: what is read, checked, planned, made."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.data.images import find_photos
from ldm.dataset_generation.gates import NOT_FINITE
from ldm.dataset_generation.maker import PairMaker
from ldm.dataset_generation.plan import (
    PlannedPair,
    plan_edits,
    plan_instance,
    plan_regularization,
    plan_round_trips,
    plan_subject_edits,
    readable,
    reg_folders,
)
from ldm.dataset_generation.request import PairRequest
from ldm.errors import UserError
from ldm.inference.editor import ImageEditor
from ldm.models.backbones import named_clip
from ldm.models.devices import choose_device

logger = logging.getLogger(__name__)

FEW_PHOTOS = 3


def rank_and_world() -> tuple[int, int]:
    """Return (rank, number of processes) as torchrun or srun say it; (0, 1) alone. Raises UserError for nonsense.

    A batch script without srun is alone, too: SLURM_PROCID and SLURM_NTASKS are set in it, SLURM_STEP_NUM_TASKS is not.
    """
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        place, number = os.environ.get(rank, ""), os.environ.get(world, "")
        if place and number:
            if not (place.isdecimal() and number.isdecimal() and int(place) < int(number)):
                raise UserError(f"{rank}={place} and {world}={number} in the environment do not fit together")
            return int(place), int(number)
    return 0, 1


def plan_dataset(request: PairRequest, resolution: int) -> list[PlannedPair]:
    """Return all pairs of a request. resolution: at which they are edited. Raises UserError for what cannot be."""
    photos = readable(find_photos(request.photos), resolution)
    words, seed = request.source_words, request.seed
    if len(photos) < FEW_PHOTOS:
        logger.warning("%d photo(s): three to five, or more, teach a subject better", len(photos))
    if len(words) > len(photos) * request.per_photo:
        logger.warning("%d source words for %d photos", len(words), len(photos))
    plan = plan_instance(photos, words, request.per_photo, seed)
    if request.subject_edits:
        number = request.subject_edit_pairs
        plan += plan_subject_edits(photos, request.class_word, request.subject_edits, number, seed)
    pictures = reg_folders(request.reg_photos, words, resolution)
    others = _class_photos(request, photos, pictures, resolution)
    bare = [word for word in words if word not in pictures]
    if request.num_reg and pictures:
        if bare:
            logger.info("no --reg-photos of %s: round trips take their place, their share each", ", ".join(bare))
        plan += plan_regularization(pictures, request.num_reg, seed, dict.fromkeys(bare, others))
    elif request.num_reg:
        plan += plan_round_trips(others, words, request.num_reg, seed)
    if request.reg_edits:
        shown = pictures or {request.class_word: others}
        plan += plan_edits(shown, request.reg_edits, request.reg_edit_pairs, seed)
    return plan


def _class_photos(
    request: PairRequest, photos: list[Path], pictures: dict[str, list[Path]], resolution: int
) -> list[Path]:
    """The class photos: those named, or else the subject's, with a warning where they have no effect."""
    if not request.class_photos:
        return photos
    if pictures and all(word in pictures for word in request.source_words):
        logger.warning("--class-photos has no effect: every source word has pictures of its own (--reg-photos)")
    elif not request.num_reg and (pictures or not request.reg_edits):
        logger.warning("--class-photos has no effect: no regularization pair is made from them (--num-reg 0)")
    return readable(find_photos(request.class_photos), resolution)


def make_dataset(request: PairRequest) -> tuple[Path, dict[str, Any] | None]:
    """Make the pairs; return the folder, and the manifest if every pair is there (other processes may still work).

    Raises UserError for what does not fit, and where no instance pair passes the gates.
    """
    rank, world = rank_and_world()
    checkpoint = read_checkpoint(request.source.ckpt)
    settings, gates = request.how(checkpoint.metadata)
    plan = plan_dataset(request, settings.resolution)
    clip = None if request.clip is None else named_clip(request.clip, choose_device(request.source.device))
    editor = ImageEditor.from_checkpoint(checkpoint, **request.source.options)
    batch_size, edits = request.batch_size, request.source_edits
    logger.info("%d pairs at %d pixels, %d steps an edit", len(plan), settings.resolution, settings.steps)
    maker = PairMaker(editor, request.class_word, request.output, settings, gates, batch_size, clip, edits)
    with tqdm(total=len(plan[rank::world]), unit="pair", disable=None) as bar:
        manifest = maker.run(plan, rank, world, bar.update)
    if manifest is not None:
        _check_result(manifest)
    return request.output, manifest


def _check_result(manifest: dict[str, Any]) -> None:
    """Warn of every pair that was set aside. Raises UserError if no instance pair is left."""
    for note in manifest["set_aside"]:
        logger.warning(
            "pair %s of %s (%s) was set aside: %s", note["id"], note["folder"], note["photo"], note["set_aside"]
        )
    if not any(pair["direction"] == "reverse" for pair in manifest["pairs"]):
        reason = next(note["set_aside"] for note in manifest["set_aside"] if note["direction"] == "reverse")
        advice = "another --cfg-text, --cfg-image or source word, and look at one with edit.sh"
        if reason == NOT_FINITE:
            advice = "--precision fp32 (or bf16 on a newer GPU)"
        raise UserError(f"no instance pair passed the gates ({reason}); try {advice}")
