"""The sprite world: sheets of it, its photos and recognisers, and the measures of what lives in it."""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm import cli  # noqa: E402

DATA = ROOT / "data" / "spriteworld"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="spriteworld.py", description=__doc__, allow_abbrev=False)
    p.add_argument(
        "what", choices=("sheet", "measure", "photos", "recogniser", "scale", "subject", "curves", "auto-cfg")
    )
    p.add_argument("--output", type=Path, help="sheet: a PNG; measure: a folder for the table and a sheet of edits")
    p.add_argument("--ckpt", type=Path, default=DATA / "editor.safetensors", help="measure: an editor or first stage")
    p.add_argument("--scenes", type=int, default=200, help="measure: fresh scenes per kind of edit")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--run", type=Path, nargs="+", help="subject: the run folder that learned it; curves: run folders")
    p.add_argument("--subject", default="biscuit", help="subject: whose photos it learned from")
    p.add_argument("--steps", type=int, default=1200, help="recogniser: training steps")
    args = p.parse_args()
    if args.what in ("subject", "curves") and args.run is None:
        p.error(f"{args.what} needs --run")
    return args


def main() -> int:
    args = parse()
    from ldm.evaluation import spriteworld_jobs as jobs

    if args.what == "sheet":
        print(jobs.world_sheet(args.output or ROOT / "logs" / "spriteworld.png"))
    elif args.what == "scale":
        print(f"{jobs.latent_scale(DATA / 'first-stage.safetensors'):.5f}")
    elif args.what == "photos":
        for path in jobs.all_photos(DATA):
            print(path)
    elif args.what == "recogniser":
        print(json.dumps(jobs.make_recognisers(DATA, args.steps), indent=2))
    elif args.what == "curves":
        print(jobs.draw_curves(args.run, args.output or DATA / "curves.png"))
    elif args.what == "auto-cfg":
        print(jobs.measure_auto_cfg(args.ckpt, DATA, args.scenes, args.seed))
    elif args.what == "subject":
        from ldm.evaluation.subject_jobs import compare_subject

        print(compare_subject(args.ckpt, args.run[0], args.subject, DATA, args.scenes, args.seed, args.output))
    else:
        print(jobs.measure_checkpoint(args.ckpt, DATA, args.scenes, args.seed, args.output))
    return 0


if __name__ == "__main__":
    cli.run(main, "spriteworld.py")
