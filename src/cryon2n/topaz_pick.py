"""The command ``pick-topaz``: Topaz's pretrained detector on what each method made, for `picking_score`.

Topaz (Bepler et al., Nature Methods 16:1153, 2019) is under the GPL and is only ever run as a program, in the
environment that ``envs/topaz.sh`` builds: ``topaz preprocess``, which scales and normalises, and ``topaz extract`` with
its default weights ``resnet16``.
"""

import argparse
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cryon2n import excluded, files, log, mrcio, particles
from cryon2n.errors import InputError
from cryon2n.pair import load_pair, read_shown
from cryon2n.picking_score import PICK_COLUMNS
from cryon2n.topaz_run import DEVICES, read_environment

MODEL = "resnet16"
RADIUS = 8  # px that a particle's radius gets by scaling: the network sees 71 px, as wide as four particles
LEAST = -6.0  # log-likelihood ratio below which nothing is picked: Topaz's default


def detect(
    environment: str | Path,
    images: Mapping[str, np.ndarray],
    radius: float,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pick particles with Topaz's pretrained detector.

    Parameters
    ----------
    environment : path
        That ``envs/topaz.sh`` built.
    images : mapping of ndarray, shape (h, w)
    radius : float
        Of a particle, in pixels.
    device : str
        ``cpu``, ``cuda`` or ``auto``.
    threads : int, optional

    Returns
    -------
    dict of (places, scores)
        Places (n, 2) as (y, x) in the images' pixels, and log-likelihood ratios (n,).

    Raises
    ------
    InputError
        The environment is not ready, or Topaz failed.
    """
    read_environment(environment)
    scale = max(round(radius / RADIUS), 1)
    names = {f"{i:05d}": name for i, name in enumerate(images)}
    with tempfile.TemporaryDirectory(prefix="cryon2n-topaz-") as scratch:
        for stem, name in names.items():
            mrcio.write_mrc(Path(scratch, "in", f"{stem}.mrc"), images[name].astype(np.float32), 1.0)
        found = [f"{stem}.mrc" for stem in names]
        scaling = ["preprocess", "-s", scale, "-o", "scaled/", *(f"in/{name}" for name in found)]
        picking = ["extract", "-m", MODEL, "-r", max(round(radius / scale), 1), "-x", scale, "-t", LEAST]
        picking += ["-o", "picks.txt", *(f"scaled/{name}" for name in found)]
        for words in (scaling, picking):
            _run_topaz(environment, [*words, "-d", DEVICES[device]], scratch, threads)
        rows = files.read_table(Path(scratch, "picks.txt"), ["image_name", "x_coord", "y_coord", "score"])
    out = {}
    for stem, name in names.items():
        own = [row for row in rows if row["image_name"] == stem]
        places = np.array([(float(r["y_coord"]), float(r["x_coord"])) for r in own]).reshape(-1, 2)
        out[name] = places, np.array([float(r["score"]) for r in own])
    return out


def _run_topaz(environment: str | Path, words: Sequence[object], cwd: str, threads: int | None) -> None:
    """Run one of Topaz's commands; -I and -W as for ``topaz denoise`` (`topaz_run`)."""
    python = Path(environment).absolute() / "bin" / "python"
    name, *rest = map(str, words)
    env = dict(os.environ)
    if threads is not None:
        env.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    command = [str(python), "-I", "-W", "ignore", "-m", f"topaz.commands.{name}", *rest]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if done.returncode:
        tail = "\n  ".join(done.stdout.decode(errors="replace").splitlines()[-6:])
        raise InputError(f"topaz {name} ended with exit code {done.returncode}; the last that it printed:\n  {tail}")


# ---------------------------------------------------------------------------- command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--env", required=True, metavar="DIR", help="environment that envs/topaz.sh built")
    add("--halves", type=Path, nargs="+", required=True, metavar="RECORD", help="the test micrographs' {mic}.json")
    add("--denoised", type=Path, required=True, metavar="DIR", help="holds a folder for each method")
    add("--methods", nargs="+", required=True, metavar="METHOD")
    particles.add_arguments(parser)
    excluded.add_excluded_argument(parser)
    add("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: Topaz decides)")
    add("--picks", type=Path, required=True, metavar="TSV", help="written: all picks")


def _run(args: argparse.Namespace) -> None:
    records = excluded.kept(args.halves, args.excluded, "test")
    pairs, known = particles.marked([load_pair(record) for record in records], args.truth, args.labels)
    radius = float(np.median([k.radius for k in known])) / pairs[0].pixel_size
    rows = []
    for method in args.methods:
        images = {pair.name: read_shown(pair, args.denoised / method) for pair in pairs}
        for name, (places, scores) in detect(args.env, images, radius, args.device, args.threads).items():
            for (y, x), score in zip(places.tolist(), scores.tolist(), strict=True):
                rows.append(dict(zip(PICK_COLUMNS, ("topaz", method, name, x, y, score), strict=True)))
        log.say(f"{method}: {sum(row['method'] == method for row in rows)} picks")
    files.write_table(args.picks, rows, PICK_COLUMNS)


COMMANDS = {"pick-topaz": (_add_arguments, _run)}
