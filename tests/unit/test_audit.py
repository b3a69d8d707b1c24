"""The audit: quiet on clean halves; each planted fault named, and stopped or excluded as its action says."""

import json

import numpy as np
import pandas as pd
import pytest

from cryon2n import audit, audit_checks, audit_rules, excluded, files, fourier, halves_figure, pair, report
from cryon2n.audit_rules import AuditSettings
from cryon2n.errors import InputError
from making import command, field, white, write_pair

SHAPE = (192, 224)
N = 3


def clean(i, amplitude=0.7):
    """Signal (sums of frames of one micrograph share it) and two independent noises of variance 1."""
    return amplitude * field(i, SHAPE, cutoff=0.08), white(100 + 2 * i, SHAPE), white(101 + 2 * i, SHAPE)


def good(i):
    s, x, y = clean(i)
    return s + x, s + y


def counts(i, electrons=46.0, shape=SHAPE, response=1.0, shared=0.0):
    """Counted halves, Poisson: `electrons` per pixel and half, 8 % contrast; `shared` of the counts in both."""
    rng = np.random.default_rng([77, i])
    expected = electrons * response * np.clip(1 + 0.08 * field(i, shape, cutoff=0.1), 0.1, None)
    common = rng.poisson(shared * expected) if shared else 0
    return tuple(common + rng.poisson((1 - shared) * expected) for _ in "ab")


def write_set(folder, make, n=N, change=None, **kwargs):
    records = [write_pair(folder, f"mic{i}", *make(i), **kwargs) for i in range(n)]
    for i, path in enumerate(records):
        if change:
            record = files.read_json(path)
            change(i, record)
            files.write_json(path, record)
    return records


def audited(records, **settings):
    """Rows of the micrographs, the row of all together, and what excludes or stops."""
    rows, _ = audit.measure(records)
    findings = audit_rules.judge(rows, AuditSettings(**settings))
    assert rows[-1]["micrograph"] == audit_rules.POOLED
    return rows[:-1], rows[-1], findings


def flags(rows):
    return [set(row["flags"].split(",")) for row in rows]


def verdict(records, **settings):
    rows, _ = audit.measure(records)
    settings = AuditSettings(**settings)
    audit_rules.check_verdict(audit_rules.judge(rows, settings), len(records), settings)


# ---------------------------------------------------------------------------- clean halves


def test_several_at_once_are_measured_as_one_by_one(tmp_path, monkeypatch):
    records, read = write_set(tmp_path, good), []
    rows, spectra = audit.measure(records)
    monkeypatch.setattr(audit.pair, "load_pair", lambda path, own=audit.pair.load_pair: read.append(path) or own(path))
    at_once, spectra_at_once = audit.measure(records, 3)
    assert pd.DataFrame(at_once).equals(pd.DataFrame(rows))
    assert list(spectra_at_once) == list(spectra)
    read.clear()
    audit.measure(records)
    assert read == [*records, records[0]]  # the last is compared with the first


def test_clean_pairs_are_ok(tmp_path):
    rows, pooled, findings = audited(write_set(tmp_path, good))
    assert [row["flags"] for row in rows] == ["ok"] * N and pooled["flags"] == "ok" and not findings
    assert all(set(audit.COLUMNS) <= set(row) for row in [*rows, pooled])
    assert all(abs(row["frc_beyond_z"]) < 4 and row["cross_correlation_z"] < 5 for row in rows)
    # The signal ends at 0.08 cycles per pixel of 1.5 Å: 18.75 Å.  Its SNR there is 0.49 / area of the disc.
    snr = 0.49 / (np.pi * 0.08**2)
    assert snr / (1 + snr) > 0.5
    assert all(row["resolution_05_A"] == pytest.approx(1.5 / 0.08, rel=0.1) for row in rows)


