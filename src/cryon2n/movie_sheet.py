"""The movie sheet: which movies of an EMPIAR entry a study takes, where they lie, and what they must hold.

A workflow builds its whole graph from the sheet, so that a dry run needs no network.  The names in it come
from a server or a stranger's hands: none is taken as a path before `is_safe_name` has seen it.
"""

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cryon2n import files
from cryon2n.errors import InputError
from cryon2n.movie_header import Geometry
from cryon2n.names import is_safe_name
from cryon2n.web import integer

SHEET_COLUMNS = ["micrograph", "path", "size", "sha256"]
GEOMETRY_COLUMNS = ["frames", "height", "width", "data_type"]  # older sheets lack them
DATA_TYPE = re.compile(r"(u?int|float|complex|complex_int)[0-9]{1,3}")
UNKNOWN = Geometry()
# Gain, dark and defect references lie among the movies (norm-amibox05-0.mrc, dark-amibox05-0.mrc).
REFERENCE = re.compile(
    r"(^|[^a-z])((?P<dark>dark(ref)?)|(?P<defects>defects?|badpix(els)?)"
    r"|gain(ref(erence)?)?|norm|flat(field)?|countref|superref|ref(erence)?)([^a-z]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class MovieRow:
    """A row of the movie sheet.

    Attributes
    ----------
    micrograph : str
        The file's name without its ending (`micrograph_name`).
    path : str
        Under the entry's folder: ``data/14sep05c_raw_196/….frames.mrc``.
    size : int or None
        In bytes.
    sha256 : str or None
    geometry : Geometry
        Frames, height and width in pixels, and data type, as far as they are known.
    """

    micrograph: str
    path: str
    size: int | None = None
    sha256: str | None = None
    geometry: Geometry = UNKNOWN


def read_sheet(path: str | Path) -> list[MovieRow]:
    """Read a movie sheet; the columns of the geometry may be missing.

    Raises
    ------
    InputError
        Unsafe or double names, bad numbers, data types or checksums.
    """
    rows = []
    for number, cells in enumerate(files.read_table(path, SHEET_COLUMNS), start=1):
        where = f"{path}: row {number} ({cells['micrograph']})"
        sha256 = _known(cells["sha256"])
        files.check_sha256(sha256, where)
        data_type = _known(cells.get("data_type", "-"))
        if data_type is not None and not DATA_TYPE.fullmatch(data_type):
            raise InputError(f"{where}: data_type is {data_type!r}, wanted one like uint8 or float32, or - if unknown")
        frames, h, w = (_count(cells.get(name, "-"), name, where) for name in GEOMETRY_COLUMNS[:3])
        size = _count(cells["size"], "size", where)
        rows.append(MovieRow(cells["micrograph"], cells["path"], size, sha256, Geometry(frames, h, w, data_type)))
    check_rows(rows, str(path))
    return rows


def sheet_text(rows: list[MovieRow], comments: Iterable[str], where: str) -> str:
    """Return the text of a movie sheet, with comment lines at the top; bad rows raise `InputError`."""
    check_rows(rows, where)
    # A title from a server may hold line ends.
    lines = [f"# {printable(comment)}" for comment in comments]
    lines.append("\t".join(SHEET_COLUMNS + GEOMETRY_COLUMNS))
    for row in rows:
        g = row.geometry
        cells = (row.micrograph, row.path, row.size, row.sha256, g.frames, g.h, g.w, g.data_type)
        lines.append("\t".join("-" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines) + "\n"


def write_sheet(path: str | Path, rows: list[MovieRow], comments: Iterable[str]) -> None:
    """Write a movie sheet, atomically."""
    files.write_text(path, sheet_text(rows, comments, str(path)))


def check_rows(rows: list[MovieRow], where: str) -> None:
    """Raise `InputError` if there are no rows, or unsafe or double names among them."""
    if not rows:
        raise InputError(f"{where}: holds no movies; wanted one row per movie")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for name in (row.micrograph, *row.path.split("/")):
            if not is_safe_name(name):
                raise InputError(
                    f"{where}: row {number}: {name!r} is not safe as a file name; "
                    "wanted letters, digits and _ . + - only, and a path relative to the entry"
                )
        for value in {row.micrograph, row.path}:
            if value in seen:
                raise InputError(f"{where}: row {number}: {value} is there twice; remove one of the two")
            seen.add(value)


def movie_url(base: str, entry: str | int, row: MovieRow) -> str:
    """Return the address of a movie under the data server's `base`."""
    return f"{base.rstrip('/')}/{archive_path(entry, row)}"


def archive_path(entry: str | int, row: MovieRow) -> str:
    """Return the quoted path of a movie in the archive and in each of its mirrors."""
    return f"{entry_number(entry)}/{urllib.parse.quote(row.path)}"


def entry_number(entry: str | int) -> str:
    """Return the digits of an accession: ``10025`` from 10025, ``"10025"`` or ``"EMPIAR-10025"``."""
    match = re.fullmatch(r"(?:EMPIAR-)?([0-9]{5,6})", str(entry).strip(), re.IGNORECASE | re.ASCII)
    if not match:
        raise InputError(f"entry {str(entry)!r}: not an EMPIAR accession; wanted one like 10025 or EMPIAR-10025")
    return match[1]


def printable(text: object) -> str:
    """Return a server's text in one line, without characters that steer a terminal or hide."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _known(cell: str) -> str | None:
    return None if cell == "-" else cell


def _count(cell: str, name: str, where: str) -> int | None:
    number = integer(cell)
    if cell != "-" and not number:
        wanted = "bytes" if name == "size" else "a whole number above 0"
        raise InputError(f"{where}: {name} is {cell!r}, wanted {wanted}, or - if unknown")
    return number


def reference_kind(path: str) -> str | None:
    """Return what a file's name says it is: ``gain``, ``dark``, ``defects``, or None for no reference."""
    name = PurePosixPath(path).name
    match = REFERENCE.search(name)
    if match is None:
        return "gain" if name.lower().endswith(".gain") else None
    return "dark" if match["dark"] else "defects" if match["defects"] else "gain"
