"""Write patch shards: the patches of the training micrographs, cut from their halves in one pass.

Each thread takes a micrograph at a time: it looks for bad areas, normalises the halves, casts them to float16
row by row of patches, and writes them where they belong in the arrays.  Two further threads hash the arrays
behind them, and one brings what is written to the disk (`shards_part`).  The files depend neither on the number
of threads nor on the time, and a run that was killed goes on with the micrographs that are not written.
"""

import argparse
import concurrent.futures
import os
import time
from pathlib import Path
from typing import Any

from cryon2n import __version__, excluded, files, log, pair, shards, shards_bad, shards_cut
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments
from cryon2n.shards_cut import Task
from cryon2n.shards_pairings import Pairing, pairings
from cryon2n.shards_part import Order, Part, Stopped, open_part
from cryon2n.shards_tiles import ShardSettings, patch_positions


def write_shards(
    train: list[Path], held_out: dict[str, list[str]], directory: Path, settings: ShardSettings, threads: int = 2
) -> dict[str, Any]:
    """Write the shards of the training micrographs, then the manifest.

    Parameters
    ----------
    train : list of Path
        Records of the training micrographs' halves.
    held_out : dict
        ``val`` and ``test``: names of micrographs that training must never see.
    directory : Path
    settings : ShardSettings
    threads : int
        Micrographs that are worked on at a time.

    Returns
    -------
    manifest : dict

    Raises
    ------
    InputError
        A micrograph is in two splits, pixel sizes differ, a micrograph is too small for a patch, its halves are
        damaged or hold values beyond float16, all patches are bad, the disk is full …  Nothing is left then.
    """
    tasks = _plan(train, held_out, settings)
    with open_part(directory, settings.patch) as part:
        try:
            part.reserve(sum(len(task.patches) for task in tasks))
            entries, digests = _write_arrays(tasks, part, settings, threads)
            manifest = _manifest(tasks, held_out, settings, entries, digests)
            part.finish(manifest)
        except InputError:
            part.discard()
            raise
    return manifest


def _plan(train: list[Path], held_out: dict[str, list[str]], settings: ShardSettings) -> list[Task]:
    """Read the records and check that they belong together."""
    if not train:
        raise InputError("no training micrographs; wanted at least one record of halves")
    records = [pair.read_record(path) for path in train]
    names = [record["micrograph"] for record in records]
    shards.check_disjoint({"train": names, "val": [], "test": [], **held_out})
    sizes = {record["pixel_size_A"] for record in records}
    if len(sizes) > 1:
        raise InputError(f"pixel sizes differ among the training micrographs: {sorted(sizes)} Å; wanted one")
    masks = shards_bad.find_masks(settings.masks, names) if settings.masks is not None else {}
    if settings.masks is not None:
        log.say(f"{settings.masks}: masks of {len(masks)} of the {len(names)} micrographs")
    code = shards_cut.code()
    tasks = [
        Task(
            path,
            record,
            files.sha256_of(path),
            patch_positions(record, settings),
            pairings(path, record, settings.pairings),
            masks.get(record["micrograph"]),
            code,
        )
        for path, record in zip(train, records, strict=True)
    ]
    kinds = sorted({str(task.pairings[0].name) for task in tasks})
    if len(kinds) > 1:
        raise InputError(
            f"groups of frames differ among the training micrographs, whose halves are {' and '.join(kinds)}; wanted "
            f"one kind for shards: pairings {settings.pairings}"
        )
    return tasks


