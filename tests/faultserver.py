"""A server on this machine that drops, stalls, refuses, changes and lies, as tests tell it to."""

import contextlib
import http.server
import re
import socket
import struct
import threading
import time
from collections import namedtuple
from collections.abc import Iterator

PIECE = 4096  # bytes written at once

Asked = namedtuple("Asked", "method path start status sent")


class Site(http.server.ThreadingHTTPServer):
    """Serves `contents` (path → bytes, or a redirect's target as str), one of `faults` per GET request.

    A fault is ``(kind, value)``: a ``status``; ``drop``, ``reset`` or ``stall`` after so many bytes;
    ``cut``, a drop at that position of the file wherever the request begins; ``shift``, a range that begins
    so many bytes late.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents: dict[str, bytes | str] = {}
        self.etags: list[str | None] = ['"1"']  # machines that take turns
        self.last_modified: str | None = "Wed, 01 Jul 2015 00:00:00 GMT"
        self.faults: list[tuple[str, int]] = []
        self.every: tuple[str, int] | None = None  # the fault of every request
        self.ranges = self.tells_length = True
        self.seconds_per_piece = 0.0
        self.before = lambda number: None  # called with each request's number
        self.after_bytes = lambda sent: None  # called with the bytes sent so far
        self.asked: list[Asked] = []
        self.connections = 0
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self) -> int:
        return sum(a.sent for a in self.asked)

    def process_request(self, request, client_address):
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose here


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        site: Site = self.server
        with site.lock:
            number = len(site.asked)
            site.before(number)
            site.asked.append(Asked(self.command, self.path, 0, 0, 0))
            fault, value = ("", 0)
            if self.command == "GET":
                fault, value = site.faults.pop(0) if site.faults else site.every or ("", 0)
            content, etag = site.contents.get(self.path), site.etags[number % len(site.etags)]
        if fault == "status" or not isinstance(content, bytes):
            status = value if fault == "status" else 404 if content is None else 302
            site.asked[number] = site.asked[number]._replace(status=status)
            self.send_response(status)
            if isinstance(content, str) and status == 302:
                self.send_header("Location", content)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop, status = 0, len(content), 200
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and site.ranges:
            start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
            start += value if fault == "shift" else 0
            status = 206 if start < stop else 416
        body = memoryview(content)[start:stop] if status != 416 else memoryview(b"")
        site.asked[number] = Asked(self.command, self.path, start, status, 0)
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if site.tells_length:
            self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        if site.last_modified:
            self.send_header("Last-Modified", site.last_modified)
        breaks = fault in ("drop", "reset", "stall", "cut")
        if breaks or not site.tells_length:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(body)
        if breaks:
            end = min(end, max(0, value - start) if fault == "cut" else value)
        for at in range(0, end, PIECE):
            piece = body[at : min(at + PIECE, end)]
            self.wfile.write(piece)
            with site.lock:
                site.asked[number] = site.asked[number]._replace(sent=site.asked[number].sent + len(piece))
            site.after_bytes(site.sent())
            time.sleep(site.seconds_per_piece)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if fault == "stall" and end < len(body):
            site.released.wait(10)


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """Run a site for the length of the block."""
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
