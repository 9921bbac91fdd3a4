#!/usr/bin/env bash
# Installs what it needs, samples the embedded mini model with and without MotionPrompt on the same seeds, and writes
# the clips side by side, their flow, plots of what guidance did and one HTML page with the measures. CPU, no download.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment mini

export OMP_NUM_THREADS=1 # one process a core
exec "$(dirname "$("$python" -c 'import sys; print(sys.executable)')")/motionprompt" compare \
    --methods motionprompt word --prompts 5 --seeds 1 --batch 1 --out runs/demo "$@"
