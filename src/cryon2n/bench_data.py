"""A data set for benchmarks of a given size: micrographs of noise, their halves as MRC files, and shards.

A few distinct micrographs are linked under many names, so that 25 GB of shards want 2 GB of halves.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, log, shards
from cryon2n.errors import InputError
from cryon2n.halves import normalise_equal, write_halves
from cryon2n.loaders import patch_bytes
from cryon2n.shards_tiles import ShardSettings, patch_positions
from cryon2n.shards_write import write_shards

DISTINCT = 4  # micrographs
PIXEL_SIZE = 0.6575  # Å; EMPIAR-10025's


def noise(seed: int, shape: tuple[int, int], threads: int) -> np.ndarray:
    """Return white Gaussian noise (h, w), float32, drawn by several threads."""
    out = np.empty(shape, np.float32)

    def fill(part: tuple[int, np.ndarray]) -> None:
        np.random.default_rng([seed, part[0]]).standard_normal(out=part[1], dtype=np.float32)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, enumerate(np.array_split(out, threads))))
    return out


def make_micrographs(directory: Path, shape: tuple[int, int], count: int, threads: int) -> list[Path]:
    """Write the halves of `count` micrographs, `DISTINCT` of them different; returns their records."""
    records = []
    for k in range(count):
        name = f"mic{k:05d}"
        if k < DISTINCT:
            signal = noise(3 * k, shape, threads) * np.float32(0.2)
            a, b = (signal + noise(3 * k + 1 + side, shape, threads) for side in range(2))
            valid = [0, shape[0], 0, shape[1]]
            sides = {
                side: {"frames": None, "n_frames": 1, "dose_e_per_A2": None, **values} if side != "full" else values
                for side, values in normalise_equal(a, b, valid, (1, 1)).items()
            }
            record = {
                "shape": list(shape), "pixel_size_A": PIXEL_SIZE, "valid": valid, **sides, "alignment": "none",
                "dose_weighted": None, "trajectory_A": None, "bin": 1, "defects": None,
            }  # fmt: skip
            write_halves(directory / name, a, b, record, {}, "bench")
        else:
            first = json.loads((directory / f"mic{k % DISTINCT:05d}.json").read_text())
            for side in "ab":
                link = directory / f"{name}_{side}.mrc"
                link.unlink(missing_ok=True)
                os.link(directory / f"mic{k % DISTINCT:05d}_{side}.mrc", link)
            files.write_json(directory / f"{name}.json", {**first, "micrograph": name})
        records.append(directory / f"{name}.json")
    return records


def make(directory: Path, size_GB: float, shape: tuple[int, int], patch: int, threads: int) -> dict[str, Any]:
    """Make a data set of at least `size_GB` GB of patches; one that is there already is taken.

    Returns
    -------
    made : dict
        ``manifest`` and ``records`` (paths); ``shard_GB`` and ``write_GB_per_s`` if it was written now.
    """
    settings = ShardSettings(patch=patch)
    each = len(patch_positions({"valid": [0, shape[0], 0, shape[1]], "micrograph": "a micrograph"}, settings))
    count = max(DISTINCT, int(np.ceil(size_GB * 1e9 / patch_bytes(each, patch))))
    manifest = directory / "shards" / "manifest.json"
    made: dict[str, Any] = {"manifest": manifest, "records": [directory / f"halves/mic{k:05d}.json" for k in range(4)]}
    if manifest.exists():
        try:
            found = shards.read_manifest(manifest)
        except InputError as error:
            log.say(f"{error}; made anew")
        else:
            if found["shape"] == [count * each, patch, patch]:
                log.say(f"{manifest}: taken as it is")
                return made
    log.say(f"{directory}: writing {count} micrographs of {shape[0]} x {shape[1]} px, {each} patches each")
    records = make_micrographs(directory / "halves", shape, count, threads)
    began = time.monotonic()
    write_shards(records, {"val": [], "test": []}, manifest.parent, settings, threads)
    gigabytes = patch_bytes(count * each, patch) / 1e9
    return {**made, "shard_GB": gigabytes, "write_GB_per_s": gigabytes / (time.monotonic() - began)}
