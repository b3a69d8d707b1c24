"""A replica of EMPIAR on loopback: a real nginx that serves API replies, Apache's listings and movies.

For the tests and for ``benchmarks/fetch_throughput.py``.  Everything of the server (configuration, logs,
temporary files) lies in one folder, and what it serves in ``www`` under it, laid out as on EMPIAR:
``www/empiar/api/entry`` and ``www/empiar/world_availability``.
"""

import contextlib
import html
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryon2n import cli, files, mrcio

NO_NGINX = "nginx is not installed (Debian, Ubuntu: apt install nginx; conda: conda install -c conda-forge nginx)"
SHEET = Path(__file__).parents[1] / "config" / "movies" / "empiar-10025.tsv"
API = "empiar/api/entry"
DATA = "empiar/world_availability"
RAW = "data/14sep05c_raw_196"
GAIN, DARK, STAR = "norm-amibox05-0.mrc", "dark-amibox05-0.mrc", "run1_shiny_mp007_data_dotstar.txt"
PIXEL_SIZE, DOSE = 0.6575, 53.0  # Å, e⁻/Å²: calibrated, not the entry's rounded 0.66
EVIL_NAMES = ("../../x.mrc", "/etc/passwd", "%2e%2e%2f%2e%2e%2fy.mrc", "..%5cz.mrc", "<script>.mrc", "a b;c.mrc")
START_SECONDS, STOP_SECONDS = 15.0, 5.0


# The server


@dataclass(frozen=True)
class Request:
    """One line of the server's log: `sent` is in bytes, without headers; `range` as the client asked, or ''."""

    method: str
    path: str
    status: int
    sent: int
    range: str


@dataclass(frozen=True)
class Replica:
    """A running server: its port on 127.0.0.1, the folder that it serves, and its log of requests."""

    port: int
    root: Path
    log: Path

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_api(self) -> str:
        return f"{self.base}/{API}"

    @property
    def base_data(self) -> str:
        return f"{self.base}/{DATA}"

    def requests(self, at_least: int = 0) -> list[Request]:
        """Return the requests so far, in the order of their ends; waits up to 5 s for `at_least` of them.

        nginx writes a request's line just after its last byte, so that a client can be faster.
        """
        deadline = time.monotonic() + 5
        while True:
            lines = self.log.read_text().splitlines()
            if len(lines) >= at_least or time.monotonic() > deadline:
                return [Request(**json.loads(line)) for line in lines]
            time.sleep(0.01)


def find_nginx() -> str | None:
    """Return the path of nginx, or None; Debian keeps it where a user's PATH does not lead."""
    return shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


@contextlib.contextmanager
def nginx(
    folder: Path, ranges: bool = True, rate: int | None = None, keepalive_requests: int = 1000
) -> Iterator[Replica]:
    """Serve ``folder/www`` by nginx on a free port of 127.0.0.1 until the block ends.

    Parameters
    ----------
    folder : Path
        Of the server alone; made if missing.
    ranges : bool
        Whether Range requests are obeyed.
    rate : int, optional
        Most bytes/s of each connection.
    keepalive_requests : int
        Requests on a connection before the server closes it.
    """
    program = find_nginx()
    if program is None:
        raise RuntimeError(NO_NGINX)
    folder = folder.absolute()
    for name in ("www", "tmp", "logs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex
    options = [f"keepalive_requests {keepalive_requests};"]
    options += [] if ranges else ["max_ranges 0;"]
    options += [f"limit_rate {rate};"] if rate else []
    for _ in range(5):  # another program may take the port between our choice and nginx's start
        port = _free_port()
        (folder / "nginx.conf").write_text(_configuration(port, token, options))
        with (folder / "logs" / "stderr.log").open("ab") as stderr:
            server = subprocess.Popen(
                [program, "-p", f"{folder}/", "-c", f"{folder}/nginx.conf"],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # master and worker can be ended together, and ^C is ours to handle
            )
        try:
            if _answers(server, port, token):
                yield Replica(port, folder / "www", folder / "logs" / "requests.json")
                return
        finally:
            _stop(server)
    raise RuntimeError(f"nginx did not start:\n{(folder / 'logs' / 'stderr.log').read_text()[-2000:]}")


def _configuration(port: int, token: str, options: list[str]) -> str:
    # As root, nginx would serve as `nobody`, who may not read the tests' folders.  Elsewhere `user` is a warning.
    user = "user root root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"  {kind}_temp_path tmp/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    line = (
        '{"method":"$request_method","path":"$request_uri","status":$status,'
        '"sent":$body_bytes_sent,"range":"$http_range"}'
    )
    return f"""{user}
daemon off;
worker_processes 1;
pid logs/nginx.pid;
error_log logs/error.log;
events {{ worker_connections 256; }}
http {{
{temporary}
  log_format requests escape=json '{line}';
  access_log logs/requests.json requests;
  types {{ text/html html; text/plain txt; application/json json; }}
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  {" ".join(options)}
  server {{
    listen 127.0.0.1:{port};
    root www;
    location = /up {{ access_log off; return 200 {token}; }}
    location ~ ^/{API}/(?:EMPIAR-)?([0-9]+)/?$ {{ try_files /{API}/$1.json =404; }}
  }}
}}
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(server: subprocess.Popen, port: int, token: str) -> bool:
    """Wait until this very nginx answers; False if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/up")
            if connection.getresponse().read().decode() == token:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    return False


def _stop(server: subprocess.Popen) -> None:
    """End the server in good order if it obeys, and in any case."""
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):  # a worker may outlive its master
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


