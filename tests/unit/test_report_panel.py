"""The report's sections about what methods invent and about picking."""

import numpy as np
import pytest

import making
from cryon2n import figures, files, hallucination_lights, pair, picking_score, report_panel

NAMES = {"raw": "raw", "ours": "ours (ours)", "third": "a third"}
LOOK = figures.looks(list(NAMES), ["ours"])


def panel_table(folder, **values):
    rows = []
    for method, (value, light, finding) in values.items():
        for measure in hallucination_lights.MEASURES:
            own = measure.name == "noise_copied"
            row = (method, measure.name, value if own else float("nan"), 0.01, measure.null, int(own))
            row += (light, finding) if own else ("none", "")
            rows.append(dict(zip(hallucination_lights.PANEL_COLUMNS, row, strict=True)))
    files.write_table(folder / "panel.tsv", rows, hallucination_lights.PANEL_COLUMNS)


def test_the_panel_says_what_each_method_does_and_shows_what_was_measured(tmp_path):
    assert report_panel.panel(tmp_path, ["raw"], NAMES) is None
    panel_table(
        tmp_path, raw=(1.0, "red", "copies-input"), ours=(-0.001, "green", ""), third=(0.2, "amber", "copies-input")
    )
    panel = report_panel.panel(tmp_path, ["ours", "raw", "third"], NAMES)
    assert [m.name for m in panel["measures"]] == ["noise_copied"] and panel["n"] == 1
    ours, raw, third = panel["rows"]
    assert (
        ours["words"] == []
        and ours["light"] == "green"
        and ours["cells"] == [{"text": "0.00 ± 0.01", "light": "green"}]
    )
    assert raw["words"] == ["copies its input"] and raw["light"] == "red"
    assert third["words"] == ["copies its input somewhat"]


def test_every_finding_has_words():
    found = {measure.finding for measure in hallucination_lights.MEASURES} | {hallucination_lights.CONSTANT}
    assert found - {""} == set(report_panel.WORDS)


def test_a_panel_without_a_value_is_left_out(tmp_path):
    panel_table(tmp_path, raw=(float("nan"), "none", ""))
    assert report_panel.panel(tmp_path, ["raw"], NAMES) is None


def test_the_map_of_disagreement_is_noise_over_signal(tmp_path):
    signal = 2 * making.field(1, cutoff=0.1)
    record = making.write_pair(tmp_path / "h", "m", *(signal + making.white(k) for k in (1, 2)))
    one = pair.load_pair(record)
    pair.write_estimates(one, {"full": one.full}, tmp_path / "whole", "whole")
    assert report_panel.disagreement_map(one, tmp_path / "whole", 5) is None
    pair.write_estimates(one, {"a": one.a, "b": one.b}, tmp_path / "raw", "raw")
    found = report_panel.disagreement_map(one, tmp_path / "raw", 5)
    # Noise of variance 1 in each half, a signal of variance 4.
    assert found.shape == one.a.shape and found.mean() == pytest.approx(1 / 4, rel=0.1)
    tiles = report_panel.disagreement_tiles(one, tmp_path, ["raw", "whole"], {**NAMES, "whole": "w"}, one.valid)
    assert [t["method"] for t in tiles] == ["raw"] and tiles[0]["uri"].startswith("data:image/jpeg")


def test_each_picker_has_a_table_with_differences_and_a_figure(tmp_path):
    assert report_panel.picking(tmp_path, ["raw"], NAMES, LOOK, None) is None
    rows, curves = [], []
    for picker in ("blobs", "mine"):
        for method, value in (("raw", 0.5), ("ours", 0.75)):
            for metric in picking_score.METRICS:
                row = (
                    picker,
                    method,
                    metric,
                    value,
                    value - 0.1,
                    value + 0.1,
                    4,
                    value - 0.5,
                    value - 0.6,
                    value - 0.4,
                )
                rows.append(dict(zip(picking_score.COLUMNS, row, strict=True)))
            curves += [
                dict(zip(picking_score.CURVE_COLUMNS, (picker, method, 9 - r, 1.0, r / 4), strict=True))
                for r in range(4)
            ]
    files.write_table(tmp_path / "picking.tsv", rows, picking_score.COLUMNS)
    files.write_table(tmp_path / "picking_curves.tsv", curves, picking_score.CURVE_COLUMNS)
    found = report_panel.picking(tmp_path, ["ours", "raw"], NAMES, LOOK, "raw")
    assert [p["name"] for p in found["pickers"]] == [report_panel.PICKERS["blobs"], "mine"]
    assert found["reference"] == "raw"
    for picker in found["pickers"]:
        assert picker["uri"].startswith("data:image/svg+xml")
        assert [r["method"] for r in picker["rows"]] == ["ours", "raw"]
        ap, delta, *rest = picker["rows"][0]["cells"]
        assert ap == {"value": "0.75", "interval": "0.65 to 0.85"} and delta["value"] == "0.25" and len(rest) == 3


def test_the_curves_of_both_methods_are_drawn():
    curve = np.linspace(0, 1, 5), np.linspace(1, 0.2, 5)
    figure = figures.draw_precision_recall({"raw": curve, "ours": curve}, NAMES, LOOK)
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["raw", "ours (ours)"]
    assert axes.lines[0].get_xydata() == pytest.approx(np.stack(curve, axis=1))
