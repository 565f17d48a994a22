"""Train what a YAML file describes: a first stage, text to image, editing, or one subject."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm import cli  # noqa: E402


def parse() -> tuple[argparse.Namespace, list[str]]:
    p = argparse.ArgumentParser(prog="train.py", description=__doc__, allow_abbrev=False)
    p.add_argument("config", nargs="?", help="YAML file")
    p.add_argument("overrides", nargs="*", help="key.sub=value, over the file")
    p.add_argument("--name", help="of the run folder; default: the config's file name")
    p.add_argument("--logs", type=Path, default=Path("logs"), help="where run folders go")
    p.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder, with its own config")
    p.add_argument("--devices", type=int, help="processes or GPUs on this machine")
    p.add_argument("--threads", type=int, help="CPU threads")
    args = p.parse_args()
    if (args.config is None) == (args.resume is None):
        p.error("give either a config or --resume RUN")
    return args


def main() -> int:
    args = parse()
    import torch
    from omegaconf import OmegaConf

    from ldm.config import load_config
    from ldm.training.run import train

    if args.threads:
        torch.set_num_threads(args.threads)
    config = load_config(args.resume / "config.yaml" if args.resume else args.config, args.overrides)
    if args.devices is not None:
        config = OmegaConf.merge(config, {"training": {"devices": args.devices}})
    name = args.name or (Path(args.config).stem if args.config else "")
    print(train(config, name, args.logs, args.resume))
    return 0


if __name__ == "__main__":
    cli.run(main, "train.py")
