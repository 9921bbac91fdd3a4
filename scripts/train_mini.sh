#!/usr/bin/env bash
# Trains the mini text-to-video model and evaluates it: bash scripts/train_mini.sh --out DIR [--minutes N] [--resume]
# On an accelerator: --device cuda --workers 1
set -euo pipefail
folder="" device="cpu"
for ((i = 1; i <= $#; i++)); do
    next=$((i + 1))
    case "${!i}" in
        --out) folder="$(realpath -m "${!next:-}")" ;;
        --device) device="${!next:-cpu}" ;;
        --out=*) folder="$(realpath -m "${!i#--out=}")" ;;
    esac
done
arguments=("$@")
if [ -n "$folder" ]; then
    arguments+=(--out "$folder") # the last one counts, and it holds after the change of folder
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment diffusers
"$python" -m mp_hooks.lab.mini.train ${arguments[@]+"${arguments[@]}"}
[ -n "$folder" ] || exit 0 # only --help comes here
"$python" -m mp_hooks.lab.mini.evaluate --model "$folder/model" --device "$device" --out "$folder/evaluation.json"