def _write_arrays(
    tasks: list[Task], part: Part, settings: ShardSettings, threads: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Write all patches; returns what the journal says of each micrograph, and the arrays' SHA-256 by side."""
    order = Order([len(task.patches) for task in tasks])
    resumed = 0

    def work(index: int) -> dict[str, Any]:
        nonlocal resumed
        order.check()
        entry, known = write_micrograph(tasks[index], index, part, order, settings)
        resumed += known
        order.wrote(index)
        return entry

    def ended(job: concurrent.futures.Future[Any]) -> None:
        if (error := job.exception()) is not None and not isinstance(error, Stopped):
            order.fail(error)

    with (
        concurrent.futures.ThreadPoolExecutor(3, "behind") as behind,
        concurrent.futures.ThreadPoolExecutor(max(1, threads), "write") as writing,
    ):
        try:
            digests = {side: behind.submit(part.follow, side, order) for side in "ab"}
            flushed = behind.submit(part.flush, order)
            jobs = [writing.submit(work, index) for index in range(len(tasks))]
            for job in (*digests.values(), flushed, *jobs):
                job.add_done_callback(ended)
            progress = log.Progress(len(tasks), "micrographs")
            for done, _ in enumerate(concurrent.futures.as_completed(jobs), start=1):
                progress.update(done)
            concurrent.futures.wait([*digests.values(), flushed])
        except BaseException as error:  # a person's interruption must reach threads that wait
            order.fail(error)
            raise
    if order.error is not None:
        raise order.error
    if resumed:
        log.say(f"{resumed} of {len(tasks)} micrographs were there from an earlier run")
    return [job.result() for job in jobs], {side: digest.result() for side, digest in digests.items()}


def write_micrograph(
    task: Task, index: int, part: Part, order: Order, settings: ShardSettings
) -> tuple[dict[str, Any], bool]:
    """Write the patches of one micrograph, and say so in the journal.

    Returns
    -------
    entry : dict
        The journal's: ``kept`` (numbers of the patches that are kept, of all that the micrograph has), ``bad`` (the
        share of bad pixels of each, kept or not), ``first`` (the number of the first among all), ``crc32`` by side.
    known : bool
        They were there already.
    """
    name, key = task.record["micrograph"], task.key(settings)
    earlier = part.entries.get(name)
    if earlier is not None and earlier.get("key") != key:
        earlier = None
    bad = earlier["bad"] if earlier else shards_cut.bad_patches(task, settings)
    kept = [k for k, share in enumerate(bad) if share <= settings.max_bad]
    if len(kept) < len(bad) and not earlier:
        log.say(f"{name}: {len(bad) - len(kept)} of {len(bad)} patches left out, more than {settings.max_bad:.0%} bad")
    first = order.place(index, len(kept))
    if earlier and earlier["first"] == first and part.holds(earlier):
        return earlier, True
    chosen = [task.patches[k] for k in kept]
    checksums = {side: shards_cut.write_half(task, side, chosen, first, part, order) for side in "ab"}
    entry = {"micrograph": name, "key": key, "first": first, "kept": kept, "bad": bad, "crc32": checksums}
    part.note(entry)
    return entry, False


# ---------------------------------------------------------------------------- the manifest


def _manifest(
    tasks: list[Task],
    held_out: dict[str, list[str]],
    settings: ShardSettings,
    entries: list[dict[str, Any]],
    digests: dict[str, str],
) -> dict[str, Any]:
    """Say everything about the shards."""
    patches, micrographs = [], []
    for task, entry in zip(tasks, entries, strict=True):
        record = task.record
        for k, *checksums in zip(entry["kept"], entry["crc32"]["a"], entry["crc32"]["b"], strict=True):
            pairing, y, x = task.patches[k]
            which = {} if pairing.name is None else {"pairing": pairing.name}
            noise = {f"noise_var_{side}": pairing.sides[side]["noise_var"] for side in "ab"}
            crc = {f"crc32_{side}": value for side, value in zip("ab", checksums, strict=True)}
            patches.append({"micrograph": record["micrograph"], **which, "y": y, "x": x, **noise, **crc})
        left_out = sorted(set(range(len(task.patches))) - set(entry["kept"]))
        sums = {pairing.name: pairing.sides for pairing in task.pairings if not pairing.stored}
        micrographs.append(
            {
                "micrograph": record["micrograph"],
                "first": entry["first"],
                "patches": len(entry["kept"]),
                "left_out": [_left_out(task.patches[k], entry["bad"][k]) for k in left_out],
                "mask_sha256": task.mask_sha256,
                "record_sha256": task.record_sha256,
                **{key: record.get(key) for key in ("shape", "valid", "producer", "alignment", "dose_weighted")},
                **{side: record[side] for side in "ab"},
                **({"pairings": sums} if sums else {}),
            }
        )
    if not patches:
        raise InputError(
            f"all patches of the {len(tasks)} micrographs have more than {settings.max_bad:.0%} bad pixels; wanted at "
            "least one good patch: look at the halves and masks, or raise shards: max_bad"
        )
    shape = [len(patches), settings.patch, settings.patch]
    return {
        "format": shards.FORMAT,
        "version": shards.VERSION,
        "producer": f"cryon2n {__version__} write-shards",
        "code": tasks[0].code,
        "dtype": "float16",
        "byte_order": "little",
        "shape": shape,
        "data_offset": shards.OFFSET,
        "pixel_size_A": tasks[0].record["pixel_size_A"],
        "units": "normalised, (x - offset) / scale of each half: the same signal in a and b, independent noise",
        "groups": {side: _group([task.record[side] for task in tasks]) for side in "ab"},
        **_pairings(tasks),
        "overlap": settings.overlap,
        "max_bad": settings.max_bad,
        "left_out": sum(len(about["left_out"]) for about in micrographs),
        "arrays": {
            side: {"file": f"train_{side}.npy", "bytes": shards.file_bytes(shape), "sha256": digests[side]}
            for side in "ab"
        },
        "split": {"train": [task.record["micrograph"] for task in tasks], **held_out},
        "micrographs": micrographs,
        "patches": patches,
    }


def _left_out(patch: tuple[Pairing, int, int], bad: float) -> list[Any]:
    """Say which patch was left out: [y, x, share of bad pixels], and its pairing where there are several."""
    pairing, y, x = patch
    return [y, x, bad, *([] if pairing.name is None else [pairing.name])]


def _pairings(tasks: list[Task]) -> dict[str, Any]:
    """Say which pairings there are, the halves' first; nothing where the halves are all."""
    if tasks[0].pairings[0].name is None:
        return {}
    found = {}
    for of_all in zip(*(task.pairings for task in tasks), strict=True):
        sides = {side: _group([pairing.sides[side] for pairing in of_all]) for side in "ab"}
        found[of_all[0].name] = {
            "halves": of_all[0].stored,
            **{side: {"groups": list(of_all[0].groups[side]), **sides[side]} for side in "ab"},
        }
    return {"pairings": found}


def _group(sides: list[dict[str, Any]]) -> dict[str, Any]:
    """Say which frames a half holds, their number and dose: what is the same in all micrographs, else None."""
    found = [{"which": _which(s), **{k: s.get(k) for k in ("n_frames", "dose_e_per_A2")}} for s in sides]
    return {key: value if all(other[key] == value for other in found) else None for key, value in found[0].items()}


def _which(side: dict[str, Any]) -> str | None:
    """Return a half's frames as ``first:stop:step``, counted from 0; None where they are unknown or follow no step."""
    frames = side.get("frames")
    if not frames:
        return side.get("which")
    step = frames[1] - frames[0] if len(frames) > 1 else 1
    if step < 1 or frames != list(range(frames[0], frames[-1] + 1, step)):
        return None
    return f"{frames[0]}:{frames[-1] + 1}:{step}"


# ---------------------------------------------------------------------------- command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="records of the training halves")
    parser.add_argument("--val", nargs="*", default=[], help="names of the validation micrographs")
    parser.add_argument("--test", nargs="*", default=[], help="names of the test micrographs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets the arrays and manifest.json")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: %(default)s")
    excluded.add_excluded_argument(parser)
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(ShardSettings, args)
    if args.threads < 1:
        raise InputError(f"--threads {args.threads}: wanted 1 or more")
    train = excluded.kept(args.train, args.excluded, "training")
    began = time.monotonic()
    manifest = write_shards(train, {"val": args.val, "test": args.test}, args.out, settings, args.threads)
    n, p, _ = manifest["shape"]
    size, seconds = 2 * shards.file_bytes(manifest["shape"]) / 1e9, time.monotonic() - began
    log.say(
        f"{n} patches of {p} x {p} from {len(train)} micrographs, {size:.2f} GB in {seconds:.1f} s"
        + (f"; {manifest['left_out']} bad ones left out" if manifest["left_out"] else "")
    )


COMMANDS = {"write-shards": (_add_arguments, _run)}
