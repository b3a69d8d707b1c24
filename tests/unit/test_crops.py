"""Crops: functions of (seed, step) alone, each patch equally often, read once for several steps, gathered by index."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryon2n import crops
from cryon2n.symmetry import apply_symmetry, undo_symmetry


def test_a_plan_depends_on_seed_and_step_alone():
    def plan(seed, step):
        p = crops.plan_crops(seed, step, 10, 64, 32, 6)
        return np.stack([p.visit, p.patch, p.y, p.x, p.symmetry])

    first = plan(1, 4)
    for other in (plan(2, 4), plan(1, 5)):
        assert not np.array_equal(first[2:], other[2:])
    np.testing.assert_array_equal(first, plan(1, 4))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 300))
def test_visits_are_a_window_that_moves_on_by_one_end(batch, steps, start):
    seen = [crops.visits_at(t, batch, steps) for t in range(start, start + 3 * steps)]
    for visits in seen:
        assert sorted(visits) == list(range(visits.min(), visits.min() + batch))
    for before, after in pairwise(seen):
        ended = set(before) - set(after)
        # The oldest end, and a place keeps its visit until then.
        assert ended == set(range(before.min(), after.min())) and all((before == after) | np.isin(before, list(ended)))
        assert abs(len(ended) - batch / steps) < 1  # as many in each step as can be: no bursts of reads


@given(st.integers(1, 12), st.integers(1, 9))
def test_a_visit_lasts_as_long_as_it_says(batch, steps):
    visits = np.concatenate([crops.visits_at(t, batch, steps) for t in range(6 * steps)])
    number, count = np.unique(visits, return_counts=True)
    # Those at the first step are cut short, so that not all end together; those at the last are not over.
    whole = (number >= batch) & (number < number.max() + 1 - batch)
    assert whole.any() and (count[whole] == steps).all() and (count <= steps).all()


@pytest.mark.parametrize(("n", "batch", "visit"), [(12, 4, 4), (7, 5, 3), (3, 8, 4), (5, 1, 1)])
def test_each_patch_is_visited_equally_often(n, batch, visit):
    plans = [crops.plan_crops(0, step, n, 64, 32, batch, visit) for step in range(4 * n * visit)]
    patch = {int(v): int(p) for plan in plans for v, p in zip(plan.visit, plan.patch, strict=True)}
    rounds = [[patch[v] for v in range(first, first + n)] for first in range(0, len(patch) // n * n, n)]
    assert len(rounds) >= 3 and all(sorted(r) == list(range(n)) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1  # in a fresh order


def test_as_many_bytes_are_read_as_trained():
    n, patch, crop, batch = 50, 64, 32, 8
    plans = [crops.plan_crops(0, step, n, patch, crop, batch, visit=4) for step in range(100)]
    read = len(set(np.concatenate([p.visit for p in plans]))) * patch**2
    used = 100 * batch * crop**2
    assert used <= read <= used + batch * patch**2  # the visits under way at the end are not used up


@pytest.mark.parametrize(("patch", "crop", "wanted", "steps"), [
    (1024, 512, 0, 16), (1024, 1024, 0, 4), (1024, 800, 0, 7), (1024, 128, 0, crops.LONGEST_VISIT), (1024, 512, 9, 9),
])  # fmt: skip
def test_a_visit_lasts_until_each_pixel_was_used_four_times(patch, crop, wanted, steps):
    assert crops.visit_steps(patch, crop, wanted) == steps


def test_crops_reach_every_place_and_all_symmetries_equally():
    plans = [crops.plan_crops(0, step, 3, 40, 32, 16) for step in range(600)]
    for name, size in (("y", 9), ("x", 9), ("symmetry", 8)):
        count = np.bincount(np.concatenate([getattr(p, name) for p in plans]), minlength=size)
        # 9600 independent draws: 5 standard deviations of a binomial count.
        assert len(count) == size and (abs(count - 9600 / size) < 5 * np.sqrt(9600 / size)).all()
    same = [crops.plan_crops(0, step, 3, 32, 32, 4) for step in range(4)]  # a crop as large as the patch
    assert all((p.y == 0).all() and (p.x == 0).all() for p in same)


def test_the_8_symmetries_are_distinct_and_keep_the_pixels():
    image = torch.arange(9).reshape(3, 3)
    seen = [apply_symmetry(image, k) for k in range(8)]
    assert len({tuple(x.flatten().tolist()) for x in seen}) == 8
    assert all(sorted(x.flatten().tolist()) == list(range(9)) for x in seen)
    assert torch.equal(seen[0], image)
    assert all(torch.equal(undo_symmetry(x, k), image) for k, x in enumerate(seen))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 9), st.integers(0, 5), st.integers(1, 7))
def test_gathering_by_index_is_cutting_and_turning_one_by_one(seed, n, crop, margin, batch):
    patch = crop + margin
    sides = tuple(torch.randn(n, patch, patch, generator=torch.Generator().manual_seed(seed)).half() for _ in "ab")
    plan = crops.plan_crops(seed, 3, n, patch, crop, batch)
    table = torch.from_numpy(crops.crop_table(plan, plan.patch, patch, crop))
    both = crops.gather(sides, table, crop), crops.cut(sides, plan, plan.patch, crop)
    assert all(torch.equal(x, y) for x, y in zip(*both, strict=True))
    for side, found in zip(sides, both[0], strict=True):
        assert found.shape == (batch, 1, crop, crop) and found.dtype == torch.float16
        for k in range(batch):
            y, x = int(plan.y[k]), int(plan.x[k])
            wanted = side[int(plan.patch[k]), y : y + crop, x : x + crop]
            assert torch.equal(found[k, 0], apply_symmetry(wanted, int(plan.symmetry[k])))
