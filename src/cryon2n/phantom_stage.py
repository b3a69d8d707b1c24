"""The commands ``simulate-references`` and ``simulate-movie``: an EMPIAR-like entry with a known truth.

All movies of an entry share its settings.  Every random quantity has its own stream, spawned from the
entry's seed, the movie's index, the frame and the block of rows: the same settings give the same
bytes, and no two movies or frames share noise.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from scipy import fft

from cryon2n import __version__, files, log, memory, mrcio, phantom
from cryon2n import phantom_molecule as molecules
from cryon2n.errors import InputError
from cryon2n.phantom_record import entry_metadata, movie_record
from cryon2n.settings import add_settings_arguments, settings_from_arguments

# First key of a random stream: what it is for.
REFERENCES, HOT, SCENE, NOISE = range(4)
FIELD_MARGIN = 8  # pixels

# name: (lowest, highest) value, both allowed
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63),
    "n_movies": (1, 100_000),
    "pixel_size_A": (0.2, 20),
    "n_frames": (2, 10_000),
    "dose_e_per_A2": (0.1, 1000),
    "voltage_kV": (50, 1000),
    "cs_mm": (0, 10),
    "amplitude_contrast": (0, 1),
    "astigmatism_A": (0, 5000),
    "particles_per_um2": (0, 1e6),
    "b_factor_A2": (0, 2000),
    "ice_gradient": (0, 0.3),
    "drift_A": (0, 200),
    "gain_spread": (0, 0.15),
    "dark_fraction": (0, 1),
    "hot_pixels_per_mpx": (0, 10_000),
    "hot_counts": (0, 130),
}


@dataclass(frozen=True)
class PhantomSettings:
    """A simulated entry.

    Attributes
    ----------
    seed : int
        Of the whole entry.
    n_movies : int
        Stated in the entry's metadata; changes no movie.
    shape : (h, w)
        Of a frame, pixels.
    pixel_size_A : float
        Of a raw pixel, Å.
    n_frames : int
    dose_e_per_A2 : float
        Of the whole exposure, e⁻/Å².
    voltage_kV : float
    cs_mm : float
        Spherical aberration, mm.
    amplitude_contrast : float
    defocus_A : (lowest, highest)
        Underfocus, Å; each movie draws one between.
    astigmatism_A : float
        Largest difference of the two defocus values, Å; each movie draws its own, and an angle.
    particles_per_um2 : float
        1000 is EMPIAR-10025 (about 250 on 0.25 µm²).
    atoms : str or None
        PDB or mmCIF file; None for the built-in T20S-like barrel.
    b_factor_A2 : float
        Envelope, Å².
    ice_gradient : float
        Relative change of brightness from the middle of the image to its edge.
    drift_A : float
        Length of the drift, Å; each movie draws 0.5 to 1.5 times it.
    gain_spread : float
        Relative standard deviation of the pixels' response.
    dark_fraction : float
        Fraction of pixels with a dark offset of 1 or 2 counts.
    hot_pixels_per_mpx : float
        Hot pixels in a million.
    hot_counts : float
        What a hot pixel counts on average in each frame.
    """

    seed: int = 10025
    n_movies: int = 16
    shape: tuple[int, int] = (1024, 1024)
    pixel_size_A: float = 1.3
    n_frames: int = 16
    dose_e_per_A2: float = 53.0
    voltage_kV: float = 300.0
    cs_mm: float = 2.7
    amplitude_contrast: float = 0.1
    defocus_A: tuple[float, float] = (10000.0, 20000.0)
    astigmatism_A: float = 300.0
    particles_per_um2: float = 1200.0
    atoms: str | None = None
    b_factor_A2: float = 100.0
    ice_gradient: float = 0.03
    drift_A: float = 8.0
    gain_spread: float = 0.03
    dark_fraction: float = 0.002
    hot_pixels_per_mpx: float = 20.0
    hot_counts: float = 100.0

    def __post_init__(self):
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name}: found {value}, wanted {low} to {high}")
        if len(self.shape) != 2 or not all(16 <= n <= 32768 for n in self.shape):
            raise InputError(f"shape: found {list(self.shape)}, wanted [h, w], each 16 to 32768 pixels")
        if len(self.defocus_A) != 2 or not 0 <= self.defocus_A[0] <= self.defocus_A[1] <= 100_000:
            raise InputError(
                f"defocus_A: found {list(self.defocus_A)}, wanted [lowest, highest] in Å, 0 to 100000 (10 µm)"
            )
        if self.electrons > 130:
            raise InputError(
                f"dose_e_per_A2: {self.electrons:.0f} e⁻ per pixel and frame would be clipped by uint8 movies; "
                "wanted at most 130: take more frames, smaller pixels or a lower dose"
            )

    @property
    def electrons(self) -> float:
        """Mean electrons per raw pixel in one frame."""
        return self.dose_e_per_A2 * self.pixel_size_A**2 / self.n_frames


@dataclass(frozen=True)
class Draw:
    """One movie's random choices beside its noise, and what follows from them.

    Attributes
    ----------
    scene : phantom.Scene
    optics : phantom.Optics
    particles : ndarray, shape (n, 2)
        Centres (y, x) in pixels of the molecules whose centre lies in the image.
    radius : float
        Of the molecule, Å.
    """

    scene: phantom.Scene
    optics: phantom.Optics
    particles: np.ndarray
    radius: float


def load_molecule(settings: PhantomSettings) -> molecules.Molecule:
    """Return the user's molecule, or the built-in barrel."""
    return molecules.barrel() if settings.atoms is None else molecules.read_molecule(settings.atoms)


