"""Run torch-motion-correction in an environment of its own; imports nothing of this project.

python torch_motion_correction_program.py MOVIE.npy FIELD.npy TIMES.json global|local PIXEL_SIZE THREADS

MOVIE.npy: counts (n, h, w).  FIELD.npy: displacements in Å (n, 33, 33, 2), (y, x), on a regular grid from the middle
of the first pixel to that of the last, as its own `correct_motion` applies them.
"""

import json
import sys
import time

import numpy as np
import torch
import torch_motion_correction as tmc

PLACES = 33
# The best of 8 trials (patches of 384 and 512, rates of 0.02 to 0.3, 10 and 38 places in time, 2 x 2 and 3 x 3 in
# space, mse and ncc) on one movie each of the regimes "quiet" and "typical", with a seed that is not the benchmark's.
PATCH, GRID, RATE, ITERATIONS = 512, (10, 3, 3), 0.05, 100


def main(movie: str, field: str, times: str, mode: str, pixel_size: str, threads: str) -> None:
    """Estimate the motion of one movie; arguments as on the command line."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    spacing = float(pixel_size)
    frames = torch.from_numpy(np.load(movie)).float()
    began = time.perf_counter()
    h, w = frames.shape[1:]
    # One patch as large as the frame, against the mean of the others, with sub-pixel refinement: on movies as noisy as
    # these its `estimate_global_motion`, against one frame, is tens of Å off.
    found, _ = tmc.estimate_motion_cross_correlation_patches(frames, spacing, tmc.PatchSamplingConfig((h, w)))
    if mode == "local":
        patch = min(PATCH, h // 2, w // 2)
        found, _ = tmc.estimate_local_motion(
            frames,
            spacing,
            GRID,
            tmc.PatchSamplingConfig((patch, patch)),
            initial_deformation_field=found,
            optimization=tmc.OptimizationConfig(
                max_iterations=ITERATIONS, loss_type="mse", grid_type="bspline", optimizer_kwargs={"lr": RATE}
            ),
        )
    seconds = time.perf_counter() - began
    with torch.no_grad():
        grids = [found.evaluate_at_t(float(t), (PLACES, PLACES)) for t in torch.linspace(0, 1, len(frames))]
    np.save(field, torch.stack(grids).permute(0, 2, 3, 1).double().numpy())
    with open(times, "w") as file:
        json.dump({"seconds": seconds}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
