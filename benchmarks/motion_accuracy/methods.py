"""The programs that are compared; each takes corrected counts and gives a motion field and the seconds it took."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import torch
from scipy import fft

from cryon2n import files, motion
from cryon2n.fourier import windowed_spectrum
from motion_accuracy.field import Field, constant, from_grid
from motion_accuracy.measure import polynomial_terms

TMC_PYTHON = os.environ.get("CRYON2N_TMC_PYTHON", "results/torch-motion-correction-env/bin/python")
TMC_PROGRAM = Path(__file__).with_name("torch_motion_correction_program.py")
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
        Empty, for the method's files.
    threads : int
    """

    counts: np.ndarray
    pixel_size: float
    dose_per_frame: float
    folder: Path
    threads: int


Method = Callable[[Task], tuple[Field, float]]


class Failed(Exception):
    """A program gave no motion; the message says what it said."""


# ---------------------------------------------------------------------------- inside this process


def ours(task: Task, local: bool) -> tuple[Field, float]:
    """Run `cryon2n.motion`; seconds are those from the counts to the field, with the Fourier transforms."""
    torch.set_num_threads(task.threads)
    n, *shape = task.counts.shape
    began = time.perf_counter()
    spectra = torch.stack([torch.fft.rfft2(torch.from_numpy(frame).float()) for frame in task.counts])
    settings = motion.MotionSettings(local=local)
    found = motion.estimate(spectra, tuple(shape), (task.pixel_size,) * 2, settings, task.dose_per_frame)
    seconds = time.perf_counter() - began
    if found.local is None:
        return constant(found.trajectory_A, task.pixel_size), seconds
    # Its places are fractions of the aligned frames from which it cuts its patches, and those are aligned where the
    # mean of the trajectory is 0.
    middle = found.trajectory_A.mean(axis=0)

    def displacement(t: int, places: np.ndarray) -> np.ndarray:
        return found.field(places / shape)[t] - middle

    return Field(displacement, n, task.pixel_size, in_frame=False), seconds


def plain(task: Task) -> tuple[Field, float]:
    """Correlate each frame with the sum of the others, once; parabola about the highest pixel."""
    began = time.perf_counter()
    shape = task.counts.shape[1:]
    ky, kx = np.fft.fftfreq(shape[0], task.pixel_size)[:, None], np.fft.rfftfreq(shape[1], task.pixel_size)[None, :]
    weight = np.exp(-PLAIN_B / 4 * (ky * ky + kx * kx)).astype(np.float32)
    with fft.set_workers(task.threads):
        spectra = np.stack([weight * windowed_spectrum(frame.astype(np.float32), 32) for frame in task.counts])
        total = spectra.sum(axis=0)
        peaks = np.stack([_peak(fft.irfft2((total - s).conj() * s, s=shape)) for s in spectra])
    return constant((peaks - peaks[0]) * task.pixel_size, task.pixel_size), time.perf_counter() - began


def _peak(correlation: np.ndarray) -> np.ndarray:
    """Return the place (y, x) of the highest value of a periodic map about 0, refined by parabolas."""
    top = np.unravel_index(int(correlation.argmax()), correlation.shape)
    out = np.array(top, float)
    for axis in (0, 1):
        line = np.take(correlation, top[1 - axis], axis=1 - axis)
        left, middle, right = (float(line[(top[axis] + k) % len(line)]) for k in (-1, 0, 1))
        out[axis] += 0.5 * (left - right) / min(left - 2 * middle + right, -1e-30)
        if out[axis] >= len(line) / 2:
            out[axis] -= len(line)
    return out


# ---------------------------------------------------------------------------- torch-motion-correction


def torch_motion_correction(task: Task, mode: str) -> tuple[Field, float]:
    """Run torch-motion-correction in its own environment; seconds are those of its estimate alone."""
    movie, field, times = (str(task.folder / name) for name in ("movie.npy", "field.npy", "times.json"))
    np.save(movie, task.counts)
    _run([TMC_PYTHON, str(TMC_PROGRAM), movie, field, times, mode, str(task.pixel_size), str(task.threads)])
    found = from_grid(np.load(field), task.counts.shape[1:], task.pixel_size)
    return found, files.read_json(times)["seconds"]


# ---------------------------------------------------------------------------- RELION


def relion(task: Task, patches: int) -> tuple[Field, float]:
    """Run RELION's own motion correction; seconds are those of the whole program, with reading and summing."""
    with mrcfile.new(task.folder / "movie.mrc", task.counts.astype(np.int16), overwrite=True) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = task.pixel_size
    (task.folder / "movies.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n_rlnMicrographOriginalPixelSize #3\n"
        f"_rlnVoltage #4\n_rlnSphericalAberration #5\n_rlnAmplitudeContrast #6\none 1 {task.pixel_size} 300 2.7 0.1\n\n"
        "data_movies\n\nloop_\n_rlnMicrographMovieName #1\n_rlnOpticsGroup #2\nmovie.mrc 1\n"
    )
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", str(task.threads)]
    began = time.perf_counter()
    _run([*command, "--patch_x", str(patches), "--patch_y", str(patches)], task.folder)
    seconds = time.perf_counter() - began
    star = task.folder / "out" / "movie.star"
    if not star.is_file():
        raise Failed("relion_run_motioncorr wrote no movie.star")
    return relion_field(star.read_text(), task.counts.shape, task.pixel_size), seconds


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


def _run(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{Path(command[0]).name} gave {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")


# ---------------------------------------------------------------------------- which there are

METHODS: dict[str, Method] = {
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


def why_absent(method: str) -> str | None:
    """Return why a method cannot run on this machine, or None."""
    if method.startswith("RELION") and shutil.which("relion_run_motioncorr") is None:
        return "relion_run_motioncorr is not installed (Debian: apt install relion)"
    if method.startswith("torch-motion") and shutil.which(TMC_PYTHON) is None:
        return f"no {TMC_PYTHON}; benchmarks/motion-accuracy/torch-motion-correction.txt says how to make it"
    return None
