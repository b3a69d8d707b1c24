"""Which micrographs train, which validate and which are tested, once or by folds.

A fold has its own shards and models, ``shards/fold-1/`` and ``models/fold-1/``; without cross-validation there is one
fold whose name is empty.  Denoised micrographs and tables know no folds: every micrograph is the test of one.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryon2n.errors import InputError

SPLITS = ("train", "val", "test")


def split_names(names: tuple[str, ...], wanted: dict[str, Any]) -> dict[str, list[str]]:
    """Split micrographs into train, val and test, by name and never by patch.

    Parameters
    ----------
    names : tuple of str
    wanted : dict
        ``val`` and ``test``: a number, or a list of names; ``seed``.  Numbers are drawn by a hash of
        seed and name, so that a micrograph more does not reshuffle all others.

    Returns
    -------
    dict
        ``train``, ``val``, ``test``: names in their given order.
    """
    order = _drawn(names, wanted["seed"])
    named = [set(wanted[s]) for s in ("val", "test") if isinstance(wanted[s], list)]
    unknown = sorted(set().union(*named) - set(names))
    if unknown:
        raise InputError(f"config: split: unknown micrograph {', '.join(unknown)}; wanted names of the sheet")
    if len(named) == 2 and named[0] & named[1]:
        raise InputError(f"config: split: {', '.join(sorted(named[0] & named[1]))} stands in val and in test")
    free = [name for name in order if not any(name in group for group in named)]
    chosen: dict[str, set[str]] = {}
    for which in ("test", "val"):
        if isinstance(wanted[which], list):
            chosen[which] = set(wanted[which])
        else:
            chosen[which], free = set(free[: wanted[which]]), free[wanted[which] :]
    out = {which: [name for name in names if name in chosen[which]] for which in ("val", "test")}
    out["train"] = [name for name in names if name not in chosen["val"] | chosen["test"]]
    short = [which for which in SPLITS if not out[which]]
    if short:
        raise InputError(
            f"config: {len(names)} micrographs leave none for {' and '.join(short)}; "
            "raise source: n_micrographs or lower split: val and test"
        )
    return out


def split_folds(names: tuple[str, ...], wanted: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Split micrographs into folds, each micrograph the test of exactly one.

    Parameters
    ----------
    names : tuple of str
    wanted : dict
        ``folds``: how many; ``val``: how many micrographs of the others each holds back; ``seed``.

    Returns
    -------
    dict
        By fold, what `split_names` returns.
    """
    k, n_val = wanted["folds"], wanted["val"]
    if isinstance(n_val, list) or isinstance(wanted["test"], list):
        raise InputError(
            "config: split: val or test names micrographs, and folds draws them: every one is the test of one fold; "
            "give val as a number and leave test out, or leave folds out"
        )
    if k > len(names):
        raise InputError(f"config: split: {k} folds of {len(names)} micrographs; wanted at most as many as micrographs")
    order = _drawn(names, wanted["seed"])
    folds = {}
    for i, fold in enumerate(names_of_folds(k)):
        test = order[i::k]
        others = [name for j in range(1, k) for name in order[(i + j) % k :: k]]
        held = {"val": others[:n_val], "test": test, "seed": wanted["seed"]}
        folds[fold] = split_names(names, held)
    return folds


def names_of_folds(k: int | None) -> list[str]:
    """Return the folders of `k` folds; of no cross-validation, the one empty name."""
    return [f"fold-{i + 1}/" for i in range(k)] if k else [""]


def fold_names(config: Mapping[str, Any]) -> list[str]:
    """Return the folders of a config's folds."""
    return names_of_folds((config.get("split") or {}).get("folds"))


def folds_there(results: Path) -> list[str]:
    """Return the folders of the folds whose models lie in ``results/{dataset}``."""
    return names_of_folds(len(list(results.glob("models/fold-*/"))))


def _drawn(names: tuple[str, ...], seed: int) -> list[str]:
    """Return names in the order of a hash, so that one more does not reshuffle all others."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())
