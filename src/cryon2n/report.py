"""The report and the gallery: two self-contained pages from the tables and images of one data set.

Every sentence with a number in it is computed from the tables, losses of our own method included.
What is not there (a truth, Topaz, a metric) is said in words.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from cryon2n import audit_rules, codeversion, excluded, figures, files, filters, log, report_panel, software
from cryon2n.compare import load_truth
from cryon2n.compare_cost import read_costs
from cryon2n.compare_figures import display_names, draw_comparison
from cryon2n.folds import fold_names
from cryon2n.pair import Pair, load_pair, read_shown
from cryon2n.report_tables import (
    FEW,
    MEASURES,
    Tables,
    absent_metrics,
    all_metrics,
    headline,
    headline_rows,
    listed,
    read_tables,
    significant,
    verdicts,
)
from cryon2n.report_training import forms, loaders, training
from cryon2n.settings import add_config_argument, config_from_arguments

FLAGS = audit_rules.FLAGS
MARGIN = 0.2  # of the truth's grey range, added at each end
CROP = 512  # px: side of the report's pictures
GALLERY_MICROGRAPHS, GALLERY_SIDE = 6, 1024  # at most
GALLERY_PIXELS = 32e6  # in all; about 0.35 byte each as JPEG of quality 85, 4/3 of that inlined: < 15 MB


# ---------------------------------------------------------------------------- images


@dataclass
class Subject:
    """A test micrograph with its truth (or None), grey ranges and what they are taken from."""

    pair: Pair
    truth: np.ndarray | None
    region: tuple[slice, slice]
    limits: tuple[float, float]
    raw_limits: tuple[float, float]


def load_subject(record: Path, truth_directory: Path | None, limit: float | None) -> Subject:
    """Load a test micrograph and choose its grey ranges, without looking at any method's result.

    One range for all denoised images: the 0.5 and 99.5 percentiles of the truth, widened by a fifth of
    their distance at each end (an estimate has some noise about a flat background); without a truth, of
    the raw exposure low-passed at the information limit `limit` (Å), whose noise has widened them.
    """
    pair = load_pair(record)
    if truth_directory is not None:
        truth = load_truth(truth_directory, pair)
        image, region = truth.image, truth.region
        source = image
    else:
        image, region = None, pair.valid
        cutoff = min(0.5, pair.pixel_size / limit) if limit else 0.1
        source = filters.apply({"method": "lowpass", "setting": {"full": cutoff}}, pair.full, "full")
    low, high = figures.grey_limits(source[region])
    margin = 0.0 if image is None else MARGIN * (high - low)
    limits = low - margin, high + margin
    return Subject(pair, image, region, limits, figures.grey_limits(pair.full[region]))


def tile(name: str, method: str, image: np.ndarray, limits: tuple[float, float], quality: int) -> dict[str, Any]:
    """Return a picture as the templates want it."""
    return {"name": name, "method": method, "uri": figures.jpeg_uri(image, limits, quality)}


def pictures(subject: Subject, denoised: Path, methods: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the before/after pictures and the pictures of f(noise) of one micrograph, cut from its middle."""
    crop = figures.middle(subject.region, CROP)
    out: dict[str, Any] = {"images": [], "noise": []}
    for method in methods:
        folder = denoised / method
        limits = subject.raw_limits if method == "raw" else subject.limits
        image = read_shown(subject.pair, folder)[crop]
        out["images"].append(tile(names[method], method, image, limits, 92))
        # The noise has its own level; the picture is about the pattern, at the contrast of the images.
        if not folder.joinpath(f"{subject.pair.name}_noise.mrc").exists():
            continue  # a method from outside that was not run on it
        noise = read_shown(subject.pair, folder, "noise")[crop]
        half = (limits[1] - limits[0]) / 2
        out["noise"].append(tile(names[method], method, noise - np.median(noise), (-half, half), 92))
    if subject.truth is not None:
        out["images"].append(tile("truth", "truth", subject.truth[crop], subject.limits, 92))
    return {
        **out,
        "micrograph": subject.pair.name,
        "side": f"{crop[0].stop - crop[0].start} × {crop[1].stop - crop[1].start} px",
        "pixel_size": f"{subject.pair.pixel_size:.4g}",
    }


