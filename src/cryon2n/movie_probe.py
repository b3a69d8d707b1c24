"""What movies on a server hold, from their first bytes: one request each."""

import collections
import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import requests
import urllib3

from cryon2n import log
from cryon2n.empiar import ImageSet
from cryon2n.movie_header import Geometry, WrongFile, check_head, read_head
from cryon2n.movie_sheet import MovieRow, movie_url
from cryon2n.names import micrograph_name
from cryon2n.web import Again, FetchSettings, integer, open_session, open_url, reason_of, with_retries

HEAD = 1 << 16  # bytes asked for of each movie: more than an MRC header, and often a TIFF's first page
NAMED = 5  # movies that a message names, at most


def fetch_head(session: requests.Session, url: str, settings: FetchSettings) -> tuple[int | None, bytes]:
    """Return the size in bytes (None if the server does not say) and the first `HEAD` bytes of the file at `url`.

    One ranged request (RFC 9110, 14.2); a server that does not know ranges is hung up on after the first bytes.
    """

    def attempt() -> tuple[int | None, bytes]:
        with open_url(session, url, settings, headers={"Range": f"bytes=0-{HEAD - 1}"}) as response:
            if response.status_code == 416:  # not even a first byte
                return 0, b""
            size = integer(response.headers.get("Content-Length"))
            if response.status_code == 206:
                span = re.fullmatch(r"bytes 0-[0-9]+/([0-9]+|\*)", response.headers.get("Content-Range", ""))
                if span is None:
                    raise Again("the server sent another range than was asked for")
                size = integer(span[1])
            head = b""
            try:
                while len(head) < HEAD and (piece := response.raw.read(HEAD - len(head), decode_content=False)):
                    head += piece
            except urllib3.exceptions.HTTPError as error:
                raise Again(reason_of(error)) from None
        if size is not None and len(head) < min(size, HEAD):
            raise Again("the connection ended early")
        return size, head

    return with_retries(attempt, url, settings)


def probe_movies(
    paths: Iterable[str], number: str, base_data: str, settings: FetchSettings
) -> tuple[list[MovieRow], list[str]]:
    """Ask for each movie's first bytes, a few at a time.

    Returns
    -------
    rows : list of MovieRow
        In the order of `paths`, with sizes and geometries as far as the files tell them.
    faults : list of str
        What is wrong with files that are no movies.
    """
    rows = [MovieRow(micrograph_name(PurePosixPath(path).name), path) for path in paths]
    local, done, faults = threading.local(), [], []
    progress = log.Progress(len(rows), "headers")

    def probe(row: MovieRow) -> tuple[MovieRow, str | None]:
        if not hasattr(local, "session"):
            local.session = sessions.enter_context(open_session(base_data))
        url, name = movie_url(base_data, number, row), PurePosixPath(row.path).name
        size, head = fetch_head(local.session, url, settings)
        try:
            if size == 0:
                raise WrongFile(f"{url}: is empty")
            # None where the format's first bytes do not tell.
            geometry = read_head(head, name, url) or Geometry()
            if size is not None:
                check_head(head, name, size, url, geometry)
        except WrongFile as error:
            return row, str(error)
        if geometry.frames == 1:
            return row, f"{url}: holds 1 frame, a movie of 2 or more is wanted"
        return dataclasses.replace(row, size=size, geometry=geometry), None

    with contextlib.ExitStack() as sessions, ThreadPoolExecutor(settings.connections) as pool:
        futures = [pool.submit(probe, row) for row in rows]
        try:
            for future in futures:
                row, fault = future.result()
                done.append(row)
                faults += [fault] if fault else []
                progress.update(len(done))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done, faults


def complete_geometry(rows: list[MovieRow], image_set: ImageSet) -> tuple[list[MovieRow], str]:
    """Fill what the files' first bytes did not tell from the API's numbers; the files win where both tell.

    Returns
    -------
    rows : list of MovieRow
    note : str
        Where the numbers come from, for the sheet.
    """
    said = image_set.geometry
    names = [field.name for field in dataclasses.fields(Geometry)]
    told = [name for name in names if any(getattr(row.geometry, name) is not None for row in rows)]
    unknown = Geometry()
    known = collections.Counter(row.geometry for row in rows if row.geometry != unknown)
    usual = known.most_common(1)[0][0] if known else unknown
    others = [row for row in rows if row.geometry not in (usual, unknown)]
    if others:
        listed = ", ".join(f"{row.micrograph} ({row.geometry})" for row in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        log.say(f"{len(others)} movies are not like the others ({usual}): {listed}{more}")
    differing = {name: (getattr(usual, name), getattr(said, name)) for name in told}
    # MRC's mode 0 is signed by the letter and unsigned in practice: no difference worth a word.
    differing = {k: v for k, v in differing.items() if None not in v and v[0] != v[1] and set(v) != {"uint8", "int8"}}
    if differing:
        texts = (f"{name} {here} (API: {there})" for name, (here, there) in differing.items())
        log.say(f"the files differ from what the API says, and the files count: {', '.join(texts)}")
    filled = {name: getattr(said, name) for name in names if name not in told and getattr(said, name) is not None}
    # 1 frame of a set of movies is a slip; and of EER movies depositors tell the fractions, not the frames in the file.
    if filled.get("frames") == 1 or rows[0].path.lower().endswith(".eer"):
        filled.pop("frames", None)
    rows = [dataclasses.replace(row, geometry=dataclasses.replace(row.geometry, **filled)) for row in rows]
    columns = {"h": "height", "w": "width"}
    from_api = ", ".join(columns.get(name, name) for name in filled)
    note = "Sizes and dimensions as the files' own first bytes tell"
    if filled:
        log.say(f"the files' first bytes do not tell {from_api}: the API's numbers are taken")
        note += f", but {from_api} as the API says, not seen in the files"
    return rows, f"{note}.  EMPIAR publishes no checksums."
