"""Tools for patch shards: verify every byte, say what they are, export them for other programs."""

import argparse
import concurrent.futures
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from cryon2n import __version__, files, log, shards
from cryon2n.errors import InputError

UNITS = ("offset", "scale", "noise_var")
PATCH_COLUMNS = ["image", "patch", "micrograph", "y", "x", "noise_var_a", "noise_var_b"]


# ---------------------------------------------------------------------------- verify


def verify(path: str | Path) -> list[str]:
    """Read every byte of some shards; returns a sentence for each thing that differs, none if all is well.

    Parameters
    ----------
    path : path
        The manifest.

    Raises
    ------
    InputError
        The manifest itself cannot be trusted, so that there is nothing to compare with.
    """
    manifest = shards.read_manifest(path, arrays=False)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda side: _verify_array(path, manifest, side), "ab")
        return [sentence for sentences in found for sentence in sentences]


def _verify_array(path: str | Path, manifest: dict[str, Any], side: str) -> list[str]:
    """Return what differs in one array, in one pass over its file."""
    array, shape = shards.array_path(path, manifest, side), manifest["shape"]
    found: list[str] = []
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(shards.patch_bytes(shape)))
    try:
        with open(array, "rb", buffering=0) as file:
            head = file.read(shards.OFFSET)
            digest.update(head)
            try:
                shards.check_header(array, head, tuple(shape))
            except InputError as error:
                found.append(str(error))
            size, wanted = file.seek(0, 2), shards.file_bytes(shape)
            if size != wanted:
                found.append(f"{array}: has {size} bytes, wanted {wanted}")
            file.seek(shards.OFFSET)
            for k, entry in enumerate(manifest["patches"]):
                n = _fill(file, buffer)
                digest.update(buffer[:n])
                if n < len(buffer):
                    found.append(f"{array}: {shards.patch_name(manifest, k)} is not whole: the file ends before")
                elif (crc := shards.crc32(buffer)) != (stated := entry[f"crc32_{side}"]):
                    found.append(
                        f"{array}: {shards.patch_name(manifest, k)} differs: its CRC-32 is {crc}, wanted {stated}"
                    )
            while n := _fill(file, buffer):
                digest.update(buffer[:n])
    except OSError as error:
        return [*found, f"{array}: cannot be read ({error.strerror})"]
    if not found and digest.hexdigest() != manifest["arrays"][side]["sha256"]:
        found.append(
            f"{array}: its SHA-256 is {digest.hexdigest()}, wanted {manifest['arrays'][side]['sha256']}, though every "
            "patch has its CRC-32: it was changed so that they fit"
        )
    return found


def _fill(file: Any, buffer: memoryview) -> int:
    done = 0
    while done < len(buffer) and (n := file.readinto(buffer[done:])):
        done += n
    return done


