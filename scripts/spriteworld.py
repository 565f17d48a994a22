"""The sprite world: sheets of it, its photos and recognisers, and the measures of what lives in it."""

import argparse
from pathlib import Path

from ldm import cli
from ldm.project import LOGS, SPRITEWORLD

DATA = SPRITEWORLD
EDITOR, STAGE = DATA / "editor.safetensors", DATA / "first-stage.safetensors"
LATENTS = LOGS / "spriteworld" / "latents.safetensors"
# What each job takes, with what it takes if nothing is given.
JOBS = {
    "sheet": {"output": LOGS / "spriteworld.png"},
    "measure": {"ckpt": EDITOR, "scenes": 200, "seed": 1, "output": None},
    "calibrate": {"ckpt": STAGE, "scenes": 200, "seed": 1, "output": None},
    "photos": {},
    "recogniser": {"steps": 1200},
    "latents": {"ckpt": EDITOR, "scenes": 6000, "pictures": None, "seed": 50, "output": LATENTS},
    "scale": {"ckpt": STAGE},
    "widen": {"ckpt": STAGE, "output": None, "channels": None, "features": None},
    "whiten": {"ckpt": STAGE, "output": None, "power": 0.0},
    "follow": {"ckpt": EDITOR, "first_stage": STAGE, "output": None},
    "without-picture": {"ckpt": EDITOR, "output": None},
    "subject": {"run": None, "subject": "biscuit", "ckpt": EDITOR, "scenes": 200, "seed": 1, "output": None},
    "curves": {"run": None, "output": DATA / "curves.png"},
    "auto-cfg": {"ckpt": EDITOR, "scenes": 200, "seed": 1},
}


def parser() -> cli.Parser:
    p = cli.Parser(prog="spriteworld.py", description=__doc__)
    p.add_argument("what", choices=tuple(JOBS))
    p.add_argument("--output", type=Path, help="a PNG, folder (measure, subject), .md (calibrate) or weights' file")
    p.add_argument("--ckpt", type=Path, help="an editor, text to image, or first stage (measure, scale, ...)")
    p.add_argument("--channels", type=int, help="widen: of the latents, more than now")
    p.add_argument("--features", type=int, nargs="+", help="widen: at each size, largest first; multiples of now's")
    p.add_argument("--first-stage", type=Path, help="follow: whose latents the model is to be rewritten for")
    p.add_argument("--scenes", type=int, help="fresh scenes for each figure (default: 200; latents: 6000)")
    p.add_argument("--pictures", type=int, help="latents: of the encoder's, in any coat (default: as many as --scenes)")
    p.add_argument("--seed", type=int, help="of the scenes (default: 1; latents: 50)")
    p.add_argument("--run", type=Path, nargs="+", help="subject: the run folder that learned it; curves: run folders")
    p.add_argument("--subject", help="subject: whose photos it learned from (default: biscuit)")
    p.add_argument("--power", type=float, help="whiten: 0 (white, default) to 1 (by what a channel means to pictures)")
    p.add_argument("--steps", type=int, help="recogniser: training steps (default: 1200)")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_args()
    for name, value in vars(args).items():
        if name not in ("what", "traceback") and value is not None and name not in JOBS[args.what]:
            p.error(f"--{name.replace('_', '-')} has no effect on {args.what}")
        least = {"scenes": 1, "pictures": 1, "steps": 1, "channels": 1, "seed": 0}.get(name)
        if least is not None and value is not None and value < least:
            p.error(f"--{name} must be at least {least}")
    output = args.output or JOBS[args.what].get("output")
    writes = args.what in ("latents", "widen", "whiten", "follow", "without-picture")
    if writes and (output is None or output.suffix != ".safetensors"):
        p.error(f"{args.what} needs --output FILE.safetensors")
    if args.what == "widen" and (args.channels is None) == (args.features is None):
        p.error("widen needs --channels N or --features N N ...")
    if "run" in JOBS[args.what] and args.run is None:
        p.error(f"{args.what} needs --run")
    if args.what == "subject" and len(args.run) > 1:
        p.error("subject takes one --run")
    given = {name: value for name, value in vars(args).items() if value is not None and name != "traceback"}
    return argparse.Namespace(**{**JOBS[args.what], **given})


def main() -> int:
    args = parse()
    from ldm.spriteworld.experiments.commands import run

    print(run(args, DATA))
    return 0


if __name__ == "__main__":
    cli.run(main, "spriteworld.py")
