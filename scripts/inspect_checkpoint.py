"""Say what a checkpoint holds, and which of the configs it fits. Nothing in the file is run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm import cli  # noqa: E402


def main() -> int:
    p = cli.Parser(prog="inspect_checkpoint.py", description=__doc__)
    p.add_argument("file", help=".ckpt, .safetensors or a diffusers folder")
    p.add_argument("--configs", type=Path, nargs="*", help="YAML files to compare with; default: all in configs/")
    p.add_argument("--keys", action="store_true", help="list every key that a config misses or has no use for")
    args = p.parse_args()
    from ldm.checkpoint.inspect import describe, fits, misfits
    from ldm.checkpoint.read import read_checkpoint

    checkpoint = read_checkpoint(args.file)
    print(describe(checkpoint))
    for path in args.configs or sorted((ROOT / "configs").rglob("*.yaml")):
        verdict = fits(checkpoint, path)
        if verdict is not None:
            shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            print(f"  {'fits' if verdict[0] else 'does not fit'} {shown}{': ' + verdict[1] if verdict[1] else ''}")
            for line in misfits(checkpoint, path) if args.keys else []:
                print(f"    {line}")
    return 0


if __name__ == "__main__":
    cli.run(main, "inspect_checkpoint.py")
