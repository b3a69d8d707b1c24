"""Report and gallery: every number and sentence from a tiny data set whose scores are known."""

import base64
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from cryon2n import (
    __version__,
    compare,
    compare_cost,
    compare_doc,
    figures,
    files,
    filters,
    mrcio,
    pair,
    pooling,
    report,
    report_tables,
)
from cryon2n.errors import InputError

SHAPE, PIXEL_SIZE, BIN = (128, 144), 2.0, 1
MICROGRAPHS = ("mic_1", "mic_2", "mic_3")
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
VOID = {"meta", "img", "br", "input", "link", "hr"}


def denoisers():
    """Three methods of known order: `good` is nearer to the truth than `bad`, and raw is the worst."""
    return {
        "raw": lambda x: x,
        "gaussian": lambda x: ndimage.gaussian_filter(x, 6.0),
        "topaz-unet": lambda x: ndimage.gaussian_filter(x, 2.2),
        "net<1>": lambda x: ndimage.gaussian_filter(x, 3.0),
    }


def make_study(root, methods, with_truth=True, micrographs=MICROGRAPHS, reference="topaz-unet"):
    """Write halves, truth, estimates, scores, audit and training under `root`, in the project's formats."""
    results, truth = root / "results/tiny", root / "truth"
    rng = np.random.default_rng(7)
    yy, xx = np.mgrid[: SHAPE[0], : SHAPE[1]]
    scores, rings = [], []
    for name in micrographs:
        centres = rng.uniform(15, 110, (6, 2))
        signal = sum(-2.0 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * 4.0**2)) for y, x in centres)
        counts = 40 + 4 * signal  # expected electrons per pixel in the whole exposure
        halves = {side: rng.poisson(counts / 2).astype(np.float32) for side in "ab"}
        unit = {"frames": None, "n_frames": 2, "dose_e_per_A2": None, "offset": 20.0, "scale": 4.5}
        record = {
            "format": pair.RECORD_FORMAT,
            "version": pair.RECORD_VERSION,
            "micrograph": name,
            "shape": list(SHAPE),
            "pixel_size_A": PIXEL_SIZE,
            "valid": [2, SHAPE[0] - 2, 0, SHAPE[1]],
            **{side: {**unit, "noise_var": 1.0, "sha256": "0"} for side in "ab"},
            "full": {"offset": 40.0, "scale": 9.0},
            "alignment": "joint",
            "dose_weighted": False,
            "trajectory_A": None,
            "bin": BIN,
            "defects": None,
            "producer": "test",
            "inputs": {},
        }
        path = results / "halves" / f"{name}.json"
        for side in "ab":
            mrcio.write_mrc(path.with_name(f"{name}_{side}.mrc"), halves[side], PIXEL_SIZE)
        files.write_json(path, record)
        mrcio.write_mrc(truth / f"{name}.mrc", counts.astype(np.float32), PIXEL_SIZE)
        particles = [{"x_px": x, "y_px": y} for y, x in centres]
        about = {"particles": particles, "particle_radius_A": 10.0, "trajectory_A": [[0, 0]] * 4}
        files.write_json(truth / f"{name}.json", about)
        loaded = pair.load_pair(path)
        clean = compare.load_truth(truth, loaded) if with_truth else None
        for method, f in methods.items():
            estimates = pair.estimate_all(loaded, f)
            pair.write_estimates(loaded, estimates, results / "denoised" / method, method)
            estimates = pair.read_estimates(loaded, results / "denoised" / method)
            for (estimator, metric), value in compare.score_micrograph(loaded, estimates, clean).items():
                scores.append(dict(zip(pooling.SCORE_COLUMNS, (method, estimator, name, metric, value), strict=True)))
            powers = compare.score_rings(loaded, estimates)
            columns = [powers[key].tolist() for key in pooling.RING_COLUMNS[3:]]
            for ring, numbers in enumerate(zip(*columns, strict=True)):
                rings.append(dict(zip(pooling.RING_COLUMNS, (method, name, ring, *numbers), strict=True)))
    table = pd.DataFrame(scores)
    frequency, powers = pooling.tabulate_rings(pd.DataFrame(rings), sorted(micrographs))
    summary = pooling.summarise(pooling.tabulate_scores(table), frequency, powers, reference, bootstrap=200)
    files.write_table(results / "metrics.tsv", scores, pooling.SCORE_COLUMNS)
    files.write_table(results / "summary.tsv", summary, pooling.SUMMARY_COLUMNS)
    files.write_table(results / "curves.tsv", pooling.pooled_curves(frequency, powers), pooling.CURVE_COLUMNS)
    return results, truth


