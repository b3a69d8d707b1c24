"""Physics of a simulated cryo-EM movie: a molecule, its image in the microscope, and a counting detector.

The chain, each step a function on its own:

1. a molecule: the built-in 20S proteasome-like barrel, or the atoms of a PDB/mmCIF file;
2. molecules in random orientations, projected; the *excess* electrostatic potential over vitreous ice;
3. the weak-phase image: CTF with astigmatism and amplitude contrast, and a Gaussian envelope;
4. an uneven layer of ice, drift, and for every frame independent Poisson counts behind a gain.

Left out: radiation damage, structural noise of the ice, motion within a frame, defocus differences
between the molecules of a micrograph, inelastic and multiple scattering, coincidence loss and the
detector's MTF (every electron is counted in one pixel).  Real data are therefore a little worse.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import fft

from cryon2n.errors import InputError
from cryon2n.fourier import shift_phase
from cryon2n.phantom_molecule import stream

# Isolated atoms (Vulović et al. 2013, J. Struct. Biol. 183, 19): a scattering amplitude f(0) of 1 Å is an
# integrated potential of h²/(2π m e) = 47.878 V Å³.
POTENTIAL_PER_AMPLITUDE = 47.878  # V Å²
# Mean protein residue C4.94 N1.36 O1.48 H7.76 S0.04 (111.2 Da) with f(0) of Peng et al. 1996 (Acta Cryst.
# A52, 257): 22.6 Å.
AMPLITUDE_PER_DALTON = 22.64 / 111.2  # Å / Da
PROTEIN_VOLUME = 1.0 / 0.813  # Å³/Da: density 1.35 g/cm³
ICE_POTENTIAL = 4.53  # V, amorphous ice of 0.93 g/cm³, isolated atoms (Vulović et al. 2013)
HEAVY_ATOM_DALTON = 111.2 / 7.82  # mean heavy atom with its hydrogens
# Shape of the scattering factor: carbon, Peng et al. 1996, Σ a exp(-b k²/4).
CARBON_A = (0.0893, 0.2563, 0.7570, 1.0487, 0.3575)  # Å
CARBON_B = (0.2465, 1.7100, 6.4094, 18.6113, 50.2523)  # Å²

NOISE_ROWS = 128  # rows of one noise stream: the counts do not depend on the number of threads


# ---------------------------------------------------------------------------- the microscope


@dataclass(frozen=True)
class Optics:
    """What forms the image.

    Attributes
    ----------
    voltage : float
        kV.
    cs : float
        Spherical aberration, mm.
    amplitude_contrast : float
        Fraction, 0 to 1.
    defocus_u, defocus_v : float
        Underfocus (positive) along and across the astigmatism's axis, Å.
    astigmatism_angle : float
        Of the axis of `defocus_u`, radians from x towards y.
    b_factor : float
        Å²; amplitudes fall by ``exp(-B k²/4)``.
    """

    voltage: float = 300.0
    cs: float = 2.7
    amplitude_contrast: float = 0.1
    defocus_u: float = 15000.0
    defocus_v: float = 15000.0
    astigmatism_angle: float = 0.0
    b_factor: float = 100.0


def electron_wavelength(voltage: float) -> float:
    """Return the relativistic wavelength in Å at `voltage` kV (Kirkland 2010, eq. 2.5)."""
    v = voltage * 1e3
    return 12.26426 / np.sqrt(v + 0.97845e-6 * v * v)


def interaction_constant(voltage: float) -> float:
    """Return σ in rad/(V Å) at `voltage` kV: 6.53e-4 at 300 kV (Kirkland 2010, eq. 5.6)."""
    rest = 510.999  # keV
    return 2 * np.pi / (electron_wavelength(voltage) * voltage * 1e3) * (rest + voltage) / (2 * rest + voltage)


def ctf(ky: np.ndarray, kx: np.ndarray, optics: Optics) -> np.ndarray:
    """Return the contrast transfer function at the spatial frequencies (ky, kx) in 1/Å.

    ``-sin(π λ Δz k² - π/2 Cs λ³ k⁴ + asin(w))`` (Rohou & Grigorieff 2015, J. Struct. Biol. 192, 216):
    negative at low frequency, so that molecules are dark on bright ice at underfocus Δz > 0.
    """
    wavelength = electron_wavelength(optics.voltage)
    k2 = kx * kx + ky * ky
    mean = (optics.defocus_u + optics.defocus_v) / 2
    spread = (optics.defocus_u - optics.defocus_v) / 2
    c, s = np.cos(2 * optics.astigmatism_angle), np.sin(2 * optics.astigmatism_angle)
    # Δz k² with cos 2(φ - angle) written out in ky and kx
    defocus_k2 = mean * k2 + spread * (c * (kx * kx - ky * ky) + s * 2 * kx * ky)
    chi = np.pi * wavelength * defocus_k2 - np.pi / 2 * optics.cs * 1e7 * wavelength**3 * k2 * k2
    return -np.sin(chi + np.arcsin(optics.amplitude_contrast))


def excess_potential(k2: np.ndarray) -> np.ndarray:
    """Return the integrated potential of protein over the ice it displaces, V Å³ per Da, at ``k²`` in 1/Å².

    Atoms of carbon's scattering shape, minus ice in Gaussians of their volume (Fraser, MacRae & Suzuki
    1978, J. Appl. Cryst. 11, 693).  At k = 0: 9.75 - 5.57 = 4.18 V Å³/Da, i.e. 7.9 V in protein against
    4.5 V in ice.
    """
    atom = sum(a * np.exp(-b / 4 * k2) for a, b in zip(CARBON_A, CARBON_B, strict=True)) / sum(CARBON_A)
    volume = HEAVY_ATOM_DALTON * PROTEIN_VOLUME
    ice = ICE_POTENTIAL * PROTEIN_VOLUME * np.exp(-np.pi * volume ** (2 / 3) * k2)
    return POTENTIAL_PER_AMPLITUDE * AMPLITUDE_PER_DALTON * atom - ice


def phase_spectrum(mass: np.ndarray, pixel_size: float, voltage: float) -> np.ndarray:
    """Turn projected mass (h, w) in Da per pixel into ``rfft2`` of the phase shift over ice, radians."""
    spectrum = fft.rfft2(mass)
    scale = interaction_constant(voltage) / pixel_size**2
    for rows, ky, kx in _frequency_blocks(mass.shape, pixel_size):
        spline = (np.sinc(ky * pixel_size) * np.sinc(kx * pixel_size)) ** 4
        spectrum[rows] *= (scale * excess_potential(kx * kx + ky * ky) / spline).astype(np.float32)
    return spectrum


def image_spectrum(phase: np.ndarray, shape: tuple[int, int], pixel_size: float, optics: Optics) -> np.ndarray:
    """Turn ``rfft2`` of the phase shift into that of the weak-phase contrast ``I / I0 - 1``, in place.

    ``2 φ CTF exp(-B k²/4)``; the mean is set to 0, so that the dose is the mean number of electrons
    that are counted.
    """
    for rows, ky, kx in _frequency_blocks(shape, pixel_size):
        envelope = np.exp(-optics.b_factor / 4 * (kx * kx + ky * ky))
        phase[rows] *= (2 * ctf(ky, kx, optics) * envelope).astype(np.float32)
    phase[0, 0] = 0
    return phase


def _frequency_blocks(shape: tuple[int, int], pixel_size: float) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield slices of rows of ``rfft2`` with their (ky, kx) in 1/Å: the plane at once would be too large."""
    ky = np.fft.fftfreq(shape[0], pixel_size).astype(np.float32)[:, None]
    kx = np.fft.rfftfreq(shape[1], pixel_size).astype(np.float32)[None, :]
    for y in range(0, shape[0], 256):
        yield slice(y, y + 256), ky[y : y + 256], kx


