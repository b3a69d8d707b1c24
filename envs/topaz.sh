#!/usr/bin/env bash
# Build Topaz's own environment:  envs/topaz.sh DIR [--python /path/to/python]
#
# Topaz is under the GPL and wants other versions than this project, so it lives in a virtual environment
# of its own and is only ever run as a program.  DIR/ready.json is written last: while it is missing, the
# environment is not whole.  Run the script again to rebuild.
set -euo pipefail

fail() { echo "topaz.sh: error: $*" >&2; exit 2; }

pins=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/topaz.txt
python=python3
dir=
while [ $# -gt 0 ]; do
    case $1 in
        --python) [ $# -ge 2 ] || fail "--python wants the path of a Python"; python=$2; shift 2 ;;
        -*) fail "unknown option $1; usage: topaz.sh DIR [--python /path/to/python]" ;;
        *) [ -z "$dir" ] || fail "found two directories, $dir and $1; wanted one"; dir=$1; shift ;;
    esac
done
[ -n "$dir" ] || fail "usage: topaz.sh DIR [--python /path/to/python]"
[ -r "$pins" ] || fail "$pins is missing; it holds the versions to install"
command -v "$python" >/dev/null || fail "$python: no such program; give a Python 3.11 or newer with --python"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" --version 2>&1), wanted 3.11 or newer; give another with --python"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv) or give another with --python"
# --clear below empties DIR, so it must be one of ours (or new, or empty).
if [ -e "$dir" ] && [ ! -e "$dir/pyvenv.cfg" ] && [ -n "$(ls -A "$dir")" ]; then
    fail "$dir exists and is not a virtual environment; give another directory"
fi

rm -f "$dir/ready.json"
"$python" -m venv --clear "$dir"
pip=("$dir/bin/python" -m pip --disable-pip-version-check --no-input)
"${pip[@]}" install --progress-bar off -c "$pins" setuptools torch numpy h5py pillow pandas scipy tqdm
# Without its declared needs (torchvision among them), and although it declares Python <= 3.13.0.
"${pip[@]}" install --progress-bar off -c "$pins" --no-deps --ignore-requires-python topaz-em

# Denoise a small image with each pretrained network before calling the environment ready: loading the
# weights fails in ways that the installation does not show.
"$dir/bin/python" -I - "$dir" <<'PYTHON'
import hashlib, json, os, platform, struct, subprocess, sys, tempfile
from importlib import metadata, util
from pathlib import Path

import numpy as np

directory = Path(sys.argv[1]).absolute()
with tempfile.TemporaryDirectory() as scratch:
    header = struct.pack("<10i", 64, 64, 1, 2, 0, 0, 0, 64, 64, 1).ljust(1024, b"\0")
    image = np.random.default_rng(0).normal(size=(64, 64)).astype("<f4")
    Path(scratch, "x.mrc").write_bytes(header + image.tobytes())
    for arch in ("unet", "unet-small", "affine"):
        command = [sys.executable, "-I", "-W", "ignore", "-m", "topaz.commands.denoise"]
        command += ["--device", "-1", "--arch", arch, "--output", arch, "x.mrc"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"topaz.sh: error: the installed Topaz does not run:\n{done.stderr}")
        out = np.frombuffer(Path(scratch, arch, "x.mrc").read_bytes()[1024:], "<f4")
        if out.size != image.size or not np.isfinite(out).all():
            sys.exit(f"topaz.sh: error: the installed Topaz ({arch}) gave {out.size} pixels, or not finite ones")

# The picker's detector, too, must at least load: its imports are others than the denoiser's.
for command in ("preprocess", "extract"):
    words = [sys.executable, "-I", "-W", "ignore", "-m", f"topaz.commands.{command}", "--help"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"topaz.sh: error: topaz {command} does not run:\n{done.stderr}")

package = Path(util.find_spec("topaz").submodule_search_locations[0])
weights = {
    "unet": "unet_L2_v0.2.2.sav",
    "unet-small": "unet_small_L1_v0.2.2.sav",
    "affine": "affine_L1_v0.2.2.sav",
}
ready = {
    "topaz": metadata.version("topaz-em"),
    "torch": metadata.version("torch"),
    "python": platform.python_version(),
    "weights": {
        arch: {
            "file": name,
            "sha256": hashlib.sha256((package / "pretrained" / "denoise" / name).read_bytes()).hexdigest(),
        }
        for arch, name in weights.items()
    },
}
temporary = directory / ".ready.json.tmp"
temporary.write_text(json.dumps(ready, indent=1) + "\n")
os.replace(temporary, directory / "ready.json")
PYTHON
echo "topaz.sh: $dir is ready"
