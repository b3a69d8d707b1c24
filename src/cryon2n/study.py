"""What a config asks for: micrographs, their split, and where each comes from.

The workflow builds its whole graph from `read_study`: from the config and its sheets alone, never
from the network.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryon2n import files, movie_sheet, names
from cryon2n.errors import InputError
from cryon2n.folds import split_folds, split_names
from cryon2n.frame_range import FrameRange, parse_frame_range
from cryon2n.methods import BUILT_IN, EIGHTFOLD
from cryon2n.movie_header import MOVIE_ENDINGS, Geometry, movie_ending
from cryon2n.outside import split_command
from cryon2n.pair_sheet import import_arguments, read_pair_sheet

MRC_ENDINGS = (".mrc", ".mrcs")
REFERENCE_ENDING = re.compile(r"\.(mrcs?(\.gz|\.bz2)?|tiff?|gain|dm3|dm4)$", re.IGNORECASE)


@dataclass(frozen=True)
class Study:
    """What a config asks for.

    Attributes
    ----------
    micrographs : tuple of str
        Names, in the order of the sheet.
    folds : dict
        By fold, its split: ``train``, ``val``, ``test``, each a list of names.  The fold's name is that of its
        folder: ``fold-1/`` and so on where the study is cross-validated, else the only one, an empty text.
    sources : dict
        Per micrograph, where it comes from: ``archive_path``, ``known`` (arguments of fetch-movie) and
        ``bytes``; or ``path``; or ``a``, ``b`` and ``about`` (arguments of
        import-halves).  Movies have an ``ending``, that of their file.
    references : dict
        ``gain`` and ``dark``, where the source has one: ``archive_path`` or ``path``, and ``ending``.
    geometry : Geometry or None
        Of the raw movies as they will lie on the disk, where a sheet of an archive's movies tells.
    share : float
        Of the exposure's frames, how much is fetched.
    """

    micrographs: tuple[str, ...]
    folds: dict[str, dict[str, list[str]]]
    sources: dict[str, dict[str, Any]]
    references: dict[str, Any]
    geometry: Geometry | None = None
    share: float = 1.0

    @property
    def test(self) -> list[str]:
        """The micrographs on which everything is scored, in the order of the sheet."""
        tested = {name for split in self.folds.values() for name in split["test"]}
        return [name for name in self.micrographs if name in tested]

    def fold_of(self, micrograph: str) -> str:
        """Return the fold that tests a micrograph; of one that none tests, the first."""
        return next((fold for fold, split in self.folds.items() if micrograph in split["test"]), next(iter(self.folds)))


def read_study(config: dict[str, Any]) -> Study:
    """Read the sheets that a validated config names."""
    _check_methods(config)
    source = config["source"]
    kind, n = source["kind"], source["n_micrographs"]
    references: dict[str, Any] = {}
    archive: dict[str, Any] = {}
    if source["frames"] and kind != "empiar":
        raise InputError(f"config: source: frames is for kind empiar, found kind {kind}; leave it out")
    if kind == "phantom":
        if n is None:
            raise InputError("config: source: n_micrographs is missing; wanted the number of movies to simulate")
        sources: dict[str, dict[str, Any]] = {f"phantom_{i:04d}": {"ending": ".mrc"} for i in range(1, n + 1)}
    elif kind == "empiar":
        sources, references, archive = _empiar_sources(source)
    elif kind == "movies":
        sources = _movie_sources(source)
        references = {
            k: {"path": source[k], "ending": reference_ending(source[k])} for k in ("gain", "dark") if source[k]
        }
    else:
        sources = _pair_sources(source)
    if n is not None and n > len(sources):
        hint = (
            f"; write a longer one: cryon2n empiar sheet {source['empiar']['entry']} --movies {n} "
            f"--out {source['sheet']}"
            if kind == "empiar"
            else ""
        )
        raise InputError(f"{source['sheet']}: lists {len(sources)} micrographs, n_micrographs asks for {n}{hint}")
    names = tuple(sources)[:n]
    wanted = config["split"]
    folds = split_folds(names, wanted) if wanted["folds"] else {"": split_names(names, wanted)}
    return Study(names, folds, {k: sources[k] for k in names}, references, **archive)


def all_methods(config: dict[str, Any]) -> list[str]:
    """Return the methods that a validated config compares: those of ``compare: methods``, then those from outside."""
    compare = config["compare"]
    return list(dict.fromkeys([*compare["methods"], *compare["outside"]]))


def _check_methods(config: dict[str, Any]) -> None:
    models, compare = list(config["models"]), config["compare"]
    taken = [name for name in models if name in BUILT_IN or name == "topaz-env"]
    if taken:
        raise InputError(f"config: models: {', '.join(taken)} is the name of a built-in method; choose another")
    if odd := [name for name in (*models, *compare["outside"]) if name.endswith(EIGHTFOLD)]:
        raise InputError(
            f"config: {odd[0]}: names that end in {EIGHTFOLD} are those of models' means over the 8 symmetries; "
            "choose another"
        )
    taken = [name for name in compare["outside"] if name in BUILT_IN or name in models]
    if taken:
        raise InputError(f"config: compare: outside: {', '.join(taken)} is the name of another method; choose another")
    for about in compare["outside"].values():
        if "command" in about:
            split_command(about["command"])
    known = [*BUILT_IN, *models, *(f"{name}{EIGHTFOLD}" for name in models), *compare["outside"]]
    unknown = [name for name in compare["methods"] if name not in known]
    if unknown:
        raise InputError(
            f"config: compare: methods: unknown method {', '.join(unknown)}; wanted some of {', '.join(known)}"
        )
    methods = all_methods(config)
    if compare["reference"] not in methods:
        raise InputError(
            f"config: compare: reference: found {compare['reference']}, wanted one of compare: methods "
            f"({', '.join(methods)})"
        )


def _sheet(source: dict[str, Any]) -> str:
    if not source["sheet"]:
        raise InputError(f"config: source: sheet is missing; kind {source['kind']!r} wants a sheet (config/README.md)")
    return str(source["sheet"])


def _empiar_sources(source: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Give sources, references, and what is known of all movies together (`geometry`, `share`)."""
    about = source["empiar"]
    keep = parse_frame_range(source["frames"]) if source["frames"] else None
    rows = movie_sheet.read_sheet(_sheet(source))

    sources = {}
    for row in rows:
        known = [f"--size {row.size or '-'} --sha256 {row.sha256 or '-'}"]
        frames, h, w, data_type = (value or "-" for value in dataclasses.astuple(row.geometry))
        known.append(f"--frames {frames} --shape {h} {w} --data-type {data_type}")
        if keep:
            known.append(f"--keep-frames {keep}")
        ending = movie_ending(row.path)
        if ending is None or (keep and ending not in MRC_ENDINGS):
            wanted = "an uncompressed MRC movie, whose frames can be fetched alone" if keep else "a movie"
            raise InputError(f"{source['sheet']}: {row.path} is not {wanted}; correct the sheet, or source: frames")
        sources[row.micrograph] = {
            "archive_path": movie_sheet.archive_path(about["entry"], row),
            "known": " ".join(known),
            "ending": stored_ending(ending),
            "bytes": _stored_bytes(row, keep),
        }
    references = {
        k: {
            "archive_path": movie_sheet.archive_path(about["entry"], movie_sheet.MovieRow(k, source[k])),
            "ending": reference_ending(source[k]),
        }
        for k in ("gain", "dark")
        if source[k]
    }
    geometry, share = rows[0].geometry, 1.0
    if keep:
        frames = {row.geometry.frames for row in rows}
        if len(frames) > 1 or None in frames or keep.last >= min(frames):
            raise InputError(
                f"{source['sheet']}: source: frames {keep} wants movies of one known number of frames, more than "
                f"{keep.last}; found {', '.join(sorted(map(str, frames)))} (cryon2n empiar sheet writes them)"
            )
        share = keep.n / rows[0].geometry.frames
        geometry = dataclasses.replace(geometry, frames=keep.n)
    return sources, references, {"geometry": geometry, "share": share}


