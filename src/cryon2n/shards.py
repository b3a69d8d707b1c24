"""Patch shards: what training reads.  Two flat arrays and a manifest that says everything about them.

``train_a.npy`` and ``train_b.npy`` hold the same patches of the two halves, ``(n, p, p)`` float16, in
normalised units, as plain NumPy files that any tool opens.  ``manifest.json`` holds their shape,
checksums, pixel size, the micrograph, position and noise variances of each patch, and the split.
Micrographs are split into train, val and test by name, never by patch.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import __version__, excluded, files, log, pair
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments

FORMAT = "cryon2n-shards"
VERSION = 1
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ShardSettings:
    """Settings of the patches.

    Attributes
    ----------
    patch : int
        Pixels; side of a patch.
    overlap : int
        Pixels; the least overlap between neighbours.
    """

    patch: int = 1024
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.patch < 32 or not 0 <= self.overlap < self.patch:
            raise InputError(
                f"shard settings: found patch {self.patch} and overlap {self.overlap}; "
                "wanted a patch of 32 or more and an overlap below it"
            )


def tile_starts(begin: int, end: int, patch: int, overlap: int) -> list[int]:
    """Return the first pixel of each patch along one axis.

    The fewest patches that cover ``begin … end`` with at least `overlap`, spread evenly, so that the
    first starts at `begin` and the last ends at `end`: every pixel is used, none is padded.
    """
    length = end - begin
    if length < patch:
        raise ValueError(f"a region of {length} px holds no patch of {patch}")
    if length == patch:
        return [begin]
    n = 1 + int(np.ceil((length - patch) / (patch - overlap)))
    return [begin + int(s) for s in np.rint(np.linspace(0, length - patch, n))]


def patch_positions(record: dict[str, Any], settings: ShardSettings) -> list[tuple[int, int]]:
    """Return the [y, x] of the first pixel of each patch of a micrograph, within its valid region."""
    y0, y1, x0, x1 = record["valid"]
    if min(y1 - y0, x1 - x0) < settings.patch:
        raise InputError(
            f"{record['micrograph']}: its valid region of {y1 - y0} x {x1 - x0} px holds no patch of "
            f"{settings.patch}; set shards: patch to {min(y1 - y0, x1 - x0) // 64 * 64} or less"
        )
    rows = tile_starts(y0, y1, settings.patch, settings.overlap)
    columns = tile_starts(x0, x1, settings.patch, settings.overlap)
    return [(y, x) for y in rows for x in columns]


def write_shards(
    train: list[Path], held_out: dict[str, list[str]], directory: Path, settings: ShardSettings
) -> dict[str, Any]:
    """Write the shards of the training micrographs, then the manifest.

    Parameters
    ----------
    train : list of Path
        Records of the training micrographs' halves.
    held_out : dict
        ``val`` and ``test``: names of micrographs that training must never see.
    directory : Path
    settings : ShardSettings

    Returns
    -------
    manifest : dict
    """
    if not train:
        raise InputError("no training micrographs; wanted at least one record of halves")
    records = [pair.read_record(path) for path in train]
    names = [record["micrograph"] for record in records]
    everyone = names + [name for group in held_out.values() for name in set(group)]
    twice = sorted({name for name in everyone if everyone.count(name) > 1})
    if twice:
        raise InputError(
            f"{', '.join(twice)}: in more than one of train, val and test (or twice in train); "
            "a micrograph belongs to one split: name it once"
        )
    sizes = {record["pixel_size_A"] for record in records}
    if len(sizes) > 1:
        raise InputError(f"pixel sizes differ among the training micrographs: {sorted(sizes)} Å; wanted one")

    positions = [patch_positions(record, settings) for record in records]
    n, p = sum(map(len, positions)), settings.patch
    patches: list[dict[str, Any]] = []
    paths = {side: directory / f"train_{side}.npy" for side in "ab"}
    with files.atomic_path(paths["a"]) as tmp_a, files.atomic_path(paths["b"]) as tmp_b:
        out = [np.lib.format.open_memmap(t, mode="w+", dtype=np.float16, shape=(n, p, p)) for t in (tmp_a, tmp_b)]
        progress = log.Progress(len(train), "micrographs")
        for done, (path, where) in enumerate(zip(train, positions, strict=True), start=1):
            halves = pair.load_pair(path)
            for array, image in zip(out, (halves.a, halves.b), strict=True):
                if np.abs(image).max() > HALF_MAX:
                    raise InputError(f"{path}: values above {HALF_MAX:.0f} standard deviations; wanted repaired pixels")
                for k, (y, x) in enumerate(where):
                    array[len(patches) + k] = image[y : y + p, x : x + p]
            va, vb = halves.noise_var
            patches += [
                {"micrograph": halves.name, "y": y, "x": x, "noise_var_a": va, "noise_var_b": vb} for y, x in where
            ]
            progress.update(done)
        for array in out:
            array.flush()
        # An older manifest must not vouch for a mixture of old and new arrays, should the renaming be cut short.
        (directory / "manifest.json").unlink(missing_ok=True)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "producer": f"cryon2n {__version__} write-shards",
        "pixel_size_A": records[0]["pixel_size_A"],
        "dtype": "float16",
        "shape": [n, p, p],
        "overlap": settings.overlap,
        "units": "normalised: the same signal in a and b, independent noise",
        "arrays": {s: {"file": path.name, "sha256": files.sha256_of(path)} for s, path in paths.items()},
        "split": {"train": names, **held_out},
        "patches": patches,
    }
    files.write_json(directory / "manifest.json", manifest)
    return manifest


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest and check that its arrays are there with the shape and dtype it says."""
    path = Path(path)
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise InputError(f"{path}: is not a manifest of patch shards, version {VERSION}; write the shards again")
    for side in "ab":
        open_array(path, manifest, side)
    return manifest


def open_array(path: Path, manifest: dict[str, Any], side: str) -> np.ndarray:
    """Open the patches of one side, memory-mapped, shape (n, p, p), float16."""
    array_path = path.with_name(manifest["arrays"][side]["file"])
    try:
        array = np.load(array_path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{array_path}: cannot open the shard ({error}); write the shards again") from None
    if list(array.shape) != manifest["shape"] or array.dtype != np.float16:
        raise InputError(
            f"{array_path}: holds {array.dtype} {array.shape}, its manifest says float16 {tuple(manifest['shape'])}; "
            "write the shards again"
        )
    return array


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="records of the training halves")
    parser.add_argument("--val", nargs="*", default=[], help="names of the validation micrographs")
    parser.add_argument("--test", nargs="*", default=[], help="names of the test micrographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the arrays and manifest.json")
    excluded.add_excluded_argument(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(ShardSettings, args)
    train = excluded.kept(args.train, args.excluded, "training")
    manifest = write_shards(train, {"val": args.val, "test": args.test}, args.out, settings)
    n, p, _ = manifest["shape"]
    log.say(f"{n} patches of {p} x {p} from {len(train)} micrographs, {2 * n * p * p * 2 / 1e9:.2f} GB")


COMMANDS = {"write-shards": (_add_arguments, _run)}
