"""Scoring and pooling through the command line, on small simulated pairs; bootstrap statistics."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cryon2n import cli, compare, files, fourier, mrcio, pair, pooling

SHAPE, BIN, SHIFT = (128, 144), 2, (1.3, -2.6)
FRAMES = {"a": 19, "b": 19}


def smooth(seed, sigma, shape):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma, mode="wrap")
    return (image - image.mean()) / image.std()


def blur(image, sigma=2.0):
    return ndimage.gaussian_filter(image, sigma, mode="wrap")


PATTERN = (0.4 * smooth(999, 2, SHAPE)).astype(np.float32)
DENOISERS = {"blur": blur, "strong": lambda x: blur(x, 3.0), "pattern": lambda x: blur(x) + PATTERN}


def make_micrograph(folder, name, seed, frames=FRAMES):
    """Write a pair, its record and its truth; the halves stand SHIFT pixels from the truth."""
    rng = np.random.default_rng(seed)
    raw_shape = tuple(n * BIN for n in SHAPE)
    y, x = np.mgrid[: raw_shape[0], : raw_shape[1]]
    particles = [(60.0, 60.0), (200.0, 70.0), (120.0, 180.0)]
    clean = 10 + 0.3 * smooth(seed, 4, raw_shape)
    for px, py in particles:
        clean -= 1.5 * (np.hypot(x - px, y - py) < 20)
    clean = blur(clean, 2)
    counts = fourier.fourier_shift(fourier.fourier_crop(clean, BIN) * BIN**2, SHIFT)
    total = sum(frames.values())
    record = {
        "format": pair.RECORD_FORMAT,
        "version": pair.RECORD_VERSION,
        "micrograph": name,
        "shape": list(SHAPE),
        "pixel_size_A": 2.0,
        "valid": [3, 125, 2, 144],
        "full": {"offset": 40.0, "scale": 10.0},
        "bin": BIN,
    }
    halves = folder / "halves"
    for side, n in frames.items():
        share = n / total
        half = counts * share + rng.standard_normal(SHAPE) * np.sqrt(40 * share)
        mrcio.write_mrc(halves / f"{name}_{side}.mrc", half.astype(np.float32), 2.0)
        # Noise variance 40 share in counts, scale 10 share.
        record[side] = {"n_frames": n, "offset": 40 * share, "scale": 10 * share, "noise_var": 0.4 / share}
    files.write_json(halves / f"{name}.json", record)
    mrcio.write_mrc(folder / "truth" / f"{name}.mrc", clean.astype(np.float32), 1.0)
    truth = {"particles": [{"x_px": px, "y_px": py} for px, py in particles], "particle_radius_A": 20.0}
    files.write_json(folder / "truth" / f"{name}.json", {**truth, "trajectory_A": [[0, 0]] * total})
    return halves / f"{name}.json"


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    """Three micrographs, three methods, all scored: the tables are in ``scores/``."""
    folder = tmp_path_factory.mktemp("entry")
    records = [make_micrograph(folder, f"00{i}", seed=i) for i in range(3)]
    for method, f in DENOISERS.items():
        for record in records:
            one = pair.load_pair(record)
            pair.write_estimates(one, pair.estimate_all(one, f), folder / method, method)
        assert cli.main(score_arguments(folder, method, records)) == 0
    return folder


def score_arguments(folder, method, records, truth=True):
    words = ["score-method", "--method", method, "--halves", *records, "--denoised", folder / method]
    words += ["--truth", folder / "truth"] if truth else []
    words += ["--scores", folder / f"scores/{method}.tsv", "--rings", folder / f"scores/{method}_rings.tsv"]
    return list(map(str, words))


def summarise_arguments(folder, methods, out, *more):
    scores = [folder / f"scores/{m}.tsv" for m in methods]
    rings = [folder / f"scores/{m}_rings.tsv" for m in methods]
    words = ["summarise", "--scores", *scores, "--rings", *rings, "--bootstrap", 200]
    for name in ("metrics", "summary", "curves"):
        words += [f"--{name}", out / f"{name}.tsv"]
    return list(map(str, [*words, *more]))


def read(path):
    return pd.read_csv(path, sep="\t", dtype={"micrograph": str})


def value(scores, estimator, metric):
    return scores[(scores.estimator == estimator) & (scores.metric == metric)].value.mean()


# ---------------------------------------------------------------------------- score-method


def test_every_metric_of_every_estimator_has_a_row_per_micrograph(entry):
    table = read(entry / "scores/blur.tsv")
    assert list(table.columns) == pooling.SCORE_COLUMNS
    want = {
        (e, name, m) for e, metrics in pooling.IMAGE_METRICS.items() for m in metrics for name in ("000", "001", "002")
    }
    assert set(zip(table.estimator, table.micrograph, table.metric, strict=True)) == want
    assert len(table) == len(want)
    assert np.isfinite(table.value).all()


def test_scores_are_those_of_the_truth_that_was_written(entry):
    """Recompute signal-to-error from the counts, by another way than the code's."""
    table = read(entry / "scores/blur.tsv")
    one = pair.load_pair(entry / "halves/001.json")
    clean, _ = mrcio.read_mrc(entry / "truth/001.mrc")
    counts = fourier.fourier_shift(fourier.fourier_crop(clean, BIN) * BIN**2, SHIFT)
    region = slice(3, 125), slice(2, 141)  # valid, less the 3 columns that the shift wrapped round
    s = ((counts - 40) / 10)[region]
    error = blur(one.full)[region] - s
    want = 10 * np.log10(s.var() / np.mean(error**2))
    got = table[(table.micrograph == "001") & (table.metric == "signal_to_error_db")].set_index("estimator").value
    assert got["full"] == pytest.approx(want, abs=0.05)  # the shift is found to a few hundredths of a pixel
    assert got["mean"] == pytest.approx(got["full"], abs=1e-3)  # the same for a linear f
    assert got["half"] < got["full"] - 0.5  # one half holds twice the noise variance
    found = value(table, "raw", "truth_shift_px")
    assert found == pytest.approx(np.hypot(*SHIFT), abs=0.1)


