"""The sheet of pairs: which two files are the halves of which micrograph, and what is known of them.

A tab-separated table.  The columns `REQUIRED` must be there, those of `OPTIONAL` may; ``-`` means
unknown.  Paths are relative to the sheet.  `docs/other-programs.md` says which program numbers its
frames how.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cryon2n import files
from cryon2n.errors import InputError

REQUIRED = ("micrograph", "a", "b", "pixel_size_A", "frames_a", "frames_b")
OPTIONAL = ("which_a", "which_b", "form", "section", "dose_weighted", "alignment", "producer")
FORMS = ("halves", "full-diff")
ALIGNMENTS = ("joint", "independent", "unknown")

_SLICE = re.compile(r"(\d+):(\d*):(\d+)")
_SUFFIX = re.compile(r"(.+)_(evn|even|odd)", re.IGNORECASE)


@dataclass(frozen=True)
class PairRow:
    """Two halves of one micrograph; None where something is not known.

    Attributes
    ----------
    micrograph : str
    a, b : str
        Paths of the halves; with the form ``full-diff`` of their sum and of a - b.
    pixel_size_A : float or None
        Å; None takes the headers'.
    frames_a, frames_b : int or None
        How many frames each side holds.
    which_a, which_b : str or None
        Which: ``first:stop:step`` as in Python, counted from 0 in the movie (``0:38:2`` is 0, 2 … 36);
        without a stop (``0::2``) where the end is not known.
    form : str
        One of `FORMS`.
    section : int or None
        The image in a stack (a tilt of a tilt series), counted from 0.
    dose_weighted : bool or None
        The frames were weighted by dose before they were summed.
    alignment : str
        ``joint`` (one trajectory from all frames), ``independent`` (one for each half) or ``unknown``.
    producer : str or None
        The program that made the halves.
    """

    micrograph: str
    a: str
    b: str
    pixel_size_A: float | None = None
    frames_a: int | None = None
    frames_b: int | None = None
    which_a: str | None = None
    which_b: str | None = None
    form: str = "halves"
    section: int | None = None
    dose_weighted: bool | None = None
    alignment: str = "unknown"
    producer: str | None = None

    def __post_init__(self) -> None:
        where = f"pair {self.micrograph}"
        if self.pixel_size_A is not None and not 0 < self.pixel_size_A < float("inf"):
            raise InputError(f"{where}: found a pixel size of {self.pixel_size_A} Å, wanted more than 0")
        if any(n is not None and n < 1 for n in (self.frames_a, self.frames_b)):
            raise InputError(
                f"{where}: found {self.frames_a} and {self.frames_b} frames in the halves, wanted 1 or more"
            )
        for which, count in ((self.which_a, self.frames_a), (self.which_b, self.frames_b)):
            numbers = frame_numbers(which, where)
            if numbers is not None and count is not None and len(numbers) != count:
                raise InputError(f"{where}: frames {which} are {len(numbers)}, but the sheet says {count}; correct one")
        both = [frame_numbers(which, where) for which in (self.which_a, self.which_b)]
        if None not in both and set(both[0]) & set(both[1]):
            raise InputError(
                f"{where}: frames {self.which_a} in a and {self.which_b} in b overlap; two halves share no frame"
            )
        if self.section is not None and self.section < 0:
            raise InputError(f"{where}: found section {self.section}, wanted 0 or more")
        for name, value, wanted in (("form", self.form, FORMS), ("alignment", self.alignment, ALIGNMENTS)):
            if value not in wanted:
                raise InputError(f"{where}: found {name} {value!r}, wanted one of {', '.join(wanted)}")
        # It stands in a shell command and in the record.
        if self.producer is not None and not re.fullmatch(r"[\w.+-]+", self.producer):
            raise InputError(f"{where}: found producer {self.producer!r}, wanted one word, such as relion")

    @property
    def n_frames(self) -> tuple[int | None, int | None]:
        """How many frames a and b hold, from the numbers or from the list."""
        counts = []
        for which, count in ((self.which_a, self.frames_a), (self.which_b, self.frames_b)):
            numbers = frame_numbers(which, self.micrograph)
            counts.append(count if numbers is None else len(numbers))
        return counts[0], counts[1]


def frame_numbers(which: str | None, where: str) -> range | None:
    """Return the frames that ``first:stop:step`` means; None where the end (or all) is not known."""
    if which is None:
        return None
    match = _SLICE.fullmatch(which)
    if match is None or match[3] == "0":
        raise InputError(f"{where}: found frames {which!r}, wanted first:stop:step, such as 0:38:2, or 0::2")
    return range(int(match[1]), int(match[2]), int(match[3])) if match[2] else None


def side_by_name(path: str | Path) -> tuple[str, str | None]:
    """Tell a micrograph's name and its side, ``even`` or ``odd`` (None: the name does not say), from a path.

    Sides are told by a folder ``even`` or ``odd``, or else by the endings ``_EVN``, ``_even`` and ``_ODD``.
    """
    path = Path(path)
    stem = re.sub(r"\.mrcs?(\.gz|\.bz2)?$", "", path.name, flags=re.IGNORECASE)
    folder = path.parent.name.lower()
    if folder in ("even", "odd"):
        return stem, folder
    match = _SUFFIX.fullmatch(stem)
    if match:
        return match[1], "odd" if match[2].lower() == "odd" else "even"
    return stem, None


def read_pair_sheet(path: str | Path) -> list[PairRow]:
    """Read and check a sheet of pairs; anything amiss raises `InputError` with the micrograph's name."""
    rows = []
    for found in files.read_table(path, REQUIRED):
        values = {k: found[k] for k in (*REQUIRED, *OPTIONAL) if found.get(k, "-") != "-"}
        for name in ("micrograph", "a", "b"):
            if not values.get(name):
                raise InputError(f"{path}: row {len(rows) + 1}: {name} is empty; wanted a name")
        try:
            rows.append(PairRow(**{k: _parse(k, v, f"{path}: {values['micrograph']}") for k, v in values.items()}))
            check_names(rows[-1])
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(f"{path}") else f"{path}: {error}") from None
    names = [row.micrograph for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: micrograph {name!r} stands there twice; wanted one row each")
    return rows


def check_names(row: PairRow) -> None:
    """Refuse a pair whose file names contradict that they are the two halves of one micrograph."""
    if row.a == row.b:
        raise InputError(f"{row.micrograph}: a and b are the same file {row.a}; wanted two halves")
    (name_a, side_a), (name_b, side_b) = side_by_name(row.a), side_by_name(row.b)
    if side_a is None or side_b is None:
        return
    if side_a == side_b:
        raise InputError(f"{row.micrograph}: {row.a} and {row.b} are both {side_a} halves; wanted one of each")
    if name_a != name_b:
        raise InputError(
            f"{row.micrograph}: {row.a} is a half of {name_a} but {row.b} of {name_b}; wanted halves of one micrograph"
        )


def sheet_text(rows: Iterable[PairRow]) -> str:
    """Return a sheet of pairs, with all columns, as text."""
    columns = REQUIRED + OPTIONAL
    lines = ["\t".join(columns)]
    for row in rows:
        texts = as_text(row)
        lines.append("\t".join(texts[c] for c in columns))
    return "\n".join(lines) + "\n"


def as_text(row: PairRow) -> dict[str, str]:
    """Return the columns of a row as they stand in the sheet."""
    return {f.name: _text(getattr(row, f.name)) for f in fields(row)}


def import_arguments(row: PairRow) -> str:
    """Return what import-halves must be told of a pair, besides its files."""
    known = {name: text for name, text in as_text(row).items() if name not in ("micrograph", "a", "b") and text != "-"}
    flags = {name: f"--{name.removesuffix('_A').replace('_', '-')}" for name in known}
    return " ".join(f"{flags[name]} {text}" for name, text in known.items())


def parse_bool(text: str) -> bool:
    """Read ``true`` or ``false``; anything else raises `ValueError`."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _parse(name: str, text: str, where: str) -> Any:
    kinds = {"pixel_size_A": float, "frames_a": int, "frames_b": int, "section": int, "dose_weighted": parse_bool}
    try:
        return kinds.get(name, str)(text)
    except ValueError:
        wanted = {float: "a number", int: "a whole number"}.get(kinds[name], "true or false")
        raise InputError(f"{where}: column {name}: found {text!r}, wanted {wanted}, or - for unknown") from None


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return str(value).lower() if isinstance(value, bool) else f"{value:.7g}" if isinstance(value, float) else str(value)
