"""Does it harm the result that a patch serves several steps in a row when it is read?  ΔuMSE by length of a visit.

Trains the demo's network on simulated micrographs of the demo's kind (16 frames of 896 x 960 px, patches of 768,
crops of 256), with several seeds for each length.  ``python benchmarks/loader_visits.py --out DIR``
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from network_ablation import data  # noqa: E402

from cryon2n import files, train  # noqa: E402
from cryon2n.halves import normalise_equal, write_halves  # noqa: E402
from cryon2n.phantom_stage import PhantomSettings  # noqa: E402
from cryon2n.shards_tiles import ShardSettings  # noqa: E402
from cryon2n.shards_write import write_shards  # noqa: E402

TRAIN, HELD_OUT = 15, 3
COLUMNS = ["visit", "seed", "val_delta_umse", "final_loss"]


def micrograph(folder: Path, index: int) -> Path:
    """Simulate one micrograph and write its halves; returns the record."""
    settings = PhantomSettings(seed=10025, shape=(896, 960), pixel_size_A=1.315, n_frames=16, drift_A=0.0)
    record = folder / f"mic{index:02d}.json"
    if not record.exists():
        a, b, _ = (x.astype(np.float32) for x in data.one(settings, index))
        valid = [0, a.shape[0], 0, a.shape[1]]
        sides = normalise_equal(a, b, valid, (1, 1))
        for side in "ab":
            sides[side] = {"frames": None, "n_frames": 1, "dose_e_per_A2": None, **sides[side]}
        said = {
            "shape": list(a.shape), "pixel_size_A": 1.315, "valid": valid, **sides, "alignment": "none",
            "dose_weighted": None, "trajectory_A": None, "bin": 1, "defects": None,
        }  # fmt: skip
        write_halves(record.with_suffix(""), a, b, said, {}, "loader_visits")
    return record


def main() -> None:
    """Train with each length of a visit and each seed, write the table, print the paired differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--visits", type=int, nargs="+", default=[1, 9, 16, 60], help="the first is compared with")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    records = [micrograph(args.out / "halves", k) for k in range(TRAIN + HELD_OUT)]
    write_shards(records[:TRAIN], {"val": [], "test": []}, args.out / "shards", ShardSettings(patch=768))
    rows = []
    for seed in range(args.seeds):
        for visit in args.visits:
            settings = train.TrainSettings(
                steps=args.steps, batch=4, crop=256, seed=seed, visit=visit, compile="off", loader="ram",
                validate_every=args.steps, checkpoint_every=args.steps, net={"channels": [48, 64, 96]},
            )  # fmt: skip
            checkpoint = args.out / "checkpoint"
            where = torch.device("cpu")
            _, found, _ = train.train(args.out / "shards/manifest.json", records[TRAIN:], settings, where, checkpoint)
            rows.append({"visit": visit, "seed": seed, **{c: found[c] for c in COLUMNS[2:]}})
            files.write_table(args.out / "visits.tsv", rows, COLUMNS)
    value = {(r["visit"], r["seed"]): r["val_delta_umse"] for r in rows}
    for visit in args.visits:
        own = np.array([value[visit, s] for s in range(args.seeds)])
        less = own - [value[args.visits[0], s] for s in range(args.seeds)]
        print(
            f"visits of {visit}: {own.mean():.5f} ± {own.std(ddof=1):.5f}; less those of {args.visits[0]}: "
            f"{less.mean():+.5f} ± {less.std(ddof=1) / np.sqrt(len(less)):.5f}"
        )


if __name__ == "__main__":
    main()
