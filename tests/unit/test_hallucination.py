"""The panel: planted cheats are exposed by name, honest methods are not; closed forms of the measures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import fft, ndimage

import making
from cryon2n import (
    audit_rules,
    denoise_tiles,
    files,
    filters,
    hallucination,
    metrics,
    phantom,
    phantom_molecule,
    picking,
    probes,
    unet,
)
from cryon2n import hallucination_lights as panel
from cryon2n import pair as pairs
from cryon2n.hallucination import Reading

SHAPE, PIXEL, RADIUS = (256, 288), 5.2, 95.0  # the built-in barrel at 5.2 Å per pixel
OPTICS = phantom.Optics(defocus_u=15000, defocus_v=15000)
BARREL = phantom_molecule.barrel()
RADIUS_PX = RADIUS / PIXEL
BLOBS = picking.Blobs(RADIUS_PX, False, RADIUS_PX)


def micrograph(folder, name, seed, n=14, amplitude=0.6):
    """Write two halves with barrels in white noise of variance 1; returns the record and the centres (y, x)."""
    rng = np.random.default_rng([seed, 7])
    inside = tuple(side - 2 * int(RADIUS_PX) for side in SHAPE)
    centres = phantom_molecule.place_particles(n, inside, 2 * RADIUS_PX, rng) + RADIUS_PX
    mass = phantom_molecule.projected_mass(BARREL, phantom_molecule.random_rotations(n, rng), centres, SHAPE, PIXEL)
    spectrum = phantom.image_spectrum(phantom.phase_spectrum(mass, PIXEL, 300.0), SHAPE, PIXEL, OPTICS)
    signal = fft.irfft2(spectrum, s=SHAPE)
    signal *= amplitude / signal.std()
    record = making.write_pair(
        folder, name, *(signal + making.white(10 * seed + k, SHAPE) for k in (1, 2)), pixel_size=PIXEL
    )
    return record, centres, signal


@dataclass
class Study:
    folder: Path
    train: list
    test: list
    labels: Path
    template: np.ndarray
    wiener: dict


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Six training and two test micrographs, the probes of the first of these, and a fitted Wiener filter."""
    folder = tmp_path_factory.mktemp("study")
    made = [micrograph(folder / "halves", f"mic{i}", i) for i in range(8)]
    train, test = [m[0] for m in made[:6]], [m[0] for m in made[6:]]
    lines = [f"{r.stem},{x:.1f},{y:.1f},{RADIUS_PX:.2f}" for r, centres, _ in made[6:] for y, x in centres]
    labels = folder / "labels.csv"
    labels.write_text("\n".join(["micrograph,x_px,y_px,radius_px", *lines]) + "\n")
    assert making.command("write-probes", "--halves", test[0], "--radius", RADIUS, "--out", folder / "probes") == 0
    # The training particle's mean image, from the clean signals.
    reach = int(1.2 * RADIUS_PX)
    region = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))
    profiles = np.concatenate([hallucination.radial_profiles(s, c, reach, region) for _, c, s in made[:6]])
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    template = np.interp(np.hypot(y, x), np.arange(reach + 1), np.mean(profiles, axis=0), right=0.0)
    wiener = filters.tune("wiener", filters.ring_powers([pairs.load_pair(r) for r in train]))
    return Study(folder, train, test, labels, template.astype(np.float32), wiener)


def paste(image, template, places):
    """Add the template at places (y, x)."""
    out, reach = image.copy(), template.shape[0] // 2
    for y, x in np.rint(places).astype(int):
        if reach <= y < image.shape[0] - reach and reach <= x < image.shape[1] - reach:
            out[y - reach : y + reach + 1, x - reach : x + reach + 1] += template
    return out


