"""The command ``score-picking``: how well particles are found in what each method made.

The same picker, with the same settings, on the raw and on every denoised micrograph; the threshold is swept.
Definitions: ``docs/picking.md``.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import excluded, files, log, particles, picking, pooling
from cryon2n.errors import InputError
from cryon2n.pair import load_pair, read_shown
from cryon2n.picking import Picked

COLUMNS = "picker method metric value ci_low ci_high n delta delta_low delta_high".split()
CURVE_COLUMNS = ["picker", "method", "threshold", "precision", "recall"]
PICK_COLUMNS = ["picker", "method", "micrograph", "x_px", "y_px", "score"]
METRICS = ("average_precision", "f1", "precision", "recall")
POINTS = 400  # of a curve, at most


def measures(picked: Sequence[Picked], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return `METRICS` of the picks of all micrographs together, each of shape (...).

    Parameters
    ----------
    picked : sequence of Picked
    weights : ndarray, shape (..., n_micrographs)
        How often each micrograph counts.
    """
    scores, hits, micrograph = picking.ranked(picked)
    known = weights @ np.array([p.particles for p in picked], dtype=np.float64)
    if not len(scores):
        found = np.where(known > 0, 0.0, np.nan)
        return {"average_precision": found, "f1": found, "precision": np.full(known.shape, np.nan), "recall": found}
    precision, recall = picking.precision_recall(scores, hits, weights[..., micrograph], known)
    f1, at = picking.best_f1(precision, recall)
    at = at[..., None]
    return {
        "average_precision": picking.average_precision(precision, recall),
        "f1": np.where(known > 0, f1, np.nan),
        "precision": np.take_along_axis(precision, at, -1)[..., 0],
        "recall": np.take_along_axis(recall, at, -1)[..., 0],
    }


def score(
    picked: Mapping[str, Sequence[Picked]], reference: str | None, bootstrap: int, seed: int
) -> list[tuple[str, str, float, float, float, int, float, float, float]]:
    """Return rows (method, metric, value, interval, n, difference to the reference, its interval).

    The intervals are bootstrapped over micrographs, the differences paired, as in `pooling.summarise`.
    """
    n = len(next(iter(picked.values())))
    weights = pooling.resample_weights(n, bootstrap, seed)
    values = {method: measures(found, np.ones(n)) for method, found in picked.items()}
    drawn = {
        method: {
            metric: np.concatenate([measures(found, weights[i : i + 100])[metric] for i in range(0, bootstrap, 100)])
            for metric in METRICS
        }
        for method, found in picked.items()
    }
    rows = []
    for method in picked:
        for metric in METRICS:
            value, samples = float(values[method][metric]), drawn[method][metric]
            delta, delta_samples = float("nan"), np.empty(0)
            if reference in picked:
                delta = value - float(values[reference][metric])
                delta_samples = samples - drawn[reference][metric]
            intervals = (*pooling.interval(samples, n), n, delta, *pooling.interval(delta_samples, n))
            rows.append((method, metric, value, *intervals))
    return rows


def curve(picked: Sequence[Picked]) -> list[tuple[float, float, float]]:
    """Return threshold, precision and recall of the picks of all micrographs together, thinned to `POINTS`."""
    scores, hits, _ = picking.ranked(picked)
    known = np.array(sum(p.particles for p in picked))
    precision, recall = picking.precision_recall(scores, hits, np.ones(len(scores)), known)
    # The ends of a curve's steps are all that there is to it: where a pick was a hit.
    steps = np.flatnonzero(hits)
    kept = steps[np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).astype(int))] if len(steps) else []
    return [(float(scores[i]), float(precision[i]), float(recall[i])) for i in kept]


