"""Compare DreamBooth, InstructPix2Pix and Instruct2Dream on a suite of subjects, pictures and instructions."""

import argparse
import time
from pathlib import Path

from ldm import cli
from ldm.project import LOGS


def parser() -> cli.Parser:
    p = cli.Parser(prog="evaluate.py", description=__doc__)
    p.add_argument("suite", nargs="?", type=Path, help="YAML file, such as configs/evaluation/spriteworld.yaml")
    p.add_argument(
        "--methods",
        nargs="+",
        default=[],
        metavar="NAME=RUN",
        help="dreambooth, instruct_pix2pix, instruct2dream: a run folder or weights; NAME:SUBJECT=RUN for one subject",
    )
    p.add_argument("--output", type=Path, help="folder of the results; given again, it is gone on with")
    p.add_argument("--dino", metavar="FOLDER", help="DINO ViT-S/16; default: facebook/dino-vits16 in the hub's cache")
    p.add_argument("--clip", metavar="FOLDER", help="CLIP; default: openai/clip-vit-base-patch32 in the hub's cache")
    p.add_argument("--lpips", nargs=2, metavar=("ALEXNET", "LINEAR"), help="weights of LPIPS")
    p.add_argument("--batch-size", type=int, help="pictures made at once; default: the suite's")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    p.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two results of one suite: B minus A")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_args()
    p.alone(args, "compare")
    if not args.compare and not (args.suite and args.methods):
        p.error("give a suite and --methods NAME=RUN ..., or --compare A B")
    return args


def main() -> int:
    args = parse()
    if args.compare:
        from ldm.evaluation.compare import compare

        print(compare(*args.compare))
        return 0
    from ldm.evaluation.evaluate import SuiteRequest, run_suite

    request = SuiteRequest(
        suite=args.suite,
        methods=tuple(args.methods),
        output=args.output or LOGS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_evaluate-{args.suite.stem}",
        dino=args.dino,
        clip=args.clip,
        lpips=args.lpips and tuple(args.lpips),
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
    )
    print(run_suite(request))
    return 0


if __name__ == "__main__":
    cli.run(main, "evaluate.py")
