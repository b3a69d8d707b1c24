"""Topaz-Denoise, run as a program in an environment of its own, on the same halves as everything else.

Topaz (https://github.com/tbepler/topaz; Bepler, Kelley, Noble and Berger, Nature Communications 11:5208,
2020) is under the GPL: nothing of it is imported here.  ``envs/topaz.sh`` builds its environment, and the
two commands of this module call ``python -m topaz.commands.denoise`` there, with Topaz's own defaults.

Two habits of Topaz 0.3.20 shape this module:

* ``--model`` is ignored, but a name in ``--arch`` that has no pretrained weights is opened as a file in the
  working directory.  This is the one way to give the program weights of one's own, and `denoise_images`
  takes it.
* The loss that it prints for an epoch is that of the epoch's last batch.
"""

import argparse
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import excluded, files, log, metering, mrcio
from cryon2n.errors import InputError
from cryon2n.methods import TOPAZ
from cryon2n.pair import INPUTS, load_pair, read_record, write_estimates
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.topaz_run import DEVICES, TopazRun, check_weights, read_environment, run_topaz

# Method: the --arch that stands for it, and the pixels around each of Topaz's tiles of 1024 x 1024: 500 is its
# default, its network sees 163 pixels far.  Topaz has no weights of its own for "unet3".
_ARCHS = (("unet", 500), ("unet", 192), ("unet-small", 500), ("affine", 500), ("unet3", 500))
METHODS = dict(zip(TOPAZ, _ARCHS, strict=True))


@dataclasses.dataclass(frozen=True)
class TopazTrainSettings:
    """Topaz's training, with the defaults of its own command line.

    Attributes
    ----------
    arch : str
        ``unet`` or ``unet-small``: the network, which Topaz 0.3.20 starts from its pretrained weights.
    epochs : int
        One epoch is one random crop of each training micrograph.
    crop : int
        Side of the crop in pixels.
    batch_size : int
    learning_rate : float
        Of Adagrad.
    holdout : float
        Fraction of the micrographs on which Topaz computes its validation loss.  At least one is held out:
        with none, Topaz ends with an error after the first epoch.
    num_workers : int
        Processes that read micrographs, at most as many as ``--threads``; 0 reads in the main process, for
        containers with little shared memory.
    preload : bool
        Keep all micrographs in memory.  Changes the time and nothing else.
    keep : str
        ``last`` keeps the weights after the last epoch, with which ``topaz denoise -a … -b …`` itself goes on
        to denoise; ``best`` those with the lowest validation loss that Topaz saw.
    """

    arch: str = "unet"
    epochs: int = 100
    crop: int = 800
    batch_size: int = 4
    learning_rate: float = 0.001
    holdout: float = 0.1
    num_workers: int = 16
    preload: bool = False
    keep: str = "last"

    def __post_init__(self) -> None:
        for name, known in {"arch": ("unet", "unet-small"), "keep": ("last", "best")}.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}: found {getattr(self, name)!r}, wanted {' or '.join(known)}")
        for name, least in {"epochs": 1, "crop": 32, "batch_size": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}: found {getattr(self, name)}, wanted {least} or more")
        if not 0 < self.holdout < 1:
            raise InputError(f"holdout: found {self.holdout}, wanted a fraction between 0 and 1")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate: found {self.learning_rate}, wanted more than 0")


