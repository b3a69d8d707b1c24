"""The comparison as a page of Markdown: every number from the tables, each with its interval, n and definition.

One section per data set (a folder with ``summary.tsv``, ``metrics.tsv``, ``curves.tsv``), then what the project's plan
quotes beside what was measured, and how Topaz was run.
"""

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from cryon2n import __version__, figures, files, log
from cryon2n.compare_cost import read_costs
from cryon2n.compare_figures import display_names, draw_comparison
from cryon2n.errors import InputError
from cryon2n.folds import folds_there
from cryon2n.report_tables import (
    FEW,
    MEASURES,
    Cell,
    Measure,
    Tables,
    anchor,
    cell_text,
    headline,
    read_tables,
    significant,
    verdicts,
)

# What the plan of this project quotes for Topaz-Denoise, and what it sets as the stretch: PSNR in dB, SSIM.
QUOTED, STRETCH = ("20 to 21", "0.82 to 0.87"), (21, 0.85)

Cells = Mapping[str, Mapping[str, "Cell"]]

SECOND = (
    Measure("half", "upsnr", "uPSNR", "dB", 1, 2),
    Measure("half", "bias_variance", "bias variance", "", -1, 6),
    Measure("half", "residual_noise", "residual noise", "", -1, 6),
    Measure("half", "half_frc", "half-FRC", "", 1, 4),
    Measure("full", "noise_power_ratio", "f(noise) power", "", -1, 6),
    Measure("mean", "topaz_snr_db", "Topaz's SNR", "dB", 1, 2),
)
FAST = (
    Measure("full", "signal_to_error_db", "signal-to-error", "dB", 1, 2),
    Measure("full", "psnr", "PSNR", "dB", 1, 2),
    Measure("full", "ssim", "SSIM", "", 1, 4),
)
AFFINE = (
    Measure("mean", "signal_to_error_db_affine", "signal-to-error", "dB", 1, 2),
    Measure("mean", "psnr_affine", "PSNR", "dB", 1, 2),
    Measure("mean", "ssim_affine", "SSIM", "", 1, 4),
    Measure("mean", "affine_gain", "gain", "", 0, 4),
)
COSTS = {
    "seconds_per_image": "s per image",
    "Mpx_per_s": "Mpx/s",
    "job_seconds": "s per job",
    "memory_GB": "memory, GB",
    "gpu_memory_GB": "GPU memory, GB",
    "gpu_J_per_image": "GPU J per image",
    "train_seconds": "training, s",
    "train_gpu_J": "training, GPU J",
}


@dataclass(frozen=True)
class DataSet:
    """A data set's tables, costs, Topaz's records and number of folds; `folder` is where they were read."""

    folder: Path
    tables: Tables
    costs: dict[str, dict[str, str]]
    topaz: list[dict[str, Any]]
    folds: int

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name


def read_data_set(
    folder: Path, ours: Sequence[str], reference: str | None, bootstrap: int, folds: int | None = None
) -> DataSet:
    """Read a data set.

    Parameters
    ----------
    folder : path
        ``results/{dataset}``, or what ``cryon2n compare`` wrote.
    ours : sequence of str
        Which methods are ours; without any, those with a training record in ``models/``.
    reference : str or None
        The method of the deltas; None finds it in the summary.
    bootstrap : int
        Resamples for differences that are not in the summary.
    folds : int or None
        Of a cross-validation; None counts those whose models lie in the folder.
    """
    models = {m: {} for m in ours or sorted(path.parent.name for path in folder.glob("models/**/metrics.json"))}
    config = {"models": models, "compare": {"reference": reference, "bootstrap": bootstrap}}
    tables = read_tables(folder, config)
    if reference is None:
        own = [m for m in tables.methods if _is_reference(tables, m)]
        tables = read_tables(
            folder, {**config, "compare": {"reference": next(iter(own), None), "bootstrap": bootstrap}}
        )
    records = []
    for method in (m for m in tables.methods if m.startswith("topaz")):
        paths = sorted(folder.glob(f"denoised/{method}/*.json"))
        records += [files.read_json(paths[0])] if paths else []
    cost = folder / "cost.tsv"
    k = len(folds_there(folder)) if folds is None else max(folds, 1)
    return DataSet(folder, tables, read_costs(cost) if cost.exists() else {}, records, k)


