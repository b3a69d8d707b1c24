"""Picking: closed forms of matching, precision and recall on known lists; the picker; the command on known discs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import making
from cryon2n import files, pair, picking, picking_score
from cryon2n.picking import Blobs, Picked

WHOLE = (slice(0, 100), slice(0, 100))


def at(*places):
    return np.array(places, dtype=np.float64).reshape(-1, 2)


# ---------------------------------------------------------------------------- matching


def test_the_best_pick_comes_first_and_a_particle_is_found_once():
    known = at((10, 10), (20, 10))
    # The best pick lies between both and takes the nearer; the second finds that one taken and takes the other.
    places = at((14, 10), (11, 10), (10, 10))
    assert picking.match(places, np.array([3.0, 2.0, 1.0]), known, 10).tolist() == [0, 1, -1]
    # In another order of scores, other pairs.
    assert picking.match(places, np.array([1.0, 2.0, 3.0]), known, 10).tolist() == [-1, 1, 0]
    assert picking.match(places, np.array([3.0, 2.0, 1.0]), known, 3).tolist() == [-1, 0, -1]


def test_matching_without_picks_or_particles():
    none = at()
    assert picking.match(none, np.zeros(0), at((1, 1)), 5).tolist() == []
    assert picking.match(at((1, 1)), np.ones(1), none, 5).tolist() == [-1]


@given(st.integers(0, 2**31), st.integers(0, 12), st.integers(0, 12))
def test_matches_are_one_to_one_within_the_tolerance_and_do_not_depend_on_worse_picks(seed, n, m):
    rng = np.random.default_rng(seed)
    places, known, scores = rng.uniform(0, 30, (n, 2)), rng.uniform(0, 30, (m, 2)), rng.permutation(n).astype(float)
    found = picking.match(places, scores, known, 6)
    hit = found >= 0
    assert len(set(found[hit])) == hit.sum()
    assert (np.hypot(*(places[hit] - known[found[hit]]).T) <= 6).all()
    best = scores >= n // 2
    assert picking.match(places[best], scores[best], known, 6).tolist() == found[best].tolist()
    # No pick is left without a match that has a free particle within reach.
    free = np.setdiff1d(np.arange(m), found)
    for place in places[~hit]:
        assert not len(free) or np.hypot(*(known[free] - place).T).min() > 6


def test_circles_half_a_radius_apart_overlap_by_half_of_their_union():
    # Two unit circles at distance d: overlap 2 acos(d/2) - d/2 sqrt(4 - d²).
    d = picking.TOLERANCE
    overlap = 2 * np.arccos(d / 2) - d / 2 * np.sqrt(4 - d * d)
    assert 0.5 < overlap / (2 * np.pi - overlap) < 0.53


def test_what_reaches_over_the_border_is_neither_asked_for_nor_held_against_a_pick():
    known = at((50, 50), (3, 50))  # the second's disc of radius 10 is cut by the border
    places = at((51, 50), (3, 51), (4, 90), (80, 80))
    picked = picking.judge(places, np.array([4.0, 3.0, 2.0, 1.0]), known, 10, WHOLE)
    assert picked.particles == 1 and picked.scores.tolist() == [4.0, 1.0] and picked.hits.tolist() == [True, False]


# ---------------------------------------------------------------------------- precision and recall


def test_precision_recall_and_average_precision_by_hand():
    hits = np.array([True, False, True, True, False])
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    precision, recall = picking.precision_recall(scores, hits, np.ones(5), np.array(4))
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert recall == pytest.approx([1 / 4, 1 / 4, 2 / 4, 3 / 4, 3 / 4])
    # One particle is never found: its quarter counts nothing.
    assert picking.average_precision(precision, recall) == pytest.approx((1 + 2 / 3 + 3 / 4) / 4)
    f1, where = picking.best_f1(precision, recall)
    assert f1 == pytest.approx(3 / 4) and where == 3


def test_picks_of_one_score_stand_or_fall_together():
    scores = np.array([2.0, 1.0, 1.0])
    for hits in ([True, True, False], [True, False, True]):
        precision, recall = picking.precision_recall(scores, np.array(hits), np.ones(3), np.array(2))
        assert precision.tolist() == pytest.approx([1, 2 / 3, 2 / 3]) and recall.tolist() == [0.5, 1, 1]


def test_perfect_random_and_absent_picks():
    n = 4000
    hits = np.random.default_rng(0).random(n) < 0.3
    found = [Picked(np.arange(n, 0, -1.0), hits, int(hits.sum()))]
    values = picking_score.measures(found, np.ones(1))
    assert values["average_precision"] == pytest.approx(0.3, abs=0.03)  # by chance: the share of hits
    order = np.argsort(~hits, kind="stable")
    values = picking_score.measures([Picked(found[0].scores, hits[order], int(hits.sum()))], np.ones(1))
    assert values["average_precision"] == 1 and values["f1"] == 1
    nothing = [Picked(np.zeros(0), np.zeros(0, bool), 7)]
    values = picking_score.measures(nothing, np.ones(1))
    assert values["average_precision"] == 0 and values["recall"] == 0 and np.isnan(values["precision"])


def test_a_micrograph_drawn_twice_counts_as_two_like_it():
    rng = np.random.default_rng(3)
    one, two = (Picked(np.sort(rng.random(30))[::-1], rng.random(30) < share, 20) for share in (0.2, 0.6))
    drawn = picking_score.measures([one, two], np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]]))
    for row, found in enumerate(([one, one, two], [two], [one, two])):
        alone = picking_score.measures(found, np.ones(len(found)))
        for metric in picking_score.METRICS:
            assert drawn[metric][row] == pytest.approx(float(alone[metric]))


# ---------------------------------------------------------------------------- the picker


@pytest.mark.parametrize("bright", [False, True])
def test_the_response_to_a_disc_is_greatest_at_its_middle_and_size(bright):
    y, x = np.mgrid[:120, :140]
    disc = (1 if bright else -1) * (np.hypot(y - 50, x - 60) <= 12.0).astype(np.float32)
    heights = {}
    for size in (6, 9, 12, 16, 22):
        response = picking.blob_response(disc + 7, Blobs(size, bright, 12))
        heights[size] = response[50, 60]
        assert size < 12 or response.max() == response[50, 60]  # a smaller one sees the rim
    assert max(heights, key=heights.get) == 12
    # At the middle of a disc of radius r: (r²/σ²) exp(-r²/2σ²), with σ² = r²/2 that is 2/e.
    assert heights[12] == pytest.approx(2 / np.e, rel=0.03)
    chosen = picking.choose_blobs([disc], [at((50, 60))], 12 / 0.85)
    assert chosen.bright == bright and chosen.size == pytest.approx(12)


def test_a_level_or_a_slope_is_no_blob():
    y, x = np.mgrid[:64, :64]
    inner = picking.blob_response((3 + 0.1 * y - 0.2 * x).astype(np.float32), Blobs(5, False, 5))[20:44, 20:44]
    assert np.abs(inner).max() < 1e-3


def test_peaks_keep_their_distance():
    response = np.random.default_rng(0).random((80, 90)).astype(np.float32)
    places, scores = picking.find_peaks(response, 7, 0.5)
    assert (np.diff(scores) <= 0).all() and (scores > 0.5).all() and len(scores) > 10
    apart = np.abs(places[:, None] - places[None]).max(axis=-1)
    assert apart[~np.eye(len(places), dtype=bool)].min() > 7


# ---------------------------------------------------------------------------- command


@pytest.fixture
def marked(tmp_path):
    """Two micrographs of dark discs in noise with marks, and a method that sees nothing but the discs."""
    lines, records = ["micrograph,x_px,y_px,radius_px"], []
    y, x = np.mgrid[:160, :180]
    for i in range(2):
        rng = np.random.default_rng(i)
        centres = 20 + 40 * np.array([(r, c) for r in range(4) for c in range(4)]) + rng.integers(-4, 5, (16, 2))
        signal = -sum((np.hypot(y - cy, x - cx) <= 8).astype(float) for cy, cx in centres)
        name = f"mic{i}"
        records.append(
            making.write_pair(
                tmp_path / "h", name, *(signal + making.white(9 * i + k, signal.shape, 4) for k in (0, 1))
            )
        )
        lines += [f"{name},{cx},{cy},8" for cy, cx in centres]
        one = pair.load_pair(records[-1])
        pair.write_estimates(one, pair.estimate_all(one, lambda image: image), tmp_path / "d/raw", "raw")
        clean = signal.astype(np.float32)
        pair.write_estimates(
            one, pair.estimate_all(one, lambda image, clean=clean: clean), tmp_path / "d/oracle", "oracle"
        )
    (tmp_path / "marks.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, records


def arguments(folder, records, *more):
    return [
        "score-picking", "--halves", *records, "--denoised", folder / "d", "--methods", "raw", "oracle",
        "--labels", folder / "marks.csv", "--reference", "raw", "--bootstrap", 200,
        "--table", folder / "t.tsv", "--curves", folder / "c.tsv", *more,
    ]  # fmt: skip


def test_the_command_finds_what_is_there(marked):
    folder, records = marked
    assert making.command(*arguments(folder, records)) == 0
    rows = {(r["method"], r["metric"]): r for r in files.read_table(folder / "t.tsv", picking_score.COLUMNS)}
    assert float(rows["oracle", "average_precision"]["value"]) == 1
    raw = float(rows["raw", "average_precision"]["value"])
    assert 0.1 < raw < 0.95
    assert float(rows["oracle", "average_precision"]["delta"]) == pytest.approx(1 - raw, abs=1e-5)
    curves = files.read_table(folder / "c.tsv", picking_score.CURVE_COLUMNS)
    last = [r for r in curves if r["method"] == "oracle"][-1]
    assert float(last["recall"]) == 1 and float(last["precision"]) == 1


def test_one_half_is_picked_alone_where_that_is_asked(marked):
    folder, records = marked
    found = {}
    for wanted in ("mean", "a", "b"):
        assert making.command(*arguments(folder, records, "--input", wanted)) == 0
        rows = {(r["method"], r["metric"]): r for r in files.read_table(folder / "t.tsv", picking_score.COLUMNS)}
        found[wanted] = float(rows["raw", "average_precision"]["value"])
    # Half the exposure: less is found, and in each half something else.
    assert max(found["a"], found["b"]) < found["mean"] and found["a"] != found["b"]


def test_bad_input_is_named_and_writes_nothing(marked, capfd):
    folder, records = marked
    (folder / "marks.csv").write_text("micrograph,x_px,y_px,radius_px\nother,5,5,8\n")
    assert making.command(*arguments(folder, records)) == 2
    assert "knows no particle in mic0, mic1" in capfd.readouterr().err
    (folder / "marks.csv").write_text("micrograph,x_px,y_px,radius_px\nmic0,5,5,0\n")
    assert making.command(*arguments(folder, records)) == 2
    assert "holds no particle with a radius" in capfd.readouterr().err
    assert making.command(*arguments(folder, records, "--methods", "raw", "absent")) == 2
    assert not (folder / "t.tsv").exists() and not (folder / "c.tsv").exists()