def read_picks(path: Path) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """Read the picks of other pickers: places (n, 2) and scores (n,) by picker, method and micrograph.

    Raises
    ------
    InputError
        The table is damaged, or holds a picker called ``blobs``, which is our own.
    """
    found: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for number, row in enumerate(files.read_table(path, PICK_COLUMNS), start=1):
        try:
            numbers = float(row["y_px"]), float(row["x_px"]), float(row["score"])
        except ValueError:
            raise InputError(f"{path}: row {number} holds no numbers in x_px, y_px and score; pick again") from None
        if row["picker"] == "blobs":
            raise InputError(f"{path}: row {number} is of a picker called blobs, which is built in; call it otherwise")
        found.setdefault((row["picker"], row["method"], row["micrograph"]), []).append(numbers)
    return {key: (np.array(own)[:, :2], np.array(own)[:, 2]) for key, own in found.items()}


# ---------------------------------------------------------------------------- command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--halves", type=Path, nargs="+", required=True, metavar="RECORD", help="the test micrographs' {mic}.json")
    add("--denoised", type=Path, required=True, metavar="DIR", help="holds a folder for each method")
    add("--methods", nargs="+", required=True, metavar="METHOD")
    particles.add_arguments(parser)
    excluded.add_excluded_argument(parser)
    add("--picks", type=Path, metavar="TSV", help="picks of other pickers, such as of pick-topaz")
    add("--input", choices=["mean", "a", "b", "full"], default="mean",
        help="where blobs are picked: the mean of the denoised halves, one of them, the whole exposure")  # fmt: skip
    add("--reference", metavar="METHOD", help="differences are against this method")
    add("--bootstrap", type=int, default=2000, metavar="N", help="resamples of the micrographs")
    add("--seed", type=int, default=0, help="of the resampling")
    add("--table", type=Path, required=True, metavar="TSV", help="written: precision, recall, F1, average precision")
    add("--curves", type=Path, required=True, metavar="TSV", help="written: precision over recall")


def _run(args: argparse.Namespace) -> None:
    if args.bootstrap < 1:
        raise InputError(f"--bootstrap {args.bootstrap}: wanted 1 or more resamples")
    if args.truth is None and args.labels is None:
        raise InputError("neither --truth nor --labels: wanted one that says where particles are")
    records = excluded.kept(args.halves, args.excluded, "test")
    pairs, known = particles.marked([load_pair(record) for record in records], args.truth, args.labels)
    pixel_size, radius_A = pairs[0].pixel_size, float(np.median([k.radius for k in known]))
    radius = radius_A / pixel_size
    blobs = picking.choose_blobs([pair.full for pair in pairs], [k.centres for k in known], radius)
    log.say(
        f"picking {'bright' if blobs.bright else 'dark'} discs of radius {blobs.size * pixel_size:.0f} Å "
        f"(particles: {radius_A:.0f} Å), chosen on the raw micrographs"
    )
    pickers: dict[str, dict[str, list[Picked]]] = {"blobs": {method: [] for method in args.methods}}
    others = read_picks(args.picks) if args.picks else {}
    for picker, method, _ in others:
        pickers.setdefault(picker, {}).setdefault(method, [])
    for pair, own in zip(pairs, known, strict=True):
        for picker, methods in pickers.items():
            for method, picked in methods.items():
                if picker == "blobs":
                    response = picking.blob_response(read_shown(pair, args.denoised / method, args.input), blobs)
                    found = picking.find_peaks(response, blobs.distance)
                else:
                    found = others.get((picker, method, pair.name), (np.zeros((0, 2)), np.zeros(0)))
                picked.append(picking.judge(*found, own.centres, radius, pair.valid))
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for picker, methods in pickers.items():
        for row in score(methods, args.reference, args.bootstrap, args.seed):
            rows.append(dict(zip(COLUMNS, (picker, *row), strict=True)))
        for method, picked in methods.items():
            curves += [dict(zip(CURVE_COLUMNS, (picker, method, *p), strict=True)) for p in curve(picked)]
    files.write_table(args.table, rows, COLUMNS)
    files.write_table(args.curves, curves, CURVE_COLUMNS)
    asked = sum(p.particles for p in next(iter(pickers["blobs"].values())))
    log.say(f"{len(args.methods)} methods, {len(pairs)} micrographs, {asked} particles to find: {args.table}")


COMMANDS = {"score-picking": (_add_arguments, _run)}
