"""Make before-after.png of the README from the demo's results: python docs/images/before_after.py."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cryon2n import compare, figures, pair

RESULTS, TRUTH = Path("results/demo"), Path("data/demo/truth")
METHODS = {"best Gaussian": "gaussian", "Topaz (pretrained)": "topaz-unet", "cryon2n": "cryon2n"}
CROP = (slice(330, 730), slice(330, 730))

made = {path.name.removesuffix("_full.mrc") for path in (RESULTS / "denoised" / "cryon2n").glob("*_full.mrc")}
record = min(made & {path.stem for path in (RESULTS / "halves").glob("*.json")})  # probes are denoised, too
halves = pair.load_pair(RESULTS / "halves" / f"{record}.json")
truth = compare.load_truth(TRUTH, halves).image[CROP]
low, high = figures.grey_limits(truth)
margin = 0.2 * (high - low)
panels = {"raw": halves.full[CROP]}
panels |= {n: pair.read_estimates(halves, RESULTS / "denoised" / m)["mean"][CROP] for n, m in METHODS.items()}
panels["truth"] = truth

figure = Figure(figsize=(12.5, 2.75))
for ax, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
    # All but the raw image on the truth's grey range.
    vmin, vmax = np.percentile(image, (0.5, 99.5)) if name == "raw" else (low - margin, high + margin)
    ax.imshow(image, cmap="gray", vmin=vmin, vmax=vmax, interpolation="nearest")
    ax.set_title(name, fontweight="bold" if name == "cryon2n" else None)
    ax.axis("off")
figure.subplots_adjust(0.002, 0, 0.998, 0.9, 0.015)
figure.savefig("docs/images/before-after.png", dpi=110)