def test_z_values_are_standard_deviations_and_nothing_clean_is_excluded(tmp_path):
    # 40 clean counted pairs: 0 excluded of 1600 in the calibration that the limits come from.
    beyond, flagged = [], []
    for start in (0, 20):
        rows, pooled, findings = audited(
            write_set(tmp_path, lambda i, start=start: counts(start + i, 11.5, (128, 144)), 20)
        )
        assert not findings and pooled["flags"] == "ok"
        beyond += [row["frc_beyond_z"] for row in rows]
        flagged += [row["flags"] for row in rows]
    assert flagged == ["ok"] * 40
    # A standard deviation from 40 values has a relative error of 1 / sqrt(80) = 0.11.
    assert 0.6 < np.std(beyond) < 1.45 and abs(np.mean(beyond)) < 4 / np.sqrt(40)


def test_unequal_numbers_of_frames_are_not_a_fault(tmp_path):
    def make(i):
        s, x, y = clean(i)
        return 4 * s + 2 * x, 2 * s + np.sqrt(2) * y

    assert flags(audited(write_set(tmp_path, make, n_frames=(4, 2), alignment="joint"))[0]) == [{"ok"}] * N


# ---------------------------------------------------------------------------- shared noise


@pytest.mark.parametrize("shared", [0.1, 0.55])
def test_correlated_poisson_draws_stop(tmp_path, shared):
    # 0.55 is what successive draws of a generator on a GPU showed: averaging two gained 1.1 dB, not 3.0,
    # and 10 log10(2 / (1 + 0.55)) = 1.1.
    records = write_set(tmp_path, lambda i: counts(i, shared=shared), 4)
    rows, pooled, _ = audited(records)
    assert all("correlated-noise" in f for f in flags([*rows, pooled]))
    assert pooled["frc_beyond"] == pytest.approx(shared, abs=0.05)
    with pytest.raises(InputError, match=r"noises are correlated .* make the halves again"):
        verdict(records)


def test_one_repeated_frame_of_8_excludes_the_micrograph_alone(tmp_path):
    records = write_set(tmp_path, lambda i: counts(i, shared=1 / 8 if i == 2 else 0), 6)
    rows, pooled, findings = audited(records)
    assert [("correlated-noise" in f) for f in flags(rows)] == [False, False, True, False, False, False]
    assert rows[2]["frc_beyond"] == pytest.approx(1 / 8, abs=0.05) and rows[2]["action"] == "exclude"
    assert pooled["action"] != "stop" and [f["micrograph"] for f in findings] == ["mic2"]
    verdict(records)  # 1 of 6 is within 20 %
    with pytest.raises(InputError, match=r"mic2: .*1 of 6 .*0 may be .*max_excluded: 0.1"):
        verdict(records, max_excluded=0.1)


def test_halves_without_noise_of_their_own_are_flagged(tmp_path):
    smooth = [field(i, SHAPE, cutoff=0.08) for i in range(2)]
    rows, _, _ = audited(write_set(tmp_path, lambda i: (smooth[i], smooth[i] + 0.1 * field(9 + i, SHAPE, 0.08)), 2))
    assert all("correlated-noise" in f for f in flags(rows))


def test_a_frame_or_a_file_in_two_halves_is_refused_by_name(tmp_path):
    def same_frame(i, record):
        record["a"]["frames"], record["b"]["frames"] = [0, 2, 4], [1, 4 if i == 1 else 3, 5]

    with pytest.raises(InputError, match=r"mic1.json: frame 4 is in both halves"):
        audit.measure(write_set(tmp_path, good, change=same_frame))

    def make(i):
        return good(i)[0], good(1 if i == 2 else i)[1]

    records = write_set(tmp_path, make)
    with pytest.raises(InputError, match="half b of mic2 and half b of mic1 are the same file"):
        audit.measure(records)
    with pytest.raises(InputError, match="mic0 is given twice"):
        audit.measure([records[0], records[0]])


# ---------------------------------------------------------------------------- the detector


def gain_set(folder, electrons, shape, n=4, **record):
    response = np.random.default_rng(5).normal(1, 0.03, shape)
    return write_set(
        folder, lambda i: counts(i, electrons, shape, response), n, lambda i, r: r.update(record), n_frames=(19, 19)
    )


