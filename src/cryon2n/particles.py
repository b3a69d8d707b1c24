"""Where a micrograph's particles are known to be: from a simulation's truth, or from marks."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import compare, files, log
from cryon2n.errors import InputError
from cryon2n.pair import Pair


@dataclass(frozen=True)
class Known:
    """The particles of a micrograph.

    Attributes
    ----------
    centres : ndarray, shape (n, 2)
        (y, x) in the halves' pixels; of a micrograph without marks none.
    radius : float or None
        In Å; of marks the median of them all.  None where nothing is known.
    truth : dict or None
        The record of a simulated micrograph.
    """

    centres: np.ndarray
    radius: float | None
    truth: dict[str, Any] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--truth`` and ``--labels``: where particles are."""
    add = parser.add_argument
    add("--truth", type=Path, metavar="DIR", help="simulated entries: clean images {mic}.mrc with {mic}.json")
    add("--labels", type=Path, metavar="CSV", help="particle centres: micrograph,x_px,y_px,radius_px")


def known_particles(pair: Pair, truth: Path | None, labels: Path | None) -> Known:
    """Return the particles of a micrograph: marks if given, else those of its truth, else none.

    A simulated particle's place is that in the truth, moved onto the exposure as `compare.load_truth` finds it.

    Raises
    ------
    InputError
        Marks or truth are missing or damaged, or the marks hold no radius.
    """
    record = None if truth is None else files.read_json(truth / f"{pair.name}.json")
    if labels is not None:
        marks = compare.read_labels(labels)
        radii = [r for found in marks.values() for _, _, r in found]
        if not radii or not np.median(radii) > 0:
            raise InputError(f"{labels}: holds no particle with a radius; wanted micrograph,x_px,y_px,radius_px")
        found = marks.get(pair.name, [])
        return Known(_centres(found), float(np.median(radii)) * pair.pixel_size, record)
    if truth is None:
        return Known(np.zeros((0, 2)), None)
    clean = compare.load_truth(truth, pair)
    return Known(_centres(clean.particles), float(record["particle_radius_A"]), record)


def marked(pairs: Sequence[Pair], truth: Path | None, labels: Path | None) -> tuple[list[Pair], list[Known]]:
    """Return the micrographs in which particles are known, and these; the others are left out, by name.

    Raises
    ------
    InputError
        No particle is known anywhere.
    """
    kept, found = [], []
    for pair in pairs:
        known = known_particles(pair, truth, labels)
        if known.radius is None or not len(known.centres):
            log.say(f"{pair.name}: no particle is known there; left out")
            continue
        kept.append(pair)
        found.append(known)
    if not kept:
        names = ", ".join(pair.name for pair in pairs)
        raise InputError(f"{labels or truth}: knows no particle in {names}; mark some, or leave out picking")
    return kept, found


def _centres(found: compare.Particles) -> np.ndarray:
    return np.array([(y, x) for x, y, _ in found], dtype=np.float64).reshape(-1, 2)
