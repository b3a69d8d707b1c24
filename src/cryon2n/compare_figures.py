"""The figures of a comparison, from its tables: the same in the report, beside a page, and of any folders."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from cryon2n import figures
from cryon2n.figures import Look
from cryon2n.report_tables import MEASURES, NAMES, Cell, Tables


def display_names(tables: Tables) -> dict[str, str]:
    """Return how each method is called in tables and figures."""
    return {m: f"{m} (ours)" if m in tables.ours else NAMES.get(m, m) for m in tables.methods}


def draw_comparison(
    tables: Tables, cells: Mapping[str, Mapping[str, Cell]], names: Mapping[str, str], look: Mapping[str, Look]
) -> dict[str, Figure]:
    """Draw ``intervals`` (the headline's measures, if there are any) and ``cross_frc`` (the curves).

    Parameters
    ----------
    tables : Tables
    cells : mapping
        From `report_tables.headline`.
    names, look : mapping
        Display name and look of each method.
    """
    out = {}
    panels = []
    for m in (m for m in MEASURES if m.metric in cells):
        title = f"{m.title} ({m.unit})" if m.unit else m.title
        panels.append((title, {x: (c.value, c.low, c.high) for x, c in cells[m.metric].items()}))
    if panels:
        out["intervals"] = figures.draw_intervals(panels, names, look)
    curves = {m: part.sort_values("frequency") for m, part in tables.curves.groupby("method", sort=False)}
    first = next(iter(curves.values()))
    out["cross_frc"] = figures.draw_cross_frc(
        {m: (c["frequency"].to_numpy(), c["cross_frc"].to_numpy()) for m, c in curves.items()},
        (first["frequency"].to_numpy(), first["raw_frc"].to_numpy()),
        tables.limit(),
        names,
        look,
    )
    return out
