"""Which pairs a dataset is to have: every photo in reverse, and regularization pairs beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.data.images import check_aspect, find_photos, picture_size, working_copy
from ldm.data.instructions import IDENTIFIER, with_identifier
from ldm.errors import UserError
from ldm.typed import nearest

logger = logging.getLogger(__name__)

INSTANCE, REGULARIZATION = "training", "regularization"


@dataclass(frozen=True)
class PlannedPair:
    """One pair to make.

    direction: "reverse" (the photo is the edited side; its input is made), "forward" (the photo is the input; its
    edited side is made), "round trip" (a class photo is edited in reverse, and that forward again) or "edit" (as
    forward, by an ``instruction`` of its own, in which {identifier} may stand for what only training says).
    """

    folder: str
    id: str
    photo: Path
    direction: str
    source_word: str
    seed: int
    instruction: str = ""

    @property
    def prompt(self) -> str:
        """The instruction as the frozen editor reads it: without an identifier; "" where it has none of its own."""
        return with_identifier(self.instruction, "")


def check_words(class_word: str, source_words: Sequence[str]) -> None:
    """Raise UserError for empty words, or a source word that is the class word."""
    if not class_word.strip():
        raise UserError("the class word is empty; say what the subject is, like --class-word dog")
    if not source_words or any(not word.strip() for word in source_words):
        raise UserError("a source word is missing; name what the subject is to replace, like --source-words wolf")
    for word in source_words:
        if word.strip().lower() == class_word.strip().lower():
            raise UserError(
                f"the source word '{word}' is the class word; choose another class, such as a wolf for a dog"
            )
    if len(set(source_words)) < len(source_words):
        raise UserError(f"a source word is named twice: {', '.join(source_words)}")


def check_sentences(what: str, sentences: Sequence[str]) -> None:
    """Raise UserError for an empty sentence, or one with another {field} than {word}; ``what`` names its kind."""
    for text in sentences:
        if not text.strip() or "{" in text.replace("{word}", "") or "}" in text.replace("{word}", ""):
            raise UserError(f"{what} {text!r}: a sentence is expected, with no other field than {{word}}")


def check_subject_sentences(sentences: Sequence[str]) -> None:
    """Raise UserError for a sentence of the subject's edits without {word} or with another {field}."""
    for text in sentences:
        bare = text.replace("{word}", "")
        if "{word}" not in text or "{" in bare or "}" in bare:
            raise UserError(f"subject edit {text!r}: a sentence is expected, with {{word}} for the subject's name")


def readable(photos: Sequence[Path], resolution: int) -> list[Path]:
    """Return the photos that can be read and edited, with a warning for each that cannot.

    resolution: pixels of the longer side at which they will be edited. Raises UserError if none can be read.
    """
    if not photos:
        raise UserError("there is no picture to read; name photos, or a folder of them")
    good, bad = [], []
    for path in photos:
        try:
            working_copy(path, resolution)
        except UserError as error:
            bad.append(str(error))
            continue
        try:
            check_aspect(picture_size(path))
            good.append(path)
        except UserError as error:
            bad.append(f"'{path}': {error}")
    if not good:
        raise UserError(f"none of the {len(photos)} pictures can be read: {bad[0]}")
    for line in bad:
        logger.warning("%s (left out)", line)
    return good


def reg_folders(given: Sequence[str], source_words: Sequence[str], resolution: int) -> dict[str, list[Path]]:
    """Return the pictures of each source word from ``WORD=FOLDER`` texts (or one FOLDER for one word).

    resolution: see ``readable``. Raises UserError for a word that is no source word.
    """
    photos: dict[str, list[Path]] = {}
    for text in given:
        word, sign, folder = text.partition("=")
        if not sign:
            if len(source_words) != 1 or len(given) != 1:
                raise UserError(f"'{text}': with several source words say whose pictures these are, WORD=FOLDER")
            word, folder = source_words[0], text
        if word not in source_words:
            raise UserError(f"'{word}' in '{text}' is no source word{nearest(word, list(source_words))}")
        photos.setdefault(word, []).extend(readable(find_photos([folder]), resolution))
    return photos