# What it serves


def write_entry(root: Path, entry: dict[str, Any]) -> None:
    """Write the API's reply of an entry, ``{"EMPIAR-10025": {…}}``."""
    (accession,) = entry
    files.write_json(root / API / f"{accession.removeprefix('EMPIAR-')}.json", entry)


def apache_listing(folder: Path, leave_out: Iterable[str] = (), add: Iterable[str] = ()) -> None:
    """Write ``index.html`` into `folder` as Apache's mod_autoindex lists it (FancyIndexing, HTMLTable).

    Names longer than 23 characters are cut in the text of their links, and sizes are rounded, as there.

    Parameters
    ----------
    folder : Path
        Its files and folders are listed.
    leave_out : iterable of str
        Names that the listing misses.
    add : iterable of str
        Further targets of links, as they stand (`EVIL_NAMES`).
    """
    leave_out = {"index.html", *leave_out}
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    rows = []
    for name in names:
        if name.rstrip("/") not in leave_out:
            path = folder / name
            size = "  - " if path.is_dir() else apache_size(path.stat().st_size)
            icon, alt = ("folder", "[DIR]") if path.is_dir() else ("unknown", "[   ]")
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(path.stat().st_mtime))
            rows.append(_row(icon, alt, urllib.parse.quote(name, safe="/$-_.+!*'(),:@&=~"), name, when, size))
    rows += [_row("unknown", "[   ]", target, target, "2015-02-27 12:00", "2.0G") for target in add]
    _, known, below = folder.absolute().as_posix().rpartition(f"/{DATA}")
    here = f"/{DATA}{below}" if known else f"/{folder.name}"
    sort = "".join(
        f'<th><a href="?C={key};O={order}">{column}</a></th>'
        for key, order, column in [
            ("N", "D", "Name"),
            ("M", "A", "Last modified"),
            ("S", "A", "Size"),
            ("D", "A", "Description"),
        ]
    )
    rule = '   <tr><th colspan="5"><hr></th></tr>'
    parent = (
        '<tr><td valign="top"><img src="/icons/back.gif" alt="[PARENTDIR]"></td>'
        f'<td><a href="{here.rpartition("/")[0]}/">Parent Directory</a></td>'
        '<td>&nbsp;</td><td align="right">  - </td><td>&nbsp;</td></tr>'
    )
    lines = [
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">',
        "<html>",
        " <head>",
        f"  <title>Index of {html.escape(here)}</title>",
        " </head>",
        " <body>",
        f"<h1>Index of {html.escape(here)}</h1>",
        "  <table>",
        f'   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th>{sort}</tr>',
        rule,
        parent,
        *rows,
        rule,
        "</table>",
        "</body></html>",
    ]
    files.write_text(folder / "index.html", "\n".join(lines) + "\n")


def _row(icon: str, alt: str, target: str, name: str, when: str, size: str) -> str:
    shown = name if len(name) <= 23 else f"{name[:20]}..>"
    return (
        f'<tr><td valign="top"><img src="/icons/{icon}.gif" alt="{alt}"></td>'
        f'<td><a href="{html.escape(target)}">{html.escape(shown)}</a>{" " * (23 - len(shown))}</td>'
        f'<td align="right">{when}  </td><td align="right">{size}</td><td>&nbsp;</td></tr>'
    )


def apache_size(size: int) -> str:
    """Return bytes as Apache's listings do: four characters, 1024 to the K, rounded (APR's ``apr_strfsize``)."""
    if size < 973:
        return f"{size:3d} "
    for unit in "KMGTPE":
        size, rest = divmod(size, 1024)
        if size >= 973:
            continue
        if size < 9 or (size == 9 and rest < 973):
            tenths = (rest * 5 + 256) // 512
            return f"{size + tenths // 10}.{tenths % 10}{unit}"
        return f"{size + (rest >= 512):3d}{unit}"
    return "****"


# EMPIAR-10025