@pytest.mark.parametrize("method", DENOISERS)
def test_umse_agrees_with_the_true_mse_of_the_same_halves(entry, method):
    table = read(entry / f"scores/{method}.tsv").set_index(["micrograph", "estimator", "metric"]).value
    for name in ("000", "001", "002"):
        one = pair.load_pair(entry / f"halves/{name}.json")
        truth = compare.load_truth(entry / "truth", one)
        clean = truth.image[truth.region]
        f = DENOISERS[method]
        true = np.mean([np.mean((f(x)[truth.region] - clean) ** 2) for x in (one.a, one.b)])
        # The error is mean(noise_a noise_b) + cross terms: the noise variance 0.8 over sqrt(N).
        error = 0.8 / np.sqrt(clean.size)
        umse = table[name, "half", "umse"]
        assert umse == pytest.approx(true, abs=4 * error)
        # Both peak-to-error figures use the truth's range.
        peak = np.ptp(clean)
        assert table[name, "half", "upsnr"] == pytest.approx(10 * np.log10(peak**2 / umse), abs=0.01)


def test_a_hallucinated_pattern_costs_in_every_honest_metric(entry):
    blurred, pattern = read(entry / "scores/blur.tsv"), read(entry / "scores/pattern.tsv")
    extra = float(PATTERN.var())  # 0.16, independent of signal and noise
    for metric in ("umse", "bias_variance"):
        got = value(pattern, "half", metric) - value(blurred, "half", metric)
        assert got == pytest.approx(extra, rel=0.15), metric
    assert value(pattern, "half", "residual_noise") == pytest.approx(value(blurred, "half", "residual_noise"), rel=1e-3)
    assert value(pattern, "full", "noise_power_ratio") > 2 * value(blurred, "full", "noise_power_ratio")
    assert value(pattern, "mean", "signal_to_error_db") < value(blurred, "mean", "signal_to_error_db") - 1


def test_noise_power_ratio_of_a_blur(entry):
    # A blur of sigma 2 keeps sum(k²) = 1 / (4 pi 2²) of white noise.
    table = read(entry / "scores/blur.tsv")
    assert value(table, "full", "noise_power_ratio") == pytest.approx(1 / (16 * np.pi), rel=0.1)


