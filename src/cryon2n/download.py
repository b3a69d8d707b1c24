"""Downloads of many-GB files that resume, are verified, and never mix two versions of a file.

The bytes gather in ``{out}.part`` (`part`), brought there by several connections (`transfer`).  The final
name appears only when size, header and checksum are right.
"""

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryon2n import files, log
from cryon2n.errors import InputError
from cryon2n.frame_range import FrameRange, Span, cut_header, parse_frame_range, spans_of
from cryon2n.movie_header import Geometry, WrongFile, check_head, check_movie, movie_ending, parse_mrc_header
from cryon2n.part import Part, open_part
from cryon2n.transfer import Look, Transfer
from cryon2n.web import FetchSettings, Unavailable, add_web_arguments, check_url, integer, web_settings


@dataclass(frozen=True)
class Expected:
    """What a file on the server must turn out to be.

    Attributes
    ----------
    size : int or None
        Bytes.
    sha256 : str or None
        Published, in hex.
    geometry : Geometry
        Frames, their size in pixels and type of data, as far as known.
    """

    size: int | None = None
    sha256: str | None = None
    geometry: Geometry = field(default_factory=Geometry)


def fetch(
    urls: str | list[str],
    out: str | Path,
    expected: Expected | None = None,
    lock: str | Path | None = None,
    keep: FrameRange | None = None,
    settings: FetchSettings | None = None,
) -> str:
    """Download a file, going on from what an earlier run left, and verify it.

    Parameters
    ----------
    urls : str or list of str
        The file, and the same file on mirrors, which are tried in order.  https (http only to a loopback
        address, or with ``settings.allow_http``).
    out : path
        Appears only when everything is right.  A file that is there already is verified, not fetched.
    expected : Expected, optional
    lock : path, optional
        The record of the first download's SHA-256, written if missing, obeyed if there.  Default:
        ``checksums/{name}.sha256`` beside `out` (``{name}.frames_0-19.sha256`` for a range of frames).
    keep : FrameRange, optional
        The frames to fetch of an uncompressed MRC movie; default: the whole file.
    settings : FetchSettings, optional

    Returns
    -------
    sha256 : str
        Of `out`.

    Raises
    ------
    InputError
        Wrong size, header or checksum; too little disk space; servers that refuse or never end.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    out, expected, settings = Path(out), expected or Expected(), settings or FetchSettings()
    record = f"{out.name}.frames_{keep}.sha256" if keep else f"{out.name}.sha256"
    wanted = _Wanted(out, expected, keep, Path(lock) if lock else out.parent / "checksums" / record)
    for url in urls:
        check_url(url, settings.allow_http)
    if out.exists():
        digest = wanted.verify(out, str(out), files.sha256_of(out))
        log.say(f"{out} is there already, and as expected")
        wanted.write_lock(digest)
        return digest
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot make this folder ({error.strerror}); choose another place") from None
    with open_part(out.with_name(f"{out.name}.part"), f"frames {keep}" if keep else "all") as part:
        digest = _from_one_of(urls, part, wanted, settings)
        # Before the rename: a file without its record would be trusted unseen by the next run.
        wanted.write_lock(digest)
        os.replace(part.path, out)
        part.remove_records()
    log.say(f"{out}: {out.stat().st_size / 1e6:.1f} MB, sha256 {digest}")
    return digest


def _from_one_of(urls: list[str], part: Part, wanted: "_Wanted", settings: FetchSettings) -> str:
    """Fill `part` from the first of `urls` that gives what is wanted, and return its SHA-256."""
    # What is there can be gone on with where it came from.
    begun = part.remote.url if part.remote else None
    order = sorted(urls, key=lambda url: url != begun)
    for number, url in enumerate(order, start=1):
        try:
            digest = Transfer(url, part, wanted.expected.size, wanted.look(url), settings).run()
            part.synchronise()
            return wanted.verify(part.path, url, digest)
        except (Unavailable, WrongFile) as error:
            if isinstance(error, WrongFile):
                part.discard()  # the next attempt must not take it up again
            if number == len(order):
                raise
            log.say(f"{error}; trying the next mirror: {order[number]}")
    raise InputError("no address was given; wanted one or more")


class _Wanted:
    """What a download must turn out to be, with the record of the first one."""

    def __init__(self, out: Path, expected: Expected, keep: FrameRange | None, lock: Path):
        self.out, self.expected, self.keep, self.lock = out, expected, keep, lock
        files.check_sha256(expected.sha256, "the published checksum")
        self.locked = read_lock(lock)  # a damaged record is reported before gigabytes are fetched
        ending = movie_ending(out.name)
        if ending is None and expected.geometry != Geometry():
            raise InputError(f"{out}: frames and shape can be checked in movies only; leave out --frames and --shape")
        if keep and ending not in (".mrc", ".mrcs"):
            raise InputError(
                f"{out}: frames can be fetched alone of uncompressed MRC movies only; leave out --keep-frames"
            )

    def look(self, url: str) -> Look:
        """Return the check of the first bytes of the file at `url` (see `Transfer`)."""

        def check(head: bytes, size: int) -> tuple[bytes, list[Span]]:
            if movie_ending(self.out.name):
                check_head(head, self.out.name, size, url, self.expected.geometry)
            if not self.keep:
                return head, [Span(0, size)]
            header = parse_mrc_header(head, url)
            return cut_header(head, header, self.keep.n), spans_of(header, self.keep, url)

        return check

    def verify(self, path: Path, where: str, digest: str) -> str:
        """Check a complete file of SHA-256 `digest`, which is returned."""
        size = path.stat().st_size
        geometry = self.expected.geometry
        if self.keep:
            geometry = dataclasses.replace(geometry, frames=self.keep.n)
        check_movie(path, self.out.name, where, geometry)
        if not self.keep and self.expected.size not in (None, size):
            raise WrongFile(f"{where}: has {size} bytes, wanted {self.expected.size}; delete it and fetch it again")
        # The published checksum is that of the whole file.
        if not self.keep and self.expected.sha256 not in (None, digest):
            raise WrongFile(
                f"{where}: has sha256 {digest}, the published one is {self.expected.sha256}; fetch it again"
            )
        if self.locked not in (None, digest):
            raise WrongFile(
                f"{where}: has sha256 {digest}, but {self.lock} recorded {self.locked} at the first download; "
                "fetch it again, and delete the record only if the file was meant to change"
            )
        return digest

    def write_lock(self, digest: str) -> None:
        """Record the checksum of a first download."""
        if self.locked is None:
            files.write_text(self.lock, f"{digest}  {self.out.name}\n")  # the format of `sha256sum --check`


def read_lock(lock: str | Path) -> str | None:
    """Return the SHA-256 that an earlier download recorded, or None if there is no record."""
    try:
        words = Path(lock).read_text().split()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{lock}: cannot read the record of a checksum ({error})") from None
    files.check_sha256(words[0] if words else "", str(lock))
    return words[0]


# The command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        help="https address of the file; given several times, the further ones are mirrors, tried in order",
    )
    parser.add_argument("--path", help="instead of --url: the file's path under each --base")
    parser.add_argument("--base", action="append", default=[], help="https address of an archive, then of its mirrors")
    parser.add_argument("--out", required=True, type=Path, help="where to put it; {out}.part while it is incomplete")
    parser.add_argument("--size", default="-", metavar="BYTES", help="exact size, - if unknown")
    parser.add_argument("--sha256", default="-", metavar="HEX", help="published checksum, - if there is none")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help="record of the first download's SHA-256 (default: checksums/{name}.sha256 beside out)",
    )
    parser.add_argument("--frames", default="-", metavar="N", help="frames that the file must hold, - if unknown")
    parser.add_argument(
        "--shape",
        default=("-", "-"),
        nargs=2,
        metavar=("H", "W"),
        help="frame height and width in pixels that it must have, - if unknown",
    )
    parser.add_argument("--data-type", default="-", metavar="TYPE", help="uint8, float32 …, - if unknown")
    parser.add_argument(
        "--keep-frames", metavar="FIRST-LAST", help="fetch these frames only, counted from 0 (uncompressed MRC): 0-19"
    )
    parser.add_argument("--connections", type=int, metavar="N", help="at a time (default: 4)")
    parser.add_argument(
        "--limit-rate", metavar="RATE", help="bytes per second: 500k, 20M; for all connections together"
    )
    add_web_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    size, frames = _number(args.size, "--size"), _number(args.frames, "--frames")
    h, w = (_number(text, "--shape") for text in args.shape)
    data_type = None if args.data_type == "-" else args.data_type
    sha256 = None if args.sha256 == "-" else args.sha256.lower()
    expected = Expected(size, sha256, Geometry(frames, h, w, data_type))
    settings = web_settings(args)
    if args.connections is not None:
        settings = dataclasses.replace(settings, connections=args.connections)
    if args.limit_rate is not None:
        settings = dataclasses.replace(settings, limit_rate=rate_of(args.limit_rate))
    keep = parse_frame_range(args.keep_frames) if args.keep_frames else None
    if bool(args.url) == bool(args.path and args.base):
        raise InputError("wanted either --url, or --path and --base")
    urls = args.url or [f"{base.rstrip('/')}/{args.path}" for base in args.base]
    fetch(urls, args.out, expected, args.lock, keep, settings)


def _number(text: str, flag: str) -> int | None:
    number = integer(text)
    if text != "-" and not number:
        raise InputError(f"{flag} {text}: wanted a whole number of 1 or more, or - if unknown")
    return number


def rate_of(text: str) -> float:
    """Return the bytes per second that a text such as ``500k`` or ``20M`` stands for (1k = 1000)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKMG]?)B?(?:/s)?", text.strip())
    if not match:
        raise InputError(f"--limit-rate {text}: wanted bytes per second such as 500k or 20M")
    return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2].replace("K", "k")]


COMMANDS = {"fetch-movie": (_add_arguments, _run)}
