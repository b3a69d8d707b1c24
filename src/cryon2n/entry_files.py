"""Where the movies of an EMPIAR image set lie, and the references that belong to them.

From the web server's listings: EMPIAR's API gives no file names.
"""

import collections
import contextlib
import fnmatch
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from cryon2n import log
from cryon2n.empiar import Entry, ImageSet, set_folder
from cryon2n.errors import InputError
from cryon2n.listing import Listing, fetch_listing
from cryon2n.movie_header import movie_ending
from cryon2n.movie_sheet import MovieRow, movie_url, reference_kind
from cryon2n.names import micrograph_name
from cryon2n.web import FetchSettings, open_session

LISTINGS = 4  # how often a listing that seems short is asked for in all
HINT_FOLDERS = 10  # sub-folders that may hold references, at most
NAMED = 5  # endings that a message names, at most
REFERENCE_ENDINGS = (".mrc", ".mrcs", ".dm4", ".tif", ".tiff", ".gain", ".txt")
REFERENCE_FOLDER = re.compile(r"gain|calib|dark|defect|(?<![a-z])ref(s|erences?)?(?![a-z])", re.IGNORECASE)
# The endings of a format's movies, as the API calls the format; a suffix of compression does not count.
FORMAT_ENDINGS = {"MRC": (".mrc", ".mrcs"), "MRCS": (".mrcs", ".mrc"), "TIFF": (".tif", ".tiff"), "EER": (".eer",)}


@dataclass(frozen=True)
class Found:
    """What the listings hold of an image set.

    Attributes
    ----------
    movies, references : tuple of str
        Paths under the entry's folder, sorted.
    note : str
        The listing's count of movies against the API's.
    """

    movies: tuple[str, ...]
    references: tuple[str, ...]
    note: str


# Names


def movie_paths(paths: Iterable[str], pattern: str | None = None) -> list[str]:
    """Return the movies among paths, sorted: those whose path or file name matches `pattern`, or all but references."""
    movies = sorted(path for path in paths if movie_ending(path))
    if pattern is None:
        return [path for path in movies if reference_kind(path) is None]
    return [p for p in movies if any(fnmatch.fnmatchcase(name, pattern) for name in (p, PurePosixPath(p).name))]


def own_format(paths: list[str], data_format: str) -> list[str]:
    """Return the paths in the image set's own format, where several formats lie together; else all of them."""
    endings = FORMAT_ENDINGS.get(data_format, ())
    return [path for path in paths if movie_ending(path).removesuffix(".bz2").removesuffix(".gz") in endings] or paths


def check_micrographs(paths: Iterable[str]) -> None:
    """Raise `InputError` if two paths give one micrograph name."""
    chosen: dict[str, str] = {}
    for path in paths:
        other = chosen.setdefault(micrograph_name(PurePosixPath(path).name), path)
        if other != path:
            raise InputError(f"{other} and {path} are of one micrograph; choose with --pattern (such as '*.mrc')")


# Listings


class _Asker:
    """Asks for the listings of an entry's folders.

    On a connection of its own each time: several servers stand behind the address, and one of them has been
    seen to miss files that exist.
    """

    def __init__(self, base_data: str, number: str, settings: FetchSettings):
        self.base_data, self.number, self.settings = base_data, number, settings
        self.told: set[str] = set()

    def __call__(self, folder: str) -> Listing:
        url = folder_url(self.base_data, self.number, folder)
        with open_session(url) as session:
            listing = fetch_listing(session, url, self.settings)
        if listing.refused and url not in self.told:
            self.told.add(url)
            log.say(f"{url}: left out {len(listing.refused)} names that are not safe, such as {listing.refused[0]!r}")
        return listing


def folder_url(base_data: str, number: str, folder: str) -> str:
    """Return the address of a folder of an entry."""
    return f"{movie_url(base_data, number, MovieRow('', folder))}/"


