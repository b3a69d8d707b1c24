"""The STAR file of denoised micrographs that RELION imports for picking.

RELION (3.1 and later) wants the pixel size, the acceleration voltage and the spherical aberration of each optics
group (``ObservationModel`` in its source), and stops without them.  What is not known is left out and said: no value
is made up here.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryon2n import files, log

NAME, GROUP, GROUP_NAME = "rlnMicrographName", "rlnOpticsGroup", "rlnOpticsGroupName"
PIXEL_SIZE, VOLTAGE, ABERRATION = "rlnMicrographPixelSize", "rlnVoltage", "rlnSphericalAberration"
NEEDED = (PIXEL_SIZE, VOLTAGE, ABERRATION)
# Of a group, what still holds for a denoised micrograph, in the order in which RELION writes it.
OPTICS = (
    *("rlnMtfFileName", "rlnMicrographOriginalPixelSize", VOLTAGE, ABERRATION, "rlnAmplitudeContrast"),
    *("rlnBeamTiltX", "rlnBeamTiltY", "rlnOddZernike", "rlnEvenZernike"),
    *(f"rlnMagMat{i}{j}" for i in "01" for j in "01"),
)
# Of a micrograph: its CTF was estimated from the exposure, whose contrast transfer it keeps.
COLUMNS = (
    *("rlnDefocusU", "rlnDefocusV", "rlnCtfAstigmatism", "rlnDefocusAngle", "rlnPhaseShift"),
    *("rlnCtfFigureOfMerit", "rlnCtfMaxResolution", "rlnCtfBfactor", "rlnCtfScalefactor"),
    *("rlnAccumMotionTotal", "rlnAccumMotionEarly", "rlnAccumMotionLate"),
)
PROJECT = "default_pipeline.star"  # stands in the root of every RELION project


@dataclass(frozen=True)
class StarRow:
    """A denoised micrograph in the STAR file.

    Attributes
    ----------
    path : Path
    pixel_size : float or None
        In Å.
    optics, columns : mapping
        RELION's labels (without ``_``) to texts, of the optics group and of the micrograph it was made from:
        `micrograph_inputs.Micrograph.optics` and ``columns``.  Those in `OPTICS` and `COLUMNS` are written.
    """

    path: Path
    pixel_size: float | None
    optics: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


def write_star(path: str | Path, rows: Iterable[StarRow]) -> tuple[str, ...]:
    """Write the STAR file of denoised micrographs; what RELION needs and is not known is also said.

    Names are relative to the RELION project that holds the micrographs, or else to the working directory; a
    micrograph below neither has its whole path.  A column that is not known for every group is left out.

    Parameters
    ----------
    path : path
    rows : iterable of StarRow

    Returns
    -------
    tuple of str
        Labels that RELION needs and that are not there.
    """
    rows = list(rows)
    groups: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    numbers = []
    for row in rows:
        values = {PIXEL_SIZE: f"{row.pixel_size:.6g}"} if row.pixel_size else {}
        values |= {label: row.optics[label] for label in OPTICS if label in row.optics}
        name = row.optics.get(GROUP_NAME, "")
        key = (*values.items(), (GROUP_NAME, name))
        groups.setdefault(key, values)
        numbers.append(list(groups).index(key) + 1)
    names = _group_names([dict(key)[GROUP_NAME] for key in groups])
    optics = [
        {GROUP_NAME: name, GROUP: str(i), **values}
        for i, (name, values) in enumerate(zip(names, groups.values(), strict=True), start=1)
    ]
    micrographs = [
        {NAME: _name_in_project(row.path), GROUP: str(number), **{k: v for k, v in row.columns.items() if k in COLUMNS}}
        for row, number in zip(rows, numbers, strict=True)
    ]
    missing = tuple(label for label in NEEDED if not all(label in group for group in optics))
    note = ""
    if missing:
        note = f"# Add to data_optics, because RELION needs it: {', '.join(missing)}\n\n"
        log.say(
            f"note: {path}: RELION needs {', '.join(missing)}, which the micrographs' files do not tell; add them to "
            "data_optics, or import the MRC files themselves with RELION's Import job"
        )
    blocks = (
        ("optics", optics, (GROUP_NAME, GROUP, PIXEL_SIZE, *OPTICS)),
        ("micrographs", micrographs, (NAME, GROUP, *COLUMNS)),
    )
    text = "\n\n".join(f"# version 30001\n\n{_block(*block)}" for block in blocks)
    files.write_text(path, note + text)
    if any(any(c.isspace() for c in row[NAME]) for row in micrographs):
        log.say(f"note: {path}: RELION cannot pick in folders whose names have spaces; rename them")
    return missing


def _group_names(names: list[str]) -> list[str]:
    """Return a name for each optics group: its own, if it has one and it is the only one's."""
    numbered = enumerate(names, start=1)
    return [name if name and names.count(name) == 1 else f"opticsGroup{number}" for number, name in numbered]


def _block(name: str, rows: list[dict[str, str]], order: tuple[str, ...]) -> str:
    labels = [label for label in order if rows and all(label in row for row in rows)]
    head = "\n".join(f"_{label} #{number}" for number, label in enumerate(labels, start=1))
    body = "".join(" ".join(_quoted(row[label]) for label in labels) + " \n" for row in rows)
    return f"data_{name}\n\nloop_\n{head}\n{body}"


def _quoted(text: str) -> str:
    return f'"{text}"' if not text or any(c.isspace() for c in text) else text


def _name_in_project(path: Path) -> str:
    whole = Path(os.path.abspath(path))
    root = next((p for p in whole.parents if (p / PROJECT).is_file()), Path.cwd())
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else str(whole)
