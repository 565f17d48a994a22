"""The sprite world: sheets of it, its photos and recognisers, and the measures of what lives in it."""

import argparse
import inspect
import json
import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldm import cli
from ldm.project import LOGS, SPRITEWORLD

DATA = SPRITEWORLD
EDITOR, STAGE = DATA / "editor.safetensors", DATA / "first-stage.safetensors"
LATENTS = LOGS / "spriteworld" / "latents.safetensors"
LEAST = {"scenes": 1, "pictures": 1, "steps": 1, "channels": 1, "seed": 0}


def command() -> str:
    """The command line, as the head of a table tells it."""
    return shlex.join(["scripts/spriteworld.py", *sys.argv[1:]])


# One function a job: its docstring is its help, and its arguments are the options that it takes, with their defaults.


def sheet(output: Path = LOGS / "spriteworld.png") -> Path:
    """Draw a sheet of the world: its animals, subjects, places and styles."""
    from ldm.spriteworld.world.photos import world_sheet

    return world_sheet(output)


def photos() -> str:
    """Draw the shipped photos of every subject and pictures of every class again, into data/spriteworld."""
    from ldm.spriteworld.world.photos import all_photos

    return "\n".join(map(str, all_photos(DATA)))


def measure(ckpt: Path = EDITOR, scenes: int = 200, seed: int = 1, output: Path | None = None) -> str:
    """How well an editor or a text-to-image model does on fresh scenes, against the drawn truth."""
    from ldm.spriteworld.experiments.measure import measure_checkpoint

    return measure_checkpoint(ckpt, DATA, scenes, seed, output, command())


def calibrate(ckpt: Path = STAGE, scenes: int = 200, seed: int = 1, output: Path | None = None) -> str:
    """What the measures say of known answers: the truth, an untouched copy, noise."""
    from ldm.spriteworld.experiments.measure import calibrate as calibrated

    return calibrated(ckpt, DATA, scenes, seed, output, command())


def subject(
    run: list[Path],
    subject: str = "biscuit",
    ckpt: Path = EDITOR,
    scenes: int = 200,
    seed: int = 1,
    output: Path | None = None,
) -> str:
    """An editor before and after a run learned a subject, on fresh scenes."""
    from ldm.spriteworld.experiments.subject import compare_subject

    return compare_subject(ckpt, run[0], subject, DATA, scenes, seed, output, command())


def auto_cfg(ckpt: Path = EDITOR, scenes: int = 200, seed: int = 1) -> str:
    """Automatic guidance scales beside fixed ones, on fresh scenes."""
    from ldm.spriteworld.experiments.guidance import measure_auto_cfg

    return measure_auto_cfg(ckpt, DATA, scenes, seed)


def recogniser(steps: int = 1200) -> str:
    """Train the two recognisers of animals anew, into data/spriteworld."""
    from ldm.spriteworld.weights.recognisers import make_recognisers

    return json.dumps(make_recognisers(DATA, steps), indent=2)


def latents(
    ckpt: Path = EDITOR, scenes: int = 6000, pictures: int | None = None, seed: int = 50, output: Path = LATENTS
) -> Path:
    """A first stage's training data: latents of scenes that an editor edited."""
    from ldm.spriteworld.weights.edited_latents import write_edited_latents

    return write_edited_latents(ckpt, output, scenes, seed, pictures)


def scale(ckpt: Path = STAGE) -> str:
    """The scale_factor that gives a first stage's latents unit variance."""
    from ldm.spriteworld.weights.first_stage import latent_scale

    return f"{latent_scale(ckpt):.5f}"


def widen(output: Path, ckpt: Path = STAGE, channels: int | None = None, features: list[int] | None = None) -> Path:
    """A first stage with more latent channels or features that still does the same (Net2Net)."""
    from ldm.spriteworld.weights.first_stage import widen_first_stage

    return widen_first_stage(ckpt, output, channels, features)


def whiten(output: Path, ckpt: Path = STAGE, power: float = 0.0) -> Path:
    """A first stage whose latents have white channels and decode to the same pictures."""
    from ldm.spriteworld.weights.first_stage import whiten_first_stage

    return whiten_first_stage(ckpt, output, power)


