#!/usr/bin/env bash
# Edit pictures by instructions; every argument goes to scripts/edit_cli.py (see --help). Works from any directory.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
exec "$python" "$root/scripts/edit_cli.py" "$@"
