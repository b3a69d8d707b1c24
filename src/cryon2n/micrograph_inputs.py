"""Which micrographs the user means: files, globs, folders, and the tables of RELION and cryoSPARC."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cryon2n.errors import InputError
from cryon2n.micrograph_image import ENDINGS, MicrographImage, MrcFields, is_micrograph_name, read
from cryon2n.micrograph_tables import TABLES, Micrograph, read_table
from cryon2n.names import bare_name
from cryon2n.pair_sheet import side_by_name

__all__ = ["Micrograph", "MicrographImage", "MrcFields", "find", "read"]

RELION_STARS = ("micrographs.star", "corrected_micrographs.star", "micrographs_ctf.star")
SIDES = ("even", "odd")  # a and b: RELION's and Warp's even half holds the first frame
LONGEST = 160  # characters of a name; endings are added to it


def find(sources: Sequence[str | Path]) -> list[Micrograph]:
    """Find micrographs, each once, in the order of the sources.

    Parameters
    ----------
    sources : sequence of str or path
        MRC or TIFF files, globs, folders (of images, of a RELION, cryoSPARC or Warp job), STAR and ``.cs`` files.

    Returns
    -------
    list of Micrograph
        A source that is at fault, beside others that are not, is a micrograph that `read` will refuse.

    Raises
    ------
    InputError
        There is none; or two cannot be told apart by their names.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else sources
    entries: list[Micrograph] = []
    plain: list[Path] = []
    faults: list[InputError] = []
    good = 0
    for source in sources:
        try:
            found, images = _look(str(source))
            good += 1
        except InputError as error:
            faults.append(error)
            found, images = [_single(Path(source))], []
        entries += found
        plain += images
    if faults and not good:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")
    folders = _Folders()
    entries = _once([_with_halves(entry, folders) for entry in entries] + _paired(_without_spectra(plain), folders))
    if not entries:
        raise InputError("no micrographs were given; wanted files, folders, or a STAR or .cs file")
    return [replace(entry, name=name) for name, entry in zip(_names(entries), entries, strict=True)]


def _look(source: str) -> tuple[list[Micrograph], list[Path]]:
    """Return what a source names: micrographs that are known already, and images that are still to be paired."""
    path = Path(source)
    if os.path.isdir(path):
        return _folder(path)
    if path.suffix.lower() in TABLES:
        if os.path.isfile(path) or not glob.has_magic(source):
            return read_table(path), []
    elif os.path.isfile(path):
        return [], [path]
    if not glob.has_magic(source):
        raise InputError(f"{path}: is not there; wanted a micrograph, a folder, or a STAR or .cs file")
    matches = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
    images = [match for match in matches if is_micrograph_name(match.name) and match.is_file()]
    tables = [match for match in matches if match.suffix.lower() in TABLES and match.is_file()]
    if not images and not tables:
        raise InputError(f"{source}: fits no micrograph; put the names right")
    return [entry for table in tables for entry in read_table(table)] if not images else [], images


def _folder(folder: Path) -> tuple[list[Micrograph], list[Path]]:
    """Find the micrographs in a folder; see `_look`."""
    for name in RELION_STARS:
        if (folder / name).is_file():
            return read_table(folder / name), []
    average = folder / "average"  # Warp's
    base = average if average.is_dir() else folder
    if images := [image for part in (base, *(base / side for side in SIDES)) for image in _images(part.glob("*"))]:
        return [], images
    tables = []
    for path in sorted(folder.glob("*.cs")):
        try:
            tables.append((path, read_table(path)))
        except InputError:
            continue  # of particles, volumes …
    if len(tables) > 1:
        raise InputError(f"{folder}: {' and '.join(t.name for t, _ in tables)} name micrographs; give one of them")
    if tables:
        return tables[0][1], []
    if images := _images(folder.rglob("*")):
        return [], images
    raise InputError(f"{folder}: holds no micrographs; wanted MRC or TIFF files")


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if is_micrograph_name(p.name) and not p.name.startswith(".") and p.is_file())


def _single(path: Path) -> Micrograph:
    return Micrograph(bare_name(path.name), path, None, None, None, str(path))


# ---------------------------------------------------------------------------- halves


class _Folders:
    """What lies in folders; each is listed once, because a look at every possible name takes minutes over a network."""

    def __init__(self) -> None:
        self.names: dict[Path, set[str]] = {}

    def images(self, folder: Path, name: str) -> list[Path]:
        """Return the images of a name in a folder."""
        if folder not in self.names:
            try:
                self.names[folder] = set(os.listdir(folder))
            except (OSError, ValueError):
                self.names[folder] = set()
        return [folder / f"{name}{ending}" for ending in ENDINGS if f"{name}{ending}" in self.names[folder]]