def judged(study, name, f):
    """Run a denoiser ``f(image, side)`` on test micrographs and probes, then both commands; its findings and lights."""
    out = study.folder / "denoised" / name
    records = [*study.test, *sorted((study.folder / "probes").glob("*.json"))]
    for record in records:
        pair = pairs.load_pair(record)
        made = {side: f(getattr(pair, side), "full" if side == "noise" else side) for side in pairs.INPUTS}
        pairs.write_estimates(pair, made, out, name)
    readings, table = study.folder / f"{name}.tsv", study.folder / f"{name}_panel.tsv"
    assert 0 == making.command(
        "probe-method", "--method", name, "--halves", *study.test, "--denoised", out,
        "--probes", study.folder / "probes", "--labels", study.labels,
        "--readings", readings, "--transfers", study.folder / f"{name}_transfers.tsv",
    )  # fmt: skip
    assert making.command("write-panel", "--readings", readings, "--panel", table) == 0
    rows = files.read_table(table, panel.PANEL_COLUMNS)
    return panel.findings(rows).get(name, {}), {row["metric"]: float(row["value"]) for row in rows}


def wiener_of(study):
    return lambda image, side: filters.apply(study.wiener, image, side)


# ---------------------------------------------------------------------------- cheats


def test_a_fixed_pattern_of_particles_is_exposed(study):
    places = np.random.default_rng(1).uniform(30, 220, (12, 2))
    pattern = paste(np.zeros(SHAPE, np.float32), study.template, places)
    found, _ = judged(study, "pattern", lambda x, side: wiener_of(study)(x, side) + pattern)
    assert found == {"adds-template": "red"}


def test_particles_pasted_where_noise_is_highest_are_exposed(study):
    """Einstein from noise: every peak of the filtered image becomes a particle."""

    def peaks(image, side):
        smooth = wiener_of(study)(image, side)
        return smooth, picking.find_peaks(picking.blob_response(smooth, BLOBS), RADIUS_PX)[0][:14]

    def adds(image, side):
        smooth, places = peaks(image, side)
        return paste(smooth, 2 * study.template, places)

    def paints(image, side):
        smooth, places = peaks(image, side)
        return paste(np.zeros_like(smooth), study.template, places)

    found, values = judged(study, "adds", adds)
    assert found["adds-template"] == "red" and set(found) <= {"adds-template", "invents-detail"}
    assert values["noise_excess"] > 2 and values["turned"] > 0.5 and abs(values["common_output"]) < 0.05
    found, values = judged(study, "paints", paints)
    assert found["adds-template"] == found["invents-detail"] == "red" and values["picks_share"] > 0.1
    assert values["phase_invented"] > 0.5 and values["noise_excess"] > 2


@pytest.mark.parametrize(("share", "light"), [(1.0, "red"), (0.6, "red"), (0.3, "amber")])
def test_a_copy_of_the_input_is_exposed(study, share, light):
    f = wiener_of(study)
    found, values = judged(study, f"copy{share}", lambda x, side: share * x + (1 - share) * f(x, side))
    assert found == {"copies-input": light}
    _, own = judged(study, "wiener", f)  # linear in the share by its definition; Wiener's fitted filter is near 0
    assert abs(values["noise_copied"] - (share + (1 - share) * own["noise_copied"])) < 0.01


def test_a_mean_image_is_exposed(study):
    mean = np.mean([wiener_of(study)(pairs.load_pair(r).full, "full") for r in study.train], axis=0)
    assert judged(study, "mean", lambda x, side: mean)[0] == {"constant-output": "red"}
    assert judged(study, "flat", lambda x, side: np.zeros_like(x))[0] == {"constant-output": "red"}


def test_a_blur_is_exposed(study):
    found, values = judged(study, "blur", lambda x, side: ndimage.gaussian_filter(x, RADIUS_PX, mode="reflect"))
    assert found == {"blurs": "red"} and values["signal_lost"] > 0.9


def test_a_method_that_erases_what_it_does_not_know_is_exposed(study):
    """It looks for the training particle and shows nothing else: an unknown molecule is gone."""
    one = pairs.load_pair(study.folder / "probes" / f"{study.test[0].stem}-injected.json")

    def erases(image, side):
        known = any(np.array_equal(image, getattr(one, s)) for s in pairs.INPUTS)  # an oracle does for the test
        return wiener_of(study)(image, side) * (0.1 if known else 1)

    assert judged(study, "erases", erases)[0] == {"drops-unknown": "red"}


