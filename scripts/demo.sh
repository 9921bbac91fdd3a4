#!/usr/bin/env bash
# Installs what it needs and samples VideoCrafter2's real code with and without MotionPrompt, on the CPU.
#
# The weights are random and tiny, because the real checkpoint is 6 GB: this shows the whole path at work
# (patch, host script, guidance, trace), not what a guided video looks like.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment videocrafter

out=$PWD/runs/demo host=$PWD/third_party/VideoCrafter
python=$("$python" -c 'import sys; print(sys.executable)')
PATH=$(dirname "$python"):$PATH # the host's script calls python3
export PATH

mp-patch videocrafter2
echo "== a tiny random checkpoint"
[[ -f $out/tiny.ckpt ]] || "$python" -W ignore -m mp_hooks.testing.lvdm "$host" "$out"

sample() { # NAME [ARGUMENT ...]
    local name=$1
    shift
    (cd "$host" && bash scripts/run_text2video.sh --config "$out/tiny.yaml" --ckpt_path "$out/tiny.ckpt" \
        --savedir "$out/$name" --height 128 --width 128 --ddim_steps 10 --mp-device cpu "$@")
}
export PYTHONWARNINGS=ignore
echo "== without MotionPrompt"
sample without
echo "== with MotionPrompt"
sample with --motionprompt

echo "== what guidance did (loss, phi of the judge, cosine of the tokens to their start)"
"$python" - "$out/with/motionprompt/trace.jsonl" <<'PY'
import sys
from mp_hooks.guidance.trace import read_trace

for r in read_trace(sys.argv[1]):
    if r["event"] == "run":
        print(r["prompts"][0])
    elif r["event"] == "iteration":
        print(f"  step {r['step']} update {r['iteration'] + 1}: loss {r['loss'][0]:+.3f}  phi {r['phi'][0]:.3f}  cosine {r['cosine'][0]:.3f}")
PY
echo
echo "Random weights, so the clips are noise: this shows that the path works, not what it does to a video."
echo "clips, configuration and trace: $out/without and $out/with"
echo "undo the edit of $host with: mp-patch videocrafter2 --revert"
