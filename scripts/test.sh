#!/usr/bin/env bash
# Set up the project (if needed) and run every check: ruff, then pytest. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# small models gain more from tests side by side than from threads
cores="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec .venv/bin/python -m pytest -n "$((cores < 8 ? cores : 8))" --dist worksteal "$@"
