"""PairMaker: the frozen editor run in reverse over photos of the subject, and forward over other pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.images import working_copy
from ldm.data.instructions import REGULARIZATION_TEMPLATES, REVERSE_TEMPLATE, fill
from ldm.dataset_generation.gates import ANOTHER, NOT_FINITE, UNLIKE, Gates, Verdict, judge
from ldm.dataset_generation.plan import PlannedPair, check_sentences
from ldm.dataset_generation.store import PairStore
from ldm.inference.editor import ImageEditor
from ldm.inference.settings import MAX_SCALE, EditSettings

logger = logging.getLogger(__name__)


@dataclass
class _Attempt:
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
        Raises UserError if one is no sentence or has another {field}, or if the folder holds pairs made in another
        way.
        """
        check_sentences("source edit", source_edits)
        self.editor, self.class_word = editor, class_word
        self.settings, self.gates, self.batch_size = settings, gates, batch_size
        self.clip, self.source_edits = clip, tuple(source_edits)
        self.store = PairStore(output, self._key())

    def _key(self) -> dict[str, Any]:
        """How the pairs are made, as the manifest tells it."""
        made_by = self.editor.provenance
        key: dict[str, Any] = {
            "class_word": self.class_word,
            "checkpoint": made_by.file,
            "checkpoint_hash": made_by.checkpoint_hash,
            "weights": made_by.weights,
            "vae_hash": made_by.vae_hash,
            "precision": made_by.precision,
            "settings": {**asdict(self.settings), "spacing": self.settings.noise_spacing},
            "gates": asdict(self.gates),
        }
        if self.source_edits:
            key["source_edits"] = list(self.source_edits)
        if self.clip is not None:
            key["clip"] = Path(self.clip.name).name
        return key

    def run(
        self, plan: Sequence[PlannedPair], rank: int = 0, world: int = 1, progress: Callable[[int], None] | None = None
    ) -> dict[str, Any] | None:
        """Make this process' share of the plan; return the manifest if the whole plan is done, else None.

        progress: called with the number of pairs just finished (those of an earlier run first).
        """
        self.store.check_plan(plan)
        share = list(plan)[rank::world]
        missing = self.store.missing(share)
        if progress is not None:
            progress(len(share) - len(missing))
        for batch in self._batches(missing):
            self._make(batch)
            if progress is not None:
                progress(len(batch))
        notes = self.store.finished(plan)
        return None if notes is None else self.store.finish(notes)

    def _batches(self, plan: list[PlannedPair]) -> Iterator[list[tuple[PlannedPair, Image.Image]]]:
        """Yield pairs whose photos have one working size, at most batch_size of them."""
        batch: list[tuple[PlannedPair, Image.Image]] = []
        for pair in plan:
            photo = working_copy(pair.photo, self.settings.resolution)
            if batch and (len(batch) >= self.batch_size or photo.size != batch[0][1].size):
                yield batch
                batch = []
            batch.append((pair, photo))
        if batch:
            yield batch

    def _make(self, batch: list[tuple[PlannedPair, Image.Image]]) -> None:
        photos = [photo for _, photo in batch]
        first = [pair.prompt or self._sentence(pair, pair.direction != "forward") for pair, _ in batch]
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
            results = [made[i], *([answers[i]] if i in answers else [])]
            reason = next((result.reason for result in results if result.reason), "")
            self.store.keep(pair, [result.record for result in results], [r.image for r in results], reason)

    def _sentence(self, pair: PlannedPair, reverse: bool) -> str:
        template = REVERSE_TEMPLATE if reverse else REGULARIZATION_TEMPLATES[0]
        return fill(template, class_word=self.class_word, source_word=pair.source_word)

    def _further(self, pair: PlannedPair) -> list[str]:
        """What is done to the input that an instance pair's reverse edit made; nothing to any other picture."""
        if pair.direction != "reverse":
            return []
        return [" ".join(text.replace("{word}", pair.source_word).split()) for text in self.source_edits]

    def _words(self, pair: PlannedPair, reverse: bool) -> tuple[str, str]:
        words = (pair.source_word, self.class_word)
        return words[::-1] if reverse else words

    def _edited(
        self,
        photos: list[Image.Image],
        sentences: list[str],
        seeds: list[int],
        words: list[tuple[str, str] | None],
        further: list[list[str]] | None = None,
    ) -> list[_Attempt]:
        """Edit pictures of one size, those that a gate refuses again with other seeds and scales.

        words: what each shows before and after; None where anything may change, also all of the background.
        further: the sentences by which each result that passes is edited on, at the settings' scales, and judged again.
        """
        done: list[_Attempt | None] = [None] * len(photos)
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
                    done[i] = _Attempt(result, record, verdict.reason)
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
