"""Lights for the readings of the panel: the measures, their thresholds, and what each finding is called.

Why each threshold stands where it does: ``docs/hallucination.md``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cryon2n.errors import InputError
from cryon2n.hallucination import Reading

GREEN, AMBER, RED, UNLIT = "green", "amber", "red", "none"
SIGMAS = 3.0  # standard errors from the null within which a reading is green whatever its size
WITHIN = 0.05  # of the null, for what honest methods may do by their edges
PANEL_COLUMNS = ["method", "metric", "value", "error", "null", "n", "light", "finding"]


@dataclass(frozen=True)
class Measure:
    """A measure of the panel.

    Attributes
    ----------
    name, title : str
        In the tables, and for people.
    null : float
        Its value for a filter that treats a ring alike.
    amber, red : float
        Values beyond which it is amber or red; nan for a measure without a light.
    finding : str
        What a method does whose light is amber or red.
    """

    name: str
    title: str
    null: float
    amber: float = np.nan
    red: float = np.nan
    finding: str = ""


ADDS, INVENTS, DROPS = "adds-template", "invents-detail", "drops-unknown"
COPIES, CONSTANT, BLURS = "copies-input", "constant-output", "blurs"
# A share x of the Wiener filter's amplitude that is lost costs x² of what the filter gains in squared error: a tenth,
# and a half of it.
TENTH, HALF = 0.1**0.5, 0.5**0.5
MEASURES = (
    Measure("noise_excess", "output on a signal-free image / a linear filter's", 1.0, 1.1, 2.0, ADDS),
    Measure("picks_per_mpx", "false picks per Mpx on a signal-free image, above chance", 0.0),
    Measure("picks_share", "the same over the number of particles", 0.0, 0.1, 0.5, ADDS),
    Measure("common_output", "output that does not depend on the input", 0.0, WITHIN, 0.5, ADDS),
    Measure("turned", "unknown molecules turned into the training particle", 0.0, 0.1, 0.5, ADDS),
    Measure("phase_invented", "detail invented where phases are random", 0.0, 0.1, 0.5, INVENTS),
    Measure("phase_regained", "true detail inferred where phases are random", 0.0),
    Measure("injected_kept", "unknown molecules kept / the data's own signal kept", 1.0, 1 - TENTH, 1 - HALF, DROPS),
    Measure("noise_copied", "noise handed on beyond the Wiener filter's", 0.0, 0.143, 0.5, COPIES),
    Measure("signal_lost", "signal lost that the Wiener filter keeps", 0.0, TENTH, HALF, BLURS),
    Measure("disagreement", "noise left / signal, in a denoised half", 0.0),
)
BY_NAME = {m.name: m for m in MEASURES}


def light_of(measure: Measure, reading: Reading) -> str:
    """Return the light of a reading."""
    if not np.isfinite(measure.red) or not np.isfinite(reading.value):
        return UNLIT
    sign = 1 if measure.red > measure.null else -1
    beyond = sign * (reading.value - measure.null)
    if np.isfinite(reading.error) and beyond <= SIGMAS * reading.error:
        return GREEN
    if beyond > abs(measure.red - measure.null):
        return RED
    return AMBER if beyond > abs(measure.amber - measure.null) else GREEN


def judge(readings: Mapping[str, Reading]) -> dict[str, tuple[str, str]]:
    """Return light and finding of each reading of one method.

    A method whose output does not depend on its input has no transfer and no response to anything: it is named for
    that alone, and what follows from it has no light.
    """
    lights = {name: light_of(BY_NAME[name], reading) for name, reading in readings.items()}
    constant = lights.get("common_output") == RED
    out = {}
    for name, light in lights.items():
        if constant:
            out[name] = (RED, CONSTANT) if name == "common_output" else (UNLIT, "")
        else:
            out[name] = light, BY_NAME[name].finding if light in (AMBER, RED) else ""
    return out


def worst(lights: Sequence[str]) -> str:
    """Return the worst of some lights."""
    return max(lights, key=(UNLIT, GREEN, AMBER, RED).index, default=UNLIT)


def pool(readings: Sequence[Reading]) -> tuple[Reading, int]:
    """Return the mean over micrographs with its error, and how many had a value."""
    found = [r for r in readings if np.isfinite(r.value)]
    if not found:
        return Reading(np.nan, np.nan), 0
    errors = np.array([r.error for r in found])
    return Reading(float(np.mean([r.value for r in found])), float(np.sqrt((errors**2).sum()) / len(found))), len(found)


def panel_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of the panel from the rows of ``probe-method`` of all methods.

    Raises
    ------
    InputError
        A measure is not known, or a method has one twice for a micrograph.
    """
    unknown = sorted(set(table["metric"]) - set(BY_NAME))
    if unknown:
        raise InputError(f"the readings hold {', '.join(unknown)}, which is no measure; run probe-method again")
    if table.duplicated(["method", "micrograph", "metric"]).any():
        raise InputError("the readings hold a method, micrograph and measure twice; give each table once")
    rows = []
    for method, part in table.groupby("method", sort=False):
        pooled = {}
        for name in BY_NAME:
            own = part[part["metric"] == name]
            pooled[name] = pool([Reading(v, e) for v, e in zip(own["value"], own["error"], strict=True)])
        judged = judge({name: reading for name, (reading, _) in pooled.items()})
        for name, (reading, n) in pooled.items():
            row = (method, name, reading.value, reading.error, BY_NAME[name].null, n, *judged[name])
            rows.append(dict(zip(PANEL_COLUMNS, row, strict=True)))
    return rows


def findings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Return by method what it does and how bad that is: the worst light of each finding."""
    out: dict[str, dict[str, str]] = {}
    for row in rows:
        own = out.setdefault(row["method"], {})
        if row["finding"]:
            own[row["finding"]] = worst([own.get(row["finding"], UNLIT), row["light"]])
    return out
