"""Simulated movies whose motion is known everywhere.

The scene is the project's phantom: T20S-like particles in ice, CTF, envelope.  Every frame is the scene, moved by the
field, and then counted.  The scene is band-limited and periodic; it is sampled twice as finely as the frames and
interpolated by a spline of order 5, whose coefficients are computed in Fourier space.

Left out: motion within a frame, a gain or defects (methods are given corrected counts), the detector's MTF, the
noise of the ice's own structure.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from cryon2n import phantom
from cryon2n import phantom_molecule as molecules
from cryon2n.phantom_stage import PhantomSettings, draw_movie
from motion_accuracy import spline
from motion_accuracy.field import Field, coarse

N_FRAMES = 38
OVERSAMPLING = 2
MOTION, COUNTS = 100, 101  # first keys of the random streams; the phantom's are 0 to 3


@dataclass(frozen=True)
class Regime:
    """One kind of movie.

    Attributes
    ----------
    title : str
    drift_A : (lowest, highest)
        Largest distance of the mean field from frame 0, Å.
    dome_A : float
        Largest displacement by the dome, Å.
    rough_A : float
        Largest displacement by the smooth random field, about, Å.
    particles_per_um2 : float
    defocus_A : (lowest, highest)
        Underfocus, Å.
    contrast : float
        What is left of the image's contrast behind the unscattered background of thick ice.
    dose_e_per_A2 : float
        Of all frames.
    pixel_size_A : float
    """

    title: str
    drift_A: tuple[float, float]
    dome_A: float
    rough_A: float
    particles_per_um2: float
    defocus_A: tuple[float, float]
    contrast: float
    dose_e_per_A2: float
    pixel_size_A: float


#                   title                          drift   dome rough parts  defocus       contrast dose  pixel
REGIMES = {
    "quiet": Regime("little motion, good contrast", (20, 25), 1.5, 0.4, 1000, (15000, 25000), 1.0, 53, 1.3),
    "typical": Regime("as EMPIAR-10025", (20, 40), 4.0, 0.8, 1000, (10000, 20000), 0.7, 53, 1.2),
    "strong": Regime("strong doming", (35, 40), 8.0, 1.5, 1000, (10000, 20000), 0.7, 53, 1.0),
    "thin": Regime("fewer particles, near focus", (20, 40), 4.0, 0.8, 600, (8000, 12000), 0.7, 53, 1.2),
    "dim": Regime("half the dose, fewer particles", (20, 40), 3.0, 0.6, 700, (10000, 20000), 0.7, 27, 1.2),
}


@dataclass(frozen=True)
class Movie:
    """A simulated movie.

    Attributes
    ----------
    counts : ndarray, shape (n, h, w), uint8
    truth : Field
    pixel_size : float
        Å.
    dose_per_frame : float
        e⁻/Å².
    contrast_rms : float
        Standard deviation of the clean first frame over its mean, without the ice's slope.
    """

    counts: np.ndarray
    truth: Field
    pixel_size: float
    dose_per_frame: float
    contrast_rms: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a frame."""
        return self.counts.shape[1:]