def draw_movie(settings: PhantomSettings, index: int, molecule: molecules.Molecule) -> Draw:
    """Draw movie `index` of an entry: molecules, optics, drift and ice."""
    s = settings
    rng = molecules.stream(s.seed, SCENE, index)
    low, high = s.defocus_A
    defocus, split = rng.uniform(low, high), rng.uniform(0, s.astigmatism_A) / 2
    optics = phantom.Optics(
        voltage=s.voltage_kV,
        cs=s.cs_mm,
        amplitude_contrast=s.amplitude_contrast,
        defocus_u=defocus + split,
        defocus_v=defocus - split,
        astigmatism_angle=rng.uniform(0, np.pi),
        b_factor=s.b_factor_A2,
    )
    trajectory = phantom.drift(s.n_frames, s.dose_e_per_A2, s.drift_A * rng.uniform(0.5, 1.5), rng)
    ice = phantom.draw_ice(s.ice_gradient, rng)
    # The field is periodic: its margin keeps a molecule from being seen at two opposite edges.
    margin = 2 * (molecule.radius + np.abs(trajectory).max()) / s.pixel_size_A + FIELD_MARGIN
    field = tuple(fft.next_fast_len(int(n + margin), real=True) for n in s.shape)
    area = field[0] * field[1] * s.pixel_size_A**2 * 1e-8  # µm²
    centres = molecules.place_particles(
        round(s.particles_per_um2 * area), field, 2 * molecule.radius / s.pixel_size_A, rng
    )
    rotations = molecules.random_rotations(len(centres), rng)
    mass = molecules.projected_mass(molecule, rotations, centres, field, s.pixel_size_A)
    phase = phantom.phase_spectrum(mass, s.pixel_size_A, s.voltage_kV)
    spectrum = phantom.image_spectrum(phase, field, s.pixel_size_A, optics)
    scene = phantom.Scene(spectrum, field, s.shape, s.pixel_size_A, s.electrons, trajectory, ice)
    # A centre up to half a pixel outside the first or last pixel's middle still lies in it.
    inside = ((centres >= -0.5) & (centres < np.array(s.shape) - 0.5)).all(axis=1)
    return Draw(scene, optics, centres[inside], molecule.radius)


