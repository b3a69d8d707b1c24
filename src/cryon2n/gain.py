"""The gain check: does a gain reference belong to a movie, and stand the right way round.

A wrong gain imprints its pattern on every frame alike: on both halves, where Noise2Noise takes it for
signal.  The raw counts tell: behind a gain g that multiplies them, their sum over the frames is
proportional to 1/g.  Both are taken relative to their local mean, u and v, which removes specimen, ice
and illumination, and u is regressed on v in each of the eight orientations:

    slope β = Σ u v / Σ v²:  1 for the right gain, 0 for one that is not in the counts, -1 for its inverse.

Correcting with a gain of slope β changes the variance of the fixed pattern from p² to p² + (1 - 2β) v²:
β > 1/2 is where a gain does more good than harm, whatever its own noise (which lowers β), and the
orientation of the largest β is the one that leaves least.

Only tiles spread over the frame are read (`gain_tiles`): counting statistics decide long before all pixels
are used.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from cryon2n import gain_tiles, log, movies, references
from cryon2n.errors import InputError
from cryon2n.gain_tiles import WINDOW, Image

OUTLIER = 6.0  # standard deviations; hot pixels lie far beyond, 4 million good ones within
FLAT = 1e-3  # spread of a gain too even to do harm: the noise of 1000 counts is 30 times that
HELPS = 0.5  # slope from which a gain removes more pattern than it adds (see above)
# Two orientations of a nearly symmetric gain, or of one with a common 2 x 2 pattern, may both fit.
# Below a tenth of the gain's pattern, which of them is better does not matter.
MARGIN = 0.1
# Of a comparison to come out wrong by noise alone; up to eight are made.  On 12,000 simulated movies of
# 192 x 208 x 5 frames (90 counts per pixel, spread 0.03) the right gain had slopes of 0.94 to 1.07, error
# 0.018, and always agreed; each of 6,300 planted flips, inverses and strangers was named down to 23 counts.
CHANCE = 1e-6

DISAGREEMENTS = ("turned", "inverse", "no effect")


@dataclass(frozen=True)
class Slope:
    """A regression slope.

    Attributes
    ----------
    value, error : float
        Slope and its standard error.
    influence : ndarray, shape (n_tiles,)
        What each tile adds to `value` beyond its share: their scatter is the error.
    bound : float
        How many errors a true slope lies off `value` with the chance `CHANCE`.
    """

    value: float
    error: float
    influence: np.ndarray
    bound: float

    @property
    def low(self) -> float:
        """The lowest slope that noise allows."""
        return self.value - self.bound * self.error

    @property
    def high(self) -> float:
        """The highest slope that noise allows."""
        return self.value + self.bound * self.error

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class GainCheck:
    """What came out.

    Attributes
    ----------
    verdict : str
        ``agrees``; ``turned`` (another orientation fits better), ``inverse`` (1/g would fit), ``no effect``
        (not in the counts in any orientation), ``flat`` (nothing to check) or ``undecided`` (too few counts).
    transform : str
        The orientation in use, one of `movies.TRANSFORMS`.
    best : str
        The orientation that fits best; `transform` unless another is clearly better.
    slopes : dict
        `Slope` of each orientation; None where the shape does not fit or too few pixels are good.
    """

    verdict: str
    transform: str
    best: str
    slopes: dict[str, Slope | None]

    @property
    def record(self) -> dict[str, str | float | None]:
        """The part of the halves record."""
        slope = self.slopes[self.transform]
        return {
            "verdict": self.verdict,
            "slope": None if slope is None else round(slope.value, 5),
            "slope_error": None if slope is None else round(slope.error, 5),
            "best": self.best,
        }

    @property
    def sentence(self) -> str:
        """The verdict in words: what was found, and for a disagreement what to do."""
        slope, best = self.slopes[self.transform], self.slopes[self.best]
        found = f"slope {slope} with reference_transform: {self.transform} (wanted 1)"
        if slope is None:
            found = f"its shape does not fit with reference_transform: {self.transform}"
        other = "" if self.best == self.transform else f", {best} with {self.best}"
        if self.verdict == "agrees":
            return f"the gain reference agrees with the counts: {found}"
        if self.verdict == "turned":
            return (
                f"the gain reference is turned against the frames: {found}{other}; "
                f"set halves: reference_transform: {self.best}"
            )
        if self.verdict == "inverse":
            turn = "" if self.best == self.transform else f", and set halves: reference_transform: {self.best}"
            return (
                f"the gain reference is stored as its inverse: {found}{other}; "
                f"set halves: reference_operation: divide (multiply, if that is set already){turn}"
            )
        if self.verdict == "no effect":
            top = max((s for s in self.slopes.values() if s is not None), key=lambda s: s.value)
            return (
                f"the gain reference is not in the counts: {found}, {top} at best in any orientation; the frames "
                "were corrected already (then leave the gain out) or it is another camera's (then give this one's)"
            )
        if self.verdict == "flat":
            return f"the gain reference varies by less than {FLAT:g} between neighbouring pixels: nothing to check"
        return f"not enough counts to tell whether the gain reference fits: {found}"


def check_gain(
    stacks: Sequence[Sequence[Image]],
    gain: np.ndarray,
    dark: np.ndarray | None = None,
    transform: str = "none",
    thorough: bool = True,
) -> GainCheck:
    """Compare a gain reference with raw frames in all orientations.

    Parameters
    ----------
    stacks : sequence of sequences of frames, ndarrays or tensors of shape (h, w)
        Raw counts of one or more movies of one detector; they are pooled.  Tensors may lie on a GPU.
    gain : ndarray, shape (h, w) or (w, h)
        As it is stored, not turned; multiplies counts.
    dark : ndarray of the gain's shape, or None
        Counts per frame, turned like the gain.
    transform : str
        How they are turned to fit the frames: one of `movies.TRANSFORMS`.
    thorough : bool
        False looks no further where `transform` fits so well that no other orientation could be clearly
        better.
    """
    frame_shape = tuple(stacks[0][0].shape)
    slopes: dict[str, Slope | None] = dict.fromkeys(movies.TRANSFORMS)
    if min(frame_shape) < 2 * WINDOW:
        return GainCheck("undecided", transform, transform, slopes)
    total = sum(gain_tiles.sum_tiles(frames) for frames in stacks)
    n_frames = sum(len(frames) for frames in stacks)
    spread = np.inf
    counts = None
    fitting = movies.fitting_transforms(gain.shape, frame_shape)
    for name in sorted(fitting, key=lambda name: name != transform):
        turn = movies.TRANSFORMS[name]
        if counts is None or dark is not None:
            offset = 0.0 if dark is None else n_frames * gain_tiles.like(total, gain_tiles.tiles(turn(dark)))
            counts = gain_tiles.inner(relative(total - offset, abs(total) < np.inf))
        multiplier = gain_tiles.like(total, gain_tiles.tiles(turn(gain)))
        with np.errstate(divide="ignore"):
            response = gain_tiles.inner(relative(1 / multiplier, multiplier > 0))
        spread = min(spread, gain_tiles.deviation(*response))
        slopes[name] = regress(*counts, *response)
        # Right is 1 or little below (the reference's own noise): none beats that by the margin.
        if not thorough and name == transform and slopes[name] is not None and slopes[name].low > 1 - MARGIN:
            return GainCheck("agrees", transform, transform, slopes)
    if spread < FLAT:
        return GainCheck("flat", transform, transform, dict.fromkeys(movies.TRANSFORMS))
    verdict, best = judge(slopes, transform)
    return GainCheck(verdict, transform, best, slopes)


def judge(slopes: dict[str, Slope | None], transform: str) -> tuple[str, str]:
    """Return the verdict and the best orientation; see `GainCheck`."""
    known = {name: slope for name, slope in slopes.items() if slope is not None}
    if not known:
        return "undecided", transform
    own = slopes[transform]
    hopeless = own is None or own.high < HELPS

    def fits(low: float, high: float) -> bool:
        # Where the one in use is out, another need only be in the counts, and perhaps help.
        return low > HELPS or (hopeless and low > 0 and high > HELPS)

    best = max(known, key=lambda name: known[name].value)
    beaten = own is None or _exceeds(known[best], own, 1)
    if beaten and fits(known[best].low, known[best].high):
        return "turned", best
    if own is not None and own.low > HELPS:
        return "agrees", transform
    lowest = min(known, key=lambda name: known[name].value)
    if fits(-known[lowest].high, -known[lowest].low):
        return "inverse", lowest if own is None or _exceeds(known[lowest], own, -1) else transform
    if all(slope.high < HELPS for slope in known.values()):
        return "no effect", best if beaten else transform
    return "undecided", best if beaten else transform


def _exceeds(one: Slope, other: Slope, sign: int) -> bool:
    """Say whether `one` is clearly, and not by a trifle, above (sign 1) or below (-1) `other`."""
    error = _scatter(one.influence - other.influence)  # paired: both were fitted to the same counts
    return sign * (one.value - other.value) > max(MARGIN, max(one.bound, other.bound) * error)


def relative(x: Image, good: Image) -> tuple[Image, Image]:
    """Return x over its local mean, less 1, and the pixels where that can be trusted.

    Parameters
    ----------
    x : ndarray or tensor, shape (..., h, w)
    good : ndarray or tensor of bool, shape (..., h, w)
        The pixels to use; the rest enter no mean.

    Returns
    -------
    deviation : of the kind of x, shape (..., h, w), float32
        0 where it cannot be trusted.
    good : of the kind of x, bool, shape (..., h, w)
        `good` less what stands more than `OUTLIER` standard deviations out (hot and dead pixels).
    """
    where = gain_tiles.library(x).where
    # Twice, so that hot pixels do not lift the local mean of their neighbours.
    for _ in range(2):
        weight = gain_tiles.local_mean(good)
        local = gain_tiles.local_mean(where(good, x, 0))
        usable = good & (weight > 0.5 / WINDOW**2) & (local > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviation = where(usable, x * weight / local - 1, 0)
        # A standard deviation rather than a median's: that of few counts per pixel is 0.
        for _ in range(10):
            good = usable & (abs(deviation) <= OUTLIER * gain_tiles.deviation(deviation, usable))
            if bool((good == usable).all()):
                break
            usable = good
    return where(good, deviation, 0), good


def regress(u: Image, good_u: Image, v: Image, good_v: Image) -> Slope | None:
    """Fit u = β v + one constant per tile.

    The error is that of the tiles' scatter (a cluster-robust one: Cameron & Miller 2015, J. Hum. Resour.
    50, 317), because specimen and read-out patterns are not white; never less than that of white noise.

    Parameters
    ----------
    u, v : ndarray or tensor, shape (n_tiles, h, w)
    good_u, good_v : ndarray or tensor of bool, shape (n_tiles, h, w)

    Returns
    -------
    Slope or None
        None where fewer than 8 tiles have half of their pixels good, or nothing varies.
    """
    good = good_u & good_v
    h, w = good.shape[1:]
    good &= (2 * good.sum((1, 2)) >= h * w)[:, None, None]
    u, v = (gain_tiles.library(x).where(good, x, 0) for x in (u, v))
    n, sum_u, sum_v, uv, vv, uu = gain_tiles.sums([good, u, v, u * v, v * v, u * u])
    tiles = int(np.count_nonzero(n))
    if tiles < 8:
        return None
    some = np.maximum(n, 1)
    uv, vv, uu = uv - sum_u * sum_v / some, vv - sum_v**2 / some, uu - sum_u**2 / some
    if not (vv.sum() > 0 and uu.sum() > 0):
        return None
    value = uv.sum() / vv.sum()
    influence = (uv - value * vv) / vv.sum()
    white = (uu.sum() - value * uv.sum()) / (n.sum() - tiles - 1) / vv.sum()
    error = max(_scatter(influence), max(float(white), 0.0) ** 0.5)
    return Slope(float(value), error, influence, float(special.stdtrit(tiles - 1, 1 - CHANCE)))


def _scatter(influence: np.ndarray) -> float:
    n = len(influence)
    return float(np.sqrt(n / (n - 1) * np.sum(influence**2)))


# ---------------------------------------------------------------------------- command


def table(check: GainCheck) -> Iterator[str]:
    """Yield the lines of the table of orientations."""
    yield f"{'orientation':14} {'slope':>8} {'error':>8} {'z':>8}  note"
    for name, slope in check.slopes.items():
        notes = ["in use"] if name == check.transform else []
        if slope is None:
            numbers = f"{'n/a':>8} {'n/a':>8} {'n/a':>8}"
        else:
            z = slope.value / slope.error if slope.error > 0 else np.inf
            numbers = f"{slope.value:8.3f} {slope.error:8.3f} {z:8.1f}"
            fit = {slope.low > HELPS: "fits", slope.high < HELPS: "does not fit", slope.high < -HELPS: "1/gain fits"}
            notes.append(fit.get(True, "unclear"))
        yield f"{name:14} {numbers}  {', '.join(notes)}".rstrip()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--movie", type=Path, required=True, nargs="+", help="raw movies of one detector; they are pooled")
    add("--gain", type=Path, required=True, help="gain reference")
    add("--operation", choices=references.OPERATIONS, default="multiply", help="what the gain does to a frame")
    add("--dark", type=Path, help="dark reference, subtracted")
    add("--transform", choices=list(movies.TRANSFORMS), default="none", help="how the references are turned")


def _run(args: argparse.Namespace) -> None:
    gain = references.as_multiplier(references.read_reference(args.gain, "gain"), args.operation)
    dark = None if args.dark is None else references.read_reference(args.dark, "dark")
    if dark is not None and dark.shape != gain.shape:
        raise InputError(
            f"{args.dark}: the dark reference has shape {dark.shape}, the gain {args.gain} {gain.shape}; "
            "give the references of one detector and binning"
        )
    with ExitStack() as stack:
        opened = [stack.enter_context(movies.open_movie(path)) for path in args.movie]
        shape = opened[0].frames.shape[1:]
        for movie in opened:
            if movie.frames.shape[1:] != shape:
                raise InputError(
                    f"{movie.path}: frames of {movie.frames.shape[1:]}, but those of {opened[0].path} are {shape}; "
                    "give movies of one detector"
                )
        if not movies.fitting_transforms(gain.shape, shape):
            raise movies.wrong_shape(args.gain, "gain", gain.shape, args.transform, shape, args.movie[0])
        check = check_gain([movie.frames for movie in opened], gain, dark, args.transform)
    print("\n".join([*table(check), f"{check.verdict}: {check.sentence}"]), flush=True)
    if check.verdict in DISAGREEMENTS:
        raise InputError(f"{args.gain}: {check.sentence}")
    log.say(f"{args.gain.name}, {len(args.movie)} movie(s): {check.verdict}")


COMMANDS = {"check-gain": (_add_arguments, _run)}
