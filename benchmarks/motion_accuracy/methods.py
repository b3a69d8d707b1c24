"""The programs that are compared; each takes corrected counts and gives a motion field and the seconds it took."""

import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import torch

from cryon2n import files, motion
from cryon2n.fourier import edge_taper
from cryon2n.local_motion import LocalField
from motion_accuracy.field import Field, constant, from_grid
from motion_accuracy.measure import polynomial_terms

TMC_PYTHON = os.environ.get(
    "CRYON2N_TMC_PYTHON", str(Path(__file__).parents[2] / "results" / "torch-motion-correction-env" / "bin" / "python")
)
TMC_PROGRAM = Path(__file__).with_name("torch_motion_correction_program.py")
PROGRAMS = ("RELION", "torch-motion-correction")  # how the names of their methods begin
PLAIN_B = 150.0  # Å²


@dataclass(frozen=True)
class Task:
    """What a method is given.

    Attributes
    ----------
    counts : ndarray, shape (n, h, w), uint8
    pixel_size : float
        Å.
    dose_per_frame : float
        e⁻/Å².
    folder : Path
        For the files of the programs, each with names of its own.
    threads : int
        For programs that work on the CPU.
    device : torch device
        For those that can use a GPU.
    deadline : float
        Of `time.monotonic`; programs that still run then are stopped.
    locks : dict
        Program -> what is held while files are made that its methods share.
    """

    counts: np.ndarray
    pixel_size: float
    dose_per_frame: float
    folder: Path
    threads: int
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    deadline: float = math.inf
    locks: dict[str, threading.Lock] = field(default_factory=lambda: {name: threading.Lock() for name in PROGRAMS})


Found = tuple[Field, float]  # the motion, and the seconds that it took


class Failed(Exception):
    """A program gave no motion; the message says what it said."""


class OutOfTime(Exception):
    """The benchmark's time ended; the method is left for the next run."""


# ---------------------------------------------------------------------------- inside this process


def seconds_since(began: float, device: torch.device) -> float:
    """Return the seconds since `began`, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def ours(task: Task, local: bool) -> Found:
    """Run `cryon2n.motion`; seconds are those from the counts to the field, with the Fourier transforms."""
    shape = task.counts.shape[1:]
    began = time.perf_counter()
    spectra = torch.stack([torch.fft.rfft2(torch.from_numpy(f).to(task.device).float()) for f in task.counts])
    settings = motion.MotionSettings(local=local)
    found = motion.estimate(spectra, shape, (task.pixel_size,) * 2, settings, task.dose_per_frame)
    return our_field(found, shape, task.pixel_size), seconds_since(began, task.device)


def our_field(found: motion.Motion, shape: tuple[int, int], pixel_size: float) -> Field:
    """Turn a motion of frames of `shape` into the field.

    Its places are fractions of the aligned frames from which it cuts its patches, and those are aligned where the mean
    of the trajectory is 0.
    """
    middle = found.trajectory_A.mean(axis=0)
    if found.local is None:
        return constant(found.trajectory_A - middle, pixel_size)
    knots = found.local.knots_A

    def displacement(t: int, places: np.ndarray) -> np.ndarray:
        frame = motion.Motion(found.trajectory_A[t : t + 1] - middle, LocalField(knots[t : t + 1]))
        return frame.field(places / shape)[0]

    return Field(displacement, len(knots), pixel_size, in_frame=False)


def plain(task: Task) -> Found:
    """Correlate each frame with the sum of the others, once; parabola about the highest pixel."""
    began = time.perf_counter()
    shape = task.counts.shape[1:]
    ky, kx = torch.fft.fftfreq(shape[0], task.pixel_size)[:, None], torch.fft.rfftfreq(shape[1], task.pixel_size)
    weight = torch.exp(-PLAIN_B / 4 * (ky * ky + kx * kx)).to(task.device)
    window = torch.tensor(edge_taper(shape, 32), device=task.device)

    def spectrum(counts: np.ndarray) -> torch.Tensor:
        frame = torch.from_numpy(counts).to(task.device).float()
        return weight * torch.fft.rfft2((frame - frame.mean()) * window)

    spectra = torch.stack([spectrum(frame) for frame in task.counts])
    total = spectra.sum(dim=0)
    peaks = np.stack([_peak(torch.fft.irfft2((total - s).conj() * s, s=shape)) for s in spectra])
    return constant((peaks - peaks[0]) * task.pixel_size, task.pixel_size), seconds_since(began, task.device)


def _peak(correlation: torch.Tensor) -> np.ndarray:
    """Return the place (y, x) of the highest value of a periodic map about 0, refined by parabolas."""
    top = np.unravel_index(int(correlation.argmax()), tuple(correlation.shape))
    out = np.array(top, float)
    for axis in (0, 1):
        line = correlation.select(1 - axis, int(top[1 - axis])).cpu().numpy()
        left, middle, right = (float(line[(top[axis] + k) % len(line)]) for k in (-1, 0, 1))
        out[axis] += 0.5 * (left - right) / min(left - 2 * middle + right, -1e-30)
        if out[axis] >= len(line) / 2:
            out[axis] -= len(line)
    return out


# ---------------------------------------------------------------------------- torch-motion-correction


def torch_motion_correction(task: Task, mode: str) -> Found:
    """Run torch-motion-correction in its own environment; seconds are those of its estimate alone.

    One run gives both modes, since the local one starts from the global one.
    """
    movie, times = task.folder / "movie.npy", task.folder / f"{mode}.json"
    with task.locks["torch-motion-correction"]:
        if not times.is_file():
            np.save(movie, task.counts)
            _run([TMC_PYTHON, TMC_PROGRAM, task.folder, task.pixel_size, task.threads, task.device], task)
            movie.unlink()
    grids = np.load(task.folder / f"{mode}.npy")
    return from_grid(grids, task.counts.shape[1:], task.pixel_size), files.read_json(times)["seconds"]


# ---------------------------------------------------------------------------- RELION


def relion(task: Task, patches: int) -> Found:
    """Run RELION's own motion correction; seconds are those of the whole program, with reading and summing."""
    with task.locks["RELION"]:
        if not (task.folder / "movies.star").is_file():
            _write_for_relion(task)
    out = f"out{patches}"
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", f"{out}/", "--use_own", "--j", task.threads]
    began = time.perf_counter()
    _run([*command, "--patch_x", patches, "--patch_y", patches], task)
    seconds = time.perf_counter() - began
    star = task.folder / out / "movie.star"
    if not star.is_file():
        raise Failed("relion_run_motioncorr wrote no movie.star")
    return relion_field(star.read_text(), task.counts.shape, task.pixel_size), seconds