# ---------------------------------------------------------------------------- honest methods


@pytest.mark.parametrize("name", ["wiener", "gaussian"])
def test_an_honest_filter_has_no_findings(study, name):
    tuned = study.wiener
    if name != "wiener":
        tuned = filters.tune(name, filters.ring_powers([pairs.load_pair(r) for r in study.train]))
    found, values = judged(study, name, lambda x, side: filters.apply(tuned, x, side))
    assert found == {}
    assert abs(values["noise_excess"] - 1) < 0.05 and abs(values["injected_kept"] - 1) < 0.15
    assert abs(values["phase_invented"]) < 0.2 and abs(values["turned"]) < 0.2


def test_our_network_has_no_findings(study):
    manifest = making.write_shards(study.folder / "shards", study.train, patch=128)
    settings = {
        "steps": 300, "batch": 8, "crop": 64, "rate": 0.003, "validate_every": 300, "checkpoint_every": 300,
        "net": {"stride": 2, "channels": [16, 24], "blocks": 1},
    }  # fmt: skip
    model = study.folder / "model"
    assert 0 == making.command(
        "train-unet", "--manifest", manifest, "--val", study.test[1], "--weights", model / "weights.safetensors",
        "--metrics", model / "metrics.json", "--history", model / "log.csv", "--device", "cpu", "--threads", 1,
        "--settings", json.dumps(settings),
    )  # fmt: skip
    net, _ = unet.load_weights(model / "weights.safetensors", "cpu")
    found, values = judged(study, "ours", lambda x, side: denoise_tiles.denoise_image(net, x, precision="float32"))
    assert found == {}
    assert values["noise_excess"] < 1.1 and values["signal_lost"] < 0.32


# ---------------------------------------------------------------------------- a leaked target


def test_a_target_that_holds_its_own_input_is_flagged_by_audit_and_panel(study, tmp_path):
    """One frame against the average of four, that frame among them: the best predictor hands its noise on."""
    records = []
    for i in range(6):
        signal = 0.6 * making.field(i, SHAPE, 0.08)
        frames = [signal + making.white(100 * i + k, SHAPE) for k in range(4)]
        records.append(making.write_pair(tmp_path, f"leak{i}", frames[0], np.sum(frames, axis=0), n_frames=(1, 4)))
    table = tmp_path / "audit.tsv"
    actions = json.dumps({"actions": dict.fromkeys(audit_rules.CHECKS, "warn")})
    code = making.command(
        "audit-halves", "--halves", *records, "--table", table, "--figure", tmp_path / "a.svg",
        "--excluded", tmp_path / "excluded.tsv", "--settings", actions,
    )  # fmt: skip
    assert code == 0
    flags = {row["micrograph"]: row["flags"] for row in files.read_table(table, ["micrograph", "flags"])}
    assert all("correlated-noise" in flags[record.stem] for record in records)
    leaked = filters.tune("wiener", filters.ring_powers([pairs.load_pair(r) for r in records]))
    # <a, b> holds a quarter of a's noise: the plateau of the transfer is 1/4 wherever there is no signal.
    assert abs(np.median(leaked["transfer"]["a"]) - 0.25) < 0.03
    found, values = judged(study, "leaked", lambda x, side: filters.apply(leaked, x, "a"))
    assert found == {"copies-input": "amber"} and values["noise_copied"] < 0.25


# ---------------------------------------------------------------------------- closed forms and probes


WHOLE = (slice(0, SHAPE[0]), slice(0, SHAPE[1]))


def powers(images, names, taper=32):
    return metrics.ring_powers(images, WHOLE, 1.0, names, taper)


