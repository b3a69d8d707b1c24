"""Take the halves in another program's folder: find the pairs, verify each, write the sheet.

A pair is compared with itself and with wrong partners (a with the b of other micrographs), so that a
shuffled pairing, and a pattern that all micrographs of a detector share, are seen for what they are.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from cryon2n import files, log, pair_check
from cryon2n.errors import InputError
from cryon2n.halves_import import read_halves
from cryon2n.pair_check import Match, Noise, Signature
from cryon2n.pair_sheet import PairRow, sheet_text
from cryon2n.producers import FINDERS, Known, find_pairs

PARTNERS = 24  # wrong partners that every pair is compared with


@dataclasses.dataclass(frozen=True)
class Verified:
    """A pair that was looked at: its signatures and noise, or why it cannot be a pair."""

    row: PairRow
    a: Signature | None = None
    b: Signature | None = None
    noise: Noise | None = None
    refused: str | None = None


def look_at(row: PairRow) -> Verified:
    """Read a pair, check its noise, and keep what is compared with other micrographs."""
    try:
        a, b, size = read_halves(row)
        noise = pair_check.check_noise(a, b, size, bool(row.dose_weighted), row.micrograph)
    except InputError as error:
        return Verified(row, refused=str(error))
    row = dataclasses.replace(row, pixel_size_A=size)
    return Verified(row, pair_check.signature(a, size), pair_check.signature(b, size), noise)


def comparable(x: Verified, y: Verified) -> bool:
    """Tell whether a of one micrograph can be tried as a wrong partner of b of another.

    Their fields must have one size.  The tilts of one stack show the same place and do correlate.
    """
    same_field = x.a is not None and y.b is not None and (x.a.shape, x.a.step) == (y.b.shape, y.b.step)
    return same_field and x.row.b != y.row.b


def compare(pairs: list[Verified]) -> tuple[list[Match | None], list[list[tuple[float, int]]]]:
    """Correlate each a with its b and with the b of up to `PARTNERS` others.

    Returns
    -------
    own : list of Match or None
        None for pairs that were refused already.
    wrong : list of list of (float, int)
        For each pair the peak (z) with other micrographs, and which.
    """
    own, wrong = [], []
    n = len(pairs)
    for i, pair in enumerate(pairs):
        own.append(None if pair.refused else pair_check.match(pair.a, pair.b))
        others = [j % n for j in range(i + 1, i + n) if comparable(pair, pairs[j % n])]
        # A pair that fails is compared with all, so that its partner can be named.
        if own[i] is not None and own[i].z >= pair_check.LEAST_Z:
            others = others[:PARTNERS]
        wrong.append([(pair_check.match(pair.a, pairs[j].b).z, j) for j in others])
    return own, wrong


def verify(rows: list[PairRow]) -> tuple[list[PairRow], list[str]]:
    """Verify pairs with one another.

    Returns
    -------
    good : list of PairRow
        With their pixel sizes filled in.
    refused : list of str
        A sentence for every other one.
    """
    progress = log.Progress(len(rows), "pairs read")
    pairs = []
    for row in rows:
        pairs.append(look_at(row))
        progress.update(len(pairs))
    own, wrong = compare(pairs)
    good, refused = [], []
    for pair, found, others in zip(pairs, own, wrong, strict=True):
        sentence = pair.refused
        if found is not None:
            best, j = max(others, default=(None, -1))
            try:
                if best is not None and best > max(pair_check.LEAST_Z, found.z):
                    raise InputError(
                        f"{pair.row.micrograph}: its a fits the b of {pairs[j].row.micrograph} ({best:.1f} standard "
                        f"deviations) better than its own ({found.z:.1f}); the pairing is shuffled: pair them anew"
                    )
                pair_check.check_signal(found, best, pair.row.micrograph)
            except InputError as error:
                sentence = str(error)
        if sentence is None:
            good.append(pair.row)
            for warning in pair_check.warnings(found, pair.noise, pair.row.pixel_size_A):
                log.say(f"warning: {pair.row.micrograph}: {warning}")
        else:
            refused.append(sentence)
    heights = [m.z for m in own if m is not None]
    if heights:
        others = [z for tries in wrong for z, _ in tries]
        against = f"; {len(others)} wrong pairings reach {max(others):.1f}" if others else ""
        log.say(
            f"{len(heights)} pairs correlate by {min(heights):.1f} to {max(heights):.1f} standard deviations{against}"
        )
    return good, refused


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what the program wrote")
    parser.add_argument("--from", dest="producer", choices=list(FINDERS), required=True, help="the program")
    parser.add_argument("--out", type=Path, metavar="SHEET.tsv", help="the sheet of pairs; default: standard output")
    parser.add_argument("--pixel-size", type=float, metavar="A", help="Å; default: the program's files say it")
    parser.add_argument("--frames", type=int, metavar="N", help="frames summed per movie, where no file says it")
    parser.add_argument("--columns", nargs=2, metavar=("A", "B"), help="cryosparc: the slots that hold the halves")
    parser.add_argument("--leave-out", action="store_true", help="write the sheet without the pairs that are refused")


def _run(args: argparse.Namespace) -> None:
    if args.columns and args.producer != "cryosparc":
        raise InputError("--columns is for --from cryosparc; leave it out")
    if args.frames is not None and args.frames < 2:
        raise InputError(f"--frames: found {args.frames}, wanted 2 or more")
    known = Known(args.pixel_size, args.frames, tuple(args.columns) if args.columns else None)
    rows = find_pairs(args.folder, args.producer, known)
    good, refused = verify(rows)
    for sentence in refused:
        log.say(f"refused: {sentence}")
    if refused and not (args.leave_out and good):
        rest = "" if not good else "; --leave-out writes the sheet without them"
        raise InputError(f"{args.folder}: {len(refused)} of {len(rows)} pairs are refused (see above){rest}")
    if None in good[0].n_frames:
        log.say("the number of frames is not known; give --frames if all movies have the same")
    if good[0].dose_weighted:
        log.say(f"warning: {args.producer} weighted these frames by dose; docs/other-programs.md says how not to")
    base = args.out.parent if args.out else None
    good = [dataclasses.replace(row, a=_place(row.a, base), b=_place(row.b, base)) for row in good]
    if args.out:
        files.write_text(args.out, sheet_text(good))
        log.say(f"{args.out}: {len(good)} pairs; use it with source: kind: halves")
    else:
        sys.stdout.write(sheet_text(good))


def _place(path: str, base: Path | None) -> str:
    """Return a path as the sheet in `base` names it, or whole where the sheet's place is not known."""
    whole = os.path.abspath(path)
    return whole if base is None else os.path.relpath(whole, os.path.abspath(base))


COMMANDS = {"import": (_add_arguments, _run)}