def test_an_uncorrected_gain_of_3_percent_stops_and_its_spread_is_told(tmp_path):
    records = gain_set(tmp_path, 90, (256, 288))
    rows, pooled, _ = audited(records)
    assert all({"fixed-pattern", "uncorrected-gain"} <= f for f in flags([*rows, pooled]))
    assert pooled["gain_spread_percent"] == pytest.approx(3, rel=0.1)
    with pytest.raises(InputError, match=r"mic0: the gain differs .*gain_spread_percent .*at most 2 wanted"):
        verdict(records)
    verdict(records, actions={"uncorrected-gain": "warn", "correlated-noise": "warn"})


def test_a_gain_too_weak_for_one_micrograph_shows_in_all_together(tmp_path):
    # Correlation 0.03² · 30 / (1 + 0.03² · 30) = 0.026; the bins above 1/8 of Nyquist give z = 3.6 in one.
    rows, pooled, findings = audited(gain_set(tmp_path, 30, (160, 176), n=16))
    assert sum("uncorrected-gain" in f for f in flags(rows)) < 4
    assert pooled["flags"].startswith("uncorrected-gain") and pooled["cross_correlation_z"] > 6
    assert findings[-1]["sentence"].startswith("all 16 micrographs together: ")


def test_the_rest_of_a_gain_that_was_applied_only_warns(tmp_path):
    rows, _, _ = audited(gain_set(tmp_path, 90, (256, 288), gain_check={"verdict": "agrees"}))
    assert all("fixed-pattern" in f and "uncorrected-gain" not in f for f in flags(rows))


def test_halves_made_elsewhere_are_warned_of_with_the_reason(tmp_path):
    def make(i):
        a, b = counts(i, 90, (256, 288), response)
        return a, np.roll(b, 3, axis=1)

    response = np.random.default_rng(5).normal(1, 0.03, (256, 288))
    records = write_set(tmp_path, make, change=lambda i, r: r.update(producer="cryon2n 0.1.0 import-halves"))
    rows, _, findings = audited(records)
    assert all(f >= {"fixed-pattern", "halves-shifted"} and "uncorrected-gain" not in f for f in flags(rows))
    assert all("a warning only, as the halves were made by another program" in row["note"] for row in rows)
    assert not findings and rows[0]["action"] == "warn"
    # ... unless the user wants it otherwise.
    _, _, findings = audited(records, actions={"halves-shifted": "exclude"})
    assert {f["reason"] for f in findings} == {"halves-shifted"}


def test_a_pattern_is_found_though_the_valid_regions_differ(tmp_path):
    pattern = white(999, SHAPE, 0.35)

    def make(i):
        return tuple(x + np.roll(pattern, (2 * i, -i), axis=(0, 1)) for x in good(i))

    def change(i, record):
        record["valid"] = [5 * i, SHAPE[0] - 3, 2, SHAPE[1] - 7 * i]

    rows, _, _ = audited(write_set(tmp_path, make, change=change))
    assert all("fixed-pattern" in f for f in flags(rows))
    # Without a pattern, common noise of variance 0.35² in 1.12 has a correlation of 0.11.
    assert all(row["cross_correlation"] == pytest.approx(0.35**2 / (1 + 0.35**2), abs=0.04) for row in rows)


@pytest.mark.parametrize("value", [0, 46, 60])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_stuck_line_is_found_where_it_is(tmp_path, value, axis):
    def make(i):
        halves = [x.copy() for x in counts(i)]
        for x in halves:
            if i == 1:
                x[(slice(None), 57) if axis == 1 else 57] = value
        return halves

    rows, _, findings = audited(write_set(tmp_path, make))
    assert ["stuck-line" in f for f in flags(rows)] == [False, True, False]
    assert rows[1]["line"] == ("column 57" if axis == 1 else "row 57") and rows[1]["line"] in findings[0]["sentence"]


