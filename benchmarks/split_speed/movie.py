"""A full-size counted movie made in seconds, as hard to align and to split as a real one.

The scene is a random image, band-limited by an envelope and a CTF, on physical pixels; each is 2 × 2 pixels of
the super-resolution frame, which count independently.  The scene drifts and, as a dome does, is stretched about a
point off the middle; both in whole super-resolution pixels.  Behind a gain reference the counts of pixel p are
Poisson with mean ``scene(p) / gain(p)``.

Quick, because expected counts are powers of `STEP`: a level for the scene and one for the gain add up, and a count
is looked up in a table by the level and 16 random bits.  So counts rarer than 1 in 65,536 never come; for
times that is good enough, for accuracy see ``motion_accuracy``.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import numpy as np
from scipy import fft, stats

from cryon2n import mrcio

N_FRAMES, SHAPE, PIXEL_SIZE = 38, (7676, 7420), 0.6575  # of EMPIAR-10025; Å
DOSE = 53.0  # e⁻/Å², in all
STEP = 1.01  # from one level of expected counts to the next
LEVELS = 256
DRIFT_A, DOME_A = 30.0, 4.0
CONTRAST = 0.12  # standard deviation of the scene, relative to its mean
SPREAD = 0.03  # of the gain
MARGIN = 64  # super-resolution pixels around the frame, at least what the motion needs
STRIPE = 128  # rows counted at a time: their table indices stay in the processor's cache


def scene_levels(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the scene on physical pixels as levels about 0, shape (h, w), int8."""
    spectrum = fft.rfft2(rng.standard_normal(shape, np.float32), workers=-1)
    px = 2 * PIXEL_SIZE
    s2 = np.fft.fftfreq(shape[0], px)[:, None].astype(np.float32) ** 2
    s2 = s2 + np.fft.rfftfreq(shape[1], px).astype(np.float32) ** 2
    # 300 kV (0.0197 Å), 1.5 µm underfocus, an envelope of B = 60 Å², and less power where detail is finer.
    spectrum *= np.sin(np.pi * 0.0197 * 15000 * s2) * np.exp(-15 * s2) / (1 + s2 * 20**2) ** 0.5
    image = fft.irfft2(spectrum, s=shape, workers=-1)
    contrast = np.clip(CONTRAST / image.std() * image, -0.5, 0.5)
    return np.rint(np.log1p(contrast) / np.log(STEP)).astype(np.int8)


def motion(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the drift (n, 2) and the dome's stretch (n,), both in Å and 0 in frame 0: fast at first."""
    t = np.arange(n)
    relaxed = 1 - np.exp(-t / 5)
    direction = np.array([0.8, -0.6])
    curve = np.stack([np.sin(t / n * 3), 1 - np.cos(t / n * 3)], axis=1)
    return DRIFT_A * (relaxed[:, None] * direction + 0.1 * curve), DOME_A * relaxed


def places(size: int, shift_A: float, stretch_A: float) -> np.ndarray:
    """Return which physical pixel of the scene each of `size` super-resolution pixels of a frame shows."""
    y = np.arange(size)
    moved = y - (shift_A + stretch_A * (y / size - 0.4)) / PIXEL_SIZE
    return (np.rint(moved).astype(np.int64) + MARGIN) // 2


def count_table(mean: float) -> np.ndarray:
    """Return counts by level and 16 random bits, shape (LEVELS · 65536,), uint8."""
    bits = (np.arange(65536) + 0.5) / 65536
    means = mean * STEP ** (np.arange(LEVELS) - LEVELS // 2)
    return np.concatenate([np.searchsorted(stats.poisson.cdf(np.arange(128), m), bits).astype(np.uint8) for m in means])


def write_movie(
    movie: Path, gain: Path, shape: tuple[int, int] = SHAPE, n: int = N_FRAMES, seed: int = 0, threads: int = 1
) -> None:
    """Write a movie ``(n, h, w)`` of uint8 counts (MRC mode 0) and its gain reference (h, w), which multiplies."""
    rng = np.random.default_rng([seed, 1])
    drift, dome = motion(n)
    scene = scene_levels(tuple(size // 2 + MARGIN for size in shape), rng)
    gain_levels = np.rint(SPREAD / np.log(STEP) * rng.standard_normal(shape, np.float32)).astype(np.int8)
    mrcio.write_mrc(gain, (STEP ** gain_levels.astype(np.float32)).astype(np.float32), PIXEL_SIZE)
    table = count_table(DOSE * PIXEL_SIZE**2 / n)
    offsets = np.uint8(LEVELS // 2) - gain_levels.view(np.uint8)  # wraps round, as the sum below: exact in the end

    with mrcfile.new_mmap(movie, (n, *shape), mrc_mode=0, overwrite=True) as mrc, ThreadPoolExecutor(threads) as pool:

        def count(t: int) -> None:
            random = np.random.Generator(np.random.SFC64([seed, 2, t]))
            rows, columns = (places(shape[axis], drift[t, axis], dome[t]) for axis in (0, 1))
            for y in range(0, shape[0], STRIPE):
                part = slice(y, y + STRIPE)
                level = scene[rows[part]][:, columns].view(np.uint8) + offsets[part]
                index = level.astype(np.uint32) << 16
                index |= random.integers(0, 65536, level.shape, np.uint16)
                mrc.data[t, part] = table[index].view(np.int8)

        list(pool.map(count, range(n)))
        mrc.set_image_stack()
        mrc.voxel_size = PIXEL_SIZE
        mrcio.mark_unsigned(mrc.header)