def draw_motion(regime: Regime, shape: tuple[int, int], rng: np.random.Generator) -> Field:
    """Draw ``d(t, y)``: drift, a dome and a smooth random field, relative to frame 0.

    * drift: `phantom.drift`, fast at first;
    * dome: as ice that bulges moves sideways by its slope, ``r exp((1 - r²) / 2)`` about a centre off the middle
      (r in units of half the image or so), relaxing as ``1 - exp(-dose / τ)``, τ of 4 to 12 e⁻/Å²;
    * random field: four cosine waves of 0.8 to 2 times the image, each on a path in time of its own.
    """
    px, extent = regime.pixel_size_A, np.array(shape, float)
    electrons = regime.dose_e_per_A2 * np.arange(N_FRAMES) / N_FRAMES
    share = np.arange(N_FRAMES) / (N_FRAMES - 1)
    path = phantom.drift(N_FRAMES, regime.dose_e_per_A2, 1.0, rng)
    path *= rng.uniform(*regime.drift_A) / np.linalg.norm(path, axis=1).max()

    centre = extent * rng.uniform(0.3, 0.7, 2)
    radius = extent.mean() * rng.uniform(0.4, 0.6)
    relaxed = 1 - np.exp(-electrons / rng.uniform(4, 12))
    relaxed *= rng.choice([-1, 1]) * regime.dome_A / relaxed.max()

    angles = rng.uniform(0, 2 * np.pi, (4, 2))
    waves = np.stack([np.sin(angles[:, 0]), np.cos(angles[:, 0])], 1) / (extent.mean() * rng.uniform(0.8, 2, (4, 1)))
    phases = rng.uniform(0, 2 * np.pi, 4)
    along = np.stack([np.sin(angles[:, 1]), np.cos(angles[:, 1])], 1) * regime.rough_A / 2
    bends = rng.uniform(-1, 1, (4, 1))
    times = share + bends * np.sin(np.pi * share * rng.uniform(0.7, 2, (4, 1)))

    def displacement(t: int, places: np.ndarray) -> np.ndarray:
        r = (places - centre) / radius
        dome = r * np.exp((1 - (r**2).sum(1, keepdims=True)) / 2)
        rough = (times[:, t] * np.cos(2 * np.pi * places @ waves.T + phases)) @ along
        return path[t] + relaxed[t] * dome + rough

    return Field(displacement, N_FRAMES, px, in_frame=True)


def critical_exposure(k: np.ndarray) -> np.ndarray:
    """Return the critical exposure in e⁻/Å² at 300 kV of a spatial frequency in 1/Å.

    Grant & Grigorieff 2015, eLife 4, e06980, eq. 3: amplitudes fall by exp(-dose / (2 · this)).
    """
    return 0.24499 * np.maximum(k, 1e-6) ** -1.6649 + 2.8141