def test_a_dead_block_and_a_carbon_edge(tmp_path):
    shape = (384, 448)

    def make(i):
        a, b = (x.astype(np.float32) for x in counts(i, shape=shape))
        if i == 0:
            b[64:128, 128:224] = 46  # 6144 of 172032 pixels: 3.6 %
        if i == 1:
            a[:, 360:] *= 0.75
            b[:, 360:] *= 0.75
        return a, b

    rows, _, findings = audited(write_set(tmp_path, make))
    assert [f & {"dead-area", "uneven-area"} for f in flags(rows)] == [{"dead-area"}, {"uneven-area"}, set()]
    assert rows[0]["dead_percent"] == pytest.approx(100 * 6144 / 172032, rel=0.01)  # whole blocks of 16
    assert rows[1]["outlying_percent"] == pytest.approx(100 * 88 / 448, rel=0.2)
    assert rows[1]["action"] == "warn" and {f["micrograph"] for f in findings} == {"mic0"}


# ---------------------------------------------------------------------------- pairing


def swapped(i):
    return good(i)[0], good({0: 1, 1: 0}.get(i, i))[1]


def test_swapped_pairs_are_flagged_and_only_they_and_their_partners_are_told(tmp_path):
    records = write_set(tmp_path, swapped)
    rows, _, _ = audited(records)
    assert flags(rows) == [{"no-common-signal"}, {"no-common-signal"}, {"ok"}]
    found = audit.find_partners({p.stem: p for p in records}, ["mic0", "mic1"])
    assert found == {"mic0": "mic1", "mic1": "mic0"}
    with pytest.raises(InputError, match=r"mic0: its halves have no signal in common"):
        verdict(records)


def test_swapped_pairs_under_a_common_ice_gradient_are_flagged(tmp_path):
    ramp = np.linspace(-3, 3, SHAPE[0])[:, None] + np.linspace(-1, 1, SHAPE[1])[None, :]
    rows, _, _ = audited(write_set(tmp_path, lambda i: (good(i)[0] + ramp, good((i + 1) % N)[1] + ramp)))
    assert all("no-common-signal" in f for f in flags(rows)), [row["pairing_z"] for row in rows]


def test_a_half_shifted_by_3_px_is_excluded(tmp_path):
    def make(i):
        a, b = good(i)
        return a, np.roll(b, (0, 3) if i == 1 else (0, 0), axis=(0, 1))

    rows, _, findings = audited(write_set(tmp_path, make))
    assert [f == {"halves-shifted"} for f in flags(rows)] == [False, True, False]
    assert rows[1]["half_shift_px"] == pytest.approx(3, abs=0.3) and findings[0]["micrograph"] == "mic1"


# ---------------------------------------------------------------------------- alike?


@pytest.mark.parametrize("alignment", ["joint", "unknown"])
def test_noise_that_is_not_as_the_record_says_is_flagged(tmp_path, alignment):
    def make(i):
        s, x, y = clean(i)
        return s + x, s + 1.5 * y

    rows, _, _ = audited(write_set(tmp_path, make, n_frames=(8, 8), alignment=alignment))
    assert all("unequal-noise" in f for f in flags(rows))
    assert all(row["noise_ratio"] == pytest.approx(1.5**2, rel=0.1) for row in rows)


def test_noise_of_another_spectrum_is_flagged(tmp_path):
    def make(i):
        s, x, y = clean(i)
        k = np.hypot(np.fft.fftfreq(SHAPE[0])[:, None], np.fft.rfftfreq(SHAPE[1])[None, :])
        return s + x, s + np.fft.irfft2(np.fft.rfft2(y) * (1 + 0.6 * (k > 0.35) * (k < 0.4)), s=SHAPE)

    rows, _, _ = audited(write_set(tmp_path, make, n_frames=(8, 8), alignment="joint"))
    assert all(f == {"unlike-spectra"} for f in flags(rows)), [row["spectrum_ratio"] for row in rows]


