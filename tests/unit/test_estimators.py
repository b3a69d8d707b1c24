"""Every estimator without a truth against the truth: its stated interval holds it in 95 of 100 repetitions.

Signal and noise are Gaussian fields of known spectra and the denoisers are linear, so the expected value of each
estimator is known in closed form.  A repetition is a data set of its own: new micrographs, scored and summarised
by the code that scores a study.  Seeds are fixed, so a result never changes by chance.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cryon2n import compare, metrics, pooling
from cryon2n.halves import normalise_equal
from cryon2n.pair import Pair

SHAPE, VALID = (64, 64), [0, 64, 0, 64]
REPETITIONS, MICROGRAPHS, BOOTSTRAP = 200, 16, 200
# Of 200 repetitions an interval of 95 % holds the truth in 190 ± 3.1; one in 1000 data sets of repetitions has fewer
# than 180 or, if each holds it in 95 %, all 200.
LEAST, MOST = 180, 199

S = np.hypot(np.fft.fftfreq(SHAPE[0])[:, None], np.fft.fftfreq(SHAPE[1])[None, :])
# A falling spectrum with the zeros of a contrast transfer function, no mean; variance 0.5.
SPECTRUM = np.exp(-((S / 0.12) ** 2)) * np.sin(4 + 260 * S**2) ** 2
SPECTRUM[0, 0] = 0
SPECTRUM *= 0.5 * S.size / SPECTRUM.sum()
TRANSFER = {"narrow": np.exp(-2 * (np.pi * S * 1.4) ** 2), "broad": np.exp(-2 * (np.pi * S * 0.7) ** 2)}
FRAME_NOISE = 1.0  # variance of one frame


def apply(transfer, x):
    return np.fft.ifft2(np.fft.fft2(x) * transfer).real.astype(np.float32)


def make_pair(rng, n_frames):
    """A pair of sums of frames with their record as the halves' stage makes it, the signal, and one frame's unit."""
    signal = apply(np.sqrt(SPECTRUM), rng.standard_normal(SHAPE))
    sums = [n * signal + np.sqrt(n * FRAME_NOISE) * rng.standard_normal(SHAPE, dtype=np.float32) for n in n_frames]
    sides = normalise_equal(*sums, VALID, n_frames)
    unit = sides["a"]["scale"] / n_frames[0]
    a, b = ((x - sides[k]["offset"]) / sides[k]["scale"] for x, k in zip(sums, "ab", strict=True))
    record = {"pixel_size_A": 1.0, "valid": VALID, **sides}
    return Pair("m", a.astype(np.float32), b.astype(np.float32), record), signal, unit


def expected(transfer, n_frames):
    """What the estimators are to find, in squared units of one frame's signal (closed forms)."""
    bias = ((1 - transfer) ** 2 * SPECTRUM).mean()
    passed = (transfer**2).mean() - 1 / S.size  # of white noise, without its mean
    residual = [FRAME_NOISE / n * passed for n in n_frames]
    umse = [bias + FRAME_NOISE / n * (transfer**2).mean() for n in n_frames]
    return {
        "umse": np.mean(umse),
        "umse_ab": umse[0],
        "umse_ba": umse[1],
        "bias_variance": bias,
        "residual_noise": np.mean(residual),
    }


def scored(seed, n_frames, rings=True, change=lambda pair: pair):
    """Score one data set: its scores (long, in squared units of one frame's signal) and ring powers."""
    rng = np.random.default_rng([seed, *n_frames])
    rows, powers = [], {method: [] for method in TRANSFER}
    known = expected(TRANSFER["narrow"], n_frames)
    for number in range(MICROGRAPHS):
        pair, signal, unit = make_pair(rng, n_frames)
        pair = change(pair)
        for method, transfer in TRANSFER.items():
            estimates = {k: apply(transfer, getattr(pair, k)) for k in (("a", "b", "noise") if rings else "ab")}
            found = compare.unbiased_scores(pair, estimates, float(np.ptp(signal)) / unit)
            for (estimator, metric), value in found.items():
                scale = unit**2 if metric in known else 1
                rows.append((method, estimator, f"{number:02d}", metric, value * scale))
            if rings:
                powers[method].append(compare.score_rings(pair, estimates))
    return pd.DataFrame(rows, columns=pooling.SCORE_COLUMNS), powers


def stacked(powers):
    """Ring powers of micrographs as `pooling` wants them: (n_micrographs, n_rings)."""
    return {name: np.stack([p[name] for p in powers]) for name in ("count", *metrics.POWERS)}


