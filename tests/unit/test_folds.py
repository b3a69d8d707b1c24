"""The split by micrograph, once and by folds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryon2n.errors import InputError
from cryon2n.folds import fold_names, folds_there, split_folds, split_names

NAMES = tuple(f"mic_{i:02d}" for i in range(12))


@given(n=st.integers(5, 40), k=st.integers(2, 9), n_val=st.integers(1, 3), seed=st.integers(0, 99))
def test_each_micrograph_is_tested_by_one_fold_and_never_in_two_parts(n, k, n_val, seed):
    names = tuple(f"m{i}" for i in range(n))
    wanted = {"folds": k, "val": n_val, "test": 4, "seed": seed}
    if k > n or n - -(-n // k) - n_val < 1:
        with pytest.raises(InputError):
            split_folds(names, wanted)
        return
    folds = split_folds(names, wanted)
    assert sorted(name for split in folds.values() for name in split["test"]) == sorted(names)
    for split in folds.values():
        assert sorted(split["train"] + split["val"] + split["test"]) == sorted(names)
        assert len(split["val"]) == n_val
        assert n // k <= len(split["test"]) <= -(-n // k)


def test_validation_micrographs_differ_from_fold_to_fold():
    folds = split_folds(NAMES, {"folds": 6, "val": 2, "test": 4, "seed": 0})
    assert sorted(name for split in folds.values() for name in split["val"]) == sorted(NAMES)
    assert list(folds) == [f"fold-{i}/" for i in range(1, 7)]


def test_folds_do_not_take_named_micrographs():
    for part in ("val", "test"):
        with pytest.raises(InputError, match="folds draws them"):
            split_folds(NAMES, {"folds": 3, "val": 2, "test": 4, "seed": 0, part: ["mic_01"]})
    with pytest.raises(InputError, match="13 folds of 12"):
        split_folds(NAMES, {"folds": 13, "val": 1, "test": 4, "seed": 0})


def test_a_micrograph_more_moves_none_of_a_single_split_to_training():
    before = split_names(NAMES, {"val": 2, "test": 3, "seed": 0})
    after = split_names((*NAMES, "mic_99"), {"val": 2, "test": 3, "seed": 0})
    assert len(set(before["test"]) - set(after["test"])) <= 1


def test_names_of_folds(tmp_path):
    assert fold_names({}) == fold_names({"split": {"folds": None}}) == [""]
    assert fold_names({"split": {"folds": 2}}) == ["fold-1/", "fold-2/"]
    (tmp_path / "models/cryon2n").mkdir(parents=True)
    assert folds_there(tmp_path) == [""]
    (tmp_path / "models/fold-1/cryon2n").mkdir(parents=True)
    assert folds_there(tmp_path) == ["fold-1/"]
