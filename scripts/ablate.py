"""Train and measure every variant that a YAML file names, over subjects and seeds; keep a table and a plot."""

import shlex
import sys
from pathlib import Path

from ldm import cli
from ldm.project import LOGS, ROOT


def parser() -> cli.Parser:
    p = cli.Parser(prog="ablate.py", description=__doc__)
    p.add_argument("ablations", type=Path, help="YAML, such as configs/spriteworld/experiments/ablations.yaml")
    p.add_argument("--output", type=Path, default=ROOT / "docs" / "results", help="folder for the table and the plot")
    p.add_argument("--work", type=Path, help="data and runs: kept, gone on with; default: logs/<YAML's name>")
    p.add_argument("--processes", type=int, default=1, help="trainings at once, on as many parts of the CPU's cores")
    return p


def main() -> int:
    args = parser().parse_args()
    from ldm.spriteworld.experiments.ablation import Folders, read_ablation, run_ablation

    name = args.ablations.stem
    folders = Folders(ROOT, args.work or LOGS / name)
    command = shlex.join(["scripts/ablate.py", *sys.argv[1:]])
    print(run_ablation(read_ablation(args.ablations), folders, args.output, name, command, args.processes))
    return 0


if __name__ == "__main__":
    cli.run(main, "ablate.py")