def denoise_images(
    environment: str | Path,
    images: dict[str, np.ndarray],
    method: str,
    model: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    patch_padding: int | None = None,
) -> tuple[dict[str, np.ndarray], TopazRun]:
    """Denoise images with one call of Topaz.

    Topaz subtracts an image's mean, divides by its standard deviation and undoes both afterwards, so the
    results are in the units of the input.

    Parameters
    ----------
    environment : path
    images : dict of ndarray, shape (h, w), float32
    method : str
        A key of `METHODS`.
    model : path, optional
        Weights that `train` made; for ``topaz-trained`` and only for it.
    device, threads
        As for `run_topaz`.
    patch_padding : int or None
        Pixels around each tile of 1024 x 1024; None takes the method's own.

    Returns
    -------
    denoised : dict of ndarray, shape (h, w), float32
    run : TopazRun

    Raises
    ------
    InputError
        Topaz failed, used other weights than asked, or gave images of another shape or with NaN.
    """
    if (model is not None) != (method == "topaz-trained"):
        raise InputError(f"{method}: a model that train-topaz wrote belongs to topaz-trained, and only to it")
    ready = read_environment(environment)
    arch, padding = METHODS[method]
    arguments = ["--arch", arch, "--patch-padding", str(patch_padding or padding), "--output", "out"]
    with tempfile.TemporaryDirectory(prefix="cryon2n-topaz-") as scratch:
        for name, image in images.items():
            mrcio.write_mrc(Path(scratch, f"{name}.mrc"), image.astype(np.float32), 1.0)
        if model is not None:
            if not Path(model).is_file():
                raise InputError(f"{model}: no such file; wanted the model that train-topaz wrote")
            Path(scratch, arch).symlink_to(Path(model).absolute())
        run = run_topaz(environment, [*arguments, *(f"{n}.mrc" for n in images)], scratch, device, threads)
        check_weights(run, None if model is not None else _pretrained(ready, arch, environment)["file"])
        out = Path(scratch, "out")
        return {name: _read_result(out / f"{name}.mrc", image.shape) for name, image in images.items()}, run


def _pretrained(ready: dict[str, Any], arch: str, environment: str | Path) -> dict[str, str]:
    """Return file and SHA-256 of the pretrained weights of an --arch."""
    if arch not in ready["weights"]:
        raise InputError(f"{environment}: says nothing of Topaz's weights {arch}; build it again with envs/topaz.sh")
    return ready["weights"][arch]


def _read_result(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path.stem}: Topaz ended well but wrote no result; is there room on the disk?")
    with mrcio.open_mrc(path) as mrc:
        data = np.array(mrc.data, dtype=np.float32)
    if data.shape != shape:
        raise InputError(f"{path.stem}: Topaz gave an image of shape {data.shape}, wanted {shape}")
    bad = int(data.size - np.count_nonzero(np.isfinite(data)))
    if bad:
        raise InputError(f"{path.stem}: Topaz gave {bad} NaN or infinite pixels; is the image constant?")
    return data


