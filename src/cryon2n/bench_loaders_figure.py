"""Tables and the figure of ``bench loaders``, and the arithmetic of EMPIAR-10025."""

from pathlib import Path
from typing import Any

import torch

from cryon2n import files, loaders
from cryon2n.shards_tiles import ShardSettings, patch_positions

# EMPIAR-10025: the movies of a common subset and all, and the micrographs' shapes by binning.
MOVIES = (14, 196)
SHAPES = {1: (7676, 7420), 2: (3838, 3710)}
LOOKS = {
    "gpu": ("#882255", "-"),
    "ram": ("#0072b2", "-"),
    "stream": ("#d55e00", "-"),
    "stream through the page cache": ("#d55e00", ":"),
    "DataLoader, memmap": ("#009e73", "--"),
    "DataLoader, MRC": ("#777777", "--"),
    "the same batch again": ("#000000", ":"),
}


def arithmetic(patch: int, where: torch.device) -> list[dict[str, Any]]:
    """Say for EMPIAR-10025 how many patches and GB it has, and which loader ``auto`` takes on this machine.

    As if all movies were trained on; a study leaves some out for validation and test.
    """
    rows = []
    for binning, (h, w) in SHAPES.items():
        record = {"valid": [0, h, 0, w], "micrograph": "a micrograph"}
        each = len(patch_positions(record, ShardSettings(patch=patch)))
        for movies in MOVIES:
            n_bytes = loaders.patch_bytes(movies * each, patch)
            kind, why = loaders.choose_loader("auto", n_bytes, where)
            rows.append(
                {
                    "movies": movies, "bin": binning, "shape": f"{h} x {w}", "patches_each": each,
                    "patches": movies * each, "GB": n_bytes / 1e9, "loader": kind, "why": why,
                }
            )  # fmt: skip
    return rows


SHORT = (
    "loader", "page cache", "workers", "patches/s alone", "GB/s alone", "read/used", "training Mpx/s", "waits",
    "RSS GB", "GPU GB",
)  # fmt: skip


def machine_line(result: dict[str, Any]) -> str:
    """Say what was measured on what."""
    m, s = result["machine"], result["settings"]
    return (
        f"{m['device']}, {m['cores']} cores, {m['memory_GB']:.0f} GB, {m['file_system']}, "
        f"torch {m['torch']}, {m['precision']}; "
        f"{s['data_GB']:.1f} GB of {s['patch']} px patches, {s['batch']} crops of {s['crop']} px"
    )


def short_rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the short table, with columns `SHORT`: of each loader the best number of workers."""
    lines = []
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["rows"]:
        if row["use"] == "alone" and row["note"] == "":
            key = row["loader"], row["cache"]
            if key not in best or row["GB_per_s"] > best[key]["GB_per_s"]:
                best[key] = row
    trained = {(r["loader"], r["cache"]): r for r in result["rows"] if r["use"] == "training"}
    for key in [*best, *(k for k in trained if k not in best)]:
        alone, train = best.get(key, {}), trained.get(key, {})
        either = train or alone
        cells = [
            *key, str(either["workers"]), _cell(alone, "patches_per_s"), _cell(alone, "GB_per_s"),
            _cell(alone, "read_per_used"), _cell(train, "Mpx_per_s"),
            f"{100 * train['wait_share']:.2f} %" if train.get("wait_share") not in (None, "") else "",
            _cell(either, "rss_GB"), _cell(either, "gpu_GB"),
        ]  # fmt: skip
        lines.append(cells)
    return lines


def identical_line(result: dict[str, Any]) -> str:
    """Say whether the loaders gave the same batches."""
    same = result["identical"]
    return f"batches of {', '.join(same['loaders'])}, {same['steps']} steps while training: " + (
        "identical" if same["identical"] else "THEY DIFFER"
    )


def short(result: dict[str, Any]) -> dict[str, Any]:
    """Return what the report shows: the machine, the short table, sentences."""
    capped = capped_lines(result["capped"]) if result["capped"] else []
    return {
        "machine": machine_line(result),
        "columns": list(SHORT),
        "rows": short_rows(result),
        "sentences": [identical_line(result), *(line.removeprefix("* ").rstrip(":") for line in capped)],
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the short tables as Markdown."""
    rows = [SHORT, ["---"] * len(SHORT), *short_rows(result)]
    lines = [machine_line(result), "", *("| " + " | ".join(row) + " |" for row in rows)]
    if result["made"]:
        lines += ["", "shards: {shard_GB:.1f} GB written at {write_GB_per_s:.2f} GB/s".format(**result["made"])]
    lines += ["", identical_line(result)]
    if result["capped"]:
        lines += ["", *capped_lines(result["capped"])]
    lines += ["", "| EMPIAR-10025 | bin | patches | GB | auto |", "| --- " * 5 + "|"]
    lines += [
        f"| {r['movies']} movies | {r['bin']} ({r['shape']}) | {r['patches']} | {r['GB']:.2f} | {r['loader']}: "
        f"{r['why']} |"
        for r in result["arithmetic"]
    ]
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name, "")
    return "" if value in ("", None) else f"{value:.3g}"


