# Sourced by the other scripts, from the top of the repository.
#
# prepare_environment EXTRAS   sets $python to an interpreter with mp_hooks and these extras (test,videocrafter)
#
#   MP_PYTHON=python3.12   the interpreter .venv is made with (python3 unless told)
#   MP_NO_VENV=1           install into the current environment instead, as when a virtual environment is active

prepare_environment() {
    local extras=$1 base=${MP_PYTHON:-python3} quiet=() stamp began
    if [[ -n "${MP_NO_VENV:-}" || -n "${VIRTUAL_ENV:-}" ]]; then
        python=${MP_PYTHON:-python}
    else
        python=.venv/bin/python
        if [[ ! -x .venv/bin/pip ]]; then
            # A torch that is already there (for this machine's accelerator) is better than one pip would choose.
            if "$base" -c 'import torch' 2>/dev/null; then
                echo "== making .venv on top of the torch of $base"
                "$base" -m venv --system-site-packages .venv
            else
                echo "== making .venv"
                "$base" -m venv .venv
            fi
        fi
    fi

    # One stamp for each set of requirements spares later runs the half minute pip takes to find all satisfied.
    stamp=$("$python" -c 'import sys; print(sys.prefix)')/.mp_hooks-$(cksum <<<"$PWD $extras $(cat setup.py)" | cut -d' ' -f1)
    if [[ ! -e $stamp ]]; then
        echo "== installing mp_hooks[$extras] (minutes the first time, torch alone can be some GB)"
        [[ -t 1 ]] || quiet=(--quiet)
        began=$SECONDS
        "$python" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check -e ".[$extras]"
        echo "== installed in $((SECONDS - began)) s"
        touch "$stamp" 2>/dev/null || true
    fi
}
