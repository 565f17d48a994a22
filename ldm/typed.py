"""Settings with types: what a config says becomes a dataclass, or one line that names the place and the mend."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError

S = TypeVar("S")


# What a value of a type is called in a message, and the types that it may have.
KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("words (in quotes, if they look like something else)", (str,)),
    list: ("a list", (list, tuple)),
    tuple: ("a list", (list, tuple)),
    dict: ("names and values", (dict,)),
}


def plain(node: Any) -> Any:
    """Return a config's node as plain containers with its interpolations resolved; any other value as it is.

    Raises UserError for an interpolation that leads nowhere.
    """
    if not OmegaConf.is_config(node):
        return node
    try:
        return OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {first_line(error)}") from error


def settings(cls: type[S], node: Any, where: str) -> S:
    """Return the settings (a dataclass that checks its own ranges) that a config's node describes.

    where: the node's place as a message names it, like "training". Raises UserError for an unknown key (naming the
    nearest known one), a missing one, a value of another type, and for what the dataclass itself refuses.
    """
    given = typed(cls, node, where)
    needed = [f.name for f in fields(cls) if _is_needed(f) and f.name not in given]  # type: ignore[arg-type]
    if needed:
        raise UserError(f"{where} lacks {', '.join(needed)}")
    return cls(**given)


def typed(cls: type, node: Any, where: str) -> dict[str, Any]:
    """Return the fields of a dataclass that a node gives, each of its declared type; raises as ``settings`` does."""
    node = plain(node)
    if node is None:
        return {}
    check_keys(node, [f.name for f in fields(cls)], where)
    hints = typing.get_type_hints(cls)
    return {key: _converted(hints[key], value, f"{where}.{key}") for key, value in node.items()}


def check_keys(node: Any, known: Iterable[str], where: str) -> None:
    """Raise UserError if a node is no mapping, or has a key that is not known (naming the nearest known one)."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where} should hold names and values, found {node!r}"[:200])
    known = list(known)
    for key in node:
        if key not in known:
            raise UserError(f"unknown key '{where}.{key}'{nearest(str(key), known)}")


def check_type(hint: Any, value: Any, where: str) -> None:
    """Raise UserError for a value that is not of a declared type, as far as that is plain (numbers, words, lists)."""
    if not _fits(hint, value):
        wanted = " or ".join(dict.fromkeys(_called(part) for part in _alternatives(hint)))
        raise UserError(
            f"{where} is {value!r}; {wanted} {'are' if wanted.startswith('names') else 'is'} expected"[:300]
        )


def _converted(hint: Any, value: Any, where: str) -> Any:
    """Return a value as its type has it (lists where tuples are declared become those). Raises UserError."""
    check_type(hint, value, where)
    if isinstance(value, list) and any(_plain(part) is tuple for part in _alternatives(hint)):
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if type(value) is int and float in [_plain(part) for part in _alternatives(hint)]:
        return float(value) if int not in [_plain(part) for part in _alternatives(hint)] else value
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _plain(hint: Any) -> Any:
    """The type behind a hint: list of list[int], tuple of Sequence[str] (which YAML writes as a list)."""
    origin = typing.get_origin(hint) or hint
    if origin is Mapping:
        return dict
    return list if origin is Sequence else origin


def _fits(hint: Any, value: Any) -> bool:
    return any(_fits_one(part, value) for part in _alternatives(hint))


def _fits_one(hint: Any, value: Any) -> bool:
    if hint in (None, type(None)):
        return value is None
    kind = _plain(hint)
    if kind not in KINDS:
        return True  # what is no plain type is checked by whoever takes it
    if not isinstance(value, KINDS[kind][1]) or (kind is not bool and isinstance(value, bool)):
        return False
    inner = typing.get_args(hint)
    if kind is tuple and inner and Ellipsis not in inner:
        return len(value) == len(inner) and all(_fits(part, v) for part, v in zip(inner, value, strict=True))
    if kind in (list, tuple) and inner:
        return all(_fits(inner[0], v) for v in value)
    return True


def _called(hint: Any) -> str:
    if hint in (None, type(None)):
        return "null"
    kind, inner = _plain(hint), [part for part in typing.get_args(hint) if part is not Ellipsis]
    name = KINDS[kind][0] if kind in KINDS else getattr(kind, "__name__", str(kind))
    if kind in (list, tuple) and inner and _plain(inner[0]) in KINDS:
        several = {int: "whole numbers", float: "numbers", str: "words"}.get(_plain(inner[0]), "such values")
        return f"a list of {len(inner)} {several}" if kind is tuple and len(inner) > 1 else f"a list of {several}"
    return name


def _is_needed(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def nearest(word: str, known: list[str]) -> str:
    """Return the tail of an error message: the known word most like ``word``, or all of them."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


def first_line(error: Exception) -> str:
    """Return what an exception of a library says, as one short line."""
    name = "" if isinstance(error, TypeError) else f"{type(error).__name__}: "
    return name + " ".join(str(error).split())[:200]
