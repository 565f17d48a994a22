"""Say what a checkpoint holds, and which of the configs it fits. Nothing in the file is run."""

from pathlib import Path

from ldm import cli
from ldm.project import CONFIGS, shown


def parser() -> cli.Parser:
    p = cli.Parser(prog="inspect_checkpoint.py", description=__doc__)
    p.add_argument("file", help=".ckpt, .safetensors or a diffusers folder")
    p.add_argument("--configs", type=Path, nargs="*", help="YAML files to compare with; default: all in configs/")
    p.add_argument("--keys", action="store_true", help="list every key that a config misses or has no use for")
    return p


def main() -> int:
    args = parser().parse_args()
    from ldm.checkpoint.inspect import describe, fits, misfits
    from ldm.checkpoint.read import read_checkpoint

    checkpoint = read_checkpoint(args.file)
    print(describe(checkpoint))
    for path in args.configs or sorted(CONFIGS.rglob("*.yaml")):
        verdict = fits(checkpoint, path)
        if verdict is not None:
            fit, remarks = verdict
            print(f"  {'fits' if fit else 'does not fit'} {shown(path)}{': ' + remarks if remarks else ''}")
            for line in misfits(checkpoint, path) if args.keys else []:
                print(f"    {line}")
    return 0


if __name__ == "__main__":
    cli.run(main, "inspect_checkpoint.py")
