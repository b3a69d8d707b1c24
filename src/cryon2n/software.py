"""Versions of the software behind a result."""

import importlib.metadata
import platform

from cryon2n import __version__

PACKAGES = ("numpy", "scipy", "scikit-image", "pandas", "matplotlib", "torch", "snakemake")


def versions() -> dict[str, str]:
    """Return the versions of this program, of Python and of the packages that make numbers, as far as installed."""
    out = {"cryon2n": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out
