"""A whole dataset of pairs, as ``generate_dataset.py`` asks for it: what is read, checked, planned, made."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from ldm.checkpoint.read import read_checkpoint
from ldm.config import load_config, nearest
from ldm.data.images import find_photos
from ldm.dataset_generation.gates import NOT_FINITE, Gates
from ldm.dataset_generation.maker import PairMaker
from ldm.dataset_generation.plan import (
    Planned,
    check_sentences,
    check_words,
    plan_edits,
    plan_instance,
    plan_regularization,
    plan_round_trips,
    plan_subject_edits,
    readable,
)
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings
from ldm.models.backbones import named_clip
from ldm.models.devices import choose_device

logger = logging.getLogger(__name__)

FEW_PHOTOS = 3
FEW_EDITS = 10  # pairs of each further instruction, unless a number is given


def process_place() -> tuple[int, int]:
    """Return (rank, number of processes) as torchrun or SLURM say it; (0, 1) alone. Raises ValueError for nonsense."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if rank in os.environ and world in os.environ:
            place, number = int(os.environ[rank]), int(os.environ[world])
            if not 0 <= place < number:
                raise ValueError(f"{rank}={place} and {world}={number} in the environment do not fit together")
            return place, number
    return 0, 1


def reg_folders(given: list[str] | None, source_words: list[str]) -> dict[str, list[Path]]:
    """Return the pictures of each source word from ``WORD=FOLDER`` arguments (or one FOLDER for one word).

    Raises ValueError for a word that is no source word.
    """
    found: dict[str, list[Path]] = {}
    for text in given or []:
        word, sign, folder = text.partition("=")
        if not sign:
            if len(source_words) != 1 or len(given) != 1:
                raise ValueError(f"'{text}': with several source words say whose pictures these are, WORD=FOLDER")
            word, folder = source_words[0], text
        if word not in source_words:
            raise ValueError(f"'{word}' in '{text}' is no source word{nearest(word, source_words)}")
        pictures, bad = readable(find_photos([folder]))
        _report(bad)
        found.setdefault(word, []).extend(pictures)
    return found


def plan_dataset(args: argparse.Namespace) -> list[Planned]:
    """Return the whole plan of a parsed command line. Raises FileNotFoundError or ValueError for what is wrong."""
    check_words(args.class_word, args.source_words)
    check_sentences("source edit", args.source_edits or ())
    for name in ("reg", "subject"):
        if getattr(args, f"num_{name}_edits") is not None and not getattr(args, f"{name}_edits"):
            raise ValueError(f"--num-{name}-edits needs --{name}-edits: the sentences of those pairs")
    for name in ("num_reg", "per_photo", "batch_size", "num_reg_edits", "num_subject_edits"):
        least = 0 if name == "num_reg" else 1
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; at least {least} is expected")
    if not 0 <= args.seed < 2**62:
        raise ValueError(f"--seed is {args.seed}; 0 or more is expected")
    photos, bad = readable(find_photos(args.photos))
    _report(bad)
    if len(photos) < FEW_PHOTOS:
        logger.warning("%d photo(s): three to five, or more, teach a subject better", len(photos))
    if len(args.source_words) > len(photos) * args.per_photo:
        logger.warning("%d source words for %d photos", len(args.source_words), len(photos))
    plan = plan_instance(photos, args.source_words, args.per_photo, args.seed)
    if args.subject_edits:
        number = _number(args.num_subject_edits, args.subject_edits)
        plan += plan_subject_edits(photos, args.class_word, args.subject_edits, number, args.seed)
    pictures = reg_folders(args.reg_photos, args.source_words)
    others = _class_photos(args, photos, pictures)
    bare = [word for word in args.source_words if word not in pictures]
    if args.num_reg and pictures:
        if bare:
            logger.info("no --reg-photos of %s: round trips take their place, their share each", ", ".join(bare))
        plan += plan_regularization(pictures, args.num_reg, args.seed, dict.fromkeys(bare, others))
    elif args.num_reg:
        plan += plan_round_trips(others, args.source_words, args.num_reg, args.seed)
    if args.reg_edits:
        shown = pictures or {args.class_word: others}
        plan += plan_edits(shown, args.reg_edits, _number(args.num_reg_edits, args.reg_edits), args.seed)
    return plan


