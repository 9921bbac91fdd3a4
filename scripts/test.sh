#!/usr/bin/env bash
# Installs what the tests need, then checks style and types and runs them; arguments go on to pytest: -k flow, or
# --cov=mp_hooks for coverage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment test

echo "== the hosts' code, for the tests against it"
if "$python" - <<'PY'
import sys
from mp_hooks import patching
from mp_hooks.errors import MotionPromptError

there = 0
for host in [*map(patching.load, patching.names()), *patching.PACKS.values()]:
    try:
        patching.fetch(host, patching.default_checkout(host), timeout=60)
        there += 1
    except MotionPromptError as error:
        print(f"{host.title} is not to be had, its tests are skipped: {error}")
sys.exit(not there)
PY
then
    prepare_environment test,videocrafter,lavie,animatediff,comfyui
fi

failed=0
echo "== ruff"
"$python" -m ruff check || failed=1
echo "== mypy"
"$python" -m mypy || failed=1
echo "== pytest"
export OMP_NUM_THREADS=1 # one process a core
"$python" -m pytest -n auto --dist worksteal "$@" || failed=1
exit $failed
