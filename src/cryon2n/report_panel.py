"""The report's sections about what methods invent and about picking, from ``panel.tsv`` and ``picking.tsv``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from cryon2n import figures, files
from cryon2n.figures import Look
from cryon2n.half_errors import covariance
from cryon2n.hallucination_lights import MEASURES, PANEL_COLUMNS, RED, findings, worst
from cryon2n.pair import Pair, read_shown
from cryon2n.picking_score import COLUMNS, CURVE_COLUMNS, METRICS
from cryon2n.report_tables import Cell, cell_text, significant

WORDS = {
    "adds-template": "adds particles",
    "invents-detail": "invents detail",
    "copies-input": "copies its input",
    "constant-output": "gives the same output for every input",
    "blurs": "blurs",
    "drops-unknown": "erases what it does not know",
}


def panel(results: Path, methods: Sequence[str], names: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the panel as the template wants it: a row per method with a cell per measure; None without a table."""
    path = results / "panel.tsv"
    if not path.exists():
        return None
    table = files.read_table(path, PANEL_COLUMNS)
    found = findings(table)
    by_key = {(row["method"], row["metric"]): row for row in table}
    shown = [m for m in MEASURES if any(np.isfinite(float(r["value"])) for r in table if r["metric"] == m.name)]
    if not shown:
        return None
    rows = []
    for method in (m for m in methods if m in found):
        cells = []
        for measure in shown:
            row = by_key[method, measure.name]
            value, error = float(row["value"]), float(row["error"])
            text = significant(value) if np.isfinite(value) else None
            if text and np.isfinite(error):
                text = f"{round(value, 2) + 0.0:.2f} ± {error:.2f}".replace("-", "−")  # + 0.0: no minus zero
            cells.append({"text": text, "light": row["light"]})
        words = [WORDS[name] + ("" if light == RED else " somewhat") for name, light in found[method].items()]
        light = worst([row["light"] for (m, _), row in by_key.items() if m == method])
        rows.append({"method": method, "name": names[method], "light": light, "words": words, "cells": cells})
    n = max(int(row["n"]) for row in table)
    return {"measures": shown, "rows": rows, "n": n} if rows else None


def disagreement_map(pair: Pair, directory: Path, width: float) -> np.ndarray | None:
    """Return where a method's halves disagree, over the signal that they share, shape (h, w).

    The local mean of ``(f(a) - f(b))² / 2`` (a Gaussian of `width` pixels) over ``cov(f(a), f(b))``: 1 where the noise
    that is left is as strong as what both halves show.  None where a half was not denoised or nothing is shared.
    """
    if not all(directory.joinpath(f"{pair.name}_{side}.mrc").exists() for side in "ab"):
        return None
    fa, fb = (read_shown(pair, directory, side) for side in "ab")
    common = covariance(fa[pair.valid], fb[pair.valid])
    if not common > 0:
        return None
    return ndimage.gaussian_filter((fa - fb) ** 2 / 2, width, mode="reflect") / np.float32(common)


def disagreement_tiles(
    pair: Pair, denoised: Path, methods: Sequence[str], names: Mapping[str, str], crop: tuple[slice, slice]
) -> list[dict[str, Any]]:
    """Return the maps of all methods as pictures: black 0, white 1 and more."""
    tiles = []
    for method in methods:
        found = disagreement_map(pair, denoised / method, 20.0 / pair.pixel_size)
        if found is not None:
            uri = figures.jpeg_uri(found[crop], (0.0, 1.0), 88)
            tiles.append({"name": names[method], "method": method, "uri": uri})
    return tiles


PICKERS = {
    "blobs": "a blob picker, chosen on the raw micrographs",
    "topaz": "Topaz's pretrained detector, as it comes",
}


def picking(
    results: Path, methods: Sequence[str], names: Mapping[str, str], look: Mapping[str, Look], reference: str | None
) -> dict[str, Any] | None:
    """Return the tables of picking and their figures, one of each per picker, or None where there is none."""
    path, curve_path = results / "picking.tsv", results / "picking_curves.tsv"
    if not (path.exists() and curve_path.exists()):
        return None
    table, points = files.read_table(path, COLUMNS), files.read_table(curve_path, CURVE_COLUMNS)
    pickers = []
    for picker in dict.fromkeys(row["picker"] for row in table):
        cells = {(r["method"], r["metric"]): r for r in table if r["picker"] == picker}
        shown = [m for m in methods if (m, METRICS[0]) in cells]
        curves: dict[str, list[tuple[float, float]]] = {}
        for r in (r for r in points if r["picker"] == picker):
            curves.setdefault(r["method"], []).append((float(r["recall"]), float(r["precision"])))
        lines = {m: tuple(np.array(curves[m]).T) for m in shown if m in curves}
        figure = figures.draw_precision_recall(lines, names, look) if lines else None
        rows = [{"method": m, "name": names[m], "cells": _picking_cells(cells, m)} for m in shown]
        uri = figures.svg_uri(figure) if figure else None
        pickers.append({"name": PICKERS.get(picker, picker), "rows": rows, "uri": uri})
    return {"pickers": pickers, "reference": names.get(reference or "")}


def _picking_cells(table: Mapping[tuple[str, str], Mapping[str, str]], method: str) -> list[dict[str, str | None]]:
    """Return value and interval of each metric, after the first also those of its difference to the reference."""
    cells = []
    for metric in METRICS:
        own = table[method, metric]
        kinds = (("value", "ci_low", "ci_high"), ("delta", "delta_low", "delta_high"))
        for keys in kinds if metric == METRICS[0] else kinds[:1]:
            cell = Cell(*(float(own[k]) for k in keys), int(own["n"]))
            same = cell.value == cell.low == cell.high  # all resamples alike: an interval would say no more
            value, interval = (significant(cell.value), None) if same else cell_text(cell, 4)
            cells.append({"value": value, "interval": interval})
    return cells