def spline_coefficients(spectrum: torch.Tensor, field: tuple[int, int]) -> torch.Tensor:
    """Return the coefficients of the periodic spline of order 5 through the `OVERSAMPLING` times finer image.

    Parameters
    ----------
    spectrum : tensor, shape (H, W // 2 + 1), complex64
        ``rfft2`` of the image on the field (H, W); bins at its Nyquist frequency are left out.

    Returns
    -------
    tensor, shape (H · OVERSAMPLING, W · OVERSAMPLING), float32
    """
    (h, w), fine = field, tuple(OVERSAMPLING * n for n in field)
    up, right = (h + 1) // 2, (w + 1) // 2
    padded = torch.zeros((fine[0], fine[1] // 2 + 1), dtype=torch.complex64, device=spectrum.device)
    padded[:up, :right] = spectrum[:up, :right]
    padded[fine[0] - (up - 1) :, :right] = spectrum[h - (up - 1) :, :right]
    return torch.fft.irfft2(spline.divide_by_spline(padded, fine) * OVERSAMPLING**2, s=fine)


def moved(coefficients: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """Return ``image(y - displacement(y))`` on the first pixels (h, w) of the field.

    Parameters
    ----------
    coefficients : tensor
        Of `spline_coefficients`.
    displacement : tensor, shape (2, h, w), float32
        Pixels.
    """
    return spline.sample(coefficients, -OVERSAMPLING * displacement, (0, 0), OVERSAMPLING, "circular")


@lru_cache(maxsize=1)
def _barrel() -> molecules.Molecule:
    return molecules.barrel()


def draw_scene(name: str, seed: int, shape: tuple[int, int]) -> phantom.Scene:
    """Draw the scene of a regime and a seed: molecules, optics, ice."""
    regime = REGIMES[name]
    settings = PhantomSettings(
        seed=seed,
        shape=shape,
        pixel_size_A=regime.pixel_size_A,
        n_frames=N_FRAMES,
        dose_e_per_A2=regime.dose_e_per_A2,
        defocus_A=regime.defocus_A,
        particles_per_um2=regime.particles_per_um2,
        drift_A=max(regime.drift_A),
    )
    return draw_movie(settings, list(REGIMES).index(name), _barrel()).scene


def expected_frames(
    regime: Regime, scene: phantom.Scene, truth: Field, damage: bool, device: torch.device | str
) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield each frame's expected counts (h, w), float32, and the standard deviation of its contrast."""
    px, shape = regime.pixel_size_A, scene.shape
    spectrum = torch.as_tensor(scene.spectrum, device=device) * regime.contrast
    ky = torch.fft.fftfreq(scene.field[0], px, dtype=torch.float64)[:, None]
    kx = torch.fft.rfftfreq(scene.field[1], px, dtype=torch.float64)[None, :]
    critical = torch.as_tensor(critical_exposure(torch.hypot(ky, kx).numpy()), dtype=torch.float32, device=device)
    points = coarse(shape)
    coefficients = None
    for t in range(N_FRAMES):
        if damage or coefficients is None:
            dose = regime.dose_e_per_A2 * (t + 0.5) / N_FRAMES if damage else 0.0
            coefficients = spline_coefficients(spectrum * torch.exp(-dose / (2 * critical)), scene.field)
        shift = points.dense(truth.displacement(t, points.places) / px, device)
        contrast = moved(coefficients, shift)
        # The ice's slope is slow: it moves with the mean of the field.
        ice = phantom.ice_layer(scene.ice, shape, shift.double().mean(dim=(1, 2)).cpu().numpy())
        spread = float(contrast.std())
        yield (1 + contrast) * torch.as_tensor(ice * np.float32(scene.electrons), device=device), spread


def simulate(
    name: str,
    seed: int,
    shape: tuple[int, int],
    damage: bool = True,
    scene: phantom.Scene | None = None,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> Movie:
    """Simulate the movie of a regime and a seed.

    Parameters
    ----------
    name : str
        Of the regime.
    seed : int
    shape : (h, w)
        Of a frame.
    damage : bool
        Radiation damage: the frames' amplitudes fall with the dose (`critical_exposure`).
    scene : phantom.Scene, optional
        Of `draw_scene`, if it was drawn before.
    device : torch device
        Where the expected counts are computed.
    threads : int
        That count.  NumPy counts, frame by frame: on a GPU torch's Poisson generator gives correlated fields.
    """
    regime, index = REGIMES[name], list(REGIMES).index(name)
    scene = scene or draw_scene(name, seed, shape)
    truth = draw_motion(regime, shape, molecules.stream(seed, MOTION, index))
    counts = np.empty((N_FRAMES, *shape), np.uint8)
    spreads = []

    def count(t: int, expected: np.ndarray) -> None:
        counts[t] = molecules.stream(seed, COUNTS, index, t).poisson(expected)

    with ThreadPoolExecutor(threads) as pool:
        jobs: list[Future[None]] = []
        for t, (expected, spread) in enumerate(expected_frames(regime, scene, truth, damage, device)):
            spreads.append(spread)
            jobs.append(pool.submit(count, t, expected.cpu().numpy()))
            if t >= threads:
                jobs[t - threads].result()  # frames wait in memory, no more than twice as many as threads
        for job in jobs:
            job.result()
    return Movie(counts, truth, regime.pixel_size_A, regime.dose_e_per_A2 / N_FRAMES, spreads[0])


def table() -> str:
    """Return the regimes as a table in Markdown."""
    names = [f.name for f in dataclasses.fields(Regime)]
    lines = ["| regime | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for name, regime in REGIMES.items():
        values = (getattr(regime, n) for n in names)
        texts = (" to ".join(f"{x:g}" for x in v) if isinstance(v, tuple) else str(v) for v in values)
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