def test_without_a_truth_the_metrics_that_need_it_are_nan(entry, tmp_path):
    arguments = score_arguments(entry, "blur", [entry / "halves/000.json"], truth=False)
    arguments[-3], arguments[-1] = str(tmp_path / "s.tsv"), str(tmp_path / "r.tsv")
    assert cli.main(arguments) == 0
    table = read(tmp_path / "s.tsv")
    missing = set(table[table.value.isna()].metric)
    assert missing == {*pooling.TRUTH_METRICS, "truth_shift_px", "topaz_snr_db"}
    full = read(entry / "scores/blur.tsv")
    umse = full[(full.micrograph == "000") & (full.metric == "umse")].value.item()
    assert value(table, "half", "umse") == umse


def test_labels_give_topaz_snr_in_the_halves_pixels(entry, tmp_path):
    dy, dx = SHIFT
    lines = ["micrograph,x_px,y_px,radius_px"]
    lines += [f"000,{x / BIN + dx},{y / BIN + dy},10" for x, y in ((60, 60), (200, 70), (120, 180))]
    (tmp_path / "particles.csv").write_text("\n".join(lines) + "\n")
    arguments = score_arguments(entry, "blur", [entry / "halves/000.json"], truth=False)
    arguments[-3], arguments[-1] = str(tmp_path / "s.tsv"), str(tmp_path / "r.tsv")
    assert cli.main([*arguments, "--labels", str(tmp_path / "particles.csv")]) == 0
    labelled, full = read(tmp_path / "s.tsv"), read(entry / "scores/blur.tsv")
    full = full[full.micrograph == "000"]
    for estimator in ("raw", "mean", "full"):
        want = value(full, estimator, "topaz_snr_db")
        assert value(labelled, estimator, "topaz_snr_db") == pytest.approx(want, abs=0.5)
    # Smoothing raises it: that is why it is not a measure of quality.
    assert value(full, "full", "topaz_snr_db") > value(full, "raw", "topaz_snr_db") + 10


def test_unequal_halves_are_scored_on_their_own_noise(tmp_path):
    record = make_micrograph(tmp_path, "u", seed=7, frames={"a": 4, "b": 34})
    one = pair.load_pair(record)
    scores = compare.score_micrograph(one, {**pair.estimate_all(one, blur), "mean": blur(one.full)})
    truth = compare.load_truth(tmp_path / "truth", one)
    # Blurring noise of variance v leaves v / (16 pi); the blur's own bias is the same in both directions.
    difference = (one.noise_var[0] - one.noise_var[1]) / (16 * np.pi)
    assert scores["half", "umse_ab"] - scores["half", "umse_ba"] == pytest.approx(difference, abs=0.25)
    true = np.mean((blur(one.b) - truth.image)[truth.region] ** 2)
    assert scores["half", "umse_ba"] == pytest.approx(true, abs=0.2)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fail(arguments, capsys):
    assert cli.main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_a_truth_in_other_units_or_of_another_micrograph_is_refused(tmp_path, capsys):
    record = make_micrograph(tmp_path, "m", seed=1)
    one = pair.load_pair(record)
    pair.write_estimates(one, pair.estimate_all(one, blur), tmp_path / "blur", "blur")
    arguments = score_arguments(tmp_path, "blur", [record])
    truth = tmp_path / "truth/m.mrc"
    good, _ = mrcio.read_mrc(truth)

    mrcio.write_mrc(truth, good / 38, 1.0)  # electrons per frame
    message = fail(arguments, capsys)
    assert "m.mrc" in message
    assert "off the halves' mean" in message

    other = np.random.default_rng(5).standard_normal(good.shape).astype(np.float32) * 0.01 + 10
    mrcio.write_mrc(truth, other, 1.0)
    assert "does not correlate" in fail(arguments, capsys)

    mrcio.write_mrc(truth, good[:-2], 1.0)
    assert "(127, 144) at bin 2" in fail(arguments, capsys)

    mrcio.write_mrc(truth, good, 1.0)
    edit(truth.with_suffix(".json"), trajectory_A=None)
    assert "leave out --truth" in fail(arguments, capsys)

    truth.unlink()
    assert "m.mrc: no such file" in fail(arguments, capsys)
    assert not (tmp_path / "scores").exists()  # nothing half-written