def add_optional_parts(results):
    """Write audit, training record, filter setting, Topaz's records, shards' split and plan."""
    flags = ["fixed-pattern", "ok", "ok"]
    columns = ["micrograph", "frc_beyond_z", "flags"]
    rows = [dict(zip(columns, (m, 1.25, f), strict=True)) for m, f in zip(MICROGRAPHS, flags, strict=True)]
    files.write_table(results / "halves/audit.tsv", rows, columns)
    Image.new("L", (8, 8), 90).save(results / "halves/audit.png")
    model = results / "models/net<1>"
    facts = {"steps": 1234, "final_loss": 0.5, "val_delta_umse": None, "seconds": 61.5, "parameters": 4321}
    facts |= {"megapixels_per_second": 9.5, "device": "a chip", "precision": "float32", "compiled": False}
    facts |= {"loader": "ram", "loader_reason": "it fits", "torch": "2", "code": "c0de"}
    files.write_json(model / "metrics.json", facts)
    log = "step,loss,rate,gradient,val_delta_umse,seconds\n1,0.9,0.1,1,,1\n2,0.5,0.1,1,,2\n"
    files.write_text(model / "log.csv", log)
    columns = ("form", "precision", "quantity", "difference", "tolerance", "verdict", "note")
    found = [("plain", "float32", q, d, 1e-5, "ok", "") for q, d in (("output", 3e-7), ("weights", 4.5e-6))]
    found += [("odd", "bfloat16", "loss", 0.5, 1e-2, "FAILS", "")]
    found += [("graph", "float32", "", "", "", "skipped", "CUDA graphs want a GPU")]
    files.write_table(model / "forms.tsv", [dict(zip(columns, x, strict=True)) for x in found], list(columns))
    setting = {"a": 6.0, "b": 6.0, "full": 4.0}
    files.write_json(
        results / "models/gaussian/filter.json", {"method": "gaussian", "setting": setting, "chosen_on": ["v1"]}
    )
    weights = {"file": "unet_L2_v0.2.2.sav", "sha256": "feed" * 16}
    run = {"method": "topaz-unet", "topaz": "0.3.20", "torch": "2", "device": "# cpu", "weights": weights}
    files.write_json(results / "denoised/topaz-unet/mic_1.json", run)
    trained = {
        "epochs": 77,
        "pairs": 5,
        "pairs_held_out": 1,
        "seconds": 9.0,
        "model_epoch": 76,
        "model_sha256": "ab" * 32,
    }
    files.write_json(results / "models/topaz-trained/record.json", trained)
    files.write_json(results / "shards/manifest.json", {"split": {"train": ["t1", "t2"], "val": ["v1"]}})
    files.write_text(results / "plan.txt", "two & a half GB\n")


def config(reference="topaz-unet", models=("net<1>",)):
    compare_part = {"reference": reference, "bootstrap": 200, "methods": ["raw"]}
    return {
        "dataset": "tiny",
        "source": {"kind": "phantom"},
        "models": {m: {} for m in models},
        "compare": compare_part,
    }


def records(results, names=MICROGRAPHS):
    return [results / "halves" / f"{name}.json" for name in names]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    results, truth = make_study(tmp_path_factory.mktemp("study"), denoisers())
    add_optional_parts(results)
    return results, truth


