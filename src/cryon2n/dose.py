"""Radiation damage: how much of a signal is left after a dose, and the weights of frames that follow from it.

The amplitude at frequency s is damped by ``q = exp(-N / (2 Nc(s)))`` after a dose of N, with the critical dose
``Nc(s) = 0.245 s^-1.665 + 2.81`` e⁻/Å² at 300 kV, and 0.8 times that at 200 kV (Grant & Grigorieff, eLife 2015,
4:e06980).  The best weight of a frame is its own q; the weights of a group are scaled to a mean square of 1, so
that the white noise of n frames keeps the variance n at every frequency.  At frequency 0 all weights are 1: the
mean stays a number of electrons.

Frames of one exposure each: whether N is counted to a frame's end (as the paper's program does), its middle or
its beginning, and what dose came before the first frame, changes all q of a frequency by one factor, which the
scaling takes out again.  Only the doses *between* frames have a say in the weights.
"""

from collections.abc import Sequence

import numpy as np

from cryon2n.errors import InputError

SCALES = {300.0: 1.0, 200.0: 0.8}  # of the critical dose, by acceleration voltage in kV


def voltage_scale(voltage_kV: float) -> float:
    """Return by what a voltage multiplies the critical dose at 300 kV; `InputError` where that is not known."""
    if voltage_kV not in SCALES:
        raise InputError(
            f"halves setting voltage_kV: found {voltage_kV:g}, wanted {' or '.join(f'{v:g}' for v in sorted(SCALES))} "
            "kV: critical doses were not measured at others; leave dose_weighting off"
        )
    return SCALES[voltage_kV]


def critical_dose(frequency: np.ndarray, voltage_kV: float = 300.0) -> np.ndarray:
    """Return the dose in e⁻/Å² after which the amplitude at `frequency` (1/Å) is down to exp(-1/2); infinite at 0."""
    with np.errstate(divide="ignore"):
        return voltage_scale(voltage_kV) * (0.245 * np.asarray(frequency, np.float64) ** -1.665 + 2.81)


def amplitude_left(frequency: np.ndarray, dose: np.ndarray, voltage_kV: float = 300.0) -> np.ndarray:
    """Return the share of a signal's amplitude that is left, shape (n, k).

    Parameters
    ----------
    frequency : ndarray, shape (k,)
        1/Å.
    dose : ndarray, shape (n,)
        e⁻/Å² that the specimen has taken.
    voltage_kV : float
        300 or 200.
    """
    return np.exp(-np.asarray(dose, np.float64)[:, None] / (2 * critical_dose(frequency, voltage_kV)))


def frame_weights(
    frequency: np.ndarray, dose: np.ndarray, groups: Sequence[Sequence[int]], voltage_kV: float = 300.0
) -> np.ndarray:
    """Return the weights of frames whose groups are to be summed, shape (n, k).

    Within each group their mean square is 1 at every frequency.

    Parameters
    ----------
    frequency : ndarray, shape (k,)
        1/Å.
    dose : ndarray, shape (n,)
        e⁻/Å² up to each frame, counted from anywhere.
    groups : sequence of sequence of int
        Frame numbers; frames of no group get the weight 0.
    voltage_kV : float
    """
    dose = np.asarray(dose, np.float64)
    weights = np.zeros((len(dose), len(frequency)))
    for group in groups:
        members = list(group)
        left = amplitude_left(frequency, dose[members] - dose[members].min(), voltage_kV)
        weights[members] = left / np.sqrt((left**2).mean(0))
    return weights


def mean_weight(frequency: np.ndarray, dose: np.ndarray, voltage_kV: float = 300.0) -> np.ndarray:
    """Return the mean of a group's weights, shape (k,): how much is left of what is the same in all its frames."""
    return frame_weights(frequency, dose, [range(len(dose))], voltage_kV).mean(0)
