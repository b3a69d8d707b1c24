"""Noise2Noise denoising of cryo-EM micrographs, from raw movies to an honest comparison."""

__version__ = "0.1.0"
