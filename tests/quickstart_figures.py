"""Hold the figures that the newest quickstart left against wide bounds: ``python tests/quickstart_figures.py [LOGS]``.

Tests train on a few pairs for a few steps; this asks whether the whole of it learns a subject and keeps the rest.
"""

import sys
from pathlib import Path

from ldm.files import read_json

SUBJECTS = ("biscuit", "domino", "mochi", "storm")
# measure -> the least and the most that it may be after 800 steps
BOUNDS = {
    "trained source: subject recognised": (0.8, 1.0),
    "unseen source: subject recognised": (0.7, 1.0),
    "plain class: leak of the subject": (0.0, 0.1),
    "trained source: background kept (dB)": (36.0, 60.0),
    "class: recognised": (0.9, 1.0),
    "place: done": (0.85, 1.0),
}


def main() -> int:
    """Print every figure beside its bounds; return 1 if one lies outside."""
    logs = Path(sys.argv[1] if len(sys.argv) > 1 else "logs")
    runs = sorted(run for name in SUBJECTS for run in logs.glob(f"*_{name}/results.json"))
    if not runs:
        print(f"no quickstart has left results in {logs}")
        return 1
    newest = max(runs, key=lambda path: path.stat().st_mtime)
    figures, outside = read_json(newest)["step 800"], 0
    for name, (least, most) in BOUNDS.items():
        mean = figures[name]["mean"]
        good = least <= mean <= most
        outside += not good
        print(f"{'ok' if good else 'OUTSIDE':<8}{name}: {mean:.3g} (from {least:g} to {most:g})")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
