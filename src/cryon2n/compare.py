"""Score every method on the same held-out micrographs, and compare them.

``score-method`` writes, for one method, a long table of metrics per micrograph and the ring powers
behind the Fourier metrics; ``summarise`` pools the tables of all methods (`pooling`).  ``compare``
(`compare_folders`) does both for results made elsewhere.  Definitions: `metrics` and ``docs/metrics.md``.

A method need not have denoised all of `pair.INPUTS`: metrics that need what is missing are nan.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import fft

from cryon2n import excluded, files, fourier, half_errors, log, metrics, mrcio, pooling
from cryon2n.errors import InputError
from cryon2n.pair import INPUTS, Pair, load_pair, read_estimates
from cryon2n.pooling import IMAGE_METRICS, TRUTH_METRICS, UNBIASED_METRICS

Region = tuple[slice, slice]
Particles = list[tuple[float, float, float]]  # x, y, radius in the halves' pixels


@dataclass(frozen=True)
class Truth:
    """The clean image of a simulated micrograph, on the halves' grid.

    Attributes
    ----------
    image : ndarray, shape (h, w), float32
        In normalised units, moved onto the raw whole exposure.
    shift : (dy, dx)
        By how many pixels it was moved.
    region : two slices
        The valid region without the rows and columns that the move wrapped around.
    particles : list of (x, y, radius)
        In the halves' pixels, moved as the image.
    """

    image: np.ndarray
    shift: tuple[float, float]
    region: Region
    particles: Particles


# ---------------------------------------------------------------------------- inputs


def load_truth(directory: str | Path, pair: Pair) -> Truth:
    """Read a simulated micrograph's truth and bring it to the halves' grid, units and position.

    The position is found on the *raw* whole exposure, so that it is the same for all methods.

    Parameters
    ----------
    directory : path
        Holds ``{mic}.mrc`` (expected electrons per raw pixel in the whole exposure) and ``{mic}.json``.
    pair : Pair

    Raises
    ------
    InputError
        The truth is missing, of another size, in other units, or of another micrograph.
    """
    path = Path(directory) / f"{pair.name}.mrc"
    raw, _ = mrcio.read_mrc(path)
    info = files.read_json(path.with_suffix(".json"))
    try:
        bin = int(pair.record["bin"])
        frames = len(info["trajectory_A"])
        share = {side: int(pair.record[side]["n_frames"]) / frames for side in "ab"}
        radius = float(info["particle_radius_A"]) / pair.pixel_size
        particles = [(p["x_px"] / bin, p["y_px"] / bin, radius) for p in info["particles"]]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: cannot be brought to the halves' units ({error!r}); wanted trajectory_A, particles and "
            f"particle_radius_A in its JSON, bin and n_frames in {pair.name}'s record; or leave out --truth"
        ) from None
    counts = fourier.fourier_crop(raw, bin) * np.float32(bin**2)
    if counts.shape != pair.a.shape:
        raise InputError(
            f"{path}: {raw.shape} pixels make {counts.shape} at bin {bin}, the halves have {pair.a.shape}; "
            "use the truth of these movies"
        )
    sides = {side: pair.from_units(counts * np.float32(share[side]), side) for side in "ab"}
    image, full = pair.mean(sides["a"], sides["b"]), pair.full
    valid = pair.valid
    off = float(image[valid].mean(dtype=np.float64) - full[valid].mean(dtype=np.float64))
    if abs(off) > 1:
        raise InputError(
            f"{path}: its mean is {off:+.2f} standard deviations off the halves' mean; wanted expected "
            "electrons per raw pixel in the whole exposure: make the truth or the halves again"
        )
    shift = metrics.register_shift(image[valid], full[valid])
    image = fourier.fourier_shift(image, shift)
    region = unwrapped(valid, shift, image.shape)
    # 5 standard errors of no correlation in white noise: only a quite different truth fails here.
    likeness = metrics.correlation_coefficient(image[region], full[region])
    if not likeness > 5 / np.sqrt(full[region].size):
        raise InputError(
            f"{path}: does not correlate with micrograph {pair.name} ({likeness:.4f}); "
            "is it another micrograph's truth?"
        )
    dy, dx = shift
    return Truth(image, shift, region, [(x + dx, y + dy, r) for x, y, r in particles])


def unwrapped(region: Region, shift: tuple[float, float], shape: tuple[int, ...]) -> Region:
    """Cut from a region the rows and columns that a periodic shift brought in from the other side."""
    out = []
    for part, move, size in zip(region, shift, shape, strict=True):
        width = int(np.ceil(abs(move)))
        low, high = (width, size) if move > 0 else (0, size - width)
        out.append(slice(max(part.start, low), min(part.stop, high)))
    return out[0], out[1]


def read_labels(path: str | Path) -> dict[str, Particles]:
    """Read particle labels: a CSV with micrograph, x_px, y_px, radius_px in the halves' pixels."""
    columns = ["micrograph", "x_px", "y_px", "radius_px"]
    out: dict[str, Particles] = {}
    for name, x, y, radius in pooling.read_frame(path, columns, sep=",")[columns].itertuples(index=False):
        out.setdefault(name, []).append((float(x), float(y), float(radius)))
    return out