def read_references(
    gain_path: str | Path, dark_path: str | Path, settings: PhantomSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Read gain and dark, each (h, w) float32, and check that the detector can have them."""
    out = []
    for path in (gain_path, dark_path):
        data, _ = mrcio.read_mrc(path)
        if data.shape != settings.shape:
            raise InputError(
                f"{path}: has shape {data.shape}, the settings say {settings.shape}; run simulate-references "
                "with the same settings"
            )
        out.append(data)
    gain, dark = out
    if not gain.min() > 0:
        raise InputError(f"{gain_path}: holds values of 0 or less; wanted a positive gain everywhere")
    if dark.min() < 0 or (dark != np.rint(dark)).any():
        raise InputError(f"{dark_path}: wanted whole dark counts of 0 or more, as raw counts are whole")
    return gain, dark


def write_movie(
    path: Path,
    scene: phantom.Scene,
    gain: np.ndarray,
    dark: np.ndarray,
    hot: np.ndarray,
    hot_counts: float,
    key: tuple[int, ...],
    threads: int,
) -> None:
    """Write the raw movie (n_frames, h, w), uint8, one frame at a time: memory holds a few frames only.

    Parameters
    ----------
    path : Path
        Written in place: give a temporary name.
    scene : phantom.Scene
    gain, dark : ndarray, shape (h, w)
    hot : ndarray, shape (n, 2)
        Hot pixels (y, x).
    hot_counts : float
        Their mean counts in a frame.
    key : tuple of int
        Seed and keys of the noise's stream.
    threads : int
        Of the counting; the counts do not depend on it.
    """
    n_frames = len(scene.trajectory)
    total = squares = 0
    low, high = 255, 0
    with (
        mrcfile.new_mmap(path, (n_frames, *scene.shape), mrc_mode=0, overwrite=True) as mrc,
        ThreadPoolExecutor(threads) as pool,
    ):
        for t in range(n_frames):
            expected = phantom.expected_frame(scene, t)
            expected /= gain
            expected[hot[:, 0], hot[:, 1]] = hot_counts
            frame = phantom.count(expected, dark, (*key, t), pool)
            mrc.data[t] = frame.view(np.int8)
            levels = np.bincount(frame.ravel(), minlength=256)
            total += int(levels @ np.arange(256))
            squares += int(levels @ np.arange(256) ** 2)
            present = np.flatnonzero(levels)
            low, high = min(low, int(present[0])), max(high, int(present[-1]))
        mrc.set_image_stack()
        mrc.voxel_size = scene.pixel_size
        mean = total / mrc.data.size
        rms = (squares / mrc.data.size - mean**2) ** 0.5
        header = mrc.header
        header.dmin, header.dmax, header.dmean, header.rms = low, high, mean, rms
        header.label[0] = f"cryon2n {__version__} simulated movie"[:80].encode()
        header.nlabl = 1
        mrcio.mark_unsigned(header)


# ---------------------------------------------------------------------------- commands


def _add_references_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser)
    parser.add_argument("--gain", required=True, metavar="MRC", help="gain reference to write")
    parser.add_argument("--dark", required=True, metavar="MRC", help="dark reference to write")
    parser.add_argument("--entry", required=True, metavar="JSON", help="metadata of the entry to write")


def run_references(args: argparse.Namespace) -> None:
    """Write gain, dark and entry metadata."""
    settings = settings_from_arguments(PhantomSettings, args)
    rng = molecules.stream(settings.seed, REFERENCES)
    gain = phantom.gain_reference(settings.shape, settings.gain_spread, rng)
    dark = phantom.dark_reference(settings.shape, settings.dark_fraction, rng)
    mrcio.write_mrc(args.gain, gain, settings.pixel_size_A, "simulated gain reference, multiply")
    mrcio.write_mrc(args.dark, dark, settings.pixel_size_A, "simulated dark reference, subtract")
    files.write_json(args.entry, entry_metadata(settings))
    log.say(f"gain {gain.min():.2f} to {gain.max():.2f}, dark offsets on {np.count_nonzero(dark)} pixels")


def _add_movie_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser)
    parser.add_argument("--index", required=True, type=int, help="number of the movie in the entry, from 0")
    parser.add_argument("--name", required=True, help="the micrograph's name")
    parser.add_argument("--gain", required=True, metavar="MRC", help="gain reference (read)")
    parser.add_argument("--dark", required=True, metavar="MRC", help="dark reference (read)")
    parser.add_argument("--movie", required=True, metavar="MRC", help="raw movie to write")
    parser.add_argument("--truth", required=True, metavar="MRC", help="clean image to write")
    parser.add_argument("--record", required=True, metavar="JSON", help="record of the truth to write")
    parser.add_argument("--threads", type=int, default=1)


def run_movie(args: argparse.Namespace) -> None:
    """Write one raw movie, its clean truth and the record."""
    began = time.monotonic()
    s = settings_from_arguments(PhantomSettings, args)
    if args.index < 0 or args.threads < 1:
        raise InputError(f"--index {args.index} --threads {args.threads}: wanted 0 or more, and 1 or more")
    memory.keep_freed_memory()
    gain, dark = read_references(args.gain, args.dark, s)
    with fft.set_workers(args.threads):
        draw = draw_movie(s, args.index, load_molecule(s))
        hot = phantom.hot_pixels(s.shape, s.hot_pixels_per_mpx, molecules.stream(s.seed, HOT))
        clean = phantom.expected_frame(draw.scene, 0) * np.float32(s.n_frames)
        ice = phantom.ice_layer(draw.scene.ice, s.shape, np.zeros(2))
        # Poisson noise has the variance of its mean; the ice's slope is not counted as signal.
        snr = float(np.var(clean / ice, dtype=np.float64) / clean.mean(dtype=np.float64))
        with files.atomic_path(args.movie) as temporary:
            key = (s.seed, NOISE, args.index)
            write_movie(temporary, draw.scene, gain, dark, hot, s.hot_counts, key, args.threads)
            mrcio.write_mrc(args.truth, clean, s.pixel_size_A, "simulated truth")
            files.write_json(args.record, movie_record(s, args.index, args.name, draw, hot, snr))
    defocus = (draw.optics.defocus_u + draw.optics.defocus_v) / 2
    log.say(
        f"{args.name}: {len(draw.particles)} particles, defocus {defocus / 1e4:.2f} µm, "
        f"SNR {snr:.3f} per pixel, {time.monotonic() - began:.1f} s"
    )


COMMANDS = {
    "simulate-references": (_add_references_arguments, run_references),
    "simulate-movie": (_add_movie_arguments, run_movie),
}