def test_a_missing_result_or_a_double_record_is_refused(entry, tmp_path, capsys):
    record = entry / "halves/000.json"
    arguments = score_arguments(entry, "nowhere", [record])
    assert "nowhere/000_a.mrc: no such file" in fail(arguments, capsys)
    assert "given twice" in fail(score_arguments(entry, "blur", [record, record]), capsys)
    (tmp_path / "labels.csv").write_text("micrograph,x,y\n000,1,2\n")
    arguments = [*score_arguments(entry, "blur", [record]), "--labels", tmp_path / "labels.csv"]
    assert "x_px, y_px, radius_px is missing" in fail(arguments, capsys)
    (tmp_path / "labels.csv").write_text("micrograph,x_px,y_px,radius_px\n000,1,2,three\n")
    assert "radius_px holds text" in fail(arguments, capsys)


# ---------------------------------------------------------------------------- summarise


def test_summary_holds_every_method_and_metric_with_paired_deltas(entry, tmp_path, cryon2n):
    methods = list(DENOISERS)
    arguments = summarise_arguments(entry, methods, tmp_path, "--reference", "blur")
    cryon2n(*arguments)
    table = read(tmp_path / "summary.tsv")
    assert list(table.columns) == pooling.SUMMARY_COLUMNS
    both = (pooling.IMAGE_METRICS, pooling.RING_METRICS)
    keys = {(e, m) for catalogue in both for e, names in catalogue.items() for m in names}
    for method in methods:
        rows = table[table.method == method]
        assert set(zip(rows.estimator, rows.metric, strict=True)) == keys
        assert len(rows) == len(keys)
    assert (table.n == 3).all()

    def row(method, metric, estimator="half"):
        found = table[(table.method == method) & (table.metric == metric) & (table.estimator == estimator)]
        return found.iloc[0]

    pattern, blurred = row("pattern", "umse"), row("blur", "umse")
    assert pattern["mean"] == pytest.approx(value(read(entry / "scores/pattern.tsv"), "half", "umse"), rel=1e-5)
    assert pattern.delta == pytest.approx(pattern["mean"] - blurred["mean"], rel=1e-4)
    assert pattern.delta_low <= pattern.delta <= pattern.delta_high
    # Paired: the interval of the difference is narrower than either level's.
    assert pattern.delta_high - pattern.delta_low < 0.7 * (blurred.ci_high - blurred.ci_low)
    assert (row("blur", "umse")[["delta", "delta_low", "delta_high"]] == 0).all()
    # The pattern raises the FRC of the two denoised halves and lowers the FRC to the truth.
    assert row("pattern", "half_frc").delta_low > 0
    crossed = row("pattern", "cross_frc")
    assert crossed.delta_high < 0
    assert crossed.delta == pytest.approx(crossed["mean"] - row("blur", "cross_frc")["mean"], rel=1e-3)
    assert (row("blur", "cross_frc")[["delta", "delta_low", "delta_high"]] == 0).all()
    assert row("pattern", "raw_frc", "raw").delta == 0
    assert row("pattern", "information_limit_A", "raw")["mean"] > 4  # Nyquist is 4 Å
    assert (
        row("pattern", "noise_power_ratio_inband", "full")["mean"]
        > row("blur", "noise_power_ratio_inband", "full")["mean"]
    )

    curves = read(tmp_path / "curves.tsv")
    assert list(curves.columns) == pooling.CURVE_COLUMNS
    assert len(curves) == 3 * (144 // 2 + 1)
    assert curves.frequency.max() == pytest.approx(1 / 4)
    assert len(read(tmp_path / "metrics.tsv")) == sum(len(read(entry / f"scores/{m}.tsv")) for m in methods)
    first = (tmp_path / "summary.tsv").read_text()
    assert cli.main(arguments) == 0
    assert (tmp_path / "summary.tsv").read_text() == first


@pytest.mark.parametrize("reference", [[], ["--reference", "topaz-unet"]])
def test_without_the_reference_the_deltas_are_nan(entry, tmp_path, reference):
    assert cli.main(summarise_arguments(entry, ["blur", "strong"], tmp_path, *reference)) == 0
    table = read(tmp_path / "summary.tsv")
    assert table[["delta", "delta_low", "delta_high"]].isna().all(axis=None)
    assert table.ci_low.notna().all()


def test_one_micrograph_has_no_interval(entry, tmp_path, capsys):
    (tmp_path / "scores").mkdir()
    for name in ("blur", "blur_rings", "strong", "strong_rings"):
        table = read(entry / f"scores/{name}.tsv")
        table[table.micrograph == "000"].to_csv(tmp_path / f"scores/{name}.tsv", sep="\t", index=False)
    arguments = summarise_arguments(tmp_path, ["blur", "strong"], tmp_path, "--reference", "blur")
    assert cli.main(arguments) == 0
    assert "only one micrograph (000)" in capsys.readouterr().err
    table = read(tmp_path / "summary.tsv")
    assert (table.n == 1).all()
    assert table["mean"].notna().all()
    assert table[["ci_low", "ci_high", "delta_low", "delta_high"]].isna().all(axis=None)
    assert table.delta.notna().all()


def damaged(entry, tmp_path, name, change):
    """Copy the tables of two methods, one of them changed; return the summarise arguments."""
    (tmp_path / "scores").mkdir()
    for other in ("blur", "blur_rings", "strong", "strong_rings"):
        table = read(entry / f"scores/{other}.tsv")
        table = change(table) if other == name else table
        table.to_csv(tmp_path / f"scores/{other}.tsv", sep="\t", index=False, na_rep="nan")
    return summarise_arguments(tmp_path, ["blur", "strong"], tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("strong", lambda t: t[t.micrograph != "001"], "method strong has no scores for micrograph 001"),
        ("strong_rings", lambda t: t[t.micrograph != "001"], "method strong has no rings for micrograph 001"),
        ("strong", lambda t: pd.concat([t, t[:1]]), "strong / 000 / half / umse twice"),
        ("strong_rings", lambda t: pd.concat([t, t[:1]]), "strong / 000 twice"),
        ("strong", lambda t: t.assign(method="other"), "the rings of blur, strong"),
        (
            "strong_rings",
            lambda t: t.assign(a_a=t.a_a * 1.01),
            "scored on different halves of micrograph 000",
        ),
        ("strong", lambda t: t.drop(columns="value"), "column value is missing"),
        ("strong", lambda t: t.assign(value="high"), "column value holds text"),
        ("strong", lambda t: t[:0], "method"),
    ],
)
def test_tables_that_do_not_fit_are_refused_by_name(entry, tmp_path, capsys, name, change, message):
    arguments = damaged(entry, tmp_path, name, change)
    assert message in fail(arguments, capsys)
    assert not (tmp_path / "summary.tsv").exists()


