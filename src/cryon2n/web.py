"""Requests to a server that is not to be relied on: addresses, redirects, time-outs, attempts, rate.

Used by the downloads and by the reading of listings, so that both are patient and careful alike.
"""

import argparse
import contextlib
import dataclasses
import ipaddress
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import requests

from cryon2n import __version__, log
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments

T = TypeVar("T")

REDIRECT_HOSTS = ("ebi.ac.uk", "pdbj.org")  # and their subdomains: EMPIAR and its mirror
REDIRECTS = 5
MOST_CONNECTIONS = 16  # a public archive is there for others, too


@dataclass(frozen=True)
class FetchSettings:
    """How patient to be with a server; times in seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # without one byte: some of EMPIAR's connections stall for good
    attempts: int = 8  # in a row that bring nothing new, before giving up
    backoff: float = 1.0  # pause after the first failure; doubles up to max_backoff
    max_backoff: float = 60.0
    connections: int = 4  # at a time, for one file
    block: int = 1 << 24  # bytes asked for in one request; what a broken connection can cost at most
    slowest: float = 5_000.0  # bytes/s; a connection that trickles below for read_timeout is given up
    limit_rate: float | None = None  # bytes/s, of all connections together
    allow_http: bool = False

    def __post_init__(self):
        positive = min(self.connect_timeout, self.read_timeout, self.attempts) > 0
        if not positive or min(self.backoff, self.max_backoff, self.slowest) < 0:
            raise InputError(f"{self}: time-outs and attempts must be positive, back-offs not negative")
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise InputError(f"connections: found {self.connections}, wanted 1 to {MOST_CONNECTIONS}")
        if not 4096 <= self.block < 1 << 31:
            raise InputError(f"block: found {self.block}, wanted 4096 to 2147483647 bytes")
        if self.limit_rate is not None and not self.limit_rate >= 1000:
            raise InputError(f"limit_rate: found {self.limit_rate}, wanted 1000 bytes/s or more")


class Unavailable(InputError):
    """A server refuses, redirects astray or never ends: another one may do better."""


class Again(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def check_url(url: str, allow_http: bool = False) -> str:
    """Return `url` if it is https (or http to a loopback address, or with `allow_http`).

    Anything else raises `InputError`.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise InputError(f"{url}: not an address ({error}); wanted https://host/path") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InputError(f"{url}: not an address to fetch from; wanted https://host/path")
    if parts.scheme == "http" and not (allow_http or _is_loopback(parts.hostname)):
        raise InputError(f"{url}: plain http can be changed on the way; use https, or say --allow-http")
    return url


def redirected_url(url: str, location: str) -> str:
    """Return where a redirect leads.

    One from https to http, or to a host that is neither the same nor EMPIAR's, raises `InputError`.
    """
    try:
        target = urllib.parse.urljoin(url, location)
        check_url(target, allow_http=True)
    except (InputError, ValueError) as error:
        raise Unavailable(f"{url}: redirects to what is not followed ({error})") from None
    old, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if new.scheme == "http" and old.scheme == "https":
        raise Unavailable(f"{url}: redirects to plain http ({target}), which is not followed; check the address")
    known = any(f".{new.hostname}".endswith(f".{host}") for host in REDIRECT_HOSTS)
    if new.hostname != old.hostname and not (known and new.scheme == "https"):
        raise Unavailable(f"{url}: redirects to another host ({target}), which is not followed; check the address")
    return target


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def open_session(url: str) -> requests.Session:
    """Return a session for requests to the host of `url`."""
    session = requests.Session()
    session.headers.update({"User-Agent": f"cryon2n/{__version__}", "Accept-Encoding": "identity"})
    # A proxy for the outside world does not know this machine's own ports.
    session.trust_env = not _is_loopback(urllib.parse.urlsplit(url).hostname or "")
    return session


