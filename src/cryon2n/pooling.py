"""Pool the scores of all methods over the same micrographs, with paired bootstrap intervals.

The catalogue of metrics stands here too: every method gets a row for each of them.  Definitions are in
`metrics` and ``docs/metrics.md``.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from cryon2n import metrics
from cryon2n.errors import InputError

# After the best affine map the names end in "_affine".
TRUTH_METRICS = (
    *("psnr", "ssim", "signal_to_error_db"),
    *("psnr_affine", "ssim_affine", "signal_to_error_db_affine"),
    *("affine_gain", "affine_offset"),
)
UNBIASED_METRICS = (
    *("umse", "umse_ab", "umse_ba", "upsnr"),
    *("unbiased_signal_to_error_db", "bias_variance", "residual_noise"),
)
# estimator: metrics that each micrograph has by itself.
IMAGE_METRICS: dict[str, tuple[str, ...]] = {
    "half": (*UNBIASED_METRICS, *TRUTH_METRICS),
    "mean": (*TRUTH_METRICS, "topaz_snr_db"),
    "full": (*TRUTH_METRICS, "topaz_snr_db", "noise_power_ratio"),
    "raw": ("topaz_snr_db", "truth_shift_px"),
}
# estimator: metrics of ring powers pooled over micrographs.
RING_METRICS: dict[str, tuple[str, ...]] = {
    "half": ("cross_frc", "cross_frc_ab", "cross_frc_ba", "cross_frc_resolution_A", "half_frc"),
    "full": ("noise_power_ratio_inband",),
    "raw": ("raw_frc", "information_limit_A"),
}
SCORE_COLUMNS = ["method", "estimator", "micrograph", "metric", "value"]
RING_COLUMNS = ["method", "micrograph", "ring", "frequency", "count", *metrics.POWERS]
SUMMARY_COLUMNS = "method estimator metric mean ci_low ci_high n delta delta_low delta_high".split()
CURVE_COLUMNS = ["method", "frequency", "cross_frc", "half_frc", "raw_frc"]

Key = tuple[str, str]  # (estimator, metric)
nan = float("nan")

# ---------------------------------------------------------------------------- tables


def read_frame(path: str | Path, columns: list[str], sep: str = "\t") -> pd.DataFrame:
    """Read a table with checked columns; names stay text (``0001``), everything else must be numbers."""
    words = {"method": str, "estimator": str, "micrograph": str, "metric": str}
    try:
        table = pd.read_csv(path, sep=sep, comment="#", dtype=words, na_values=["nan"], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the table ({str(error).strip()}); make it again") from None
    missing = [c for c in columns if c not in table]
    if missing:
        found = ", ".join(map(str, table))
        raise InputError(f"{path}: column {', '.join(missing)} is missing (found: {found}); make it again")
    for name in columns:
        if name not in words and len(table) and not pd.api.types.is_numeric_dtype(table[name]):
            raise InputError(f"{path}: column {name} holds text or gaps; wanted a number in each row")
    return table


def tabulate_scores(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Turn the long table into one frame per method: rows micrographs, columns (estimator, metric).

    Raises
    ------
    InputError
        A method lacks a micrograph that another has, or has a value twice.
    """
    keys = ["method", "micrograph", "estimator", "metric"]
    twice = table.duplicated(keys)
    if twice.any():
        which = " / ".join(table.loc[twice, keys].iloc[0])
        raise InputError(f"the scores hold {which} twice; give each table once")
    names = sorted(table["micrograph"].unique())
    out = {}
    for method, part in table.groupby("method", sort=False):
        _check_complete(str(method), set(part["micrograph"]), set(names), "scores")
        wide = part.pivot(index="micrograph", columns=["estimator", "metric"], values="value")
        out[str(method)] = wide.reindex(names)
    return out


