#!/usr/bin/env bash
# The check on a GPU, within half an hour on one card: bash scripts/gpu.sh [LINE ...] (docs/gpu.md). Results go to runs/gpu.
#
#   --cpu                              the same lines on tiny hosts, without a GPU
#   --wheels DIR (or GPU_WHEELS=DIR)   without a network: use python3's packages and the wheels in DIR, install no other
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wheels=${GPU_WHEELS:-} more=()
while (($#)); do
    case $1 in
        --wheels) wheels=${2:?--wheels needs a folder}; shift 2 ;;
        *) more+=("$1"); shift ;;
    esac
done

path=$PWD
if [[ -n $wheels ]]; then
    python=${MP_PYTHON:-python3}
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" "$wheels"/*.whl
    path=$path:$site
else
    source scripts/environment.sh
    prepare_environment diffusers,videocrafter,lavie,animatediff
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
"$python" -m mp_hooks.lab.gpu ${more[@]+"${more[@]}"}