@pytest.fixture(scope="module")
def pages(study):
    results, truth = study
    return report.build(config(), results, records(results), truth, "gallery/index.html")


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects text, image sources and table rows."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.words, self.rows, self.skip = [], [], [], {}, 0
        self.method = None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img" and attrs.get("src"):
            self.images.append(attrs["src"])
        if tag == "tr":
            self.method = attrs.get("data-method")
        if tag == "td" and self.method:
            self.rows.setdefault(self.method, []).append({"class": attrs.get("class", ""), "text": ""})
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.words.append(data)
        if self.method and self.rows.get(self.method):
            self.rows[self.method][-1]["text"] += data

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def decode(uri):
    kind, content = re.fullmatch(r"data:(image/[a-z+]+);base64,(.+)", uri).groups()
    return kind, base64.b64decode(content)


def test_pages_are_complete_html_without_anything_from_elsewhere(pages):
    for text in pages:
        page = Page(text)
        bare = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", text)
        assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|src=\"(?!\")", bare.split("<script>")[0])
        assert "http" not in bare
        assert len(page.images) > 4
        assert all(uri.startswith("data:image/") for uri in page.images)
        assert "nan" not in page.text.lower().split()
        assert "net<1>" in page.text and "<1>" not in bare.replace("net&lt;1&gt;", "")  # escaped


def test_pictures_are_not_empty(pages):
    plots = 0
    for uri in {uri for text in pages for uri in Page(text).images}:
        kind, content = decode(uri)
        if kind == "image/svg+xml":
            plots += 1
            assert content.count(b"<path") > 20
        elif kind == "image/jpeg":
            pixels = np.asarray(Image.open(io.BytesIO(content)))
            assert pixels.shape[0] >= 100 and pixels.std() > 1
    assert plots == 4  # intervals, cross-FRC, spectra, training


def test_best_of_each_column_is_the_best_by_the_table(pages, study):
    rows = Page(pages[0]).rows
    table = report_tables.read_tables(study[0], config())
    cells, base = report_tables.headline(table)
    assert base == "topaz-unet" and list(cells) == [m.metric for m in report_tables.MEASURES]
    for column, m in enumerate(report_tables.MEASURES, start=1):
        part = table.summary.query("estimator == @m.estimator and metric == @m.metric").set_index("method")
        values = part["delta" if m.metric == "umse" else "mean"] * m.sign
        assert [x for x in rows if rows[x][column]["class"] == "best"] == [values.idxmax()]
    # The row of the reference is 0 by definition, and every cell says its n.
    assert rows["topaz-unet"][4]["text"].split()[0] == "0"
    assert all("n = 3" in cell["text"] for row in rows.values() for cell in row[1:])


def test_sentence_names_who_is_ahead_when_ours_loses(study):
    results, _ = study
    names = {"raw": "raw", "gaussian": "G", "topaz-unet": "T", "net<1>": "N"}
    order = report_tables.read_tables(results, config()).summary.query("estimator == 'mean' and metric == 'psnr'")
    ranking = list(order.sort_values("mean", ascending=False)["method"])
    for own in ("net<1>", "raw"):
        table = report_tables.read_tables(results, config(models=(own,)))
        cells, _ = report_tables.headline(table)
        said = report_tables.verdicts(table, cells, names)
        psnr = next(s for s in said if s.startswith("PSNR"))
        place = ranking.index(own)
        if place == 0:
            assert f"{names[own]} is best" in psnr and f"the next, {names[ranking[1]]}," in psnr
        else:
            assert (
                f"{names[own]} (" in psnr
                and "does not win; " in psnr
                and f"{names[ranking[0]]} is ahead of it by" in psnr
            )
            assert all(names[x] in psnr.split("; so ")[1] for x in ranking[1:place])
    assert ranking[-1] == "raw" and said[0] == "raw is best in none of the measures of this table."


