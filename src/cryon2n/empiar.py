"""An EMPIAR entry: its metadata and listing, the movie sheet made from them, and the commands that fetch.

EMPIAR's API tells what is in an entry but no file names; the names come from the web server's listing,
the exact sizes from a ``HEAD`` request each (the listing rounds them), and checksums are not published.
Names from a server are never trusted as paths.
"""

import argparse
import dataclasses
import fnmatch
import html.parser
import json
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3

from cryon2n import files, log
from cryon2n.download import Expected, check_sha256, fetch
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.web import Again, FetchSettings, integer, open_session, open_url, reason_of, with_retries

BASE_API = "https://www.ebi.ac.uk/empiar/api/entry"
BASE_DATA = "https://ftp.ebi.ac.uk/empiar/world_availability"
SHEET_COLUMNS = ["micrograph", "path", "size", "sha256"]
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
MOVIE_ENDINGS = (".frames.mrc", ".mrcs", ".mrc")
# Gain, dark and defect references lie among the movies (norm-amibox05-0.mrc, dark-amibox05-0.mrc).
REFERENCE = re.compile(r"(^|[^a-z])(gain|norm|dark|defects?|countref|superref|ref)([^a-z]|$)", re.IGNORECASE)
TEXT_LIMIT = 50_000_000  # bytes of a listing or an API reply; the longest are a few MB


@dataclass(frozen=True)
class MovieRow:
    """A row of the movie sheet.

    Attributes
    ----------
    micrograph : str
        The file's name without ``.frames.mrc`` or ``.mrc``.
    path : str
        Under the entry's folder: ``data/14sep05c_raw_196/….frames.mrc``.
    size : int or None
        In bytes.
    sha256 : str or None
    """

    micrograph: str
    path: str
    size: int | None = None
    sha256: str | None = None


# The movie sheet


def read_sheet(path: str | Path) -> list[MovieRow]:
    """Read a movie sheet; unsafe or double names and bad sizes or checksums raise `InputError`."""
    rows = []
    for number, cells in enumerate(files.read_table(path, SHEET_COLUMNS), start=1):
        where = f"{path}: row {number} ({cells['micrograph']})"
        size = integer(cells["size"])
        if cells["size"] != "-" and not size:
            raise InputError(f"{where}: size is {cells['size']!r}, wanted bytes, or - if unknown")
        sha256 = None if cells["sha256"] == "-" else cells["sha256"]
        check_sha256(sha256, where)
        rows.append(MovieRow(cells["micrograph"], cells["path"], size, sha256))
    _check_rows(rows, str(path))
    return rows


def write_sheet(path: str | Path, rows: list[MovieRow], comments: Iterable[str]) -> None:
    """Write a movie sheet, atomically, with comment lines at the top."""
    _check_rows(rows, str(path))
    # A title from a server may hold line ends.
    lines = [f"# {' '.join(comment.split())}" for comment in comments]
    lines.append("\t".join(SHEET_COLUMNS))
    lines += ["\t".join(str(cell or "-") for cell in dataclasses.astuple(row)) for row in rows]
    files.write_text(path, "\n".join(lines) + "\n")


def movie_url(base: str, entry: str | int, row: MovieRow) -> str:
    """Return the address of a movie under the data server's `base`."""
    return f"{base.rstrip('/')}/{entry_number(entry)}/{urllib.parse.quote(row.path)}"


def micrograph_name(filename: str) -> str:
    """Return a movie's micrograph name: the file name without its ending."""
    for ending in MOVIE_ENDINGS:
        if filename.endswith(ending):
            return filename[: -len(ending)]
    raise InputError(f"{filename}: is not an MRC movie; wanted a name that ends in {' or '.join(MOVIE_ENDINGS)}")


def is_safe_name(name: str) -> bool:
    """Tell whether a name can be a file name and a workflow wildcard: plain characters and no ``..``."""
    return bool(SAFE_NAME.fullmatch(name)) and ".." not in name


def _check_rows(rows: list[MovieRow], where: str) -> None:
    if not rows:
        raise InputError(f"{where}: holds no movies; wanted one row per movie")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for name in (row.micrograph, *row.path.split("/")):
            if not is_safe_name(name):
                raise InputError(
                    f"{where}: row {number}: {name!r} is not safe as a file name; "
                    "wanted letters, digits and _ . + - only, and a path relative to the entry"
                )
        for value in {row.micrograph, row.path}:
            if value in seen:
                raise InputError(f"{where}: row {number}: {value} is there twice; remove one of the two")
            seen.add(value)


# The entry


def entry_number(entry: str | int) -> str:
    """Return the digits of an accession: ``10025`` from 10025, ``"10025"`` or ``"EMPIAR-10025"``."""
    match = re.fullmatch(r"(?:EMPIAR-)?([0-9]{5,6})", str(entry).strip(), re.IGNORECASE)
    if not match:
        raise InputError(f"entry {entry!r}: not an EMPIAR accession; wanted one like 10025 or EMPIAR-10025")
    return match[1]