# ---------------------------------------------------------------------------- scores


def unbiased_scores(pair: Pair, estimates: Mapping[str, np.ndarray], peak: float) -> dict[tuple[str, str], float]:
    """Return the metrics of a denoised half against the other half; `peak` is uPSNR's range."""
    a, b, fa, fb = (x[pair.valid] for x in (pair.a, pair.b, estimates["a"], estimates["b"]))
    noise_a, noise_b = metrics.measured_noise(a, b, pair.noise_var)
    umse_ab, umse_ba = metrics.unbiased_mse(fa, b, noise_b), metrics.unbiased_mse(fb, a, noise_a)
    umse = (umse_ab + umse_ba) / 2
    values = (
        umse,
        umse_ab,
        umse_ba,
        metrics.decibel_over(peak**2, umse),
        metrics.decibel_over(metrics.covariance(a, b), umse),
        half_errors.bias_variance(fa, fb, a, b),
        half_errors.residual_noise(fa, fb),
    )
    return {("half", name): value for name, value in zip(UNBIASED_METRICS, values, strict=True)}


def truth_scores(truth: Truth, estimates: Mapping[str, np.ndarray], threads: int = 1) -> dict[tuple[str, str], float]:
    """Return the metrics against a truth; those of ``half`` are the mean of those of f(a) and f(b)."""
    clean = truth.image[truth.region]
    names = [name for name in ("a", "b", "mean", "full") if name in estimates]
    with ThreadPoolExecutor(threads) as executor:
        parts = [estimates[name][truth.region] for name in names]
        found = dict(zip(names, executor.map(lambda part: metrics.truth_metrics(part, clean), parts), strict=True))
    of_a, of_b = found.pop("a", None), found.pop("b", None)
    if of_a and of_b:
        found["half"] = {name: (of_a[name] + of_b[name]) / 2 for name in TRUTH_METRICS}
    out = {(estimator, name): found[estimator][name] for estimator in found for name in TRUTH_METRICS}
    return {**out, ("raw", "truth_shift_px"): float(np.hypot(*truth.shift))}


