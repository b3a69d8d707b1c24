"""The command ``probe-method``: measure what one method invents, copies, keeps constant or blurs.

Reads what the method made of test micrographs and of their probes (`probes`) and writes one row per micrograph and
measure (`hallucination`), and its transfer of signal, noise and an unknown molecule by ring.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import excluded, files, hallucination, log, metrics, particles, picking, probes
from cryon2n.errors import InputError
from cryon2n.hallucination import NOTHING, READING_COLUMNS, Reading
from cryon2n.pair import INPUTS, Pair, load_pair, read_estimates, read_record, read_result

CURVES = ("signal", "noise", "injected")  # transfers of a method
CURVE_COLUMNS = ["method", "micrograph", "frequency", *CURVES]

Images = Mapping[str, np.ndarray]


def own_powers(pair: Pair, made: Images, other: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the `hallucination.OWN` powers of a micrograph; nan of what the method has not denoised."""
    images = {"a": pair.a, "b": pair.b, "d": pair.a - pair.b, "w": pair.full, "n": pair.noise}
    names = {"fa": "a", "fb": "b", "fw": "full", "fn": "noise"}
    images |= {key: made[name] for key, name in names.items() if name in made}
    if {"fa", "fb"} <= set(images):
        images["fd"] = images["fa"] - images["fb"]
    if other is not None:
        images["fo"] = other
    return metrics.ring_powers(images, pair.valid, pair.pixel_size, hallucination.OWN)


def injected_powers(probe: Pair, signal: np.ndarray, made: Images) -> dict[str, np.ndarray]:
    """Return the `hallucination.INJECTED` powers of a probe."""
    images = {"a": signal, "j": signal, **{f"g{side}": made[side] for side in "ab" if side in made}}
    return metrics.ring_powers(images, probe.valid, probe.pixel_size, hallucination.INJECTED)


def scrambled_powers(pair: Pair, made: Images, scrambled: Images) -> dict[str, np.ndarray]:
    """Return the `hallucination.SCRAMBLED` powers of a micrograph and its probe."""
    images = {"a": pair.a, "b": pair.b}
    images |= {f"f{name[0]}": made[name] for name in ("a", "b") if name in made}
    images |= {f"s{name[0]}": scrambled[name] for name in ("a", "b") if name in scrambled}
    if "full" in made and "full" in scrambled:
        images |= {"fw": made["full"], "sw": scrambled["full"]}
    powers = metrics.ring_powers(images, pair.valid, pair.pixel_size, hallucination.SCRAMBLED, taper=2)
    return {**powers, "count": powers["count"] * hallucination.HANN_SHARE}


def transfers(own: Images, injected: Images | None) -> dict[str, np.ndarray]:
    """Return by ring, smoothed, what share of signal, of noise and of an unknown molecule a method hands on."""

    def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        above, below = hallucination.running(above), hallucination.running(below)
        return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)

    out = {
        "signal": ratio(own["fa_b"] + own["fb_a"], 2 * own["a_b"]),
        "noise": ratio(own["fd_d"], own["d_d"]),
    }
    out["injected"] = np.full_like(out["noise"], np.nan)
    if injected is not None:
        out["injected"] = ratio(injected["ga_j"] + injected["gb_j"], 2 * injected["j_j"])
    return out


def measure(
    pair: Pair,
    made: Images,
    other: np.ndarray | None,
    known: particles.Known,
    about: Mapping[str, Any],
    injected: tuple[Pair, np.ndarray, Images] | None,
    scrambled: Images | None,
) -> tuple[dict[str, Reading], dict[str, np.ndarray]]:
    """Take all readings of one method on one micrograph.

    Parameters
    ----------
    pair : Pair
    made : mapping of ndarray, shape (h, w)
        What the method made of it (`pair.INPUTS`, or some of them).
    other : ndarray, shape (h, w), or None
        What it made of another micrograph's whole exposure.
    known : Known
        Particles of the micrograph.
    about : mapping
        ``probe`` of a probe's record: band, shell, seed, places of the unknown molecules.
    injected : (probe, signal, made of it), or None
    scrambled : mapping of ndarray, or None
        Made of the scrambled probe.

    Returns
    -------
    readings : dict of Reading
    curves : dict of ndarray, shape (n_rings,)
        Of `transfers`.
    """
    band, shell = tuple(about["band"]), int(about["shell"])
    rng = np.random.default_rng(int(about["seed"]))
    p = own_powers(pair, made, other)
    q = injected_powers(*injected) if injected else None
    curves = transfers(p, q)
    readings = {
        "noise_excess": hallucination.noise_excess(p, band),
        "picks_per_mpx": NOTHING,
        "picks_share": NOTHING,
        "common_output": hallucination.common_output(p),
        "phase_invented": NOTHING,
        "phase_regained": NOTHING,
        "injected_kept": hallucination.injected_kept(p, q, band) if q else NOTHING,
        "turned": NOTHING,
        "noise_copied": hallucination.noise_copied(p),
        "signal_lost": hallucination.signal_lost(p, band),
        "disagreement": hallucination.disagreement(p, band),
    }
    radius = None if known.radius is None else known.radius / pair.pixel_size
    if radius and len(known.centres) and {"full", "noise"} <= set(made):
        blobs = picking.choose_blobs([pair.full], [known.centres], radius)
        readings["picks_per_mpx"], readings["picks_share"] = hallucination.picks_excess(
            made["noise"], made["full"], known.centres, blobs, pair.valid, rng
        )
    if scrambled is not None:
        s = scrambled_powers(pair, made, scrambled)
        readings["phase_invented"] = hallucination.phase_invented(s, shell, band[1])
        readings["phase_regained"] = hallucination.phase_regained(s, shell, band[1])
    if injected and radius and len(known.centres) and {"a", "b"} <= set(made):
        probe, signal, outputs = injected
        # Ring by ring, not smoothed: a blur falls steeply, and where a ring is noisy nothing was put in.
        gain = np.divide(q["ga_j"] + q["gb_j"], 2 * q["j_j"], out=np.zeros_like(q["j_j"]), where=q["j_j"] > 0)
        gain[band[1] :] = 0  # beyond the band it is noise
        readings["turned"] = hallucination.turned(
            (outputs["a"] + outputs["b"]) / 2,
            hallucination.filtered(signal, gain),
            np.array([(m["y_px"], m["x_px"]) for m in about["particles"]]).reshape(-1, 2),
            (made["a"] + made["b"]) / 2,
            known.centres,
            radius,
            (probe.valid, pair.valid),
            rng,
        )
    return readings, curves


