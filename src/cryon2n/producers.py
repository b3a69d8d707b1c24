"""What each program leaves in its folder: which files are the halves of which micrograph, and what is in them.

Every finder takes a folder and gives the pairs, found by name or by the program's own tables, never by
order.  In all of them a is the half that holds the first frame: RELION, AreTomo3 and Warp call it even,
MotionCor3 calls it odd.  Facts and their sources: ``docs/other-programs.md``.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryon2n import mrcio
from cryon2n.errors import InputError
from cryon2n.pair_sheet import PairRow, check_names
from cryon2n.producer_files import (
    cs_text,
    motioncor_frames,
    read_cs,
    read_star,
    relion_frames,
    warp_frames,
    warp_settings,
)

SUM_TOLERANCE = 0.02  # standard deviations: a + b equals the program's own sum


@dataclass(frozen=True)
class Known:
    """What the user says that the files do not.

    Attributes
    ----------
    pixel_size_A : float or None
        Å.
    frames : int or None
        Frames summed, of every movie.
    columns : (str, str) or None
        cryoSPARC: names of the two slots that hold the halves.
    """

    pixel_size_A: float | None = None
    frames: int | None = None
    columns: tuple[str, str] | None = None


def with_frames(row: PairRow, first: int, n: int | None) -> PairRow:
    """Fill in the frames of a pair of interleaved halves, of which a has the first.

    Parameters
    ----------
    row : PairRow
    first : int
        Number of the first frame summed, from 0.
    n : int or None
        How many were summed, in both halves together.
    """
    stop = "" if n is None else first + n
    counts = (None, None) if n is None else ((n + 1) // 2, n // 2)
    return dataclasses.replace(
        row,
        which_a=f"{first}:{stop}:2",
        which_b=f"{first + 1}:{stop}:2",
        frames_a=counts[0],
        frames_b=counts[1],
    )


def pair_files(firsts: dict[str, Path], seconds: dict[str, Path], folder: Path, hint: str) -> dict[str, PairRow]:
    """Pair two sets of files by their keys; none at all, or one without its partner, raises `InputError`.

    Parameters
    ----------
    firsts, seconds : dict
        Key of the micrograph to the file that will be a, and b.
    folder : Path
    hint : str
        How the program is told to write halves.
    """
    if not firsts and not seconds:
        raise InputError(f"{folder}: holds no halves; {hint}")
    lonely = sorted(firsts.keys() ^ seconds.keys())
    if lonely:
        path = (firsts | seconds)[lonely[0]]
        raise InputError(
            f"{path}: has no other half (and {len(lonely) - 1} more in {folder}); let the program end, or {hint}"
        )
    names: dict[str, str] = {}
    for key in firsts:
        name = Path(key).name
        if name in names:
            raise InputError(f"{folder}: {names[name]} and {key} have one name; import their folders one by one")
        names[name] = key
    return {key: PairRow(Path(key).name, str(firsts[key]), str(seconds[key])) for key in sorted(firsts)}


def by_suffix(folder: Path, suffix: str) -> dict[str, Path]:
    """Find the MRC files below a folder whose names end in `suffix`; the key is the path without it."""
    found = (p for p in folder.rglob(f"*{suffix}.mrc") if p.is_file())
    return {str(p.relative_to(folder))[: -len(f"{suffix}.mrc")]: p for p in found}


def sums_to(row: PairRow, path: Path) -> bool:
    """Tell whether a + b is the image in `path`; False too where that is missing or another shape."""
    if not path.is_file():
        return False
    (a, _), (b, _), (total, _) = (mrcio.read_mrc(p) for p in (row.a, row.b, path))
    if not a.shape == b.shape == total.shape:
        return False
    # Some programs cut negative pixels off, others round to 16 bits: most pixels, not all.
    return bool((np.abs(a + b - total) < SUM_TOLERANCE * total.std()).mean() > 0.99)


def weighted_by_sum(row: PairRow, plain: Iterable[Path], weighted: Iterable[Path]) -> bool | None:
    """Tell dose weighting from the program's own sums: a + b is one of `plain`, or of `weighted`."""
    for paths, answer in ((plain, False), (weighted, True)):
        if any(sums_to(row, path) for path in paths):
            return answer
    return None


# ---------------------------------------------------------------------------- RELION


def find_relion(folder: Path, known: Known) -> list[PairRow]:
    """RELION's own motion correction: ``_EVN`` holds the 1st, 3rd … frame summed; never weighted by dose."""
    hint = "run relion_run_motioncorr --use_own --even_odd_split, with --save_noDW where it weights by dose"
    note = folder / "note.txt"
    if note.is_file() and "--use_motioncor2" in note.read_text(errors="replace"):
        raise InputError(f"{note}: this job ran MotionCor, which names its halves otherwise; take --from motioncor3")
    pairs = pair_files(by_suffix(folder, "_EVN"), by_suffix(folder, "_ODD"), folder, hint)
    sizes = _relion_pixel_sizes(folder, pairs, hint)
    rows = []
    for key, row in pairs.items():
        star = folder / f"{key}.star"
        frames = relion_frames(star) if star.is_file() else None
        first, n = frames or (0, known.frames)
        row = dataclasses.replace(
            row, dose_weighted=False, alignment="joint", pixel_size_A=known.pixel_size_A or sizes.get(key)
        )
        rows.append(with_frames(row, first, n))
    return rows