def _number(given: int | None, sentences: list[str]) -> int:
    return FEW_EDITS * len(sentences) if given is None else given


def _class_photos(args: argparse.Namespace, photos: list[Path], pictures: dict[str, list[Path]]) -> list[Path]:
    """The class photos: --class-photos, or else the subject's. Raises ValueError where they would have no effect."""
    if not args.class_photos:
        return photos
    if pictures and all(word in pictures for word in args.source_words):
        raise ValueError("--class-photos has no effect: every source word has pictures of its own (--reg-photos)")
    if not args.num_reg and (pictures or not args.reg_edits):
        raise ValueError("--class-photos has no effect: no regularization pair is made from them (--num-reg 0)")
    others, bad = readable(find_photos(args.class_photos))
    _report(bad)
    return others


def make_dataset(args: argparse.Namespace) -> tuple[Path, dict[str, Any] | None]:
    """Do what the command line asks for; return the folder, and the manifest if every pair is there."""
    rank, world = process_place()
    plan = plan_dataset(args)
    checkpoint = read_checkpoint(args.ckpt)
    settings, gates = _settings(args, checkpoint.metadata)
    clip = None if args.clip is None else named_clip(args.clip, choose_device(args.device))
    editor = ImageEditor.from_checkpoint(checkpoint, None, args.vae_ckpt, args.weights, args.device, args.precision)
    maker = PairMaker(
        editor, args.class_word, Path(args.output), settings, gates, args.batch_size, clip, args.source_edits or ()
    )
    with tqdm(total=len(plan[rank::world]), unit="pair", disable=None) as bar:
        manifest = maker.run(plan, rank, world, bar.update)
    if manifest is not None:
        for note in manifest["set_aside"]:
            logger.warning(
                "pair %s of %s (%s) was set aside: %s", note["id"], note["folder"], note["photo"], note["set_aside"]
            )
        if not any(pair["direction"] == "reverse" for pair in manifest["pairs"]):
            reason = next(note["set_aside"] for note in manifest["set_aside"] if note["direction"] == "reverse")
            advice = "another --cfg-text, --cfg-image or source word, and look at one with edit.sh"
            if reason == NOT_FINITE:
                advice = "--precision fp32 (or bf16 on a newer GPU)"
            raise ValueError(f"no instance pair passed the gates ({reason}); try {advice}")
    return Path(args.output), manifest


def _settings(args: argparse.Namespace, metadata: dict[str, Any]) -> tuple[EditSettings, Gates]:
    config = OmegaConf.to_container(load_config(args.config), resolve=True)
    unknown = set(config) - {"settings", "gates"}
    if unknown:
        raise ValueError(f"unknown key '{sorted(unknown)[0]}' in {args.config}; known: settings, gates")
    known = {"gates": [f.name for f in fields(Gates)], "settings": [f.name for f in fields(EditSettings)]}
    for section, names in known.items():
        if not isinstance(config.get(section) or {}, dict):
            raise ValueError(f"'{section}' in {args.config} must be a mapping, found {config[section]!r}")
        for key in config.get(section) or {}:
            if key not in names:
                raise ValueError(f"unknown key '{section}.{key}' in {args.config}{nearest(key, names)}")
    chosen = {
        "text_scale": args.cfg_text,
        "image_scale": args.cfg_image,
        "steps": args.steps,
        "sampler": args.sampler,
        "resolution": args.resolution,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    chosen = {**(config.get("settings") or {}), **chosen}
    for key, value in chosen.items():
        own = getattr(EditSettings(), key)
        if key == "guidance_interval":
            chosen[key] = _interval(value)
        elif not _is_like(value, own):
            raise ValueError(f"settings.{key} is {value!r}; something like {own!r} is expected")
    settings = EditSettings.of_checkpoint(metadata, **chosen)
    settings.checked()
    return settings, Gates(**(config.get("gates") or {}))


def _interval(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(_is_like(number, 0.0) for number in value):
        raise ValueError(f"settings.guidance_interval is {value!r}; two noise levels [low, high] or null are expected")
    return float(value[0]), float(value[1])


def _is_like(value: Any, own: Any) -> bool:
    if isinstance(own, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(own)


def _report(bad: list[str]) -> None:
    for line in bad:
        logger.warning("%s (left out)", line)
