"""What every command line shares: a user's mistake is one clear line and exit code 2, a bug of ours a traceback."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback as tracebacks
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from ldm.errors import UserError

MEMORY = "this machine's memory is not enough; try a smaller size (like --resolution) or --batch-size"
GPU_MEMORY = "the GPU's memory is not enough; try a smaller --resolution or --batch-size, or --device cpu"
NOISY = (
    "transformers",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "PIL",
    "fsspec",
    "torch",
)


class Parser(argparse.ArgumentParser):
    """A command line without abbreviations, whose mistakes are one line: no usage above it."""

    def __init__(self, prog: str = "", description: str | None = None, traceback: bool = True, **options: Any):
        """prog: the script's name; description: usually its docstring; traceback: offer --traceback; options: what
        argparse takes besides."""
        options.setdefault("allow_abbrev", False)
        super().__init__(prog=prog, description=description, **options)
        if traceback and not options.get("parents"):
            self.add_argument("--traceback", action="store_true", help="show where a one-line error comes from")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line in one line and leave with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help tells all options)\n")

    def alone(self, args: argparse.Namespace, name: str) -> None:
        """Refuse (exit 2) everything beside an option, if it is given, that does something of its own."""
        free = (name, "traceback")
        given = [key for key, value in vars(args).items() if key not in free and value != self.get_default(key)]
        other = next((key for key in given if getattr(args, key) != []), None)
        if getattr(args, name) and other is not None:
            self.error(f"--{name.replace('_', '-')} stands alone; --{other.replace('_', '-')} has no effect beside it")


def run(main: Callable[[], int | None], name: str) -> None:
    """Call ``main`` and leave with its exit code: 0 done, 2 for a mistake that the message explains, 130 on Ctrl-C.

    A ``UserError``, or an error of the system such as a full disk, is one line; with ``--traceback`` on the command
    line its traceback stands above it. Any other exception goes on.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|transformers|kornia)\..*")
    try:
        sys.exit(main() or 0)
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        if "--traceback" in sys.argv:
            tracebacks.print_exc()
        print(f"{name}: error: {message}", file=sys.stderr)
        sys.exit(2)


def message_of(error: Exception) -> str | None:
    """Return the line that says what went wrong, or None for a bug of ours, whose traceback is to be seen."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for it
        return GPU_MEMORY
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        return MEMORY  # PyTorch gives no other sign of it on a CPU
    if isinstance(error, (UserError, OSError)):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def yes_or_no(text: str) -> bool:
    """Parse "true" or "false" (also yes/no, 1/0) for argparse."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return known[text.lower()]


def numbers(text: str) -> list[float]:
    """Parse numbers with commas between them for argparse, like "5,7.5,10"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers like 5,7.5,10") from None


def interval(text: str) -> tuple[float, float]:
    """Parse two numbers "LOW,HIGH" for argparse."""
    values = numbers(text)
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form LOW,HIGH")
    return values[0], values[1]