def read_entry(text: str, entry: str | int, where: str) -> dict[str, Any]:
    """Return the metadata of `entry` from the text of an API reply, whose one key is the accession."""
    try:
        reply = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: the reply is not JSON ({error}); check --base-api") from None
    number = entry_number(entry)
    for key in (f"EMPIAR-{number}", number):
        if isinstance(reply, dict) and isinstance(reply.get(key), dict):
            return reply[key]
    raise InputError(f"{where}: the reply holds no entry EMPIAR-{number}; check --entry and --base-api")


def choose_image_set(metadata: dict[str, Any], name: str | None, where: str) -> dict[str, Any]:
    """Return the image set called `name`, or without a name the first multi-frame one."""
    sets = [s for s in metadata.get("imagesets") or [] if isinstance(s, dict)]
    names = ", ".join(repr(s.get("name")) for s in sets) or "none"
    for image_set in sets:
        multiframe = "multiframe" in str(image_set.get("category")).replace("-", "").lower()
        if image_set.get("name") == name or (name is None and multiframe):
            return image_set
    wanted = repr(name) if name else "one of movies (category 'micrographs - multiframe')"
    raise InputError(f"{where}: image sets are {names}, wanted {wanted}; choose with --image-set")


def set_directory(image_set: dict[str, Any], where: str) -> str:
    """Return an image set's folder, relative to the entry and without slashes at the ends."""
    directory = str(image_set.get("directory") or "").strip("/")
    if not all(map(is_safe_name, directory.split("/"))):
        raise InputError(f"{where}: the folder {image_set.get('directory')!r} is not a safe relative path")
    return directory


