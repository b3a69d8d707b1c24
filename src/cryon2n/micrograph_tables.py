"""The tables in which RELION and cryoSPARC name micrographs: STAR and ``.cs`` files."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cryon2n.errors import InputError
from cryon2n.micrograph_star import ABERRATION, GROUP, NAME, PIXEL_SIZE, VOLTAGE
from cryon2n.names import bare_name
from cryon2n.producer_files import cs_text, read_cs, read_star
from cryon2n.producers import half_slots

TABLES = (".star", ".cs")
SLOTS = ("micrograph_blob", "micrograph_blob_non_dw")  # of a .cs file: the first that is there
# Columns of a .cs file (kV, mm, and a share of 1) under RELION's labels.
CS_OPTICS = (
    (VOLTAGE, ("mscope_params/accel_kv", "ctf/accel_kv")),
    (ABERRATION, ("mscope_params/cs_mm", "ctf/cs_mm")),
    ("rlnAmplitudeContrast", ("ctf/amp_contrast",)),
)


@dataclass(frozen=True)
class Micrograph:
    """A micrograph to be denoised.

    Attributes
    ----------
    name : str
        Of `micrograph_inputs.find`, it names the results: plain characters, and no other micrograph's.
    full, a, b : Path or None
        The whole exposure and its halves; both halves or none.
    pixel_size : float or None
        In Å, if a STAR or ``.cs`` file says it.
    origin : str
        What named it.
    optics, columns : mapping
        What `micrograph_star.StarRow` carries over to the results' STAR file.
    """

    name: str
    full: Path | None
    a: Path | None
    b: Path | None
    pixel_size: float | None
    origin: str
    optics: Mapping[str, str] = field(default_factory=dict, compare=False)
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)


def read_table(path: Path) -> list[Micrograph]:
    """Read the micrographs that a STAR or ``.cs`` file names; their own files need not all be there.

    Raises
    ------
    InputError
        The file is damaged, names no micrographs, or none of those that it names is there.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: is {'a folder' if path.is_dir() else 'not there'}; wanted a table of micrographs")
    entries = _star(path) if path.suffix.lower() == ".star" else _cs(path)
    if not entries:
        raise InputError(f"{path}: names no micrograph; wanted at least one")
    if not any(os.path.isfile(p) for entry in entries for p in (entry.full, entry.a) if p):
        raise InputError(
            f"{path}: names {len(entries)} micrographs, none of which is there ({entries[0].full or entries[0].a}); "
            "leave it in its project: names start at that folder"
        )
    return entries


class _Place:
    """Finds the files that a table names: below its own folder or one above it, the project's root."""

    def __init__(self, table: Path):
        self.bases = [*table.absolute().parents, Path.cwd()]

    def find(self, name: str) -> Path:
        """Return a named file; where there is none, the place at which the others are."""
        for base in self.bases:
            found = base / name
            if os.path.isfile(found):  # which answers whatever the name is made of
                # Tried first from now on: one table has one root.
                self.bases.remove(base)
                self.bases.insert(0, base)
                return found
        return self.bases[0] / name


# ---------------------------------------------------------------------------- RELION


def _star(path: Path) -> list[Micrograph]:
    blocks = read_star(path)
    rows = blocks.get("micrographs", blocks.get("", []))
    if not rows or any(NAME not in row for row in rows):
        found = ", ".join(f"data_{name}" for name in blocks)
        raise InputError(f"{path}: has no micrographs (found: {found}); wanted data_micrographs with {NAME}")
    groups = {row.get(GROUP): row for row in blocks.get("optics", [])}
    place, entries = _Place(path), []
    for row in rows:
        optics = groups.get(row.get(GROUP), row)
        halves = [row.get(f"{NAME}{side}", "") for side in ("Even", "Odd")]
        a, b = (place.find(name) for name in halves) if all(halves) else (None, None)
        full, size = place.find(row[NAME]), _star_pixel_size(path, {**optics, **row})
        entries.append(Micrograph(bare_name(full.name), full, a, b, size, str(path), optics, row))
    return entries


def _star_pixel_size(path: Path, row: Mapping[str, str]) -> float | None:
    """Return the pixel size in Å of a micrograph; RELION before 3.1 gives the detector's in µm and a magnification."""
    try:
        if PIXEL_SIZE in row:
            size = float(row[PIXEL_SIZE])
        elif {"rlnDetectorPixelSize", "rlnMagnification"} <= row.keys():
            size = 1e4 * float(row["rlnDetectorPixelSize"]) / float(row["rlnMagnification"])
        else:
            return None
    except (ValueError, ZeroDivisionError):
        size = math.nan
    if not 0 < size < math.inf:
        raise InputError(f"{path}: the pixel size of {row[NAME]} is no number above 0; wanted Å in {PIXEL_SIZE}")
    return size


# ---------------------------------------------------------------------------- cryoSPARC


def _cs(path: Path) -> list[Micrograph]:
    table = read_cs(path)
    columns = table.dtype.names or ()
    slots = {name.removesuffix("/path") for name in columns if name.endswith("/path")}
    slot = next((slot for slot in SLOTS if slot in slots), None)
    halves = half_slots(slots)
    if slot is None and halves is None:
        raise InputError(
            f"{path}: has no micrographs (slots: {', '.join(sorted(slots)) or 'none'}); wanted {SLOTS[0]}, as in the "
            "exposures of a motion correction or import job"
        )
    place, entries = _Place(path), []
    for row in table.reshape(-1):
        full, a, b = (
            None if name is None else place.find(cs_text(row[f"{name}/path"]).lstrip(">"))
            for name in (slot, *(halves or (None, None)))
        )
        optics = {}
        for label, names in CS_OPTICS:
            value = next((v for name in names if (v := _cs_number(row, name)) is not None), None)
            if value is not None:
                optics[label] = f"{value:.6g}"
        size = _cs_number(row, f"{slot or halves[0]}/psize_A")
        entries.append(Micrograph(_name(full or a, full is None), full, a, b, size, str(path), optics))
    return entries


def _name(path: Path, half: bool) -> str:
    name = bare_name(path.name)
    return re.sub(r"_?(even|odd|[ab])$", "", name, flags=re.IGNORECASE) if half else name


def _cs_number(row: np.void, column: str) -> float | None:
    """Return a positive number from a row, None where there is none."""
    if column not in row.dtype.names:
        return None
    value = np.ravel(row[column])
    if value.size != 1 or value.dtype.kind not in "iuf" or not 0 < value[0] < np.inf:
        return None
    return float(value[0])
