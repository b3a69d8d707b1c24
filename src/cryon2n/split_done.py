"""Whether a movie's halves are there already, and were made just so: what lets a stopped run go on.

The record says with which settings, by which code and from which files halves were made.  Files that have the
size and the time of last change that they had then are taken for the same; where only the time differs, their
SHA-256 decide.  The halves themselves are hashed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryon2n import codeversion, files, halves
from cryon2n.errors import InputError
from cryon2n.split import SplitSettings


def provenance(settings: SplitSettings) -> dict[str, Any]:
    """Return settings and code version, as the record holds them."""
    modules = codeversion.imported_modules("split_stage") | {"split_stage"}
    code = codeversion.code_version(*(f"{name}.py" for name in modules - codeversion.NUMBERLESS))
    return {"settings": json.loads(json.dumps(dataclasses.asdict(settings))), "code": code}


def is_done(prefix: Path, inputs: Mapping[str, Path], made_with: Mapping[str, Any]) -> bool:
    """Tell whether the halves at `prefix` were made from just these inputs, settings and code, and are whole.

    Parameters
    ----------
    prefix : Path
        As for `halves.write_halves`.
    inputs : dict
        Files by what they are.
    made_with : dict
        Of `provenance`.
    """
    path = prefix.with_name(f"{prefix.name}.json")
    try:
        if not path.is_file():
            return False
        record = files.read_json(path)
        about = record["made_with"]
        if {name: about[name] for name in made_with} != dict(made_with):
            return False
        if not _same_files(inputs, about["files"], record["inputs"]):
            return False
        return all(files.sha256_of(image) == wanted for image, wanted in _images(prefix, record))
    except (InputError, OSError, LookupError, TypeError, AttributeError):
        return False  # damaged, or by another program: it is made anew


def _same_files(inputs: Mapping[str, Path], then: Mapping[str, list[int]], checksums: Mapping[str, str]) -> bool:
    now = {name: files.stamp(path) for name, path in inputs.items()}
    if now.keys() != then.keys() or any(now[name][0] != then[name][0] for name in now):
        return False
    keys = dict(zip(inputs, halves.checksum_keys(list(inputs.values())), strict=True))
    if set(keys.values()) != set(checksums):
        return False
    return all(
        now[name] == list(then[name]) or files.sha256_of(path) == checksums[keys[name]] for name, path in inputs.items()
    )


def _images(prefix: Path, record: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return each image of a record with its SHA-256."""
    found = [(prefix.with_name(f"{prefix.name}_{side}.mrc"), record[side]["sha256"]) for side in "ab"]
    if "group_stack" in record:
        stack = record["group_stack"]
        found.append((prefix.with_name(stack["file"]), stack["sha256"]))
    return found