# ---------------------------------------------------------------------------- ice, drift and the clean frame


def drift(n_frames: int, dose: float, length: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a trajectory, shape (n_frames, 2), (y, x) in Å relative to frame 0.

    A fast start that dies out with 6 e⁻/Å² (as beam-induced motion does: Brilot et al. 2012, J. Struct.
    Biol. 177, 630), a slow even drift in another direction and a gentle wobble; in all about `length` Å.
    """
    electrons = dose * np.arange(n_frames) / n_frames
    start, slow, phase = rng.uniform(0, 2 * np.pi, 3)
    along = np.stack([np.sin([start, slow]), np.cos([start, slow])], axis=1)
    quick = 1 - np.exp(-electrons / 6.0)
    share = electrons / dose
    wobble = np.stack([np.sin(2 * np.pi * share + phase), np.cos(2 * np.pi * share + phase)], axis=1)
    path = 0.65 * quick[:, None] * along[0] + 0.35 * share[:, None] * along[1] + 0.06 * wobble
    return length * (path - path[0])


@dataclass(frozen=True)
class Scene:
    """All that is expected of one movie before the detector; frames come from `expected_frame`.

    Attributes
    ----------
    spectrum : ndarray, shape (H, W // 2 + 1), complex64
        ``rfft2`` of the contrast on a field larger than the image, so that drift brings in new content.
    field : (H, W)
    shape : (h, w)
        Of the image: the first rows and columns of the field.
    pixel_size : float
        Å.
    electrons : float
        Mean electrons per pixel in one frame.
    trajectory : ndarray, shape (n_frames, 2)
        (y, x) in Å.
    ice : ndarray, shape (5,)
        Coefficients of the ice's brightness, see `ice_layer`.
    """

    spectrum: np.ndarray
    field: tuple[int, int]
    shape: tuple[int, int]
    pixel_size: float
    electrons: float
    trajectory: np.ndarray
    ice: np.ndarray


def draw_ice(gradient: float, rng: np.random.Generator) -> np.ndarray:
    """Draw coefficients for `ice_layer`: a slope of ±`gradient` across the image, and weaker curvature."""
    angle = rng.uniform(0, 2 * np.pi)
    return gradient * np.array([np.sin(angle), np.cos(angle), *rng.uniform(-0.3, 0.3, 3)])


def ice_layer(coefficients: np.ndarray, shape: tuple[int, int], shift: np.ndarray) -> np.ndarray:
    """Return the relative brightness of the ice, mean 1 at zero shift, shape (h, w), float32.

    A polynomial of second order in the position, moved by `shift` (y, x) pixels.
    """
    h, w = shape
    y = ((2 * (np.arange(h) - shift[0]) - (h - 1)) / h).astype(np.float32)[:, None]
    x = ((2 * (np.arange(w) - shift[1]) - (w - 1)) / w).astype(np.float32)[None, :]
    a, b, c, d, e = (float(v) for v in coefficients)
    rows = 1 + a * y + c * (y * y - (1 - 1 / h**2) / 3)  # 1/3 less 1/(3 h²): the mean of y² on the grid
    return rows + b * x + d * (x * x - (1 - 1 / w**2) / 3) + e * y * x


def expected_frame(scene: Scene, index: int) -> np.ndarray:
    """Return the expected electrons per pixel in frame `index`, before the gain, shape (h, w), float32.

    Content stands at its place in frame 0 plus ``trajectory[index]``.
    """
    shift = scene.trajectory[index] / scene.pixel_size
    moved = shift_phase(scene.field, shift)
    moved *= scene.spectrum
    h, w = scene.shape
    contrast = fft.irfft2(moved, s=scene.field, overwrite_x=True)[:h, :w]
    return (1 + contrast) * ice_layer(scene.ice, scene.shape, shift) * np.float32(scene.electrons)


# ---------------------------------------------------------------------------- the detector


def gain_reference(shape: tuple[int, int], spread: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a gain reference (h, w), float32, which multiplies raw counts; the mean of 1/gain is 1.

    Random pixels (`spread`, relative), columns (a third of it) and read-out blocks of a sixteenth of
    the side (half of it), as on counting cameras.
    """
    h, w = shape
    blocks = rng.normal(size=(16, 16))[np.arange(h)[:, None] * 16 // h, np.arange(w)[None, :] * 16 // w]
    response = rng.normal(size=shape) + 0.33 * rng.normal(size=w)[None, :] + 0.5 * blocks
    response = np.clip(1 + spread * response, 0.2, None)
    return (response.mean() / response).astype(np.float32)


def dark_reference(shape: tuple[int, int], fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a dark reference (h, w), float32: whole offsets of 1 or 2 on a `fraction` of pixels."""
    offset = rng.integers(1, 3, size=shape)
    return np.where(rng.random(shape) < fraction, offset, 0).astype(np.float32)


def hot_pixels(shape: tuple[int, int], per_mpx: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the places (y, x) of hot pixels, shape (n, 2), sorted, none twice."""
    n = round(per_mpx * shape[0] * shape[1] / 1e6)
    flat = np.sort(rng.choice(shape[0] * shape[1], size=n, replace=False))
    return np.stack(np.unravel_index(flat, shape), axis=1)


def count(expected: np.ndarray, dark: np.ndarray, key: tuple[int, ...], pool: ThreadPoolExecutor) -> np.ndarray:
    """Draw one raw frame: Poisson counts plus the dark offset, shape (h, w), uint8.

    Parameters
    ----------
    expected : ndarray, shape (h, w)
        Expected raw counts (electrons divided by the gain).
    dark : ndarray, shape (h, w)
        Whole offsets.
    key : tuple of int
        Seed and keys of `stream`; each block of `NOISE_ROWS` rows adds its number.
    pool : ThreadPoolExecutor

    Raises
    ------
    InputError
        A count above 255 is possible (``mean + 10 standard deviations``): it would be clipped.  Or an
        expectation is negative: the contrast is no longer weak.
    """
    if float(expected.min()) < 0:
        raise InputError(
            "the contrast is so strong that pixels expect negative counts: the weak-phase image no longer "
            "holds; raise b_factor_A2 or voltage_kV, or lower particles_per_um2 or amplitude_contrast"
        )
    top = float(expected.max())
    limit = top + 10 * np.sqrt(top) + float(dark.max())
    if limit > 255:
        raise InputError(
            f"a frame expects up to {top:.0f} counts in a pixel, which uint8 would clip at 255; wanted at "
            "most about 137: take more frames, smaller pixels, a lower dose, or lower hot_counts"
        )
    out = np.empty(expected.shape, np.uint8)

    def block(start: int) -> None:
        rows = slice(start, start + NOISE_ROWS)
        out[rows] = stream(*key, start // NOISE_ROWS).poisson(expected[rows]) + dark[rows]

    list(pool.map(block, range(0, len(expected), NOISE_ROWS)))
    return out