def ring_filter(seed):
    """A filter with a random smooth transfer, as a function of an image."""
    nodes = np.random.default_rng(seed).uniform(0.1, 1.5, 8)
    transfer = np.interp(np.arange(max(SHAPE) // 2 + 1), np.linspace(0, max(SHAPE) // 2, 8), nodes)
    return lambda image: hallucination.filtered(image, transfer)


@pytest.mark.parametrize("seed", range(3))
def test_every_filter_that_treats_a_ring_alike_has_the_null(seed):
    f = ring_filter(seed)
    signal, other = 0.7 * making.field(seed, SHAPE, 0.2), 0.7 * making.field(50 + seed, SHAPE, 0.2)
    a, b = (signal + making.white(3 * seed + k, SHAPE) for k in (1, 2))
    ga, gb = (other + making.white(90 + 3 * seed + k, SHAPE) for k in (1, 2))
    images = {"a": a, "b": b, "d": a - b, "w": (a + b) / 2, "n": (a - b) / 2}
    images |= {"fa": f(a), "fb": f(b), "fw": f((a + b) / 2), "fn": f((a - b) / 2), "fd": f(a - b), "fo": f(ga)}
    p = powers(images, hallucination.OWN)
    q = powers({"a": other, "j": other, "ga": f(ga), "gb": f(gb)}, hallucination.INJECTED)
    band = (3, 50)
    excess = hallucination.noise_excess(p, band)
    assert abs(excess.value - 1) < 3 * excess.error < 0.3
    kept = hallucination.injected_kept(p, q, band)
    assert abs(kept.value - 1) < 4 * kept.error < 0.3
    common = hallucination.common_output(p)
    assert abs(common.value) < 4 * common.error < 0.1


def test_errors_are_standard_deviations():
    """Of independent fields: the spread of 60 readings over their stated errors is 1 (to within 0.09)."""
    z = {"common_output": [], "phase_invented": []}
    for seed in range(60):
        x, y, other = (making.field(300 + 3 * seed + k, (96, 96), 0.3) for k in range(3))
        region = (slice(0, 96), slice(0, 96))
        p = metrics.ring_powers({"a": x, "fw": x, "fo": other, "fn": y}, region, 1.0, hallucination.OWN)
        reading = hallucination.common_output(p)
        z["common_output"].append(reading.value / reading.error)
        images = {"a": x, "fw": x, "sw": y}
        p = metrics.ring_powers(images, region, 1.0, hallucination.SCRAMBLED, taper=2)
        p["count"] = p["count"] * hallucination.HANN_SHARE
        reading = hallucination.phase_invented(p, 5, 28)
        z["phase_invented"].append(reading.value / reading.error)
    for values in z.values():
        assert 0.7 < np.std(values) < 1.3 and abs(np.mean(values)) < 4 / np.sqrt(60)


def test_surrogates_have_the_spectrum_and_nothing_else():
    image = making.field(1, SHAPE, 0.1)
    for other in hallucination.surrogates(image, 2, np.random.default_rng(0)):
        assert np.allclose(
            np.abs(fft.rfft2(other)), np.abs(fft.rfft2(image)), atol=1e-3 * np.abs(fft.rfft2(image)).max()
        )
        assert abs(metrics.correlation_coefficient(image, other)) < 0.3


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_of_the_training_particle_is_found(study, share):
    rng = np.random.default_rng(5)
    own, strange = (
        phantom_molecule.place_particles(n, (SHAPE[0] - 80, SHAPE[1] - 80), 2 * RADIUS_PX, rng) + 40 for n in (9, 8)
    )
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc = sum((np.hypot(y - cy, x - cx) < 0.7 * RADIUS_PX).astype(float) for cy, cx in np.rint(strange))
    zeros = np.zeros(SHAPE)
    noise = [0.1 * making.white(k, SHAPE) for k in (1, 2)]
    output = (1 - share) * disc + share * paste(zeros, study.template, strange) + sum(noise) / 2
    training = paste(zeros, study.template, own)
    reading = hallucination.turned(output, disc, strange, training, own, RADIUS_PX, (WHOLE, WHOLE), rng)
    assert abs(reading.value - share) < 5 * reading.error < 0.1


def test_profiles_are_means_over_rings_and_of_no_places_there_are_none():
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    cone = np.hypot(y - 100, x - 90)
    (profile,) = hallucination.radial_profiles(cone, np.array([(100.0, 90.0), (2.0, 90.0)]), 20, WHOLE)
    assert profile == pytest.approx(np.arange(21), abs=0.25)
    assert hallucination.radial_profiles(cone, np.zeros((0, 2)), 20, WHOLE).shape == (0, 21)


def test_discs_that_look_alike_are_not_told_apart(study):
    own = np.array([(60.0, 60.0), (150.0, 200.0), (60.0, 180.0)])
    image = paste(np.zeros(SHAPE), study.template, own)
    rng = np.random.default_rng(0)
    reading = hallucination.turned(image, image, own, image, own, RADIUS_PX, (WHOLE, WHOLE), rng)
    assert np.isnan(reading.value)


# ---------------------------------------------------------------------------- probes


def test_the_injected_probe_has_the_noise_and_the_signal_to_noise_ratio_of_the_data(tmp_path):
    signal = 0.6 * making.field(2, SHAPE, 0.1)
    frames = [signal + making.white(20 + k, SHAPE) for k in range(4)]
    record = making.write_pair(tmp_path, "m", frames[0], sum(frames[1:]), PIXEL, (1, 3), valid=[10, 250, 4, 280])
    one = pairs.load_pair(record)
    low, high, power = probes.signal_band(one, RADIUS)
    contrast, centres = probes.tripod_contrast(SHAPE, PIXEL, RADIUS, 9, OPTICS, 0)
    probe, image = probes.inject(one, contrast, (low, high), power)
    assert len(centres) > 3
    put_in = metrics.ring_powers({"a": image}, one.valid, PIXEL, ("a_a",))["a_a"][low:high].sum()
    assert put_in == pytest.approx(power[low:high].sum(), rel=1e-3)
    for side, wanted in zip("ab", one.noise_var, strict=True):
        noise = getattr(probe, side) - image
        assert noise.var() == pytest.approx(wanted, rel=0.03)  # a third of the noise in b
    na, nb = probe.a - image, probe.b - image
    assert abs(metrics.correlation_coefficient(na, nb)) < 4 / np.sqrt(na.size)
    # Only what was valid on both sides of the half turn.
    assert probe.record["valid"] == [10, 246, 8, 280]


def test_scrambling_keeps_all_powers_and_nothing_else_beyond_the_shell():
    a, b = (making.field(k, SHAPE, 0.3).astype(np.float32) for k in (1, 2))
    record = {"pixel_size_A": 1.0, "valid": [0, *SHAPE[:1], 0, SHAPE[1]]}
    one = pairs.Pair("m", a, b, record)
    probe = probes.scramble(one, 20, 0)
    for x, y in ((a, probe.a), (b, probe.b)):
        spectra = fft.rfft2(x), fft.rfft2(y)
        assert np.allclose(*map(np.abs, spectra), atol=2e-4 * np.abs(spectra[0]).max())
        inside = hallucination.fourier.ring_index(SHAPE) <= 20
        assert np.allclose(spectra[0][inside], spectra[1][inside], atol=2e-4 * np.abs(spectra[0]).max())
        beyond = [np.where(inside, 0, s) for s in spectra]
        assert abs((beyond[0] * beyond[1].conj()).real.sum()) < 0.02 * (np.abs(beyond[0]) ** 2).sum()
    # The same turn in both halves: what they share beyond the shell they share still.
    before, after = (fft.rfft2(x) * fft.rfft2(y).conj() for x, y in ((a, b), (probe.a, probe.b)))
    assert np.allclose(before, after, atol=1e-3 * np.abs(before).max())


def test_probes_are_halves_that_say_what_they_are(study):
    stem = study.test[0].stem
    for kind in (probes.INJECTED, probes.SCRAMBLED):
        probe = pairs.load_pair(study.folder / "probes" / f"{stem}-{kind}.json")
        assert probe.name == f"{stem}-{kind}" and probe.record["probe"]["kind"] == kind
        assert probe.record["probe"]["of"] == stem


def test_what_cannot_be_probed_is_refused_and_nothing_written(study, tmp_path, capfd):
    words = ["write-probes", "--halves", study.test[0], "--out", tmp_path / "p", "--radius"]
    assert making.command(*words, 3) == 2
    assert "give larger particles" in capfd.readouterr().err
    assert making.command(*words, -1) == 2
    assert not (tmp_path / "p").exists()


# ---------------------------------------------------------------------------- lights


@pytest.mark.parametrize(
    ("name", "value", "error", "light"),
    [
        ("noise_excess", 0.1, 0.01, "green"), ("noise_excess", 1.09, 0.01, "green"),
        ("noise_excess", 1.2, 0.05, "amber"),
        ("noise_excess", 1.2, 0.1, "green"), ("noise_excess", 2.5, 0.1, "red"), ("noise_excess", np.nan, 0.1, "none"),
        ("injected_kept", 3.0, 0.1, "green"), ("injected_kept", 0.7, 0.01, "green"),
        ("injected_kept", 0.5, 0.01, "amber"),
        ("injected_kept", 0.2, 0.01, "red"), ("injected_kept", 0.2, 0.4, "green"),
        ("noise_copied", -0.5, 0.001, "green"), ("noise_copied", 0.2, 0.001, "amber"),
        ("disagreement", 9.0, np.nan, "none"), ("phase_regained", 0.9, 0.01, "none"),
    ],
)  # fmt: skip
def test_lights(name, value, error, light):
    assert panel.light_of(panel.BY_NAME[name], Reading(value, error)) == light


def test_pooled_readings_are_means_with_smaller_errors():
    reading, n = panel.pool([Reading(1.0, 0.3), Reading(2.0, 0.4), Reading(np.nan, np.nan)])
    assert n == 2 and reading.value == 1.5 and reading.error == pytest.approx(0.25)


def test_a_method_of_the_whole_exposure_alone_has_what_needs_no_more(study):
    out, table = study.folder / "denoised" / "outside", study.folder / "outside.tsv"
    for record in study.test:
        one = pairs.load_pair(record)
        pairs.write_estimates(one, {"full": wiener_of(study)(one.full, "full")}, out, "outside")
    words = [
        "probe-method", "--method", "outside", "--halves", *study.test, "--denoised", out, "--inputs", "full",
        "--probes", study.folder / "probes", "--without-probes", "--labels", study.labels,
        "--readings", table, "--transfers", study.folder / "outside_transfers.tsv",
    ]  # fmt: skip
    assert making.command(*words) == 0
    rows = files.read_table(table, hallucination.READING_COLUMNS)
    assert {row["metric"] for row in rows} == set(panel.BY_NAME)
    assert all(row["value"] == "nan" for row in rows)  # it has not denoised the signal-free image either
    panel_table = study.folder / "outside_panel.tsv"
    assert making.command("write-panel", "--readings", table, "--panel", panel_table) == 0
    assert {row["light"] for row in files.read_table(panel_table, panel.PANEL_COLUMNS)} == {"none"}


def test_readings_given_twice_are_refused(study, tmp_path, capfd):
    table = tmp_path / "r.tsv"
    row = {"method": "m", "micrograph": "1", "metric": "noise_excess", "value": 1.0, "error": 0.1}
    files.write_table(table, [row], hallucination.READING_COLUMNS)
    assert making.command("write-panel", "--readings", table, table, "--panel", tmp_path / "p.tsv") == 2
    assert "twice" in capfd.readouterr().err
    files.write_table(table, [{**row, "metric": "taste"}], hallucination.READING_COLUMNS)
    assert making.command("write-panel", "--readings", table, "--panel", tmp_path / "p.tsv") == 2
    assert "taste" in capfd.readouterr().err and not (tmp_path / "p.tsv").exists()
