#!/usr/bin/env bash
# Teach the editor one subject; every argument goes to scripts/train.py (see --help). Works from any directory.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
"$python" -c "import ldm.cli" 2> /dev/null || { echo "train.sh: the project is not set up; run bash $root/scripts/setup.sh first" >&2; exit 2; }
exec "$python" "$root/scripts/train.py" "$@"