def test_our_network_is_not_held_against_its_own_mean_over_symmetries(study, tmp_path):
    for name in ("summary.tsv", "metrics.tsv", "curves.tsv"):
        text = (study[0] / name).read_text()
        (tmp_path / name).write_text(text.replace("topaz-unet", "gaussian-x8"))
    table = report_tables.read_tables(tmp_path, {"models": {"gaussian": {}}, "compare": {"reference": "raw"}})
    assert table.ours == ["gaussian", "gaussian-x8"]
    cells, _ = report_tables.headline(table)
    said = report_tables.verdicts(table, cells, {name: f"<{name}>" for name in table.methods})
    assert all("<gaussian-x8>" not in sentence for sentence in said)
    assert any("<net<1>>" in sentence for sentence in said)


def test_difference_is_paired_and_says_when_it_is_undecided(study):
    table = report_tables.read_tables(study[0], config())
    key = ("mean", "psnr")
    found = table.paired("net<1>", "topaz-unet", key)
    d = table.scores["net<1>"][key] - table.scores["topaz-unet"][key]
    assert found.value == pytest.approx(d.mean()) and found.n == 3
    # Resampled means lie between the smallest and the largest difference.
    assert d.min() <= found.low <= found.value <= found.high <= d.max()
    # Differences of both signs: the interval holds zero, and the sentence says so.
    table.scores["net<1>"][key] = table.scores["raw"][key] + [1.0, -1.0, 0.5]
    measure = report_tables.MEASURES[1]
    cells = {m: table.cell(m, *key) for m in table.methods}
    said, clear = report_tables._difference(table, "net<1>", "raw", measure, cells)
    assert "undecided" in said and not clear


def test_optional_parts_are_told(pages):
    text = Page(pages[0]).text
    assert "1 is flagged" in text and report.FLAGS["fixed-pattern"] in text
    for part in ("1234", "61.5 s (1:02)", "a chip", "float32, not compiled", "ram: it fits", "4,321"):
        assert part in text
    for part in ("for 77 epochs on 5 pairs", "0.3.20", "feedfeedfeedfeed", "two & a half GB", "t1, t2", "v1"):
        assert part in text
    assert "σ, px: 4 on the whole exposure" in text
    for part in ("3.0e-07", "4.5e-06", "graph (CUDA graphs want a GPU)", "beyond tolerance: odd: loss"):
        assert part in text
    assert "dataset: tiny" in text and f"cryon2n {__version__}" in text


def test_without_truth_topaz_and_records(tmp_path):
    methods = {k: f for k, f in denoisers().items() if k != "topaz-unet"}
    results, _ = make_study(tmp_path, methods, with_truth=False, micrographs=("mic_1",))
    tables = report_tables.read_tables(results, config())
    cells, base = report_tables.headline(tables)
    assert base == "raw" and list(cells) == ["umse", "cross_frc"]  # ΔuMSE falls back on raw
    assert cells["umse"]["raw"].value == 0 and cells["umse"]["gaussian"].value < 0
    first, second = report.build(config(), results, records(results, ["mic_1"]), None, "g.html")
    page, album = Page(first), Page(second)
    for said in (
        "Not in the table: signal-to-error, PSNR and SSIM",
        "Topaz-Denoise was not run",
        "The truth is not known",
        "were not audited",
        "No record of a training",
        "so there are no intervals",
    ):
        assert said in page.text
    assert "nan" not in page.text.lower().split() and "truth is not known" in album.text
    assert [row[1]["text"].split()[1:3] for row in page.rows.values()][1] == ["no", "interval"]