# ---------------------------------------------------------------------------- info


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what the shards are, without the list of patches."""
    kept = {key: value for key, value in manifest.items() if key not in ("patches", "micrographs", "sha256")}
    about = manifest["micrographs"]
    noise = np.array([[entry["noise_var_a"], entry["noise_var_b"]] for entry in manifest["patches"]])
    of = Counter(entry["pairing"] for entry in manifest["patches"] if "pairing" in entry)
    return {
        **kept,
        "micrographs": len(about),
        "masked": sum(m["mask_sha256"] is not None for m in about),
        "producers": sorted({str(m["producer"]) for m in about}),
        "alignment": sorted({str(m["alignment"]) for m in about}),
        **({"patches_of_pairing": dict(of)} if of else {}),
        "noise_var_median": {side: float(np.median(noise[:, k])) for k, side in enumerate("ab")},
    }


def info_text(path: str | Path, manifest: dict[str, Any]) -> str:
    """Say what the shards are, for a person."""
    about = summary(manifest)
    n, p, _ = manifest["shape"]
    size = 2 * shards.file_bytes(manifest["shape"])
    counts = [m["patches"] for m in manifest["micrographs"]]
    lines = [
        ("patches", f"{n} of {p} x {p} px in two halves, {manifest['dtype']}, {size / 1e9:.2f} GB"),
        ("pixel size", f"{manifest['pixel_size_A']:g} Å"),
        ("micrographs", f"{len(counts)} with {min(counts)} to {max(counts)} patches, overlap {manifest['overlap']} px"),
        ("left out", f"{manifest['left_out']} patches with more than {manifest['max_bad']:.0%} bad pixels; "
                     f"{about['masked']} micrographs have a mask"),
    ]  # fmt: skip
    for name, pairing in manifest.get("pairings", {}).items():
        doses = " and ".join(str(pairing[side]["dose_e_per_A2"]) for side in "ab")
        lines.append((f"pairing {name}", f"{about['patches_of_pairing'].get(name, 0)} patches, doses {doses} e⁻/Å²"
                      + (": the halves" if pairing["halves"] else "")))  # fmt: skip
    for side in "ab":
        group = manifest["groups"][side]
        frames, number, dose = (
            "unknown or differ" if group[key] is None else group[key] for key in ("which", "n_frames", "dose_e_per_A2")
        )
        lines.append((f"half {side}", f"frames {frames} (number: {number}), dose {dose} e⁻/Å², "
                      f"noise variance {about['noise_var_median'][side]:.3f}"))  # fmt: skip
    lines += [
        ("alignment", ", ".join(about["alignment"])),
        ("halves by", ", ".join(about["producers"])),
        ("shards by", f"{manifest['producer']}, code {manifest.get('code')}"),
        ("split", ", ".join(f"{len(names)} {group}" for group, names in manifest["split"].items())),
        *((f"array {side}", f"{a['file']}, sha256 {a['sha256']}") for side, a in manifest["arrays"].items()),
    ]
    columns = ["micrograph", "patches", "left out", *(f"{key} {side}" for side in "ab" for key in UNITS)]
    rows = [columns] + [
        [m["micrograph"], str(m["patches"]), str(len(m["left_out"]))]
        + [f"{m[side][key]:.6g}" for side in "ab" for key in UNITS]
        for m in manifest["micrographs"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([str(path), *(f"  {name:12} {text}" for name, text in lines), "", *table]) + "\n"


# ---------------------------------------------------------------------------- export


def parse_patches(text: str, n: int) -> list[int]:
    """Return the numbers that a text such as ``0-15,20`` names, of `n` patches counted from 0."""
    chosen: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < n:
            raise InputError(f"--patches {text!r}: wanted numbers and ranges from 0 to {n - 1}, such as 0-15,20")
        chosen += range(first, last + 1)
    return chosen


def export(path: Path, out: Path, form: str, chosen: list[int] | None = None) -> list[Path]:
    """Write patches as stacks that other programs read, one for each half, and a table of what they are.

    Parameters
    ----------
    path : Path
        The manifest.
    out : Path
        Folder; gets ``a.npy`` and ``b.npy`` (float16), or ``a.mrcs`` and ``b.mrcs`` (float32, with the pixel
        size), and ``patches.tsv``.  Values are in normalised units.
    form : str
        ``npy`` or ``mrc``.
    chosen : list of int, optional
        Numbers of the patches.  Default: all.

    Returns
    -------
    written : list of Path

    Raises
    ------
    InputError
        A patch has not its checksum.
    """
    manifest = shards.read_manifest(path)
    chosen = list(range(manifest["shape"][0])) if chosen is None else chosen
    written = []
    for side in "ab":
        patches = _checked(path, manifest, side, chosen)
        target = out / f"{side}.{'npy' if form == 'npy' else 'mrcs'}"
        with files.atomic_path(target) as temporary:
            if form == "npy":
                _write_npy(temporary, patches, (len(chosen), *manifest["shape"][1:]))
            else:
                _write_mrc(temporary, patches, (len(chosen), *manifest["shape"][1:]), manifest["pixel_size_A"], side)
        written.append(target)
    rows = [{"image": i, "patch": k, **manifest["patches"][k]} for i, k in enumerate(chosen)]
    columns = PATCH_COLUMNS + (["pairing"] if "pairings" in manifest else [])
    files.write_table(out / "patches.tsv", rows, columns)
    return [*written, out / "patches.tsv"]


def _checked(path: Path, manifest: dict[str, Any], side: str, chosen: Iterable[int]) -> Iterator[np.ndarray]:
    array = shards.open_array(path, manifest, side)
    for k in chosen:
        if shards.crc32(array[k]) != manifest["patches"][k][f"crc32_{side}"]:
            raise InputError(f"{array.filename}: {shards.patch_name(manifest, k)} is damaged; {shards.AGAIN}")
        yield array[k]


def _write_npy(path: Path, patches: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    stack = np.lib.format.open_memmap(path, "w+", shards.DTYPE, shape)
    for image, patch in zip(stack, patches, strict=True):
        image[...] = patch
    stack.flush()


def _write_mrc(path: Path, patches: Iterable[np.ndarray], shape: tuple[int, ...], pixel_size: float, side: str) -> None:
    """Write a stack as float32: few programs read MRC's mode 12, which is float16."""
    with mrcfile.new_mmap(path, shape, mrc_mode=2, overwrite=True) as mrc:
        for image, patch in zip(mrc.data, patches, strict=True):
            image[...] = patch
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size
        mrc.update_header_stats()
        mrc.header.label[0] = f"cryon2n {__version__} patches of half {side}, normalised"[:80].encode()
        mrc.header.nlabl = 1


# ---------------------------------------------------------------------------- commands


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="verify|info|export")
    check = actions.add_parser("verify", help="read every byte and name all that differs")
    info = actions.add_parser("info", help="what the shards are")
    out = actions.add_parser("export", help="stacks of patches for other programs")
    for action in (check, info, out):
        action.add_argument("manifest", type=Path, help="manifest.json of the shards")
    info.add_argument("--json", action="store_true", help="for programs")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the stacks and patches.tsv")
    out.add_argument("--format", choices=["npy", "mrc"], default="npy", help="default: %(default)s")
    out.add_argument("--patches", metavar="0-15,20", help="numbers from 0 (default: all)")


def _run(args: argparse.Namespace) -> None:
    sys.stdout.reconfigure(errors="replace")  # a terminal's encoding may lack Å
    if args.action == "verify":
        found = verify(args.manifest)
        sys.stdout.write("".join(f"{sentence}\n" for sentence in found))
        if found:
            number = f"{len(found)} difference{'s' * (len(found) > 1)}"
            raise InputError(f"{args.manifest}: {number}; copy the shards again, or {shards.AGAIN}")
        n, p, _ = shards.read_manifest(args.manifest)["shape"]
        log.say(f"{args.manifest}: all {n} patches of {p} x {p} px in both halves are as they were written")
    elif args.action == "info":
        manifest = shards.read_manifest(args.manifest, arrays=False)
        text = info_text(args.manifest, manifest)
        sys.stdout.write(json.dumps(summary(manifest), indent=1) + "\n" if args.json else text)
    else:
        n = shards.read_manifest(args.manifest)["shape"][0]
        chosen = None if args.patches is None else parse_patches(args.patches, n)
        for path in export(args.manifest, args.out, args.format, chosen):
            log.say(f"{path} is written")


COMMANDS = {"shards": (_add_arguments, _run)}
