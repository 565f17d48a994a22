"""Measure speed and memory: `edit` and `train` beside diffusers, `load` of a checkpoint like the published one,
`shipped`: how long loading and one edit with the shipped editor take."""

import argparse
import logging
import tempfile
from pathlib import Path

from ldm import cli
from ldm.project import shipped


def parser() -> cli.Parser:
    p = cli.Parser(prog="benchmark.py", description=__doc__)
    p.add_argument("what", choices=("edit", "train", "load", "shipped"))
    p.add_argument("--size", choices=("tiny", "full"), help="edit, train, load: default tiny")
    p.add_argument("--device", help="edit, train: auto (default), cpu or cuda")
    p.add_argument("--rounds", type=int, help="edit, train, shipped: how often each is timed (default 5)")
    p.add_argument("--threads", type=int, help="edit, train, shipped: CPU threads")
    p.add_argument("--precision", help="load: the precision to load in (default auto)")
    p.add_argument("--folder", type=Path, help="load: where to put the temporary file (7.7 GB at full size)")
    return p


def parse() -> argparse.Namespace:
    p = parser()
    args = p.parse_args()
    measured = {"load": ("size", "precision", "folder"), "shipped": ("rounds", "threads")}
    takes = measured.get(args.what, ("size", "device", "rounds", "threads"))
    for name, value in vars(args).items():
        if name not in ("what", "traceback", *takes) and value is not None:
            logging.warning("--%s has no effect on %s", name, args.what)
    for name in ("rounds", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            p.error(f"--{name} is {getattr(args, name)}; at least 1 is expected")
    return args


def main() -> int:
    args = parse()
    rounds, size = args.rounds or 5, args.size or "tiny"
    if args.what == "shipped":
        from ldm.benchmarks.shipped import benchmark_shipped, report_shipped

        files = shipped("editor.safetensors"), shipped("pictures/wolf/01.png")
        print(report_shipped(benchmark_shipped(*files, rounds, args.threads)))
        return 0
    import torch

    from ldm.models.devices import choose_device, choose_precision

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device or "auto")
    if args.what == "edit":
        from ldm.benchmarks.edit import benchmark_edit
        from ldm.benchmarks.measure import report

        print(report(benchmark_edit(size, device, rounds)))
        return 0
    if args.what == "train":
        from ldm.benchmarks.measure import report
        from ldm.benchmarks.train import benchmark_train

        print(report(benchmark_train(size, device, rounds)))
        return 0
    from ldm.benchmarks.load import benchmark_load

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        precision = choose_precision(args.precision or "auto", torch.device("cpu"))
        results = benchmark_load(size, precision, Path(folder))
    for name, value in results.items():
        print(f"{name:<6} {value / 2**30:8.3f} GiB")
    print(f"peak private memory above the model in {precision}: {(results['peak'] - results['model']) / 2**30:.3f} GiB")
    return 0


if __name__ == "__main__":
    cli.run(main, "benchmark.py")