def test_a_method_without_a_value_gets_a_dash(study, tmp_path):
    results, truth = study
    copy = tmp_path / "tiny"
    shutil.copytree(results, copy)
    lines = (copy / "summary.tsv").read_text().splitlines()
    emptied = "gaussian\tmean\tssim\t" + "\t".join(["nan"] * 3 + ["0"] + ["nan"] * 3)
    kept = [emptied if line.startswith("gaussian\tmean\tssim\t") else line for line in lines]
    assert kept != lines
    (copy / "summary.tsv").write_text("\n".join(kept) + "\n")
    page = Page(report.build(config(), copy, records(copy), truth, "g.html")[0])
    assert page.rows["gaussian"][3]["text"].strip() == "–" and page.rows["gaussian"][3]["class"] == ""
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [(2.48312, 0.031, "2.483"), (-0.0012345, 0.00021, "−0.00123"), (31.4, 12.0, "31"), (0.0, np.nan, "0.00")],
)
def test_numbers_have_two_figures_of_their_spread(value, spread, text):
    assert report_tables.number(value, 7, spread) == text


def test_negative_zero_has_no_sign():
    assert report_tables.number(-0.0004, 2, 0.1) == "0.00"


def test_every_metric_has_its_definition():
    anchors = set(re.findall(r'<a id="([^"]+)">', DOCS.read_text()))
    groups = (pooling.IMAGE_METRICS, pooling.RING_METRICS)
    metrics = {m for group in groups for names in group.values() for m in names}
    assert {report_tables.anchor(m) for m in metrics} <= anchors


def test_looks_are_distinct_and_fixed():
    few = figures.looks(["raw", "gaussian", "mine"], ["mine"])
    many = figures.looks(["mine", *figures.KNOWN], ["mine"])
    assert few["gaussian"] == many["gaussian"] and few["mine"] == many["mine"]
    assert len({look.color for look in many.values()}) == len(many)
    assert many["mine"].width > max(look.width for name, look in many.items() if name != "mine")


def test_grey_levels():
    image = np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]])
    assert figures.to_grey(image, (0.0, 1.0)).tolist() == [[0, 0, 128, 255, 255]]


def test_grey_range_is_the_truths_or_the_low_passed_raws(study):
    results, truth = study
    record = records(results)[0]
    with_truth = report.load_subject(record, truth, 20.0)
    clean = compare.load_truth(truth, with_truth.pair)
    low, high = figures.grey_limits(clean.image[clean.region])
    assert with_truth.limits == pytest.approx((low - 0.2 * (high - low), high + 0.2 * (high - low)))
    without = report.load_subject(record, None, 20.0)
    tuned = {"method": "lowpass", "setting": {"full": PIXEL_SIZE / 20.0}}
    smooth = filters.apply(tuned, without.pair.full, "full")
    assert without.limits == figures.grey_limits(smooth[without.pair.valid])


def test_power_of_white_noise_is_its_variance():
    noise = np.random.default_rng(0).normal(0, 3, (256, 200)).astype(np.float32)
    axis = np.array([0.05, 0.1, 0.2, 0.3])
    power = figures.power_spectrum(noise, 2.0, axis)
    # The taper (1/32 of the side at each edge) takes 3 to 5 % of the power; 0.3 1/Å is beyond Nyquist.
    assert power[:3] == pytest.approx([9, 9, 9], rel=0.25) and np.isnan(power[3])


def test_outlier_does_not_squeeze_the_others():
    assert figures._range_without_outlier([0.1, 0.2, 0.15, 9.0]) == pytest.approx((0.0, 0.3))
    assert figures._range_without_outlier([0.1, 0.2, 0.3, 0.4]) is None


def test_command_writes_both_pages_and_links_them(study, tmp_path, cryon2n):
    results, truth = study
    out, album = tmp_path / "report.html", tmp_path / "gallery/index.html"
    given = ("--config-json", json.dumps(config()), "--results", results, "--test", *records(results))
    cryon2n("write-report", *given, "--truth", truth, "--report", out, "--gallery", album)
    assert '<a href="gallery/index.html">' in out.read_text()
    assert len(re.findall(r"<figure data-method", album.read_text())) == 3 * (len(denoisers()) + 1)


