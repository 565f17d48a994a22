#!/usr/bin/env bash
# Edit pictures by instructions; every argument goes to scripts/edit_cli.py (see --help). Works from any directory.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python="${PYTHON:-python3}"
"$python" -c "import ldm.cli" 2> /dev/null || { echo "edit.sh: the project is not set up; run bash $root/scripts/setup.sh first" >&2; exit 2; }
exec "$python" "$root/scripts/edit_cli.py" "$@"
