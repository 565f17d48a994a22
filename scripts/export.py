"""Export a checkpoint for others: NAME.safetensors (fp16, published names), or NAME, a folder for diffusers."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm import cli


def parse() -> argparse.Namespace:
    p = cli.Parser(prog="export.py", description=__doc__)
    p.add_argument("checkpoint", help="weights (.ckpt, .safetensors, diffusers folder) or a run")
    p.add_argument("output", help="a .safetensors file, or a folder")
    p.add_argument("--weights", default="auto", choices=("auto", "ema", "raw"), help="auto: EMA where the file has it")
    return p.parse_args()


def main() -> int:
    args = parse()
    from ldm.models.export import export

    print(export(args.checkpoint, args.output, args.weights))
    return 0


if __name__ == "__main__":
    cli.run(main, "export.py")