def test_damage_leaves_no_report(study, tmp_path, cryon2n):
    results, _ = study
    out = tmp_path / "report.html"
    given = ("--results", results, "--test", *records(results), "--report", out, "--gallery", tmp_path / "g.html")
    done = cryon2n("write-report", "--config-json", "{", *given, check=False)
    assert done.returncode == 2 and "--config-json: not valid JSON" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tables_of_differing_methods_are_refused(study, tmp_path):
    results = study[0]
    for name in ("summary.tsv", "metrics.tsv"):
        (tmp_path / name).write_text((results / name).read_text())
    lines = (results / "curves.tsv").read_text().splitlines()
    (tmp_path / "curves.tsv").write_text("\n".join(x for x in lines if not x.startswith("raw")) + "\n")
    with pytest.raises(InputError, match="raw is not in all"):
        report_tables.read_tables(tmp_path, config())


def test_same_inputs_give_the_same_pages(pages, study):
    results, truth = study
    assert report.build(config(), results, records(results), truth, "gallery/index.html") == pages


def test_curves_are_drawn_without_an_information_limit():
    frequency = np.linspace(0, 0.25, 40)
    look, names = figures.looks(["raw"], []), {"raw": "raw"}
    gaps = np.where(frequency < 0.1, 0.7, np.nan)
    figure = figures.draw_cross_frc({"raw": (frequency, gaps)}, (frequency, gaps), None, names, look)
    assert figure.axes[0].get_xlim() == (0, 0.25)
    kind, content = decode(figures.svg_uri(figure))
    assert kind == "image/svg+xml" and b"information" not in content


def test_picture_shows_the_best_topaz_by_the_first_measure(study):
    table = report_tables.read_tables(study[0], config())
    table.methods[:] = ["raw", "lowpass", "gaussian", "topaz-unet", "topaz-unet-small", "net<1>"]
    column = {m: report_tables.Cell(v, v, v, 3) for m, v in zip(table.methods, (0, 1, 2, 3, 4, 9), strict=True)}
    picked = report.picked(table, {"psnr": column})
    assert picked == ["raw", "gaussian", "topaz-unet-small", "net<1>", "truth"]
    assert report.picked(table, {"umse": column})[2] == "topaz-unet"  # less is better there


# ---------------------------------------------------------------------------- costs, methods from outside, the page


COST = dict.fromkeys(compare_cost.COLUMNS, float("nan")) | {"device": "a chip", "Mpx": 0.0184, "micrographs": 3}


def write_costs(results):
    rows = [{**COST, "method": "raw"}, {**COST, "method": "net<1>", "seconds_per_image": 0.125}]
    files.write_table(results / "cost.tsv", rows, compare_cost.COLUMNS)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A study of which one method, `topaz-unet`, has denoised the whole exposures alone; with costs."""
    results, truth = make_study(tmp_path_factory.mktemp("outside"), denoisers())
    folder = results / "denoised/topaz-unet"
    for name in MICROGRAPHS:
        for ending in ("", "_a", "_b", "_noise"):
            (folder / f"{name}{ending}.mrc").unlink()
    write_costs(results)
    return results, truth


def test_a_method_of_the_whole_exposure_alone_is_shown_by_it(outside):
    results, truth = outside
    first, second = report.build(config(), results, records(results), truth, "g.html")
    page, album = Page(first), Page(second)
    assert len(album.images) >= 3 * (4 + 1) and "Topaz unet, pretrained" in page.text
    one = pair.load_pair(results / "halves/mic_1.json")
    shown = pair.read_shown(one, results / "denoised/topaz-unet")
    np.testing.assert_array_equal(shown, pair.read_estimates(one, results / "denoised/topaz-unet", ["full"])["full"])
    # A mean that is missing although its halves are there is damage.
    with pytest.raises(InputError, match=r"mic_1.mrc: no such file"):
        (results / "denoised/gaussian/mic_1.mrc").rename(results / "away.mrc")
        pair.read_shown(one, results / "denoised/gaussian")
    (results / "away.mrc").rename(results / "denoised/gaussian/mic_1.mrc")


def test_costs_stand_in_the_report_and_what_was_not_measured_is_a_dash(outside):
    results, truth = outside
    first, _ = report.build(config(), results, records(results), truth, "g.html")
    part = first.split('<section id="cost">')[1].split("</section>")[0]
    own = next(row for row in part.split("<tr>") if "net&lt;1&gt;" in row)
    assert "<td>0.125</td>" in own and own.count('title="not measured"') == 7 and "a chip" in own


def table_rows(text, first):
    """The rows of the Markdown table whose first cell of the header is `first`: name to cells."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = next(i for i, line in enumerate([*lines[start:], ""]) if not line.startswith("|")) + start
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]
    return cells[0], {row[0]: row[1:] for row in cells[2:]}