def _without_spectra(images: Sequence[Path]) -> list[Path]:
    """Leave out the power spectra that RELION writes beside its micrographs, as ``NAME_PS.mrc``."""
    known = {(p.parent, bare_name(p.name)) for p in images}
    return [
        p
        for p in images
        if not (name := bare_name(p.name)).endswith("_PS") or (p.parent, name.removesuffix("_PS")) not in known
    ]


def _side(path: Path) -> tuple[tuple[Path, str], str | None]:
    """Return the place and name of a micrograph and which of its halves a file is, by its name."""
    name, side = side_by_name(path.with_name(f"{bare_name(path.name)}.mrc"))
    in_folder = side is not None and path.parent.name.lower() == side
    return (path.parent.parent if in_folder else path.parent, name), side


def _paired(images: Sequence[Path], folders: _Folders) -> list[Micrograph]:
    """Put halves together by their names; a half without its partner is a micrograph of its own."""
    groups: dict[tuple[Path, str], dict[str | None, Path]] = {}
    known = {(p.parent, bare_name(p.name)): p for p in images}
    for path in images:
        key, side = _side(path)
        match = re.fullmatch(r"(.+)_([abAB])", key[1]) if side is None else None
        if match and all((key[0], f"{match[1]}_{letter}") in known for letter in _letters(match[2])):
            key, side = (key[0], match[1]), SIDES["ab".index(match[2].lower())]
        group = groups.setdefault(key, {})
        if side in group and group[side] != path:  # the same name with two endings
            key = (path, "")
            group = groups.setdefault(key, {})
        group[side] = path
    entries = []
    for (folder, name), group in groups.items():
        a, b = (group.get(side) for side in SIDES)
        if a is None or b is None:
            entries += [_with_halves(_single(path), folders) for path in group.values()]
        else:
            full = group.get(None) or next((p for p in folders.images(folder, name) if p not in (a, b)), None)
            entries.append(Micrograph(name, full, a, b, None, str(full or a)))
    return entries


def _letters(letter: str) -> str:
    return "ab" if letter.islower() else "AB"


def _with_halves(entry: Micrograph, folders: _Folders) -> Micrograph:
    """Add the halves that lie beside a whole exposure, under the names that RELION, MotionCor3 and Warp give."""
    if entry.full is None or entry.a is not None or _side(entry.full)[1] is not None:
        return entry
    name, folder = bare_name(entry.full.name), entry.full.parent
    for first, second in (("_EVN", "_ODD"), ("_even", "_odd")):
        a, b = (next(iter(folders.images(folder, name + end)), None) for end in (first, second))
        if a and b:
            return replace(entry, a=a, b=b)
    a, b = (next(iter(folders.images(folder / side, name)), None) for side in SIDES)
    return replace(entry, a=a, b=b) if a and b else entry


# ---------------------------------------------------------------------------- names


def _once(entries: Sequence[Micrograph]) -> list[Micrograph]:
    """Leave out what is named again; what a table says of it stays."""
    found: dict[tuple[str, ...], Micrograph] = {}
    for entry in entries:
        key = (os.path.abspath(entry.full or entry.a),)
        if key not in found or (entry.optics and not found[key].optics):
            found[key] = entry
    return list(found.values())


def _names(entries: Sequence[Micrograph]) -> list[str]:
    """Return safe names, each another: the micrograph's own, where that is not enough with its folders' before it."""
    places = [(entry.full or entry.a).absolute() for entry in entries]
    beside = Counter((place.parent, entry.name) for place, entry in zip(places, entries, strict=True))
    own = [
        entry.name if beside[place.parent, entry.name] == 1 or place.suffix == ".mrc" else place.name
        for place, entry in zip(places, entries, strict=True)
    ]
    names = [_safe(name) for name in own]
    for depth in range(2, 2 + max(len(place.parts) for place in places)):
        count = Counter(names)
        if len(count) == len(names):
            return names
        names = [
            _safe("_".join((*place.parts[-depth:-1], stem))) if count[name] > 1 else name
            for name, place, stem in zip(names, places, own, strict=True)
        ]
    first, second = [place for place, name in zip(places, names, strict=True) if count[name] > 1][:2]
    raise InputError(f"{first} and {second}: their results would have one name; denoise them into two folders")


def _safe(name: str) -> str:
    """Return a name that can be a file name and a STAR file's text."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]", "_", name).replace("..", "__")
    return plain.lstrip(".+-")[-LONGEST:] or "micrograph"
