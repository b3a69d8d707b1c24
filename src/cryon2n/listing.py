"""The listing of a folder on a web server: the files and folders in it whose names are safe.

EMPIAR's server is an Apache with fancy indexing, mirrors may be an nginx; both link each name.  A name from
a server is never trusted as a path.
"""

import html.parser
import urllib.parse
from dataclasses import dataclass

import requests
import urllib3

from cryon2n.errors import InputError
from cryon2n.names import is_safe_name
from cryon2n.web import Again, FetchSettings, open_url, reason_of, with_retries

TEXT_LIMIT = 50_000_000  # bytes of a listing or an API reply; the longest are a few MB


@dataclass(frozen=True)
class Listing:
    """What lies in a folder: names of files and of sub-folders, and names that are not safe."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class _Links(html.parser.HTMLParser):
    """Collects what the links of a page point to, with entities resolved."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def read_listing(page: str, url: str) -> Listing:
    """Return the names that the listing `page` of the folder at `url` links, each once and sorted.

    Links that sort the listing (``?C=N;O=D``), lead up or away, or to another place on the server are in
    no list.
    """
    links = _Links()
    links.feed(page)
    files, folders, refused = set(), set(), set()
    for target in links.targets:
        name = _name_below(target, url)
        if name is None:
            continue
        if not is_safe_name(name.removesuffix("/")):
            refused.add(name)
        elif name.endswith("/"):
            folders.add(name[:-1])
        else:
            files.add(name)
    return Listing(tuple(sorted(files)), tuple(sorted(folders)), tuple(sorted(refused)))


def _name_below(target: str, url: str) -> str | None:
    """Return what a link names below the folder at `url` (a folder with its slash), None if nothing there."""
    try:
        found, base = urllib.parse.urlsplit(urllib.parse.urljoin(url, target)), urllib.parse.urlsplit(url)
        if (found.scheme, found.netloc) != (base.scheme, base.netloc) or found.query:
            return None
    except ValueError:  # not an address
        return None
    # Decoded piece by piece: an encoded slash must not become a path, and servers differ in what they encode.
    pieces, above = ([urllib.parse.unquote(p) for p in path.split("/")] for path in (found.path, base.path))
    folder = above[:-1]
    return "/".join(pieces[len(folder) :]) or None if pieces[: len(folder)] == folder else None


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


def fetch_listing(session: requests.Session, url: str, settings: FetchSettings) -> Listing:
    """Ask for the listing of the folder at `url`."""
    return read_listing(fetch_text(session, url, settings), url)
