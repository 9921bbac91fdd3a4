#!/usr/bin/env bash
# The README's first two commands in a fresh clone of the last commit, on the oldest versions that setup.py allows, on the
# newest there are, and on every Python between: bash scripts/matrix.sh [STACK ...], all of them unless told. Each has a
# folder of its own (some GB) in build/matrix/, with a log; what cannot be installed here is said so and passed over.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset VIRTUAL_ENV PYTHONPATH MP_NO_VENV MP_PYTHON

STACKS=(oldest python3.10 python3.11 python3.12 newest)
EXTRAS=test,videocrafter,lavie,animatediff

# Every lower bound of setup.py as a version; the higher one where extras differ.
lower_bounds() {
    grep -oE '"[A-Za-z_-]+>=[0-9.]+' setup.py | tr -d '"' | sort -V | awk -F'>=' '{at[$1] = $2} END {for (p in at) print p "==" at[p]}'
}

# Where a Python is (python3.10); one of pyenv's need not be active.
find_python() {
    local found
    for found in "$(command -v "$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/${1#python}".*/bin/"$1"; do
        "$found" -c 'import ensurepip' 2>/dev/null && echo "$found" && return
    done
    return 1
}

in_clone() { (cd "$folder/mp_hooks" && "$@") >>"$log" 2>&1; }

# One stack in $name: its line in $result; false where it was installed and a command failed.
try() {
    local wanted=$name python began folder=$PWD/build/matrix/$name log=$PWD/build/matrix/$name.log
    case $name in
        oldest) wanted=python3.10 ;;
        newest) wanted=python3.13 ;;
    esac
    python=$(find_python "$wanted") || { result="not run, there is no $wanted here"; return; }
    rm -rf "$folder" && mkdir -p "$folder" && : >"$log"
    git clone --quiet . "$folder/mp_hooks"
    if [[ $name == oldest ]]; then
        lower_bounds >"$folder/constraints.txt"
        local -x PIP_CONSTRAINT=$folder/constraints.txt
    fi
    # Made here, so that the torch of that Python itself is not taken.
    if ! { in_clone "$python" -m venv .venv &&
        in_clone bash -ec "source scripts/environment.sh; prepare_environment $EXTRAS"; }; then
        result="not run, cannot be installed here: $(grep -i error "$log" | tail -n1), see $log"
        return
    fi
    began=$SECONDS
    in_clone bash -exc "$(awk '/^```/ {fence++; next} fence == 1' README.md)"
    local failed=$?
    result="$( ((failed)) && echo FAILED || echo passed) in $((SECONDS - began)) s: $(tail -n1 "$log")"
    return $failed
}

[[ $# -gt 0 ]] || set -- "${STACKS[@]}"
results=() failed=0
for name in "$@"; do
    [[ " ${STACKS[*]} " == *" $name "* ]] || { echo "there is no stack $name; there are: ${STACKS[*]}" >&2 && exit 2; }
    echo "== $name, log in build/matrix/$name.log"
    try || failed=1
    echo "$result"
    results+=("$name: $result")
done

echo "== matrix"
printf '%s\n' "${results[@]}"
exit $failed