def follow(output: Path, ckpt: Path = EDITOR, first_stage: Path = STAGE) -> str:
    """A model rewritten for another first stage's latents, where the two differ by a linear map."""
    from ldm.spriteworld.weights.conversions import follow_first_stage

    return follow_first_stage(ckpt, first_stage, output)


def without_picture(output: Path, ckpt: Path = EDITOR) -> Path:
    """A text-to-image model: an editor without its picture's channels."""
    from ldm.spriteworld.weights.conversions import editor_without_picture

    return editor_without_picture(ckpt, output)


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__.replace("_", "-"): job
    for job in (
        *(sheet, measure, calibrate, photos, recogniser, latents, scale),
        *(widen, whiten, follow, without_picture, subject, auto_cfg),
    )
}
WEIGHTS = ("latents", "widen", "whiten", "follow", "without-picture")  # jobs that write a .safetensors file


def parser() -> cli.Parser:
    jobs = "\n".join(f"  {name:<16} {job.__doc__}" for name, job in JOBS.items())
    form = argparse.RawDescriptionHelpFormatter
    p = cli.Parser(prog="spriteworld.py", description=__doc__, epilog=f"jobs:\n{jobs}", formatter_class=form)
    p.add_argument("what", choices=tuple(JOBS), metavar="job", help="one of those below")
    p.add_argument("--output", type=Path, help="a PNG, FILE.md or folder (measure, subject), .md or weights' file")
    p.add_argument("--ckpt", type=Path, help="an editor, text to image, or first stage (measure, scale, ...)")
    p.add_argument("--channels", type=int, help="widen: of the latents, more than now")
    p.add_argument("--features", type=int, nargs="+", help="widen: at each size, largest first; multiples of now's")
    p.add_argument("--first-stage", type=Path, help="follow: whose latents the model is to be rewritten for")
    p.add_argument("--scenes", type=int, help="fresh scenes for each figure (default: 200; latents: 6000)")
    p.add_argument("--pictures", type=int, help="latents: of the encoder's, in any coat (default: as many as --scenes)")
    p.add_argument("--seed", type=int, help="of the scenes (default: 1; latents: 50)")
    p.add_argument("--run", type=Path, nargs="+", help="subject: the run folder that learned it")
    p.add_argument("--subject", help="subject: whose photos it learned from (default: biscuit)")
    p.add_argument("--power", type=float, help="whiten: 0 (white, default) to 1 (by what a channel means to pictures)")
    p.add_argument("--steps", type=int, help="recogniser: training steps (default: 1200)")
    return p


def parse() -> tuple[str, dict[str, Any]]:
    """Return the job and the values it is called with."""
    p = parser()
    given = {name: value for name, value in vars(p.parse_args()).items() if value is not None}
    given.pop("traceback")
    what = given.pop("what")
    taken = inspect.signature(JOBS[what]).parameters
    for name in [name for name in given if name not in taken]:
        logging.warning("--%s has no effect on %s", name.replace("_", "-"), what)
        del given[name]
    for name, least in LEAST.items():
        if given.get(name, least) < least:
            p.error(f"--{name} must be at least {least}")
    if what in WEIGHTS and given.get("output", taken["output"].default) is inspect.Parameter.empty:
        p.error(f"{what} needs --output FILE.safetensors")
    if what in WEIGHTS and "output" in given and given["output"].suffix != ".safetensors":
        p.error(f"{what} needs --output FILE.safetensors")
    if what == "calibrate" and "output" in given and given["output"].suffix != ".md":
        p.error("calibrate needs --output FILE.md")
    if what == "widen" and ("channels" in given) == ("features" in given):
        p.error("widen needs --channels N or --features N N ...")
    if what == "subject" and len(given.get("run", ())) != 1:
        p.error("subject takes one --run" if "run" in given else "subject needs --run")
    return what, given


def main() -> int:
    what, values = parse()
    print(JOBS[what](**values))
    return 0


if __name__ == "__main__":
    cli.run(main, "spriteworld.py")
