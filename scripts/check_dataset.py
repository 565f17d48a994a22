"""Look over pairs before training: files, sizes, duplicates, alignment, identifier, and what the model sees."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm import cli


def parse() -> argparse.Namespace:
    p = cli.Parser(prog="check_dataset.py", description=__doc__)
    p.add_argument("folder", type=Path, help="what generate_dataset.sh made, or a folder of pairs")
    p.add_argument("--identifier", default="sks")
    p.add_argument("--class-word", help="what the subject is; default: the manifest's")
    p.add_argument("--source-word", help="what it replaces; default: the manifest's")
    p.add_argument("--size", type=int, default=256, help="pixels that training sees")
    p.add_argument("--sheet", type=Path, help="where the sheet goes; default: FOLDER/training-view.png")
    return p.parse_args()


def main() -> int:
    args = parse()
    from ldm.data.check import check_dataset

    lines, errors = check_dataset(args)
    print("\n".join(lines))
    return 2 if errors else 0


if __name__ == "__main__":
    cli.run(main, "check_dataset.py")
