"""From an EMPIAR entry to a movie sheet, and the command `cryon2n empiar`."""

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from cryon2n import files, log
from cryon2n.empiar import BASE_API, BASE_DATA, choose_image_set, describe_entry, fetch_entry, set_folder
from cryon2n.entry_files import find_movies, folder_url, reference_kind
from cryon2n.errors import InputError
from cryon2n.movie_probe import complete_geometry, probe_movies
from cryon2n.movie_sheet import sheet_text
from cryon2n.web import FetchSettings, add_web_arguments, web_settings

MRC_ENDINGS = (".mrc", ".mrcs")  # of references that the workflow reads


def make_sheet(
    entry: str | int,
    movies: int | None = None,
    image_set: str | None = None,
    pattern: str | None = None,
    base_api: str = BASE_API,
    base_data: str = BASE_DATA,
    settings: FetchSettings | None = None,
) -> str:
    """Return the text of the sheet of the first `movies` movies (by name) of an EMPIAR entry.

    Parameters
    ----------
    entry : str or int
        Accession.
    movies : int, optional
        Default: all.
    image_set : str, optional
        Its name or folder in the API.  Default: the first of movies.
    pattern : str, optional
        The file names, or paths in the entry, to take (``*.mrc``).  Default: all movies but references.
    base_api, base_data : str
        Where the API and the files are.
    settings : FetchSettings, optional

    Raises
    ------
    InputError
        No such entry or set, none of movies, fewer movies than wanted, files that are no movies, or a server
        that does not answer.
    """
    settings = settings or FetchSettings()
    if movies is not None and movies < 1:
        raise InputError(f"--movies {movies}: wanted 1 or more")
    about = fetch_entry(entry, base_api, settings)
    chosen = choose_image_set(about, image_set)
    folder = folder_url(base_data, about.number, set_folder(chosen, f"EMPIAR-{about.number}"))
    found = find_movies(about, chosen, pattern, base_data, settings)
    log.say(f"{folder}: {found.note}")
    if movies is not None and len(found.movies) < movies:
        raise InputError(
            f"{folder}: {found.note}; {len(found.movies)} can be taken, wanted {movies}; "
            "ask for fewer with --movies, or see --pattern"
        )
    rows, faults = probe_movies(found.movies[:movies], about.number, base_data, settings)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}; take others with --pattern or --image-set")
    rows, source_note = complete_geometry(rows, chosen)
    size = sum(row.size or 0 for row in rows)
    unknown = sum(row.size is None for row in rows)
    total = f"{size / 1e9:.2f} GB" + (f" without {unknown} whose sizes are unknown" if unknown else "")
    command = ["cryon2n", "empiar", "sheet", about.number, "--image-set", image_set or chosen.name]
    command += ["--movies", str(movies)] if movies else []
    command += ["--pattern", pattern] if pattern else []
    log.say(f"{len(rows)} of {len(found.movies)} movies, {total}")
    comments = [
        f"EMPIAR-{about.number}: {about.title}" + (f" (doi {about.doi})" if about.doi else ""),
        f"Image set {chosen.name!r}, from {folder}",
        f"{len(rows)} of {len(found.movies)} movies, the first by name, {total}; {found.note}.",
        source_note,
        *reference_comments(found.references),
        f"Made by: {shlex.join(command)}",
    ]
    return sheet_text(rows, comments, folder)


def reference_comments(references: Iterable[str]) -> list[str]:
    """Return what a sheet says of the references that were found, with the config lines that use them."""
    configured: dict[str, list[str]] = {}
    others = []
    for path in references:
        kind = reference_kind(path) or "gain"
        if kind in ("gain", "dark") and path.lower().endswith(MRC_ENDINGS):
            configured.setdefault(kind, []).append(path)
        else:
            others.append(f"{path} ({kind})")
    if not (configured or others):
        return [
            "References: none found beside the movies; the movies may be corrected already, or see the entry's page."
        ]
    lines = ["References, for the config (check-gain tells how they are turned):"] if configured else []
    for kind, paths in sorted(configured.items()):
        lines.append(f"source: {kind}: {paths[0] if len(paths) == 1 else 'one of ' + ', '.join(paths)}")
    if others:
        lines.append(f"Further references, which the workflow does not take as they are: {', '.join(others)}")
    for line in lines:
        log.say(line)
    return lines


# Commands


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|sheet")
    show = actions.add_parser("show", help="what is in an entry, and what of it can be used")
    sheet = actions.add_parser("sheet", help="the movie sheet of an entry")
    for action in (show, sheet):
        action.add_argument("entry", help="EMPIAR accession, such as 10025")
        action.add_argument("--base-api", default=BASE_API, metavar="URL", help="default: %(default)s")
        add_web_arguments(action)
    sheet.add_argument("--base-data", default=BASE_DATA, metavar="URL", help="default: %(default)s")
    sheet.add_argument(
        "--image-set", metavar="NAME", help="name or folder of the image set (default: the first of movies)"
    )
    sheet.add_argument("--movies", type=int, metavar="N", help="how many, the first by name (default: all)")
    sheet.add_argument("--pattern", metavar="GLOB", help="file names to take (default: all movies but references)")
    sheet.add_argument("--out", type=Path, help="the movie sheet to write (.tsv; default: standard output)")


def _run(args: argparse.Namespace) -> None:
    settings = web_settings(args)
    # A title may hold characters that the terminal's encoding lacks.
    sys.stdout.reconfigure(errors="replace")
    if args.action == "show":
        sys.stdout.write(describe_entry(fetch_entry(args.entry, args.base_api, settings)))
        return
    text = make_sheet(args.entry, args.movies, args.image_set, args.pattern, args.base_api, args.base_data, settings)
    if args.out is None:
        sys.stdout.write(text)
    else:
        files.write_text(args.out, text)
        log.say(f"{args.out} is written")


COMMANDS = {"empiar": (_add_arguments, _run)}