def _write_for_relion(task: Task) -> None:
    counts = task.counts.astype(np.int16) if task.counts.max() > 127 else task.counts.view(np.int8)
    with mrcfile.new(task.folder / "movie.mrc", counts, overwrite=True) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = task.pixel_size
    (task.folder / "movies.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnMicrographOriginalPixelSize #3\n"
        f"_rlnVoltage #4\n_rlnSphericalAberration #5\n_rlnAmplitudeContrast #6\none 1 {task.pixel_size} 300 2.7 0.1\n\n"
        "data_movies\n\nloop_\n_rlnMicrographMovieName #1\n_rlnOpticsGroup #2\nmovie.mrc 1\n"
    )


def star_blocks(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of words of each data block of a STAR file; names of columns are left out."""
    blocks: dict[str, list[list[str]]] = {}
    rows: list[list[str]] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith("data_"):
            rows = blocks.setdefault(words[0], [])
        elif words and words[0] != "loop_" and not words[0].startswith(("#", "_")):
            rows.append(words)
    return blocks


def relion_field(text: str, shape: tuple[int, int, int], pixel_size: float) -> Field:
    """Turn the STAR file of one movie of `shape` (n, h, w) into the field.

    RELION 3.1's shifts are what is *applied* to a frame, in pixels: the negative of where its content stands.
    Its model, polynomials in the frame's number from 0, is added to the global shift, in the corrected image.
    """
    n = shape[0]
    blocks = star_blocks(text)
    shifts = np.zeros((n, 2))
    for frame, x, y in (row[:3] for row in blocks["data_global_shift"]):
        shifts[int(frame) - 1] = float(y), float(x)
    trajectory = -shifts * pixel_size
    model = np.array([float(row[1]) for row in blocks.get("data_local_motion_model", [])])
    if not model.size:
        return constant(trajectory, pixel_size)
    weights = -model.reshape(2, 18)[::-1].T * pixel_size  # x stands first in the file

    def displacement(t: int, places: np.ndarray) -> np.ndarray:
        return trajectory[t] + polynomial_terms(np.array([float(t)]), places, shape[1:])[0] @ weights

    return Field(displacement, n, pixel_size, in_frame=False)


def _run(command: Sequence[object], task: Task) -> None:
    words = [str(word) for word in command]
    left = task.deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime
    try:
        done = subprocess.run(words, cwd=task.folder, capture_output=True, text=True, timeout=min(left, 1e6))
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    if done.returncode:
        raise Failed(f"{Path(words[0]).name} gave {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")


# ---------------------------------------------------------------------------- which there are

METHODS: dict[str, Callable[[Task], Found]] = {
    "cryon2n global": partial(ours, local=False),
    "cryon2n local": partial(ours, local=True),
    "plain cross-correlation": plain,
    "torch-motion-correction global": partial(torch_motion_correction, mode="global"),
    "torch-motion-correction local": partial(torch_motion_correction, mode="local"),
    "RELION global": partial(relion, patches=1),
    "RELION 3x3": partial(relion, patches=3),
    "RELION 5x5": partial(relion, patches=5),
}
GLOBAL_OF = {
    "cryon2n local": "cryon2n global",
    "torch-motion-correction local": "torch-motion-correction global",
    "RELION 3x3": "RELION global",
    "RELION 5x5": "RELION global",
}


def program(method: str) -> str | None:
    """Return the name of the program that a method is, or None if it runs inside this process."""
    return next((name for name in PROGRAMS if method.startswith(name)), None)


def why_absent(method: str) -> str | None:
    """Return why a method cannot run on this machine, or None."""
    if program(method) == "RELION" and shutil.which("relion_run_motioncorr") is None:
        return "relion_run_motioncorr is not installed (Debian: apt install relion)"
    if program(method) == "torch-motion-correction" and shutil.which(TMC_PYTHON) is None:
        return f"no {TMC_PYTHON}; benchmarks/motion-accuracy/torch-motion-correction.txt says how to make it"
    return None
