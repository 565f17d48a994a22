"""What every command line shares: one clear line and exit code 2 for a user's mistake, never a traceback."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

import torch

MEMORY = "this machine's memory is not enough; try a smaller size (like --resolution) or --batch-size"


class Parser(argparse.ArgumentParser):
    """A command line without abbreviations, whose mistakes are one line: no usage above it."""

    def __init__(self, prog: str, description: str | None):
        """prog: the script's name; description: usually its docstring."""
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line in one line and leave with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (--help tells all options)\n")

    def alone(self, args: argparse.Namespace, name: str) -> None:
        """Refuse (exit 2) everything beside an option, if it is given, that does something of its own."""
        given = [key for key, value in vars(args).items() if key != name and value != self.get_default(key)]
        other = next((key for key in given if getattr(args, key) != []), None)
        if getattr(args, name) and other is not None:
            self.error(f"--{name.replace('_', '-')} stands alone; --{other.replace('_', '-')} has no effect beside it")


def run(main: Callable[[], int | None], name: str) -> None:
    """Call ``main`` and leave with its exit code: 0 done, 2 for a mistake that the message explains, 130 on Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):  # a file's name need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
    for noisy in (
        "transformers",
        "pytorch_lightning",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "PIL",
        "fsspec",
        "torch",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|transformers|kornia)\..*")
    try:
        sys.exit(main() or 0)
    except torch.OutOfMemoryError:
        message = "the GPU's memory is not enough; try a smaller --resolution or --batch-size, or --device cpu"
    except MemoryError:
        message = MEMORY
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the only sign that PyTorch gives of it on a CPU
            raise
        message = MEMORY
    except (ValueError, FileNotFoundError, FloatingPointError, ImportError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
    except KeyboardInterrupt:
        print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)
    print(f"{name}: error: {message}", file=sys.stderr)
    sys.exit(2)


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