def test_one_that_is_unlike_the_others_is_flagged_but_not_among_few(tmp_path):
    def make(i):
        return counts(i, 46 if i != 4 else 30)

    rows, _, findings = audited(write_set(tmp_path, make, 9))
    assert [("odd-brightness" in f) for f in flags(rows)] == [i == 4 for i in range(9)] and not findings
    assert not any("odd-brightness" in f for f in flags(audited(write_set(tmp_path, make, 6))[0]))


def test_crystalline_ice_is_flagged(tmp_path):
    shape, pixel = (256, 256), 1.0
    k = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None, :])

    def make(i):
        ring = np.fft.irfft2(np.fft.rfft2(white(50 + i, shape)) * (abs(k - 1 / 3.75) < 0.006), s=shape)
        s = 0.7 * field(i, shape, cutoff=0.08) + (1.5 * ring if i == 1 else 0)
        return s + white(2 * i, shape), s + white(2 * i + 1, shape)

    rows, _, _ = audited(write_set(tmp_path, make, pixel_size=pixel))
    assert [f == {"crystalline-ice"} for f in flags(rows)] == [False, True, False]


def test_motion_is_the_path_s_length(tmp_path):
    def change(i, record):
        record["trajectory_A"] = [[0, 0], [3, 4], [3, 4], [3, 4 - 97 * i]]

    rows, _, _ = audited(write_set(tmp_path, good, 2, change))
    assert [row["motion_A"] for row in rows] == [5, 102] and flags(rows) == [{"ok"}, {"large-motion"}]


# ---------------------------------------------------------------------------- small functions


def test_crossing_finds_where_a_curve_falls():
    frequencies = fourier.ring_frequencies((200, 200), 2.0)
    one = np.ones_like(frequencies)

    def at(frc, threshold=0.5):
        return audit_checks.crossing(audit_checks.Rings(frequencies, 0.25, one, one, one, frc), threshold)

    assert at(np.clip(1 - frequencies / 0.2, 0, 1)) == pytest.approx(10, rel=0.01)  # 0.5 at 0.1 / Å
    assert at(one) == pytest.approx(4.0) and np.isnan(at(0 * one))


def test_a_ring_of_white_noise_has_power_1_and_bands_keep_it():
    x, y = white(1, (128, 160)), white(2, (128, 160))
    r = audit_checks.rings(*audit_checks.spectra(x, y), x.shape, 2.0)
    assert r.mean(r.aa, slice(1, None)) == pytest.approx(1, abs=0.03) and r.nyquist == 0.25
    s = audit_checks.bands(r)
    assert s["aa"].sum() / s["bins"].sum() == pytest.approx(1, abs=0.03)
    assert s["bins"].sum() == pytest.approx(r.bins[1:].sum()) and s["frequency"][-1] == pytest.approx(0.25 * 0.995)


def test_settings_are_checked():
    for bad, said in (
        ({"max_excluded": 2}, "max_excluded: found 2"),
        ({"actions": {"gain": "warn"}}, "unknown check gain; known are uncorrected-gain"),
        ({"actions": {"stuck-line": "ignore"}}, "found 'ignore', wanted one of stop, exclude, warn, off"),
        ({"limits": {"stuck-line": "high"}}, "stuck-line: found 'high', wanted a number"),
    ):
        with pytest.raises(InputError, match=said):
            AuditSettings(**bad)


# ---------------------------------------------------------------------------- the commands


def run_audit(folder, records, **settings):
    return command(
        "audit-halves", "--halves", *records, "--table", folder / "t.tsv", "--figure", folder / "f.svg",
        "--rings", folder / "r.tsv", "--excluded", folder / "x.tsv", "--settings", json.dumps(settings),
    )  # fmt: skip


