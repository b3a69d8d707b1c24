"""Do further pairings of the frames' groups help training?  Signal-to-error with and without, at equal steps.

Simulates micrographs of the demo's kind (16 frames of 896 x 960 px in 4 groups, no motion), writes shards of the halves
alone (``shards: pairings: 1``) and of all three pairings, and trains the demo's network on each, with several seeds
and on few and more micrographs.

    bash envs/run.sh python benchmarks/group_pairings.py
    bash envs/run.sh python benchmarks/group_pairings.py --micrographs 1 --steps 800 2400
        --out benchmarks/group-pairings/one-micrograph.tsv

* ``dB``: signal-to-error of mean(f(a), f(b)) on held-out micrographs against the truth, no fit; mean over them;
* ``delta_umse``: mean((f(a) - b)²) - mean((a - b)²) there, both directions, normalised; lower is better.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch

from cryon2n import device, files, log, metrics, pair, phantom, train
from cryon2n import phantom_molecule as molecules
from cryon2n.denoise_tiles import denoise_image
from cryon2n.halves import normalise_equal, normalise_groups, write_halves
from cryon2n.phantom_stage import PhantomSettings, draw_movie
from cryon2n.shards_tiles import ShardSettings
from cryon2n.shards_write import write_shards

ROOT = Path(__file__).resolve().parents[1]
GROUPS, COUNTS = 4, 300  # groups of frames; first key of the random stream of the counts
COLUMNS = ["micrographs", "pairings", "seed", "steps", "dB", "delta_umse", "final_loss"]
PIXEL_SIZE, SHAPE, FRAMES = 1.315, (896, 960), 16


def micrograph(folder: Path, index: int) -> tuple[Path, np.ndarray]:
    """Simulate one micrograph and write its halves and groups.

    Returns
    -------
    record : Path
    truth : ndarray, shape (h, w)
        In the halves' normalised units.
    """
    settings = PhantomSettings(seed=10025, shape=SHAPE, pixel_size_A=PIXEL_SIZE, n_frames=FRAMES, drift_A=0.0)
    frame = phantom.expected_frame(draw_movie(settings, index, molecules.barrel()).scene, 0)
    each, half = FRAMES // GROUPS, FRAMES // 2
    groups = np.stack(
        [
            molecules.stream(settings.seed, COUNTS, index, k).poisson(frame * each).astype(np.float32)
            for k in range(GROUPS)
        ]
    )
    a, b = (groups[k::2].sum(0) for k in range(2))
    valid = [0, SHAPE[0], 0, SHAPE[1]]
    sides = normalise_equal(a, b, valid, (half, half))
    normal = normalise_groups(groups, valid, [each] * GROUPS, sides["a"]["scale"] / half)

    def content(first: int, step: int, n: int) -> dict:
        return {"frames": list(range(first, FRAMES, step)), "n_frames": n, "dose_e_per_A2": None}

    for k, side in enumerate("ab"):
        sides[side] = {**content(k, 2, half), **sides[side]}
    about = {
        "shape": list(SHAPE), "pixel_size_A": PIXEL_SIZE, "valid": valid, **sides, "alignment": "none",
        "dose_weighted": None, "trajectory_A": None, "bin": 1, "defects": None,
        "groups": [{**content(k, GROUPS, each), **side} for k, side in enumerate(normal)],
    }  # fmt: skip
    prefix = folder / f"mic{index:02d}"
    write_halves(prefix, a, b, about, {}, "group_pairings", groups)
    offset = np.mean([sides[side]["offset"] for side in "ab"])
    return prefix.with_suffix(".json"), (frame * half - offset) / sides["a"]["scale"]


def quality(net: torch.nn.Module, tested: list[tuple[Path, np.ndarray]]) -> float:
    """Return signal-to-error of the mean of both halves' estimates, dB, mean over micrographs."""
    found = []
    for record, truth in tested:
        halves = pair.load_pair(record)
        fa, fb = (denoise_image(net, x, precision="float32") for x in (halves.a, halves.b))
        found.append(metrics.signal_to_error_db(halves.mean(fa, fb), truth))
    return float(np.mean(found))


def measure(args: argparse.Namespace, folder: Path) -> list[dict]:
    """Train with each number of pairings and of micrographs, and each seed; returns the rows."""
    where = device.choose("cpu", args.threads)
    most = max(args.micrographs)
    made = [micrograph(folder, k) for k in range(most + args.test)]
    tested, rows = made[most:], []
    for count, pairings in itertools.product(args.micrographs, args.pairings):
        shards = folder / f"shards-{count}-{pairings}"
        train_on = [record for record, _ in made[:count]]
        write_shards(train_on, {"val": [], "test": []}, shards, ShardSettings(patch=768, pairings=pairings))
    for seed, count, steps, pairings in itertools.product(
        range(args.seeds), args.micrographs, args.steps, args.pairings
    ):
        settings = train.TrainSettings(
            steps=steps, batch=4, crop=256, seed=seed, compile="off", loader="ram",
            validate_every=steps, checkpoint_every=steps, net={"channels": [48, 64, 96]},
        )  # fmt: skip
        manifest = folder / f"shards-{count}-{pairings}" / "manifest.json"
        net, found, _ = train.train(manifest, [r for r, _ in tested], settings, where, folder / "no" / "last.ckpt")
        row = {
            "micrographs": count, "pairings": pairings, "seed": seed, "steps": steps,
            "dB": round(quality(net, tested), 4), "delta_umse": found["val_delta_umse"],
            "final_loss": found["final_loss"],
        }  # fmt: skip
        rows.append(row)
        log.say(f"{row}, {found['seconds']:.0f} s")
        files.write_table(args.out, rows, COLUMNS)
    return rows


def main() -> None:
    """Measure, write the table, print means and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--micrographs", type=int, nargs="+", default=[2, 6], help="to train on")
    parser.add_argument("--test", type=int, default=3, help="micrographs to score on")
    parser.add_argument("--pairings", type=int, nargs="+", default=[1, 3], help="the first is compared with")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[800])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "group-pairings" / "runs.tsv")
    args = parser.parse_args()
    log.set_stage("group-pairings")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    for count, steps, n, key in itertools.product(args.micrographs, args.steps, args.pairings, ("dB", "delta_umse")):
        of_all = [r for r in rows if (r["micrographs"], r["steps"]) == (count, steps)]
        own, base = (np.array([r[key] for r in of_all if r["pairings"] == k]) for k in (n, args.pairings[0]))
        less = own - base
        error = less.std(ddof=1) / np.sqrt(len(less)) if len(less) > 1 else np.nan
        what = f"{count} micrographs, {steps} steps, {n} pairings"
        print(f"{what}: {key} {own.mean():.5f}, {less.mean():+.5f} ± {error:.5f}")


if __name__ == "__main__":
    main()
