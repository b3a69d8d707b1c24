"""What is written about a simulated entry and its movies."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryon2n import __version__

if TYPE_CHECKING:
    from cryon2n.phantom_stage import Draw, PhantomSettings


def entry_metadata(settings: "PhantomSettings") -> dict[str, Any]:
    """Return the entry's metadata under the key names of EMPIAR's REST API, entry 00000."""
    s = settings
    size = s.n_movies * (s.n_frames * s.shape[0] * s.shape[1] + 1024)
    sample = "a 20S-proteasome-like barrel" if s.atoms is None else Path(s.atoms).name
    details = (
        f"Simulated by cryon2n {__version__}. {s.dose_e_per_A2:g} e-/A^2 in {s.n_frames} frames, "
        f"{s.voltage_kV:g} kV, Cs {s.cs_mm:g} mm, amplitude contrast {s.amplitude_contrast:g}, "
        f"defocus {s.defocus_A[0]:g} to {s.defocus_A[1]:g} A, seed {s.seed}. "
        "gain.mrc and dark.mrc are used for gain correction."
    )
    return {
        "EMPIAR-00000": {
            "title": f"Simulated movies of {sample}",
            "status": "SIMULATED",
            "dataset_size": f"{size / 1e9:.3g} GB",
            "experiment_type": "SIMULATION",
            "cross_references": [],
            "imagesets": [
                {
                    "name": "Raw movies",
                    "directory": "/raw",
                    "category": "micrographs - multiframe",
                    "header_format": "MRC",
                    "data_format": "MRC",
                    "num_images_or_tilt_series": s.n_movies,
                    "frames_per_image": s.n_frames,
                    "voxel_type": "UNSIGNED BYTE",
                    "pixel_width": s.pixel_size_A,
                    "pixel_height": s.pixel_size_A,
                    "details": details,
                    "image_width": str(s.shape[1]),
                    "image_height": str(s.shape[0]),
                }
            ],
        }
    }


def movie_record(
    settings: "PhantomSettings", index: int, name: str, draw: "Draw", hot: np.ndarray, snr: float
) -> dict[str, Any]:
    """Return what is known of a simulated movie; places in raw pixels, pixel centres at whole numbers."""
    optics = draw.optics
    return {
        "micrograph": name,
        "index": index,
        "seed": settings.seed,
        "shape": list(settings.shape),
        "pixel_size_A": settings.pixel_size_A,
        "n_frames": settings.n_frames,
        "dose_e_per_A2": settings.dose_e_per_A2,
        "voltage_kV": optics.voltage,
        "cs_mm": optics.cs,
        "amplitude_contrast": optics.amplitude_contrast,
        "defocus_A": round((optics.defocus_u + optics.defocus_v) / 2, 2),
        "defocus_u_A": round(optics.defocus_u, 2),
        "defocus_v_A": round(optics.defocus_v, 2),
        "astigmatism_angle_deg": round(float(np.degrees(optics.astigmatism_angle)), 3),
        "b_factor_A2": optics.b_factor,
        "snr_per_pixel": round(snr, 5),
        "particle_radius_A": round(draw.radius, 2),
        "particles": [{"x_px": round(float(x), 3), "y_px": round(float(y), 3)} for y, x in draw.particles],
        "trajectory_A": np.round(draw.scene.trajectory, 5).tolist(),
        "hot_pixels": [{"x_px": int(x), "y_px": int(y)} for y, x in hot],
    }