def test_the_command_writes_tables_and_figure(tmp_path, capfd):
    records = write_set(tmp_path, lambda i: good(i) if i != 3 else (good(3)[0], np.roll(good(3)[1], 4, axis=0)), 6)
    assert run_audit(tmp_path, records) == 0
    rows = files.read_table(tmp_path / "t.tsv", audit.COLUMNS)
    assert [row["flags"] for row in rows] == ["ok", "ok", "ok", "halves-shifted", "ok", "ok", "ok"]
    assert "<svg" in (tmp_path / "f.svg").read_text()[:2000]
    (row,) = files.read_table(tmp_path / "x.tsv", excluded.COLUMNS)
    assert (row["micrograph"], row["reason"], row["threshold"]) == ("mic3", "halves-shifted", "1")
    assert float(row["value"]) == pytest.approx(4, abs=0.3)
    rings = files.read_table(tmp_path / "r.tsv", audit.RING_COLUMNS)
    assert {r["micrograph"] for r in rings} == {f"mic{i}" for i in range(6)} | {audit_rules.POOLED}
    # Noise variances of both halves are 1 in units of the halves; the record's unit has them at noise_var.
    high = [float(r["noise_a"]) for r in rings if r["micrograph"] == "mic0" and float(r["frequency"]) > 0.2]
    assert np.mean(high) == pytest.approx(pair.load_pair(records[0]).noise_var[0], rel=0.05)
    assert "halves-shifted: 1 of 6 micrographs (mic3)" in capfd.readouterr().err


def test_a_systematic_fault_stops_and_leaves_no_output(tmp_path, capfd):
    records = write_set(tmp_path, swapped, 3)
    assert run_audit(tmp_path, records) == 2
    said = capfd.readouterr().err
    assert "mic0: its halves have no signal in common" in said and "half b of mic1" in said and "2 of 3" in said
    assert not any((tmp_path / name).exists() for name in ("t.tsv", "f.svg", "r.tsv", "x.tsv"))
    assert run_audit(tmp_path, records, actions={"no-common-signal": "off"}) == 0
    assert run_audit(tmp_path, records, max_excluded=0.7) == 0
    assert set(excluded.read_excluded(tmp_path / "x.tsv")) == {"mic0", "mic1"}


def test_one_micrograph_alone_is_audited_too(tmp_path):
    assert run_audit(tmp_path, write_set(tmp_path, good, 1)) == 0
    (row,) = files.read_table(tmp_path / "t.tsv", audit.COLUMNS)
    assert row["flags"] == "ok" and row["cross_correlation_z"] == "nan"


# ---------------------------------------------------------------------------- what is excluded stays out


def exclude(folder, *names):
    rows = [{"micrograph": name, "reason": "stuck-line", "value": 12.0, "threshold": 10.0} for name in names]
    excluded.write_excluded(folder / "excluded.tsv", rows)
    return folder / "excluded.tsv"


def test_excluded_micrographs_are_not_in_the_shards(tmp_path, capfd):
    records = write_set(tmp_path, good)
    words = ["write-shards", "--train", *records, "--out", tmp_path / "s", "--set", "patch=64", "--excluded"]
    assert command(*words, exclude(tmp_path, "mic1")) == 0
    assert files.read_json(tmp_path / "s/manifest.json")["split"]["train"] == ["mic0", "mic2"]
    assert "mic1: left out of the training micrographs (stuck-line" in capfd.readouterr().err
    assert command(*words, exclude(tmp_path, "mic0", "mic1", "mic2")) == 2
    assert "excludes every one of the 3 training micrographs" in capfd.readouterr().err


def test_excluded_micrographs_are_not_scored(tmp_path, capfd):
    records = write_set(tmp_path, good)
    for path in records:
        halves = pair.load_pair(path)
        pair.write_estimates(halves, pair.estimate_all(halves, lambda x: 0.5 * x), tmp_path / "d", "half")
    words = ["score-method", "--method", "half", "--halves", *records, "--denoised", tmp_path / "d"]
    words += ["--scores", tmp_path / "scores.tsv", "--rings", tmp_path / "rings.tsv", "--excluded"]
    assert command(*words, exclude(tmp_path, "mic2")) == 0
    for name in ("scores", "rings"):
        rows = files.read_table(tmp_path / f"{name}.tsv", ["micrograph"])
        assert {row["micrograph"] for row in rows} == {"mic0", "mic1"}
    assert command(*words, exclude(tmp_path, "mic0", "mic1", "mic2")) == 2
    assert command(*words, tmp_path / "none.tsv") == 2
    assert "none.tsv: cannot read the table" in capfd.readouterr().err


