"""Make one-frame.png from the results of tests/workflow/apoferritin.yaml: python docs/images/one_frame.py MARKS.csv."""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cryon2n import pair

RESULTS, MICROGRAPH = Path("results/apoferritin"), "May08_04.33.57"
METHODS = {"Wiener filter": "wiener", "Topaz (pretrained)": "topaz-unet", "cryon2n": "cryon2n"}
TOP, LEFT, SIDE = 500, 400, 480

halves = pair.load_pair(RESULTS / "halves" / f"{MICROGRAPH}.json")
panels = {"one raw frame": halves.a}
panels |= {n: pair.read_estimates(halves, RESULTS / "denoised" / m, ["a"])["a"] for n, m in METHODS.items()}
panels["the other 49 frames"] = halves.b
with open(sys.argv[1], newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["micrograph"] == MICROGRAPH]
marks = np.array([(float(row["y_px"]) - TOP, float(row["x_px"]) - LEFT) for row in rows])
marks = marks[((marks > 0) & (marks < SIDE)).all(axis=1)]

figure = Figure(figsize=(12.5, 2.75))
for ax, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
    part = image[TOP : TOP + SIDE, LEFT : LEFT + SIDE]
    vmin, vmax = np.percentile(part, (0.5, 99.5))
    ax.imshow(part, cmap="gray", vmin=vmin, vmax=vmax, interpolation="antialiased")
    if name in ("cryon2n", "the other 49 frames"):
        ax.scatter(marks[:, 1], marks[:, 0], s=7, c="tab:orange", linewidths=0)
    ax.set_title(name, fontweight="bold" if name == "cryon2n" else None)
    ax.axis("off")
figure.subplots_adjust(0.002, 0, 0.998, 0.9, 0.015)
figure.savefig("docs/images/one-frame.png", dpi=80)