def tabulate_rings(table: pd.DataFrame, names: list[str]) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Bring all ring powers to one grid.

    Micrographs of another size have other rings; each ring goes to the nearest of the coarsest grid, up
    to the lowest Nyquist frequency.  With one size nothing moves.

    Returns
    -------
    frequency : ndarray, shape (n_rings,)
        In 1/Å.
    powers : dict of dict of ndarray, shape (n_micrographs, n_rings)
        ``powers[method][name]`` for ``count`` and the names in `metrics.POWERS`; micrographs as in
        `names`.
    """
    twice = table.duplicated(["method", "micrograph", "ring"])
    if twice.any():
        which = " / ".join(table.loc[twice, ["method", "micrograph"]].iloc[0])
        raise InputError(f"the rings hold {which} twice; give each table once")
    keys = ["method", "micrograph"]
    groups = {key: part.sort_values("ring") for key, part in table.groupby(keys, sort=False)}
    width = max(float(part["frequency"].iloc[1]) for part in groups.values())
    n = min(round(float(part["frequency"].iloc[-1]) / width) for part in groups.values()) + 1
    powers: dict[str, dict[str, np.ndarray]] = {}
    for method in table["method"].unique():
        _check_complete(method, {name for key, name in groups if key == method}, set(names), "rings")
        parts = [groups[method, name] for name in names]
        index = [np.rint(part["frequency"].to_numpy() / width).astype(int) for part in parts]
        powers[method] = {
            column: np.stack(
                [np.bincount(i, part[column].to_numpy(), n)[:n] for i, part in zip(index, parts, strict=True)]
            )
            for column in ("count", *metrics.POWERS)
        }
        first = next(iter(powers))
        sums = (powers[m]["a_a"].sum(axis=1) for m in (method, first))
        for name, x, y in zip(names, *sums, strict=True):
            if abs(x - y) > 1e-4 * abs(y):
                raise InputError(
                    f"methods {method} and {first} were scored on different halves of micrograph {name}; "
                    "score both again"
                )
    return np.arange(n) * width, powers


def _check_complete(method: str, found: set[str], wanted: set[str], what: str) -> None:
    if missing := sorted(wanted - found):
        raise InputError(
            f"method {method} has no {what} for micrograph {', '.join(missing)}, which another table has; "
            "score all methods on the same micrographs"
        )


# ---------------------------------------------------------------------------- pooling


def pool(powers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add ring powers (n_micrographs, n_rings) over micrographs."""
    return {name: x.sum(axis=0) for name, x in powers.items()}


def ring_statistics(
    powers: Mapping[str, np.ndarray], frequency: np.ndarray, band: int, significant: int
) -> dict[Key, np.ndarray]:
    """Return every entry of `RING_METRICS` from pooled ring powers (..., n_rings), each of shape (...).

    `band` and `significant` are the rings of `metrics.information_limit` and `metrics.significant_limit`
    of all micrographs: they belong to the definition and stay the same in every resample.
    """

    def in_band(curve: np.ndarray) -> np.ndarray:
        return metrics.band_mean(curve, band)

    def crossing(curves: np.ndarray, threshold: float, limit: int | None = None) -> np.ndarray:
        rows = curves.reshape(-1, curves.shape[-1])
        found = [metrics.crossing_resolution(row, frequency, threshold, limit) for row in rows]
        return np.array(found).reshape(curves.shape[:-1])

    cross, raw = metrics.cross_frc(powers), metrics.raw_frc(powers)
    passed, noise = (powers[name][..., 1:band].sum(axis=-1) for name in ("fn_fn", "n_n"))
    return {
        ("half", "cross_frc"): in_band(cross),
        ("half", "cross_frc_ab"): in_band(metrics.cross_frc(powers, "ab")),
        ("half", "cross_frc_ba"): in_band(metrics.cross_frc(powers, "ba")),
        ("half", "cross_frc_resolution_A"): crossing(cross, 0.5, significant),
        ("half", "half_frc"): in_band(metrics.half_frc(powers)),
        ("full", "noise_power_ratio_inband"): np.where(noise > 0, passed / np.where(noise > 0, noise, 1), nan),
        ("raw", "raw_frc"): in_band(raw),
        ("raw", "information_limit_A"): crossing(raw, 0.143),
    }


def resample_weights(n: int, bootstrap: int, seed: int) -> np.ndarray:
    """Return how often each of n micrographs is drawn in each resample, shape (bootstrap, n), float64."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstrap).astype(np.float64)


def resampled_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of the finite `values` (n,) in each resample, shape (bootstrap,).

    nan where a resample draws no finite value.
    """
    ok = np.isfinite(values)
    drawn = weights[:, ok].sum(axis=1)
    return np.where(drawn > 0, weights[:, ok] @ values[ok] / np.maximum(drawn, 1), nan)


def resampled_rings(
    powers: Mapping[str, np.ndarray], weights: np.ndarray, frequency: np.ndarray, limits: tuple[int, int]
) -> dict[Key, np.ndarray]:
    """Return the ring metrics of each resample, from powers pooled anew; each of shape (bootstrap,)."""
    found = []
    for start in range(0, len(weights), 100):  # in parts, to bound the memory
        pooled = {name: weights[start : start + 100] @ x for name, x in powers.items()}
        found.append(ring_statistics(pooled, frequency, *limits))
    return {key: np.concatenate([statistics[key] for statistics in found]) for key in found[0]}