def test_the_report_says_what_was_found_and_left_out(tmp_path):
    halves = tmp_path / "halves"
    pattern = white(999, SHAPE, 0.35)
    records = write_set(halves, lambda i: (good(i)[0] + pattern, np.roll(good(i)[1] + pattern, 4 * (i == 3), 0)), 6)
    words = ["audit-halves", "--halves", *records, "--table", halves / "audit.tsv", "--figure", halves / "audit.png"]
    settings = json.dumps({"actions": {"correlated-noise": "warn", "uncorrected-gain": "off"}})
    assert command(*words, "--excluded", halves / "excluded.tsv", "--settings", settings) == 0
    said = report.audit_words(tmp_path)
    assert said["n"] == said["n_flagged"] == 6 and said["excluded"] == [{"name": "mic3", "words": "halves-shifted"}]
    assert [f["name"] for f in said["flagged"]] == [f"mic{i}" for i in range(6)] + ["All micrographs together"]
    assert all("limit 6" in f["words"] and "detector pattern" in f["words"] for f in said["flagged"])
    assert report.audit_words(tmp_path / "none") is None


# ---------------------------------------------------------------------------- pictures


def test_the_picture_shows_what_the_record_knows_and_does_without_the_rest(tmp_path):
    def change(i, record):
        if i:
            record["trajectory_A"] = [[0, 0], [0, 3], [4, 3]]
            record["a"] |= {"n_frames": 2, "dose_e_per_A2": 20.0}

    records = write_set(tmp_path, good, 2, change)
    for path, said in zip(records, ("trajectory not known", "motion: 7.0 Å in 3 frames"), strict=True):
        figure = halves_figure.draw_halves(pair.load_pair(path))
        texts = [t.get_text() for ax in figure.axes for t in (ax.title, *ax.texts)]
        assert said in texts, texts
    assert "half a (2 frames, 20 e⁻/Å²)" in texts
    legend = [t.get_text() for t in figure.axes[4].get_legend().get_texts()]
    # As in test_clean_pairs_are_ok the signal ends at 18.75 Å, ring 17.9; smoothing over 5 rings adds 2 or 3.
    assert legend[0].startswith("0.5: ") and float(legend[0].split()[1]) == pytest.approx(18.75, rel=0.1)
    assert legend[1].startswith("0.143: ") and 18.75 * 17.9 / 23 < float(legend[1].split()[1]) < 18.75
    assert command("plot-halves", "--halves", records[0], "--figure", tmp_path / "p.png") == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_thon_rings_lie_where_the_transfer_function_puts_them():
    # A wave of 8 pixels along x: peaks at ±1/8 cycles per pixel, that is ±16 of 128 bins, on the middle row.
    image = np.cos(2 * np.pi * np.arange(300) / 8)[None, :] * np.ones((260, 1))
    power = halves_figure.tiled_spectrum(image, 128)
    assert power.shape == (128, 128)
    assert sorted(np.argsort(power.ravel())[-2:].tolist()) == [64 * 128 + 64 - 16, 64 * 128 + 64 + 16]
    slanted = np.cos(2 * np.pi * (np.arange(300)[None, :] / 8 + np.arange(260)[:, None] / 16))
    y, x = np.unravel_index(np.argsort(halves_figure.tiled_spectrum(slanted, 128).ravel())[-2:], (128, 128))
    assert set(zip((y - 64).tolist(), (x - 64).tolist(), strict=True)) == {(8, 16), (-8, -16)}