def _is_reference(tables: Tables, method: str) -> bool:
    cell = tables.cell(method, "half", "umse", delta=True)
    return cell.value == 0 and (cell.low == cell.high == 0 or not np.isfinite(cell.low))


# ---------------------------------------------------------------------------- text


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, the first column left and the others right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def measure_table(tables: Tables, measures: Sequence[Measure], cells: Cells, link: str) -> str:
    """Return a table of measures, each title linked to its definition; empty where no method has a value."""
    shown = [m for m in measures if any(np.isfinite(cells[m.metric][x].value) for x in tables.methods)]
    header = ["method"]
    for m in shown:
        unit, arrow = f" ({m.unit})" if m.unit else "", {1: " ↑", -1: " ↓"}.get(m.sign, "")
        header.append(f"[{m.title}]({link}#{anchor(m.metric)}){unit}{arrow}")
    rows = []
    for method, name in display_names(tables).items():
        own = [cells[m.metric][method] for m in shown]
        counts = " / ".join(map(str, sorted({cell.n for cell in own if np.isfinite(cell.value)}))) or "0"
        rows.append([name, *(_text(cell, m.digits, m) for cell, m in zip(own, shown, strict=True)), counts])
    return markdown_table([*header, "n"], rows) if shown else ""


def _text(cell: Cell, digits: int, measure: Measure | None = None) -> str:
    value, interval = cell_text(cell, digits)
    if interval == "the reference" and (measure is None or measure.metric != "umse"):
        interval = None  # 0 by nature, as the bias of no denoiser
    return "–" if value is None else value + (f" ({interval})" if interval else "")


def _cells(tables: Tables, measures: Sequence[Measure]) -> Cells:
    return {m.metric: {x: tables.cell(x, m.estimator, m.metric) for x in tables.methods} for m in measures}


def _has_truth(tables: Tables) -> bool:
    return any(np.isfinite(tables.cell(m, e, "psnr").value) for m in tables.methods for e in ("mean", "full"))


def data_set_part(data: DataSet, link: str, pictures: Mapping[str, str]) -> dict[str, Any]:
    """Return what the template wants of one data set."""
    tables, names = data.tables, display_names(data.tables)
    cells, base = headline(tables)
    limit = tables.limit()
    parts = {"second": SECOND, "fast": FAST, "affine": AFFINE}
    return {
        "name": data.name,
        "n": len(next(iter(tables.scores.values()))),
        "limit": significant(limit) if limit else None,
        "verdicts": verdicts(tables, cells, names) if tables.ours else [],
        "headline": measure_table(tables, [m for m in MEASURES if m.metric in cells], cells, link),
        "base": names[base] if base else None,
        "folds": data.folds,
        "has_truth": _has_truth(tables),
        **{part: measure_table(tables, measures, _cells(tables, measures), link) for part, measures in parts.items()},
        **cost_part(data, names),
        "pictures": pictures,
    }


