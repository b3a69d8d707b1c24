"""The numbers of the report: the headline table, who wins it, and all metrics, as text for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryon2n import pooling
from cryon2n.errors import InputError
from cryon2n.methods import model_and_symmetries

NAMES = {
    "raw": "raw",
    "lowpass": "best low-pass",
    "gaussian": "best Gaussian",
    "wiener": "Wiener",
    "nlm": "non-local means",
    "topaz-unet": "Topaz unet, pretrained",
    "topaz-unet-p192": "Topaz unet, padding 192",
    "topaz-affine": "Topaz affine, pretrained",
    "topaz-unet-small": "Topaz unet-small, pretrained",
    "topaz-trained": "Topaz unet, trained here",
}
FEW = 20  # micrographs, below which percentile intervals are too narrow

Key = tuple[str, str]


@dataclass(frozen=True)
class Measure:
    """A column of the headline table; `sign` is +1 where more is better, `digits` the most decimals."""

    estimator: str
    metric: str
    title: str
    unit: str
    sign: int
    digits: int


MEASURES = (
    Measure("mean", "signal_to_error_db", "signal-to-error", "dB", 1, 2),
    Measure("mean", "psnr", "PSNR", "dB", 1, 2),
    Measure("mean", "ssim", "SSIM", "", 1, 4),
    Measure("half", "umse", "ΔuMSE", "", -1, 7),
    Measure("half", "cross_frc", "cross-FRC", "", 1, 4),
)


@dataclass(frozen=True)
class Cell:
    """A value with its 95 % interval over `n` micrographs; nan where there is none."""

    value: float
    low: float
    high: float
    n: int


@dataclass
class Tables:
    """The scores of a data set, as `cryon2n summarise` wrote them, and who is who."""

    summary: pd.DataFrame
    scores: dict[str, pd.DataFrame]
    curves: pd.DataFrame
    ours: list[str]
    reference: str | None
    bootstrap: int
    methods: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.methods = list(dict.fromkeys(self.summary["method"]))
        keys = ["method", "estimator", "metric"]
        self._rows = {tuple(row[:3]): row[3:] for row in self.summary[[*keys, *pooling.SUMMARY_COLUMNS[3:]]].values}

    def cell(self, method: str, estimator: str, metric: str, delta: bool = False) -> Cell:
        """Return a row of the summary: the value, or its delta to the reference."""
        row = self._rows.get((method, estimator, metric))
        if row is None:
            return Cell(np.nan, np.nan, np.nan, 0)
        value, low, high = (float(x) for x in (row[4:7] if delta else row[0:3]))
        return Cell(value, low, high, int(row[3]))

    def paired(self, method: str, other: str, key: Key) -> Cell:
        """Return the mean of method - other over micrographs, with its bootstrap interval (as the summary's)."""
        x, y = (self.scores[m][key].to_numpy(float) for m in (method, other) if key in self.scores[m])
        d = x - y
        n = int(np.isfinite(d).sum())
        weights = pooling.resample_weights(len(d), self.bootstrap, 0)
        value = float(d[np.isfinite(d)].mean()) if n else np.nan
        return Cell(value, *pooling.interval(pooling.resampled_means(d, weights), n), n)

    def limit(self) -> float | None:
        """Return the information limit in Å, or None."""
        value = self.cell(self.methods[0], "raw", "information_limit_A").value
        return value if np.isfinite(value) and value > 0 else None


def read_tables(results: Path, config: Mapping[str, Any]) -> Tables:
    """Read ``summary.tsv``, ``metrics.tsv`` and ``curves.tsv``."""
    compare = config.get("compare") or {}
    summary = pooling.read_frame(results / "summary.tsv", pooling.SUMMARY_COLUMNS)
    scores = pooling.read_frame(results / "metrics.tsv", pooling.SCORE_COLUMNS)
    curves = pooling.read_frame(results / "curves.tsv", pooling.CURVE_COLUMNS)
    if summary.empty:
        raise InputError(f"{results / 'summary.tsv'}: the table is empty; run summarise again")
    methods = list(dict.fromkeys(summary["method"]))
    others = {name for table in (scores, curves) for name in set(methods) ^ set(table["method"])}
    if others:
        raise InputError(
            f"{results}: summary.tsv, metrics.tsv and curves.tsv do not hold the same methods "
            f"({', '.join(sorted(others))} is not in all); run summarise again"
        )
    reference = compare.get("reference")
    return Tables(
        summary,
        pooling.tabulate_scores(scores),
        curves,
        [m for m in methods if {m, model_and_symmetries(m)[0]} & set(config.get("models") or {})],
        reference if reference in methods else None,
        int(compare.get("bootstrap", 2000)),
    )


# ---------------------------------------------------------------------------- numbers as text


def number(value: float, digits: int = 6, spread: float = np.nan) -> str:
    """Write a number with two figures of its `spread` (else four of its own), at most `digits` decimals."""
    scale = spread if np.isfinite(spread) and spread > 0 else abs(value) / 100
    wanted = 1 - int(np.floor(np.log10(scale))) if scale > 0 else 2
    text = f"{value:.{min(max(wanted, 0), digits)}f}"
    return (text[1:] if float(text) == 0 and text.startswith("-") else text).replace("-", "−")


def cell_text(cell: Cell, digits: int) -> tuple[str | None, str | None]:
    """Return value and interval as text; None where there is none."""
    if not np.isfinite(cell.value):
        return None, None
    if cell.value == cell.low == cell.high == 0:
        return "0", "the reference"
    spread = (cell.high - cell.low) / 2
    value = number(cell.value, digits, spread)
    if not np.isfinite(spread):
        return value, None
    return value, f"{number(cell.low, digits, spread)} to {number(cell.high, digits, spread)}"


def significant(value: float) -> str:
    """Write a number with four figures; a dash for nan."""
    return f"{value:.4g}".replace("-", "−") if np.isfinite(value) else "–"


def listed(words: Sequence[str]) -> str:
    """Join words as in a sentence."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---------------------------------------------------------------------------- headline


def headline(tables: Tables) -> tuple[dict[str, dict[str, Cell]], str | None]:
    """Return the headline's cells, ``cells[metric][method]``, and what ΔuMSE is taken against.

    Measures that no method has are left out.
    """
    base = tables.reference or ("raw" if "raw" in tables.methods else None)
    cells: dict[str, dict[str, Cell]] = {}
    for m in MEASURES:
        if m.metric == "umse" and base == tables.reference:
            column = {x: tables.cell(x, m.estimator, m.metric, delta=base is not None) for x in tables.methods}
        elif m.metric == "umse":
            column = {x: tables.paired(x, base, (m.estimator, m.metric)) for x in tables.methods}
        else:
            column = {x: tables.cell(x, m.estimator, m.metric) for x in tables.methods}
        if any(np.isfinite(c.value) for c in column.values()):
            cells[m.metric] = column
    return cells, base


def best_methods(column: Mapping[str, Cell], sign: int) -> list[str]:
    """Return the methods with the best value (more than one if they tie)."""
    finite = {m: sign * c.value for m, c in column.items() if np.isfinite(c.value)}
    return [m for m, value in finite.items() if value == max(finite.values())]


def verdicts(tables: Tables, cells: Mapping[str, Mapping[str, Cell]], names: Mapping[str, str]) -> list[str]:
    """Say in one sentence per measure whether our (first) model is the best, and who is ahead of it if not.

    It is not held against its own mean over symmetries, which stands in the table.
    """
    if not tables.ours:
        return ["None of the methods is a model of this config, so there is nothing of ours to judge."]
    own, out, won = tables.ours[0], [], []
    same = [x for x in tables.methods if model_and_symmetries(x)[0] == model_and_symmetries(own)[0]]
    for m in (m for m in MEASURES if m.metric in cells):
        column = cells[m.metric]
        if not np.isfinite(column[own].value):
            out.append(f"{m.title}: {names[own]} has no value.")
            continue
        rest = [x for x in column if x not in same and np.isfinite(column[x].value)]
        rest.sort(key=lambda x: -m.sign * column[x].value)
        ahead = [x for x in rest if m.sign * (column[x].value - column[own].value) > 0]
        value = " ".join(filter(None, (cell_text(column[own], m.digits)[0], m.unit)))
        if not rest:
            out.append(f"{m.title}: {names[own]} has {value}; no other method has a value.")
            continue
        by, clear = _difference(tables, own, rest[0], m, column)
        if ahead:
            also = ""
            if ahead[1:]:
                also = f"; so {'are' if len(ahead) > 2 else 'is'} {listed([names[x] for x in ahead[1:]])}"
            out.append(f"{m.title}: {names[own]} ({value}) does not win; {names[rest[0]]} is ahead of it {by}{also}.")
        elif column[rest[0]].value == column[own].value:
            out.append(f"{m.title}: {names[own]} ({value}) ties with {names[rest[0]]}.")
        else:
            won.append(m.title if clear else f"{m.title} (undecided)")
            out.append(f"{m.title}: {names[own]} is best ({value}); the next, {names[rest[0]]}, is behind {by}.")
    total = len([m for m in MEASURES if m.metric in cells])
    if len(won) == total and not any(title.endswith("(undecided)") for title in won):
        lead = "every measure of this table"
    elif won:
        lead = listed(won) + ("" if len(won) == total else ", and not in the other measures of this table")
    else:
        lead = "none of the measures of this table"
    return [f"{names[own]} is best in {lead}.", *out]


def _difference(tables: Tables, own: str, other: str, m: Measure, column: Mapping[str, Cell]) -> tuple[str, bool]:
    """Say by how much two methods differ, and whether the paired interval (where there is one) leaves zero out."""
    if m.metric != "cross_frc":
        d = tables.paired(own, other, (m.estimator, m.metric))
    elif tables.reference == other:
        d = tables.cell(own, m.estimator, m.metric, delta=True)
    else:
        d = Cell(column[own].value - column[other].value, np.nan, np.nan, 0)
    low, high = sorted((abs(d.low), abs(d.high)))
    spread = (d.high - d.low) / 2
    amount = number(abs(d.value), m.digits, spread)
    if float(amount) == 0 and d.value:
        amount = f"less than {10.0**-m.digits:.{m.digits}f}"
    text = " ".join(filter(None, (f"by {amount}", m.unit)))
    if not np.isfinite(spread):
        return f"{text} (no paired interval)", False
    if d.low <= 0 <= d.high:
        return f"{text}, but the paired 95 % interval holds zero: undecided", False
    interval = f"{number(low, m.digits, spread)} to {number(high, m.digits, spread)}"
    return f"{text} (paired 95 % interval {interval})", True


def headline_rows(
    tables: Tables, cells: Mapping[str, Mapping[str, Cell]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rows of the headline table as the template wants them."""
    shown = [m for m in MEASURES if m.metric in cells]
    best = {m.metric: best_methods(cells[m.metric], m.sign) for m in shown}
    rows = []
    for method in tables.methods:
        row: dict[str, Any] = {"method": method, "name": names[method], "ours": method in tables.ours, "cells": []}
        for m in shown:
            cell = cells[m.metric][method]
            value, interval = cell_text(cell, m.digits)
            row["cells"].append({"value": value, "interval": interval, "n": cell.n, "best": method in best[m.metric]})
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------- all metrics


def all_metrics(tables: Tables) -> list[dict[str, Any]]:
    """Return one group per estimator with a row per metric: the mean, interval and n of every method."""
    groups = []
    for estimator in pooling.IMAGE_METRICS:
        rows = []
        for metric in (*pooling.IMAGE_METRICS[estimator], *pooling.RING_METRICS.get(estimator, ())):
            cells = []
            for method in tables.methods:
                cell = tables.cell(method, estimator, metric)
                interval = f"{significant(cell.low)} to {significant(cell.high)}" if np.isfinite(cell.low) else None
                value = significant(cell.value) if np.isfinite(cell.value) else None
                cells.append({"value": value, "interval": interval, "n": cell.n})
            if any(cell["value"] for cell in cells):
                rows.append({"metric": metric, "anchor": anchor(metric), "cells": cells})
        if rows:
            groups.append({"estimator": estimator, "rows": rows})
    return groups


def absent_metrics(tables: Tables) -> list[str]:
    """Return the metrics (with their estimator) for which no method has a value."""
    out = []
    for estimator in pooling.IMAGE_METRICS:
        for metric in (*pooling.IMAGE_METRICS[estimator], *pooling.RING_METRICS.get(estimator, ())):
            if not any(np.isfinite(tables.cell(m, estimator, metric).value) for m in tables.methods):
                out.append(f"{metric} ({estimator})")
    return out


def anchor(metric: str) -> str:
    """Return the anchor of a metric's definition in ``docs/metrics.md``."""
    return "noise_power_ratio" if metric == "noise_power_ratio_inband" else metric