def find_movies(
    entry: Entry, image_set: ImageSet, pattern: str | None, base_data: str, settings: FetchSettings
) -> Found:
    """Look for the movies of an image set, one level down if its folder holds none, and for references.

    A listing with fewer movies than the API announces is asked for again, and all that was ever listed counts.
    """
    folder, ask = set_folder(image_set, f"EMPIAR-{entry.number}"), _Asker(base_data, entry.number, settings)
    seen: set[str] = set()
    for number in range(1, LISTINGS + 1):
        listing = ask(folder)
        listed = _listed_files(ask, folder, listing)
        if number > 1 and listed - seen:
            log.say(f"listing {number} names {len(listed - seen)} files that were not in those before")
        seen |= listed
        # Without the pattern, which leaves files out on purpose.
        count = len(own_format(movie_paths(seen), image_set.format))
        if count >= (image_set.images or 0) or number == LISTINGS:
            break
        log.say(f"{folder}: {count} movies are listed, the API says {image_set.images}: asking again")
        time.sleep(settings.backoff)
    candidates = movie_paths(seen, pattern)
    movies = own_format(candidates, image_set.format)
    if not movies:
        endings = collections.Counter(PurePosixPath(path).suffix for path in seen).most_common(NAMED)
        what = f"no movie matches --pattern {pattern!r}" if pattern else "no movies are listed"
        listed_text = ", ".join(f"{n} x {ending or 'none'}" for ending, n in endings) or "nothing"
        raise InputError(
            f"{folder_url(base_data, entry.number, folder)}: {what} (endings there: {listed_text}); "
            "see the folder, and choose with --image-set and --pattern"
        )
    if len(movies) < len(candidates):
        log.say(f"left out {len(candidates) - len(movies)} files of another format than the set's {image_set.format}")
    check_micrographs(movies)
    references = _find_references(ask, folder, listing, seen)
    return Found(tuple(movies), tuple(references), _count_note(count, image_set.images, number))


def _listed_files(ask: _Asker, folder: str, listing: Listing) -> set[str]:
    """Return the files that a folder's listing names, and those one level down where it names no movies."""
    files = {f"{folder}/{name}" for name in listing.files}
    subs = [f"{folder}/{sub}" for sub in listing.folders if not REFERENCE_FOLDER.search(sub)]
    if subs and not movie_paths(files):
        log.say(f"{folder} holds no movies itself: looking into its {len(subs)} sub-folders")
        for sub in subs:
            files |= {f"{sub}/{name}" for name in ask(sub).files}
    return files


def _find_references(ask: _Asker, folder: str, listing: Listing, seen: Iterable[str]) -> list[str]:
    """Return the reference files beside an image set, whose folder has that listing.

    Looked for among `seen`, in the entry's top folder, and in the sub-folders of both whose names hint at
    references; in such a sub-folder any image is one.
    """
    top = folder.split("/")[0]
    places = {folder: listing} if folder == top else {folder: listing, top: _ask_if_shown(ask, top)}
    found, whole = set(seen), set()
    for place, inside in places.items():
        found |= {f"{place}/{name}" for name in inside.files}
        for sub in [sub for sub in inside.folders if REFERENCE_FOLDER.search(sub)][:HINT_FOLDERS]:
            whole |= {f"{place}/{sub}/{name}" for name in _ask_if_shown(ask, f"{place}/{sub}").files}
    images = {path for path in whole if not path.lower().endswith(".txt")}
    named = {path for path in found | whole if reference_kind(path)}
    return sorted(path for path in images | named if path.lower().endswith(REFERENCE_ENDINGS))


def _ask_if_shown(ask: _Asker, folder: str) -> Listing:
    """Return a folder's listing, empty where the server shows none: references are a help, not a need."""
    with contextlib.suppress(InputError):
        return ask(folder)
    return Listing()


def _count_note(found: int, announced: int | None, listings: int) -> str:
    """Compare the listing's count with the API's, which may be missing."""
    if announced is None:
        return f"the listing has {found} movies, the API gives no number"
    if announced == found:
        return f"the listing has {found} movies, as the API says"
    if found > announced:
        return f"the listing has {found} movies, the API says {announced}"
    return (
        f"{listings} listings together have {found} movies, the API says {announced}: "
        f"{announced - found} are missing (try again later)"
    )
