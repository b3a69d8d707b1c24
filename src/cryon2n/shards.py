"""Patch shards: what training reads.  Two arrays of patches and a manifest that says everything about them.

``train_a.npy`` and ``train_b.npy`` hold the same patches of the two halves, ``(n, p, p)`` float16, in
normalised units, as plain NumPy files that any tool opens; their header is padded so that the patches begin
at byte 4096, where reading past the page cache can begin.  ``manifest.json`` holds shape, checksums, pixel
size, what the halves are, the micrograph, position and noise variances of each patch, and the split.  The
format byte by byte: ``docs/shards.md``.

Here are the format and its reading; `shards_write` writes, `shards_tools` verifies and exports.
"""

import ast
import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from cryon2n import files
from cryon2n.errors import InputError

FORMAT = "cryon2n-shards"
VERSION = 2
DTYPE = np.dtype("<f2")
OFFSET = 4096  # bytes before the first patch: a page, and what O_DIRECT asks for
MAGIC = b"\x93NUMPY\x01\x00"  # NPY version 1.0
HALF_MAX = float(np.finfo(np.float16).max)
AGAIN = "write the shards again"

# What a manifest must hold, and of which type.
KEYS = {
    "producer": str, "dtype": str, "byte_order": str, "shape": list, "data_offset": int, "pixel_size_A": float,
    "groups": dict, "overlap": int, "max_bad": float, "left_out": int, "arrays": dict, "split": dict,
    "micrographs": list, "patches": list,
}  # fmt: skip
ARRAY_KEYS = {"file": str, "bytes": int, "sha256": str}
MICROGRAPH_KEYS = {"micrograph": str, "first": int, "patches": int, "left_out": list, "a": dict, "b": dict}
PATCH_KEYS = {
    "micrograph": str, "y": int, "x": int, "noise_var_a": float, "noise_var_b": float, "crc32_a": str, "crc32_b": str,
}  # fmt: skip
PAIRING_KEYS = {"halves": bool, "a": dict, "b": dict}  # where there are more pairings than the halves


# ---------------------------------------------------------------------------- the bytes


def array_header(shape: tuple[int, ...] | list[int]) -> bytes:
    """Return the first 4096 bytes of an array's file: an NPY 1.0 header, padded with spaces.

    Parameters
    ----------
    shape : (int, int, int)
        n, p, p.
    """
    words = ", ".join(str(int(n)) for n in shape)
    text = f"{{'descr': '{DTYPE.str}', 'fortran_order': False, 'shape': ({words}), }}"
    length = OFFSET - len(MAGIC) - 2
    return MAGIC + struct.pack("<H", length) + text.ljust(length - 1).encode() + b"\n"


def patch_bytes(shape: tuple[int, ...] | list[int]) -> int:
    """Return the bytes of one patch of arrays of `shape`, (n, p, p)."""
    return int(shape[1]) * int(shape[2]) * DTYPE.itemsize


def file_bytes(shape: tuple[int, ...] | list[int]) -> int:
    """Return the bytes of the file of an array of `shape`, (n, p, p)."""
    return OFFSET + int(shape[0]) * patch_bytes(shape)


def crc32(data: Any) -> str:
    """Return the CRC-32 (ISO 3309; that of gzip and zlib) of contiguous bytes as 8 hex digits."""
    # libdeflate's takes an eighth of zlib's time; both release the interpreter.
    value = imagecodecs.deflate_crc32(data) if imagecodecs.DEFLATE.available else zlib.crc32(data)
    return f"{value:08x}"


def manifest_text(manifest: dict[str, Any]) -> str:
    """Return a manifest as JSON, one line per patch and micrograph, closed by the SHA-256 of all before it."""
    lines = []
    for key, value in manifest.items():
        if isinstance(value, (list, dict)) and value and all(isinstance(v, dict) for v in _values(value)):
            names = value if isinstance(value, dict) else [None] * len(value)
            rows = [
                ("" if name is None else f"{json.dumps(name)}: ") + json.dumps(row, allow_nan=False)
                for name, row in zip(names, _values(value), strict=True)
            ]
            begin, end = "[]" if isinstance(value, list) else "{}"
            text = f"{begin}\n  " + ",\n  ".join(rows) + f"\n {end}"
        else:
            text = json.dumps(value, allow_nan=False)
        lines.append(f" {json.dumps(key)}: {text}")
    body = "{\n" + ",\n".join(lines)
    return body + _seal(body)


def write_manifest(path: str | Path, manifest: dict[str, Any]) -> None:
    """Write a manifest atomically."""
    files.write_text(path, manifest_text(manifest))


def _seal(body: str) -> str:
    return f',\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def _values(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


# ---------------------------------------------------------------------------- reading


