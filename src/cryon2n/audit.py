"""Audit of the halves: whether their noises are independent and alike, and whether they belong together.

Everything that follows (training, every score without truth) rests on the halves' independence.  What is
measured, and how: `audit_checks`.  What is a fault, and what happens then: `audit_rules`.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import audit_checks as checks
from cryon2n import dose, excluded, files, fourier, log, pair
from cryon2n.audit_rules import PATTERN_Z, POOLED, SIGNIFICANT, AuditSettings, check_verdict, judge, summary
from cryon2n.errors import InputError
from cryon2n.settings import add_settings_arguments, settings_from_arguments

CHANCE = 3.5  # standard errors: unrelated images come to 1 to 3 in the best of four bands
COLUMNS = [
    "micrograph",
    "flags",
    "action",
    "noise_var_a",
    "noise_var_b",
    "noise_ratio",
    "spectrum_ratio",
    "resolution_0143_A",
    "resolution_05_A",
    "frc_beyond",
    "frc_beyond_z",
    "frc_beyond_low",
    "cross_correlation",
    "cross_correlation_z",
    "gain_spread_percent",
    "common_signal_z",
    "pairing_z",
    "half_shift_px",
    "motion_A",
    "line_z",
    "line",
    "dead_percent",
    "outlying_percent",
    "electrons_per_A2",
    "brightness_z",
    "low_frequency_power",
    "low_frequency_z",
    "ice_ring_z",
    "defects",
    "note",
]
RING_COLUMNS = ["micrograph", "frequency", "power_a", "power_b", "noise_a", "noise_b", "frc"]


# ---------------------------------------------------------------------------- measuring


def check_records(records: list[tuple[Path, dict[str, Any]]]) -> None:
    """Refuse, by name, what the records alone show: a frame, a file or a micrograph that occurs twice."""
    owners: dict[str, str] = {}
    names: set[str] = set()
    for path, record in records:
        name = record["micrograph"]
        if name in names:
            raise InputError(f"{path}: micrograph {name} is given twice; give each record once")
        names.add(name)
        both = set(record["a"].get("frames") or []) & set(record["b"].get("frames") or [])
        if both:
            raise InputError(
                f"{path}: frame {min(both)} is in both halves ({len(both)} such frames); their noises are not "
                "independent: make the halves again, of different frames"
            )
        members = [frame for group in record.get("groups") or [] for frame in group["frames"]]
        if sorted(members) != sorted(set(members)):
            raise InputError(
                f"{path}: a frame is in two of the {len(record['groups'])} groups; their noises are not independent: "
                "split the movie again"
            )
        for side in "ab":
            what, own = f"half {side} of {name}", record[side]["sha256"]
            if own in owners and len(own) == 64:
                raise InputError(
                    f"{path}: {what} and {owners[own]} are the same file (SHA-256 {own[:12]} …); wanted different "
                    "images: correct the pairing and make the halves again"
                )
            owners[own] = what


def measure_pair(halves: pair.Pair, other: pair.Pair | None) -> tuple[dict[str, Any], checks.Rings, np.ndarray | None]:
    """Measure one pair, and its half a against another micrograph's half b.

    Parameters
    ----------
    halves, other : Pair
        `other` is another micrograph of the same detector, or None.

    Returns
    -------
    row : dict
        The columns `COLUMNS`, and what `audit_rules.CHECKS` look at besides.
    rings : Rings
    pattern : ndarray or None
        Correlation with the other micrograph (`audit_checks.pattern_map`).
    """
    a, b = halves.a[halves.valid], halves.b[halves.valid]
    sa, sb = checks.spectra(a, b)
    r = checks.rings(sa, sb, a.shape, halves.pixel_size)
    record = halves.record
    beyond, error = checks.beyond(r)
    signal_z = checks.common_signal(r.frc, r.bins)
    line_z, line = checks.stuck_line(a, b)
    path = record.get("trajectory_A")
    counted = not made_elsewhere(record) and record["full"]["offset"] > 0
    row = {
        "micrograph": halves.name,
        "noise_var_a": halves.noise_var[0],
        "noise_var_b": halves.noise_var[1],
        "noise_ratio": checks.noise_ratio(r, halves.noise_var),
        "spectrum_ratio": checks.spectrum_ratio(r, halves.noise_var),
        "resolution_0143_A": checks.crossing(r, 0.143),
        "resolution_05_A": checks.crossing(r, 0.5),
        "frc_beyond": beyond,
        "frc_beyond_z": beyond / error,
        "frc_beyond_low": beyond - SIGNIFICANT * error,
        "cross_correlation": float("nan"),
        "cross_correlation_z": float("nan"),
        "gain_spread_percent": float("nan"),
        "common_signal_z": signal_z,
        "pairing_z": signal_z,
        "half_shift_px": checks.half_shift(sa, sb, a.shape),
        "motion_A": float("nan") if path is None else travelled(path),
        "line_z": line_z,
        "line": line,
        "dead_percent": checks.dead_percent(a, b) + float(record.get("repaired_area_percent") or 0),
        "outlying_percent": checks.outlying_percent(halves.full[halves.valid]),
        "electrons_per_A2": record["full"]["offset"] / halves.pixel_size**2 if counted else float("nan"),
        "brightness_z": float("nan"),
        "low_frequency_power": checks.low_frequency_power(r),
        "low_frequency_z": float("nan"),
        "ice_ring_z": checks.ice_ring_z(r),
        "defects": "-" if record.get("defects") is None else record["defects"],
        "elsewhere": made_elsewhere(record),
        "gain_agrees": (record.get("gain_check") or {}).get("verdict") == "agrees",
        "electrons": float(record["a"]["offset"]) if counted else float("nan"),
    }
    box = None if other is None else checks.common_box(record["valid"], other.record["valid"])
    if other is None or box is None or halves.a.shape != other.b.shape:
        return row, r, None
    own, stranger = halves.a[box], other.b[box]
    pattern, pattern_error = checks.pattern_map(own, stranger)
    row["cross_correlation_z"] = float(pattern.max())
    row["cross_correlation"] = row["cross_correlation_z"] * pattern_error
    # Pattern and noise power of the two halves, in electrons: the covariance of two images behind one gain
    # of relative spread s is s² times the product of their means.
    power = np.sqrt(r.mean(r.aa, r.band(0.5)) * r.mean(r.bb, r.band(0.5)))  # without the signal
    scale = record["a"]["scale"] * other.record["b"]["scale"]
    product = row["electrons"] * float(other.record["b"]["offset"])
    row["pattern_to_spread"] = float(power * scale / product) if counted and product > 0 else float("nan")
    row["pattern_to_spread"] /= pattern_kept(record, other.record, r)
    if row["cross_correlation_z"] > PATTERN_Z:
        row["gain_spread_percent"] = 100 * float(np.sqrt(row["cross_correlation"] * row["pattern_to_spread"]))
    # What any two micrographs share (illumination, an ice gradient) does not make a pair.
    chance = checks.rings(*checks.spectra(own, stranger), own.shape, halves.pixel_size)
    shared = checks.common_signal(chance.frc, chance.bins) * float(np.sqrt(a.size / own.size))
    if shared > CHANCE:
        row["pairing_z"] = signal_z / max(1.0, 2 * shared / SIGNIFICANT)
    return row, r, pattern


def pattern_kept(record: dict[str, Any], other: dict[str, Any], r: checks.Rings) -> float:
    """Return what dose weighting leaves of the product of two fixed patterns, relative to the noise: 1 without it.

    All frames hold the same pattern, weakened by their mean weight; `r` are the rings of images of this size.
    """
    kept = np.ones(len(r.frequencies))
    for side, known in (("a", record), ("b", other)):
        own = known[side]
        if known.get("dose_weighted") and own.get("dose_e_per_A2") and known.get("voltage_kV"):
            doses = np.array(own["frames"]) * (own["dose_e_per_A2"] / own["n_frames"])
            kept *= dose.mean_weight(r.frequencies, doses, known["voltage_kV"])
    return r.mean(kept, r.band(checks.HIGH_PASS))


def made_elsewhere(record: dict[str, Any]) -> bool:
    """Return whether another program made the halves, in units and from frames that are not known here."""
    return "import-halves" in str(record.get("producer", ""))


def travelled(trajectory: list[list[float]]) -> float:
    """Length of a trajectory (n_frames, 2), in its unit."""
    return float(np.linalg.norm(np.diff(np.asarray(trajectory, dtype=np.float64), axis=0), axis=1).sum())


def measure(records: list[Path], threads: int = 1) -> tuple[list[dict[str, Any]], dict[str, dict[str, np.ndarray]]]:
    """Measure all micrographs, `threads` at once; each is also compared with the next one in the list.

    Returns
    -------
    rows : list of dict
        One per micrograph, and, for more than one, a row of all together (`POOLED`).
    spectra : dict
        By micrograph, and pooled: `audit_checks.bands`.
    """
    check_records([(path, pair.read_record(path)) for path in records])
    rows, patterns, spectra = [], [], {}
    beyond: list[tuple[float, float]] = []  # FRC and bins
    progress = log.Progress(len(records), "micrographs")
    load = lru_cache(threads + 1)(pair.load_pair)  # two neighbours want each

    def one(i: int) -> tuple[dict[str, Any], checks.Rings, np.ndarray | None]:
        return measure_pair(load(records[i]), load(records[(i + 1) % len(records)]) if len(records) > 1 else None)

    with ThreadPoolExecutor(threads) as executor:
        for i, (row, r, pattern) in enumerate(executor.map(one, range(len(records)))):
            rows.append(row)
            spectra[row["micrograph"]] = checks.bands(r)
            beyond.append((row["frc_beyond"], float(r.bins[r.band(checks.BEYOND)].sum())))
            if pattern is not None:
                patterns.append(pattern)
            progress.update(i + 1)
    brightness = np.array([row["electrons_per_A2"] for row in rows])
    power = np.log(np.maximum([row["low_frequency_power"] for row in rows], 1e-9))
    for row, z, low_z in zip(
        rows, checks.robust_outliers(np.log(brightness), 0.03), checks.robust_outliers(power, 0.3), strict=True
    ):
        row["brightness_z"], row["low_frequency_z"] = float(z), float(low_z)
    if len(rows) > 1:
        everything = list(spectra.values())
        if len({float(s["frequency"][-1]) for s in everything}) == 1:
            sums = {k: np.sum([s[k] for s in everything], axis=0) for k in ("bins", "aa", "bb", "ab")}
            spectra[POOLED] = {"frequency": everything[0]["frequency"], **sums}
        rows.append(pooled_row(rows, np.array(beyond), patterns))
    return rows, spectra


def pooled_row(rows: list[dict[str, Any]], beyond: np.ndarray, patterns: list[np.ndarray]) -> dict[str, Any]:
    """Return the row of all micrographs together: faults too weak to show in one may show in many.

    Parameters
    ----------
    rows : list of dict
        Of the micrographs.
    beyond : ndarray, shape (n, 2)
        FRC beyond the information limit, and the number of bins behind it.
    patterns : list of ndarray
        Of `audit_checks.pattern_map`.
    """
    # Medians, so that one bad micrograph, which is excluded, does not speak for all.
    spread = np.sqrt(np.pi / 2) if len(beyond) > 2 else 1.0  # of a median's error to a mean's
    value = float(np.median(beyond[:, 0]))
    error = float(spread / np.sqrt(beyond[:, 1].sum()))
    out: dict[str, Any] = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        numbers = [v for v in values if isinstance(v, float) and np.isfinite(v)]
        out[column] = float(np.median(numbers)) if len(numbers) == len(values) else float("nan")
    out |= {"micrograph": POOLED, "line": "-", "defects": "-"}
    out |= {"frc_beyond": value, "frc_beyond_z": value / error, "frc_beyond_low": value - SIGNIFICANT * error}
    out |= {"elsewhere": all(r["elsewhere"] for r in rows), "gain_agrees": all(r["gain_agrees"] for r in rows)}
    out["cross_correlation"] = out["cross_correlation_z"] = out["gain_spread_percent"] = float("nan")
    if patterns:
        out["cross_correlation_z"] = float((np.median(patterns, axis=0) * np.sqrt(len(patterns)) / spread).max())
        errors = [
            r["cross_correlation"] / r["cross_correlation_z"] for r in rows if np.isfinite(r["cross_correlation"])
        ]
        out["cross_correlation"] = out["cross_correlation_z"] * float(np.mean(errors) * spread) / np.sqrt(len(patterns))
        if out["cross_correlation_z"] > PATTERN_Z:
            share = out["cross_correlation"] * out["pattern_to_spread"]
            out["gain_spread_percent"] = 100 * float(np.sqrt(share))
    return out


def find_partners(records: dict[str, Path], names: list[str], most: int = 12) -> dict[str, str]:
    """Tell, among micrographs whose halves have no signal in common, whose half b each half a belongs to.

    Parameters
    ----------
    records : dict
        By name.
    names : list of str
        Micrographs without a common signal; of more than `most` the first are looked at.
    """
    small = {}
    for name in names[:most]:
        halves = pair.load_pair(records[name])
        bin = max(1, min(halves.a.shape) // 512)
        small[name] = [fourier.fourier_crop(x, bin) for x in (halves.a, halves.b)]
    out = {}
    for name in small:
        for other in small:
            shape = tuple(np.minimum(small[name][0].shape, small[other][1].shape))
            box = slice(0, shape[0]), slice(0, shape[1])
            r = checks.rings(*checks.spectra(small[name][0][box], small[other][1][box]), shape, 1.0)
            if name != other and checks.common_signal(r.frc, r.bins) > 2 * SIGNIFICANT:
                out[name] = other
    return out


# ---------------------------------------------------------------------------- output


def ring_rows(spectra: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Return the table of spectra: power and noise power of each half, and the FRC, by band of frequency."""
    rows = []
    for name, s in spectra.items():
        n = np.maximum(s["bins"], 1e-9)
        frc = np.nan_to_num(fourier.correlation(s["ab"], s["aa"], s["bb"]))
        columns = (s["frequency"], s["aa"] / n, s["bb"] / n, (s["aa"] - s["ab"]) / n, (s["bb"] - s["ab"]) / n, frc)
        for values, bins in zip(zip(*columns, strict=True), s["bins"], strict=True):
            if bins > 0:
                rows.append(dict(zip(RING_COLUMNS, (name, *map(float, values)), strict=True)))
    return rows


