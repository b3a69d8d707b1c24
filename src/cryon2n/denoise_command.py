"""The command ``denoise``: any micrographs, from RELION, cryoSPARC, Warp or plain files, with trained weights."""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from cryon2n import (
    denoise_live,
    denoise_scale,
    denoise_timing,
    device,
    log,
    memory,
    micrograph_inputs,
    micrograph_outputs,
    readahead,
)
from cryon2n.denoise_devices import Worker, parse_devices, run_on_devices
from cryon2n.denoise_done import DONE, FAILED, WAS_DONE, Finished, write_summary
from cryon2n.denoise_many import Job, Pipeline
from cryon2n.denoise_model import Model, load_model
from cryon2n.denoise_tiles import SMALLEST
from cryon2n.denoise_timing import lap
from cryon2n.denoise_uncertainty import calibrate, read_calibration, write_calibration
from cryon2n.errors import InputError
from cryon2n.micrograph_inputs import Micrograph
from cryon2n.micrograph_outputs import StarRow

SUMMARY = "summary.tsv"
SUMMARY_EVERY = 10.0  # s between two writings while micrographs come in


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("micrographs", nargs="+", metavar="MICROGRAPHS",
        help="MRC or TIFF files, globs, folders, RELION's micrographs.star, cryoSPARC's .cs")  # fmt: skip
    add("-o", "--out", type=Path, metavar="DIR", help="gets one MRC per micrograph, micrographs.star, summary.tsv")
    add("--weights", type=Path, required=True, help="weights (safetensors) that train-unet wrote")
    add("--full", action="store_true", help="denoise the whole exposure even where both halves are there (faster)")
    add("--pixel-size", type=float, metavar="A", help="Å; default: what STAR file, .cs or header say")
    add("--rescale", choices=denoise_scale.CHOICES, default="auto",
        help="denoise at the model's pixel size: where the two clearly differ (auto), never, or always")  # fmt: skip
    add("--dtype", choices=["float32", "float16"], default="float32", help="of the results")
    add("--quicklook", action="store_true", help="write a PNG of each, too")
    add("--uncertainty", action="store_true", help="write a map of the standard error, too (needs halves)")
    add("--calibration", type=Path, metavar="JSON", help="for --uncertainty: what --calibrate wrote")
    add("--calibrate", type=Path, metavar="JSON",
        help="calibrate the uncertainty on these halves, not of the training; nothing else is written")  # fmt: skip
    add("--signal-free", action="store_true",
        help="denoise the halves' difference, too: summary.tsv says how much came out (needs halves)")  # fmt: skip
    add("--live", action="store_true", help="go on with what arrives, until --live-minutes are over or Ctrl-C")
    add("--live-minutes", type=float, metavar="MIN", help="default: until Ctrl-C")
    add("--again", action="store_true", help="make anew what an earlier run has made just so")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add("--tile", type=int, metavar="PIXELS", help="side of the regions denoised at once; default: by the device")
    add("--symmetries", type=int, choices=[1, 8], default=1,
        help="8: mean over the turned and mirrored versions, a little better for 8 times the work")  # fmt: skip
    add("--compile", action="store_true", help="compile the network; for hundreds of micrographs of one size")
    add("--timing", type=Path, metavar="TSV", help="write where the time went: seconds of each stage")
    add("--devices", nargs="+", metavar="D", help="several GPUs: all, or their numbers; instead of --device")
    device.add_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    _check(args)
    if args.timing is None:
        return _denoise(args)
    with denoise_timing.recording() as timing:
        timing.add_start()
        try:
            return _denoise(args)
        finally:
            timing.write(args.timing)


def _denoise(args: argparse.Namespace) -> int:
    memory.keep_freed_memory()
    with lap("find micrographs"):
        micrographs = [] if args.live else _find(args)
    where = str(device.choose("cpu" if args.devices else args.device, args.threads))
    devices = parse_devices(args.devices) if args.devices else [where]
    several = len(devices) > 1
    if several and args.timing is not None:
        raise InputError("--timing: tells of one process; leave it out, or take one device")
    if not several and ":" in devices[0]:
        torch.cuda.set_device(devices[0])
    # With several devices only for its card and checksum: each worker loads its own.
    with lap("load weights"):
        run = args.precision, args.tile, args.compile, args.symmetries
        model = load_model(args.weights, "cpu" if several else devices[0], *run)
    if several:  # who read ahead themselves
        readahead.stop()
    job = Job(
        out=args.out or Path(),
        pixel_size=args.pixel_size,
        rescale=args.rescale,
        full=args.full,
        uncertainty=args.uncertainty,
        signal_free=args.signal_free,
        sums=args.calibrate is not None,
        factor=_factor(args, model),
        dtype=args.dtype,
        quicklook=args.quicklook,
        images=args.calibrate is None,
        again=args.again,
    )
    stop = threading.Event()
    source = (
        denoise_live.arriving(lambda: _find(args), stop, args.live_minutes, denoise_live.INTERVAL)
        if args.live
        else micrographs
    )
    if several:
        worker = Worker(str(args.weights), run, args.threads)
        results = run_on_devices(devices, worker, job, source, stop)
    else:
        results = Pipeline(model, job, stop).run(source)
    if args.calibrate is not None:
        return _calibrate(args, model, results)
    return _report(args, results, len(micrographs))


