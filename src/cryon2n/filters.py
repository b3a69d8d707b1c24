"""Classical baselines: raw, low-pass, Gaussian, Wiener and non-local means, each at its best setting.

All but the last (`filters_nlm`) are linear, so their mean squared error follows from ring powers of the halves alone:
``MSE(H) = sum_k (1 - H_k)² S_k + H_k² N_k`` with the signal ``S = <a,b>`` and the noise
``N = <x,x> - S``.  That is the unbiased MSE of a half scored on the other, and it can also be
written for the whole exposure, so each baseline gets its own best setting for every input: a win
over them means something.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from cryon2n import excluded, files, filters_nlm, fourier, log, metering, pair
from cryon2n.errors import InputError
from cryon2n.methods import FILTERS, LINEAR

SIDES = ("a", "b", "full")


def gaussian_transfer(s: np.ndarray, sigma: float) -> np.ndarray:
    """Transfer of a Gaussian of `sigma` pixels at `s` cycles per pixel."""
    return np.exp(-2 * (np.pi * sigma * s) ** 2)


def lowpass_transfer(s: np.ndarray, cutoff: float) -> np.ndarray:
    """Transfer of a low-pass: 1 up to 0.9 `cutoff`, a raised cosine, 0 from 1.1 `cutoff` (cycles per pixel)."""
    t = np.clip((s / cutoff - 0.9) / 0.2, 0, 1)
    return 0.5 * (1 + np.cos(np.pi * t))


# Settings to choose from: sigma in pixels, cut-off in cycles per pixel; fine enough that the best of
# them is within a fraction of a percent of the optimum.
CANDIDATES: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], np.ndarray]] = {
    "gaussian": (gaussian_transfer, np.geomspace(0.3, 100, 140)),
    "lowpass": (lowpass_transfer, np.geomspace(0.002, 0.7, 140)),
}


def ring_powers(pairs: list[pair.Pair]) -> dict[str, np.ndarray]:
    """Pool ring powers over micrographs.

    Returns
    -------
    dict of ndarray, shape (n_rings,)
        ``s`` (cycles per pixel), ``signal`` = <a,b>, and the noise of each input: ``a``, ``b``, ``full``.
    """
    totals: dict[str, np.ndarray] = {}
    n_rings = min(len(fourier.ring_counts(p.a.shape)) for p in pairs)
    for p in pairs:
        spectra = {side: fourier.windowed_spectrum(getattr(p, side)[p.valid], edge=16) for side in SIDES}
        shape = p.a[p.valid].shape
        powers = {side: fourier.cross_power(x, x) for side, x in spectra.items()}
        powers["signal"] = fourier.cross_power(spectra["a"], spectra["b"])
        # Rings of differing images are brought to one axis of n_rings between 0 and Nyquist.
        axis = np.linspace(0, 0.5, n_rings)
        own = fourier.ring_frequencies(shape, 1.0)
        for name, power in powers.items():
            per_ring = fourier.ring_sums(power, shape) / shape[0] / shape[1]
            totals[name] = totals.get(name, 0) + np.interp(axis, own, per_ring)
    signal = totals["signal"]
    return {"s": np.linspace(0, 0.5, n_rings), "signal": signal, **{x: totals[x] - signal for x in SIDES}}


def tune(method: str, powers: dict[str, np.ndarray]) -> dict[str, Any]:
    """Choose the setting of a linear filter that has the least mean squared error, for each input.

    Parameters
    ----------
    method : str
        One of `LINEAR`.
    powers : dict
        From `ring_powers`, of the validation micrographs (for ``wiener``: the training ones).

    Returns
    -------
    dict
        ``method`` and, per input, ``setting`` (or, for ``wiener``, the transfer on the axis ``s``).
    """
    if method not in LINEAR:
        raise InputError(f"filter {method!r}: unknown method; wanted one of {', '.join(LINEAR)}")
    if method == "raw":
        return {"method": "raw"}
    if method == "wiener":
        transfers = {}
        for side in SIDES:
            width = 5  # rings; the ratio of two noisy powers is smoothed before dividing
            signal, total = (_smooth(x, width) for x in (powers["signal"], powers["signal"] + powers[side]))
            transfer = np.clip(signal / total, 0, 1)
            transfer[0] = 1  # ring 0 is the mean, which the taper took out of the powers; it is kept
            transfers[side] = transfer.round(6).tolist()
        return {"method": "wiener", "s": powers["s"].round(8).tolist(), "transfer": transfers}
    transfer, candidates = CANDIDATES[method]
    best = {}
    for side in SIDES:
        errors = []
        for value in candidates:
            h = transfer(powers["s"], value)
            errors.append(((1 - h) ** 2 * powers["signal"] + h**2 * powers[side])[1:].sum())
        best[side] = round(float(candidates[int(np.argmin(errors))]), 6)
    return {"method": method, "setting": best}


def _smooth(x: np.ndarray, width: int) -> np.ndarray:
    kernel = np.ones(width)
    return np.convolve(x, kernel, "same") / np.convolve(np.ones_like(x), kernel, "same")


def apply(tuned: dict[str, Any], image: np.ndarray, side: str) -> np.ndarray:
    """Filter an image (h, w) with the setting for input `side`, mirrored at the borders."""
    method = tuned["method"]
    if method == "raw":
        return image
    if method == "nlm":
        return filters_nlm.apply(tuned, image, side)
    h, w = image.shape
    # The cosine transform is the Fourier transform of the mirrored image: no wrap-around.
    s = np.hypot(np.arange(h)[:, None] / (2 * h), np.arange(w)[None, :] / (2 * w))
    if method == "wiener":
        transfer = np.interp(s, tuned["s"], tuned["transfer"][side])
    else:
        transfer = CANDIDATES[method][0](s, tuned["setting"][side])
    return fft.idctn(fft.dctn(image) * transfer.astype(np.float32)).astype(np.float32)


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=FILTERS, required=True)
    parser.add_argument("--halves", type=Path, nargs="+", required=True, help="records to choose the setting on")
    parser.add_argument("--filter", type=Path, required=True, help="output: the chosen setting (JSON)")
    excluded.add_excluded_argument(parser)


def _tune(args: argparse.Namespace) -> None:
    pairs = [pair.load_pair(path) for path in excluded.kept(args.halves, args.excluded, "tuning")]
    tuned = filters_nlm.tune(pairs) if args.method == "nlm" else tune(args.method, ring_powers(pairs))
    tuned = {**tuned, "pixel_size_A": pairs[0].pixel_size, "chosen_on": [p.name for p in pairs]}
    files.write_json(args.filter, tuned)
    log.say(f"{args.method}: {tuned.get('setting', '')}")


def _filter_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--filter", type=Path, required=True, help="setting that tune-filter wrote")
    parser.add_argument("--halves", type=Path, required=True, help="record of halves")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")


def _filter(args: argparse.Namespace) -> None:
    tuned = files.read_json(args.filter)
    if not isinstance(tuned, dict) or tuned.get("method") not in FILTERS:
        raise InputError(f"{args.filter}: is not a tuned filter; wanted the JSON that tune-filter writes")
    halves = pair.load_pair(args.halves)
    unit = {name: "full" if name == "noise" else name for name in pair.INPUTS}
    with metering.Meter() as meter:
        estimates = {name: meter.lap(apply(tuned, getattr(halves, name), unit[name])) for name in pair.INPUTS}
    pair.write_estimates(halves, estimates, args.out, tuned["method"])
    record = {"method": tuned["method"], "micrograph": halves.name, "device": "CPU, 1 thread"}
    files.write_json(args.out / f"{halves.name}.json", {**record, **meter.cost()})


COMMANDS = {"tune-filter": (_tune_arguments, _tune), "filter-micrograph": (_filter_arguments, _filter)}
