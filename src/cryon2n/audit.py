"""Audit of the halves: whether their noises are independent and alike, and whether they belong together.

Everything that follows (training, every score without truth) rests on the halves' independence.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, fourier, log, pair
from cryon2n.errors import InputError

COLUMNS = [
    "micrograph",
    "noise_var_a",
    "noise_var_b",
    "resolution_0143_A",
    "resolution_05_A",
    "frc_beyond",
    "frc_beyond_z",
    "cross_correlation",
    "cross_correlation_z",
    "common_signal_z",
    "half_shift_px",
    "motion_A",
    "defects",
    "flags",
]
# Flags, and from where on: z values in standard deviations of independent noise.
BEYOND_Z, CROSS_Z, SIGNAL_Z, SHIFT_PX, NOISE_RATIO = 5.0, 6.0, 5.0, 1.0, 1.2


def audit_pair(halves: pair.Pair, other: pair.Pair | None) -> tuple[dict[str, Any], np.ndarray]:
    """Examine one pair, and its half a against another micrograph's half b.

    Parameters
    ----------
    halves, other : Pair
        `other` is another micrograph of the same detector, or None.

    Returns
    -------
    row : dict
        With the columns `COLUMNS`.
    frc : ndarray, shape (n_rings,)
        FRC of the raw halves.
    """
    a, b = halves.a[halves.valid], halves.b[halves.valid]
    frequencies = fourier.ring_frequencies(a.shape, halves.pixel_size)
    curve = fourier.frc(a, b, edge=16)
    counts = fourier.ring_counts(a.shape)
    beyond = slice(int(0.9 * len(curve)), len(curve))
    # Half of the Fourier bins of a real image are independent; the taper costs a little more.
    frc_beyond = float(np.average(curve[beyond], weights=counts[beyond]))
    beyond_z = frc_beyond * np.sqrt(counts[beyond].sum() / 2)
    record = halves.record
    va, vb = halves.noise_var
    flags = []
    cross = cross_z = float("nan")
    least_z = SIGNAL_Z
    if other is not None:
        h, w = np.minimum(a.shape, other.b[other.valid].shape)
        own, stranger = a[:h, :w], other.b[other.valid][:h, :w]
        cross, cross_z = high_pass_correlation(own, stranger)
        # What any two micrographs share (illumination, an ice gradient) does not make a pair.
        least_z = max(SIGNAL_Z, 2 * common_signal(fourier.frc(own, stranger, edge=16), fourier.ring_counts((h, w))))
        if abs(cross_z) > CROSS_Z:
            flags.append("fixed-pattern")
    if not beyond_z <= BEYOND_Z:  # nan too: without noise of their own there is nothing to be independent
        flags.append("correlated-noise")
    shift = half_shift(a, b)
    if shift > SHIFT_PX:
        flags.append("halves-shifted")
    signal_z = common_signal(curve, counts)
    if not signal_z > least_z:
        flags.append("no-common-signal")
    # In normalised units the noises must stand to each other as the record says (for sums of a movie: as
    # 1 / frames): the loss and the whole exposure weigh the halves by it.
    measured = high_frequency_power(a) / max(high_frequency_power(b), 1e-30)
    if not 1 / NOISE_RATIO < measured * vb / va < NOISE_RATIO:
        flags.append("unequal-noise")
    path = record["trajectory_A"]
    row = {
        "micrograph": halves.name,
        "noise_var_a": va,
        "noise_var_b": vb,
        "resolution_0143_A": crossing(curve, frequencies, 0.143),
        "resolution_05_A": crossing(curve, frequencies, 0.5),
        "frc_beyond": frc_beyond,
        "frc_beyond_z": float(beyond_z),
        "cross_correlation": cross,
        "cross_correlation_z": cross_z,
        "common_signal_z": signal_z,
        "half_shift_px": shift,
        "motion_A": float("nan")
        if path is None
        else float(np.linalg.norm(np.diff(np.array(path), axis=0), axis=1).sum()),
        "defects": "-" if record["defects"] is None else record["defects"],
        "flags": ",".join(flags) or "ok",
    }
    return row, curve


def common_signal(curve: np.ndarray, counts: np.ndarray) -> float:
    """How far the halves' correlation at low frequencies stands above that of unrelated images, in z.

    The most significant of the bands from ring 3 (below lie ice and illumination gradients, which any
    two micrographs may share) up to 1/32, 1/16, 1/8 and 1/4 of Nyquist.  Halves of one micrograph give
    tens; an empty micrograph, or halves of two different ones, a few at most.

    Parameters
    ----------
    curve, counts : ndarray, shape (n_rings,)
        FRC of the halves, and Fourier bins per ring.
    """
    bands = [slice(3, max(8, len(curve) // d)) for d in (32, 16, 8, 4)]
    return float(max(np.average(curve[b], weights=counts[b]) * np.sqrt(counts[b].sum() / 2) for b in bands))


def crossing(curve: np.ndarray, frequencies: np.ndarray, threshold: float) -> float:
    """Resolution in Å where a smoothed FRC first falls below `threshold`; nan if it starts below it."""
    smooth = np.convolve(curve[1:], np.ones(5) / 5, "valid")
    below = np.flatnonzero(smooth < threshold)
    if len(below) == 0:
        return float(1 / frequencies[-1])
    return float("nan") if below[0] == 0 else float(1 / frequencies[below[0] + 3])


def high_frequency_power(image: np.ndarray) -> float:
    """Mean power (h, w) of the rings beyond 0.8 of Nyquist, where a micrograph is noise."""
    spectrum = fourier.windowed_spectrum(image, edge=16)
    sums, counts = (
        fourier.ring_sums(fourier.cross_power(spectrum, spectrum), image.shape),
        fourier.ring_counts(image.shape),
    )
    n = len(sums)
    return float(sums[int(0.8 * n) :].sum() / counts[int(0.8 * n) :].sum())


def high_pass_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Correlation of two images (h, w) above 1/8 of Nyquist, and its z value under independence.

    Different specimens have independent signals, and a common ice gradient lies below that
    frequency: what correlates is the detector (gain, hot pixels, fixed pattern).
    """
    spectra = [fourier.windowed_spectrum(v, edge=16) for v in (x, y)]
    sums = [
        fourier.ring_sums(fourier.cross_power(spectra[i], spectra[j]), x.shape) for i, j in ((0, 1), (0, 0), (1, 1))
    ]
    counts = fourier.ring_counts(x.shape)
    band = slice(len(counts) // 8, len(counts))
    xy, xx, yy = (s[band] / counts[band] for s in sums)
    # Per-ring correlations, pooled by their number of bins, so that coloured noise weighs as white.
    c = float(np.average(xy / np.sqrt(xx * yy), weights=counts[band]))
    return c, c * float(np.sqrt(counts[band].sum() / 2))


def half_shift(a: np.ndarray, b: np.ndarray) -> float:
    """Distance in pixels of the highest cross-correlation from zero shift; 0 where it does not stand out."""
    size = np.array(a.shape)
    spectra = [fourier.windowed_spectrum(v, edge=16) for v in (a, b)]
    s = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None, :])
    cross = spectra[0] * spectra[1].conj() * np.exp(-((s / 0.1) ** 2))
    correlation = np.fft.irfft2(cross, s=tuple(size))
    peak = np.array(np.unravel_index(int(correlation.argmax()), correlation.shape))
    if correlation.max() < 6 * correlation.std():
        return 0.0
    return float(np.linalg.norm((peak + size // 2) % size - size // 2))


def audit(records: list[Path]) -> tuple[list[dict[str, Any]], list[tuple[np.ndarray, np.ndarray]]]:
    """Audit all micrographs; each is also compared with the next one in the list.

    Returns
    -------
    rows : list of dict
    curves : list of (frequencies in 1/Å, FRC)
    """
    rows, curves = [], []
    progress = log.Progress(len(records), "micrographs")
    current = first = pair.load_pair(records[0])
    for i in range(len(records)):
        following = first if i + 1 == len(records) else pair.load_pair(records[i + 1])
        row, curve = audit_pair(current, following if len(records) > 1 else None)
        rows.append(row)
        curves.append((fourier.ring_frequencies(current.a[current.valid].shape, current.pixel_size), curve))
        current = following
        progress.update(i + 1)
    return rows, curves


def draw(rows: list[dict[str, Any]], curves: list[tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draw the FRC of all raw halves, and each micrograph's correlation beyond the information limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for (frequencies, curve), row in zip(curves, rows, strict=True):
        smooth = np.convolve(curve, np.ones(5) / 5, "same")
        left.plot(
            frequencies[3:-3],
            smooth[3:-3],
            color="#d62728" if row["flags"] != "ok" else "#4878a8",
            lw=0.8,
            alpha=0.7,
        )
    for threshold in (0.5, 0.143):
        left.axhline(threshold, color="0.5", lw=0.8, ls=":")
    left.set(xlabel="spatial frequency (1/Å)", ylabel="FRC of the raw halves", ylim=(-0.1, 1.02), xlim=(0, None))
    right.axvspan(-BEYOND_Z, BEYOND_Z, color="0.93")
    right.scatter([r["frc_beyond_z"] for r in rows], range(len(rows)), s=14, label="a with its own b, high frequencies")
    right.scatter(
        [r["cross_correlation_z"] for r in rows],
        range(len(rows)),
        s=14,
        marker="x",
        label="a with another's b",
    )
    right.set(xlabel="correlation (standard deviations)", ylabel="micrograph")
    right.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--halves", type=Path, nargs="+", required=True, help="records of halves")
    parser.add_argument("--table", type=Path, required=True, help="output: one row per micrograph (TSV)")
    parser.add_argument("--figure", type=Path, required=True, help="output: figure (PNG or SVG)")


def _run(args: argparse.Namespace) -> None:
    rows, curves = audit(args.halves)
    for row in rows:
        if row["flags"] != "ok":
            log.say(f"warning: {row['micrograph']}: {row['flags']}")
    broken = [row["micrograph"] for row in rows if row["frc_beyond"] > 0.5]
    if broken:
        raise InputError(
            f"{', '.join(broken)}: the halves' noises are correlated (FRC {max(r['frc_beyond'] for r in rows):.2f} "
            "at the highest frequencies; independent noise gives 0); the same frames are in both halves, or a fixed "
            "pattern: make the halves again or leave these micrographs out"
        )
    draw(rows, curves, args.figure)
    files.write_table(args.table, rows, COLUMNS)
    worst = max(abs(row["frc_beyond_z"]) for row in rows)
    log.say(f"{len(rows)} micrographs, {sum(r['flags'] != 'ok' for r in rows)} flagged, worst |z| beyond {worst:.1f}")


COMMANDS = {"audit-halves": (_add_arguments, _run)}
