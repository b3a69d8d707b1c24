"""Whether a micrograph is denoised already, and was made just so; and the table of what became of all.

Beside each denoised micrograph lies its record: from which files, with which weights and settings it was made, and what
was made.  Files of the size and time of last change that they had then are taken for the same.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cryon2n import files
from cryon2n.denoise_uncertainty import Sums
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph

FORMAT = "cryon2n-denoised"
DONE, WAS_DONE, FAILED = "done", "was done", "failed"


@dataclass(frozen=True)
class Row:
    """What became of one micrograph; a line of ``summary.tsv``.

    Attributes
    ----------
    micrograph : str
    status : str
        ``done``, ``was done`` (by an earlier run) or ``failed``.
    seconds : float
        From the beginning of its reading to its last file; micrographs overlap.
    not_finite, hot, border : int
        Pixels replaced that were NaN or infinite, that were hot or dead, and of border lines of another grey level;
        of both halves together.
    pixel_size_A : float or None
    signal_free_percent : float or None
        As `denoise_model.Denoised`.
    device : str
    tile : int or None
        Pixels; side of the regions that were denoised at once.
    sentence : str
        Why it failed; or what there is to say of its pixel size.
    """

    micrograph: str
    status: str
    seconds: float = 0.0
    not_finite: int = 0
    hot: int = 0
    border: int = 0
    pixel_size_A: float | None = None
    signal_free_percent: float | None = None
    device: str = ""
    tile: int | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Finished:
    """What there is of a micrograph at the end.

    Attributes
    ----------
    row : Row
    files : dict of Path
        What was made, by what it is.
    sums : Sums or None
        For a calibration.
    micrograph : Micrograph or None
    """

    row: Row
    files: dict[str, Path] = field(default_factory=dict)
    sums: Sums | None = None
    micrograph: Micrograph | None = None


def write_summary(path: Path, rows: Iterable[Row]) -> None:
    """Write ``summary.tsv``: one line per micrograph, empty where there is nothing to say."""
    columns = [f.name for f in fields(Row)]
    texts = [{k: "" if v is None else " ".join(v.split()) if isinstance(v, str) else v for k, v in asdict(row).items()}
             for row in rows]  # fmt: skip
    files.write_table(path, texts, columns)


def write_record(path: Path, inputs: Sequence[Path], stamps: Sequence[list[int]], made_with: Mapping[str, Any],
                 outputs: Mapping[str, Path], row: Row) -> None:  # fmt: skip
    """Write a micrograph's record, last of its files.

    Parameters
    ----------
    path : Path
    inputs : sequence of Path
    stamps : sequence of list
        Of the inputs, taken before they were read (`files.stamp`).
    made_with : dict
        Weights and settings.
    outputs : dict of Path
        By what they are.
    row : Row
    """
    record = {
        "format": FORMAT,
        "made_with": dict(made_with),
        "inputs": {str(p): s for p, s in zip(inputs, stamps, strict=True)},
        "outputs": {name: [os.path.relpath(p, path.parent), *files.stamp(p)] for name, p in outputs.items()},
        "summary": asdict(row),
    }
    # A sync waits for all that the file system's journal holds, also of the other micrographs.  A record that a power
    # cut damages, or leaves beside other outputs than its own, tells of nothing done: `find_done`.
    files.write_json(path, record, synced=False)


def find_done(path: Path, inputs: Sequence[Path], made_with: Mapping[str, Any]) -> Finished | None:
    """Return what an earlier run made from just these files, weights and settings; None if it must be made."""
    try:
        if not path.is_file():
            return None
        record = files.read_json(path)
        if record["format"] != FORMAT or record["made_with"] != dict(made_with):
            return None
        if record["inputs"] != {str(p): files.stamp(p) for p in inputs}:
            return None
        outputs = {name: Path(os.path.normpath(path.parent / p)) for name, (p, *_) in record["outputs"].items()}
        if any(files.stamp(outputs[name]) != about[1:] for name, about in record["outputs"].items()):
            return None
        return Finished(Row(**{**record["summary"], "status": WAS_DONE}), outputs)
    except (InputError, OSError, LookupError, TypeError, AttributeError):
        return None  # damaged, or by another program: it is made anew