def draw(rows: list[dict[str, Any]], spectra: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw raw FRC and noise spectra of all micrographs, and their correlations where there should be none."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 3))
    flagged = {row["micrograph"]: row["action"] in ("stop", "exclude") for row in rows}
    for name, s in spectra.items():
        ok = s["bins"] > 0
        x, n = s["frequency"][ok], s["bins"][ok]
        frc = np.nan_to_num(fourier.correlation(s["ab"], s["aa"], s["bb"]))[ok]
        pooled = name == POOLED
        look = {"lw": 1.8 if pooled else 0.6, "alpha": 1.0 if pooled else 0.5, "zorder": 3 if pooled else 2}
        left.plot(x, frc, color="black" if pooled else "#d62728" if flagged[name] else "#4878a8", **look)
        for key, color, side in (("aa", "#4878a8", "a"), ("bb", "#d1812c", "b")):
            # Shares of each half's own noise variance: equal spectra lie on each other, whatever the frames.
            noise = np.maximum((s[key][ok] - s["ab"][ok]) / n, 1e-9)
            level = float(np.average(noise, weights=n))
            middle.plot(x, noise / level, color=color, label=f"half {side}" if pooled else None, **look)
    for threshold in (0.5, 0.143):
        left.axhline(threshold, color="0.5", lw=0.8, ls=":")
    left.set(xlabel="spatial frequency (1/Å)", ylabel="FRC of the raw halves", ylim=(-0.1, 1.02), xlim=(0, None))
    middle.set(xlabel="spatial frequency (1/Å)", ylabel="noise power (its mean = 1)", ylim=(0, 2.5), xlim=(0, None))
    if POOLED in spectra:
        middle.legend(fontsize=7, frameon=False, loc="upper right")
    own = [row for row in rows if row["micrograph"] != POOLED]
    right.axvspan(-SIGNIFICANT, SIGNIFICANT, color="0.93")
    for column, marker, color, label in (
        ("frc_beyond_z", "o", "#4878a8", "a with its own b, high frequencies"),
        ("cross_correlation_z", "x", "#d1812c", "a with another's b, the best move"),
    ):
        right.scatter([r[column] for r in own], range(1, len(own) + 1), s=14, marker=marker, color=color, label=label)
        for row in rows[len(own) :]:
            right.scatter(row[column], 0, s=36, marker=marker, color="black")
    right.set(xlabel="correlation (standard deviations)", ylabel="micrograph", ylim=(-0.8, len(own) + 0.8))
    right.locator_params(axis="y", integer=True, nbins=8)
    ticks = [int(t) for t in right.get_yticks() if 0 < t <= len(own)]
    right.set_yticks(([0] if len(rows) > len(own) else []) + ticks, (["all"] if len(rows) > len(own) else []) + ticks)
    right.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--halves", type=Path, nargs="+", required=True, metavar="RECORD", help="records of halves")
    add("--table", type=Path, required=True, metavar="TSV", help="written: one row per micrograph")
    add("--figure", type=Path, required=True, metavar="PNG", help="written: figure (PNG or SVG)")
    add("--rings", type=Path, metavar="TSV", help="written: spectra of the halves and their noise")
    add("--excluded", type=Path, metavar="TSV", help="written: micrographs to leave out, and why")
    add("--threads", type=int, default=1, metavar="N", help="micrographs that are measured at once")
    add_settings_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    settings = settings_from_arguments(AuditSettings, args)
    rows, spectra = measure(args.halves, max(args.threads, 1))
    findings = judge(rows, settings)
    unpaired = [f["micrograph"] for f in findings if f["reason"] == "no-common-signal"]
    for name, other in find_partners({p.stem: p for p in args.halves}, unpaired).items():
        said = f"; its half a belongs with the half b of {other}"
        for f in findings:
            if f["micrograph"] == name and f["reason"] == "no-common-signal":
                f["sentence"] += said
        for row in rows:
            row["note"] += said if row["micrograph"] == name else ""
    for line in summary(rows):
        log.say(line)
    n = len(args.halves)
    check_verdict(findings, n, settings)
    draw(rows, spectra, args.figure)
    if args.rings:
        files.write_table(args.rings, ring_rows(spectra), RING_COLUMNS)
    if args.excluded:
        excluded.write_excluded(args.excluded, findings)
    elif findings:
        names = ", ".join(sorted({f["micrograph"] for f in findings}))
        log.say(f"warning: {names} would be excluded; give --excluded for the table that later stages take")
    files.write_table(args.table, rows, COLUMNS)
    own = [row for row in rows if row["micrograph"] != POOLED]
    log.say(
        f"{n} micrographs, {sum(row['flags'] != 'ok' for row in own)} flagged, "
        f"{len({f['micrograph'] for f in findings})} excluded, worst |z| beyond "
        f"{max(abs(row['frc_beyond_z']) for row in own):.1f}"
    )


COMMANDS = {"audit-halves": (_add_arguments, _run)}
