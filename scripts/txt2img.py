"""Make pictures from text with a text-to-image model; with --class-images, the class pictures of DreamBooth."""

import argparse
import logging
from pathlib import Path

from ldm import cli
from ldm.project import shipped, shown

SETTINGS = ("scale", "steps", "sampler", "spacing", "width", "height", "negative")


def parser() -> cli.Parser:
    p = cli.Parser(prog="txt2img.py", description=__doc__)
    p.add_argument("--prompt", nargs="+", required=True, help="sentence(s)")
    p.add_argument("--output", default="logs/txt2img", help="a file for one picture, a folder for several")
    p.add_argument("--ckpt", help="default: the shipped sprite-world model")
    p.add_argument("--class-images", type=int, metavar="N", help="fill --output with N pictures of the one prompt")
    p.add_argument("--num-samples", type=int, default=1, help="pictures of each prompt, seeds counting up")
    p.add_argument("--batch-size", type=int, default=1, help="pictures at once (default 1)")
    p.add_argument("--seed", type=int, default=0, help="of the first picture (default 0)")
    p.add_argument("--scale", type=float, help="guidance scale; default: the checkpoint's own, else 7.5")
    p.add_argument("--negative", help="text that takes the place of the empty one in guidance")
    p.add_argument("--steps", type=int, help="default: the checkpoint's own, else 50")
    samplers = "ddim, euler, euler_a, heun, dpmpp_2m, dpmpp_2m_sde or unipc"
    p.add_argument("--sampler", help=f"{samplers}; default: the checkpoint's own, else ddim")
    p.add_argument("--spacing", choices=("auto", "uniform", "karras"), help="default: the checkpoint's, else auto")
    p.add_argument("--width", type=int, help="default: the checkpoint's own, else 512")
    p.add_argument("--height", type=int, help="default: the checkpoint's own, else 512")
    p.add_argument("--config", help="YAML; default: the checkpoint's own, or told by its shapes")
    p.add_argument("--vae-ckpt", help="take the first stage from this file instead")
    p.add_argument("--weights", default="auto", choices=("auto", "ema", "raw"))
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--precision", default="auto", help="auto, fp32, fp16 or bf16")
    return p


def parse() -> argparse.Namespace:
    args = parser().parse_args()
    if args.ckpt is None:
        args.ckpt = str(shipped("text-to-image.safetensors"))
        logging.info("no --ckpt given: using the small sprite-world model %s", shown(Path(args.ckpt)))
    return args


def main() -> int:
    args = parse()
    from ldm.dataset_generation.class_images import generate_class_images
    from ldm.inference.text_job import TextRequest, make_pictures
    from ldm.models.build import ModelSource

    request = TextRequest(
        source=ModelSource(args.ckpt, args.config, args.vae_ckpt, args.weights, args.device, args.precision),
        prompt=tuple(args.prompt),
        output=args.output,
        num_samples=args.num_samples,
        batch_size=args.batch_size,
        seed=args.seed,
        class_images=args.class_images,
        settings={name: getattr(args, name) for name in SETTINGS},
    )
    for path in make_pictures(request) if request.class_images is None else generate_class_images(request):
        print(path)
    return 0


if __name__ == "__main__":
    cli.run(main, "txt2img.py")
