#!/usr/bin/env bash
# Run a command inside the project's own environment, .venv, making it first when it is missing or its
# pins have changed:      bash envs/run.sh COMMAND ...
#
# Wants Python 3.11 or newer and git's checkout, nothing else.  Leaves the system's Python alone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${CRYON2N_VENV:-$root/.venv}
say() { echo "run.sh: $*" >&2; }
fail() { say "error: $*"; exit 2; }

[ $# -gt 0 ] || fail "usage: bash envs/run.sh COMMAND ...   for example: bash envs/run.sh cryon2n --help"

# The environment is right when it was made from these very pins.
# (Tool settings at the end of pyproject.toml install nothing.)
wanted=$({ sed '/^\[tool\./,$d' "$root/pyproject.toml"; cat "$root/envs/constraints.txt"; } | sha256sum | cut -c1-16)

make_environment() {
    local python candidate
    for candidate in "${CRYON2N_PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "${python:-}" ] || fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it in CRYON2N_PYTHON"
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        # Debian and Ubuntu split it from Python.
        local sudo=
        [ "$(id -u)" = 0 ] || sudo="sudo -n"
        say "$python has no venv module; installing the package python3-venv"
        { $sudo apt-get update -q && $sudo apt-get install -y -q python3-venv; } >&2 ||
            fail "please run: sudo apt install python3-venv"
    fi
    say "making $venv with $("$python" --version); a few minutes the first time"
    "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"
    # The project itself is installed by reference, so that edits of src/ count at once.
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off -q \
        -c "$root/envs/constraints.txt" -e "$root[dev,slurm]" >&2 ||
        fail "pip could not install the packages (see above)"
    echo "$wanted" >"$venv/cryon2n-pins"
    say "ready"
}

if [ "$(cat "$venv/cryon2n-pins" 2>/dev/null)" != "$wanted" ]; then
    # Two commands at once: the second waits and finds it made.
    exec 9>"$root/.venv.lock"
    flock 9
    [ "$(cat "$venv/cryon2n-pins" 2>/dev/null)" = "$wanted" ] || make_environment
    flock -u 9
    exec 9>&-
fi
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
unset PYTHONHOME
exec "$@"