def score_micrograph(
    pair: Pair,
    estimates: Mapping[str, np.ndarray],
    truth: Truth | None = None,
    particles: Particles | None = None,
    threads: int = 1,
) -> dict[tuple[str, str], float]:
    """Score one method on one micrograph.

    Parameters
    ----------
    pair : Pair
    estimates : mapping of ndarray, shape (h, w)
        ``a``, ``b``, ``mean``, ``full`` and ``noise`` denoised, or some of them, in normalised units.
    truth : Truth, optional
    particles : list of (x, y, radius), optional
        Labels in pixels; without them the truth's are taken.
    threads : int

    Returns
    -------
    dict
        (estimator, metric) → value for every entry of `pooling.IMAGE_METRICS`, nan where it does not apply.
    """
    scores = {(e, m): float("nan") for e, names in IMAGE_METRICS.items() for m in names}
    full = pair.full
    if truth is None:
        peak = metrics.raw_range(full[pair.valid])
    else:
        peak = metrics.clean_range(truth.image[truth.region])
        particles = truth.particles if particles is None else particles
        scores.update(truth_scores(truth, estimates, threads))
    if {"a", "b"} <= set(estimates):
        scores.update(unbiased_scores(pair, estimates, peak))
    if "noise" in estimates:
        noise = estimates["noise"][pair.valid], pair.noise[pair.valid]
        scores["full", "noise_power_ratio"] = metrics.noise_power_ratio(*noise)
    boxes = metrics.snr_boxes(particles or [], pair.valid)
    for estimator, image in (("mean", estimates.get("mean")), ("full", estimates.get("full")), ("raw", full)):
        if image is not None:
            scores[estimator, "topaz_snr_db"] = metrics.topaz_snr_db(image, boxes)
    return scores