def interval(samples: np.ndarray, n: int) -> tuple[float, float]:
    """Return the 95 % interval of resampled values: the expanded percentile interval.

    The 2.5 and 97.5 percentiles (Efron 1979) are too narrow for few micrographs.  The percentiles taken here lie as
    much farther out as the interval of a mean by Student's t with the unbiased variance is wider than the one by the
    normal distribution (Hesterberg, The American Statistician 69:371, 2015, section 5.3): 1.3 and 98.7 for n = 14, no
    difference for large n.

    nan for n < 2 micrographs: one micrograph says nothing about the spread between micrographs.
    """
    samples = samples[np.isfinite(samples)]
    if n < 2 or samples.size == 0:
        return nan, nan
    outside = special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, 0.025))
    low, high = np.percentile(samples, [100 * outside, 100 * (1 - outside)])
    return float(low), float(high)


def summarise(
    scores: Mapping[str, pd.DataFrame],
    frequency: np.ndarray,
    powers: Mapping[str, Mapping[str, np.ndarray]],
    reference: str | None,
    seed: int = 0,
    bootstrap: int = 2000,
) -> list[dict[str, str | float | int]]:
    """Return the rows of the summary: every method × estimator × metric.

    All methods share the resamples, so a delta (method - reference) is paired: its interval is that of
    the difference, not a difference of intervals.

    Parameters
    ----------
    scores : mapping of DataFrame
        From `tabulate_scores`.
    frequency, powers
        From `tabulate_rings`.
    reference : str or None
        The deltas are nan if it is not among the methods.
    seed, bootstrap : int
        Of the resampling, and how many resamples.
    """
    n = len(next(iter(scores.values())))
    weights = resample_weights(n, bootstrap, seed)
    raw = pool(next(iter(powers.values())))  # the raw halves, and so the limits, are the same for all
    limits = metrics.information_limit(raw), metrics.significant_limit(raw)
    values = {method: ring_statistics(pool(p), frequency, *limits) for method, p in powers.items()}
    samples = {method: resampled_rings(p, weights, frequency, limits) for method, p in powers.items()}

    rows = []
    for method in scores:
        for key in ((e, m) for e, names in IMAGE_METRICS.items() for m in names):
            x = _column(scores[method], key)
            d = x - _column(scores[reference], key) if reference in scores else np.full(n, nan)
            count, pairs = int(np.isfinite(x).sum()), int(np.isfinite(d).sum())
            ci = interval(resampled_means(x, weights), count)
            delta_ci = interval(resampled_means(d, weights), pairs)
            rows.append((method, *key, _mean(x), *ci, count, _mean(d), *delta_ci))
        for key in ((e, m) for e, names in RING_METRICS.items() for m in names):
            value, drawn = float(values[method][key]), samples[method][key]
            count = n if np.isfinite(value) else 0
            delta, delta_drawn = nan, np.empty(0)
            if reference in values:
                delta = value - float(values[reference][key])
                delta_drawn = drawn - samples[reference][key]
            pairs = n if np.isfinite(delta) else 0
            ci, delta_ci = interval(drawn, count), interval(delta_drawn, pairs)
            rows.append((method, *key, value, *ci, count, delta, *delta_ci))
    return [dict(zip(SUMMARY_COLUMNS, row, strict=True)) for row in rows]


def pooled_curves(
    frequency: np.ndarray, powers: Mapping[str, Mapping[str, np.ndarray]]
) -> list[dict[str, str | float]]:
    """Return the rows of the curves table: the pooled FRC curves of each method."""
    rows = []
    for method, p in powers.items():
        pooled = pool(p)
        curves = (f(pooled) for f in (metrics.cross_frc, metrics.half_frc, metrics.raw_frc))
        for line in zip(frequency, *curves, strict=True):
            rows.append(dict(zip(CURVE_COLUMNS, (method, *map(float, line)), strict=True)))
    return rows


def _column(frame: pd.DataFrame, key: Key) -> np.ndarray:
    return frame[key].to_numpy(dtype=np.float64) if key in frame else np.full(len(frame), nan)


def _mean(values: np.ndarray) -> float:
    ok = np.isfinite(values)
    return float(values[ok].mean()) if ok.any() else nan
