"""A pair of half micrographs with its record: the one way in which later stages see halves.

Files: ``{mic}_a.mrc``, ``{mic}_b.mrc`` (the halves, in their own units) and ``{mic}.json`` (the
record).  Everything after the halves works in *normalised* units, ``(x - offset) / scale`` with the
offset and scale of that half's record: in them both halves hold the same signal, each with its own
noise variance ``noise_var``, and the mean of the two halves' variances is about 1.  The halves may
hold different numbers of frames, or come from another program in unknown units.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, mrcio
from cryon2n.errors import InputError

RECORD_FORMAT = "cryon2n-halves"
RECORD_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """Two halves of a micrograph in normalised units.

    Attributes
    ----------
    name : str
        The micrograph's name.
    a, b : ndarray, shape (h, w), float32
        The halves, in normalised units: same signal, independent noise.
    record : dict
        What is in them (frames, dose, trajectory, producer …): ``docs/data-guide.md``.
    """

    name: str
    a: np.ndarray
    b: np.ndarray
    record: dict[str, Any]

    @property
    def pixel_size(self) -> float:
        """Pixel size in Å."""
        return float(self.record["pixel_size_A"])

    @property
    def noise_var(self) -> tuple[float, float]:
        """Noise variance of a and of b, in normalised units."""
        return float(self.record["a"]["noise_var"]), float(self.record["b"]["noise_var"])

    @property
    def weights(self) -> tuple[float, float]:
        """Weights of a and b in the least noisy unbiased mean; 0.5 each for equal halves."""
        va, vb = self.noise_var
        return vb / (va + vb), va / (va + vb)

    def mean(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the weighted mean of something of a and the same of b (the halves, or their estimates)."""
        wa, wb = self.weights
        return (wa * x + wb * y).astype(np.float32)

    @property
    def full(self) -> np.ndarray:
        """The whole exposure, shape (h, w): the weighted mean of the halves."""
        return self.mean(self.a, self.b)

    @property
    def noise(self) -> np.ndarray:
        """A signal-free micrograph, shape (h, w), with the noise power of `full`.

        The difference of the halves holds no signal; it is scaled from variance ``va + vb`` to the
        ``va vb / (va + vb)`` of the weighted mean.  For equal halves this is ``(a - b) / 2``.
        """
        va, vb = self.noise_var
        return ((self.a - self.b) * (np.sqrt(va * vb) / (va + vb))).astype(np.float32)

    @property
    def valid(self) -> tuple[slice, slice]:
        """The region that no frame's shift has wrapped around, as two slices (rows, columns)."""
        y0, y1, x0, x1 = self.record["valid"]
        return slice(y0, y1), slice(x0, x1)

    def to_units(self, x: np.ndarray, side: str) -> np.ndarray:
        """Turn normalised values into the units of ``a``, ``b`` or ``full`` (the whole exposure)."""
        unit = self.record[side]
        return (x * unit["scale"] + unit["offset"]).astype(np.float32)

    def from_units(self, x: np.ndarray, side: str) -> np.ndarray:
        """Turn values in the units of ``a``, ``b`` or ``full`` into normalised ones."""
        unit = self.record[side]
        return ((x - unit["offset"]) / unit["scale"]).astype(np.float32)


# What every method is run on, the unit its result is stored in, and the ending of its file.
INPUTS = {"a": ("a", "_a"), "b": ("b", "_b"), "full": ("full", "_full"), "noise": ("full", "_noise")}
MEAN_ENDING = ""  # {mic}.mrc: the mean of f(a) and f(b), what a user looks at


