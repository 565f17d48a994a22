"""PairMaker: the frozen editor run in reverse over photos of the subject, and forward over other pictures."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data import images
from ldm.data.contact_sheet import contact_sheet
from ldm.data.images import small
from ldm.data.instructions import REGULARIZATION_TEMPLATES, REVERSE_TEMPLATE, fill
from ldm.data.pairs import MANIFEST, SIDES
from ldm.dataset_generation.gates import ANOTHER, NOT_FINITE, UNLIKE, Gates, Verdict, judge
from ldm.dataset_generation.plan import INSTANCE, REGULARIZATION, Planned, check_sentences
from ldm.files import picture_hash, replacing
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import EditSettings

logger = logging.getLogger(__name__)

MAX_SCALE = 100.0
NOTES = ".progress"  # one note for each finished pair: what makes stopping and going on possible
SHEET = "contact-sheet.png"


@dataclass
class _Made:
    """A picture that passed, or the last one that did not (None: it was not finite), with how it was made."""

    image: Image.Image | None
    record: dict[str, Any]
    reason: str


class PairMaker:
    """Makes the pairs of a plan, in batches, each until it passes the gates or its attempts are used up.

    A pair depends on its photo, sentences, seed, settings and checkpoint alone: stopped and started again, or shared
    between processes, the same files come out.
    """

    def __init__(
        self,
        editor: ImageEditor,
        class_word: str,
        output: Path,
        settings: EditSettings,
        gates: Gates,
        batch_size: int = 1,
        clip: Any = None,
        source_edits: Sequence[str] = (),
    ):
        """output: the dataset's folder; clip: a ``Clip`` for its two gates.

        source_edits: what is done, one after the other, to the input that an instance pair's reverse edit made ({word}:
        what it shows), if it passes the gates; the gates judge what comes out again. They take away what such an input
        kept of the subject, like its collar. Round trips stay as they are.
        Raises ValueError if one is no sentence or has another {field}, or if the folder holds pairs made in another
        way.
        """
        check_sentences("source edit", source_edits)
        self.editor, self.class_word, self.output = editor, class_word, output
        self.settings, self.gates, self.batch_size = settings.checked(), gates, batch_size
        self.key = {
            "class_word": class_word,
            "checkpoint": Path(editor.checkpoint).name,
            "checkpoint_hash": editor.checkpoint_hash,
            "weights": editor.weights,
            "vae_hash": editor.vae_hash,
            "precision": editor.precision,
            "settings": asdict(self.settings),
            "gates": asdict(gates),
        }
        self.clip, self.source_edits = clip, tuple(source_edits)
        if source_edits:
            self.key["source_edits"] = list(source_edits)
        if clip is not None:
            self.key["clip"] = Path(clip.name).name
        self._hashes: dict[Path, str] = {}
        self._check_output()

    def _check_output(self) -> None:
        path = self.output / NOTES / "settings.json"
        wanted = json.loads(json.dumps(self.key))
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in {**wanted, **found} if found.get(name, "") != wanted.get(name, "")]
            if other:
                raise ValueError(
                    f"'{self.output}' holds pairs made with another {', '.join(other)}; choose another --output, "
                    "or delete it to make them anew"
                )
        elif any((self.output / folder).is_dir() for folder in (INSTANCE, REGULARIZATION)):
            raise ValueError(f"'{self.output}' holds pairs that were not made here; choose another --output")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_json(path, wanted)

    def run(
        self, plan: Sequence[Planned], rank: int = 0, world: int = 1, progress: Callable[[int], None] | None = None
    ) -> dict[str, Any] | None:
        """Make this process' share of the plan; return the manifest if the whole plan is done, else None.

        progress: called with the number of pairs just finished (those of an earlier run first).
        """
        notes = {path.name for path in (self.output / NOTES).glob("*.json")} - {"settings.json"}
        more = notes - {self._note_path(pair).name for pair in plan}
        if more:
            raise ValueError(
                f"'{self.output}' holds {len(more)} more pairs than are asked for; choose another --output or delete it"
            )
        share, there = list(plan)[rank::world], self._pictures()
        missing = [pair for pair in share if self._note(pair, there) is None]
        gone = [pair.id for pair in missing if self._note_path(pair).is_file()]
        if gone:
            logger.info("a picture of pair %s is gone: made anew, as it was", ", ".join(gone))
        if progress is not None:
            progress(len(share) - len(missing))
        for batch in self._batches(missing):
            self._make(batch)
            if progress is not None:
                progress(len(batch))
        there = self._pictures()
        notes = [self._note(pair, there) for pair in plan]
        if any(note is None for note in notes):
            return None
        return self._finish(notes)

    def _note_path(self, pair: Planned) -> Path:
        return self.output / NOTES / f"{pair.folder}-{pair.id}.json"

    def _pictures(self) -> set[tuple[str, str]]:
        """The pictures that are there for training: (folder, name without its ending)."""
        files = (path for name in (INSTANCE, REGULARIZATION) for path in (self.output / name).glob("*_[01].*"))
        return {(path.parent.name, path.stem) for path in files if path.suffix.lower() in images.SUFFIXES}

    def _note(self, pair: Planned, there: set[tuple[str, str]]) -> dict[str, Any] | None:
        """What is known of a finished pair; None for one that is to be made, also where a picture of it is gone."""
        path = self._note_path(pair)
        if not path.is_file():
            return None
        note = json.loads(path.read_text(encoding="utf-8"))
        said = [note["photo_hash"], note["seed"], note["source_word"], note["direction"], note.get("instruction", "")]
        same = said == [self._hash(pair.photo), pair.seed, pair.source_word, pair.direction, pair.instruction]
        if not same:
            raise ValueError(
                f"'{self.output}' was begun from other photos, source words, seeds or sentences (pair {pair.id} of "
                f"{pair.folder}); choose another --output, or delete it"
            )
        whole = all((pair.folder, f"{pair.id}_{side}") in there for side in SIDES)
        return note if whole or "set_aside" in note else None

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = picture_hash(path)
        return self._hashes[path]

    def _batches(self, plan: list[Planned]) -> Iterator[list[tuple[Planned, Image.Image]]]:
        """Yield pairs whose photos have one working size, at most batch_size of them."""
        batch: list[tuple[Planned, Image.Image]] = []
        for pair in plan:
            photo = small(images.open_rgb(pair.photo), self.settings.resolution)
            if batch and (len(batch) >= self.batch_size or photo.size != batch[0][1].size):
                yield batch
                batch = []
            batch.append((pair, photo))
        if batch:
            yield batch

    def _make(self, batch: list[tuple[Planned, Image.Image]]) -> None:
        photos = [photo for _, photo in batch]
        first = [pair.said or self._sentence(pair, pair.direction != "forward") for pair, _ in batch]
        words = [None if pair.instruction else self._words(pair, pair.direction != "forward") for pair, _ in batch]
        further = [self._further(pair) for pair, _ in batch]
        made = self._edited(photos, first, [pair.seed for pair, _ in batch], words, further)
        again = [i for i, (pair, _) in enumerate(batch) if pair.direction == "round trip" and not made[i].reason]
        seconds = self._edited(
            [made[i].image for i in again],
            [self._sentence(batch[i][0], False) for i in again],
            [batch[i][0].seed + 1_000_000 for i in again],
            [self._words(batch[i][0], False) for i in again],
        )
        answers = dict(zip(again, seconds, strict=True))
        for i, (pair, _) in enumerate(batch):
            self._write(pair, made[i], answers.get(i))

    def _sentence(self, pair: Planned, reverse: bool) -> str:
        template = REVERSE_TEMPLATE if reverse else REGULARIZATION_TEMPLATES[0]
        return fill(template, class_word=self.class_word, source_word=pair.source_word)

    def _further(self, pair: Planned) -> list[str]:
        """What is done to the input that an instance pair's reverse edit made; nothing to any other picture."""
        if pair.direction != "reverse":
            return []
        return [" ".join(text.replace("{word}", pair.source_word).split()) for text in self.source_edits]

    def _words(self, pair: Planned, reverse: bool) -> tuple[str, str]:
        words = (pair.source_word, self.class_word)
        return words[::-1] if reverse else words

    def _edited(
        self,
        photos: list[Image.Image],
        sentences: list[str],
        seeds: list[int],
        words: list[tuple[str, str] | None],
        further: list[list[str]] | None = None,
    ) -> list[_Made]:
        """Edit pictures of one size, those that a gate refuses again with other seeds and scales.

        words: what each shows before and after; None where anything may change, also all of the background.
        further: the sentences by which each result that passes is edited on, at the settings' scales, and judged again.
        """
        done: list[_Made | None] = [None] * len(photos)
        scales = [(self.settings.text_scale, self.settings.image_scale)] * len(photos)
        todo = list(range(len(photos)))
        for attempt in range(self.gates.attempts):
            refused = []
            for text, image in dict.fromkeys(scales[i] for i in todo):
                group = [i for i in todo if scales[i] == (text, image)]
                settings = replace(self.settings, text_scale=text, image_scale=image)
                chosen = [seeds[i] + 10_000_000 * attempt for i in group]
                each = [photos[i] for i in group], [sentences[i] for i in group], chosen
                results = self._results(*each, settings)
                verdicts = [self._judged(photos[i], r, words[i]) for i, r in zip(group, results, strict=True)]
                more = [further[i] if further and not v.reason else [] for i, v in zip(group, verdicts, strict=True)]
                results = self._edited_on(results, more, chosen)
                for i, seed, result, verdict, then in zip(group, chosen, results, verdicts, more, strict=True):
                    verdict = self._judged(photos[i], result, words[i]) if then else verdict
                    record = {
                        "instruction": sentences[i],
                        "seed": seed,
                        "text_scale": round(text, 4),
                        "image_scale": round(image, 4),
                        "attempt": attempt + 1,
                        "gates": verdict.figures,
                    }
                    done[i] = _Made(result, record, verdict.reason)
                    if verdict.reason:
                        refused.append(i)
                        scales[i] = self._other_scales(text, image, verdict.reason)
            todo = sorted(refused)
            if not todo:
                break
        return [made for made in done if made is not None]

    def _edited_on(
        self, pictures: list[Image.Image | None], sentences: list[list[str]], seeds: list[int]
    ) -> list[Image.Image | None]:
        """Edit pictures by sentences of their own, one after the other; None stays None."""
        pictures = list(pictures)
        for turn in range(max(map(len, sentences), default=0)):
            which = [
                i for i, (p, t) in enumerate(zip(pictures, sentences, strict=True)) if p is not None and turn < len(t)
            ]
            each = [pictures[i] for i in which], [sentences[i][turn] for i in which], [seeds[i] for i in which]
            for i, result in zip(which, self._results(*each, self.settings) if which else [], strict=True):
                pictures[i] = result
        return pictures

    def _results(
        self, photos: list[Image.Image], sentences: list[str], seeds: list[int], settings: EditSettings
    ) -> list[Image.Image | None]:
        """Edit pictures together; where that is not finite, one by one, with None for each that is not."""
        try:
            return self.editor.edit(photos, sentences, settings, seeds)
        except FloatingPointError as error:
            if len(photos) == 1:
                logger.warning("“%s”, seed %d: %s", sentences[0], seeds[0], error)
                return [None]
        alone = [self._results([p], [t], [k], settings) for p, t, k in zip(photos, sentences, seeds, strict=True)]
        return [result for results in alone for result in results]

    def _judged(self, before: Image.Image, after: Image.Image | None, words: tuple[str, str] | None) -> Verdict:
        if after is None:
            return Verdict(NOT_FINITE)
        if words is None:
            return judge(before, after, replace(self.gates, destroyed=1.0))
        return judge(before, after, self.gates, self.clip, words)

    def _other_scales(self, text: float, image: float, reason: str) -> tuple[float, float]:
        if reason in ("unchanged", ANOTHER):
            return min(MAX_SCALE, text * self.gates.step), image
        if reason in ("destroyed", UNLIKE):
            return text, min(MAX_SCALE, image * self.gates.step)
        return text, image

    def _write(self, pair: Planned, first: _Made, second: _Made | None) -> None:
        note = {
            "id": pair.id,
            "folder": pair.folder,
            "direction": pair.direction,
            "photo": pair.photo.name,
            "photo_hash": self._hash(pair.photo),
            "source_word": pair.source_word,
            "seed": pair.seed,
            "made": [first.record] + ([second.record] if second else []),
        }
        if pair.instruction:
            note["instruction"] = pair.instruction
        reason = first.reason or (second.reason if second else "")
        if reason:
            note["set_aside"] = reason
        else:
            folder = self.output / pair.folder
            folder.mkdir(parents=True, exist_ok=True)
            as_taken = {"reverse": "1", "forward": "0", "edit": "0"}.get(pair.direction)
            ending = None if as_taken is None else _ending(pair.photo)
            if ending:
                _copy(pair.photo, folder / f"{pair.id}_{as_taken}{ending}")
            elif as_taken is not None:
                images.save_image(images.open_rgb(pair.photo), folder / f"{pair.id}_{as_taken}.png")
                note["photo_saved_as"] = "PNG: training does not read the photo's own format"
            made = {"reverse": "0", "forward": "1", "edit": "1", "round trip": "0"}[pair.direction]
            images.save_image(first.image, folder / f"{pair.id}_{made}.png")
            if second is not None:
                images.save_image(second.image, folder / f"{pair.id}_1.png")
        _write_json(self._note_path(pair), note)

    def _finish(self, notes: list[dict[str, Any]]) -> dict[str, Any]:
        manifest = {
            "version": 1,
            **self.key,
            "source_words": list(dict.fromkeys(n["source_word"] for n in notes if n["direction"] != "edit")),
            "pairs": [note for note in notes if "set_aside" not in note],
            "set_aside": [note for note in notes if "set_aside" in note],
        }
        _write_json(self.output / MANIFEST, manifest)
        for folder in (INSTANCE, REGULARIZATION):
            sheet = sheet_of(self.output, [pair for pair in manifest["pairs"] if pair["folder"] == folder])
            if sheet is not None:
                images.save_image(sheet, self.output / f"{folder}-{SHEET}")
        return manifest


def sheet_of(output: Path, notes: list[dict[str, Any]], limit: int = 32, columns: int = 4) -> Image.Image | None:
    """Return a sheet of pairs, input and edited side by side, several to a row; None for no pairs.

    A picture that is gone leaves a hole.
    """
    if not notes:
        return None
    rows: list[list[Image.Image | None]] = []
    for k, note in enumerate(notes[:limit]):
        if k % columns == 0:
            rows.append([])
        sides = [next((output / note["folder"]).glob(f"{note['id']}_{side}.*"), None) for side in SIDES]
        rows[-1] += [None if path is None else images.open_rgb(path) for path in sides]
    shown = f"the first {limit} of {len(notes)}" if len(notes) > limit else f"{len(notes)}"
    title = f"{shown} pairs of {notes[0]['folder']}/: input, edited"
    return contact_sheet(rows, column_labels=["input", "edited"] * columns, title=title, cell=128)


def _ending(path: Path) -> str | None:
    """The photo's own ending, or its format's where the ending is none that training looks for; None if neither is."""
    if path.suffix.lower() in images.SUFFIXES:
        return path.suffix.lower()
    with Image.open(path) as image:
        ending = f".{image.format.lower()}"
    return ending if ending in images.SUFFIXES else None


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
