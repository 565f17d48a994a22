"""Train what a YAML file describes: one subject (the default), editing, text to image, or a first stage."""

import argparse
import logging
from pathlib import Path

from ldm import cli
from ldm.project import CONFIGS, LOGS, ROOT

FULL, SMALL = "stable-diffusion/v1-finetune_unfrozen.yaml", "spriteworld/instruct2dream.yaml"


def parser() -> cli.Parser:
    p = cli.Parser(prog="train.py", description=__doc__)
    p.add_argument(
        "config", nargs="?", help=f"YAML file; default: configs/{FULL}; the sprite world's for its own weights"
    )
    p.add_argument("overrides", nargs="*", help="key.sub=value over the file, like training.max_steps=1000")
    p.add_argument("--data", help="folder that generate_dataset.sh made")
    p.add_argument("--ckpt", help="checkpoint to start from")
    p.add_argument("--identifier", help="rare word for the subject; default sks")
    p.add_argument("--class-word", help="what the subject is; default: the manifest's")
    p.add_argument("--name", help="of the run folder; default: the config's file name")
    p.add_argument("--logs", type=Path, default=LOGS, help="where run folders go")
    p.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder, with its own config")
    p.add_argument("--devices", type=int, help="processes or GPUs on this machine")
    p.add_argument("--num-nodes", type=int, help="machines")
    p.add_argument("--threads", type=int, help="CPU threads")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_intermixed_args()  # overrides may stand between the flags
    if args.config is not None and "=" in args.config:
        args.overrides, args.config = [args.config, *args.overrides], None
    begins = (args.config, args.data, args.ckpt, args.identifier, args.class_word, args.name, *args.overrides)
    if args.threads is not None and args.threads < 1:
        p.error(f"--threads is {args.threads}; at least 1 is expected")
    if args.resume and any(begins):
        p.error("--resume has the run's own config: give nothing but --logs, --devices, --num-nodes and --threads")
    return args


def texts(args: argparse.Namespace) -> dict[str, str]:
    """What the flags say, by its place in the config: text as it stands, where an override's value is YAML."""
    flags = {
        "dataset.root": args.data,
        "dataset.identifier": args.identifier,
        "dataset.class_word": args.class_word,
        "model.params.ckpt_path": args.ckpt,
    }
    return {key: str(value) for key, value in flags.items() if value is not None}


def recipe_for(ckpt: str | None) -> str:
    """The shipped recipe without a config: the small one for weights of its size, and where no weights are named."""
    from ldm.checkpoint.inspect import fits
    from ldm.checkpoint.read import read_checkpoint

    if ckpt is None:
        return SMALL
    found = fits(read_checkpoint(ckpt), CONFIGS / SMALL)
    return SMALL if found is not None and found[0] else FULL


def main() -> int:
    args = parse()
    import torch
    from omegaconf import OmegaConf

    from ldm.config import with_shipped_paths
    from ldm.training.run import finished, train
    from ldm.training.settings import load_training_config

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.config is None and args.resume is None:
        shipped = recipe_for(args.ckpt)
        args.config = CONFIGS / shipped
        logging.info("training by configs/%s", shipped)
    source = args.resume / "config.yaml" if args.resume else args.config
    config = load_training_config(source, args.overrides, texts(args))
    machines = {key: getattr(args, key) for key in ("devices", "num_nodes") if getattr(args, key) is not None}
    config = OmegaConf.merge(config, {"training": machines})
    if args.resume and finished(args.resume):
        logging.warning("the run has had all its steps; for more, raise training.max_steps in %s", source)
    name = args.name or (Path(args.config).stem if args.config else "")
    run = train(with_shipped_paths(config, ROOT), name, args.logs, args.resume)
    if run is not None:
        print(run)
    return 0 if run is None or finished(run) else 143  # told to stop before the end: as after SIGTERM


if __name__ == "__main__":
    cli.run(main, "train.py")