def load_pair(record_path: str | Path) -> Pair:
    """Load the pair that belongs to a record ``{mic}.json``; anything amiss raises `InputError`."""
    record_path = Path(record_path)
    record = read_record(record_path)
    halves = {}
    for side in "ab":
        path = record_path.with_name(f"{record_path.stem}_{side}.mrc")
        data, _ = mrcio.read_mrc(path)
        if list(data.shape) != record["shape"]:
            raise InputError(
                f"{path}: holds {data.shape[0]} x {data.shape[1]} pixels, but its record {record_path.name} says "
                f"{record['shape'][0]} x {record['shape'][1]}; make the halves again"
            )
        halves[side] = ((data - record[side]["offset"]) / record[side]["scale"]).astype(np.float32)
    return Pair(record["micrograph"], halves["a"], halves["b"], record)


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a halves record and check that it is one of this version."""
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        raise InputError(f"{path}: is not a record of halves; wanted a JSON that split-halves or import-halves wrote")
    if record.get("version") != RECORD_VERSION:
        raise InputError(
            f"{path}: record version {record.get('version')}, wanted {RECORD_VERSION}; make the halves again"
        )
    return record


def write_estimates(pair: Pair, estimates: dict[str, np.ndarray], directory: str | Path, label: str) -> None:
    """Write a method's results for one micrograph.

    Parameters
    ----------
    pair : Pair
    estimates : dict of ndarray, shape (h, w)
        In normalised units: ``a``, ``b``, ``full`` and ``noise`` denoised, as in `INPUTS`, or some of them.
    directory : path
        Gets ``{mic}_a.mrc``, ``{mic}_b.mrc``, ``{mic}_full.mrc``, ``{mic}_noise.mrc``, and, of both halves,
        ``{mic}.mrc``, the mean of the estimates from a and from b, in the full exposure's units.
    label : str
        The method, for the MRC header.
    """
    directory = Path(directory)
    for name, image in estimates.items():
        unit, ending = INPUTS[name]
        path = directory / f"{pair.name}{ending}.mrc"
        mrcio.write_mrc(path, pair.to_units(image, unit), pair.pixel_size, f"denoised {label}")
    if not {"a", "b"} <= set(estimates):
        return
    mean = pair.to_units(pair.mean(estimates["a"], estimates["b"]), "full")
    mrcio.write_mrc(
        directory / f"{pair.name}{MEAN_ENDING}.mrc",
        mean,
        pair.pixel_size,
        f"denoised {label}, for viewing and picking only",
    )


def estimate_files(inputs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return what `write_estimates` makes of some of `INPUTS`: name, its unit and the ending of its file."""
    found = {name: INPUTS[name] for name in INPUTS if name in set(inputs)}
    return {**found, "mean": ("full", MEAN_ENDING)} if {"a", "b"} <= set(found) else found


def read_estimates(pair: Pair, directory: str | Path, inputs: Iterable[str] = tuple(INPUTS)) -> dict[str, np.ndarray]:
    """Read what `write_estimates` wrote of `inputs`, in normalised units, with the mean of both halves' as ``mean``."""
    directory = Path(directory)
    out = {}
    for name, (unit, ending) in estimate_files(inputs).items():
        path = directory / f"{pair.name}{ending}.mrc"
        out[name] = pair.from_units(read_result(pair, path), unit)
    return out


def read_result(pair: Pair, path: Path) -> np.ndarray:
    """Read one denoised image of a micrograph and check that it has the halves' shape (h, w)."""
    data, _ = mrcio.read_mrc(path)
    if data.shape != pair.a.shape:
        raise InputError(f"{path}: has shape {data.shape}, the halves have {pair.a.shape}; denoise it again")
    return data


def read_shown(pair: Pair, directory: Path, kind: str = "mean") -> np.ndarray:
    """Read one of a method's images (``mean`` or a name of `INPUTS`), normalised, shape (h, w).

    Of a method that has not denoised the halves, the denoised whole exposure stands for the mean.
    """
    unit, ending = INPUTS[kind] if kind in INPUTS else ("full", MEAN_ENDING)
    path = directory / f"{pair.name}{ending}.mrc"
    if kind == "mean" and not path.exists() and not directory.joinpath(f"{pair.name}_a.mrc").exists():
        path = directory / f"{pair.name}_full.mrc"
    return pair.from_units(read_result(pair, path), unit)


def estimate_all(pair: Pair, f: Any) -> dict[str, np.ndarray]:
    """Apply a denoiser ``f: (h, w) -> (h, w)`` to the four inputs of `INPUTS`."""
    return {name: f(getattr(pair, name)) for name in INPUTS}
