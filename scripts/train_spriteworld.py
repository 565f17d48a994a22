"""Train the sprite world's weights again, from nothing, into data/spriteworld/: over what is there.

Each stage goes on where it was stopped, and a finished one is not trained again. The environment variables
STEPS_FIRST_STAGE, STEPS_WINDOWS, STEPS_RECOGNISER, STEPS_TEXT, STEPS_EDIT, STEPS_TEXT_AGAIN, SCENES_LATENTS and
STEPS_DECODER make it shorter (a training has at least 51 steps: 50 are its warm-up).
"""

import os
import shlex
import sys

from ldm import cli
from ldm.project import CONFIGS, LOGS, ROOT, SPRITEWORLD


def parser() -> cli.Parser:
    p = cli.Parser(prog="train_spriteworld.py", description=__doc__)
    p.add_argument(
        "overrides",
        nargs="*",
        help="key.sub=value for every stage, such as training.precision=bf16 or data.params.train.params.length=2000 "
        "(data.params.train is not for the decoder, which learns from the editor's latents)",
    )
    return p


def main() -> int:
    args = parser().parse_args()
    from ldm.spriteworld.weights.pipeline import Lengths, Places, train_weights

    places = Places(CONFIGS / "spriteworld", SPRITEWORLD, LOGS / "spriteworld", ROOT / "docs" / "results")
    command = shlex.join(["scripts/train_spriteworld.py", *sys.argv[1:]])
    done = train_weights(Lengths.of_environment(os.environ), places, args.overrides, command)
    return 0 if done else 143  # stopped before the end: as after SIGTERM


if __name__ == "__main__":
    cli.run(main, "train_spriteworld.py")