def cost_part(data: DataSet, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the table of costs and what stands beside it; nothing where none were collected."""
    known = [m for m in data.tables.methods if m in data.costs]
    if not known:
        return {"costs": None}
    shown = {k: title for k, title in COSTS.items() if any(data.costs[m][k] != "nan" for m in known)}
    rows = []
    for method in known:
        row = data.costs[method]
        values = [significant(float(row[key])) if row[key] != "nan" else "not measured" for key in shown]
        rows.append([names[method], *values, row["device"]])
    return {
        "costs": markdown_table(["method", *shown.values(), "device"], rows),
        "megapixels": significant(float(data.costs[known[0]]["Mpx"])),
        "unmeasured": ", ".join(title for key, title in COSTS.items() if key not in shown),
    }


def plan_table(data: DataSet) -> str:
    """Return PSNR and SSIM of every method beside the figures that the plan quotes for Topaz."""
    tables, rows = data.tables, [["*quoted for Topaz*", *(f"*{text}*" for text in QUOTED), "–", "–", "–", "–"]]
    for method, name in display_names(tables).items():
        cells = [tables.cell(method, e, metric) for e in ("mean", "full") for metric in ("psnr", "ssim")]
        # Of a method that was not run on halves, the fast mode is judged.
        psnr, ssim = cells[:2] if np.isfinite(cells[0].value) else cells[2:]
        over = " / ".join("yes" if x.value > least else "no" for x, least in zip((psnr, ssim), STRETCH, strict=True))
        rows.append([name, *(_text(x, d) for x, d in zip(cells, (2, 4, 2, 4), strict=True)), over, str(psnr.n)])
    over = f"over {STRETCH[0]:g} dB / {STRETCH[1]:g}"
    return markdown_table(
        ["method", "PSNR, mean of halves (dB)", "SSIM", "PSNR, fast mode (dB)", "SSIM", over, "n"], rows
    )


def topaz_table(sets: Sequence[DataSet]) -> str:
    """Return which Topaz ran where, by its records; empty where none did."""
    rows = []
    for name, record in ((data.name, record) for data in sets for record in data.topaz):
        weights, device = record.get("weights") or {}, str(record.get("device") or "–").lstrip("# ")
        about = [str(record.get(key) or "–") for key in ("method", "topaz", "torch")]
        rows.append([name, *about, weights.get("file", "–"), f"`{weights.get('sha256', '–')}`", device])
    header = ["data set", "method", "Topaz", "torch", "weights", "SHA-256", "its line about the device"]
    return markdown_table(header, rows) if rows else ""


def page(sets: Sequence[DataSet], link: str, pictures: Mapping[str, Mapping[str, str]], command: str) -> str:
    """Return the whole page; `link` leads to ``docs/metrics.md``, `pictures` are by data set and title."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cryon2n", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("comparison.md").render(
        command=command,
        version=__version__,
        few=FEW,
        link=link,
        sets=[data_set_part(data, link, pictures.get(data.name, {})) for data in sets],
        plan={data.name: plan_table(data) for data in sets if _has_truth(data.tables)},
        quoted=QUOTED,
        stretch=STRETCH,
        topaz=topaz_table(sets),
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# ---------------------------------------------------------------------------- command


def write_figures(data: DataSet, folder: Path, prefix: str = "") -> dict[str, Path]:
    """Write the comparison's figures as SVG into a folder; returns them by title."""
    tables = data.tables
    names, look = display_names(tables), figures.looks(tables.methods, tables.ours)
    drawn = draw_comparison(tables, headline(tables)[0], names, look)
    titles = {"intervals": "Measures with their intervals", "cross_frc": "Cross-FRC by method"}
    out = {}
    for name, figure in drawn.items():
        path = folder / f"{prefix}{name}.svg"
        files.write_text(path, figures.svg_text(figure))
        out[titles[name]] = path
    return out


def write_page(sets: Sequence[DataSet], out: Path, metrics: str, figure_folder: Path, command: str) -> None:
    """Write the page and its figures."""
    pictures = {}
    for data in sets:
        drawn = write_figures(data, figure_folder, f"{data.name}-" if len(sets) > 1 else "")
        pictures[data.name] = {
            title: Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()
            for title, path in drawn.items()
        }
    files.write_text(out, page(sets, metrics, pictures, command))
    log.say(f"{out}: {len(sets)} data set{'s' if len(sets) != 1 else ''}")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--results", type=Path, nargs="+", required=True, metavar="DIR", help="results/{dataset}, one or more")
    add("--ours", nargs="+", default=[], metavar="METHOD", help="our methods; default: those trained in models/")
    add("--reference", metavar="METHOD", help="method of the deltas; default: that of summary.tsv")
    add("--folds", type=int, metavar="K", help="of a cross-validation, 0: none; default: those that models/ holds")
    add("--bootstrap", type=int, default=2000, metavar="N", help="resamples of the micrographs")
    add("--metrics-page", default="metrics.md", metavar="LINK", help="where the definitions are, seen from the page")
    add("--figures", type=Path, metavar="DIR", help="folder for the figures; default: that of the page")
    add("--out", type=Path, required=True, metavar="MD", help="written: the page")


def _run(args: argparse.Namespace) -> None:
    sets = [read_data_set(folder, args.ours, args.reference, args.bootstrap, args.folds) for folder in args.results]
    if len({d.name for d in sets}) < len(sets):
        raise InputError("--results: two folders have one name; wanted each data set once")
    words = " ".join(["cryon2n compare-doc --results", *map(str, args.results), "--out", str(args.out)])
    write_page(sets, args.out, args.metrics_page, args.figures or args.out.parent, words)


COMMANDS = {"compare-doc": (_add_arguments, _run)}
