"""Reading and writing files so that a half-written or damaged one is never taken for a good one."""

import contextlib
import csv
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryon2n.errors import InputError

CHUNK = 1 << 22  # bytes that are hashed at a time: so many that other threads are seldom waited for


@contextlib.contextmanager
def atomic_path(path: str | Path, synced: bool = True) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` only if the block ends well.

    The name holds host and process, so that two writers never share it.  The file is synced
    before the rename, so that a power cut cannot leave a short file under the final name; not `synced`
    is for what may be lost then, because it is made anew where it is damaged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays last: writers such as matplotlib and numpy look at it.
    temporary = path.with_name(f".{path.stem}.{socket.gethostname()}-{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if synced:
            with open(temporary, "rb") as f:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def stamp(path: Path) -> list[int]:
    """Return a file's size in bytes and its time of last change in ns."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as f:
        while size := f.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def check_sha256(text: str | None, where: str) -> None:
    """Raise `InputError` if `text` is neither None nor 64 lower-case hex digits."""
    if text is not None and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise InputError(f"{where}: found {text!r}, wanted a SHA-256 of 64 lower-case hex digits")


def write_text(path: str | Path, text: str, synced: bool = True) -> None:
    """Write a text file atomically; `synced` as for `atomic_path`."""
    with atomic_path(path, synced) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value: Any, synced: bool = True) -> None:
    """Write JSON atomically, readable and in the order given; `synced` as for `atomic_path`."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", synced)


def read_json(path: str | Path) -> Any:
    """Read a JSON file; one that is missing or not JSON raises `InputError`."""
    try:
        return json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run its stage again") from None


def write_table(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: list[str]) -> None:
    """Write rows as a tab-separated table, atomically; floats with 6 significant digits."""

    def text(value: Any) -> str:
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    lines = ["\t".join(columns)] + ["\t".join(text(row[c]) for c in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def read_table(path: str | Path, required: Iterable[str]) -> list[dict[str, str]]:
    """Read a tab-separated table (lines that start with ``#`` are comments) with checked columns."""
    try:
        with open(path, newline="") as f:
            reader = csv.DictReader((line for line in f if not line.startswith("#")), delimiter="\t")
            rows = list(reader)
            found = reader.fieldnames or []
    except OSError as error:
        raise InputError(f"{path}: cannot read the table ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a text table ({error}); wanted UTF-8, tab-separated") from None
    missing = [c for c in required if c not in found]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(map(repr, missing))} is missing (found: {', '.join(found)}); "
            "the table is tab-separated with a header line"
        )
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise InputError(f"{path}: row {number} has not the {len(found)} columns of the header")
    return rows
