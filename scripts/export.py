"""Export a checkpoint for others: NAME.safetensors (fp16, published names), or NAME, a folder for diffusers."""

from ldm import cli


def parser() -> cli.Parser:
    p = cli.Parser(prog="export.py", description=__doc__)
    p.add_argument("checkpoint", help="weights (.ckpt, .safetensors, diffusers folder) or a run")
    p.add_argument("output", help="a .safetensors file, or a folder")
    p.add_argument("--weights", default="auto", choices=("auto", "ema", "raw"), help="auto: EMA where the file has it")
    return p


def main() -> int:
    args = parser().parse_args()
    from ldm.models.export import export

    print(export(args.checkpoint, args.output, args.weights))
    return 0


if __name__ == "__main__":
    cli.run(main, "export.py")
