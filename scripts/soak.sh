#!/usr/bin/env bash
# The long runs of what tests/test_faults.py runs for a moment: 1,000 kills of mp-patch, 20,000 broken inputs, 200
# faults in guided sampling with the conformance kit after them. About an hour on two cores. SEED=0 unless told.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment test

export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
seed=${SEED:-0}
"$python" tests/kills.py --kills 1000 --seed "$seed"
"$python" tests/fuzz.py --inputs 20000 --seed "$seed"
MP_FAULTS=100 MP_SEED="$seed" "$python" -m pytest tests/test_faults.py -k AfterFaults -m "slow or not slow" -s "$@"