def plan_instance(photos: Sequence[Path], source_words: Sequence[str], per_photo: int, seed: int) -> list[PlannedPair]:
    """Return ``per_photo`` reverse edits of every photo for every source word."""
    wanted = [(p, w, k) for p in photos for w in source_words for k in range(per_photo)]
    return [
        PlannedPair(INSTANCE, f"{i:04d}", photo, "reverse", word, seed + i) for i, (photo, word, _) in enumerate(wanted)
    ]


def plan_regularization(
    pictures: Mapping[str, Sequence[Path]],
    number: int,
    seed: int,
    round_trips: Mapping[str, Sequence[Path]] | None = None,
) -> list[PlannedPair]:
    """Return ``number`` forward pairs from pictures of each source word's class: the classes in turn, then their
    pictures, each time with another seed.

    round_trips: source words that have no such pictures, with the class photos whose round trips take their turns.
    """
    shown = {**pictures, **(round_trips or {})}
    words, plan = list(shown), []
    for i in range(number):
        turn, which = divmod(i, len(words))
        word = words[which]
        photo = shown[word][turn % len(shown[word])]
        direction = "forward" if word in pictures else "round trip"
        plan.append(PlannedPair(REGULARIZATION, f"{i:04d}", photo, direction, word, seed + 100_000 + i))
    return plan


def plan_round_trips(photos: Sequence[Path], source_words: Sequence[str], number: int, seed: int) -> list[PlannedPair]:
    """Return ``number`` regularization pairs whose inputs, too, are made: class photos edited in reverse."""
    plan = []
    for i in range(number):
        turn, place = divmod(i, len(photos))
        word = source_words[(place + turn) % len(source_words)]
        plan.append(PlannedPair(REGULARIZATION, f"{i:04d}", photos[place], "round trip", word, seed + 100_000 + i))
    return plan


def plan_edits(
    pictures: Mapping[str, Sequence[Path]], instructions: Sequence[str], number: int, seed: int
) -> list[PlannedPair]:
    """Return ``number`` regularization pairs that ask for other edits: the instructions in turn, each over
    the classes in turn, then their pictures; {word} stands for what a picture shows.

    Raises UserError for an instruction that is empty or has another {field}.
    """
    check_sentences("regularization edit", instructions)
    words, plan = list(pictures), []
    for i, which, place in _turns(number, len(instructions)):
        word = words[place % len(words)]
        photo = pictures[word][place // len(words) % len(pictures[word])]
        text = " ".join(instructions[which].replace("{word}", word).split())
        plan.append(PlannedPair(REGULARIZATION, f"edit-{i:04d}", photo, "edit", word, seed + 200_000 + i, text))
    return plan


def plan_subject_edits(
    photos: Sequence[Path], class_word: str, instructions: Sequence[str], number: int, seed: int
) -> list[PlannedPair]:
    """Return ``number`` instance pairs that ask for other edits of the subject by its name: the instructions in turn,
    each over the photos in turn; {word} stands for the subject, "{identifier} class word" in training.

    Raises UserError for an instruction without {word} or with another {field}.
    """
    check_subject_sentences(instructions)
    plan = []
    for i, which, place in _turns(number, len(instructions)):
        text = " ".join(instructions[which].replace("{word}", f"{IDENTIFIER} {class_word}").split())
        photo = photos[place % len(photos)]
        plan.append(PlannedPair(INSTANCE, f"edit-{i:04d}", photo, "edit", class_word, seed + 300_000 + i, text))
    return plan


def _turns(number: int, sentences: int) -> Iterator[tuple[int, int, int]]:
    """Yield (which pair, its sentence, its picture's place in the line): so that each sentence meets each picture."""
    for i in range(number):
        turn, which = divmod(i, sentences)
        yield i, which, which + turn
