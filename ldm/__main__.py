"""The command ``instruct2dream``: its verbs are the project's scripts (``instruct2dream edit ...``)."""

from __future__ import annotations

import runpy
import sys

from ldm import cli
from ldm.cli import Parser
from ldm.errors import MissingPackageError
from ldm.project import SCRIPTS

# verb -> the script that does it, in scripts/
VERBS = {
    "edit": "edit_cli",
    "generate-dataset": "generate_dataset",
    "check-dataset": "check_dataset",
    "train": "train",
    "txt2img": "txt2img",
    "evaluate": "evaluate",
    "export": "export",
    "inspect": "inspect_checkpoint",
    "benchmark": "benchmark",
    "spriteworld": "spriteworld",
    "ablate": "ablate",
    "train-spriteworld": "train_spriteworld",
}


def script_parser(verb: str) -> Parser:
    """Return the command line of a verb, as its script builds it (nothing heavy is imported)."""
    return runpy.run_path(str(SCRIPTS / f"{VERBS[verb]}.py"))["parser"]()


def parser() -> Parser:
    """Return the command line of all verbs with their options, for help and shell completion."""
    whole = Parser("instruct2dream", "Edit pictures by sentences, and teach the editor a subject.", traceback=False)
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs (each has --help)")
    for verb in VERBS:
        one = script_parser(verb)
        about = " ".join((one.description or "").split())
        verbs.add_parser(verb, prog=one.prog, description=about, help=about, parents=[one], add_help=False)
    about = "Print what a shell evaluates to complete this command."
    verbs.add_parser("completion", prog="completion", description=about, help=about).add_argument(
        "shell", choices=("bash", "zsh", "tcsh")
    )
    return whole


def completion(shell: str) -> str:
    """Return what a shell evaluates to complete ``instruct2dream``. Raises MissingPackageError without shtab."""
    try:
        import shtab
    except ImportError as error:
        raise MissingPackageError("completion needs the package shtab: pip install shtab") from error
    return shtab.complete(parser(), shell=shell)


def _write_completion(shell: str) -> None:
    sys.stdout.write(f"{completion(shell)}\n")


def main() -> None:
    """Run the script of the verb that the command line names."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb not in VERBS:
        args = parser().parse_args(sys.argv[1:] or ["--help"])  # leaves for all but a completion
        cli.run(lambda: _write_completion(args.shell), "completion")
    path = SCRIPTS / f"{VERBS[verb]}.py"
    sys.argv = [str(path), *sys.argv[2:]]
    runpy.run_path(str(path), run_name="__main__")


if __name__ == "__main__":
    main()
