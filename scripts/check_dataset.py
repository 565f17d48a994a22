"""Look over pairs before training: files, sizes, duplicates, alignment, identifier, and what the model sees."""

from pathlib import Path

from ldm import cli


def parser() -> cli.Parser:
    p = cli.Parser(prog="check_dataset.py", description=__doc__)
    p.add_argument("folder", type=Path, help="what generate_dataset.sh made, or a folder of pairs")
    p.add_argument("--identifier", default="sks", help="the rare word for the subject (default sks)")
    p.add_argument("--class-word", help="what the subject is; default: the manifest's")
    p.add_argument("--source-word", help="what it replaces; default: the manifest's")
    p.add_argument("--size", type=int, default=256, help="pixels that training sees")
    p.add_argument("--sheet", type=Path, help="where the sheet goes; default: FOLDER/training-view.png")
    return p


def main() -> int:
    args = parser().parse_args()
    from ldm.data.check import CheckRequest, check_dataset

    names = ("folder", "identifier", "class_word", "source_word", "size", "sheet")
    lines, errors = check_dataset(CheckRequest(**{name: getattr(args, name) for name in names}))
    print("\n".join(lines))
    return 2 if errors else 0


if __name__ == "__main__":
    cli.run(main, "check_dataset.py")