def read_manifest(path: str | Path, arrays: bool = True) -> dict[str, Any]:
    """Read a manifest, and check it and that its arrays are there as it says.

    The bytes of the patches are not read, but for the first and the last: ``cryon2n shards verify`` reads all.

    Parameters
    ----------
    path : path
    arrays : bool
        Whether to look at the arrays at all.

    Raises
    ------
    InputError
        Says what is wrong: the manifest is none, of another version, changed, or lacks something; a micrograph is
        in two splits, or a patch of one that is not in train; an array is missing, has another magic, version,
        data type, shape, offset or size, or holds other patches.
    """
    path = Path(path)
    manifest = files.read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: is not a manifest of patch shards (format {FORMAT!r}); {AGAIN}")
    if manifest.get("version") != VERSION:
        raise InputError(f"{path}: is of version {manifest.get('version')!r}; wanted {VERSION}: {AGAIN}")
    _check_seal(path)
    _check_keys(path, manifest)
    _check_split(path, manifest)
    for side in "ab" if arrays else "":
        array = open_array(path, manifest, side)
        for k in (0, len(array) - 1):
            if crc32(array[k]) != manifest["patches"][k][f"crc32_{side}"]:
                raise InputError(
                    f"{array_path(path, manifest, side)}: {patch_name(manifest, k)} has not the checksum of its "
                    f"manifest: it is damaged, or belongs to other shards; see cryon2n shards verify, or {AGAIN}"
                )
    return manifest


def array_path(path: str | Path, manifest: dict[str, Any], side: str) -> Path:
    """Return the file of a side's patches, beside the manifest `path`."""
    return Path(path).with_name(manifest["arrays"][side]["file"])


def patch_name(manifest: dict[str, Any], k: int) -> str:
    """Name patch `k` in a sentence."""
    entry = manifest["patches"][k]
    pairing = f", pairing {entry['pairing']}" if "pairing" in entry else ""
    return f"patch {k} (micrograph {entry['micrograph']}, y {entry['y']}, x {entry['x']}{pairing})"


def open_array(path: str | Path, manifest: dict[str, Any], side: str) -> np.ndarray:
    """Open the patches of one side, memory-mapped, shape (n, p, p), float16; a file that is not they is refused."""
    array = array_path(path, manifest, side)
    shape = tuple(manifest["shape"])
    try:
        with open(array, "rb") as file:
            check_header(array, file.read(OFFSET), shape)
        found, wanted = array.stat().st_size, file_bytes(shape)
        if found != wanted:
            raise InputError(
                f"{array}: has {found} bytes; wanted {wanted}, for {shape[0]} patches of "
                f"{shape[1]} x {shape[2]}: {AGAIN}"
            )
        return np.memmap(array, DTYPE, "r", OFFSET, shape)
    except OSError as error:
        raise InputError(f"{array}: cannot open the shard ({error.strerror}); {AGAIN}") from None