def _check(args: argparse.Namespace) -> None:
    if (args.out is None) == (args.calibrate is None):
        raise InputError("give either -o DIR, for the results, or --calibrate JSON")
    if args.calibration is not None and not args.uncertainty:
        raise InputError("--calibration: is of use with --uncertainty only; give that, too")
    if args.calibrate is not None and args.live:
        raise InputError("--calibrate: wants micrographs that are there; leave out --live")
    if args.live_minutes is not None and not (args.live and args.live_minutes > 0):
        raise InputError(f"--live-minutes {args.live_minutes:g}: wanted more than 0, together with --live")
    if args.tile is not None and args.tile < SMALLEST:
        raise InputError(f"--tile {args.tile}: wanted {SMALLEST} pixels or more")
    if args.pixel_size is not None and not 0 < args.pixel_size < float("inf"):
        raise InputError(f"--pixel-size {args.pixel_size:g}: wanted Å, more than 0")


def _find(args: argparse.Namespace) -> list[Micrograph]:
    """Find micrographs, other than what is in the folder for the results."""
    found = micrograph_inputs.find(args.micrographs)
    if args.out is None:
        return found
    out = args.out.resolve()
    outside = [m for m in found if not any(p.resolve().is_relative_to(out) for p in denoise_live.paths_of(m))]
    if not outside:
        raise InputError(f"{args.out}: no micrographs were found outside this folder for the results; give another")
    return outside


def _factor(args: argparse.Namespace, model: Model) -> float:
    if args.calibration is not None:
        return read_calibration(args.calibration, model.identity).factor
    if args.uncertainty:
        log.say("note: --uncertainty without --calibration shows the noise that is left, not what was smoothed away")
    return 1.0


def _report(args: argparse.Namespace, results: Iterator[Finished], n: int) -> int:
    """Say what becomes of the micrographs, and write it down, also after Ctrl-C."""
    found: list[Finished] = []
    began = written = time.monotonic()
    interrupted = False
    try:
        for finished in results:
            found.append(finished)
            log.say(_line(finished, f"{len(found)} of {n}" if n else str(len(found))))
            if time.monotonic() - written > SUMMARY_EVERY:
                write_summary(args.out / SUMMARY, [f.row for f in found])
                written = time.monotonic()
    except KeyboardInterrupt:
        interrupted = True
    write_summary(args.out / SUMMARY, [f.row for f in found])
    made = [f for f in found if f.files]
    if made:
        micrograph_outputs.write_star(args.out / "micrographs.star", [_star_row(f) for f in made])
    counts = {state: sum(f.row.status == state for f in found) for state in (DONE, WAS_DONE, FAILED)}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing to do"
    log.say(f"{text}, in {log.duration(time.monotonic() - began)}: {args.out / SUMMARY}")
    if interrupted and not args.live:
        raise KeyboardInterrupt
    return 1 if counts[FAILED] else 0


def _star_row(finished: Finished) -> StarRow:
    about = finished.micrograph
    return StarRow(finished.files["micrograph"], finished.row.pixel_size_A, about.optics, about.columns)


def _line(finished: Finished, count: str) -> str:
    row = finished.row
    if row.status == FAILED:
        return f"error: {row.sentence} ({count})"
    notes = [row.sentence] if row.sentence else []
    if row.not_finite or row.hot or row.border:
        kinds = (
            (row.not_finite, "NaN or infinite"),
            (row.hot, "hot"),
            (row.border, "in border lines of another grey level"),
        )
        notes.append("pixels replaced: " + ", ".join(f"{n} {kind}" for n, kind in kinds if n))
    if row.signal_free_percent is not None:
        notes.append(f"{row.signal_free_percent:.2f} % of the power comes out of noise alone")
    return "; ".join([f"{row.micrograph}: {row.status} ({count})", *notes])


def _calibrate(args: argparse.Namespace, model: Model, results: Iterator[Finished]) -> int:
    trained_on, sums, failed = set(json.loads(model.card.get("trained_on", "[]"))), [], 0
    for finished in results:
        row = finished.row
        if row.status == FAILED:
            log.say(f"error: {row.sentence}")
            failed += 1
        elif row.micrograph in trained_on:
            log.say(f"{row.micrograph}: is one of the training micrographs; left out")
        else:
            sums.append(finished.sums)
    found = calibrate(sums, model.identity)
    write_calibration(args.calibrate, found)
    log.say(
        f"standard error = {found.factor:.3f} times the spread of the halves ({found.low:.3f} to {found.high:.3f}, "
        f"{found.micrographs} micrographs): {args.calibrate}"
    )
    return 1 if failed else 0


COMMANDS = {"denoise": (_add_arguments, _run)}