def other_output(records: Sequence[Path], index: int, denoised: Path) -> np.ndarray | None:
    """Read what a method made of the next micrograph's whole exposure, if there is one of the same shape."""
    shape = read_record(records[index])["shape"]
    for step in range(1, len(records)):
        pair = load_pair(records[(index + step) % len(records)])
        if list(pair.a.shape) == list(shape):
            return read_estimates(pair, denoised, ["full"])["full"]
    return None


def read_probes(
    folder: Path, name: str, denoised: Path
) -> tuple[dict[str, Any], tuple[Pair, np.ndarray, Images], Images]:
    """Read a micrograph's probes and what a method made of them, if it has denoised them."""
    injected, scrambled = (load_pair(folder / f"{name}-{kind}.json") for kind in (probes.INJECTED, probes.SCRAMBLED))
    about = injected.record.get("probe")
    if not isinstance(about, dict):
        raise InputError(f"{folder / injected.name}.json: is not a probe; wanted what write-probes writes")
    signal = read_result(injected, folder / f"{injected.name}{probes.SIGNAL_ENDING}")
    return (
        about,
        (injected, signal, read_estimates(injected, denoised, ["a", "b"])),
        read_estimates(scrambled, denoised, ["a", "b", "full"]),
    )


# ---------------------------------------------------------------------------- command


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", required=True, help="name of the method in the tables")
    add("--halves", type=Path, nargs="+", required=True, metavar="RECORD", help="the test micrographs' {mic}.json")
    add("--denoised", type=Path, required=True, metavar="DIR", help="what the method made of them and their probes")
    text = "what it denoised (default: all four); measures that need the rest are nan"
    add("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS), help=text)
    add("--probes", type=Path, required=True, metavar="DIR", help="what write-probes wrote of some of them")
    add("--without-probes", action="store_true", help="the method has not denoised the probes")
    particles.add_arguments(parser)
    excluded.add_excluded_argument(parser)
    add("--readings", type=Path, required=True, metavar="TSV", help="written: one row per micrograph and measure")
    add("--transfers", type=Path, required=True, metavar="TSV", help="written: what it hands on, by ring")


def _run(args: argparse.Namespace) -> None:
    records = excluded.kept(args.halves, args.excluded, "test")
    rows, curve_rows = [], []
    for index, record in enumerate(records):
        if not (args.probes / f"{record.stem}-{probes.INJECTED}.json").exists():
            continue
        pair = load_pair(record)
        made = read_estimates(pair, args.denoised, args.inputs)
        other = other_output(records, index, args.denoised) if "full" in made else None
        known = particles.known_particles(pair, args.truth, args.labels)
        if args.without_probes:
            about = read_record(args.probes / f"{pair.name}-{probes.INJECTED}.json")["probe"]
            injected = scrambled = None
        else:
            about, injected, scrambled = read_probes(args.probes, pair.name, args.denoised)
        readings, curves = measure(pair, made, other, known, about, injected, scrambled)
        for name, reading in readings.items():
            row = (args.method, pair.name, name, reading.value, reading.error)
            rows.append(dict(zip(READING_COLUMNS, row, strict=True)))
        frequency = np.arange(len(curves["noise"])) / (max(pair.a.shape) * pair.pixel_size)
        for line in zip(frequency.tolist(), *(curves[name].tolist() for name in CURVES), strict=True):
            curve_rows.append(dict(zip(CURVE_COLUMNS, (args.method, pair.name, *line), strict=True)))
    files.write_table(args.readings, rows, READING_COLUMNS)
    files.write_table(args.transfers, curve_rows, CURVE_COLUMNS)
    n = len({row["micrograph"] for row in rows})
    log.say(f"{args.method}: {n} micrograph{'' if n == 1 else 's'} with probes: {args.readings}")


COMMANDS = {"probe-method": (_add_arguments, _run)}
