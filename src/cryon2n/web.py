"""Requests to a server that is not to be relied on: addresses, redirects, time-outs, attempts.

Used by the downloads and by the reading of listings, so that both are patient and careful alike.
"""

import contextlib
import ipaddress
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import requests

from cryon2n import __version__, log
from cryon2n.errors import InputError

T = TypeVar("T")

REDIRECT_HOSTS = ("ebi.ac.uk", "pdbj.org")  # and their subdomains: EMPIAR and its mirror
REDIRECTS = 5


@dataclass(frozen=True)
class FetchSettings:
    """How patient to be with a server; times in seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 30.0  # without one byte: some of EMPIAR's connections stall for good
    attempts: int = 8  # in a row that bring nothing new, before giving up
    backoff: float = 1.0  # pause after the first failure; doubles up to max_backoff
    max_backoff: float = 60.0
    allow_http: bool = False

    def __post_init__(self):
        positive = min(self.connect_timeout, self.read_timeout, self.attempts) > 0
        if not positive or min(self.backoff, self.max_backoff) < 0:
            raise InputError(f"{self}: time-outs and attempts must be positive, back-offs not negative")


class Again(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, reason: str, progressed: bool = False, wait: float = 0.0):
        super().__init__(reason)
        self.progressed, self.wait = progressed, wait


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
    target = urllib.parse.urljoin(url, location)
    try:
        check_url(target, allow_http=True)
    except InputError as error:
        raise InputError(f"{url}: redirects to what is not followed ({error})") from None
    old, new = urllib.parse.urlsplit(url), urllib.parse.urlsplit(target)
    if new.scheme == "http" and old.scheme == "https":
        raise InputError(f"{url}: redirects to plain http ({target}), which is not followed; check the address")
    known = any(f".{new.hostname}".endswith(f".{host}") for host in REDIRECT_HOSTS)
    if new.hostname != old.hostname and not (known and new.scheme == "https"):
        raise InputError(f"{url}: redirects to another host ({target}), which is not followed; check the address")
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
                raise Again(f"the server answered {status} {response.reason}", wait=min(wait, settings.max_backoff))
            if status not in (200, 206, 416):
                raise InputError(f"{url}: the server answered {status} {response.reason}; check the address")
            yield response
            return
    raise InputError(f"{url}: more than {REDIRECTS} redirects; check the address")


def with_retries(attempt: Callable[[], T], what: str, settings: FetchSettings) -> T:
    """Call `attempt` until a transfer in it succeeds, with exponential back-off and jitter between.

    Attempts that bring new bytes do not count as failures: a large file may need many.
    """
    failures = 0
    while True:
        try:
            return attempt()
        except Again as again:
            failures = 1 if again.progressed else failures + 1
            if failures >= settings.attempts:
                raise InputError(
                    f"{what}: gave up after {failures} attempts in a row that brought nothing new "
                    f"(last: {again}); run it again later (a download goes on from what is there)"
                ) from None
            pause = min(settings.max_backoff, settings.backoff * 2 ** (failures - 1))
            pause = max(pause * random.uniform(0.5, 1.0), again.wait)
            count = "" if again.progressed else f" (failure {failures} of {settings.attempts})"
            log.say(f"{again}{count}; next attempt in {pause:.1f} s")
            time.sleep(pause)


def integer(text: object) -> int | None:
    """Return a plain decimal number from a server as int, anything else as None."""
    return int(str(text)) if re.fullmatch(r"[0-9]{1,18}", str(text)) else None


def reason_of(error: Exception) -> str:
    """Return the innermost message of a requests or urllib3 error, which wrap one another."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", None) or inner)