def test_the_page_of_the_comparison_holds_every_number_with_interval_n_and_definition(study, tmp_path, cryon2n):
    results, _ = study
    write_costs(results)
    out = tmp_path / "docs/comparison.md"
    cryon2n("compare-doc", "--results", results, "--out", out, "--figures", tmp_path / "docs/images")
    (results / "cost.tsv").unlink()
    text = out.read_text()
    header, rows = table_rows(text, "method")
    summary = pd.read_csv(results / "summary.tsv", sep="\t").set_index(["method", "estimator", "metric"])
    for method, name in (("raw", "raw"), ("net<1>", "net<1> (ours)")):
        for column, m in enumerate(report_tables.MEASURES):
            row = summary.loc[method, m.estimator, m.metric]
            keys = ("delta", "delta_low", "delta_high") if m.metric == "umse" else ("mean", "ci_low", "ci_high")
            found = [float(x) for x in re.findall(r"-?[0-9.]+", rows[name][column].replace("−", "-"))]
            half = (row[keys[2]] - row[keys[1]]) / 2
            assert found == pytest.approx([row[k] for k in keys], abs=max(half, 10.0**-m.digits)), m.metric
            assert f"metrics.md#{m.metric}" in header[column + 1]
        assert rows[name][-1] == "3"
    assert rows["Topaz unet, pretrained"][3] == "0 (the reference)"
    for anchor in re.findall(r"metrics.md#([a-z_A-Z]+)", text):
        assert f'<a id="{anchor}"></a>' in DOCS.read_text(), anchor
    # The plan's figures beside what was measured, and how Topaz ran.
    _, plan = table_rows(text.split("## The plan's figures")[1], "method")
    assert plan["*quoted for Topaz*"][:2] == ["*20 to 21*", "*0.82 to 0.87*"]
    psnr, ssim = (summary["mean"]["net<1>", "mean", m] for m in ("psnr", "ssim"))
    over = " / ".join("yes" if x > least else "no" for x, least in ((psnr, 21), (ssim, 0.85)))
    assert plan["net<1> (ours)"][4:] == [over, "3"]
    assert "No published PSNR or SSIM of Topaz-Denoise could be found" in text
    assert f"`{'feed' * 16}`" in text and "`--model` is ignored" in text
    assert "| net<1> (ours) | 0.125 | a chip |" in text and "| raw | not measured | a chip |" in text
    for path in re.findall(r"!\[.*\]\((.*)\)", text):
        assert (out.parent / path).read_text().rstrip().endswith("</svg>")


def test_two_data_sets_make_one_page_and_their_figures_do_not_collide(study, outside, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for target, (results, _) in ((one, study), (other, outside)):
        target.mkdir()
        for name in ("summary.tsv", "metrics.tsv", "curves.tsv"):
            shutil.copy(results / name, target)
    sets = [compare_doc.read_data_set(folder, ["net<1>"], None, 200) for folder in (one, other)]
    compare_doc.write_page(sets, tmp_path / "page.md", "metrics.md", tmp_path, "test")
    text = (tmp_path / "page.md").read_text()
    assert "## one" in text and "## other" in text and "\n\n\n" not in text and "Topaz was not run" in text
    assert len(list(tmp_path.glob("*.svg"))) == 4
    assert sets[0].tables.reference == "topaz-unet"  # found in the summary
