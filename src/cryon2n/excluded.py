"""Micrographs that the audit leaves out: one small table, which every later stage on a split takes.

The split itself stays as the config fixes it; training, tuning and scoring leave out the same names,
so that all methods are trained and scored on the same micrographs.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryon2n import files, log
from cryon2n.errors import InputError

COLUMNS = ["micrograph", "reason", "value", "threshold"]


def add_excluded_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--excluded`` to a stage that works on a split."""
    parser.add_argument(
        "--excluded", type=Path, metavar="TSV", help="of audit-halves: micrographs of this table are left out"
    )


def write_excluded(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table, one row per micrograph and reason; of none it has the header alone."""
    files.write_table(path, rows, COLUMNS)


def read_excluded(path: str | Path) -> dict[str, str]:
    """Return why micrographs are excluded, by name (reasons joined by commas)."""
    reasons: dict[str, list[str]] = {}
    for row in files.read_table(path, COLUMNS):
        reasons.setdefault(row["micrograph"], []).append(row["reason"])
    return {name: ", ".join(found) for name, found in reasons.items()}


def kept(records: list[Path], path: Path | None, split: str) -> list[Path]:
    """Leave out the records whose micrograph is excluded, and say so.

    Parameters
    ----------
    records : list of Path
        ``{mic}.json``.
    path : Path or None
        The table; None keeps all.
    split : str
        What the micrographs are for, in the sentences: ``training``, ``test`` …

    Raises
    ------
    InputError
        None is left.
    """
    if path is None:
        return records
    reasons = read_excluded(path)
    left_out = [record.stem for record in records if record.stem in reasons]
    for name in left_out:
        log.say(f"{name}: left out of the {split} micrographs ({reasons[name]}; {path})")
    if records and len(left_out) == len(records):
        raise InputError(
            f"{path}: excludes every one of the {len(records)} {split} micrographs ({', '.join(left_out)}); wanted at "
            "least one: put right what the audit found, or choose others in the config's split"
        )
    return [record for record in records if record.stem not in reasons]
