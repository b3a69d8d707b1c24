"""Readers of the small files that other programs leave beside their images: STAR, .aln, XML, log, .cs."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from cryon2n.errors import InputError

LARGEST_BYTES = 200 * 2**20  # of a STAR or XML file; more is another file under that name
CS_HEADER = 100_000  # characters: the names and types of some hundred columns


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(f"{path}: has {path.stat().st_size / 2**20:.0f} MiB; wanted a text file of metadata")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from None
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    return raw.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def read_star(path: Path) -> dict[str, list[dict[str, str]]]:
    """Read a STAR file (Hall 1991; the subset that RELION writes): data blocks with a loop or with pairs.

    Returns
    -------
    dict
        Per block (without ``data_``) its rows: labels (without ``_``) to texts.  A block of pairs is one row.
    """
    blocks: dict[str, list[dict[str, str]]] = {}
    rows: list[dict[str, str]] = []
    labels: list[str] = []
    in_loop = False
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("data_"):
            rows, labels, in_loop = blocks.setdefault(line[5:].strip(), []), [], False
        elif line.split()[0] == "loop_":
            labels, in_loop = [], True
        elif in_loop and line.startswith("_"):
            labels.append(line.split()[0][1:])
        else:
            try:
                values = shlex.split(line) if '"' in line or "'" in line else line.split()
            except ValueError:
                values = []
            if in_loop and len(values) >= len(labels) > 0:
                rows.append(dict(zip(labels, values, strict=False)))
            elif not in_loop and line.startswith("_") and len(values) >= 2:
                if not rows:
                    rows.append({})
                rows[0][values[0][1:]] = values[1]
            else:
                raise InputError(f"{path}: line {number} is not of a STAR file, or lacks columns; write the file again")
    if not blocks:
        raise InputError(f"{path}: holds no data block; wanted a STAR file")
    return blocks


def relion_frames(path: Path) -> tuple[int, int] | None:
    """Return the first frame and the number of frames that RELION summed, from a micrograph's STAR file.

    They are the frames with a shift in ``data_global_shift`` (numbered from 1; those that were left out
    are missing or have a shift of -9999).  None where it holds no such table, or they are not consecutive.
    """
    rows = read_star(path).get("global_shift", [])
    try:
        used = sorted(
            int(row["rlnMicrographFrameNumber"]) for row in rows if abs(float(row["rlnMicrographShiftX"])) < 9999
        )
    except (KeyError, ValueError):
        raise InputError(
            f"{path}: data_global_shift has no whole rlnMicrographFrameNumber and rlnMicrographShiftX; wanted the "
            "STAR file that RELION's motion correction writes for a micrograph"
        ) from None
    if not used or used != list(range(used[0], used[0] + len(used))):
        return None
    return used[0] - 1, len(used)


def motioncor_frames(path: Path) -> tuple[int, int] | None:
    """Return the first frame (after ``-Throw``) and the number of frames, from MotionCor3's ``.aln`` file."""
    text = _read_text(path)
    throw = re.search(r"^\s*throw:\s*(\d+)", text, re.MULTILINE)
    table = re.search(r"^globalShift\n\s*stackID.*\n((?:\s*\d+\s+\S+\s+\S+\s*\n)+)", text, re.MULTILINE)
    if throw is None or table is None:
        return None
    return int(throw[1]), len(table[1].strip().splitlines())


def warp_settings(path: Path) -> dict[str, float]:
    """Return the numbers in ``OptionsMovieExport`` of a movie's XML file, as Warp writes it."""
    if re.search(r"<!DOCTYPE|<!ENTITY", text := _read_text(path)):
        raise InputError(f"{path}: defines entities, which Warp does not; wanted the XML file of a movie")
    try:
        # The declared encoding was applied when the text was read.
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", text))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not valid XML ({error}); wanted the file that Warp writes for a movie") from None
    out = {}
    for param in root.findall("./OptionsMovieExport/Param"):
        try:
            out[param.get("Name", "")] = float(param.get("Value", ""))
        except ValueError:
            continue  # true, false and texts
    return out


def warp_frames(path: Path) -> int | None:
    """Return the frames of a movie from Warp's log of it (``Loaded stack: width, height, frames``)."""
    found = re.findall(r"Loaded stack: \d+, \d+, (\d+)\b", _read_text(path))
    return int(found[-1]) if found else None


def read_cs(path: Path) -> np.ndarray:
    """Read a cryoSPARC ``.cs`` file: a structured array in NumPy's format, one row for each exposure."""
    try:
        # Mapped, because a damaged header may promise any number of rows.
        table = np.lib.format.open_memmap(path, mode="r", max_header_size=CS_HEADER)
    except Exception as error:  # of any kind: the header is a Python literal
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise InputError(f"{path}: cannot be read as a .cs file ({reason}); copy it again") from None
    if table.dtype.names is None:
        raise InputError(f"{path}: is not a table with columns; wanted the .cs file of a job's exposures")
    return np.array(table)


def cs_text(value: object) -> str:
    """Return a path of a ``.cs`` file as text (they are bytes there)."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
