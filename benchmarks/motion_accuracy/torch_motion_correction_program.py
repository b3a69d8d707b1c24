"""Run torch-motion-correction in an environment of its own; imports nothing of this project.

python torch_motion_correction_program.py FOLDER PIXEL_SIZE THREADS DEVICE

FOLDER holds movie.npy: counts (n, h, w).  For the modes global and local it gets MODE.npy: displacements in Å
(n, 33, 33, 2), (y, x), on a regular grid from the middle of the first pixel to that of the last, as its own
`correct_motion` applies them; then MODE.json: the seconds.
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


def main(folder: str, pixel_size: str, threads: str, device: str) -> None:
    """Estimate the motion of one movie; arguments as on the command line."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    spacing, where = float(pixel_size), torch.device(device)
    began = time.perf_counter()
    frames = torch.from_numpy(np.load(f"{folder}/movie.npy")).to(where).float()
    h, w = frames.shape[1:]
    # One patch as large as the frame, against the mean of the others, with sub-pixel refinement: on movies as noisy as
    # these its `estimate_global_motion`, against one frame, is tens of Å off.
    found, _ = tmc.estimate_motion_cross_correlation_patches(frames, spacing, tmc.PatchSamplingConfig((h, w)))
    write(folder, "global", found, len(frames), began)
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
    write(folder, "local", found, len(frames), began)


def write(folder: str, mode: str, found: tmc.DeformationField, n: int, began: float) -> None:
    """Write the displacements of `n` frames, and the seconds since `began`."""
    with torch.no_grad():
        grids = torch.stack([found.evaluate_at_t(float(t), (PLACES, PLACES)) for t in torch.linspace(0, 1, n)])
    np.save(f"{folder}/{mode}.npy", grids.permute(0, 2, 3, 1).double().cpu().numpy())
    with open(f"{folder}/{mode}.json", "w") as file:
        json.dump({"seconds": time.perf_counter() - began}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