def _relion_pixel_sizes(folder: Path, pairs: dict[str, PairRow], hint: str) -> dict[str, float]:
    """Read pixel sizes from corrected_micrographs.star, and check that every micrograph in it has its halves."""
    star = folder / "corrected_micrographs.star"
    if not star.is_file():
        return {}
    blocks = read_star(star)
    groups = {row.get("rlnOpticsGroup"): row.get("rlnMicrographPixelSize") for row in blocks.get("optics", [])}
    sizes = {}
    for row in blocks.get("micrographs", []):
        # Names start at the project's folder: MotionCorr/job002/Movies/x.mrc.
        parts = Path(row.get("rlnMicrographName", "")).with_suffix("").parts
        key = next((k for i in range(len(parts)) if (k := str(Path(*parts[i:]))) in pairs), None)
        if key is None:
            raise InputError(f"{star}: {row.get('rlnMicrographName')} has no halves in {folder}; {hint}")
        size = groups.get(row.get("rlnOpticsGroup"))
        try:
            if size is not None:
                sizes[key] = float(size)
        except ValueError:
            raise InputError(f"{star}: rlnMicrographPixelSize is {size!r}, wanted Å") from None
    return sizes


# ---------------------------------------------------------------------------- MotionCor3


def find_motioncor3(folder: Path, known: Known) -> list[PairRow]:
    """MotionCor3 ``-SplitSum 1``: ``_ODD`` holds the 1st, 3rd … frame summed; weighted by dose with ``-FmDose``."""
    hint = "run MotionCor3 -SplitSum 1 without -FmDose"
    pairs = pair_files(by_suffix(folder, "_ODD"), by_suffix(folder, "_EVN"), folder, hint)
    logs = {p.stem: p for p in folder.rglob("*.aln")}
    key, first_row = next(iter(pairs.items()))
    weighted = weighted_by_sum(first_row, [folder / f"{key}.mrc"], [folder / f"{key}_DW.mrc"])
    rows = []
    for row in pairs.values():
        # The log has the movie's name, the image that name after the prefix of -OutMrc.
        log = max((name for name in logs if row.micrograph.endswith(name)), key=len, default=None)
        first, n = (motioncor_frames(logs[log]) if log else None) or (0, known.frames)
        row = dataclasses.replace(row, dose_weighted=weighted, alignment="joint", pixel_size_A=known.pixel_size_A)
        rows.append(with_frames(row, first, n))
    return rows


# ---------------------------------------------------------------------------- AreTomo3


def find_aretomo3(folder: Path, known: Known) -> list[PairRow]:
    """AreTomo3: stacks of tilts, ``_EVN`` with the 1st, 3rd … frame of each; the tilts are not weighted by dose."""
    hint = "run AreTomo3 -SplitSum 1"
    pairs = pair_files(by_suffix(folder, "_EVN"), by_suffix(folder, "_ODD"), folder, hint)
    rows = []
    for row in pairs.values():
        shapes = []
        for path in (row.a, row.b):
            with mrcio.open_mrc(path) as mrc:
                shapes.append(mrc.data.shape)
        if shapes[0] != shapes[1]:
            raise InputError(f"{row.a} has shape {shapes[0]} but {row.b} {shapes[1]}; wanted two equal stacks")
        row = dataclasses.replace(row, dose_weighted=False, alignment="joint", pixel_size_A=known.pixel_size_A)
        row = with_frames(row, 0, known.frames)
        sections = range(shapes[0][0]) if len(shapes[0]) == 3 else [None]
        for section in sections:
            name = row.micrograph if section is None else f"{row.micrograph}_{section:03d}"
            rows.append(dataclasses.replace(row, micrograph=name, section=section))
    return rows


# ---------------------------------------------------------------------------- Warp


