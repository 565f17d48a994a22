"""What ``generate_dataset.py`` is asked for, and the settings of its edits and gates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import load_config
from ldm.dataset_generation.gates import Gates
from ldm.dataset_generation.plan import check_sentences, check_subject_sentences, check_words
from ldm.errors import UserError
from ldm.inference.settings import EditSettings
from ldm.models.build import ModelSource
from ldm.typed import settings, typed

FEW_EDITS = 10  # pairs of each further instruction, unless a number is given


@dataclass(frozen=True)
class PairConfig:
    """The two sections of a YAML file for pairs. settings: fields of ``EditSettings``; gates: of ``Gates``."""

    settings: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PairRequest:
    """The pairs of one subject.

    source: the frozen editor. photos: of the subject: files, folders or globs. class_word: what it is, like "dog".
    source_words: what it is to replace, like "wolf"; several take turns. output: the folder of the pairs.
    config: YAML with the edits' settings and the gates' thresholds. source_edits: edits of the inputs that reverse
    edits made ({word}: what they show). reg_photos: pictures of each source class, "WORD=FOLDER". class_photos: of the
    class, for words without such pictures (default: the photos). num_reg: regularization pairs. reg_edits,
    num_reg_edits: sentences of further regularization pairs, and how many pairs of all of them together (default ten
    of each). subject_edits, num_subject_edits: the same of instance pairs. per_photo: instance pairs for each photo
    and source word. clip: a CLIP's folder, for two more gates. settings: fields of ``EditSettings`` that are chosen,
    over the config's.

    Raises UserError for what makes no sense by itself.
    """

    source: ModelSource
    photos: tuple[str, ...]
    class_word: str
    source_words: tuple[str, ...]
    output: Path
    config: Path
    source_edits: tuple[str, ...] = ()
    reg_photos: tuple[str, ...] = ()
    class_photos: tuple[str, ...] = ()
    num_reg: int = 200
    reg_edits: tuple[str, ...] = ()
    num_reg_edits: int | None = None
    subject_edits: tuple[str, ...] = ()
    num_subject_edits: int | None = None
    per_photo: int = 1
    clip: str | None = None
    seed: int = 0
    batch_size: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_words(self.class_word, self.source_words)
        check_sentences("source edit", self.source_edits)
        check_sentences("regularization edit", self.reg_edits)
        check_subject_sentences(self.subject_edits)
        for kind, sentences in (("reg", self.reg_edits), ("subject", self.subject_edits)):
            if getattr(self, f"num_{kind}_edits") is not None and not sentences:
                raise UserError(f"--num-{kind}-edits needs --{kind}-edits: the sentences of those pairs")
        for name in ("num_reg", "per_photo", "batch_size", "num_reg_edits", "num_subject_edits"):
            value, least = getattr(self, name), 0 if name == "num_reg" else 1
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}; at least {least} is expected")
        if not 0 <= self.seed < 2**62:
            raise UserError(f"--seed is {self.seed}; 0 or more is expected")

    @property
    def reg_edit_pairs(self) -> int:
        """How many pairs the regularization edits have together."""
        return FEW_EDITS * len(self.reg_edits) if self.num_reg_edits is None else self.num_reg_edits

    @property
    def subject_edit_pairs(self) -> int:
        """How many pairs the subject's edits have together."""
        return FEW_EDITS * len(self.subject_edits) if self.num_subject_edits is None else self.num_subject_edits

    def how(self, metadata: Mapping[str, Any]) -> tuple[EditSettings, Gates]:
        """Return the settings of the edits, over what the checkpoint recommends, and the gates. Raises UserError."""
        config = settings(PairConfig, load_config(self.config), str(self.config))
        chosen = {**typed(EditSettings, config.settings, "settings"), **self.settings}
        return EditSettings.of_checkpoint(metadata, **chosen), settings(Gates, config.gates, "gates")