def train(
    environment: str | Path,
    records: Sequence[str | Path],
    settings: TopazTrainSettings,
    model: str | Path,
    device: str = "auto",
    threads: int | None = None,
) -> dict[str, Any]:
    """Train Topaz on halves with its own program, and write the model (Topaz's format).

    The halves are cut to the region that no frame's shift wrapped around, as for every other training.
    Topaz normalises each half by its own mean and standard deviation and takes no seed.

    Parameters
    ----------
    environment : path
    records : sequence of path
        Records ``{mic}.json`` of the training micrographs' halves.
    settings : TopazTrainSettings
    model : path
        The model to write.
    device, threads
        As for `run_topaz`.

    Returns
    -------
    record : dict
        What ran, how long it took, and Topaz's losses.

    Raises
    ------
    InputError
        Too few or too small micrographs, too little disk, or Topaz failed.
    """
    ready = read_environment(environment)
    names = _check_training(records, settings.crop)
    workers = settings.num_workers if threads is None else min(settings.num_workers, threads)
    # Topaz holds out int(holdout * n); 1.5 / n makes that 1 whatever the rounding.
    holdout = max(settings.holdout, 1.5 / len(names))
    flags = {
        "--dir-a": "A",
        "--dir-b": "B",
        "--arch": settings.arch,
        "--num-epochs": settings.epochs,
        "--crop": settings.crop,
        "--batch-size": settings.batch_size,
        "--lr": settings.learning_rate,
        "--holdout": holdout,
        "--num-workers": workers,
        "--save-prefix": "saved/model",
        # It saves each best so far, and besides every so many epochs: only the last, or none.
        "--save-interval": settings.epochs if settings.keep == "last" else settings.epochs + 1,
    }
    arguments = [str(part) for flag in flags.items() for part in flag]
    arguments += ["--preload"] if settings.preload else []

    losses: list[list[float]] = []
    progress = log.Progress(settings.epochs, "epochs")

    def follow(line: str) -> None:
        if found := re.fullmatch(r"# \[\d+/\d+\]\t(\S+)\t(\S+)\t(\S+)", line):
            losses.append([float(x) for x in found.groups()])
            progress.update(len(losses), f"loss {found[1]}, validation {found[2]}")

    with tempfile.TemporaryDirectory(prefix="cryon2n-topaz-") as scratch:
        _write_training_halves(records, Path(scratch))
        log.say(f"training Topaz's {settings.arch} on {len(names)} micrographs, {settings.epochs} epochs")
        run = run_topaz(environment, arguments, scratch, device, threads, follow)
        check_weights(run, ready["weights"][settings.arch]["file"])
        if len(losses) != settings.epochs or not np.isfinite(losses).all():
            raise InputError(
                f"Topaz's training gave {len(losses)} losses for {settings.epochs} epochs, the last "
                f"{losses[-1:]}; wanted finite ones: lower learning_rate"
            )
        saved = {int(p.stem.rpartition("_epoch")[2]): p for p in Path(scratch, "saved").glob("*.sav")}
        if not saved:
            raise InputError("Topaz ended well but saved no model; is there room on the disk?")
        epoch = max(saved)
        with files.atomic_path(model) as temporary:
            shutil.copyfile(saved[epoch], temporary)
    told = "\n".join(line for _, line in run.lines)
    counts = dict(re.findall(r"^# (training|validating) \w+ (\d+) image pairs", told, re.MULTILINE))
    return {
        "method": "topaz-trained",
        **_provenance(ready, run, threads),
        "start_weights": ready["weights"][settings.arch],
        "settings": dataclasses.asdict(settings),
        "micrographs": names,
        "pairs": int(counts["training"]),
        "pairs_held_out": int(counts["validating"]),
        "epochs": settings.epochs,
        "model_epoch": epoch,
        "model_sha256": files.sha256_of(model),
        "final_loss": dict(zip(("train", "validation", "best_validation"), losses[-1], strict=True)),
        "losses": [loss[:2] for loss in losses],
    }


def _check_training(records: Sequence[str | Path], crop: int) -> list[str]:
    """Return the micrographs' names after checking that Topaz can train on them."""
    names: list[str] = []
    pixels = 0
    for path in records:
        record = read_record(path)
        y0, y1, x0, x1 = record["valid"]
        if min(y1 - y0, x1 - x0) < crop:
            raise InputError(
                f"{path}: {y1 - y0} x {x1 - x0} pixels are usable, Topaz's training crop is {crop}; "
                "lower the setting crop or leave the micrograph out"
            )
        pixels += (y1 - y0) * (x1 - x0)
        names.append(record["micrograph"])
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"micrograph {', '.join(twice)} is given twice; wanted each one once")
    if len(names) < 2:
        raise InputError(f"found {len(names)} training micrograph; wanted 2 or more, for Topaz holds one out")
    scratch = tempfile.gettempdir()
    free, wanted = shutil.disk_usage(scratch).free / 1e9, 8e-9 * pixels
    if wanted > free:
        raise InputError(
            f"{scratch}: {free:.1f} GB are free, the halves take {wanted:.1f} GB; set TMPDIR to a larger disk"
        )
    return names