def score_rings(pair: Pair, estimates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the ring powers of one method on one micrograph (`metrics.ring_powers`), nan of what it lacks."""
    images = {"a": pair.a, "b": pair.b, "n": pair.noise}
    images.update({f"f{name[0]}": estimates[name] for name in ("a", "b", "noise") if name in estimates})
    return metrics.ring_powers(images, pair.valid, pair.pixel_size)


def score_records(
    method: str,
    records: Sequence[Path],
    read: Callable[[Pair], Mapping[str, np.ndarray]],
    truth: str | Path | None = None,
    labels: Mapping[str, Particles] | None = None,
    threads: int = 1,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Score one method on micrographs.

    Parameters
    ----------
    method : str
    records : sequence of path
        ``{mic}.json`` of their halves.
    read : callable
        Gives what the method made of a pair, as for `score_micrograph`.
    truth : path, optional
        Folder of clean images.
    labels : mapping, optional
        Particles by micrograph.
    threads : int

    Returns
    -------
    scores, rings : list of dict
        Rows with `pooling.SCORE_COLUMNS` and `pooling.RING_COLUMNS`.
    """
    scores, rings, seen = [], [], set()
    progress = log.Progress(len(records), f"micrographs of {method}")
    for done, record in enumerate(records, start=1):
        pair = load_pair(record)
        if pair.name in seen:
            raise InputError(f"{record}: micrograph {pair.name} is given twice; give each record once")
        seen.add(pair.name)
        estimates = read(pair)
        with fft.set_workers(threads):
            clean = load_truth(truth, pair) if truth else None
            found = score_micrograph(pair, estimates, clean, (labels or {}).get(pair.name), threads)
            powers = score_rings(pair, estimates)
        for (estimator, metric), value in found.items():
            row = (method, estimator, pair.name, metric, value)
            scores.append(dict(zip(pooling.SCORE_COLUMNS, row, strict=True)))
        columns = [powers[name].tolist() for name in pooling.RING_COLUMNS[3:]]
        for ring, numbers in enumerate(zip(*columns, strict=True)):
            row = (method, pair.name, ring, *numbers)
            rings.append(dict(zip(pooling.RING_COLUMNS, row, strict=True)))
        progress.update(done)
    if labels and not seen & set(labels):
        log.say(f"warning: the labels name none of the micrographs scored (they name {min(labels)} …)")
    return scores, rings


# ---------------------------------------------------------------------------- commands


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", required=True, help="name of the method in the tables")
    add("--halves", type=Path, required=True, nargs="+", metavar="RECORD", help="the test micrographs' {mic}.json")
    add("--denoised", required=True, metavar="DIR", help="what the method made of them")
    text = "what it denoised (default: all four); metrics that need the rest are nan"
    add("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS), help=text)
    add("--truth", metavar="DIR", help="simulated entries: clean images {mic}.mrc with {mic}.json")
    add("--labels", metavar="CSV", help="particle centres: micrograph,x_px,y_px,radius_px")
    excluded.add_excluded_argument(parser)
    add("--threads", type=int, default=1, metavar="N")
    add("--scores", required=True, metavar="TSV", help="written: metrics per micrograph")
    add("--rings", required=True, metavar="TSV", help="written: ring powers per micrograph")


def _run_score(args: argparse.Namespace) -> None:
    labels = read_labels(args.labels) if args.labels else {}
    records = excluded.kept(args.halves, args.excluded, "test")
    scores, rings = score_records(
        args.method,
        records,
        lambda pair: read_estimates(pair, args.denoised, args.inputs),
        args.truth,
        labels,
        max(args.threads, 1),
    )
    files.write_table(args.scores, scores, pooling.SCORE_COLUMNS)
    files.write_table(args.rings, rings, pooling.RING_COLUMNS)


def _summarise_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--scores", required=True, nargs="+", metavar="TSV", help="of score-method, all methods")
    add("--rings", required=True, nargs="+", metavar="TSV", help="of score-method, all methods")
    add("--reference", metavar="METHOD", help="deltas are against this method")
    add("--metrics", required=True, metavar="TSV", help="written: all scores together")
    add("--summary", required=True, metavar="TSV", help="written: means and intervals")
    add("--curves", required=True, metavar="TSV", help="written: pooled FRC curves")
    add("--seed", type=int, default=0, help="of the resampling")
    add("--bootstrap", type=int, default=2000, metavar="N", help="resamples of the micrographs")


def _run_summarise(args: argparse.Namespace) -> None:
    if args.bootstrap < 1:
        raise InputError(f"--bootstrap {args.bootstrap}: wanted 1 or more resamples")
    table, ring_table = (
        pd.concat([pooling.read_frame(path, columns) for path in paths], ignore_index=True)
        for paths, columns in ((args.scores, pooling.SCORE_COLUMNS), (args.rings, pooling.RING_COLUMNS))
    )
    if table.empty or ring_table.empty:
        raise InputError(f"{args.scores[0]}, {args.rings[0]}: the tables are empty; run score-method first")
    paths = {"metrics": args.metrics, "summary": args.summary, "curves": args.curves}
    summarise_tables(table, ring_table, args.reference, args.seed, args.bootstrap, paths)


def summarise_tables(
    table: pd.DataFrame,
    ring_table: pd.DataFrame,
    reference: str | None,
    seed: int,
    bootstrap: int,
    paths: Mapping[str, str | Path],
) -> None:
    """Pool the rows of `score_records` of all methods, and write ``metrics``, ``summary`` and ``curves``."""
    scores = pooling.tabulate_scores(table)
    names = list(next(iter(scores.values())).index)
    frequency, powers = pooling.tabulate_rings(ring_table, names)
    if set(scores) != set(powers):
        raise InputError(
            f"the scores are of methods {', '.join(sorted(scores))} but the rings of "
            f"{', '.join(sorted(powers))}; give both tables of each method"
        )
    if reference and reference not in scores:
        log.say(f"reference {reference} is none of the methods ({', '.join(scores)}): deltas are nan")
    if len(names) == 1:
        log.say(f"only one micrograph ({names[0]}): confidence intervals are nan")
    rows = pooling.summarise(scores, frequency, powers, reference, seed, bootstrap)
    files.write_table(paths["metrics"], table.to_dict("records"), pooling.SCORE_COLUMNS)
    files.write_table(paths["curves"], pooling.pooled_curves(frequency, powers), pooling.CURVE_COLUMNS)
    files.write_table(paths["summary"], rows, pooling.SUMMARY_COLUMNS)
    log.say(f"{len(scores)} methods on {len(names)} micrographs, {bootstrap} resamples: {paths['summary']}")


COMMANDS = {
    "score-method": (_score_arguments, _run_score),
    "summarise": (_summarise_arguments, _run_summarise),
}
