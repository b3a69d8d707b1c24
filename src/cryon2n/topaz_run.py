"""Running the installed Topaz: its environment, its command line, and the checks that it does as asked.

Topaz (https://github.com/tbepler/topaz) is under the GPL: nothing of it is imported here.
``envs/topaz.sh`` builds an environment of its own for it, in which it is run as a program.

Topaz 0.3.20 gives no error where it does something else than asked: without CUDA it goes on on the CPU,
and ``--model`` is ignored in favour of ``--arch``.  So the lines in which it names its device and its
weights are compared with what was asked.
"""

import dataclasses
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cryon2n import files
from cryon2n.errors import InputError

DEVICES = {"cpu": "-1", "cuda": "0", "auto": "0"}  # which GPU is 0 is for CUDA_VISIBLE_DEVICES to say


@dataclasses.dataclass(frozen=True)
class TopazRun:
    """One finished call of Topaz.

    Attributes
    ----------
    command : list of str
        What ran, after the path of the environment's ``bin``; file names are relative to a temporary folder.
    device : str
        Topaz's own line about its device.
    lines : list of (float, str)
        All that it printed, with the seconds since its start.
    seconds, cpu_seconds : float
        Wall time, and user and system time of all its processes; start-up included.
    """

    command: list[str]
    device: str
    lines: list[tuple[float, str]]
    seconds: float
    cpu_seconds: float

    @property
    def seconds_per_image(self) -> float | None:
        """Wall seconds per image without the start-up and the first image; None for fewer than two."""
        ends = [t for t, line in self.lines if re.fullmatch(r"# \d+ of \d+ completed\.", line)]
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None


def read_environment(directory: str | Path) -> dict[str, Any]:
    """Return what ``envs/topaz.sh`` wrote about the environment: versions, and the weights' SHA-256."""
    directory = Path(directory)
    ready = directory / "ready.json"
    if not ready.is_file() or not (directory / "bin" / "python").exists():
        raise InputError(f"{directory}: no finished environment of Topaz; run `envs/topaz.sh {directory}`")
    return files.read_json(ready)


def run_topaz(
    environment: str | Path,
    arguments: Sequence[str],
    cwd: str | Path,
    device: str = "auto",
    threads: int | None = None,
    on_line: Callable[[str], None] | None = None,
) -> TopazRun:
    """Run ``topaz denoise`` and wait for it.

    Parameters
    ----------
    environment : path
        Directory that ``envs/topaz.sh`` built.
    arguments : sequence of str
        Of ``topaz denoise``, without ``--device``.
    cwd : path
        Directory to run in.
    device : str
        ``cpu``, ``cuda`` or ``auto`` (CUDA where there is one).
    threads : int or None
        CPU threads; None leaves the number to Topaz.
    on_line : callable, optional
        Gets each line as it is printed.

    Raises
    ------
    InputError
        The environment is not ready, Topaz ended with an error, or it used another device than asked.
    """
    read_environment(environment)
    # The module and not the `topaz` script, which imports torchvision for its picker.  -I: neither PYTHONPATH
    # nor the user's own packages may leak in.  -u: progress arrives when it is made.
    command = "python -I -u -W ignore -m topaz.commands.denoise --device".split()
    command += [DEVICES[device], *arguments]
    env = dict(os.environ)
    if threads is not None:
        env.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))

    lines: list[tuple[float, str]] = []
    used = ""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(
        [str(Path(environment).absolute() / "bin" / "python"), *command[1:]],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        for line in _printed(process):
            lines.append((time.monotonic() - began, line))
            if line.startswith("# using device="):
                used = line
                _check_device(used, device)  # at once: on the CPU the rest could take days
            if on_line:
                on_line(line)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if code != 0:
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed by signal {-code} (9 is most often too little memory)"
        tail = "\n  ".join(line for _, line in lines[-6:])
        raise InputError(f"Topaz {how}; the last that it printed:\n  {tail}")
    if not used:
        raise InputError(f"Topaz did not say which device it used; is {environment} what envs/topaz.sh built?")
    return TopazRun(command, used, lines, round(seconds, 3), round(cpu, 3))


def _printed(process: subprocess.Popen) -> Iterator[str]:
    """Yield a process's output by lines, which Topaz ends with either a line feed or a carriage return."""
    rest = b""
    while chunk := os.read(process.stdout.fileno(), 65536):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        yield from (line.decode(errors="replace").strip() for line in whole if line.strip())
    if rest.strip():
        yield rest.decode(errors="replace").strip()


def _check_device(line: str, device: str) -> None:
    if device == "cuda" and "cuda=True" not in line:
        raise InputError(
            f"Topaz fell back to the CPU although cuda was asked (it says {line!r}); build its environment "
            "on a machine with a GPU, or ask for the device cpu or auto"
        )
    if device == "cpu" and "cuda=False" not in line:
        raise InputError(f"Topaz used a GPU although cpu was asked (it says {line!r}); hide the GPU from it")


def check_weights(run: TopazRun, wanted: str | None) -> None:
    """Compare the pretrained weights that Topaz says it loaded with the file `wanted` (None: none at all)."""
    mark = "# loading pretrained model: "
    loaded = [line.removeprefix(mark) for _, line in run.lines if line.startswith(mark)]
    if loaded != ([] if wanted is None else [wanted]):
        raise InputError(
            f"Topaz loaded the pretrained weights {', '.join(loaded) or 'none'}, wanted {wanted or 'none'}; "
            "build its environment again with envs/topaz.sh"
        )