def _write_training_halves(records: Sequence[str | Path], directory: Path) -> None:
    """Write the pairs' valid regions as ``A/0000.mrc``, ``B/0000.mrc``, …: Topaz pairs by file name."""
    for number, path in enumerate(records):
        pair = load_pair(path)
        mrcio.write_mrc(directory / "A" / f"{number:04d}.mrc", pair.a[pair.valid], pair.pixel_size)
        mrcio.write_mrc(directory / "B" / f"{number:04d}.mrc", pair.b[pair.valid], pair.pixel_size)


def _provenance(ready: dict[str, Any], run: TopazRun, threads: int | None) -> dict[str, Any]:
    return {
        **{name: ready[name] for name in ("topaz", "torch", "python")},
        "device": run.device,
        "threads": threads,
        "command": run.command,
        "seconds": run.seconds,
        "cpu_seconds": run.cpu_seconds,
    }


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", required=True, metavar="DIR", help="environment that envs/topaz.sh built")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to compute (default: auto)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: Topaz decides)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number from 1 on")
    return int(text)


def add_denoise_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``denoise-topaz``."""
    _add_common_arguments(parser)
    parser.add_argument("--method", choices=METHODS, required=True, help="which of Topaz's networks")
    parser.add_argument("--model", metavar="FILE", help="what train-topaz wrote (for topaz-trained only)")
    parser.add_argument("--halves", required=True, metavar="JSON", help="record of the micrograph's halves")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory for the denoised micrographs")
    parser.add_argument("--patch-padding", type=_positive, metavar="PX", help="default: the method's own")


def run_denoise(args: argparse.Namespace) -> None:
    """Denoise one micrograph's halves, whole exposure and pure noise with Topaz."""
    ready = read_environment(args.env)
    pair = load_pair(args.halves)
    images = {name: getattr(pair, name) for name in INPUTS}
    try:
        with metering.Meter(args.device != "cpu") as meter:
            estimates, run = denoise_images(
                args.env, images, args.method, args.model, args.device, args.threads, args.patch_padding
            )
    except InputError as error:
        raise InputError(f"{pair.name}, {args.method}: {error}") from None
    write_estimates(pair, estimates, args.out, args.method)
    if args.model is None:
        weights = _pretrained(ready, METHODS[args.method][0], args.env)
    else:
        weights = {"file": Path(args.model).name, "sha256": files.sha256_of(args.model)}
    each = run.seconds_per_image
    record = {
        "method": args.method,
        "micrograph": pair.name,
        **_provenance(ready, run, args.threads),
        "weights": weights,
        **meter.cost(on_gpu="cuda=True" in run.device),
        "seconds": run.seconds,
        "images": len(images),
        "seconds_per_image": None if each is None else round(each, 3),
    }
    files.write_json(Path(args.out) / f"{pair.name}.json", record)
    log.say(f"{pair.name}: {run.seconds:.1f} s wall, {run.cpu_seconds:.1f} s CPU; {run.device.lstrip('# ')}")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train-topaz``."""
    _add_common_arguments(parser)
    parser.add_argument("--halves", type=Path, required=True, nargs="+", metavar="JSON", help="the training records")
    excluded.add_excluded_argument(parser)
    parser.add_argument("--model", required=True, metavar="FILE", help="the model to write (.sav)")
    parser.add_argument("--record", required=True, metavar="JSON", help="the record to write")
    add_settings_arguments(parser)


def run_train(args: argparse.Namespace) -> None:
    """Train Topaz on the training micrographs' halves."""
    settings = settings_from_arguments(TopazTrainSettings, args)
    records = excluded.kept(args.halves, args.excluded, "training")
    record = train(args.env, records, settings, args.model, args.device, args.threads)
    files.write_json(args.record, record)
    log.say(f"{args.model}: {record['seconds']:.1f} s wall, {record['cpu_seconds']:.1f} s CPU")


COMMANDS = {
    "denoise-topaz": (add_denoise_arguments, run_denoise),
    "train-topaz": (add_train_arguments, run_train),
}