def true_curve_and_psnr(method, n=1500):
    """Monte Carlo of what has no closed form, from the signal itself: the pooled FRC with it, and the mean PSNR."""
    rng, transfer = np.random.default_rng(7), TRANSFER[method]
    total, decibels = 0, []
    for _ in range(n):
        pair, signal, unit = make_pair(rng, (1, 1))
        signal = ((signal - signal.mean()) / unit).astype(np.float32)
        f = apply(transfer, pair.a)
        p = metrics.ring_powers({"a": signal, "b": signal, "fa": f}, pair.valid, 1.0)
        total = total + np.stack([p["fa_b"], p["fa_fa"], p["b_b"]])
        # The mean squared error of f(a) and of f(b), of this signal, over all noises.
        error = np.mean((apply(transfer, signal) - signal) ** 2) + (transfer**2).mean() * FRAME_NOISE / unit**2
        decibels.append(10 * np.log10(np.ptp(signal) ** 2 / error))
    cross, own, power = total
    return cross / np.sqrt(own * power), float(np.mean(decibels))


def test_the_interval_of_every_estimator_holds_the_truth_in_95_of_100_repetitions():
    n_frames = (1, 1)
    truths = {method: expected(transfer, n_frames) for method, transfer in TRANSFER.items()}
    curve, psnr = true_curve_and_psnr("narrow")
    delta = truths["broad"]["umse"] - truths["narrow"]["umse"]
    hits: dict[str, int] = {}
    for seed in range(REPETITIONS):
        table, powers = scored(seed, n_frames)
        rings = {method: stacked(own) for method, own in powers.items()}
        frequency = powers["narrow"][0]["frequency"]
        rows = pooling.summarise(pooling.tabulate_scores(table), frequency, rings, "narrow", seed, BOOTSTRAP)
        found = {(r["method"], r["metric"]): r for r in rows if r["estimator"] == "half"}
        band = metrics.information_limit(pooling.pool(rings["narrow"]))
        wanted = {**truths["narrow"], "upsnr": psnr, "cross_frc": float(metrics.band_mean(curve, band))}
        for metric, truth in wanted.items():
            row = found["narrow", metric]
            hits[metric] = hits.get(metric, 0) + (row["ci_low"] <= truth <= row["ci_high"])
        row = found["broad", "umse"]
        hits["delta umse"] = hits.get("delta umse", 0) + (row["delta_low"] <= delta <= row["delta_high"])
    assert {name: n for name, n in hits.items() if not LEAST <= n <= MOST} == {}


def coverage(n_frames, repetitions=REPETITIONS, change=lambda pair: pair):
    """In how many of the repetitions the interval of each closed form holds it; `change` may spoil the pairs."""
    truth, hits = expected(TRANSFER["narrow"], n_frames), {}
    for seed in range(repetitions):
        table, _ = scored(seed, n_frames, False, change)
        table = table[table["method"] == "narrow"]
        weights = pooling.resample_weights(MICROGRAPHS, BOOTSTRAP, seed)
        for metric, value in truth.items():
            x = table.loc[table["metric"] == metric, "value"].to_numpy()
            low, high = pooling.interval(pooling.resampled_means(x, weights), MICROGRAPHS)
            hits[metric] = hits.get(metric, 0) + (low <= value <= high)
    return hits


@pytest.mark.parametrize("n_frames", [(1, 49), (3, 1)], ids=["one frame against 49", "three groups against the fourth"])
def test_unequal_halves_have_the_right_formula(n_frames):
    hits = coverage(n_frames)
    assert {name: n for name, n in hits.items() if not LEAST <= n <= MOST} == {}


def equal_by_mistake(pair):
    """The halves' noises taken as equal, whatever the frames in them."""
    record = {**pair.record, **{side: {**pair.record[side], "noise_var": 1.0} for side in "ab"}}
    return dataclasses.replace(pair, record=record)


def leaked(pair):
    """A tenth of half a inside half b: a frame in its own average."""
    return dataclasses.replace(pair, b=0.9 * pair.b + 0.1 * pair.a)


@pytest.mark.parametrize(
    ("n_frames", "spoil", "metrics_hit"),
    [((1, 49), equal_by_mistake, ("umse_ab", "umse_ba")), ((1, 1), leaked, ("umse", "umse_ba", "bias_variance"))],
)
def test_a_wrong_formula_or_a_leak_misses_the_truth(n_frames, spoil, metrics_hit):
    hits = coverage(n_frames, 30, spoil)
    assert all(hits[metric] < 10 for metric in metrics_hit), hits