def entry_10025(movies: int, shape: tuple[int, int], frames: int) -> dict[str, Any]:
    """Return the API's reply of EMPIAR-10025, for image sets of `movies` movies of (h, w) = `shape` pixels."""
    sets = [
        ("Raw movies", RAW, "multiframe", frames, "UNSIGNED BYTE"),
        ("Frame-averaged micrographs", "data/14sep05c_averaged_196", "single frame", 1, "32 BIT FLOAT"),
        ("Aligned multi-frame micrographs", "data/14sep05c_aligned_196", "multiframe", frames, "32 BIT FLOAT"),
    ]
    details = "Super-resolution data-acquisition."
    references = (
        f" {DARK} and {GAIN} are used for gain correction.\n{STAR} is a Relion star file with particle coordinates etc."
    )
    return {
        "EMPIAR-10025": {
            "title": "T20S Proteasome at 2.8 Å Resolution",
            "deposition_date": "2015-02-26",
            "release_date": "2015-03-06",
            "update_date": "2015-03-06",
            "status": "REL",
            "dataset_size": "2.0 TB",
            "entry_doi": "10.6019/EMPIAR-10025",
            "experiment_type": "EMDB",
            "cross_references": ["EMD-6287"],
            "imagesets": [
                {
                    "name": name,
                    "directory": f"/{directory}",
                    "category": f"micrographs - {category}",
                    "header_format": "MRC",
                    "data_format": "MRC",
                    "num_images_or_tilt_series": movies,
                    "frames_per_image": n,
                    "frame_range_min": None,
                    "frame_range_max": None,
                    "voxel_type": voxel,
                    "pixel_width": 0.66,
                    "pixel_height": 0.66,
                    "details": details + references * (directory == RAW),
                    "image_width": str(shape[1]),
                    "image_height": str(shape[0]),
                }
                for name, directory, category, n, voxel in sets
            ],
        }
    }


def simulate_10025(
    root: Path, movies: int = 2, shape: tuple[int, int] = (384, 372), frames: int = 38, **simulation: Any
) -> list[str]:
    """Put an entry like EMPIAR-10025 under `root`: its names, its kinds of files, small simulated movies.

    The references are turned upside down against the movies, as that entry's are.  Of its three image sets
    only the raw movies have files.  The movies' clean truth lies beside `root`, in ``truth/{micrograph}.mrc``
    (and ``.json``), where no download sees it.

    Parameters
    ----------
    root : Path
        What the server serves: ``folder / "www"`` of `nginx`.
    movies : int
    shape : (h, w)
        Of a frame, pixels.
    frames : int
        Of a movie; the dose of the whole exposure stays.
    simulation
        Further settings of `cryon2n.phantom_stage.PhantomSettings`.

    Returns
    -------
    micrographs : list of str
        Names of the movies' files without ``.frames.mrc``: the first of the study's movie sheet.
    """
    rows = files.read_table(SHEET, ["micrograph", "path"])
    if not 1 <= movies <= len(rows):
        raise ValueError(f"movies: found {movies}, wanted 1 to {len(rows)}, as many as {SHEET.name} names")
    rows = rows[:movies]
    entry, truth = root / DATA / "10025", root.parent / "truth"
    for folder in (entry / RAW, truth):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "shape": list(shape),
        "pixel_size_A": PIXEL_SIZE,
        "n_frames": frames,
        "dose_e_per_A2": DOSE,
        "n_movies": movies,
        # Twice the real density, so that a small frame holds a molecule; much larger ones have no room for it.
        "particles_per_um2": 2000 if max(shape) < 500 else 1000,
        **simulation,
    }
    settings_text = ["--settings", json.dumps(settings)]
    upright = ["--gain", truth / "gain.mrc", "--dark", truth / "dark.mrc"]
    _command("simulate-references", *settings_text, *upright, "--entry", truth / "entry.json")
    particles = []
    for index, row in enumerate(rows):
        name = row["micrograph"]
        outputs = ["--movie", entry / row["path"], "--truth", truth / f"{name}.mrc", "--record", truth / f"{name}.json"]
        _command("simulate-movie", *settings_text, "--index", index, "--name", name, *upright, *outputs)
        record = files.read_json(truth / f"{name}.json")
        particles += [f"{p['x_px']:.3f} {p['y_px']:.3f} {row['path']}" for p in record["particles"]]
    for path, name in [(truth / "gain.mrc", GAIN), (truth / "dark.mrc", DARK)]:
        data, pixel_size = mrcio.read_mrc(path)
        mrcio.write_mrc(entry / RAW / name, data[::-1], pixel_size)
    columns = ["_rlnCoordinateX #1", "_rlnCoordinateY #2", "_rlnMicrographName #3"]
    files.write_text(entry / RAW / STAR, "\n".join(["", "data_", "", "loop_", *columns, *particles, ""]))
    for folder in (entry / RAW, entry / "data", entry):
        apache_listing(folder)
    write_entry(root, entry_10025(movies, shape, frames))
    return [row["micrograph"] for row in rows]


def _command(*arguments: object) -> None:
    code = cli.main([str(a) for a in arguments])
    if code:
        raise RuntimeError(f"cryon2n {' '.join(map(str, arguments))} gave {code}")