def check_header(path: Path, head: bytes, shape: tuple[int, ...]) -> None:
    """Raise `InputError`, which says what differs, if `head` is not the header of an array of `shape`."""
    wanted = array_header(shape)
    if head == wanted:
        return
    if head[:6] != MAGIC[:6]:
        raise InputError(f"{path}: begins with {head[:6]!r}; wanted {MAGIC[:6]!r}, an NPY file: {AGAIN}")
    if head[6:8] != MAGIC[6:]:
        raise InputError(f"{path}: is of NPY version {'.'.join(map(str, head[6:8]))}; wanted 1.0: {AGAIN}")
    if len(head) < OFFSET:
        raise InputError(f"{path}: ends within its header, after {len(head)} bytes; {AGAIN}")
    offset = len(MAGIC) + 2 + struct.unpack_from("<H", head, len(MAGIC))[0]
    if offset != OFFSET:
        raise InputError(f"{path}: its data begin at byte {offset}; wanted {OFFSET}: {AGAIN}")
    try:
        about = ast.literal_eval(head[len(MAGIC) + 2 :].decode("latin1").strip())
        dtype, order, found = about["descr"], about["fortran_order"], about["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise InputError(f"{path}: its header cannot be read; {AGAIN}") from None
    if dtype != DTYPE.str:
        raise InputError(f"{path}: holds numbers of type {dtype!r}; wanted {DTYPE.str!r} (float16): {AGAIN}")
    if order is not False or found != tuple(shape):
        raise InputError(
            f"{path}: holds an array of shape {found}{' in Fortran order' if order else ''}; its manifest says "
            f"{tuple(shape)}: {AGAIN}"
        )
    place = next(k for k, (one, other) in enumerate(zip(head, wanted, strict=True)) if one != other)
    raise InputError(f"{path}: byte {place} of its header differs from what was written; {AGAIN}")


# ---------------------------------------------------------------------------- checks of a manifest


def _check_seal(path: Path) -> None:
    """Refuse a manifest whose bytes are not those that were written."""
    text = path.read_bytes().decode("utf-8", "replace")
    body, comma, _ = text.rpartition(',\n "sha256": "')
    if not comma:
        raise InputError(f"{path}: misses the key 'sha256', its own checksum, at its end; {AGAIN}")
    if text != body + _seal(body):
        raise InputError(f"{path}: differs from what was written (its own SHA-256 does not fit); {AGAIN}")


def _check_keys(path: Path, manifest: dict[str, Any]) -> None:
    """Check that all is there that a reader needs, each of its type and value."""
    _check_types(path, manifest, KEYS, "")
    shape = manifest["shape"]
    if len(shape) != 3 or any(type(n) is not int or n < 1 for n in shape) or shape[1] != shape[2]:
        raise InputError(f"{path}: its shape is {shape}; wanted [n, p, p], each 1 or more: {AGAIN}")
    for key, value in {"dtype": "float16", "byte_order": "little", "data_offset": OFFSET}.items():
        if manifest[key] != value:
            raise InputError(f"{path}: its {key} is {manifest[key]!r}; wanted {value!r}: {AGAIN}")
    if not 0 < manifest["pixel_size_A"] < np.inf:
        raise InputError(f"{path}: its pixel size is {manifest['pixel_size_A']} Å; wanted more than 0: {AGAIN}")
    for side in "ab":
        about = manifest["arrays"].get(side)
        if not isinstance(about, dict):
            raise InputError(f"{path}: misses the key 'arrays: {side}'; {AGAIN}")
        _check_types(path, about, ARRAY_KEYS, f"arrays: {side}: ")
        if about["file"] != Path(about["file"]).name or about["file"] in ("", ".", ".."):
            raise InputError(f"{path}: names the file {about['file']!r}; wanted a name beside the manifest: {AGAIN}")
        files.check_sha256(about["sha256"], f"{path}: arrays: {side}: sha256")
        if about["bytes"] != file_bytes(shape):
            raise InputError(f"{path}: gives {about['bytes']} bytes for shape {shape}; wanted {file_bytes(shape)}")
    if len(manifest["patches"]) != shape[0]:
        raise InputError(f"{path}: lists {len(manifest['patches'])} patches, its shape says {shape[0]}; {AGAIN}")
    for name, keys in (("micrographs", MICROGRAPH_KEYS), ("patches", PATCH_KEYS)):
        for k, entry in enumerate(manifest[name]):
            if not isinstance(entry, dict):
                raise InputError(f"{path}: {name}: {k} is no mapping; {AGAIN}")
            _check_types(path, entry, keys, f"{name}: {k}: ")
    _check_pairings(path, manifest)


def _check_pairings(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a pairing whose a and b share a group of frames, and patches of a pairing that is not there."""
    pairings = manifest.get("pairings", {})
    if not isinstance(pairings, dict) or not all(isinstance(about, dict) for about in pairings.values()):
        raise InputError(f"{path}: pairings is no mapping of mappings; {AGAIN}")
    for name, about in pairings.items():
        where = f"pairings: {name}: "
        _check_types(path, about, PAIRING_KEYS, where)
        for side in "ab":
            _check_types(path, about[side], {"groups": list}, f"{where}{side}: ")
        members = [*about["a"]["groups"], *about["b"]["groups"]]
        if any(type(k) is not int for k in members) or len(set(members)) < len(members):
            raise InputError(
                f"{path}: {where}a has the groups {about['a']['groups']}, b {about['b']['groups']}; wanted numbers "
                f"without a common one, or their noises are not independent: {AGAIN}"
            )
    for k, entry in enumerate(manifest["patches"]):
        if pairings and entry.get("pairing") not in pairings:
            raise InputError(
                f"{path}: patches: {k}: pairing is {entry.get('pairing')!r}; wanted {' or '.join(pairings)}: {AGAIN}"
            )


def _check_types(path: Path, values: dict[str, Any], keys: dict[str, type], where: str) -> None:
    for key, kind in keys.items():
        if key not in values:
            raise InputError(f"{path}: misses the key '{where}{key}'; {AGAIN}")
        value = values[key]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InputError(f"{path}: {where}{key} is {value!r}; wanted {kind.__name__}: {AGAIN}")


def _check_split(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse patches of micrographs that training must never see."""
    split = manifest["split"]
    for group in ("train", "val", "test"):
        if not isinstance(split.get(group), list):
            raise InputError(f"{path}: misses the list 'split: {group}'; {AGAIN}")
    check_disjoint(split, str(path))
    train = set(split["train"])
    for k, entry in enumerate(manifest["patches"]):
        if entry["micrograph"] not in train:
            held_out = next((g for g in ("val", "test") if entry["micrograph"] in split[g]), None)
            where = f"in {held_out}" if held_out else "in no split"
            raise InputError(
                f"{path}: {patch_name(manifest, k)} is {where}; wanted micrographs of train alone: {AGAIN}"
            )


def check_disjoint(split: dict[str, list[str]], where: str = "") -> None:
    """Raise `InputError` if a micrograph is in two splits, or twice in train."""
    everyone = [*split["train"], *(name for group in ("val", "test") for name in set(split[group]))]
    twice = (
        sorted({name for name in everyone if everyone.count(name) > 1}) if len(set(everyone)) < len(everyone) else []
    )
    if twice:
        raise InputError(
            f"{where}{': ' if where else ''}{', '.join(twice)}: in more than one of train, val and test (or twice in "
            "train); a micrograph belongs to one split: name it once"
        )
