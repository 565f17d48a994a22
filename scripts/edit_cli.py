"""Edit pictures by instructions: one photo, one sentence, one result, or folders, several edits and sweeps."""

import argparse
import json
import logging
import random
import sys
from pathlib import Path

from ldm import cli
from ldm.project import shipped, shown

SETTINGS = ("steps", "sampler", "spacing", "resolution", "keep_size", "guidance_interval", "negative")


def parser() -> cli.Parser:
    p = cli.Parser(prog="edit_cli.py", description=__doc__)
    p.add_argument("--input", nargs="+", help="photos, folders or globs")
    p.add_argument("--edit", nargs="+", help="instruction(s), each applied to every photo by itself")
    p.add_argument("--output", default="logs/edits", help="a file for one result, a folder for several")
    p.add_argument("--ckpt", help=".ckpt, .safetensors, diffusers folder or run; default: the shipped editor")
    p.add_argument("--vae-ckpt", help="take the first stage from this file instead")
    p.add_argument("--config", help="YAML; default: the checkpoint's own, or told by its shapes")
    p.add_argument("--weights", default="auto", choices=("auto", "ema", "raw"), help="auto: EMA where the file has it")
    p.add_argument("--cfg-text", type=float, help="text guidance scale; default: the checkpoint's own, else 7.5")
    p.add_argument("--cfg-image", type=float, help="image guidance scale; default: the checkpoint's own, else 1.5")
    p.add_argument("--steps", type=int, help="default: the checkpoint's own, else 100")
    samplers = "euler_a, euler, heun, ddim, dpmpp_2m, dpmpp_2m_sde or unipc"
    p.add_argument("--sampler", help=f"{samplers}; default: the checkpoint's own, else euler_a")
    p.add_argument("--spacing", choices=("auto", "uniform", "karras"), help="default: the checkpoint's, else auto")
    p.add_argument("--guidance-interval", type=cli.interval, metavar="LOW,HIGH", help="noise levels (0.03 to 14.6)")
    p.add_argument("--negative", help="text that takes the place of the empty one in guidance")
    p.add_argument("--resolution", type=int, help="working size, longer side; default: the checkpoint's own, else 512")
    p.add_argument("--keep-size", type=cli.yes_or_no, help="give the photo's size back (true|false); default: true")
    p.add_argument("--seed", type=int, help="default: random")
    p.add_argument("--num-samples", type=int, default=1, help="results per photo and edit, seeds counting up")
    p.add_argument("--batch-size", type=int, default=1, help="results at once; not with a sweep or --auto-cfg")
    p.add_argument("--mask", help="picture of the photo's size: edit only where it is light; results in .png")
    p.add_argument("--sweep-cfg-text", type=cli.numbers, metavar="A,B,C", help="one labelled sheet over text scales")
    p.add_argument("--sweep-cfg-image", type=cli.numbers, metavar="A,B,C", help="... and image scales")
    p.add_argument("--auto-cfg", action="store_true", help="try scales, take what the model finds best")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    p.add_argument("--show-recipe", metavar="FILE", help="print how a PNG was made, and stop")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_args()
    if len(sys.argv) == 1:
        example = shipped("pictures/wolf/01.png")
        args.input, args.edit = [str(example)], ["replace the wolf with a dog"]
        logging.info("no arguments: editing %s, “%s”", shown(example), args.edit[0])
    if not args.show_recipe and not (args.input and args.edit):
        p.error("--input and --edit are needed, or --show-recipe FILE alone")
    p.alone(args, "show_recipe")
    for name in ("text", "image"):
        if None not in (getattr(args, f"cfg_{name}"), getattr(args, f"sweep_cfg_{name}")):
            logging.warning("--cfg-%s has no effect beside --sweep-cfg-%s, which names the scales", name, name)
    if args.ckpt is None and not args.show_recipe:
        args.ckpt = str(shipped("editor.safetensors"))
        logging.info("no --ckpt given: using the small sprite-world editor %s", shown(Path(args.ckpt)))
    args.seed = random.randint(0, 100000) if args.seed is None else args.seed
    return args


def main() -> int:
    args = parse()
    if args.show_recipe:
        from ldm.inference.recipe import read_recipe

        print(json.dumps(read_recipe(args.show_recipe), indent=2, ensure_ascii=False))
        return 0
    from ldm.inference.edit_job import EditRequest, edit
    from ldm.models.build import ModelSource

    chosen = {"text_scale": args.cfg_text, "image_scale": args.cfg_image}
    request = EditRequest(
        source=ModelSource(args.ckpt, args.config, args.vae_ckpt, args.weights, args.device, args.precision),
        input=tuple(args.input),
        edit=tuple(args.edit),
        output=args.output,
        seed=args.seed,
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        mask=args.mask,
        sweep_cfg_text=tuple(args.sweep_cfg_text or ()),
        sweep_cfg_image=tuple(args.sweep_cfg_image or ()),
        auto_cfg=args.auto_cfg,
        settings=chosen | {name: getattr(args, name) for name in SETTINGS},
    )
    written, failed = edit(request)
    for path in written:
        print(path)
    return 2 if failed else 0


if __name__ == "__main__":
    cli.run(main, "edit_cli.py")