class _Links(html.parser.HTMLParser):
    """Collects what the links of a page point to."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def listed_files(page: str) -> tuple[list[str], list[str]]:
    """Return the file names in a web server's listing: the safe ones, and those refused.

    Links that sort the listing, lead up, away or into folders are no files and in neither list.
    """
    links = _Links()
    links.feed(page)
    safe, refused = [], []
    for target in dict.fromkeys(links.targets):  # some servers link each name twice
        if target.startswith(("?", "/", "#")) or target.endswith(("/", "..")) or "://" in target:
            continue
        name = urllib.parse.unquote(target)
        (safe if is_safe_name(name) else refused).append(name)
    return sorted(safe), refused


def movie_files(names: Iterable[str], pattern: str | None = None) -> list[str]:
    """Return the movies among file names: those that match `pattern`, or all MRC files but references."""
    movies = [name for name in names if name.endswith(MOVIE_ENDINGS)]
    if pattern is not None:
        return [name for name in movies if fnmatch.fnmatchcase(name, pattern)]
    return [name for name in movies if not REFERENCE.search(name)]


# Commands


def fetch_text(session: requests.Session, url: str, settings: FetchSettings) -> str:
    """Return the text at `url`."""

    def attempt() -> str:
        with open_url(session, url, settings) as response:
            text = bytearray()
            try:
                for chunk in response.raw.stream(decode_content=True):
                    text += chunk
                    if len(text) > TEXT_LIMIT:
                        raise InputError(f"{url}: is over {TEXT_LIMIT / 1e6:.0f} MB, a short text was wanted")
            except urllib3.exceptions.HTTPError as error:
                raise Again(reason_of(error)) from None
        return text.decode("utf-8", errors="replace")

    return with_retries(attempt, url, settings)


def remote_size(session: requests.Session, url: str, settings: FetchSettings) -> int | None:
    """Return the bytes of the file at `url`, or None if the server does not say."""

    def attempt() -> int | None:
        with open_url(session, url, settings, method="HEAD") as response:
            return integer(response.headers.get("Content-Length"))

    return with_retries(attempt, url, settings)


def make_sheet(
    entry: str | int,
    movies: int,
    out: str | Path,
    image_set: str | None = None,
    pattern: str | None = None,
    base_api: str = BASE_API,
    base_data: str = BASE_DATA,
    settings: FetchSettings | None = None,
) -> list[MovieRow]:
    """Write the sheet of the first `movies` movies (by name) of an EMPIAR entry.

    Parameters
    ----------
    entry : str or int
        Accession.
    movies : int
    out : path
    image_set : str, optional
        Its name in the API.  Default: the first multi-frame set.
    pattern : str, optional
        The file names to take (``*.mrc``).  Default: all MRC files except gain and dark references.
    base_api, base_data : str
        Where the API and the files are.
    settings : FetchSettings, optional

    Returns
    -------
    rows : list of MovieRow

    Raises
    ------
    InputError
        No such entry or set, fewer movies than wanted, or a server that does not answer.
    """
    settings, number = settings or FetchSettings(), entry_number(entry)
    if movies < 1:
        raise InputError(f"--movies {movies}: wanted 1 or more")
    api = f"{base_api.rstrip('/')}/{number}/"
    with open_session(api) as session:
        metadata = read_entry(fetch_text(session, api, settings), number, api)
    chosen = choose_image_set(metadata, image_set, api)
    directory = set_directory(chosen, api)
    folder = f"{base_data.rstrip('/')}/{number}/{directory}/"
    with open_session(folder) as session:
        names, refused = listed_files(fetch_text(session, folder, settings))
        if refused:
            log.say(f"{folder}: left out {len(refused)} names that are not safe, such as {refused[0]!r}")
        found = movie_files(names, pattern)
        count = _count_note(chosen, len(found))
        log.say(f"{folder}: {count}")
        if len(found) < movies:
            raise InputError(f"{folder}: {count}, wanted {movies} movies; ask for fewer, or see --pattern")
        rows = []
        progress = log.Progress(movies, "sizes")
        for name in found[:movies]:
            row = MovieRow(micrograph_name(name), f"{directory}/{name}")
            size = remote_size(session, movie_url(base_data, number, row), settings)
            rows.append(dataclasses.replace(row, size=size))
            progress.update(len(rows))
    comments = [
        f"EMPIAR-{number}: {metadata.get('title', '')}",
        f"Image set {chosen.get('name')!r}, from {folder}",
        f"{movies} movies, the first by name; {count}.",
        "Sizes in bytes as the server gives them; EMPIAR publishes no checksums.",
    ]
    write_sheet(out, rows, comments)
    known = sum(row.size or 0 for row in rows)
    log.say(f"{out}: {len(rows)} movies, {known / 1e9:.2f} GB")
    return rows


def _count_note(image_set: dict[str, Any], found: int) -> str:
    """Compare the listing's count with the API's, which may be a string or missing."""
    announced = integer(image_set.get("num_images_or_tilt_series"))
    if announced is None:
        return f"the listing has {found} movies, the API gives no number"
    if announced == found:
        return f"the listing has {found} movies, as the API says"
    # The server is a group of machines, and one of them has been seen to miss files that exist.
    return f"the listing has {found} movies, the API says {announced} (it may be short: try again later)"


def _add_fetch_movie_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", required=True, help="https address of the file")
    parser.add_argument("--out", required=True, type=Path, help="where to put it; {out}.part while it is incomplete")
    parser.add_argument("--size", default="-", metavar="BYTES", help="exact size, - if unknown")
    parser.add_argument("--sha256", default="-", metavar="HEX", help="published checksum, - if there is none")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="record of the first download's SHA-256 (default: checksums/{name}.sha256 beside out)",
    )
    parser.add_argument("--frames", type=int, metavar="N", help="number of frames that the MRC header must give")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="frame height and width in pixels that it must give",
    )
    _add_web_arguments(parser)


def _fetch_movie(args: argparse.Namespace) -> None:
    size = integer(args.size)
    if args.size != "-" and not size:
        raise InputError(f"--size {args.size}: wanted bytes, or - if unknown")
    sha256 = None if args.sha256 == "-" else args.sha256.lower()
    expected = Expected(size, sha256, args.frames, tuple(args.shape) if args.shape else None)
    fetch(args.url, args.out, expected, args.lock, _web_settings(args))


def _add_fetch_sheet_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--entry", required=True, help="EMPIAR accession, such as 10025")
    parser.add_argument(
        "--image-set", metavar="NAME", help="name of the image set (default: the first multi-frame one)"
    )
    parser.add_argument("--movies", required=True, type=int, metavar="N", help="how many, the first by name")
    parser.add_argument(
        "--pattern",
        metavar="GLOB",
        help="file names to take (default: all MRC files but gain and dark references)",
    )
    parser.add_argument("--base-api", default=BASE_API, metavar="URL", help="default: %(default)s")
    parser.add_argument("--base-data", default=BASE_DATA, metavar="URL", help="default: %(default)s")
    parser.add_argument("--out", required=True, type=Path, help="the movie sheet to write (.tsv)")
    _add_web_arguments(parser)


def _fetch_sheet(args: argparse.Namespace) -> None:
    make_sheet(
        args.entry,
        args.movies,
        args.out,
        args.image_set,
        args.pattern,
        args.base_api,
        args.base_data,
        _web_settings(args),
    )


def _add_web_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-http", action="store_true", help="accept plain http, which can be changed on the way")
    add_settings_arguments(parser)


def _web_settings(args: argparse.Namespace) -> FetchSettings:
    settings = settings_from_arguments(FetchSettings, args)
    return dataclasses.replace(settings, allow_http=settings.allow_http or args.allow_http)


COMMANDS = {
    "fetch-movie": (_add_fetch_movie_arguments, _fetch_movie),
    "fetch-sheet": (_add_fetch_sheet_arguments, _fetch_sheet),
}