def _stored_bytes(row: movie_sheet.MovieRow, keep: FrameRange | None) -> int | None:
    """Return the bytes that a movie will take on the disk (of a range of frames: about)."""
    if keep is None or row.size is None or not row.geometry.frames:
        return row.size if keep is None else None
    return row.size * keep.n // row.geometry.frames


def reference_ending(path: str) -> str:
    """Return the ending of a reference's file: its format, which it keeps under ``data/``."""
    match = REFERENCE_ENDING.search(path)
    if not match:
        raise InputError(f"config: source: gain or dark: {path} is no reference; wanted MRC, TIFF, .gain, DM3 or DM4")
    return match[0].lower()


def stored_ending(ending: str) -> str:
    """Return the ending under which a movie lies in ``data/``: both of MRC's are one."""
    return ".mrc" if ending in MRC_ENDINGS else ending


def _movie_sources(source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Movies of a sheet (columns micrograph, path), or all movies of a folder."""
    where = Path(_sheet(source))
    if where.is_dir():
        paths = sorted(p for p in where.iterdir() if movie_ending(p.name) and not movie_sheet.reference_kind(p.name))
        if not paths:
            raise InputError(f"{where}: holds no movies; wanted files that end in {', '.join(MOVIE_ENDINGS)}")
        found = {names.micrograph_name(p.name): p for p in paths}
        if len(found) < len(paths):
            raise InputError(f"{where}: holds several movies of one name; say in a sheet which to take")
    else:
        rows = files.read_table(where, ("micrograph", "path"))
        found = {row["micrograph"]: where.parent / row["path"] for row in rows}
        if len(found) < len(rows):
            raise InputError(f"{where}: a micrograph's name stands there twice; give each its own")
    unsafe = [name for name in found if not names.is_safe_name(name)]
    if unsafe:
        raise InputError(f"{where}: {unsafe[0]!r} cannot name a micrograph; wanted letters, digits and _ . + - only")
    odd = [p for p in found.values() if not movie_ending(p.name)]
    if odd:
        raise InputError(f"{where}: {odd[0]} is no movie; wanted a file that ends in {', '.join(MOVIE_ENDINGS)}")
    return {name: {"path": str(p), "ending": stored_ending(movie_ending(p.name))} for name, p in found.items()}


def _pair_sources(source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sheet = Path(_sheet(source))
    root = Path(source["folder"]) if source["folder"] else sheet.parent
    return {
        row.micrograph: {
            "a": str(root / row.a),
            "b": str(root / row.b),
            "about": f"{import_arguments(row)} --units {source['units']}".strip(),
        }
        for row in read_pair_sheet(sheet)
    }