def mean_spectra(
    subjects: Sequence[Subject], denoised: Path, methods: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """Return a frequency axis (1/Å) and the mean power spectra of each method's images, and of the truth."""
    nyquist = max(1 / (2 * s.pair.pixel_size) for s in subjects)
    axis = np.linspace(0, nyquist, max(max(s.pair.a.shape) for s in subjects) // 2 + 1)

    def mean_power(images: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(images, subjects, strict=True)
        stack = np.array([figures.power_spectrum(x[s.region], s.pair.pixel_size, axis) for x, s in pairs])
        ok = np.isfinite(stack)
        return np.where(ok, stack, 0).sum(axis=0) / np.maximum(ok.sum(axis=0), 1)

    spectra = {m: mean_power([read_shown(s.pair, denoised / m) for s in subjects]) for m in methods}
    truths = [s.truth for s in subjects if s.truth is not None]
    return axis, spectra, mean_power(truths) if len(truths) == len(subjects) else None


def gallery(subjects: Sequence[Subject], denoised: Path, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the gallery's tiles: every method on each micrograph, the middle square at full resolution."""
    count = len(subjects) * (len(names) + (subjects[0].truth is not None))
    side = int(min(GALLERY_SIDE, np.sqrt(GALLERY_PIXELS / count)))
    out = []
    for s in subjects:
        crop = figures.middle(s.region, side)
        tiles = []
        for method in names:
            limits = s.raw_limits if method == "raw" else s.limits
            tiles.append(tile(names[method], method, read_shown(s.pair, denoised / method)[crop], limits, 85))
        if s.truth is not None:
            tiles.append(tile("truth", "truth", s.truth[crop], s.limits, 85))
        height, width = (part.stop - part.start for part in crop)
        whole = all(abs((p.stop - p.start) - (c.stop - c.start)) == 0 for p, c in zip(s.region, crop, strict=True))
        out.append({"name": s.pair.name, "tiles": tiles, "height": height, "width": width, "whole": whole})
    return out


# ---------------------------------------------------------------------------- other parts


def audit_words(results: Path) -> dict[str, Any] | None:
    """Return the audit's figure and what it found, in words; None where there was no audit."""
    table, figure, list_of_excluded = (results / "halves" / x for x in ("audit.tsv", "audit.png", "excluded.tsv"))
    if not table.exists():
        return None
    rows = files.read_table(table, ("micrograph", "frc_beyond_z", "flags"))
    own = [row for row in rows if row["micrograph"] != audit_rules.POOLED]
    flagged = []
    for row in rows:
        if row["flags"] != "ok":
            # The note holds values and limits.
            words = row.get("note") or "; ".join(FLAGS.get(flag, flag) for flag in row["flags"].split(","))
            name = "All micrographs together" if row["micrograph"] == audit_rules.POOLED else row["micrograph"]
            flagged.append({"name": name, "words": words})
    left_out = excluded.read_excluded(list_of_excluded) if list_of_excluded.exists() else {}
    return {
        "uri": figures.file_uri(figure) if figure.exists() else None,
        "n": len(own),
        "flagged": flagged,
        "n_flagged": sum(row["flags"] != "ok" for row in own),
        "excluded": [{"name": name, "words": reason} for name, reason in left_out.items()],
        "worst": f"{max(abs(float(r['frc_beyond_z'])) for r in own):.1f}" if own else "–",
        "limits": (audit_rules.SIGNIFICANT, audit_rules.PATTERN_Z),
    }


def provenance(
    results: Path, config: Mapping[str, Any], folds: Sequence[str], tests: Sequence[str], methods: Sequence[str]
) -> dict[str, Any]:
    """Return what made the numbers: config, versions, split, plan, filters' settings, Topaz's records."""
    plan, splits = results / "plan.txt", []
    for fold in folds:
        manifest = results / "shards" / fold / "manifest.json"
        split = files.read_json(manifest).get("split", {}) if manifest.exists() else {}
        splits.append({"fold": fold.strip("/"), **split, **({} if fold else {"test": list(tests)})})
    topaz = []
    for method in methods:
        record = results / "denoised" / method / f"{tests[0]}.json"
        if record.exists():
            topaz += [found for found in [files.read_json(record)] if "topaz" in found]
    models = results / "models" / folds[0]
    trained = models / "topaz-trained/record.json"
    tuned = {}
    for method in methods:
        path = models / method / "filter.json"
        if path.exists():
            tuned[method] = files.read_json(path)
    return {
        "config": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        "versions": software.versions(),
        "code": codeversion.code_version("report.py", "report_tables.py", "figures.py"),
        "splits": splits,
        "plan": plan.read_text() if plan.exists() else None,
        "topaz": topaz,
        "topaz_trained": files.read_json(trained) if trained.exists() else None,
        "filters": tuned,
    }


# ---------------------------------------------------------------------------- pages


def build(
    config: Mapping[str, Any], results: Path, records: Sequence[Path], truth: Path | None, gallery_link: str
) -> tuple[str, str]:
    """Return the report and the gallery as HTML.

    Parameters
    ----------
    config : mapping
        The workflow's config: ``dataset``, ``models``, ``compare`` and ``source`` are looked at.
    results : path
        ``results/{dataset}``.
    records : sequence of path
        Of the test micrographs' halves.
    truth : path or None
        Folder of the clean images.
    gallery_link : str
        Relative path from the report to the gallery.

    Raises
    ------
    InputError
        A table or image is missing, damaged, or does not fit the others.
    """
    tables = read_tables(results, config)
    names = display_names(tables)
    look = figures.looks(tables.methods, tables.ours)
    cells, base = headline(tables)
    shown = [m for m in MEASURES if m.metric in cells]
    denoised, limit = results / "denoised", tables.limit()
    subjects = [load_subject(path, truth, limit) for path in records[:GALLERY_MICROGRAPHS]]
    tests, folds = [path.stem for path in records], fold_names(config)
    log.say(f"{len(tables.methods)} methods, {len(tests)} test micrographs, {len(subjects)} of them shown")

    axis, spectra, truth_spectrum = mean_spectra(subjects, denoised, tables.methods)
    plots = {
        "intervals": None,
        **draw_comparison(tables, cells, names, look),
        "spectra": figures.draw_spectra(axis, spectra, truth_spectrum, limit, names, look),
    }
    view = pictures(subjects[0], denoised, tables.methods, names)
    by_method = {t["method"]: t for t in view["images"]}
    context = {
        "dataset": config.get("dataset", results.name),
        "source": (config.get("source") or {}).get("kind"),
        "ours": tables.ours,
        "names": names,
        "look": look,
        "measures": shown,
        "rows": headline_rows(tables, cells, names),
        "missing": [m.title for m in MEASURES if m.metric not in cells],
        "verdicts": verdicts(tables, cells, names),
        "base": names[base] if base else None,
        "n_test": len(tests),
        "few": FEW,
        "plots": {key: figures.svg_uri(plot) if plot else None for key, plot in plots.items()},
        "view": view,
        "strip": [by_method[m] for m in picked(tables, cells) if m in by_method],
        "has_truth": truth is not None,
        "limit": significant(limit) if limit else None,
        "noise": noise_rows(tables, names),
        "panel": report_panel.panel(results, tables.methods, names),
        "disagreement": report_panel.disagreement_tiles(
            subjects[0].pair, denoised, tables.methods, names, figures.middle(subjects[0].region, CROP)
        ),
        "picking": report_panel.picking(results, tables.methods, names, look, tables.reference),
        "costs": cost_rows(results, tables, names),
        "spectra_n": len(subjects),
        "audit": audit_words(results),
        "training": training(results, folds, tables.ours, names, look),
        "forms": forms(results / "models" / folds[0], tables.ours, names),
        "loaders": loaders(results / "bench" / folds[0]),
        "folds": len(folds),
        "topaz": [m for m in tables.methods if m.startswith("topaz")],
        "estimators": all_metrics(tables),
        "absent": absent_metrics(tables),
        "prov": provenance(results, config, folds, tests, tables.methods),
        "gallery_link": gallery_link,
    }
    album = {
        "dataset": context["dataset"],
        "micrographs": gallery(subjects, denoised, names),
        "left": "raw" if "raw" in names else tables.methods[0],
        "right": (tables.ours or tables.methods[-1:])[0],
        "look": look,
        "ours": tables.ours,
        "has_truth": truth is not None,
        "n_test": len(tests),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cryon2n", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["listed"] = listed
    environment.filters["significant"] = lambda x: significant(float("nan") if x is None else float(x))
    environment.filters["duration"] = log.duration
    pages = (("report.html", context), ("gallery.html", album))
    report, page = (environment.get_template(name).render(values) for name, values in pages)
    return report, page


def picked(tables: Tables, cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the methods of the before/after picture: raw, a filter, the best Topaz, our first model, truth.

    The best Topaz is the one ahead in the first measure of the headline table that Topaz has.
    """
    filter_names = [m for m in ("gaussian", "lowpass", "wiener") if m in tables.methods]
    topaz = [m for m in tables.methods if m.startswith("topaz")]
    for measure in (m for m in MEASURES if m.metric in cells):
        column = cells[measure.metric]
        finite = [m for m in topaz if np.isfinite(column[m].value)]
        if finite:
            topaz = [max(finite, key=lambda m: measure.sign * column[m].value)]
            break
    return ["raw", *filter_names[:1], *topaz[:1], *tables.ours[:1], "truth"]


def noise_rows(tables: Tables, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return each method's share of noise power that it lets through, over all frequencies and in the band."""
    rows = []
    for method in tables.methods:
        both = (tables.cell(method, "full", key).value for key in ("noise_power_ratio", "noise_power_ratio_inband"))
        whole, band = (significant(100 * value) if np.isfinite(value) else None for value in both)
        rows.append({"method": method, "name": names[method], "whole": whole, "band": band})
    return rows


def cost_rows(results: Path, tables: Tables, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what each method cost, as text, None where it was not measured; nothing without ``cost.tsv``."""
    path = results / "cost.tsv"
    found = read_costs(path) if path.exists() else {}
    rows = []
    for method in (m for m in tables.methods if m in found):
        cells = {key: None if text in ("nan", "") else text for key, text in found[method].items()}
        rows.append({**cells, "method": method, "name": names[method]})
    return rows


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config_argument(parser)
    add("--results", type=Path, required=True, metavar="DIR", help="results/{dataset}")
    add("--test", type=Path, nargs="+", required=True, metavar="RECORD", help="records of the test halves")
    add("--truth", type=Path, metavar="DIR", help="simulated entries: clean images {mic}.mrc with {mic}.json")
    add("--report", type=Path, required=True, metavar="HTML", help="written: the report")
    add("--gallery", type=Path, required=True, metavar="HTML", help="written: the gallery")


def _run(args: argparse.Namespace) -> None:
    config = config_from_arguments(args)
    link = Path(os.path.relpath(args.gallery.resolve(), args.report.resolve().parent)).as_posix()
    left_out = args.results / "halves/excluded.tsv"
    records = excluded.kept(args.test, left_out if left_out.exists() else None, "test")
    report, page = build(config, args.results, records, args.truth, link)
    files.write_text(args.gallery, page)
    files.write_text(args.report, report)
    for path, text in ((args.report, report), (args.gallery, page)):
        log.say(f"{path}: {len(text) / 1e6:.1f} MB")


COMMANDS = {"write-report": (_add_arguments, _run)}
