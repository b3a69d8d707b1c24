"""The report's parts about training: its course, and how fast data came."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cryon2n import figures, files
from cryon2n.errors import InputError


def training(
    results: Path, folds: Sequence[str], models: Sequence[str], names: Mapping[str, str], look: Any
) -> dict[str, Any] | None:
    """Return figure (of the first fold) and facts of our models' training; None where no model has left any."""
    facts, histories = [], {}
    for fold, model in itertools.product(folds, models):
        folder = results / "models" / fold / model
        if not (folder / "metrics.json").exists():
            continue
        name = f"{names[model]}, {fold.strip('/')}" if fold else names[model]
        facts.append({"name": name, **files.read_json(folder / "metrics.json")})
        if fold == folds[0] and (folder / "log.csv").exists():
            table = pd.read_csv(folder / "log.csv")
            wanted = ("step", "loss", "val_delta_umse")
            if missing := [c for c in wanted if c not in table]:
                raise InputError(f"{folder / 'log.csv'}: column {', '.join(missing)} is missing; train again")
            histories[model] = {c: table[c].to_numpy(float) for c in wanted}
    if not facts:
        return None
    plot = figures.draw_training(histories, names, look) if histories else None
    return {"facts": facts, "uri": figures.svg_uri(plot) if plot else None}


def forms(folder: Path, models: Sequence[str], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what ``verify`` found of each network in a folder of models: the largest difference of each precision."""
    rows = []
    for model in models:
        path = folder / model / "forms.tsv"
        if not path.exists():
            continue
        table = files.read_table(path, ("form", "precision", "quantity", "difference", "verdict", "note"))
        for precision in dict.fromkeys(row["precision"] for row in table):
            own = [row for row in table if row["precision"] == precision]
            checked = [row for row in own if row["quantity"]]
            one_step = [float(r["difference"]) for r in checked if r["quantity"] in ("output", "loss", "gradients")]
            trained = [float(r["difference"]) for r in checked if r["quantity"] == "tenth loss"]
            weights = [float(r["difference"]) for r in checked if r["quantity"] in ("weights", "average")]
            left_out = [f"{row['form']} ({row['note']})" for row in own if row["verdict"] in ("skipped", "cannot run")]
            rows.append(
                {
                    "model": names[model],
                    "precision": precision,
                    "forms": "; ".join(dict.fromkeys(row["form"] for row in checked)),
                    "one_step": f"{max(one_step):.1e}" if one_step else "–",
                    "ten_steps": f"{max(trained):.1e}" if trained else "–",
                    "weights": f"{max(weights):.1e}" if weights else "–",
                    "fails": "; ".join(f"{r['form']}: {r['quantity']}" for r in checked if r["verdict"] != "ok"),
                    "left_out": "; ".join(left_out) or "–",
                }
            )
    return rows


def loaders(folder: Path) -> dict[str, Any] | None:
    """Return figure, table and sentences of ``bench loaders``; None where it has not been run for this data set."""
    found, figure = folder / "loaders.json", folder / "loaders.png"
    if not found.exists():
        return None
    result = files.read_json(found)
    try:
        short, arithmetic = result["short"], result["arithmetic"]
    except (KeyError, TypeError):
        raise InputError(f"{found}: is not what bench loaders writes; run it again, or delete it") from None
    return {**short, "arithmetic": arithmetic, "uri": figures.file_uri(figure) if figure.exists() else None}
