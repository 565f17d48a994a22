#!/usr/bin/env bash
# Make the pairs of a subject; every argument goes to scripts/generate_dataset.py (see --help). Works from any directory.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
exec "$python" "$root/scripts/generate_dataset.py" "$@"
