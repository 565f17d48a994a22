"""Instructions for personalising, from templates with {identifier}, {class_word} and {source_word}."""

from __future__ import annotations

import string
from collections.abc import Sequence

from ldm.errors import UserError

FIELDS = ("identifier", "class_word", "source_word")

# Upstream's single line first; the paraphrases say the same.
INSTANCE_TEMPLATES = ("replace the {source_word} with a {identifier} {class_word}",)
REGULARIZATION_TEMPLATES = ("replace the {source_word} with a {class_word}",)
IDENTIFIER = "{identifier}"  # in a pair's own instruction: what training calls the subject
REVERSE_TEMPLATE = "replace the {class_word} with a {source_word}"


def check_templates(templates: Sequence[str], needs: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the templates; raise UserError for none, an unknown {field}, or one that lacks a field it needs."""
    if isinstance(templates, str) or not templates:
        raise UserError(f"templates must be a list of at least one sentence, found {templates!r}")
    for template in templates:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except (ValueError, TypeError) as error:
            raise UserError(f"template {template!r} cannot be read: {error}") from error
        unknown = sorted(names - set(FIELDS))
        if unknown:
            raise UserError(f"template '{template}' has the unknown field {{{unknown[0]}}}; known: {', '.join(FIELDS)}")
        for name in needs:
            if name not in names:
                raise UserError(f"template '{template}' lacks {{{name}}}")
    return tuple(templates)


def fill(template: str, identifier: str = "", class_word: str = "", source_word: str = "") -> str:
    """Return the sentence, single-spaced, so that an empty identifier leaves no gap.

    >>> fill(INSTANCE_TEMPLATES[0], "sks", "dog", "wolf")
    'replace the wolf with a sks dog'
    """
    text = template.format(identifier=identifier, class_word=class_word, source_word=source_word)
    return " ".join(text.split())


def with_identifier(instruction: str, identifier: str) -> str:
    """Return a pair's own instruction with the identifier in the place of ``{identifier}``; other braces stay.

    >>> with_identifier("make the {identifier} dog red", "sks"), with_identifier("make the {identifier} dog red", "")
    ('make the sks dog red', 'make the dog red')
    """
    if IDENTIFIER not in instruction:
        return instruction
    return " ".join(instruction.replace(IDENTIFIER, identifier).split())
