#!/usr/bin/env bash
# Set up, then train everything in data/spriteworld again (a night on two CPU cores, less on a GPU). It overwrites the
# weights that ship: run it in a clone of its own. Stopped, it goes on when it is called again. See --help for the
# variables that make it shorter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/train_spriteworld.py "$@"
