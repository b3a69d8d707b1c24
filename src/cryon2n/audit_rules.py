"""What the audit calls a fault, from where on, and what happens then.

Each check looks at one column of the audit's table.  Its action warns, excludes the micrograph from all
later stages, or stops the workflow.

The limits were calibrated on simulated counted halves (200 clean sets of 8 micrographs of 256 x 288 px,
11.5 electrons per pixel and half, contrast 5 to 12 %, uneven ice): no set stopped, none of the 1600
micrographs was excluded, one was warned of (odd-background).  The farthest values were: correlation beyond
the signal 3.2 standard errors, fixed pattern 4.9, pairing 9.2, shift 0.5 px, noise ratio 1.05, spectrum
ratio 1.11, line 4.5, outlying area 0.35 %.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryon2n.errors import InputError

ACTIONS = ("stop", "exclude", "warn", "off")
POOLED = "(pooled)"  # the row of all micrographs together
SIGNIFICANT = 5.0  # standard errors
PATTERN_Z = 6.0  # the largest of 33 x 33 moves: 3.1 for a typical clean pair


@dataclass(frozen=True)
class Check:
    """One check: a column of the table, its limit, and what happens beyond it.

    Attributes
    ----------
    name : str
        The flag.
    column : str
    limit : float
        Beyond it the action is taken.
    action : str
        One of `ACTIONS`.
    what, advice : str
        The sentence: what is wrong with the micrograph, and what to do.
    elsewhere : str or None
        The action for halves that another program made, if another: they cannot be made again here.
    warn : float or None
        A lower level, beyond which the check warns.
    below : bool
        The fault lies below the limit.
    nan_is_fault : bool
    applies : callable
        Whether the check applies to a row.
    """

    name: str
    column: str
    limit: float
    action: str
    what: str
    advice: str
    elsewhere: str | None = None
    warn: float | None = None
    below: bool = False
    nan_is_fault: bool = False
    applies: Callable[[dict[str, Any]], bool] = lambda row: True


# Causes before what they bring about: the first finding is what a stop says.
CHECKS = {
    check.name: check
    for check in (
        Check(
            "uncorrected-gain",
            "gain_spread_percent",
            2.0,
            "stop",
            "the gain differs from pixel to pixel, and no gain reference that agrees with the movie was applied",
            "give the gain reference that belongs to the movies (source: gain, halves: reference_transform)",
            applies=lambda row: not row["gain_agrees"],
        ),
        Check(
            "stuck-line",
            "line_z",
            10.0,
            "exclude",
            "a row or column of the detector stands out of its neighbours in both halves",
            "make it a defect (halves: defect_sigma, or a defect list), so that it is repaired in each frame",
        ),
        Check(
            "dead-area",
            "dead_percent",
            1.0,
            "exclude",
            "a part of it is constant or missing",
            "check the movie and its dark and gain reference",
        ),
        Check(
            "correlated-noise",
            "frc_beyond_low",
            0.02,
            "exclude",
            "the halves' noises are correlated at the highest frequencies, where there is no signal",
            "a frame may be in both halves, or the counts were not drawn independently: make the halves again",
            warn=0.0,
            nan_is_fault=True,
        ),
        Check(
            "fixed-pattern",
            "cross_correlation_z",
            PATTERN_Z,
            "warn",
            "its half a correlates with another micrograph's half b: a detector pattern (gain, hot pixels)",
            "every score takes the pattern for signal: give the gain reference that belongs to the movies",
        ),
        Check(
            "no-common-signal",
            "pairing_z",
            SIGNIFICANT,
            "exclude",
            "its halves have no signal in common: they may not be of one micrograph",
            "check the pairing of the files; an empty micrograph is of no use either",
            below=True,
            nan_is_fault=True,
        ),
        Check(
            "halves-shifted",
            "half_shift_px",
            1.0,
            "exclude",
            "its halves are shifted against each other",
            "align all frames to one reference before they are added",
            elsewhere="warn",
        ),
        Check(
            "unequal-noise",
            "noise_ratio",
            1.2,
            "warn",
            "its halves' noise differs more than their numbers of frames explain",
            "check the numbers of frames of the halves",
        ),
        Check(
            "unlike-spectra",
            "spectrum_ratio",
            1.5,
            "warn",
            "the noise of its halves has different spectra",
            "both halves must be made in the same way (interpolation, filters, dose weights)",
        ),
        Check(
            "uneven-area",
            "outlying_percent",
            5.0,
            "warn",
            "a large part differs from the rest: a carbon edge, contamination or broken ice",
            "look at it, and leave it out if it is not ice",
        ),
        Check(
            "large-motion",
            "motion_A",
            100.0,
            "warn",
            "it moved far",
            "look at its trajectory: the alignment may have failed",
        ),
        Check(
            "odd-brightness",
            "brightness_z",
            6.0,
            "warn",
            "its brightness is unlike that of the others: thick or no ice, or another dose",
            "look at it",
        ),
        Check(
            "odd-background",
            "low_frequency_z",
            6.0,
            "warn",
            "its power at low frequencies is unlike that of the others: contamination, crystals or carbon",
            "look at it",
        ),
        Check(
            "crystalline-ice",
            "ice_ring_z",
            8.0,
            "warn",
            "its halves correlate at 3.6 to 3.95 Å more than beside: crystalline ice",
            "look at it",
        ),
    )
}
FLAGS = {check.name: check.what for check in CHECKS.values()}


@dataclass(frozen=True)
class AuditSettings:
    """Settings of the audit.

    Attributes
    ----------
    max_excluded : float
        Share of the micrographs that may be excluded; more of them stop the workflow.
    actions : dict
        By check (`CHECKS`): ``stop``, ``exclude``, ``warn`` or ``off``.
    limits : dict
        By check: another limit, in the unit of its column.
    """

    max_excluded: float = 0.2
    actions: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.max_excluded <= 1:
            raise InputError(f"audit setting max_excluded: found {self.max_excluded}, wanted a share from 0 to 1")
        for name, values in (("actions", self.actions), ("limits", self.limits)):
            unknown = sorted(set(values) - set(CHECKS))
            if unknown:
                raise InputError(
                    f"audit setting {name}: unknown check {', '.join(unknown)}; known are {', '.join(CHECKS)}"
                )
        for check, action in self.actions.items():
            if action is not False and action not in ACTIONS:  # YAML reads a bare off as false
                raise InputError(
                    f"audit setting actions: {check}: found {action!r}, wanted one of {', '.join(ACTIONS)}"
                )
        for check, limit in self.limits.items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float)):
                raise InputError(f"audit setting limits: {check}: found {limit!r}, wanted a number")

    def checks(self) -> list[Check]:
        """Return the checks that are on, with these actions and limits."""
        out = []
        for name, check in CHECKS.items():
            if name in self.actions:
                action = self.actions[name] or "off"
                check = dataclasses.replace(check, action=action, elsewhere=None)
            if name in self.limits:
                check = dataclasses.replace(check, limit=float(self.limits[name]), warn=None)
            if check.action != "off":
                out.append(check)
        return out


# ---------------------------------------------------------------------------- judging


# What is judged of all micrographs together: the rest are medians.
POOLED_CHECKS = ("uncorrected-gain", "correlated-noise", "fixed-pattern")


def judge(rows: list[dict[str, Any]], settings: AuditSettings) -> list[dict[str, Any]]:
    """Give each row its ``flags``, ``action`` and ``note``, and return what excludes or stops.

    Returns
    -------
    list of dict
        ``micrograph``, ``reason``, ``value``, ``threshold`` (the columns of excluded.tsv), ``action`` and
        ``sentence``.
    """
    findings = []
    for row in rows:
        flags, notes, actions = [], [], []
        for check in settings.checks():
            pooled = row["micrograph"] == POOLED
            if (pooled and check.name not in POOLED_CHECKS) or not check.applies(row):
                continue
            value = float(row[check.column])
            if math.isnan(value):
                beyond, warned = check.nan_is_fault, False
            else:
                beyond = value < check.limit if check.below else value > check.limit
                warned = check.warn is not None and value > check.warn
            if not beyond and not warned:
                continue
            action = (check.elsewhere if row["elsewhere"] and check.elsewhere else check.action) if beyond else "warn"
            if pooled and action == "exclude":
                action = "stop"  # there is no micrograph to exclude
            limit = check.limit if beyond else check.warn
            where = f", {row['line']}" if check.column == "line_z" else ""
            name = f"all {len(rows) - 1} micrographs together" if pooled else row["micrograph"]
            sentence = (
                f"{name}: {check.what} ({check.column} {value:.3g}, "
                f"{'at least' if check.below else 'at most'} {limit:.3g} wanted{where}); {check.advice}"
            )
            because = ""
            if action == "warn" and beyond and check.elsewhere == "warn" and row["elsewhere"]:
                because = "; a warning only, as the halves were made by another program and cannot be made again here"
            elif check.name == "fixed-pattern" and row["elsewhere"]:
                because = "; a warning only, as in halves of another program's units the gain's spread cannot be told"
            flags.append(check.name)
            actions.append(action)
            notes.append(f"{check.what} ({check.column} {value:.3g}, limit {limit:.3g}{where}){because}")
            if action in ("stop", "exclude"):
                findings.append(
                    {
                        "micrograph": row["micrograph"],
                        "reason": check.name,
                        "value": value,
                        "threshold": float(limit),
                        "action": action,
                        "sentence": sentence,
                    }
                )
        row["flags"] = ",".join(flags) or "ok"
        row["action"] = min(actions, key=ACTIONS.index, default="-")
        row["note"] = "; ".join(notes) or "-"
    return findings


def check_verdict(findings: list[dict[str, Any]], n: int, settings: AuditSettings) -> None:
    """Raise `InputError` where a finding stops, or too many of `n` micrographs are excluded."""
    stops = [f for f in findings if f["action"] == "stop"]
    if stops:
        others = sorted({f["micrograph"] for f in stops[1:]} - {stops[0]["micrograph"], POOLED})
        more = f" ({len(others)} more micrographs stop for a like reason: {', '.join(others[:5])} …)" if others else ""
        name = stops[0]["reason"]
        raise InputError(f"{stops[0]['sentence']}; or go on with audit: actions: {name}: warn{more}")
    names = list(dict.fromkeys(f["micrograph"] for f in findings))
    allowed = math.floor(settings.max_excluded * n + 1e-9)
    if len(names) > allowed:
        raise InputError(
            f"{findings[0]['sentence']}. {len(names)} of {n} micrographs would be excluded ({', '.join(names[:8])}"
            f"{' …' if len(names) > 8 else ''}), {allowed} may be (audit: max_excluded: {settings.max_excluded:g}): "
            "so many are a fault of the whole set, not of single micrographs"
        )


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return one line per flag: how many micrographs have it, which, and what it means."""
    own = [row for row in rows if row["micrograph"] != POOLED]
    lines = []
    for name, what in FLAGS.items():
        names = [row["micrograph"] for row in own if name in row["flags"].split(",")]
        if names:
            some = ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
            lines.append(f"{name}: {len(names)} of {len(own)} micrographs ({some}): {what}")
    return lines
