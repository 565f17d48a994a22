"""What ``scripts/evaluate.py`` does with its command line."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.methods import read_methods
from ldm.evaluation.results import as_markdown
from ldm.evaluation.suites import read_suite
from ldm.files import check_writable
from ldm.models.backbones import backbones
from ldm.models.devices import choose_device
from ldm.spriteworld.judging.recogniser import load_recogniser

logger = logging.getLogger(__name__)


def run_suite(args: argparse.Namespace, output: Path, root: Path) -> str:
    """Check everything the command line names, run the suite into ``output`` and return its tables as Markdown.

    Raises FileNotFoundError or ValueError before anything is made if something does not fit.
    """
    suite = read_suite(args.suite, root)
    methods = read_methods(args.methods, suite)
    check_writable(output / "report.html")
    for name, why in suite.holes.items():
        logger.warning("case '%s' is left out: %s", name, why)
    drawn = any(case.drawn is not None for case in suite.cases)
    recogniser = load_recogniser(root / "data" / "spriteworld" / "recogniser.safetensors") if drawn else None
    models, absent = backbones(args.dino, args.clip, args.lpips, choose_device(args.device))
    for key, why in absent.items():
        logger.info("columns of %s are left out: %s", key, why)
    results = evaluate(suite, methods, models, absent, recogniser, output, args.batch_size, args.device, args.precision)
    tables = [as_markdown(results, group) for group in results.summary()]
    return "\n\n".join([*tables, str(output / "report.html")])