def find_warp(folder: Path, known: Known) -> list[PairRow]:
    """Warp and WarpTools: ``average/even`` holds the 1st, 3rd … frame summed; weighted by dose unless that is 0."""
    hint = "run WarpTools fs_motion_and_ctf --out_averages --out_average_halves"
    average = folder / "average" if (folder / "average").is_dir() else folder
    sides = [
        {p.name.removesuffix(".mrc"): p for p in (average / side).glob("*.mrc") if p.is_file()}
        for side in ("even", "odd")
    ]
    rows = []
    for name, row in pair_files(sides[0], sides[1], average, hint).items():
        xml, log = average.parent / f"{name}.xml", average.parent / "logs" / f"{name}.log"
        settings = warp_settings(xml) if xml.is_file() else {}
        skipped = int(settings.get("SkipFirstN", 0)), int(settings.get("SkipLastN", 0))
        n = warp_frames(log) if log.is_file() else None
        n = known.frames if n is None else n - sum(skipped)
        dose = settings.get("DosePerAngstromFrame")
        row = dataclasses.replace(
            row,
            dose_weighted=None if dose is None else dose != 0,
            alignment="joint",
            pixel_size_A=known.pixel_size_A,
        )
        rows.append(with_frames(row, skipped[0], n))
    return rows


# ---------------------------------------------------------------------------- CryoCRAB


def find_cryocrab(folder: Path, known: Known) -> list[PairRow]:
    """CryoCRAB: ``_full`` is even + odd, ``_diff`` even - odd, both float16; weighted by dose."""
    full, diff = (by_suffix(folder, suffix) for suffix in ("_full", "_diff"))
    if not full and not diff and any(folder.rglob("*.h5")):
        raise InputError(
            f"{folder}: holds only HDF5 files, whose halves are binned to 3 Å, multiplied by the CTF and clipped; "
            "wanted CryoCRAB's MRC pairs, *_full.mrc and *_diff.mrc"
        )
    pairs = pair_files(full, diff, folder, "get CryoCRAB's MRC pairs, *_full.mrc and *_diff.mrc")
    counts = (None, None) if known.frames is None else ((known.frames + 1) // 2, known.frames // 2)
    return [
        dataclasses.replace(
            row,
            form="full-diff",
            dose_weighted=True,
            pixel_size_A=known.pixel_size_A,
            frames_a=counts[0],
            frames_b=counts[1],
        )
        for row in pairs.values()
    ]


# ---------------------------------------------------------------------------- cryoSPARC


def find_cryosparc(folder: Path, known: Known) -> list[PairRow]:
    """Halves in the exposures of a cryoSPARC job: two slots of its ``.cs`` file, one row for each exposure."""
    slots: set[str] = set()
    for path in sorted(folder.glob("*.cs")):
        table = read_cs(path)
        here = {name.removesuffix("/path") for name in table.dtype.names if name.endswith("/path")}
        slots |= here
        columns = known.columns or half_slots(here)
        if columns and here.issuperset(columns):
            return [_cryosparc_row(row, columns, folder, path, known) for row in table]
    raise InputError(
        f"{folder}: no .cs file there names halves; say which two of its slots hold them with --columns A B "
        f"(found: {', '.join(sorted(slots)) or 'none'})"
    )


def half_slots(slots: set[str]) -> tuple[str, str] | None:
    """Return the two slots whose names differ only in their endings A and B, or even and odd."""
    found = [
        (slot, slot[: -len(one)] + two)
        for one, two in (("_A", "_B"), ("_a", "_b"), ("_even", "_odd"))
        for slot in sorted(slots)
        if slot.endswith(one) and slot[: -len(one)] + two in slots
    ]
    return found[0] if len(found) == 1 else None


def _cryosparc_row(row: np.void, columns: tuple[str, str], folder: Path, where: Path, known: Known) -> PairRow:
    paths = [cs_text(row[f"{slot}/path"]).lstrip(">") for slot in columns]
    # Paths start at the project's folder, which holds the job's.
    found = [next((p for base in (folder.parent, folder) if (p := base / path).is_file()), None) for path in paths]
    if None in found:
        raise InputError(f"{where}: names {paths[found.index(None)]}, which is not below {folder.parent}")
    size = f"{columns[0]}/psize_A"
    name = re.sub(r"_?(even|odd|[ab])$", "", Path(paths[0]).stem, flags=re.IGNORECASE)
    counts = (None, None) if known.frames is None else ((known.frames + 1) // 2, known.frames // 2)
    return PairRow(
        name,
        str(found[0]),
        str(found[1]),
        known.pixel_size_A or (float(row[size]) if size in row.dtype.names else None),
        *counts,
    )


FINDERS: dict[str, Callable[[Path, Known], list[PairRow]]] = {
    "relion": find_relion,
    "motioncor3": find_motioncor3,
    "aretomo3": find_aretomo3,
    "warp": find_warp,
    "cryocrab": find_cryocrab,
    "cryosparc": find_cryosparc,
}


def find_pairs(folder: Path, producer: str, known: Known) -> list[PairRow]:
    """Find the pairs that `producer` (a key of `FINDERS`) left in `folder`; none raises `InputError`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted the one that {producer} wrote")
    rows = [dataclasses.replace(row, producer=producer) for row in FINDERS[producer](folder, known)]
    for row in rows:
        check_names(row)
    names = [row.micrograph for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{folder}: several pairs are named {twice[0]}; import their folders one by one")
    return rows
