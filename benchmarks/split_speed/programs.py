"""What is timed: our command in both its forms, bare reading and writing, and the peers that are installed."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np

from cryon2n import files, mrcio, split_many
from split_speed.movie import PIXEL_SIZE

BIN, PATCHES = 2, 5


@dataclass(frozen=True)
class Task:
    """What is to be split, and on what.

    Attributes
    ----------
    movies : list of Path
        The same movie by several names.
    gain : Path
    folder : Path
        For what is written.
    device : str
    threads : int
    """

    movies: list[Path]
    gain: Path
    folder: Path
    device: str
    threads: int


@dataclass(frozen=True)
class Took:
    """What one run took.

    Attributes
    ----------
    seconds : float
        For one movie.
    peak_GB : float or None
        Of the process' memory, with the pages of files that it has mapped.
    laps : dict
        Seconds (or shares) of its parts.
    """

    seconds: float
    peak_GB: float | None = None
    laps: dict[str, float] = field(default_factory=dict)


def run(command: list[object], folder: Path) -> tuple[float, float]:
    """Run a program; returns its wall time in s and its peak memory in GB."""
    with open(folder / "log.txt", "w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[0]} gave {process.returncode}: {log.read()[-800:]}")
    return seconds, used.ru_maxrss / 1e6


def fresh(folder: Path) -> Path:
    """Return a folder, emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _command(task: Task) -> list[object]:
    command = [sys.executable, "-m", "cryon2n", "split-halves", "--gain", task.gain, "--set", f"bin={BIN}"]
    return [*command, "--device", task.device, "--threads", task.threads]


def single(task: Task) -> Took:
    """One movie in a process of its own; laps are those of its record, and what is left of the wall time."""
    folder = fresh(task.folder / "single")
    seconds, peak = run([*_command(task), "--movie", task.movies[0], "--out", folder / "m"], folder)
    laps = files.read_json(folder / "m.json")["seconds"]
    rest = {"start-up, hashing, writing, and on a GPU reading": seconds - sum(laps.values())}
    return Took(seconds, peak, {**laps, **rest})


def many(task: Task, processes: int = 1) -> Took:
    """All movies in one process, or some; seconds are those between records, without the first movie of each process.

    Laps: how long each stage works on a movie (median without the first ones, which bear the start).
    """
    folder = fresh(task.folder / "many")
    where = ["--out-dir", folder / "out", "--summary", folder / "summary.json", "--processes", processes]
    _, peak = run([*_command(task), "--movie", *task.movies, *where], folder)
    summary = files.read_json(folder / "summary.json")
    about = sorted(summary["movies"].values(), key=lambda movie: movie["after_s"])
    ends = [movie["after_s"] for movie in about]
    late = about[processes:]
    laps = {key[:-2]: float(np.median([movie[key] for movie in late])) for key in about[0] if key[-2:] == "_s"}
    del laps["after"]
    laps |= {key: summary[key] for key in ("peak_gpu_memory_GB",) if key in summary}
    inner = [files.read_json(path)["seconds"] for path in (folder / "out").glob("*.json")]
    laps |= {f"split: {name}": float(np.median([one[name] for one in inner])) for name in inner[0]}
    # Of several processes only the first one's memory is seen from here; the summary has the sum.
    peak = summary["peak_memory_GB"] if processes > 1 else peak
    return Took((ends[-1] - ends[processes - 1]) / (len(ends) - processes), peak, laps)


def bare(task: Task) -> Took:
    """Read the movie's bytes, hash them (which the record wants), and write two images of the halves' size: no more."""
    folder, buffer = fresh(task.folder / "bare"), bytearray(1 << 24)
    marks = [time.perf_counter()]
    with open(task.movies[0], "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    marks.append(time.perf_counter())
    files.sha256_of(task.movies[0])
    marks.append(time.perf_counter())
    with mrcfile.mmap(task.movies[0]) as mrc:
        h, w = mrc.data.shape[1:]
    image = np.ones((h // BIN, w // BIN), np.float32)
    for side in "ab":
        mrcio.write_mrc(folder / f"{side}.mrc", image, PIXEL_SIZE * BIN)
        files.sha256_of(folder / f"{side}.mrc")
    marks.append(time.perf_counter())
    read, hashed, written = np.diff(marks).tolist()
    return Took(read + written, None, {"read": read, "hash": hashed, "write": written})


def relion(task: Task) -> Took:
    """RELION's own implementation, which writes one sum of all frames."""
    folder = fresh(task.folder / "relion")
    (folder / "movie.mrc").symlink_to(task.movies[0])
    (folder / "movies.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnMicrographOriginalPixelSize #3\n"
        f"_rlnVoltage #4\n_rlnSphericalAberration #5\n_rlnAmplitudeContrast #6\none 1 {PIXEL_SIZE} 300 2.7 0.1\n\n"
        "data_movies\n\nloop_\n_rlnMicrographMovieName #1\n_rlnOpticsGroup #2\nmovie.mrc 1\n"
    )
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", task.threads]
    command += ["--bin_factor", BIN, "--patch_x", PATCHES, "--patch_y", PATCHES, "--gainref", task.gain]
    seconds, peak = run(command, folder)
    if not (folder / "out" / "movie.mrc").is_file():
        raise RuntimeError(f"relion_run_motioncorr wrote no sum: {(folder / 'log.txt').read_text()[-800:]}")
    return Took(seconds, peak)


PROGRAMS: dict[str, Callable[[Task], Took]] = {
    "cryon2n, a process per movie": single,
    "cryon2n, many movies": many,
    "cryon2n, many movies, 2 processes": partial(many, processes=2),
    "cryon2n, many movies, 3 processes": partial(many, processes=3),
    "bare reading and writing": bare,
    "RELION, own implementation": relion,
}


def why_absent(name: str) -> str | None:
    """Return why a program cannot run on this machine, or None."""
    if name.startswith("RELION") and shutil.which("relion_run_motioncorr") is None:
        return "relion_run_motioncorr is not installed (Debian: apt install relion)"
    return None


def stage_threads(device: str) -> dict[str, int]:
    """Return how many threads of the form with many movies work in each of its stages (`cryon2n.split_many`)."""
    beside = split_many.BESIDE[device]
    return {"read": 1, "split": 1, "hash": beside, "write": beside}


def into_cache(paths: list[Path]) -> None:
    """Write files through to the disk and read them once, so that nothing but memory is read from then on."""
    buffer = bytearray(1 << 24)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            while file.readinto(buffer):
                pass
