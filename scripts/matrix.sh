#!/usr/bin/env bash
# The tests on the oldest and the newest versions that are supported, and on every Python between, each in an
# environment of its own (some GB each) in build/matrix/. Arguments go on to pytest; STACKS="oldest python3.12" runs
# only these. What cannot be installed here is said so and passed over.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# name, interpreter, what pip is to install; without a version the newest there is
MATRIX='
oldest      python3.10  torch==2.4.0 torchvision==0.19.0 diffusers==0.30.0 transformers==4.40.0 open_clip_torch==2.20.0
python3.10  python3.10  torch torchvision diffusers transformers open_clip_torch==2.22.0
python3.11  python3.11  torch torchvision diffusers transformers open_clip_torch==2.22.0
python3.12  python3.12  torch torchvision diffusers transformers open_clip_torch==2.22.0
newest      python3.13  torch torchvision diffusers transformers open_clip_torch==2.22.0
'

results=() failed=0
while read -r name interpreter packages; do
    [[ -n "$name" && (-z "${STACKS:-}" || " $STACKS " == *" $name "*) ]] || continue
    folder=build/matrix/$name
    mkdir -p build/matrix
    echo "== $name"
    # shellcheck disable=SC2086 (a word a package)
    if ! "$interpreter" -c 'pass' 2>/dev/null; then
        results+=("$name: not run, there is no $interpreter here")
    elif ! { "$interpreter" -m venv "$folder" && "$folder/bin/python" -m pip install --quiet \
        --disable-pip-version-check $packages -e '.[test,videocrafter,lavie]'; } >"$folder.log" 2>&1; then
        results+=("$name: not run, not installable here: $(grep -m1 -i error "$folder.log" || tail -n1 "$folder.log")")
    elif PATH="$PWD/$folder/bin:$PATH" "$folder/bin/python" -m pytest "$@" 2>&1 | tee "$folder.log"; then
        results+=("$name: $(tail -n1 "$folder.log")")
    else
        results+=("$name: FAILED, $(tail -n1 "$folder.log"), see $folder.log")
        failed=1
    fi
done <<<"$MATRIX"

echo "== matrix"
printf '%s\n' "${results[@]}"
exit $failed
