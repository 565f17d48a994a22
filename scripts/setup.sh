#!/usr/bin/env bash
# Make .venv if it is missing and install the project into it: `setup.sh` for running, `setup.sh dev` for the tests too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
target=".${extras:+[$extras]}"
python="${PYTHON:-python3}"
if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(not ((3, 10) <= sys.version_info[:2] < (3, 13)))' || {
    echo "setup: $("$python" --version 2>&1) found; Python 3.10 to 3.12 is needed. Name one: PYTHON=python3.11 $0" >&2
    exit 2
  }
  echo "setup: making .venv with $("$python" --version)"
  "$python" -m venv .venv || { echo "setup: 'python3 -m venv' failed (Debian: apt-get install python3-venv)" >&2; exit 2; }
fi

wanted="$(cat pyproject.toml constraints.txt setup.py | .venv/bin/python -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
for stamp in ".venv/.installed-dev" ".venv/.installed-$extras"; do
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
done
echo "setup: installing $target (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e "$target" 2> >(grep -v '^WARNING: Location' >&2)
# taming declares torchvision, which VectorQuantizer2 does not need and which breaks CPU builds of torch: leave it out.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt taming-transformers-rom1504 2> >(grep -v '^WARNING: Location' >&2)
echo "$wanted" > ".venv/.installed-$extras"
