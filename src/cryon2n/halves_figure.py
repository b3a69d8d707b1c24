"""One picture per micrograph of what a person looks at first: both halves, Thon rings, motion, FRC, spectra."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import fft, ndimage

from cryon2n import audit_checks, figures, files, fourier, log, pair

THUMBNAIL = 400  # pixels, at most
TILE = 512  # pixels of the tiles whose power spectra are averaged
COLORS = {"a": "#4878a8", "b": "#d1812c"}
STARTS = ("#2a7f3f", "#b2182b")  # first and last frame


def thumbnail(image: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Bin an image (h, w) by Fourier crop until no side is longer than `side` pixels."""
    return fourier.fourier_crop(image, max(1, -(-max(image.shape) // side)))


def tiled_spectrum(image: np.ndarray, tile: int = TILE) -> np.ndarray:
    """Return the mean power of overlapping tapered tiles of an image (h, w), zero frequency in the middle.

    Welch's method (1967): averaging brings out the Thon rings, which a single periodogram hides in its
    own scatter.

    Returns
    -------
    ndarray, shape (tile, tile)
        `tile` at most the image's shorter side.
    """
    tile = min(tile, *image.shape) // 2 * 2
    window = fourier.edge_taper((tile, tile), tile // 2)
    total = np.zeros((tile, tile // 2 + 1))
    for y in range(0, image.shape[0] - tile + 1, tile // 2):
        for x in range(0, image.shape[1] - tile + 1, tile // 2):
            part = image[y : y + tile, x : x + tile]
            spectrum = fft.rfft2((part - part.mean()) * window)
            total += fourier.cross_power(spectrum, spectrum)
    # The other half of the plane is the mirror image.
    left = np.roll(total[::-1, -2:0:-1], 1, axis=0)
    return np.fft.fftshift(np.concatenate([total, left], axis=1))


def draw_halves(halves: pair.Pair) -> Figure:
    """Draw the picture of one micrograph.

    Parameters
    ----------
    halves : Pair
        Of its record, the trajectory, doses and frames are shown where they are known.
    """
    a, b = halves.a[halves.valid], halves.b[halves.valid]
    rings = audit_checks.rings(*audit_checks.spectra(a, b), a.shape, halves.pixel_size)
    figure = Figure(figsize=(11, 7.4), layout="constrained", facecolor="white")
    figure.suptitle(f"{halves.name}: {a.shape[0]} × {a.shape[1]} px of {halves.pixel_size:.4g} Å", fontsize=11)
    top, bottom = figure.subplots(2, 3, height_ratios=(5, 4))
    small = {"a": thumbnail(a), "b": thumbnail(b)}
    for ax, (side, image) in zip(top, small.items(), strict=False):
        low, high = figures.grey_limits(image)
        extent = (0, a.shape[1] * halves.pixel_size / 10, a.shape[0] * halves.pixel_size / 10, 0)
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
        ax.set_title(f"half {side}{content(halves.record, side)}", fontsize=9, color=COLORS[side])
        ax.set_xlabel("nm", fontsize=8)
    draw_thon_rings(top[2], halves.full[halves.valid], rings.nyquist)
    draw_trajectory(bottom[0], halves.record)
    draw_frc(bottom[1], rings)
    draw_spectra(bottom[2], rings)
    for ax in (*top, *bottom):
        ax.tick_params(labelsize=8)
    for ax in bottom:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def content(record: dict[str, Any], side: str) -> str:
    """Say in a few words what a half holds, as far as its record knows."""
    known = record[side]
    words = []
    if known.get("n_frames"):
        words.append(f"{known['n_frames']} frame{'s' if known['n_frames'] > 1 else ''}")
    if known.get("dose_e_per_A2"):
        words.append(f"{known['dose_e_per_A2']:.3g} e⁻/Å²")
    return f" ({', '.join(words)})" if words else ""


def draw_thon_rings(ax: Axes, image: np.ndarray, nyquist: float) -> None:
    """Draw the power spectrum of an image (h, w) in two dimensions, up to `nyquist` (1/Å)."""
    power = ndimage.gaussian_filter(np.log(tiled_spectrum(image) + 1e-12), 1.5)
    # The strongest frequencies (ice, the molecules' envelope) may saturate: the rings are faint.
    low, high = np.percentile(power, [1, 98])
    ax.imshow(power, cmap="gray", vmin=low, vmax=high, extent=(-nyquist, nyquist, nyquist, -nyquist))
    ax.set_title("power spectrum of the whole exposure (log)", fontsize=9)
    ax.set_xlabel("1/Å", fontsize=8)


def draw_trajectory(ax: Axes, record: dict[str, Any]) -> None:
    """Draw where the frames' content stands, y downwards as in the images; or say that it is not known."""
    path = record.get("trajectory_A")
    if path is None:
        ax.axis("off")
        ax.text(0.5, 0.5, "trajectory not known", ha="center", va="center", fontsize=9, color="0.4")
        return
    y, x = np.asarray(path, dtype=np.float64).reshape(-1, 2).T
    length = float(np.hypot(np.diff(y), np.diff(x)).sum())
    ax.plot(x, y, "-", color="0.6", lw=1, zorder=1)
    ax.scatter(x, y, c=np.arange(len(x)), cmap="viridis", s=14, zorder=2)
    for k, color, label in ((0, STARTS[0], "first frame"), (len(x) - 1, STARTS[1], "last frame")):
        ax.scatter(x[k], y[k], s=60, facecolors="none", edgecolors=color, lw=1.6, label=label, zorder=3)
    # A square of at least 1 Å: a movie that stood still must not look as if it had moved.
    half = max(np.ptp(x), np.ptp(y), 1.0) * 0.6
    ax.set(xlim=_around(x, half), ylim=_around(y, half))
    ax.set_aspect("equal", adjustable="box")
    ax.invert_yaxis()
    ax.set_title(f"motion: {length:.1f} Å in {len(x)} frames", fontsize=9)
    ax.set_xlabel("x (Å)", fontsize=8)
    ax.set_ylabel("y (Å)", fontsize=8)
    ax.legend(fontsize=7, frameon=False)


def _around(values: np.ndarray, half: float) -> tuple[float, float]:
    middle = float(values.min() + values.max()) / 2
    return middle - half, middle + half


def draw_frc(ax: Axes, rings: audit_checks.Rings) -> None:
    """Draw the FRC of the raw halves and the resolutions at which it falls below 0.5 and 0.143."""
    smooth = figures.smooth(rings.frc, 5)
    ax.plot(rings.frequencies[1:], rings.frc[1:], color="0.8", lw=0.6)
    ax.plot(rings.frequencies[1:], smooth[1:], color="black", lw=1.3)
    ax.axhline(0, color="0.7", lw=0.6)
    for threshold, color in ((0.5, "#7b3294"), (0.143, "#008837")):
        ax.axhline(threshold, color=color, lw=0.7, ls=":")
        at = audit_checks.crossing(rings, threshold)
        label = f"{threshold:g}: " + (f"{at:.1f} Å" if np.isfinite(at) else "not reached")
        if np.isfinite(at):
            ax.plot(1 / at, threshold, "o", color=color, ms=5, label=label)
        else:
            ax.plot([], [], "o", color=color, ms=5, label=label)
    ax.set(xlim=(0, rings.nyquist), ylim=(min(-0.1, float(smooth.min()) - 0.05), 1.03))
    ax.set_title("FRC of the raw halves", fontsize=9)
    ax.set_xlabel("spatial frequency (1/Å)", fontsize=8)
    ax.legend(fontsize=8, frameon=False, title="falls below", title_fontsize=8)


def draw_spectra(ax: Axes, rings: audit_checks.Rings) -> None:
    """Draw the power spectra of both halves, and what they share: the signal, if their noises are independent."""
    for side, power in (("a", rings.aa), ("b", rings.bb)):
        ax.plot(rings.frequencies[1:], figures.smooth(power)[1:], color=COLORS[side], lw=1.2, label=f"half {side}")
    shared = figures.smooth(rings.ab, 9)
    ax.plot(rings.frequencies[1:], np.where(shared > 0, shared, np.nan)[1:], color="0.45", lw=0.8, label="shared")
    shown = np.concatenate([rings.aa[1:], rings.bb[1:]])
    shown = shown[shown > 0]
    if shown.size:
        ax.set_yscale("log")
        # Beyond the information limit the shared power is scatter around 0, which a logarithm draws without end.
        ax.set_ylim(float(np.percentile(shown, 1)) / 100, float(shown.max()) * 2)
    ax.set_xlim(0, rings.nyquist)
    ax.set_title("power (white noise of variance 1 = 1)", fontsize=9)
    ax.set_xlabel("spatial frequency (1/Å)", fontsize=8)
    ax.legend(fontsize=8, frameon=False)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--halves", type=Path, required=True, metavar="RECORD", help="record of the halves")
    parser.add_argument("--figure", type=Path, required=True, metavar="PNG", help="written: the picture (PNG or SVG)")


def _run(args: argparse.Namespace) -> None:
    figure = draw_halves(pair.load_pair(args.halves))
    with files.atomic_path(args.figure) as temporary:
        figure.savefig(temporary, dpi=110)
    log.say(f"{args.figure}: {args.figure.stat().st_size / 1e3:.0f} kB")


COMMANDS = {"plot-halves": (_add_arguments, _run)}