def test_a_metric_missing_in_some_micrographs_has_a_smaller_n(entry, tmp_path):
    def drop(table):
        gone = (table.metric == "upsnr") & (table.micrograph == "002")
        table.loc[gone, "value"] = np.nan
        return table

    assert cli.main([*damaged(entry, tmp_path, "strong", drop), "--reference", "blur"]) == 0
    table = read(tmp_path / "summary.tsv").query("metric == 'upsnr'").set_index("method")
    assert list(table.n) == [3, 2]
    strong, blurred = (read(tmp_path / f"scores/{m}.tsv").query("metric == 'upsnr'").value for m in ("strong", "blur"))
    want = np.mean(strong.to_numpy()[:2] - blurred.to_numpy()[:2])  # over the micrographs that both have
    assert table.delta["strong"] == pytest.approx(want, rel=1e-3)


def test_micrographs_of_two_sizes_share_one_ring_grid():
    def table(name, size, pixel):
        n = size // 2 + 1
        columns = {c: np.ones(n) for c in pooling.RING_COLUMNS[4:]}
        head = {"method": "m", "micrograph": name, "ring": np.arange(n)}
        return pd.DataFrame({**head, "frequency": np.arange(n) / (size * pixel), **columns})

    both = pd.concat([table("large", 200, 1.0), table("small", 100, 1.0)])
    frequency, powers = pooling.tabulate_rings(both, ["large", "small"])
    np.testing.assert_allclose(frequency, np.arange(51) / 100)
    assert powers["m"]["a_b"][1].tolist() == [1.0] * 51
    # Two rings of the large one fall into each of the small one's, none is lost.
    assert powers["m"]["a_b"][0].sum() == 101
    assert set(powers["m"]["a_b"][0][1:-1]) <= {1.0, 2.0, 3.0}