def capped_lines(c: dict[str, Any]) -> list[str]:
    """Say what the run under a cap showed."""
    stream = c["stream"]
    share = stream["wait_share"]
    lines = [
        f"under a cap of {c['cap_GB']:g} GB ({c['held']}), {c['data_GB']:.1f} GB of patches, "
        f"{'past' if c['past_page_cache'] else 'dropped from'} the page cache, visits of {c['visit']} steps:",
        f"* {stream['steps']} steps streaming {stream['Mpx_per_s']:.1f} Mpx/s "
        f"({c['read_GB_per_s']:.2f} GB/s from the disk); resident ({c['resident']}) before and after "
        f"{c['resident_Mpx_per_s'][0]:.1f} and {c['resident_Mpx_per_s'][1]:.1f}: {100 * c['ratio']:.1f} %",
        f"* waited {'-' if share is None else f'{100 * share:.2f} %'} of the step time",
        f"* memory: process at most {c['peak_rss_GB']:.2f} GB, shards in the page cache at most "
        f"{c['peak_cached_GB']:.2f} GB, together {c['peak_GB']:.2f} GB (buffers of the loader "
        f"{c['buffers_GB']:.2f} GB, on the device {c['device_buffers_GB']:.2f} GB)",
    ]
    if c["slope_MB_per_1000_steps"]:
        lines.append("* growth of the process {:+.2f} ± {:.2f} MB per 1000 steps".format(*c["slope_MB_per_1000_steps"]))
    tried = c["asked_visit"]
    if tried["visit"] != c["visit"]:
        lines.append(
            f"* with visits of {tried['visit']} steps: {tried['Mpx_per_s']:.1f} Mpx/s; the disk gives "
            f"{tried['alone_GB_per_s']:.2f} GB/s alone"
        )
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw GB/s against workers, training from each loader, and the memory of the run under a cap (PNG)."""
    from matplotlib.figure import Figure  # only here: to measure on a bare machine it is not needed

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    rows = [row for row in result["rows"] if row["note"] == ""]
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["use"] == "alone":
            curves.setdefault((row["loader"], row["cache"]), []).append((max(1, row["workers"]), row["GB_per_s"]))
    for (name, cache), points in curves.items():
        color, line = LOOKS[name]
        label = f"{name}, {cache}" if cache else name
        axes[0].plot(*zip(*sorted(points), strict=True), line, color=color, marker="o" if cache == "warm" else "s",
                     ms=4, label=label)  # fmt: skip
    axes[0].set(xscale="log", yscale="log", xlabel="workers", ylabel="GB/s given, alone")
    axes[0].set_xticks(sorted({w for points in curves.values() for w, _ in points}), minor=False)
    axes[0].xaxis.set_major_formatter("{x:.0f}")
    axes[0].xaxis.set_minor_formatter("")
    axes[0].legend(fontsize=6)
    trained = sorted((r for r in rows if r["use"] == "training"), key=lambda r: r["Mpx_per_s"])
    axes[1].barh([r["loader"] for r in trained], [r["Mpx_per_s"] for r in trained],
                 color=[LOOKS[r["loader"]][0] for r in trained])  # fmt: skip
    for k, r in enumerate(trained):
        if r["wait_share"] not in (None, ""):
            axes[1].text(0, k, f" waits {100 * r['wait_share']:.1f} %", va="center", fontsize=7, color="white")
    axes[1].set(xlabel="Mpx/s under training")
    axes[1].tick_params(axis="y", labelsize=7)
    if result["capped"]:
        c = result["capped"]
        step, process, cached = zip(*c["samples"], strict=True)
        axes[2].plot(step, [b / 1e9 for b in process], color="#d55e00", label="process")
        axes[2].plot(step, [b / 1e9 for b in cached], color="#0072b2", label="shards in the page cache")
        axes[2].axhline(c["cap_GB"], color="#777777", ls="--", label="allowed")
        axes[2].axhline(c["data_GB"], color="#000000", ls=":", label="data set")
        axes[2].set(xlabel="steps, streaming", ylabel="GB", ylim=(0, None))
        axes[2].legend(fontsize=6)
    else:
        axes[2].set_axis_off()
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)
