"""The audit: quiet on clean halves, and each planted fault flagged by its name or refused."""

import numpy as np
import pytest

from cryon2n import audit, files, fourier, pair
from making import field, white, write_pair

SHAPE = (192, 224)
N = 3


def clean(i, amplitude=0.7):
    """Signal (sums of frames of one micrograph share it) and two independent noises of variance 1."""
    return amplitude * field(i, SHAPE, cutoff=0.08), white(100 + 2 * i, SHAPE), white(101 + 2 * i, SHAPE)


def rows_of(tmp_path, make, **kwargs):
    records = [write_pair(tmp_path, f"mic{i}", *make(i), **kwargs) for i in range(N)]
    return audit.audit(records)


def flags(rows):
    return [set(row["flags"].split(",")) for row in rows]


def good(i):
    s, x, y = clean(i)
    return s + x, s + y


def test_clean_pairs_are_ok(tmp_path):
    rows, curves = rows_of(tmp_path, good)
    assert [row["flags"] for row in rows] == ["ok"] * N
    assert all(set(row) == set(audit.COLUMNS) for row in rows)
    assert all(abs(row["frc_beyond_z"]) < 4 and abs(row["cross_correlation_z"]) < 4 for row in rows)
    # The signal ends at 0.08 cycles per pixel of 1.5 Å: 18.75 Å.  Its SNR there is 0.49 · (0.5 / area of the disc).
    snr = 0.49 / (np.pi * 0.08**2)
    assert snr / (1 + snr) > 0.5
    assert all(row["resolution_05_A"] == pytest.approx(1.5 / 0.08, rel=0.15) for row in rows)
    assert len(curves) == N and curves[0][0].shape == curves[0][1].shape


def test_few_clean_micrographs_are_flagged_by_chance(tmp_path):
    # 30 pairs, 3 tests each at 5 to 6 sigma: none expected.
    worst = 0.0
    for i in range(30):
        a, b = good(i)
        record = write_pair(tmp_path, "m", a, b)
        row, _ = audit.audit_pair(pair.load_pair(record), None)
        assert row["flags"] == "ok", row
        worst = max(worst, abs(row["frc_beyond_z"]))
    assert 1 < worst < 4.5  # z is a z: the largest of 30 is about 2.1


def test_correlated_noise_between_the_halves_is_flagged(tmp_path):
    def make(i):
        s, x, y = clean(i)
        common = white(500 + i, SHAPE, 0.35)  # 0.12 of variance 1.12
        return s + x + common, s + y + common

    assert all("correlated-noise" in f for f in flags(rows_of(tmp_path, make)[0]))


def test_one_repeated_frame_of_16_is_flagged(tmp_path):
    def make(i):
        s, _, _ = clean(i)
        frames = [white(1000 * i + k, SHAPE, 0.5) for k in range(16)]
        a, b = 8 * s + sum(frames[0::2]), 8 * s + sum(frames[1::2][:-1]) + frames[0]
        return a, b

    rows, _ = rows_of(tmp_path, make)
    assert all("correlated-noise" in f for f in flags(rows))
    assert all(row["frc_beyond"] == pytest.approx(1 / 8, abs=0.05) for row in rows)


def test_a_fixed_pattern_of_an_uncorrected_gain_is_flagged(tmp_path):
    pattern = white(999, SHAPE, 0.3)
    assert all("fixed-pattern" in f for f in flags(rows_of(tmp_path, lambda i: tuple(x + pattern for x in good(i)))[0]))


def test_swapped_pairs_are_flagged_and_only_they(tmp_path):
    def make(i):
        return good(0)[0] if i == 1 else good(1)[0] if i == 0 else good(i)[0], good(i)[1]

    assert flags(rows_of(tmp_path, make)[0]) == [{"no-common-signal"}, {"no-common-signal"}, {"ok"}]


def test_swapped_pairs_under_a_common_ice_gradient_are_flagged(tmp_path):
    ramp = np.linspace(-3, 3, SHAPE[0])[:, None] + np.linspace(-1, 1, SHAPE[1])[None, :]
    rows, _ = rows_of(tmp_path, lambda i: (good(i)[0] + ramp, good((i + 1) % N)[1] + ramp))
    assert all("no-common-signal" in f for f in flags(rows)), [row["common_signal_z"] for row in rows]


def test_a_half_shifted_by_3_px_is_flagged(tmp_path):
    def make(i):
        a, b = good(i)
        return a, np.roll(b, (0, 3) if i == 1 else (0, 0), axis=(0, 1))

    rows, _ = rows_of(tmp_path, make)
    assert [f == {"halves-shifted"} for f in flags(rows)] == [False, True, False]
    assert rows[1]["half_shift_px"] == pytest.approx(3, abs=1)


@pytest.mark.parametrize("alignment", ["joint", "unknown"])
def test_noise_that_is_not_as_the_record_says_is_flagged(tmp_path, alignment):
    def make(i):
        s, x, y = clean(i)
        return s + x, s + 1.5 * y

    rows, _ = rows_of(tmp_path, make, n_frames=(8, 8), alignment=alignment)
    assert all(f == {"unequal-noise"} for f in flags(rows))


def test_unequal_numbers_of_frames_are_not_a_fault(tmp_path):
    def make(i):
        s, x, y = clean(i)
        return 4 * s + 2 * x, 2 * s + np.sqrt(2) * y

    assert flags(rows_of(tmp_path, make, n_frames=(4, 2), alignment="joint")[0]) == [{"ok"}] * N


def test_correlated_successive_random_fields_are_flagged(tmp_path):
    # A generator whose second field repeats a part of the first, as some on a GPU were seen to do.
    def make(i):
        s, x, y = clean(i)
        return s + x, s + np.sqrt(0.75) * y + 0.5 * x

    assert all("correlated-noise" in f for f in flags(rows_of(tmp_path, make)[0]))


def test_crossing_finds_where_a_curve_falls():
    frequencies = fourier.ring_frequencies((200, 200), 2.0)
    curve = np.clip(1 - frequencies / 0.2, 0, 1)  # 0.5 at 0.1 / Å
    assert audit.crossing(curve, frequencies, 0.5) == pytest.approx(10, rel=0.05)
    assert audit.crossing(np.ones_like(curve), frequencies, 0.5) == pytest.approx(4.0)
    assert np.isnan(audit.crossing(np.zeros_like(curve), frequencies, 0.5))


def test_the_command_writes_table_and_figure(tmp_path, cryon2n):
    records = [write_pair(tmp_path, f"mic{i}", *good(i)) for i in range(2)]
    cryon2n("audit-halves", "--halves", *records, "--table", tmp_path / "t.tsv", "--figure", tmp_path / "f.svg")
    rows = files.read_table(tmp_path / "t.tsv", audit.COLUMNS)
    assert [row["flags"] for row in rows] == ["ok", "ok"] and "<svg" in (tmp_path / "f.svg").read_text()[:2000]