def test_every_metric_is_explained_in_the_docs():
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    for catalogue in (pooling.IMAGE_METRICS, pooling.RING_METRICS):
        for metric in {name for names in catalogue.values() for name in names}:
            assert f'<a id="{metric}"></a>' in text, metric


# ---------------------------------------------------------------------------- bootstrap


def test_intervals_cover_a_normal_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits, n, trials = 0, 40, 400
    for trial in range(trials):
        x = rng.standard_normal(n) + 3
        low, high = pooling.interval(pooling.resampled_means(x, pooling.resample_weights(n, 400, trial)), n)
        hits += low <= 3 <= high
    # Percentile intervals of 40 values are a little narrow; the binomial standard error is 1.1 %.
    assert 0.90 < hits / trials < 0.98


def test_resampled_mean_leaves_out_what_is_not_finite():
    weights = np.array([[2.0, 0, 1], [0, 3, 0], [1, 1, 1]])
    got = pooling.resampled_means(np.array([1.0, np.nan, 4.0]), weights)
    np.testing.assert_allclose(got, [2, np.nan, 2.5])


def test_resample_weights_draw_n_of_n_and_are_repeatable():
    weights = pooling.resample_weights(7, 50, seed=3)
    assert (weights.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(weights, pooling.resample_weights(7, 50, seed=3))
    assert (weights != pooling.resample_weights(7, 50, seed=4)).any()


def test_ring_resamples_pool_powers_before_dividing():
    rng = np.random.default_rng(0)
    powers = {name: rng.uniform(1, 2, (3, 20)) for name in ("count", *pooling.metrics.POWERS)}
    frequency = np.arange(20) / 40
    weights = np.array([[1.0, 0, 2], [0, 3, 0]])
    got = pooling.resampled_rings(powers, weights, frequency, (10, 15))
    for i, w in enumerate(weights):
        by_hand = {name: sum(k * x[j] for j, k in enumerate(w)) for name, x in powers.items()}
        want = pooling.ring_statistics(by_hand, frequency, 10, 15)
        assert got["half", "cross_frc"][i] == pytest.approx(want["half", "cross_frc"])


def test_unwrapped_region_loses_the_side_that_the_shift_came_from():
    region = slice(2, 98), slice(0, 200)
    assert compare.unwrapped(region, (3.2, -1.5), (100, 200)) == (slice(4, 98), slice(0, 198))
    assert compare.unwrapped(region, (-3.2, 0.0), (100, 200)) == (slice(2, 96), slice(0, 200))


def test_real_unequal_pairs_score_an_identity_as_its_noise(shared_data):
    """Apoferritin (EMPIAR-10146): one frame against the rest, in unlike units, with real labels."""
    name = "May08_03.05.02"
    a, b = (mrcio.read_mrc(shared_data / f"apoferritin-10146/{name}_{side}.mrc")[0] for side in "ab")
    labels = compare.read_labels(shared_data / "apoferritin-10146/particles.csv")
    units = {"a": (a.mean(), 3 * a.std()), "b": (b.mean(), b.std())}
    a, b = ((x - units[s][0]) / units[s][1] for s, x in (("a", a), ("b", b)))
    record = {"pixel_size_A": 1.5, "valid": [0, a.shape[0], 0, a.shape[1]]}
    record.update(a={"noise_var": 0.11}, b={"noise_var": 0.9})
    one = pair.Pair(name, a.astype(np.float32), b.astype(np.float32), record)
    estimates = {**pair.estimate_all(one, lambda x: x), "mean": one.full}
    scores = compare.score_micrograph(one, estimates, particles=labels[name])
    measured = np.mean((one.a - one.b) ** 2, dtype=np.float64)
    assert scores["half", "umse"] == pytest.approx(measured / 2, rel=1e-4)
    assert scores["half", "bias_variance"] == pytest.approx(0, abs=1e-6)
    assert scores["full", "noise_power_ratio"] == pytest.approx(1)
    assert np.isfinite(scores["raw", "topaz_snr_db"])
