"""What a user can mend: exceptions whose message is one line that says what was found and what to do.

A command prints such a line and exits with 2. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user gave cannot be used: the message says what was found, what was expected, what to do."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named is not there."""


class MissingPackageError(UserError, ImportError):
    """An optional package is needed and not installed: the message names the extra that brings it."""


class NotFiniteError(UserError, FloatingPointError):
    """A result holds NaN or infinity: the message says where, and which precision to take."""