@contextlib.contextmanager
def open_url(
    session: requests.Session,
    url: str,
    settings: FetchSettings,
    method: str = "GET",
    headers: dict | None = None,
) -> Iterator[requests.Response]:
    """Give the response to one request (status 200, 206 or 416), for use inside `with_retries`."""
    target = check_url(url, settings.allow_http)
    timeout = (settings.connect_timeout, settings.read_timeout)
    for _ in range(REDIRECTS + 1):
        try:
            response = session.request(
                method, target, headers=headers, stream=True, allow_redirects=False, timeout=timeout
            )
        except requests.RequestException as error:
            raise Again(reason_of(error)) from None
        with response:
            if response.is_redirect:
                target = redirected_url(target, response.headers["Location"])
                continue
            status = response.status_code
            if status in (408, 425, 429) or status >= 500:
                wait = integer(response.headers.get("Retry-After")) or 0
                raise Again(f"the server answered {status} {response.reason!r}", wait=min(wait, settings.max_backoff))
            if status not in (200, 206, 416):
                raise Unavailable(f"{url}: the server answered {status} {response.reason!r}; check the address")
            yield response
            return
    raise Unavailable(f"{url}: more than {REDIRECTS} redirects; check the address")


class Patience:
    """Counts failures in a row that brought nothing new, and waits between attempts.

    Parameters
    ----------
    what : str
        What the messages call the thing asked for.
    settings : FetchSettings
    """

    def __init__(self, what: str, settings: FetchSettings):
        self.what, self.settings, self.failures = what, settings, 0

    def pause_after(self, again: Again, progressed: bool = False) -> float:
        """Return the seconds to wait before the next attempt; the last failure allowed raises `Unavailable`.

        Attempts that bring new bytes do not count as failures: a large file may need many.
        """
        self.failures = 1 if progressed else self.failures + 1
        if self.failures >= self.settings.attempts:
            raise Unavailable(
                f"{self.what}: gave up after {self.failures} attempts in a row that brought nothing new "
                f"(last: {again}); run it again later (a download goes on from what is there)"
            )
        # Exponential with jitter, so that many clients do not come back in step.
        pause = min(self.settings.max_backoff, self.settings.backoff * 2 ** (self.failures - 1))
        pause = max(pause * random.uniform(0.5, 1.0), again.wait)
        count = "" if progressed else f" (failure {self.failures} of {self.settings.attempts})"
        log.say(f"{again}{count}; next attempt in {pause:.1f} s")
        return pause


def with_retries(attempt: Callable[[], T], what: str, settings: FetchSettings) -> T:
    """Call `attempt` until it raises no `Again`, with pauses between."""
    patience = Patience(what, settings)
    while True:
        try:
            return attempt()
        except Again as again:
            time.sleep(patience.pause_after(again))


class Throttle:
    """Holds several threads together below a rate.

    Parameters
    ----------
    rate : float or None
        Bytes per second; None for no limit.
    """

    def __init__(self, rate: float | None):
        self.rate, self.lock, self.free_at = rate, threading.Lock(), 0.0

    def wait_after(self, count: int) -> float:
        """Return the seconds to wait after `count` bytes."""
        if self.rate is None:
            return 0.0
        with self.lock:
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + count / self.rate
            return self.free_at - now


def add_web_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all commands which ask a server share."""
    parser.add_argument("--allow-http", action="store_true", help="accept plain http, which can be changed on the way")
    add_settings_arguments(parser)


def web_settings(args: argparse.Namespace) -> FetchSettings:
    """Build the settings from the parsed arguments of `add_web_arguments`."""
    settings = settings_from_arguments(FetchSettings, args)
    return dataclasses.replace(settings, allow_http=settings.allow_http or args.allow_http)


def integer(text: object) -> int | None:
    """Return a plain decimal number from a server as int, anything else as None."""
    return int(str(text)) if re.fullmatch(r"[0-9]{1,18}", str(text)) else None


def reason_of(error: Exception) -> str:
    """Return the innermost message of a requests or urllib3 error, which wrap one another."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", None) or inner)
